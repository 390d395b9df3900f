"""Work that an answer waits for: a button to start it, how far it is, how it ended, the queue.

In: a question that nothing on this machine answers. Out: what the page shows in the answer's place.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import streamlit as st

from analysis.study import Study
from app import jobs, texts, widgets
from app.sources import computing, datasets, estimates, studies
from app.sources.checkpoints import CheckpointFile
from app.sources.studies import Request
from auglocal.errors import WorkError

SHOWN_JOBS = "shown_jobs"  # keys of jobs whose progress the page shows itself
PROBLEM = "start_problem"
COMING = "Results appear here as they come in; Cancel keeps what there is by then."
WHOLE = "This has nothing to show before its end; Cancel keeps no part of it."
Draw = Callable[[Study], None]


def offer_study(
    request: Request,
    entries: Sequence[CheckpointFile],
    title: str,
    verb: str,
    *,
    draw: Draw | None = None,
    text: str = "Not computed yet for these choices",
) -> None:
    """Where a study is not there yet: progress, how it ended last time, or a button to run.

    Args:
        request: the question.
        entries: the checkpoints, the ceiling among them.
        title: what people read while it runs.
        verb: on the button.
        draw: shows an answer that is not whole: while it is computed, and what is kept of it
            after Cancel.
        text: what is not there, or why it is to be run again; markdown without a full stop.
    """
    if datasets.is_missing_folder(request.dataset) and not _is_open(request.key):
        _show_last(request.key)
        folder = texts.plain(request.dataset.removeprefix(datasets.FOLDER_PREFIX))
        widgets.empty_state(
            "The images are not here",
            f"There is no folder {folder} with train/CLASS/\\* and test/CLASS/\\*, CLASS/\\*, or "
            "images on this machine; pick other data, or the number of images, seed and batch size "
            "of a study that came with the project.",
        )
        return
    part = studies.find_stopped(request)
    offer(
        request.key,
        _open_question(request, entries, part, text),
        verb,
        lambda: computing.start(request, entries, title),
        button=f"run-{request.measure}",
        is_ready=bool(request.dataset),
        draw=draw,
        part=part,
    )


def offer(
    key: str,
    text: str,
    verb: str,
    start: Callable[[], object],
    *,
    button: str = "",
    is_ready: bool = True,
    draw: Draw | None = None,
    part: Study | None = None,
) -> None:
    """Show how far a job is, or offer to start it.

    Args:
        key: of the job.
        text: what is not there yet; markdown without a full stop.
        verb: on the button.
        start: starts the job.
        button: key of the button, of the job if empty.
        is_ready: False while a choice is missing.
        draw: shows an answer that still improves.
        part: what a stopped job kept.
    """
    if _is_open(key):
        st.session_state.setdefault(SHOWN_JOBS, set()).add(key)
        progress(key, draw)
        return
    _show_last(key)
    with st.container(border=True, horizontal=True, vertical_alignment="center"):
        st.markdown(f"{text}{_turn()}.")
        st.button(
            verb if part is None else f"{verb} in full",
            type="primary",
            key=button or f"start-{key}",
            disabled=not is_ready,
            on_click=partial(_start, start),
        )
    if part is not None and draw is not None:
        draw(part)


def _is_open(key: str) -> bool:
    """Whether the job of a question runs or waits."""
    job = computing.registry().find(key)
    return job is not None and job.is_open


def _turn() -> str:
    """How many jobs come first."""
    before = len(open_jobs())
    if not before:
        return ""
    return f", after {before} job{'s' * (before > 1)} that come{'s' * (before == 1)} first"


def _open_question(
    request: Request, entries: Sequence[CheckpointFile], part: Study | None, text: str
) -> str:
    """What is not there, and how long it would take; markdown."""
    seconds = estimates.seconds(request, entries)
    time = "" if seconds is None else f"about {texts.duration(seconds)}"
    if part is not None:
        so_far = f"**Partial**: {texts.plain(str(part.provenance.stopped))}"
        return f"{so_far}; all of it takes {time}" if time else so_far
    return f"{text}: {request.samples:,} images" + (f", {time}" if time else "")


def _start(start: Callable[[], object]) -> None:
    """Start a job, or put it into the queue."""
    try:
        start()
    except (jobs.BusyError, ValueError, WorkError, OSError) as error:
        st.session_state[PROBLEM] = jobs.sentence(ValueError(str(error)))


def _show_last(key: str) -> None:
    """Say how the last job of this question ended, if it did not end well."""
    problem = st.session_state.pop(PROBLEM, None)
    if problem:
        st.warning(texts.plain(problem))
    job = computing.registry().find(key)
    if job is None or job.is_open or job.state == jobs.DONE:
        return
    if job.state == jobs.FAILED:
        st.error(f"This could not be computed. {texts.plain(job.message)}")
    elif job.state == jobs.INTERRUPTED:
        st.info("Interrupted, because the app was closed; run it again.")
    elif not job.message:
        st.info("Cancelled; nothing was saved.")


def open_jobs() -> list[jobs.Job]:
    """The job that runs and those that wait, in the order of their turns."""
    registry = computing.registry()
    running = registry.running()
    return [*([running] if running is not None else []), *registry.waiting()]


def queued_elsewhere() -> list[jobs.Job]:
    """The open jobs that the page does not show itself."""
    return [job for job in open_jobs() if job.key not in st.session_state.get(SHOWN_JOBS, ())]


@st.fragment(run_every=1.0)
def queue() -> None:
    """All open jobs that the page does not show itself, each with Cancel."""
    shown = queued_elsewhere()
    before = st.session_state.get("queue_keys", [])
    st.session_state["queue_keys"] = [job.key for job in shown]
    for job in shown:
        _panel(job, "queue")
    if set(before) - set(st.session_state["queue_keys"]):
        st.rerun()  # one has ended: the page may show its answer


@st.fragment(run_every=1.0)
def progress(key: str, draw: Draw | None = None) -> None:
    """A job's progress with time left and Cancel; redraws itself, and the page at the end.

    Args:
        key: of the job.
        draw: shows an answer that still improves.
    """
    job = computing.registry().find(key)
    if job is None or not job.is_open:
        st.rerun()
    _panel(job, "page")
    if draw is not None and job.partial is not None:
        draw(job.partial)
    elif job.state == jobs.RUNNING:
        st.caption(COMING if draw is not None else WHOLE)


def _panel(job: jobs.Job, place: str) -> None:
    """One job that runs or waits."""
    with st.container(border=True):
        st.markdown(f"**{texts.plain(job.title)}**")
        if job.state == jobs.QUEUED:
            before = computing.registry().place(job.key)
            st.caption(f"Waiting: {before} job{'s' * (before != 1)} first")
        else:
            done = job.done / job.total if job.total else 0.0
            st.progress(min(1.0, done), text=_progress_text(job))
        st.button(
            "Cancel",
            key=f"cancel-{place}-{job.key}",
            on_click=computing.registry().cancel,
            args=(job.key,),
            disabled=job.is_cancelling,
        )


def _progress_text(job: jobs.Job) -> str:
    """Stage, count and time left."""
    if job.is_cancelling:
        return "Stopping after this step"
    text = texts.plain(job.stage)
    if job.total:
        text += f", {job.done:,} of {job.total:,}"
    left = job.seconds_left()
    return text if left is None else f"{text}, about {texts.duration(left)} left"
