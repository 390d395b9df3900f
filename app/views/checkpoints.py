"""What checkpoints there are, what each one is, and a door for anybody's files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import streamlit as st

from analysis.choices import BGR, RGB, Choices
from analysis.rule_styles import RULE_TITLES, rule_title
from app import jobs, links, texts, texts_checkpoints, widgets
from app.sources import checkpoints, datasets, library, preprocessing, training
from app.sources.checkpoints import CheckpointFile
from auglocal.errors import WorkError

if TYPE_CHECKING:
    from auglocal.checkpoint import CheckpointMetadata

SUFFIXES = ["safetensors", "pt", "pth", "th", "tar", "ckpt", "bin"]
BY_HAND = "by hand"


# ------------------------------------------------------------------------------------- the table


def draw_table(entries: Sequence[CheckpointFile]) -> None:
    """All checkpoints; a click on a row shows its details, a click on a heading sorts."""
    rows = [(entry, about, checkpoints.parameters(entry)) for entry, about in with_about(entries)]
    st.dataframe(
        texts_checkpoints.table_rows(rows),
        hide_index=True,
        key=table_key(),
        on_select=lambda: clicked(entries),
        selection_mode="single-row",
        column_config={
            "Accuracy": st.column_config.NumberColumn(format="%.1f%%"),
            "Parameters": st.column_config.NumberColumn(format="compact"),
            "Size": st.column_config.NumberColumn(format="%.1f MiB"),
            "Date": st.column_config.DatetimeColumn(format="YYYY-MM-DD HH:mm"),
        },
    )


def with_about(
    entries: Sequence[CheckpointFile],
) -> list[tuple[CheckpointFile, CheckpointMetadata]]:
    """Checkpoints with what they say about themselves."""
    return checkpoints.with_metadata(entries)


def table_key() -> str:
    """The table's key; another number is a table without a selected row."""
    return f"checkpoint-table-{st.session_state.setdefault('table_number', 0)}"


def clicked(entries: Sequence[CheckpointFile]) -> None:
    """Copy a clicked row to the box of details."""
    rows = st.session_state[table_key()]["selection"]["rows"]
    if rows and rows[0] < len(entries):
        st.session_state["checkpoint"] = entries[rows[0]].sha256


def pick(entries: Sequence[CheckpointFile]) -> CheckpointFile:
    """The checkpoint whose details are shown."""
    by_sha256 = {entry.sha256: entry for entry in entries}
    turned_to = st.session_state.pop("turn_to", None)
    if turned_to in by_sha256:
        st.session_state["checkpoint"] = turned_to
    links.restore_checkpoint("checkpoint", entries[0], entries)
    chosen = st.selectbox(
        "Details of",
        list(by_sha256),
        key="checkpoint",
        format_func=lambda sha256: widgets.label(by_sha256[sha256]),
        on_change=links.forget_missing,
        persist_state="session",
        width=480,
    )
    links.remember(checkpoint=links.short(chosen))
    return by_sha256[chosen]


# ------------------------------------------------------------------------------------- details


def draw_details(entry: CheckpointFile, entries: Sequence[CheckpointFile]) -> None:
    """All about one checkpoint, by what one may want to know."""
    about = checkpoints.metadata(entry)
    note = library.read_note(entry.path) if entry.uploaded else {}
    curves = training.metrics_beside(entry.path)
    names = ["About", "Differences"]
    names += ["Training curves"] if curves else []
    names += ["What the file said"] if note.get("report") else []
    names += ["Images and classes"] if note.get("original") else []
    tabs = dict(zip(names, st.tabs(names), strict=True))
    with tabs["About"]:
        draw_about(entry, about)
    with tabs["Differences"]:
        draw_differences(entry, about, entries)
    if "Training curves" in tabs:
        with tabs["Training curves"]:
            draw_curves(curves, about)
    if "What the file said" in tabs:
        with tabs["What the file said"]:
            draw_report(note["report"])
    if "Images and classes" in tabs:
        with tabs["Images and classes"]:
            draw_images(entry, about, note["report"])


def draw_about(entry: CheckpointFile, about: CheckpointMetadata) -> None:
    """What a checkpoint says about itself; all of it text from a file."""
    left, right = widgets.side_by_side()
    with left:
        draw_rows(texts.detail_rows(entry, about, checkpoints.num_layers(entry)))
    with right:
        options = texts.config_rows(about)
        if options:
            draw_rows(options)
        else:
            st.caption("The file does not say how it was trained.")
    st.caption("SHA-256 of the file")
    st.code(entry.sha256, language=None)


def draw_rows(rows: Sequence[Mapping[str, str]]) -> None:
    """A table whose cells wrap; it reads markdown, so text from a file is made plain."""
    st.table(
        [{texts.plain(name): texts.plain(value) for name, value in row.items()} for row in rows],
        border="horizontal",
        hide_index=True,
    )


def draw_differences(
    entry: CheckpointFile, about: CheckpointMetadata, entries: Sequence[CheckpointFile]
) -> None:
    """What this checkpoint and another one say differently."""
    others = {other.sha256: other for other in entries if other.sha256 != entry.sha256}
    if not others:
        st.caption("There is no other checkpoint to hold it against.")
        return
    chosen = st.selectbox(
        "Against",
        list(others),
        format_func=lambda sha256: widgets.label(others[sha256]),
        key="against",
        width=480,
    )
    other = others.get(chosen) or next(iter(others.values()))
    names = (entry.name, other.name) if entry.name != other.name else ("this", "that")
    options = texts_checkpoints.all_options
    rows = texts_checkpoints.difference_rows(
        options(about), options(checkpoints.metadata(other)), names
    )
    if rows:
        draw_rows(rows)
    else:
        st.caption("They say the same of themselves.")


def draw_curves(metrics: Sequence[Mapping[str, Any]], about: CheckpointMetadata) -> None:
    """Accuracy and loss by epoch, and by local layer at the end."""
    from app import figures_training

    left, right = widgets.side_by_side()
    with left:
        widgets.chart(
            figures_training.accuracy_by_epoch(metrics, about.rule, about.epoch),
            "accuracy-chart",
            "Accuracy by epoch",
        )
    with right:
        widgets.chart(
            figures_training.losses_by_epoch(metrics, about.rule, about.epoch),
            "loss-chart",
            "Loss by epoch",
        )


def draw_report(report: Mapping[str, Any]) -> None:
    """What was found in an uploaded file."""
    for warning in report.get("warnings", ()):
        st.warning(texts.plain(warning))
    draw_rows(texts_checkpoints.report_rows(report))
    with st.expander(f"{len(report.get('layers', ()))} layers"):
        st.code("\n".join(map(str, report.get("layers", ()))), language=None)


# ------------------------------------------------------------------------------------- images


def draw_images(
    entry: CheckpointFile, about: CheckpointMetadata, report: Mapping[str, Any]
) -> None:
    """How images become the network's input, and what its outputs mean: found out, or by hand."""
    assumed = about.config.get("opened_from", {}).get("assumed", [])
    if assumed:
        st.info(
            f"The file does not say its {' and '.join(assumed)}: what is usual is assumed. Find "
            "them from labelled images, or set them by hand."
        )
    draw_evidence(entry)
    st.subheader("By hand", anchor=False)
    draw_form(entry, about, report)


def draw_evidence(entry: CheckpointFile) -> None:
    """Try the usual preprocessing on labelled images."""
    titles = datasets.datasets_on_disk()
    with st.container(horizontal=True, vertical_alignment="bottom"):
        chosen = st.selectbox(
            "Labelled images",
            [*titles, BY_HAND],
            format_func=lambda name: titles.get(name, "Image folder ..."),
            key="evidence-data",
            width=280,
        )
        if chosen == BY_HAND:
            path = st.text_input(
                "Folder on this machine",
                key="evidence-folder",
                placeholder="/path/to/images with train/CLASS/*",
            )
            chosen = f"{datasets.FOLDER_PREFIX}{path.strip()}" if path and path.strip() else ""
        tried = st.button("Try on 1,000 images", type="primary", disabled=not chosen)
    if tried:
        try:
            with st.spinner("Trying each usual preprocessing"):
                preprocessing.find(entry, chosen)
        except (ValueError, OSError, RuntimeError) as error:
            st.error(texts.plain(jobs.sentence(error)))
            return
    evidence = library.read_note(entry.path).get("evidence")
    if not evidence:
        return
    (st.success if evidence["tells"] else st.warning)(texts.plain(evidence["sentence"]))
    if evidence.get("split"):
        st.caption(texts.plain(texts_checkpoints.evidence_note(evidence)))
    st.dataframe(texts_checkpoints.trial_rows(evidence), hide_index=True)
    if evidence["tells"]:
        st.button("Use the best", key="use-evidence", on_click=use_evidence, args=(entry,))


def use_evidence(entry: CheckpointFile) -> None:
    """Make the checkpoint again with what was found out."""
    evidence = library.read_note(entry.path)["evidence"]
    best = next(trial for trial in evidence["trials"] if trial["name"] == evidence["best"])
    apply(
        entry,
        Choices(
            architecture=checkpoints.metadata(entry).architecture,
            mean=tuple(best["mean"]),
            std=tuple(best["std"]),
            channel_order=best["channel_order"],
            classes=tuple(evidence["classes"]),
        ),
        evidence=evidence,
    )


def draw_form(entry: CheckpointFile, about: CheckpointMetadata, report: Mapping[str, Any]) -> None:
    """All that a file may leave open."""
    assumed = about.config.get("opened_from", {}).get("assumed", [])
    shown = (
        texts_checkpoints.numbers(about.mean),
        texts_checkpoints.numbers(about.std),
        ", ".join(about.classes),
    )

    def is_assumed(name: str) -> bool:
        return name in assumed

    fitting = [about.architecture, *report.get("alternatives", ())]
    with st.form("by-hand"):
        left, right = widgets.side_by_side()
        with left:
            architecture = st.selectbox("Architecture", list(dict.fromkeys(fitting)))
            mean = st.text_input("Mean of pixel values in 0 to 1, by channel (red first)", shown[0])
            std = st.text_input("Their standard deviation", shown[1])
        with right:
            order = st.segmented_control(
                "Channels as the network reads them", [RGB, BGR], default=RGB, required=True
            )
            dataset = st.text_input("Data it was trained on", about.dataset)
            size = st.number_input("Height and width of its images", 4, 1024, about.input_size[1])
        classes = st.text_area(f"Names of its {about.num_classes:,} outputs, in order", shown[2])
        if st.form_submit_button("Apply"):
            try:
                numbers = (
                    texts_checkpoints.parse_numbers(mean, "mean"),
                    texts_checkpoints.parse_numbers(std, "standard deviation"),
                )
                # What is left as it was assumed is still assumed.
                untouched = is_assumed("preprocessing") and (mean, std) == shown[:2]
                same = is_assumed("classes") and classes == shown[2]
                choices = Choices(
                    architecture=architecture,
                    mean=None if untouched else numbers[0],
                    std=None if untouched else numbers[1],
                    channel_order=str(order),
                    classes=None if same else texts_checkpoints.parse_classes(classes),
                    dataset=dataset.strip() or None,
                    image_size=(int(size), int(size)),
                )
            except ValueError as error:
                st.error(texts.plain(str(error)))
                return
            apply(entry, choices)
            st.rerun()
    show_message("form")


def apply(entry: CheckpointFile, choices: Choices, **noted: object) -> None:
    """Make a checkpoint again as the user says, and go on with the new one."""
    try:
        path = library.change(entry.path, choices)
        library.write_note(path, **noted)
    except (ValueError, WorkError, OSError) as error:
        st.session_state["message-form"] = (False, jobs.sentence(error))
        return
    st.session_state["message-form"] = (True, "Applied.")
    st.session_state["turn_to"] = path.stem
    st.session_state["table_number"] += 1


# ------------------------------------------------------------------------------------- uses


def draw_uses(entry: CheckpointFile) -> None:
    """Where to go with a checkpoint; an uploaded one can be renamed, labelled, and deleted."""
    with st.container(horizontal=True, vertical_alignment="bottom"):
        if st.button("Use as A", type="primary"):
            widgets.forget_data()
            links.go("views/similarity.py", a=entry.sha256)
        if st.button("Use as B"):
            widgets.forget_data()
            links.go("views/similarity.py", b=entry.sha256)
        if entry.uploaded:
            with st.popover("Rename or label"):
                draw_labels(entry)
            with st.popover("Delete"):
                st.markdown("Its copy on this machine is deleted; results stay.")
                st.button("Delete it", on_click=delete, args=(entry,), type="primary")


def draw_labels(entry: CheckpointFile) -> None:
    """Another name, and the rule, which a file need not say."""
    with st.form("labels", border=False):
        name = st.text_input("Name", entry.name, max_chars=library.LONGEST_NAME)
        rules = list(dict.fromkeys([entry.rule, *RULE_TITLES, "unknown"]))
        rule = st.selectbox(
            "Rule that trained it",
            rules,
            format_func=rule_title,
            help="Decides its colour. A file without auxiliary networks may come from any rule.",
        )
        if st.form_submit_button("Keep"):
            library.write_note(entry.path, name=name.strip() or entry.name, rule=rule)
            st.rerun()


def delete(entry: CheckpointFile) -> None:
    """Delete an uploaded checkpoint and let go of its row."""
    library.delete(entry.path)
    links.forget_missing()
    st.session_state["table_number"] += 1


# ------------------------------------------------------------------------------------- the door


def draw_upload() -> None:
    """The door for files of any origin."""
    st.subheader("Add checkpoints", anchor=False)
    number = st.session_state.setdefault("upload_number", 0)
    with st.expander("A file with several sets of weights"):
        state = st.text_input(
            "Which to take, by its name in the file",
            key="upload-state",
            placeholder="the likeliest; What the file said lists the others, an average say",
        )
    files = st.file_uploader(
        "Files of weights: .safetensors, .pt, .pth, .th, .tar, .ckpt, .bin",
        key=f"upload-{number}",
        accept_multiple_files=True,
        max_upload_size=library.MOST_UPLOADED_BYTES // 2**20,
        help="Each at most "
        f"{library.MOST_UPLOADED_BYTES // 2**20} MB: save the weights alone, without the "
        "optimizer's state. Read in a process of its own, without running anything in it; a clean "
        "copy stays on this machine, and nothing leaves it.",
    )
    if files:
        receive(files, (state or "").strip() or None)
        # A new number lets go of the bytes.
        st.session_state["upload_number"] = number + 1
        st.rerun()
    for accepted, message in st.session_state.pop("upload_messages", []):
        (st.success if accepted else st.error)(texts.plain(message))
    room = library.room_note()
    if room:
        st.warning(room)


def receive(files: Sequence[Any], state: str | None) -> None:
    """Check what was uploaded, one after the other, and note how each went."""
    messages = []
    bar = st.progress(0.0)
    for index, file in enumerate(files):
        bar.progress(index / len(files), text=f"Reading {texts.plain(file.name)}")
        try:
            sha256, was_there = checkpoints.keep_upload(file.name, file.getbuffer(), state)
            messages.append((True, received(file.name, sha256, was_there)))
            st.session_state["turn_to"] = sha256
        except (ValueError, WorkError, OSError) as error:
            messages.append((False, jobs.sentence(error)))
    bar.empty()
    st.session_state["upload_messages"] = messages
    st.session_state["table_number"] = st.session_state.get("table_number", 0) + 1


def received(file_name: str, sha256: str, was_there: bool) -> str:
    """What to say of a file that was opened."""
    if was_there:
        entries = checkpoints.checkpoint_files()[0]
        name = next((entry.name for entry in entries if entry.sha256 == sha256), sha256[:12])
        return f"{file_name} was here already, as {name}."
    note = library.read_note(library.checkpoints_folder() / f"{sha256}.safetensors")
    report, name = note.get("report", {}), str(note.get("name", sha256[:12]))
    if not report:
        return f"{name} is ready to use."
    assumed = report.get("assumed") or []
    tail = f" Its {' and '.join(assumed)} are assumed: see Images and classes." if assumed else ""
    return f"{name} is a {report['architecture']} with {report['num_classes']:,} classes.{tail}"


def show_message(name: str) -> None:
    """Say once how something went."""
    accepted, message = st.session_state.pop(f"message-{name}", (True, ""))
    if message:
        (st.success if accepted else st.error)(texts.plain(message))


def page() -> None:
    """Pick, get, draw."""
    st.title("Checkpoints", anchor=False)
    with st.spinner("Opening checkpoints"):
        entries, problems = checkpoints.checkpoint_files()
    widgets.show_problems(problems)
    if entries:
        draw_table(entries)
        entry = pick(entries)
        links.show_missing()
        draw_uses(entry)
        draw_details(entry, entries)
        st.divider()
    else:
        widgets.empty_state(
            "No checkpoints yet",
            "Add one below, or train a pair on the page Train.",
        )
    draw_upload()


page()
