"""Where an answer is not there yet: how its job ended last time, progress, or a button to start it.

As `widgets.offer`, for jobs whose results are no studies.
"""

from __future__ import annotations

from collections.abc import Callable

import streamlit as st

from app import jobs, texts, widgets
from app.sources import computing
from auglocal.errors import WorkError

PROBLEM = "start_problem"


def offer(
    key: str, text: str, verb: str, start: Callable[[], object], *, is_ready: bool = True
) -> None:
    """Show how far a job is, or offer to start it.

    Args:
        key: of the job.
        text: what is not there yet; markdown.
        verb: on the button.
        start: starts the job.
        is_ready: False while a choice is missing.
    """
    running = computing.registry().running()
    if running is not None:
        widgets.progress(running.key)
        if running.key == key:
            return
    show_last(key)
    with st.container(border=True, horizontal=True, vertical_alignment="center"):
        st.markdown(text)
        st.button(
            verb,
            type="primary",
            key=f"start-{key}",
            disabled=running is not None or not is_ready,
            help="One job at a time: cancel the running one or wait." if running else None,
            on_click=_start,
            args=(start,),
        )


def _start(start: Callable[[], object]) -> None:
    """Start a job; another session may have been faster."""
    try:
        start()
    except (jobs.BusyError, ValueError, WorkError, OSError) as error:
        st.session_state[PROBLEM] = jobs.sentence(ValueError(str(error)))


def show_last(key: str) -> None:
    """Say how the last job of this question ended, if it did not end well."""
    problem = st.session_state.pop(PROBLEM, None)
    if problem:
        st.warning(texts.plain(problem))
    job = computing.registry().find(key)
    if job is None or job.state in (jobs.RUNNING, jobs.DONE):
        return
    if job.state == jobs.FAILED:
        st.error(f"This could not be computed. {texts.plain(job.message)}")
    elif job.state == jobs.CANCELLED:
        st.info("Cancelled; nothing was saved.")
    else:
        st.info("Interrupted, because the app was closed; run it again.")
