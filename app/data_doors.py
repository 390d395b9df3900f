"""The doors for more data: downloads on a click, and a zip of images."""

from __future__ import annotations

import streamlit as st

from app import jobs, texts
from app.sources import computing, datasets, downloads, uploads
from auglocal.errors import WorkError

MOST_MEGABYTES = 256
PROBLEM = "data_problem"


def more_data() -> None:
    """A button that opens the doors; nothing is fetched before a click inside."""
    with st.popover("More data", type="tertiary", icon=":material/add:"):
        st.markdown("**Download**, once, into the folder `data`")
        for name, entry in datasets.DOWNLOADABLE.items():
            _draw_download(name, entry)
        st.markdown("**Upload** a zip of images")
        st.file_uploader(
            f"Laid out as {uploads.LAYOUTS}".replace("*", "\\*"),
            type="zip",
            key="images-upload",
            on_change=_receive,
            max_upload_size=MOST_MEGABYTES,
            help="A copy stays on this machine. Images without classes will do for measures that "
            "need no labels.",
        )
        _draw_uploaded()
    problem = st.session_state.pop(PROBLEM, None)
    if problem:
        st.error(texts.plain(problem))
    _show_failed_downloads()


def _draw_download(name: str, entry: datasets.Downloadable) -> None:
    """One data set: here, on its way, or to be had."""
    job = computing.registry().find(downloads.key(name))
    if (datasets.DATA / entry.marker).exists():
        st.button(f"{entry.title} is here", disabled=True, width="stretch", key=f"have-{name}")
    elif job is not None and job.is_open:
        st.button(f"{entry.title} is on its way", disabled=True, width="stretch", key=f"way-{name}")
    else:
        st.button(
            f"{entry.title}, {entry.size}",
            key=f"get-{name}",
            width="stretch",
            on_click=_download,
            args=(name,),
        )


def _download(name: str) -> None:
    """Start a download."""
    try:
        downloads.start(name)
    except (jobs.BusyError, OSError) as error:
        st.session_state[PROBLEM] = jobs.sentence(ValueError(str(error)))


def _show_failed_downloads() -> None:
    """Say why a download ended without its data."""
    for name in datasets.DOWNLOADABLE:
        job = computing.registry().find(downloads.key(name))
        if job is not None and job.state == jobs.FAILED:
            st.error(texts.plain(job.message))


def _receive() -> None:
    """Check uploaded images and choose them, or keep the sentence that says why not."""
    file = st.session_state["images-upload"]
    if file is None:
        return
    try:
        st.session_state["data"] = uploads.keep_images(file.name, file)
    except (ValueError, WorkError, OSError) as error:
        st.session_state[PROBLEM] = jobs.sentence(error)


def _draw_uploaded() -> None:
    """What was uploaded, each with a button that deletes it."""
    for dataset, title in datasets.uploaded_images().items():
        st.button(
            f"Delete {texts.plain(title)}",
            key=f"delete-{dataset}",
            width="stretch",
            on_click=uploads.delete_images,
            args=(dataset,),
        )
