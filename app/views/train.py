"""Start a training run on this machine, watch it, stop it, go on with it, and compare it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import streamlit as st

from analysis.figure_style import rule_title
from app import figures_training as figures
from app import jobs, links, texts, widgets
from app import texts_auxiliary as costs_words
from app import texts_train as words
from app.sources import checkpoints, datasets, plans, training
from app.sources.catalogue import Field
from app.sources.training import Run
from auglocal.errors import InputError, WorkError
from auglocal.files import file_sha256

PREFIX = "train_"
SIMILARITY_PAGE = "views/similarity.py"
NEW, RUNS = "New run", "Runs"
FOLDER = "folder"
FRESH = "Two minutes on digits: ResNet-20, AugLocal"
ERRORS = (InputError, WorkError, jobs.BusyError, OSError)
NOT_YET = "…"
YES_NO = {None: "automatic", True: "yes", False: "no"}


# --------------------------------------------------------------------------------- the form


def parse(field: Field, text: str) -> Any:
    """A field's value from an address, None where it means nothing."""
    if field.kind is bool:
        return {"True": True, "False": False}.get(text)
    if field.kind in (int, float):
        try:
            return field.kind(text)
        except ValueError:
            return None
    return text if not field.choices or field.name == "dataset" or text in field.choices else None


def form_value(field: Field, value: Any) -> Any:
    """A value as its widget holds it."""
    if field.kind == "ints":
        return ",".join(map(str, value))
    if field.kind is str and field.is_optional:
        return value or ""
    return float(value) if field.kind is float and value is not None else value


def restore(field: Field) -> str:
    """Give a field its first value, from the address or its default; returns its key."""
    key = PREFIX + field.name
    links.restore(key, form_value(field, field.default), lambda text: parse(field, text))
    # Another page may have set what this widget cannot hold.
    if st.session_state[key] is None and not field.is_optional:
        st.session_state[key] = form_value(field, field.default)
    return key


def draw_field(field: Field) -> None:
    """The widget of a field, with its line of documentation as help."""
    key, title = restore(field), words.field_title(field.name)
    shared: dict[str, Any] = {"key": key, "help": field.doc, "persist_state": "session"}
    if field.kind is bool and field.is_optional:
        st.selectbox(
            title,
            list(YES_NO),
            format_func=YES_NO.__getitem__,
            placeholder=YES_NO[None],
            **shared,
        )
    elif field.kind is bool:
        st.toggle(title, **shared)
    elif field.choices:
        shown = rule_title if field.name == "rule" else str
        st.selectbox(title, list(field.choices), format_func=shown, **shared)
    elif field.kind in (int, float):
        kind = field.kind
        smallest = None if field.smallest is None else kind(field.smallest)
        bounds: dict[str, Any] = {"min_value": smallest, "step": 1 if kind is int else None}
        form = "%d" if kind is int else "%g"
        st.number_input(title, format=form, placeholder="automatic", **bounds, **shared)
    else:
        st.text_input(title, placeholder="none", **shared)


def apply_recipe() -> None:
    """After another recipe: all fields at its values, the others at their defaults."""
    chosen = st.session_state[f"{PREFIX}recipe"]
    recipe = training.recipes().get(chosen)
    values = recipe.values if recipe else {}
    for field in training.config_fields().values():
        value = values.get(field.name, field.default)
        st.session_state[PREFIX + field.name] = form_value(field, value)


def pick_recipe() -> None:
    """What to start from."""
    names = [FRESH, *training.recipes()]
    key = f"{PREFIX}recipe"
    links.restore(key, FRESH, lambda text: None)
    st.selectbox(
        "Start from",
        names,
        key=key,
        format_func=lambda name: training.recipes()[name].description if name != FRESH else FRESH,
        on_change=apply_recipe,
        persist_state="session",
        help="A recipe fills in the form; change what you like.",
    )


def pick_dataset(field: Field) -> None:
    """A data set by name, or an image folder by its path."""
    key, folder_key = restore(field), f"{PREFIX}folder"
    named = str(st.session_state[key])
    if named.startswith(datasets.FOLDER_PREFIX):
        st.session_state[folder_key] = named.removeprefix(datasets.FOLDER_PREFIX)
        st.session_state[key] = FOLDER
    elif named not in (*field.choices, FOLDER):
        st.session_state[key] = field.default
    titles = {name: images.title for name, images in plans.IMAGES.items()}
    chosen = st.selectbox(
        "Data",
        [*field.choices, FOLDER],
        key=key,
        format_func=lambda name: titles.get(name, "Image folder ..."),
        help=field.doc,
        persist_state="session",
    )
    if chosen == FOLDER:
        st.session_state.setdefault(folder_key, "")
        st.text_input(
            "Folder on this machine",
            key=folder_key,
            placeholder="/path/to/images with train/CLASS/* and test/CLASS/*",
            persist_state="session",
        )


def pick_download(dataset: str) -> bool:
    """Whether to fetch a data set that is not here; nothing is fetched unasked."""
    on_disk = {*datasets.datasets_on_disk(), "imagenet"}
    if dataset in on_disk or dataset not in plans.IMAGES:
        return False
    title = plans.IMAGES[dataset].title
    return st.checkbox(f"{title} is not on this machine: fetch it from the internet first")


def draw_form() -> bool:
    """All fields, the usual ones in sight; returns whether data is to be fetched."""
    config = training.config_fields()
    pick_recipe()
    first, second, third = widgets.row_of(3)
    with first:
        pick_dataset(config["dataset"])
    with second:
        draw_field(config["architecture"])
    with third:
        draw_field(config["rule"])
    rule = st.session_state[f"{PREFIX}rule"]
    usual = [name for name in words.IN_SIGHT[3:] if training.is_relevant(name, rule)]
    grid = st.grid(len(usual), min_column_width=130)
    for name in usual:
        with grid.cell():
            draw_field(config[name])
    with st.expander("All options"):
        for title, names in words.GROUPS.items():
            shown = [name for name in names if is_shown(name, rule)]
            if not shown:
                continue
            st.markdown(f"**{title}**")
            for name, place in zip(shown, widgets.row_of(len(shown)), strict=True):
                with place:
                    draw_field(config[name])
    return pick_download(st.session_state[f"{PREFIX}dataset"])


def is_shown(name: str, rule: str) -> bool:
    """Whether an option matters: some do only beside a certain choice of another."""
    if not training.is_relevant(name, rule):
        return False
    if name == "selection_seed":
        return bool(st.session_state.get(f"{PREFIX}selection") == "random")
    loss = st.session_state.get(f"{PREFIX}local_loss")
    return rule == "infopro" or loss == "infopro" or name not in words.INFOPRO_WEIGHTS


def collect() -> dict[str, Any]:
    """The values of the form, by the names of `TrainConfig`; those of other rules left out.

    Raises:
        InputError: a text is no list of numbers, or no folder is named.
    """
    rule = st.session_state[f"{PREFIX}rule"]
    values: dict[str, Any] = {}
    for name, field in training.config_fields().items():
        value = st.session_state.get(PREFIX + name, form_value(field, field.default))
        if not training.is_relevant(name, rule):
            continue
        if field.kind == "ints":
            value = training.whole_numbers(value)
        elif value in (None, "") and not field.is_optional:
            value = field.default
        elif isinstance(value, str):
            value = value.strip() or None
        values[name] = value
    if values["dataset"] == FOLDER:
        path = str(st.session_state.get(f"{PREFIX}folder", "")).strip()
        if not path:
            raise InputError("Name the folder of images, with train/CLASS/* and test/CLASS/*.")
        values["dataset"] = f"{datasets.FOLDER_PREFIX}{path}"
    return values


def remember(values: Mapping[str, Any]) -> None:
    """Write what differs from the defaults into the address."""
    shown: dict[str, Any] = {f"{PREFIX}view": NEW, f"{PREFIX}run": ""}
    for name, field in training.config_fields().items():
        value = values.get(name, field.default)
        shown[PREFIX + name] = "" if value == field.default else form_value(field, value)
    links.remember(**shown)


def draw_plan(values: Mapping[str, Any]) -> None:
    """What the run trains and holds, as far as it is known without the data."""
    images = plans.IMAGES.get(values["dataset"])
    names = [name for name in plans.CONFIG_NAMES if name in values]
    setting = plans.Setting(
        **{name: values[name] for name in names},
        num_classes=images.num_classes if images else 10,
        pixels=images.pixels if images else values["image_size"] or 32,
    )
    answer = plans.plan(setting)
    with st.container(horizontal=True, gap="medium"):
        blocks, layers = len(answer.plan["blocks"]), len(answer.plan["layers"])
        for title, value, note in (
            ("Blocks that learn by themselves", f"{blocks}", f"of {layers} layers"),
            (
                "Parameters in training",
                f"{answer.plan['parameters']['total']:,}",
                costs_words.ratio(
                    answer.plan["parameters"]["total"], answer.plan["parameters"]["backbone"]
                ),
            ),
            (
                "FLOP a step",
                costs_words.operations(answer.costs.flops),
                costs_words.ratio(answer.costs.flops, answer.bp.flops),
            ),
            (
                "Held for backward",
                costs_words.memory(answer.costs.saved),
                costs_words.ratio(answer.costs.saved, answer.bp.saved),
            ),
        ):
            st.metric(title, value, note, delta_color="off", delta_arrow="off", width="content")
    note = "Counted in float32, without the options that save memory."
    if images is None:
        note += " The folder's own number of classes is read when the run starts; here it is 10."
    st.caption(note)


def draw_new() -> None:
    """The form of a new run, what it would do, and the button that starts it."""
    download = draw_form()
    try:
        values = collect()
    except InputError as error:
        st.warning(texts.plain(jobs.sentence(error)))
        return
    remember(values)
    with st.spinner("Checking"):
        problem = training.problem(tuple(values.items()))
    if problem:
        st.warning(texts.plain(problem))
        return
    try:
        with st.spinner("Counting"):
            draw_plan(values)
    except InputError as error:
        st.warning(texts.plain(jobs.sentence(error)))
    draw_start(values, download)
    st.caption("The same from a terminal:")
    more = ("--download",) if download else ()
    st.code(training.command(values, *more), language="bash", wrap_lines=True)


def draw_start(values: dict[str, Any], download: bool) -> None:
    """The run's name, the button that starts it, and a dry run."""
    alive = training.running()
    key = f"{PREFIX}name"
    st.session_state.setdefault(key, "")
    suggested = training.default_name(values)
    name = st.text_input(
        "Name of the run", key=key, placeholder=suggested, persist_state="session", width=480
    )
    with st.container(horizontal=True):
        st.button(
            "Start training",
            type="primary",
            disabled=alive is not None,
            help="One run at a time: stop the running one or wait for its end." if alive else None,
            on_click=begin,
            args=((name or "").strip() or suggested, values, download),
        )
        asked = st.button("Dry run", help="Loads the data and times three steps; trains nothing.")
    message = st.session_state.pop(f"{PREFIX}problem", "")
    if message:
        st.error(texts.plain(message))
    if asked:
        draw_dry_run(values)


def begin(name: str, values: dict[str, Any], download: bool) -> None:
    """Start a run and turn to it."""
    try:
        training.start(name, values, download=download)
    except ERRORS as error:
        st.session_state[f"{PREFIX}problem"] = sentence(error)
        return
    st.session_state[f"{PREFIX}name"] = ""
    turn_to(name)


def turn_to(name: str) -> None:
    """Show a run."""
    st.session_state[f"{PREFIX}view"] = RUNS
    st.session_state[f"{PREFIX}run"] = name


def sentence(error: Exception) -> str:
    """What a user reads about an error of ours."""
    is_ours = isinstance(error, jobs.BusyError)
    return jobs.sentence(ValueError(str(error)) if is_ours else error)


def draw_dry_run(values: Mapping[str, Any]) -> None:
    """What the command itself says that it would do."""
    try:
        with st.spinner("Loading the data and timing three steps"):
            outcome = words.forecast(training.dry_run(values))
    except ERRORS as error:
        st.error(texts.plain(sentence(error)))
        return
    with st.container(horizontal=True, gap="medium", key="forecast"):
        st.metric("Time, about", outcome.time, width="content")
        st.metric("Steps", outcome.steps, width="content")
        st.metric("Training images", outcome.images, width="content")


# --------------------------------------------------------------------------------- the runs


def draw_runs(found: Sequence[Run]) -> None:
    """One run in full, and the list of all."""
    key = f"{PREFIX}run"
    names = {run.name: run for run in found}
    links.restore(key, found[0].name, str)
    if st.session_state[key] not in names:
        if st.query_params.get(key) == st.session_state[key]:
            st.warning("This link refers to a run not on this machine.")
        st.session_state[key] = found[0].name
    chosen = st.selectbox(
        "Run",
        list(names),
        key=key,
        persist_state="session",
        width=480,
    )
    fields = {PREFIX + name: "" for name in training.config_fields()}
    links.remember(**{**fields, f"{PREFIX}view": RUNS, key: chosen})
    run = names[chosen]
    if run.is_alive:
        draw_live(run.name)
    else:
        st.markdown(words.run_line(run))
        draw_ended(run)
        draw_table(found)


def draw_table(found: Sequence[Run]) -> None:
    """All runs, a line each."""
    st.subheader("All runs", anchor=False)
    st.dataframe(words.run_rows(found), hide_index=True)


@st.fragment(run_every=2.0)
def draw_live(name: str) -> None:
    """A run that is alive; redraws itself, and the page when it ends."""
    run = training.find(name)
    if run is None or not run.is_alive:
        st.rerun()
    progress = training.progress(run)
    st.markdown(words.run_line(run))
    with st.container(border=True):
        if progress is None:
            st.progress(0.0, text="Starting: PyTorch and the data are being loaded")
        else:
            st.progress(
                min(1.0, progress.step / max(1, progress.steps)), text=words.progress_text(progress)
            )
        with st.container(horizontal=True):
            st.button("Stop", on_click=training.stop, args=(run,), disabled=is_stopping(run))
            if is_stopping(run):
                st.button(
                    "End at once",
                    on_click=training.kill,
                    args=(run,),
                    help="Steps since the last save are lost.",
                )
            st.caption(
                "It goes on when this page or the app is closed. Stop saves everything, and the "
                "run can go on from there."
            )
    draw_curves(run, progress)
    draw_table(training.runs())


def is_stopping(run: Run) -> bool:
    """Whether somebody asked it to stop."""
    return run.state == training.STOPPING


def draw_ended(run: Run) -> None:
    """A run that ended: how, what to do with it, and its curves."""
    if run.state == training.FAILED:
        st.error(f"The run failed. {texts.plain(run.message)}")
    elif run.state == training.INTERRUPTED:
        st.warning(texts.plain(run.message))
    elif run.state == training.STOPPED:
        st.info(f"Stopped after epoch {run.epoch} of {run.epochs}. {texts.plain(run.message)}")
    message = st.session_state.pop(f"{PREFIX}run_problem", "")
    if message:
        st.error(texts.plain(message))
    with st.container(horizontal=True):
        if run.state == training.FINISHED:
            if st.button("Compare it", type="primary"):
                compare(run)
        else:
            busy = training.running() is not None
            st.button(
                "Resume",
                type="primary",
                disabled=busy,
                help="One run at a time." if busy else "Goes on from what was saved.",
                on_click=go_on,
                args=(run,),
            )
        st.button("Same settings again", on_click=copy_values, args=(run,))
        with st.popover("Delete"):
            st.markdown("The folder with its checkpoint and its numbers goes away.")
            st.button("Delete this run", on_click=delete, args=(run,))
    draw_curves(run, None)
    draw_files(run)


def compare(run: Run) -> None:
    """Open the similarity page with this run's checkpoint and the one that suits it best."""
    sha256 = file_sha256(run.checkpoint)
    entries = checkpoints.with_metadata(checkpoints.checkpoint_files()[0])
    other = training.partner(run, sha256, entries)
    links.go(SIMILARITY_PAGE, a=other.sha256 if other else sha256, b=sha256)


def go_on(run: Run) -> None:
    """Resume a run."""
    try:
        training.resume(run)
    except ERRORS as error:
        st.session_state[f"{PREFIX}run_problem"] = sentence(error)


def copy_values(run: Run) -> None:
    """Fill the form with what a run was asked."""
    for name, field in training.config_fields().items():
        value = run.values.get(name, field.default)
        st.session_state[PREFIX + name] = form_value(field, value)
    st.session_state[f"{PREFIX}view"] = NEW


def delete(run: Run) -> None:
    """Delete a run and turn to another."""
    training.delete(run)
    st.session_state.pop(f"{PREFIX}run", None)


def draw_curves(run: Run, progress: training.Progress | None) -> None:
    """Numbers of the last epoch, and the curves so far."""
    lines = training.metrics(run)
    loss = progress.loss if progress else None
    if loss is None and lines:
        loss = list(lines[-1]["losses"].values())[-1]
    speed = progress.images_per_second if progress else None
    speed = speed or words.last_value(lines, "images_per_second")
    with st.container(horizontal=True, gap="medium", key="numbers"):
        st.metric("Epochs", f"{run.epoch} of {run.epochs}", width="content")
        accuracy = run.test_accuracy
        st.metric(
            "Test accuracy",
            NOT_YET if accuracy is None else texts.percent(accuracy),
            width="content",
        )
        st.metric("Training loss", NOT_YET if loss is None else f"{loss:.4f}", width="content")
        st.metric("Images a second", NOT_YET if not speed else f"{speed:,.0f}", width="content")
        peak = words.last_value(lines, "peak_memory")
        st.metric(
            "Peak memory",
            NOT_YET if not lines else words.memory(peak),
            help="On CUDA what PyTorch allocated, elsewhere the whole process.",
            width="content",
        )
    if not lines:
        st.caption("Curves appear when the first epoch ends.")
        return
    rule = str(run.values.get("rule", ""))
    left, right = widgets.side_by_side()
    with left:
        widgets.chart(
            figures.accuracy_by_epoch(lines, rule, run.epochs),
            "accuracy-chart",
            "Accuracy by epoch",
        )
    with right:
        widgets.chart(
            figures.losses_by_epoch(lines, rule, run.epochs), "loss-chart", "Loss by epoch"
        )
    if len(lines[-1]["accuracies"]) > 1:
        widgets.chart(
            figures.accuracy_by_layer(lines, rule), "layers-chart", "Accuracy by local layer"
        )


def draw_files(run: Run) -> None:
    """The numbers to take away, the command, and the log."""
    lines = training.metrics(run)
    with st.container(horizontal=True):
        if lines:
            widgets.take_away({"Numbers": lambda: words.metrics_csv(lines)}, name=run.name)
        if run.state == training.FINISHED:
            st.download_button(
                "Checkpoint",
                lambda: run.checkpoint.read_bytes(),
                file_name=f"{run.name}.safetensors",
                mime="application/octet-stream",
                on_click="ignore",
            )
    st.caption("The same from a terminal:")
    st.code(
        training.command(run.values, f"--out={Path('runs') / run.name}"),
        language="bash",
        wrap_lines=True,
    )
    log = training.log_text(run)
    if log:
        with st.expander("Log"):
            st.code(log, language=None, wrap_lines=True)
    st.caption("Its folder on this machine")
    st.code(str(run.path), language=None)


def page() -> None:
    """A new run, or those there are."""
    st.title("Train", anchor=False)
    with st.spinner("Starting PyTorch"):
        training.config_fields()
    found = training.runs()
    key = f"{PREFIX}view"
    views = [NEW, RUNS] if found else [NEW]
    is_open = key in st.session_state or key in st.query_params
    links.restore(key, NEW, lambda text: text if text in views else None)
    if not is_open and any(run.is_alive for run in found):
        st.session_state[key] = RUNS  # and stays in the address when the run has ended
    if st.session_state[key] not in views:
        st.session_state[key] = NEW
    if found:
        st.segmented_control(
            "View",
            views,
            key=key,
            required=True,
            persist_state="session",
            label_visibility="collapsed",
        )
    if st.session_state[key] == RUNS:
        draw_runs(found)
    else:
        draw_new()


page()
