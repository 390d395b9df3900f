"""What checkpoints there are, what each one says about itself, and a door for more of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import streamlit as st

from app import jobs, links, texts, widgets
from app.sources import checkpoints
from app.sources.checkpoints import CheckpointFile
from auglocal.errors import WorkError

if TYPE_CHECKING:
    from auglocal.checkpoint import CheckpointMetadata


def draw_table(entries: Sequence[CheckpointFile]) -> None:
    """All checkpoints; a click on a row shows its details."""
    st.dataframe(
        texts.checkpoint_rows(checkpoints.with_metadata(entries)),
        hide_index=True,
        key=table_key(),
        on_select=lambda: clicked(entries),
        selection_mode="single-row",
        column_config={"Accuracy": st.column_config.NumberColumn(format="%.1f%%")},
    )


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


def draw_details(entry: CheckpointFile, metadata: CheckpointMetadata) -> None:
    """What a checkpoint says about itself; all of it text from a file."""
    left, right = widgets.side_by_side()
    with left:
        draw_rows(texts.detail_rows(entry, metadata, checkpoints.num_layers(metadata)))
    with right:
        draw_rows(texts.config_rows(metadata))
    st.caption("SHA-256 of the file")
    st.code(entry.sha256, language=None)


def draw_rows(rows: Sequence[Mapping[str, str]]) -> None:
    """A table whose cells wrap; it reads markdown, so text from a file is made plain."""
    st.table(
        [{name: texts.plain(value) for name, value in row.items()} for row in rows],
        border="horizontal",
        hide_index=True,
    )


def draw_uses(entry: CheckpointFile) -> None:
    """Where to go with a checkpoint, and away with an uploaded one."""
    with st.container(horizontal=True):
        if st.button("Use as A", type="primary"):
            links.go("views/similarity.py", a=entry.sha256)
        if st.button("Use as B"):
            links.go("views/similarity.py", b=entry.sha256)
        if entry.uploaded:
            st.button("Delete", on_click=delete, args=(entry,))


def delete(entry: CheckpointFile) -> None:
    """Delete an uploaded checkpoint and let go of its row."""
    checkpoints.delete_upload(entry)
    links.forget_missing()
    st.session_state["table_number"] += 1


def receive() -> None:
    """Check what was uploaded; keep the message, and let go of the bytes."""
    number = st.session_state["upload_number"]
    file = st.session_state[f"upload-{number}"]
    st.session_state["upload_number"] = number + 1
    if file is None:
        return
    try:
        entry = checkpoints.keep_upload(file.name, file.getvalue())
    except (ValueError, WorkError, OSError) as error:
        st.session_state["upload_message"] = (False, jobs.sentence(error))
        return
    st.session_state["upload_message"] = (True, f"{entry.name} is ready to use.")
    st.session_state["checkpoint"] = entry.sha256
    st.session_state["table_number"] = st.session_state.get("table_number", 0) + 1


def draw_upload() -> None:
    """The door for checkpoints of ours."""
    st.session_state.setdefault("upload_number", 0)
    st.file_uploader(
        "Add a checkpoint of this project (.safetensors)",
        key=f"upload-{st.session_state['upload_number']}",
        on_change=receive,
        max_upload_size=checkpoints.MOST_UPLOADED_BYTES // 2**20,
        help="It is checked without running anything in it, and a copy stays on this machine.",
    )
    accepted, message = st.session_state.pop("upload_message", (True, ""))
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
        draw_details(entry, checkpoints.metadata(entry))
        draw_uses(entry)
        st.divider()
    else:
        widgets.empty_state(
            "No checkpoints yet",
            "Upload one below, or train a pair with `python -m auglocal train`.",
        )
    draw_upload()


page()
