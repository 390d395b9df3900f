"""Geometry: measures of every layer by depth, and the images of a layer as points."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import streamlit as st

from analysis import figures_geometry
from analysis.figure_style import rule_title
from analysis.geometry_measures import GEOMETRY_MEASURES
from analysis.projection import NO_UMAP
from analysis.study import Study
from app import (
    jobs,
    links,
    offering,
    pictures,
    several,
    texts,
    texts_geometry,
    texts_probes,
    widgets,
)
from app.several import Question
from app.sources import answers, layer_features, studies
from app.sources.answers import GeometryAnswer
from app.sources.checkpoints import CheckpointFile
from app.sources.layer_features import METHODS, MOST_POINTS, LayerPoints

NARROW_BOX = 190  # pixels, which show a checkpoint's name and three methods
A_SHEET = 60  # images beside the points at once
SETTINGS = {"tsne": ("perplexity", "Perplexity", 30), "umap": ("neighbours", "Neighbours", 15)}
FRAMED = 0.995  # of all coordinates lie within the frame
FEW = 3  # images that are shown large


# ---------------------------------------------------------------------------------------- measures


def draw_measures(found: Sequence[GeometryAnswer]) -> None:
    """A group of measures by depth, each with its definition."""
    several.restore_choice("group", list(texts_geometry.GROUPS), "Dimension")
    group = st.segmented_control(
        "Measures",
        list(texts_geometry.GROUPS),
        key="group",
        required=True,
        persist_state="session",
        label_visibility="collapsed",
    )
    links.remember(group="" if group == "Dimension" else group)
    _draw_group(found, str(group), "chart")
    groups = found[0].geometry.groups
    st.caption(
        f"Bands: 95%, from leaving out one of {groups} groups of images at a time "
        "(Wilson's for shares of images, chi-squared for TwoNN). They cover the choice of this "
        "many images, not of training runs: another seed may differ by more. Point at a gap to "
        "read why there is no value."
    )


def _draw_group(found: Sequence[GeometryAnswer], group: str, suffix: str) -> None:
    """The curves of a group of measures, each with its definition; charts are named by `suffix`."""
    results = [answer.geometry for answer in found]
    rules = {answer.entry.name: answer.entry.rule for answer in found}
    split = found[0].study.question.split
    grid = st.grid(2, min_column_width=widgets.NARROWEST_FIGURE, gap="large")
    for measure in texts_geometry.GROUPS[group]:
        kind = GEOMETRY_MEASURES[measure]
        title = f"{kind.title}, {split} split, n = {results[0].samples:,}"
        with grid.cell():
            widgets.chart(
                figures_geometry.geometry_curves(results, rules, measure, title=title),
                f"{measure}-{suffix}",
                f"{kind.title} by depth",
            )
            st.caption(texts.plain(texts_geometry.definition(measure)))


def draw_part(study: Study, entries: Sequence[CheckpointFile]) -> None:
    """Curves that are not whole: while layers are measured, or what a stopped job kept."""
    found = answers.geometry_parts(study, entries)
    if not found:
        return
    group = st.session_state.get("group")
    _draw_group(found, group if group in texts_geometry.GROUPS else "Dimension", "part")
    st.caption(
        f"**Partial**, {texts.plain(str(study.provenance.stopped))}. Layers that are there do not "
        "change any more."
    )


# ------------------------------------------------------------------------------------------ points


def draw_points(question: Question) -> None:
    """The images of one checkpoint's layers as points: what is asked, then reading or drawing."""
    st.subheader("A layer's images as points", anchor=False)
    grid = st.grid(4, min_column_width=NARROW_BOX)
    with grid.cell():
        entry = several.pick_one("of", "Checkpoint to look into", question.chosen)
    with grid.cell():
        method = _pick_method()
    with grid.cell():
        dimensions = _pick_dimensions()
    with grid.cell():
        setting = _pick_setting(method)
    if not layer_features.is_installed(method):
        st.info(f"{NO_UMAP}.")
        return
    request = question.request
    asked = layer_features.Question(
        entry.sha256,
        request.dataset,
        request.split,
        min(request.samples, MOST_POINTS),
        request.seed,
        int(request.option("probe_pooling")),
        bool(request.option("balanced")),
    )
    points = layer_features.at_hand(asked)
    if points is None:
        _offer_reading(asked, entry)
        return
    missing = layer_features.missing_layers(points, method, dimensions, setting)
    if missing and _computes(points, method, dimensions, setting):
        return
    draw_layer(points, entry, (method, dimensions, setting))


def _pick_method() -> str:
    """How the features are brought into the plane."""
    several.restore_choice("method", list(METHODS), "pca")
    method = st.segmented_control(
        "Projection",
        list(METHODS),
        key="method",
        required=True,
        format_func=METHODS.__getitem__,
        persist_state="session",
    )
    links.remember(method="" if method == "pca" else method)
    return str(method)


def _pick_dimensions() -> int:
    """A plane or a space."""
    several.restore_choice("dimensions", [2, 3], 2, links.whole_number)
    dimensions = st.segmented_control(
        "Dimensions", [2, 3], key="dimensions", required=True, persist_state="session"
    )
    links.remember(dimensions="" if dimensions == 2 else dimensions)
    return int(dimensions or 2)


def _pick_setting(method: str) -> float:
    """The one number of t-SNE or of UMAP."""
    if method not in SETTINGS:
        return 0.0
    key, title, default = SETTINGS[method]
    links.restore(key, default, links.whole_number)
    st.session_state[key] = min(max(int(st.session_state[key] or default), 2), 200)
    value = st.number_input(
        title,
        2,
        200,
        step=1,
        key=key,
        persist_state="session",
        help="About how many neighbours of an image count.",
    )
    links.remember(**{key: "" if value == default else value})
    return float(value)


def _offer_reading(asked: layer_features.Question, entry: CheckpointFile) -> None:
    """A button to read the features, or how far the reading is."""
    _work_here(
        "reading",
        f"The features of {asked.samples:,} images were not read yet; it takes some seconds.",
        "Show the points",
        lambda report: layer_features.read(asked, entry, report),
    )


def _computes(points: LayerPoints, method: str, dimensions: int, setting: float) -> bool:
    """Whether t-SNE or UMAP of layers is being computed now, which the layer's button asks for."""
    layers = st.session_state.get("embedding")
    if not layers:
        return False
    known = tuple(layer for layer in layers if layer in points.layers)
    _work_here(
        "embedding",
        "",
        "",
        lambda report: layer_features.compute(points, method, dimensions, setting, known, report),
    )
    return True


def _work_here(
    flag: str, text: str, verb: str, work: Callable[[layer_features.Report], Any]
) -> None:
    """Offer some seconds of work; once asked for, do it here, with progress and Cancel.

    Drawing the progress stops the work if Cancel, or anything else, was clicked meanwhile; a
    fragment would not be interrupted.
    """
    problem = st.session_state.pop(f"{flag}_problem", None)
    if problem:
        st.error(texts.plain(problem))
    with st.container(border=True, horizontal=True, vertical_alignment="center"):
        if not st.session_state.get(flag):
            st.markdown(text)
            st.button(verb, type="primary", key=f"start-{flag}", on_click=_set, args=(flag, True))
            return
        bar = st.progress(0.0, text="Starting")
        st.button("Cancel", key=f"stop-{flag}", on_click=_set, args=(flag, None))

        def report(stage: str, done: int, total: int) -> None:
            count = f", {done:,} of {total:,}" if total else ""
            bar.progress(done / total if total else 0.0, text=texts.plain(stage) + count)

        try:
            work(report)
        except (ValueError, OSError) as error:
            st.session_state[f"{flag}_problem"] = jobs.sentence(error)
    st.session_state[flag] = None
    st.rerun()


def _set(flag: str, value: object) -> None:
    st.session_state[flag] = value


@links.fragment
def draw_layer(points: LayerPoints, entry: CheckpointFile, how: tuple[str, int, float]) -> None:
    """One layer's points on the left, the images that are picked on the right."""
    layer = _pick_layer(points)
    places = layer_features.coordinates(points, *how, layer)
    picked = _picked(points)
    left, right = widgets.side_by_side()
    with left:
        if places is None:
            _offer_embedding(points, how, layer)
        elif isinstance(places, str):
            widgets.empty_state(
                "No points", f"{texts.plain(layer)} has none: {texts.plain(places)}."
            )
        else:
            _draw_scatter(points, places, how, layer, picked, entry)
    with right:
        _pick_images(points)
        _draw_picked(points, picked)
    if not isinstance(places, np.ndarray):
        return
    with st.container(horizontal=True):
        shared = (places, points.images.labels, points.images.classes, points.images.indices)
        every = range(len(places))
        several.download(
            "All points", lambda: texts_geometry.points_csv(*shared, list(every)), "points.csv"
        )
        several.download(
            "Picked images",
            lambda: texts_geometry.points_csv(*shared, picked),
            "picked.csv",
            disabled=not picked,
        )


def _pick_layer(points: LayerPoints) -> str:
    """A slider through the layers."""
    several.restore_choice("layer", points.layers, points.layers[-1])
    st.select_slider("Layer", points.layers, key="layer", persist_state="session")
    links.remember(layer=st.session_state["layer"])
    return str(st.session_state["layer"])


def _offer_embedding(points: LayerPoints, how: tuple[str, int, float], layer: str) -> None:
    """Buttons that compute t-SNE or UMAP: of this layer, or of all."""
    method, dimensions, setting = how
    missing = layer_features.missing_layers(points, method, dimensions, setting)
    num_images = len(points.images.labels)
    once, all_of_them = (
        texts.duration(layer_features.seconds(method, dimensions, num_images, count))
        for count in (1, len(missing))
    )
    problem = st.session_state.pop("embedding_problem", None)
    if problem:
        st.error(texts.plain(problem))
    with st.container(border=True):
        st.markdown(
            f"{METHODS[method]} of {num_images:,} images takes about {once} a layer, about "
            f"{all_of_them} for the {len(missing)} layers that have none yet."
        )
        with st.container(horizontal=True):
            if st.button("This layer", type="primary", key="embed-one"):
                _set("embedding", (layer,))
                st.rerun()
            if len(missing) > 1 and st.button("All layers", key="embed-all"):
                _set("embedding", missing)
                st.rerun()


def _draw_scatter(
    points: LayerPoints,
    places: Any,
    how: tuple[str, int, float],
    layer: str,
    picked: Sequence[int],
    entry: CheckpointFile,
) -> None:
    """The scatter, and what its axes are."""
    method, dimensions, _ = how
    shown, limit = points.images, _limit(points, how)
    title = f"{METHODS[method]} of {layer}, {rule_title(entry.rule)}, n = {len(places):,}"
    st.plotly_chart(
        figures_geometry.layer_scatter(
            places,
            shown.labels,
            shown.classes,
            shown.indices,
            title=title,
            limit=limit,
            selected=picked,
            axis=METHODS[method],
        ),
        key=f"scatter-{dimensions}",
        on_select=lambda: selected(f"scatter-{dimensions}"),
        selection_mode=("points", "box", "lasso"),
        # Nothing taken off the bar: that is where the lasso is.
        config={**widgets.chart_config("points"), "modeBarButtonsToRemove": []},
        alt=f"Images as points by {METHODS[method]} of {layer}",
    )
    st.caption(_caption(points, how, layer, places, limit))


def _limit(points: LayerPoints, how: tuple[str, int, float]) -> float:
    """Where the axes end: the same for all layers that are there, so that a slider keeps them.

    It leaves the farthest images out, which would make all others small.
    """
    drawn = (layer_features.coordinates(points, *how, layer) for layer in points.layers)
    return 1.1 * max(
        float(np.quantile(np.abs(part), FRAMED)) for part in drawn if isinstance(part, np.ndarray)
    )


def _caption(
    points: LayerPoints, how: tuple[str, int, float], layer: str, places: Any, limit: float
) -> str:
    """What the axes mean, and how many images lie outside the frame."""
    method, dimensions, setting = how
    pick = "Draw a lasso about points, or click one"
    if dimensions == 3:
        pick = "Turn it by dragging; pick images by number or class"
    outside = int((np.abs(places) > limit).any(axis=1).sum())
    note = f" Images outside the frame: {outside}." if outside else ""
    if method == "pca":
        share = points.aligned[dimensions].explained.get(layer, 0.0)
        return (
            f"{pick}. The first {dimensions} principal components hold {share:.0%} of the "
            "variance. Each layer is turned to lie best on the one before and scaled to the same "
            "spread, so that images can be followed through the slider; distances within a layer "
            f"keep their proportions.{note}"
        )
    name = SETTINGS[method][1].lower()
    return (
        f"{pick}. {METHODS[method]} with {name} {setting:g}, turned to lie best on the layer's "
        "PCA: neighbours stay neighbours, but sizes of groups and distances between them mean "
        f"little.{note}"
    )


# ---------------------------------------------------------------------------------- picked images


def selected(chart: str) -> None:
    """Copy the points of a click, box or lasso to the field of images."""
    chosen = st.session_state[chart]["selection"]["points"]
    places = [point["customdata"][0] for point in chosen if point.get("customdata")]
    if places:
        st.session_state["picked"] = texts_geometry.written_images(places)


def _picked(points: LayerPoints) -> list[int]:
    """The images that are picked, from the field that holds them."""
    links.restore("picked", "", lambda text: ", ".join(text.split(",")))
    places, problem = texts_geometry.parse_images(
        st.session_state["picked"] or "", len(points.images.labels)
    )
    st.session_state["picked_problem"] = problem
    is_short = len(places) <= texts_geometry.MOST_LISTED
    links.remember(
        picked=texts_geometry.written_images(places).replace(" ", "") if is_short else ""
    )
    return places


def _pick_images(points: LayerPoints) -> None:
    """The field of images and a box of classes: what a lasso does, by keyboard."""
    left, right = st.columns(2)
    left.text_input(
        "Images",
        key="picked",
        placeholder="3, 17, 40-60",
        persist_state="session",
        help=f"Numbers from 0 to {len(points.images.labels) - 1}; hovering over a point shows its "
        "own. A lasso fills this in.",
    )
    right.selectbox(
        "Or all of a class",
        range(len(points.images.classes)),
        index=None,
        key="picked_class",
        format_func=lambda label: points.images.classes[label],
        placeholder="Pick a class",
        on_change=lambda: _pick_class(points),
    )
    if st.session_state["picked_problem"]:
        st.caption(f":red[{texts.plain(st.session_state['picked_problem'])}]")


def _pick_class(points: LayerPoints) -> None:
    """Put the images of a class into the field; the box is then empty again."""
    label = st.session_state["picked_class"]
    if label is not None:
        places = np.flatnonzero(points.images.labels == label)
        st.session_state["picked"] = texts_geometry.written_images(places)
        st.session_state["picked_class"] = None


def _draw_picked(points: LayerPoints, picked: Sequence[int]) -> None:
    """The images that are picked; few are shown large."""
    if not picked:
        widgets.empty_state(
            "No images picked",
            "Click a point, draw a lasso about some, type their numbers or pick a class.",
        )
        return
    shown = points.images
    more = f", the first {A_SHEET} are shown" if len(picked) > A_SHEET else ""
    if len(picked) > texts_geometry.MOST_LISTED:
        more += "; too many for the link"
    with st.container(horizontal=True, vertical_alignment="center"):
        st.markdown(f"**{len(picked):,} image{'s' if len(picked) > 1 else ''}**{more}")
        st.button("Clear", key="clear-picked", on_click=_set, args=("picked", ""))
    with st.container(height=480, border=False):
        pictures.gallery(
            [
                pictures.Picture(
                    shown.pixels[place],
                    shown.classes[shown.labels[place]],
                    (f"image {place}",),
                    f"Image {place}, number {shown.indices[place]} of the split: "
                    f"{shown.classes[shown.labels[place]]}",
                )
                for place in picked[:A_SHEET]
            ],
            **({"side": 160} if len(picked) <= FEW else {}),
        )


# -------------------------------------------------------------------------------------------- page


def draw_files(found: Sequence[GeometryAnswer], dataset: str) -> None:
    """What to take away."""
    results = [answer.geometry for answer in found]
    with st.expander("Numbers"):
        st.dataframe(texts_geometry.measure_rows(results), hide_index=True)
    distinct = list({id(answer.study): answer.study for answer in found}.values())
    tables = {"Measures": lambda: texts_geometry.measures_csv(results)}
    widgets.exports(distinct, tables, dataset=dataset, name="geometry")


def page() -> None:
    """Pick, get, draw."""
    st.title("Geometry", anchor=False)
    question = several.ask("geometry", "Pick one checkpoint or more to see its geometry.")
    if question is None:
        return
    found = answers.geometry_answers(question.request, question.chosen)
    here = {answer.entry.sha256 for answer in found}
    missing = [entry for entry in question.chosen if entry.sha256 not in here]
    if missing:
        names = texts_probes.listed([entry.name for entry in missing])
        request = studies.narrowed(question.request, missing)
        offering.offer_study(
            request,
            missing,
            f"Measuring {names}",
            "Measure geometry",
            draw=lambda part: draw_part(part, missing),
        )
    if found:
        draw_measures(found)
    if question.request.dataset:
        draw_points(question)
    if found:
        draw_files(found, question.request.dataset)


page()
