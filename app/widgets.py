"""Pieces that several pages share: choice of images, a job's panel, empty states, charts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import plotly.graph_objects as go
import streamlit as st
from streamlit.delta_generator import DeltaGenerator

from analysis.figures import CONFIG, checkpoint_label
from analysis.study import Study, study_record
from app import data_doors, links, redo, texts
from app.sources import checkpoints, datasets, folders, studies, training_data
from app.sources.checkpoints import CheckpointFile
from app.sources.studies import Request

FOLDER = "folder"
NARROWEST_FIGURE = 400  # pixels, below which names on axes collide
NARROWEST_BOX = 260  # pixels, which show a checkpoint's name
NARROWEST_NUMBER = 130  # pixels of a number with its title
PICTURE = "picture_form"
PICTURES = ("png", "svg")
SETTINGS = ("samples", "seed", "batch_size", "split", "balanced")
MOST_SAMPLES = 1_000_000
DEFAULT_SETTINGS = (1000, 0, 125, "test", False)  # as on the command line
SPLIT_NAMES = ("test", "validation", "train")


def side_by_side() -> tuple[DeltaGenerator, DeltaGenerator]:
    """Two places for figures: beside each other, or stacked where the window is narrow."""
    grid = st.grid(2, min_column_width=NARROWEST_FIGURE, gap="large")
    return grid.cell(), grid.cell()


def row_of(
    count: int, columns: int | None = None, narrowest: int = NARROWEST_BOX
) -> list[DeltaGenerator]:
    """Places for boxes in a row, which wraps where the window is narrow.

    Args:
        count: of places.
        columns: at most so many beside each other; all by default.
        narrowest: pixels that a place needs.
    """
    grid = st.grid(count if columns is None else columns, min_column_width=narrowest)
    return [grid.cell() for _ in range(count)]


def chart(figure: go.Figure, key: str, alt: str) -> None:
    """Draw a figure that is only looked at."""
    st.plotly_chart(figure, key=key, config=chart_config(key), alt=alt)


def chart_config(name: str) -> dict[str, object]:
    """How a chart behaves: its camera saves a picture of the form that `exports` lets one choose.

    Args:
        name: of the picture's file, without an ending; a chart's key does.
    """
    form = st.session_state.get(PICTURE, PICTURES[0])
    return {**CONFIG, "toImageButtonOptions": {"format": form, "filename": name, "scale": 2}}


def exports(
    study: Study | Sequence[Study],
    tables: Mapping[str, str | Callable[[], str]],
    *,
    dataset: str = "",
    name: str = "study",
) -> None:
    """The row under every result: take it away, and how to redo it.

    Downloads for each table (CSV), all tables (JSON), each study (JSON, and a self-contained HTML
    page), the form of pictures that the charts' cameras save (PNG, SVG), and the command and the
    Python lines that compute it again. Give charts `config=chart_config(key)`, or draw them by
    `chart`, for the choice of pictures to reach them. Call it once a page.

    Args:
        study: what the page shows; several where a page shows several.
        tables: CSV texts by title, such as {"Map": texts.map_csv(pair)}; a function is called on
            the click only.
        dataset: the data as they are called here, where that differs from the study's own name.
        name: of the downloaded files, without an ending.
    """
    shown = [study] if isinstance(study, Study) else list(study)
    with st.container(horizontal=True, vertical_alignment="center", key="exports"):
        take_away(tables, shown=shown, name=name)
        with st.popover("How to redo this"):
            _redo(shown, dataset)


def take_away(
    tables: Mapping[str, str | Callable[[], str]],
    *,
    documents: Mapping[str, str | Callable[[], str]] | None = None,
    shown: Sequence[Study] = (),
    name: str,
) -> None:
    """The downloads of `exports`, for pages whose results are no studies or are redone otherwise.

    Args:
        tables: CSV texts by title.
        documents: JSON texts by title.
        shown: what the page shows, as far as studies hold it.
        name: of the downloaded files, without an ending.
    """
    with st.popover("Take away"):
        _tables(tables, name)
        for title, document in (documents or {}).items():
            file_name = f"{name}-{texts.file_name(title)}.json"
            _download(f"{title} (JSON)", document, file_name, "application/json")
        _studies(shown, name)
        st.session_state.setdefault(PICTURE, PICTURES[0])
        st.segmented_control(
            "The camera on each picture saves",
            PICTURES,
            key=PICTURE,
            format_func=str.upper,
            required=True,
            persist_state="session",
        )


def _tables(tables: Mapping[str, str | Callable[[], str]], name: str) -> None:
    """Downloads of tables: each as CSV, all as JSON."""
    for title, table in tables.items():
        _download(f"{title} (CSV)", table, f"{name}-{texts.file_name(title)}.csv", "text/csv")
    if tables:
        _download(
            "All tables (JSON)",
            lambda: texts.tables_json(tables),
            f"{name}-tables.json",
            "application/json",
        )


def _studies(shown: Sequence[Study], name: str) -> None:
    """Downloads of whole studies: their files and their reports."""
    for index, study in enumerate(shown, start=1):
        number = f" {index}" if len(shown) > 1 else ""
        suffix = number.strip() and f"-{number.strip()}"
        _download(
            f"Study{number} (JSON)",
            partial(_study_json, study),
            f"{name}{suffix}.study.json",
            "application/json",
        )
        _download(
            f"Report{number} (HTML)",
            partial(_report, study),
            f"{name}{suffix}.html",
            "text/html",
        )


def _study_json(study: Study) -> str:
    """A study as its file holds it."""
    return texts.as_json(study_record(study))


def _report(study: Study) -> str:
    """A study as one page; five megabytes, made on the click."""
    from analysis.report import report_page

    return report_page(study)


def _download(title: str, data: str | Callable[[], str], file_name: str, mime: str) -> None:
    """A button that downloads a text without running the page again."""
    st.download_button(
        title, data, file_name=file_name, mime=mime, on_click="ignore", width="stretch"
    )


def _redo(shown: Sequence[Study], dataset: str) -> None:
    """The commands and the Python lines that compute studies again."""
    paths = {entry.sha256: entry.path for entry in checkpoints.checkpoint_files()[0]}
    paths = {sha256: folders.readable(path) for sha256, path in paths.items()}
    commands = [redo.command_lines(study, dataset, paths) for study in shown]
    lines = [redo.python_lines(study, dataset, paths) for study in shown]
    st.markdown("From a terminal, in the folder where the app was started:")
    st.code("\n".join(dict.fromkeys(commands)), language="bash", wrap_lines=True)
    if all(lines):
        st.markdown("In Python:")
        st.code("\n\n".join(dict.fromkeys(map(str, lines))), language="python", wrap_lines=True)


def empty_state(title: str, text: str) -> None:
    """A page or part of it that has nothing to show yet, and what to do about it."""
    with st.container(border=True, horizontal_alignment="center"):
        st.space("small")
        st.subheader(title, anchor=False, width="content", text_alignment="center")
        st.markdown(text, width="content", text_alignment="center")
        st.space("small")


def no_checkpoints() -> None:
    """The state of a page that needs checkpoints where there are none."""
    empty_state(
        "No checkpoints yet", "Upload one, or train a pair with `python -m auglocal train`."
    )
    if st.button("Go to Checkpoints"):
        st.switch_page("views/checkpoints.py")


def label(entry: CheckpointFile) -> str:
    """A checkpoint in a list to pick from; lists show text as it is."""
    return checkpoint_label(entry.rule, entry.name)


def show_problems(problems: Sequence[str]) -> None:
    """Sentences about files that cannot be opened; names in them stay text."""
    if problems:
        with st.expander(f"{len(problems)} file(s) could not be opened"):
            for problem in problems:
                st.text(problem)


def pick_data(sha256s: Sequence[str], measure: str) -> str:
    """Let the user pick data; returns the name, empty while a folder is not yet typed in."""
    titles = _dataset_titles(sha256s, measure)
    default, *_ = _defaults(sha256s, measure, None)
    links.restore("data", default, lambda text: _parse_data(text, titles))
    if st.session_state["data"] not in {*titles, FOLDER}:
        st.session_state["data"] = default
        adopt_settings(sha256s, measure)
    chosen = st.selectbox(
        "Data",
        [*titles, FOLDER],
        key="data",
        format_func=lambda name: titles.get(name, "Image folder ..."),
        on_change=adopt_settings,
        args=(tuple(sha256s), measure),
        persist_state="session",
    )
    dataset = _pick_folder() if chosen == FOLDER else str(chosen)
    mismatch = training_data.mismatch(_entries(sha256s), dataset)
    if mismatch:
        st.caption(f":material/warning: {texts.plain(mismatch)}")
    data_doors.more_data()
    return dataset


def _entries(sha256s: Sequence[str]) -> list[CheckpointFile]:
    """The checkpoints on this machine of these checksums, in their order."""
    by_sha256 = {entry.sha256: entry for entry in checkpoints.checkpoint_files()[0]}
    return [by_sha256[sha256] for sha256 in sha256s if sha256 in by_sha256]


def _dataset_titles(sha256s: Sequence[str], measure: str) -> dict[str, str]:
    """What can be picked: data sets of studies of these checkpoints, and those on disk."""
    studied = {
        study.question.dataset: study.question.dataset_title
        for study in studies.studies_of(sha256s, measure)
        if studies.find_study(_request_of(study, measure)) is study
    }
    return {**studied, **datasets.datasets_on_disk()}


def _request_of(study: Study, measure: str) -> Request:
    """The question that a study answers; answers on a folder are found by the folder's path."""
    question = study.question
    sha256s = tuple(entry.sha256 for entry in question.checkpoints if not entry.role)
    values = (question.dataset, question.samples, question.seed, question.batch_size)
    return Request(measure, sha256s, *values, split=question.split)


def _parse_data(text: str, titles: dict[str, str]) -> str | None:
    """Data named in an address; a folder goes into the field for folders."""
    text = datasets.read_written(text)
    if text not in titles and text.startswith(datasets.FOLDER_PREFIX):
        st.session_state["folder_path"] = text.removeprefix(datasets.FOLDER_PREFIX)
        return FOLDER
    return text if text in titles else None


def _pick_folder() -> str:
    """A folder of images, typed in; empty until there is one."""
    path = st.text_input(
        "Folder on this machine",
        key="folder_path",
        placeholder="/path/to/images, in class folders or not",
        persist_state="session",
    )
    return f"{datasets.FOLDER_PREFIX}{path.strip()}" if path and path.strip() else ""


def pick_question(
    sha256s: Sequence[str],
    measure: str,
    dataset: str,
    *,
    ceiling: str | None = None,
    floor: int | None = None,
    options: Mapping[str, object] | None = None,
) -> Request:
    """Number of images, seed, split, balance and batch size, folded away; and the whole question.

    Args:
        sha256s: of the checkpoints.
        measure: of `analysis.request.MEASURES`.
        dataset: as `pick_data` gives it.
        ceiling: checksum of the network that should be alike.
        floor: seed of the untrained network.
        options: other fields of `StudyRequest`; those at their default do no harm.
    """
    _restore_settings(sha256s, measure, dataset)
    splits = [name for name in datasets.splits_of(dataset) if (measure, name) != ("probe", "train")]
    # Set anew on every run: a control that another page drew with other splits answers None else.
    split = st.session_state["split"]
    st.session_state["split"] = split if split in splits else splits[0]
    most = datasets.split_size(dataset, st.session_state["split"]) or MOST_SAMPLES
    with st.expander(_summary(measure, most), key=f"settings-{measure}", type="compact"):
        samples, seed, batch_size = _pick_numbers(measure)
        st.segmented_control("Split", splits, key="split", required=True, persist_state="session")
        balanced = st.toggle(
            "As many images of each class", key="balanced", persist_state="session"
        )
    if samples > most:  # the choice stays: another split may hold as many
        st.caption(f"There are {most:,} {st.session_state['split']} images; all of them are taken.")
    given = {**(options or {}), "balanced": bool(balanced)}
    changed = {name: value for name, value in given.items() if value != studies.DEFAULTS[name]}
    return Request(
        measure,
        tuple(dict.fromkeys(sha256s)),
        dataset,
        min(samples, most),
        seed,
        batch_size,
        split=str(st.session_state["split"] or splits[0]),
        ceiling=ceiling,
        floor=floor,
        options=tuple(sorted(changed.items())),
    )


def _restore_settings(sha256s: Sequence[str], measure: str, dataset: str) -> None:
    """Give the choice of images its first values."""
    parsers = {
        "split": lambda text: text if text in SPLIT_NAMES else None,
        "balanced": lambda text: text == "True",
    }
    defaults = _defaults(sha256s, measure, dataset)[1:]
    for name, value in zip(SETTINGS, defaults, strict=True):
        links.restore(name, value, parsers.get(name, links.whole_number))


def _summary(measure: str, most: int) -> str:
    """The choice of images in one line; there are no more than `most`."""
    samples, seed, batch_size, split, balanced = (st.session_state[name] for name in SETTINGS)
    words = [f"{min(int(samples or 0), most):,} {split} images", f"seed {seed}"]
    words += ["as many of each class"] * bool(balanced)
    words += [f"batches of {batch_size}"] * (measure == "cka")
    return ", ".join(words)


def _pick_numbers(measure: str) -> tuple[int, int, int]:
    """Images, seed and, of CKA, batch size."""
    return (
        _number("Images", "samples", 8, MOST_SAMPLES),
        _number("Seed", "seed", 0, 999_999_999),
        _number("Batch size", "batch_size", 4, 4096)
        if measure == "cka"
        else int(st.session_state["batch_size"]),
    )


def _number(title: str, name: str, lowest: int, highest: int) -> int:
    """A whole number within bounds, kept across pages."""
    st.session_state[name] = min(max(int(st.session_state[name] or lowest), lowest), highest)
    value = st.number_input(
        title, lowest, highest, step=1, key=name, persist_state="session", required=True
    )
    return int(value or lowest)


def _defaults(
    sha256s: Sequence[str], measure: str, dataset: str | None
) -> tuple[str, int, int, int, str, bool]:
    """Data and settings of a study that is already here, so that it shows at once."""
    for study in _usual_studies(sha256s, measure):
        question = study.question
        if dataset in (None, question.dataset):
            numbers = (question.samples, question.seed, question.batch_size)
            return question.dataset, *numbers, question.split, False
    if dataset is None:
        dataset = training_data.home(_entries(sha256s)) or "digits"
    return dataset, *DEFAULT_SETTINGS


def _usual_studies(sha256s: Sequence[str], measure: str) -> list[Study]:
    """Studies of these checkpoints with the options that a page begins with."""
    return [
        study
        for study in studies.studies_of(sha256s, measure)
        if studies.has_usual_options(study, measure) and study.provenance.stopped is None
    ]


def forget_data() -> None:
    """Let go of the choice of images, so that a page gives it the values for its checkpoints."""
    for name in ("data", *SETTINGS):
        st.session_state.pop(name, None)


def adopt_settings(sha256s: Sequence[str], measure: str) -> None:
    """After another choice of data: the settings of a study that is already here."""
    values = _defaults(sha256s, measure, st.session_state.get("data"))[1:]
    st.session_state.update(dict(zip(SETTINGS, values, strict=True)))


def adopt_pair(measure: str, *names: str) -> None:
    """After another choice of A or B: data and settings of a study that is already here."""
    _adopt([st.session_state[name] for name in names], measure)


def adopt_models(measure: str, name: str) -> None:
    """After another choice of several checkpoints: the same."""
    _adopt(st.session_state[name], measure)


def _adopt(sha256s: Sequence[str], measure: str) -> None:
    """Take data and settings from a study that holds these checkpoints, if there is one."""
    links.forget_missing()
    if _usual_studies(sha256s, measure):
        dataset, *values = _defaults(sha256s, measure, None)
        st.session_state["data"] = dataset
        st.session_state.update(dict(zip(SETTINGS, values, strict=True)))
