"""Two checkpoints, layer by layer: a map to click in, the chosen pair of layers, and curves."""

from __future__ import annotations

from collections.abc import Sequence

import streamlit as st
from streamlit.delta_generator import DeltaGenerator

from analysis import figures
from analysis.cka import CKAPair
from analysis.study import Study, StudyCheckpoint
from app import links, texts, widgets
from app.sources import checkpoints, studies
from app.sources.checkpoints import CheckpointFile
from app.sources.studies import Request

SIDES = {"A-B": (0, 1), "A-A": (0, 0), "B-B": (1, 1)}


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


def pick_side(is_one: bool) -> str:
    """Which map: A with B, or one with itself."""
    links.restore("map", "A-B", lambda text: text if text in SIDES else None)
    if is_one:
        return "A-A"
    side = st.segmented_control(
        "Map",
        list(SIDES),
        key="map",
        required=True,
        format_func=lambda side: side.replace("-", " with "),
        persist_state="session",
        label_visibility="collapsed",
    )
    return str(side)


def pick_cell(pair: CKAPair) -> tuple[int, int]:
    """The pair of layers: two boxes, which a click in the map sets too."""
    middle = len(pair.rows) // 2
    defaults = (pair.rows[middle], pair.columns[pair.same_depth()[middle]])
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


def clicked(pair: CKAPair) -> None:
    """Copy a clicked cell to the two boxes; a second click on it changes nothing."""
    points = st.session_state["map-chart"]["selection"]["points"]
    if points:
        st.session_state["row"] = pair.rows[int(points[0]["y"])]
        st.session_state["column"] = pair.columns[int(points[0]["x"])]


@st.fragment
def draw_map(study: Study, pair: CKAPair, ends: list[StudyCheckpoint]) -> None:
    """The map on the left, what is chosen in it on the right."""
    labels = [figures.checkpoint_label(entry.rule, entry.name) for entry in ends]
    left, right = widgets.side_by_side()
    with right:
        row, column = pick_cell(pair)
        links.remember(row=pair.rows[row], column=pair.columns[column])
        draw_cell(pair, (row, column), ends, labels)
    with left:
        stretch = bool(st.session_state.get("stretch"))
        figure = figures.cka_map(
            pair,
            title=f"Linear CKA, {study.question.split} split, n = {pair.samples:,}",
            row_label=labels[0],
            column_label=labels[1],
            selected=(row, column),
            stretch=stretch,
        )
        st.plotly_chart(
            figure,
            key="map-chart",
            on_select=lambda: clicked(pair),
            selection_mode="points",
            config=widgets.chart_config("map"),
            alt=f"Map of similarities between the layers of {labels[0]} and {labels[1]}",
        )
        st.caption("Click a cell, or pick two layers.")
        st.toggle(
            "Stretch the colours to this map",
            key="stretch",
            help="Shows small differences, but two maps then no longer compare.",
            persist_state="session",
        )


def draw_cell(
    pair: CKAPair, cell: tuple[int, int], ends: list[StudyCheckpoint], labels: list[str]
) -> None:
    """The chosen pair of layers: value, interval, n, and how each resembles all others."""
    with st.container(horizontal=True, gap="large", key="detail"):
        value, interval, note = texts.cell_parts(pair, *cell)
        st.metric("CKA", value, width="content")
        st.metric("95% interval", interval, width="content")
        st.metric("Images", f"{pair.samples:,}", width="content")
    if note:
        st.caption(texts.plain(note))
    figure = figures.profile_curves(
        pair,
        cell,
        title="Both layers against all others",
        row_label=labels[0],
        column_label=labels[1],
        row_rule=ends[0].rule,
        column_rule=ends[1].rule,
    )
    widgets.chart(figure, "profile-chart", "Similarity of the chosen layers to all others")


def draw(study: Study, entries: list[CheckpointFile], dataset: str) -> None:
    """All that a study says about a pair."""
    side = pick_side(entries[0].sha256 == entries[1].sha256)
    ends = [studies.study_checkpoint(study, entries[end].sha256) for end in SIDES[side]]
    pair = studies.study_pair(study, *(entry.sha256 for entry in ends))
    links.remember(map=side)
    draw_map(study, pair, ends)
    if side == "A-B":
        widgets.chart(
            figures.same_depth_curve(
                pair, title=f"Linear CKA of layers at the same depth, n = {pair.samples:,}"
            ),
            "same-depth-chart",
            "Similarity of layers at the same depth",
        )
    st.caption(texts.interval_caption(pair))
    widgets.exports(study, {"Map": lambda: texts.map_csv(pair)}, dataset=dataset, name="compare")


def page() -> None:
    """Pick, get, draw."""
    st.title("Compare", anchor=False)
    with st.spinner("Opening checkpoints"):
        entries, problems = checkpoints.checkpoint_files()
    widgets.show_problems(problems)
    if not entries:
        widgets.no_checkpoints()
        return
    *places, data_place = widgets.row_of(3)
    chosen = pick_pair(entries, places)
    links.show_missing()
    sha256s = tuple(dict.fromkeys(entry.sha256 for entry in chosen))
    with data_place:
        dataset = widgets.pick_data(sha256s, "cka")
    request = Request("cka", sha256s, dataset, *widgets.pick_settings(sha256s, "cka", dataset))
    links.remember_request(request, a=chosen[0].sha256, b=chosen[1].sha256)
    study = studies.find_study(request)
    if study is not None:
        draw(study, chosen, dataset)
        return
    title = " and ".join(dict.fromkeys(entry.name for entry in chosen))
    distinct = list({entry.sha256: entry for entry in chosen}.values())
    widgets.offer(request, distinct, f"Comparing {title}", "Compare")


page()
