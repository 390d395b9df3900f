"""Two checkpoints, layer by layer, by any measure: a map to click in, what is chosen, curves."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import streamlit as st
from streamlit.delta_generator import DeltaGenerator

from analysis import figures, figures_pair
from analysis.plane import plane_of_layers
from analysis.study import Study
from app import links, offering, pairs, similarity_options, texts, widgets
from app.pairs import LayerPair
from app.sources import checkpoints, pair_features, studies
from app.sources.checkpoints import CheckpointFile
from app.sources.studies import Request

SIDES = {"A-B": (0, 1), "A-A": (0, 0), "B-B": (1, 1)}
DIFFERENCE, CEILING, FLOOR, ALL = "difference", "ceiling", "floor", "all"
REFERENCES = (CEILING, FLOOR)
SIDE_NAMES = {
    "A-B": "A with B",
    "A-A": "A with A",
    "B-B": "B with B",
    DIFFERENCE: "A with A minus B with B",
    CEILING: "A with B minus ceiling",
    FLOOR: "A with B minus floor",
    ALL: "All",
}
# What the colours of a difference mean, after the names of the two networks of the second map.
MEANINGS = {
    DIFFERENCE: "Blue: more alike in A with A; red: in B with B.",
    CEILING: "Blue: A and B are more alike than two networks that should be; red: less, so that "
    "more than another seed tells them apart.",
    FLOOR: "Blue: A and B are more alike than architecture alone makes them; red: less.",
}
MEASURES = tuple(pairs.MEASURE_TITLES)
VIEWS = {"others": "Against all others", "images": "Images through PCA"}


# ------------------------------------------------------------------------------------------- picks


def pick_pair(
    entries: Sequence[CheckpointFile], columns: Sequence[DeltaGenerator]
) -> list[CheckpointFile]:
    """Checkpoints A and B; a shipped pair at first."""
    by_sha256 = {entry.sha256: entry for entry in entries}
    default = checkpoints.first_pair(entries)
    chosen = []
    for name, entry in zip(("a", "b"), default, strict=True):
        links.restore_checkpoint(name, entry, entries)
    for column, name in zip(columns, ("a", "b"), strict=True):
        with column:
            sha256 = st.selectbox(
                f"Checkpoint {name.upper()}",
                list(by_sha256),
                key=name,
                format_func=lambda sha256: widgets.label(by_sha256[sha256]),
                on_change=widgets.adopt_pair,
                args=("cka", "a", "b"),
                persist_state="session",
            )
        chosen.append(by_sha256[sha256])
    return chosen


def pick_measure() -> str:
    """Any measure of similarity."""
    links.restore("measure", "cka", lambda text: text if text in MEASURES else None)
    return str(
        st.selectbox(
            "Measure",
            MEASURES,
            key="measure",
            format_func=pairs.MEASURE_TITLES.__getitem__,
            persist_state="session",
        )
    )


def pick_more(
    entries: Sequence[CheckpointFile], chosen: Sequence[CheckpointFile]
) -> list[CheckpointFile]:
    """More checkpoints, for the plane of all layers."""
    by_sha256 = {entry.sha256: entry for entry in entries if entry not in chosen}
    links.restore_checkpoints("more", (), entries)
    st.session_state["more"] = [key for key in st.session_state["more"] if key in by_sha256]
    if not by_sha256:
        return []
    picked = st.multiselect(
        "More checkpoints",
        list(by_sha256),
        key="more",
        format_func=lambda sha256: widgets.label(by_sha256[sha256]),
        placeholder="None",
        persist_state="session",
        help="Their layers join the plane of all layers below.",
        wrap=True,
    )
    return [by_sha256[sha256] for sha256 in picked]


def pick_side(is_one: bool, measure: str, missing: Sequence[str]) -> str:
    """Which map: A with B, one with itself, a difference of maps, or all.

    Args:
        is_one: whether A is B.
        measure: that is shown.
        missing: of the references, those that are not chosen.
    """
    links.restore("map", "A-B", lambda text: text if text in SIDE_NAMES else None)
    if is_one:
        return "A-A"
    possible = SIDE_NAMES if measure == "cka" else (*SIDES, *REFERENCES)
    offered = [side for side in possible if side not in missing]
    # Set anew on every run: a control whose choices changed answers None else.
    kept = st.session_state["map"]
    st.session_state["map"] = kept if kept in offered else "A-B"
    st.segmented_control(
        "Map",
        offered,
        key="map",
        required=True,
        format_func=SIDE_NAMES.__getitem__,
        persist_state="session",
        label_visibility="collapsed",
    )
    if missing:
        st.caption(_missing_sentence(missing))
    return str(st.session_state["map"] or "A-B")


def _missing_sentence(missing: Sequence[str]) -> str:
    """Why there is no map minus the ceiling, or the floor, and what to do about it."""
    parts = {
        CEILING: "a ceiling (such as a second seed of A or B)",
        FLOOR: "a floor (an untrained network)",
    }
    names = " or ".join(parts[role] for role in missing)
    return f"No map minus {names}, because none is chosen: pick one under the options above."


def pick_cell(pair: LayerPair) -> tuple[int, int]:
    """The pair of layers: two boxes, which a click in the map sets too."""
    middle = len(pair.rows) // 2
    defaults = (pair.rows[middle], pair.columns[pair.matched(best=False)[middle]])
    for name, layers, default in zip(
        ("row", "column"), (pair.rows, pair.columns), defaults, strict=True
    ):
        links.restore(name, default, str)
        if st.session_state[name] not in layers:
            st.session_state[name] = default
    left, right = st.columns(2)
    row = left.selectbox("Layer on the rows", pair.rows, key="row", persist_state="session")
    column = right.selectbox(
        "Layer on the columns", pair.columns, key="column", persist_state="session"
    )
    return pair.rows.index(row), pair.columns.index(column)


def clicked(pair: LayerPair) -> None:
    """Copy a clicked cell to the two boxes; a second click on it changes nothing."""
    points = st.session_state["map-chart"]["selection"]["points"]
    if points:
        st.session_state["row"] = pair.rows[int(points[0]["y"])]
        st.session_state["column"] = pair.columns[int(points[0]["x"])]


# -------------------------------------------------------------------------------------------- draw


@links.fragment
def draw_pair(
    pair: LayerPair,
    minus: LayerPair | None,
    references: Mapping[str, LayerPair],
    ends: tuple[CheckpointFile, CheckpointFile],
    request: Request,
    side: str,
) -> None:
    """The map on the left, what is chosen in it on the right, and below the curves by depth."""
    left, right = widgets.side_by_side()
    with right:
        cell = pick_cell(pair)
        links.remember(row=pair.rows[cell[0]], column=pair.columns[cell[1]])
        draw_cell(pair, minus, cell, side)
        detail = st.container()
    with left:
        draw_map(pair, minus, cell, side)
    if side != DIFFERENCE:
        draw_curves(pair, references)
    with detail:
        draw_detail(pair, cell, ends, request)


def draw_map(pair: LayerPair, minus: LayerPair | None, cell: tuple[int, int], side: str) -> None:
    """The map that is clicked in."""
    is_cka = pair.short == "CKA" and minus is None
    if minus is not None:
        figure = pairs.difference_map(pair, minus, selected=cell)
        alternative = f"Map of differences: {pair.names} minus {minus.names}"
    else:
        stretch = is_cka and bool(st.session_state.get("stretch"))
        figure = pairs.pair_map(pair, selected=cell, stretch=stretch)
        alternative = f"Map of similarities between the layers of {' and '.join(pair.labels)}"
    st.plotly_chart(
        figure,
        key="map-chart",
        on_select=lambda: clicked(pair),
        selection_mode="points",
        config=widgets.chart_config("map"),
        alt=alternative,
    )
    more = f" {difference_caption(side, minus)}" if minus is not None else ""
    st.caption(f"Click a cell, or pick two layers.{more}")
    if is_cka:
        st.toggle(
            "Stretch the colours to this map",
            key="stretch",
            help="Shows small differences, but two maps then no longer compare.",
            persist_state="session",
        )


def difference_caption(side: str, minus: LayerPair) -> str:
    """What the colours of a difference mean, and which reference is subtracted; markdown."""
    reference = f" The {side}: {texts.plain(minus.names)}." if side in REFERENCES else ""
    return f"{MEANINGS[side]}{reference}"


def draw_cell(pair: LayerPair, minus: LayerPair | None, cell: tuple[int, int], side: str) -> None:
    """The chosen pair of layers in numbers."""
    with st.container(horizontal=True, gap="medium", key="detail"):
        for title, value in pairs.cell_parts(pair, cell).items():
            st.metric(title, value, width="content", help=NUMBER_HELP.get(title))
        if minus is not None:
            other = pairs.cell_parts(minus, cell)
            name = next(iter(other))
            what = f"the {side}" if side in REFERENCES else "B with B"
            st.metric(f"{name} of {what}", other[name], width="content")
    note = pairs.cell_note(pair, cell)
    if note:
        st.caption(texts.plain(note))


NUMBER_HELP = {
    "Null level": "What 95% of shuffles of one network's images stay under.",
    "Chance level": "About what unrelated layers score.",
}


def draw_detail(
    pair: LayerPair,
    cell: tuple[int, int],
    ends: tuple[CheckpointFile, CheckpointFile],
    request: Request,
) -> None:
    """The chosen layers against all others, or their images."""
    links.restore("view", "others", lambda text: text if text in VIEWS else None)
    view = st.segmented_control(
        "Show of both layers",
        list(VIEWS),
        key="view",
        required=True,
        format_func=VIEWS.__getitem__,
        persist_state="session",
        label_visibility="collapsed",
    )
    links.remember(view="" if view == "others" else view)
    if view == "images":
        draw_images(pair, cell, ends, request)
        return
    widgets.chart(
        pairs.profile(pair, cell), "profile-chart", "Similarity of the chosen layers to all others"
    )


def draw_images(
    pair: LayerPair,
    cell: tuple[int, int],
    ends: tuple[CheckpointFile, CheckpointFile],
    request: Request,
) -> None:
    """Both layers' images on their principal components, and the one that is chosen."""
    layers = (pair.rows[cell[0]], pair.columns[cell[1]])
    try:
        with st.spinner("Reading both networks' layers"):
            found = pair_features.pair_points(ends, layers, request)
    except (ValueError, OSError) as error:
        st.error(f"The images could not be read. {texts.plain(str(error))}")
        return
    pictures = found.pictures
    count = len(pictures.labels)
    links.restore("pair_image", 1, links.whole_number)
    st.session_state["pair_image"] = min(max(1, int(st.session_state["pair_image"] or 1)), count)
    chosen = st.session_state["pair_image"] - 1
    places = st.columns(2)
    for place, layer, points, side in zip(
        places, layers, (found.first, found.second), "ab", strict=True
    ):
        with place:
            _draw_points(points, layer, pictures, chosen, side)
    with st.container(horizontal=True, vertical_alignment="center"):
        st.image(pictures.thumbnails[chosen], width=72)
        st.number_input(
            f"Image of {count}, or click a point",
            1,
            count,
            key="pair_image",
            persist_state="session",
            width=200,
        )
        st.markdown(f"Class **{texts.plain(pictures.classes[pictures.labels[chosen]])}**")
    links.remember(pair_image=chosen + 1)
    st.caption(
        f"{count} of the images, a point each, coloured by class (hover names it): the first two "
        f"principal components of features pooled to {pair_features.CELLS} x "
        f"{pair_features.CELLS}; the right picture is turned onto the left one."
    )


def _draw_points(
    points: pair_features.LayerPoints,
    layer: str,
    pictures: pair_features.Pictures,
    chosen: int,
    side: str,
) -> None:
    """One layer's images, to click in."""
    if points.points is None or points.explained is None:
        st.caption(texts.plain(f"{layer}: {points.reason}"))
        return
    key = f"points-{side}"
    figure = figures_pair.image_scatter(
        points.points,
        points.explained,
        pictures.labels,
        pictures.classes,
        title=f"{side.upper()}: {layer}",
        selected=chosen,
    )
    st.plotly_chart(
        figure,
        key=key,
        on_select=lambda: _point_clicked(key),
        selection_mode="points",
        config=widgets.chart_config(f"points-{layer}"),
        alt=f"Images in {layer} on two principal components",
    )


def _point_clicked(key: str) -> None:
    """Copy a clicked image to its field."""
    chosen = st.session_state[key]["selection"]["points"]
    if chosen and "customdata" in chosen[0]:
        index = chosen[0]["customdata"]
        st.session_state["pair_image"] = int(index[0] if isinstance(index, list) else index) + 1


def draw_curves(pair: LayerPair, references: Mapping[str, LayerPair]) -> None:
    """Similarity by depth: layers at the same depth, and best matches."""
    left, right = widgets.side_by_side()
    with left:
        widgets.chart(
            pairs.depth_curve(pair, references, best=False),
            "same-depth-chart",
            "Similarity of layers at the same depth",
        )
    with right:
        widgets.chart(
            pairs.depth_curve(pair, references, best=True),
            "best-match-chart",
            "Similarity of each layer of A to the layer of B most like it",
        )
    counts = len(pair.rows), len(pair.columns)
    if counts[0] != counts[1]:
        st.caption(
            f"The networks have {counts[0]} and {counts[1]} layers: the same depth is the same "
            "relative depth, and a layer may have the partner of its neighbour."
        )


def draw_all(found: Mapping[str, LayerPair], references: Mapping[str, LayerPair]) -> None:
    """A with B, each with itself, and the differences, side by side on common scales."""
    differences = {
        side: parts
        for side, parts in _subtracted(found, references).items()
        if pairs.has_difference(*parts)
    }
    limit = pairs.difference_limit(list(differences.values()))
    maps = {side: pairs.pair_map(found[side]) for side in SIDES}
    maps |= {side: pairs.difference_map(*parts, limit=limit) for side, parts in differences.items()}
    sides = list(maps)
    for start in range(0, len(sides), 2):
        for place, side in zip(widgets.side_by_side(), sides[start : start + 2]):
            with place:
                widgets.chart(maps[side], f"map-{side}", f"Map of {SIDE_NAMES[side]}")
                more = ""
                if side in differences:
                    more = f". {difference_caption(side, differences[side][1])}"
                st.caption(f"**{SIDE_NAMES[side]}**{more}")


def _subtracted(
    found: Mapping[str, LayerPair], references: Mapping[str, LayerPair]
) -> dict[str, tuple[LayerPair, LayerPair]]:
    """Both maps of every difference, as far as they are there."""
    parts = {DIFFERENCE: (found.get("A-A"), found.get("B-B"))}
    parts |= {role: (found.get("A-B"), references.get(role)) for role in REFERENCES}
    return {
        side: (first, second)
        for side, (first, second) in parts.items()
        if first is not None and second is not None
    }


def draw_plane(study: Study) -> None:
    """All layers of all checkpoints on a plane; only CKA's distances make one."""
    plane = None if study.cka is None else plane_of_layers(study.cka)
    if plane is None:
        return
    rules = {entry.name: entry.rule for entry in study.question.checkpoints}
    title = f"All layers on a plane, {study.question.split} split, n = {study.question.samples:,}"
    widgets.chart(
        figures.layer_plane(plane, rules, title=title),
        "plane-chart",
        "All layers of all networks on a plane",
    )
    st.caption(
        "Near means alike; rings mark first layers, and markers grow with depth. The plane holds "
        f"{plane.explained.sum():.0%} of the distances (stress {plane.stress:.2f})."
    )


def draw_part(study: Study, measure: str, chosen: Sequence[CheckpointFile], side: str) -> None:
    """A map that is not whole: while it is computed, or what a stopped job kept."""
    first, second = (chosen[end].sha256 for end in SIDES.get(side, (0, 1)))
    pair = pairs.find_pair(study, measure, first, second)
    if pair is None or not np.isfinite(pair.result.values).any():
        return
    left, right = widgets.side_by_side()
    with left:
        widgets.chart(pairs.pair_map(pair), "part-map", "Map of what was read so far")
    with right:
        widgets.chart(
            pairs.depth_curve(pair, {}, best=False), "part-curve", "Similarity at the same depth"
        )
    is_stopped = str(study.provenance.stopped).startswith("stopped")
    by_batches = study.cka is not None and study.cka.estimator == "unbiased"
    st.caption(
        f"**Partial**, {texts.plain(str(study.provenance.stopped))}: {pair.result.samples:,} "
        + (
            f"images{'' if is_stopped else '; values and intervals still change'}."
            if by_batches
            else f"images; layers {'not read' if is_stopped else 'to come'} are crossed out, and "
            "intervals come last."
        )
    )


def draw(
    study: Study,
    chosen: Sequence[CheckpointFile],
    request: Request,
    side: str,
) -> None:
    """All that a study says about a pair."""
    found = {
        name: pairs.find_pair(study, request.measure, chosen[a].sha256, chosen[b].sha256)
        for name, (a, b) in SIDES.items()
    }
    whole = {name: pair for name, pair in found.items() if pair is not None}
    base = {DIFFERENCE: "A-A", **{name: name for name in SIDES}}
    shown = whole[base.get(side, "A-B")]
    references = pairs.find_references(
        shown, {"ceiling": request.ceiling is not None, "floor": request.floor is not None}
    )
    both = _subtracted(whole, references).get(side)
    if side == ALL:
        draw_all(whole, references)
        draw_curves(shown, references)
    elif side not in SIDES and (both is None or not pairs.has_difference(*both)):
        reason = "The two maps are of different numbers of layers and cannot be subtracted"
        if both is None:
            reason = f"This study holds no {side} for this pair"
        widgets.empty_state("No difference", f"{reason}; choose another map.")
    else:
        minus = both[1] if both else None
        first, second = SIDES[base.get(side, "A-B")]
        draw_pair(shown, minus, references, (chosen[first], chosen[second]), request, side)
    st.caption(texts.plain(f"{pairs.caption(shown)} {texts.sizes_note(study)}"))
    draw_plane(study)
    tables: dict[str, Callable[[], str]] = {"Map": lambda: pairs.map_csv(shown)}
    tables["Curves"] = lambda: pairs.curve_csv(shown, references)
    widgets.exports(study, tables, dataset=request.dataset, name="similarity")


def remember(
    request: Request,
    chosen: Sequence[CheckpointFile],
    more: Sequence[CheckpointFile],
    first: Mapping[str, Any],
) -> None:
    """Write all choices but the cell into the address; those at their first value leave it."""
    shas = [entry.sha256 for entry in more]
    links.remember_request(request, a=chosen[0].sha256, b=chosen[1].sha256, more=shas)
    measure = "" if request.measure == "cka" else request.measure
    links.remember(measure=measure, **similarity_options.changes(first))


def page() -> None:
    """Pick, get, draw."""
    st.title("Similarity", anchor=False)
    with st.spinner("Opening checkpoints"):
        entries, problems = checkpoints.checkpoint_files()
    widgets.show_problems(problems)
    if not entries:
        widgets.no_checkpoints()
        return
    chosen = pick_pair(entries, widgets.row_of(2))
    links.show_missing()
    sha256s = tuple(dict.fromkeys(entry.sha256 for entry in chosen))
    measure_place, data_place, more_place = widgets.row_of(3)
    with measure_place:
        measure = pick_measure()
    with more_place:
        more = pick_more(entries, chosen) if measure == "cka" else []
    with data_place:
        dataset = widgets.pick_data(sha256s, measure)
    left, right = widgets.side_by_side()
    with left:
        options, ceiling, floor = similarity_options.pick_options(measure, chosen, entries)
    missing = [role for role, given in ((CEILING, ceiling), (FLOOR, floor)) if given is None]
    side = pick_side(len(sha256s) == 1, measure, missing)
    links.remember(map=side)
    asked = [*sha256s, *(entry.sha256 for entry in more)]
    if measure != "cka" and side in ("A-A", "B-B"):
        # Other measures compare one pair at a time.
        asked = [chosen[SIDES[side][0]].sha256]
        ceiling = floor = None
    with right:
        request = widgets.pick_question(
            asked, measure, dataset, ceiling=ceiling, floor=floor, options=options
        )
    remember(request, chosen, more, similarity_options.first_options(measure, chosen, entries))
    study = studies.find_study(request)
    if study is not None:
        draw(study, chosen, request, side)
        return
    by_sha256 = {entry.sha256: entry for entry in entries}
    wanted = [*request.sha256s, *([request.ceiling] if request.ceiling else [])]
    involved = [by_sha256[sha256] for sha256 in dict.fromkeys(wanted)]
    names = " and ".join(entry.name for entry in involved)
    offering.offer_study(
        request,
        involved,
        f"Comparing {names}",
        "Compare",
        draw=lambda part: draw_part(part, measure, chosen, side),
    )


page()
