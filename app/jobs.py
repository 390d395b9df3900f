"""Long work in a thread: one job at a time, the next ones in a queue, with a state on disk.

In: a function that computes a study, or does something else that takes long. Out: a `Job` that
pages watch. Knows neither Streamlit nor torch. A thread survives a reload of the page but not the
end of the server; a job that a file calls running or waiting and no thread runs is reported as
interrupted.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from analysis.errors import Cancelled
from analysis.study import Study, save_study

QUEUED, RUNNING, DONE, FAILED = "queued", "running", "done", "failed"
CANCELLED, INTERRUPTED = "cancelled", "interrupted"
OPEN_STATES = (QUEUED, RUNNING)
KEPT_STATES = 50  # files of ended jobs that are kept to explain a link to one of them
MOST_QUEUED = 20  # more would wait for longer than anybody does


class Report(Protocol):
    """What a work tells of itself: progress when called, and an answer that is not whole yet."""

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Note how far the work is."""

    def publish(self, partial: Study) -> None:
        """Show an answer that still improves."""


Work = Callable[[Any, Callable[[], bool]], Any]
"""Takes a `Report` and cancelled(); gives what is to be kept, or None where it kept its own."""

LOGGER = logging.getLogger(__name__)


class BusyError(RuntimeError):
    """So many jobs wait that no more are taken; the message says what to do."""


@dataclass
class Job:
    """One piece of long work and how far it is; its thread writes, pages read.

    Attributes:
        key: identifies what was asked, so that the same question finds the same job.
        title: what people read while it runs.
        state: one of the six constants of this module.
        stage, done, total: the step that runs, and how much of it is done.
        stage_started, started, ended: seconds of the monotonic clock; it starts when its turn
            comes.
        message: why it failed, or how far it came before it was stopped; one sentence.
        partial: the answer so far while it runs, where the work publishes any.
        num_partials: how many answers were published, so that a page draws each once.
    """

    key: str
    title: str
    state: str = RUNNING
    stage: str = "Starting"
    done: int = 0
    total: int = 0
    started: float = field(default_factory=time.monotonic)
    stage_started: float = field(default_factory=time.monotonic)
    ended: float | None = None
    message: str = ""
    partial: Study | None = None
    num_partials: int = 0
    _cancel: threading.Event = field(default_factory=threading.Event)
    _turn: threading.Lock = field(default_factory=threading.Lock)

    @property
    def is_open(self) -> bool:
        """Whether it runs or waits for its turn."""
        return self.state in OPEN_STATES

    @property
    def is_cancelling(self) -> bool:
        """Whether somebody asked it to stop and it has not yet."""
        return self.state == RUNNING and self._cancel.is_set()

    def cancel(self) -> None:
        """Ask it to stop: now where it waits, after the batch at hand where it runs."""
        with self._turn:
            self._cancel.set()
            if self.state == QUEUED:
                self.state, self.ended = CANCELLED, time.monotonic()

    def begin(self) -> bool:
        """Take the turn of a job that waits; False if it does not any more."""
        with self._turn:
            if self.state != QUEUED:
                return False
            self.started = self.stage_started = time.monotonic()
            self.state = RUNNING
            return True

    def seconds_left(self) -> float | None:
        """Seconds until the end of this step at the present speed; None while that is unknown."""
        elapsed = time.monotonic() - self.stage_started
        if self.done < 1 or elapsed < 1:
            return None
        return elapsed / self.done * (self.total - self.done)

    def report(self, stage: str, done: int, total: int) -> None:
        """Note progress; called by the work."""
        if stage != self.stage:
            self.stage_started = time.monotonic()
        self.stage, self.done, self.total = stage, done, total


@dataclass(frozen=True)
class _JobReport:
    """The `Report` of a job."""

    job: Job

    def __call__(self, stage: str, done: int, total: int) -> None:
        self.job.report(stage, done, total)

    def publish(self, partial: Study) -> None:
        """Show an answer that still improves."""
        self.job.partial = partial
        self.job.num_partials += 1


@dataclass(frozen=True)
class _Waiting:
    """A job that waits, with what it does and where its study goes, whole or stopped."""

    job: Job
    work: Work
    result: Path
    stopped: Path | None
    save: Callable[[Any, Path], None]


class Registry:
    """All jobs of this server, and the states of earlier ones in a folder.

    Args:
        folder: where states are kept; made when the first job starts.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._jobs: dict[str, Job] = {}
        self._queue: list[_Waiting] = []
        self._lock = threading.RLock()

    def running(self) -> Job | None:
        """The job that runs now."""
        return next((job for job in list(self._jobs.values()) if job.state == RUNNING), None)

    def waiting(self) -> list[Job]:
        """The jobs that wait, in the order of their turns."""
        with self._lock:
            return [entry.job for entry in self._queue if entry.job.state == QUEUED]

    def place(self, key: str) -> int:
        """How many jobs come before this one, the running one included; 0 for a running one."""
        keys = [job.key for job in self.waiting()]
        return keys.index(key) + 1 if key in keys else 0

    def find(self, key: str) -> Job | None:
        """The latest job that was asked this question, also one of an earlier server."""
        return self._jobs.get(key) or self._read(key)

    def start(
        self,
        key: str,
        title: str,
        work: Work,
        result: Path,
        stopped: Path | None = None,
        save: Callable[[Any, Path], None] = save_study,
    ) -> Job:
        """Run `work` in a thread and save its study; where another job runs, when that has ended.

        Args:
            key: identifies the question; an open job of the same key is returned as it is.
            title: what people read while it runs.
            work: takes (report(stage, done, total), cancelled()) and returns a study, or what
                `save` writes, or None.
            result: file for the study.
            stopped: file for a study that was stopped before its end.
            save: writes what `work` returns, whole or not at all, where that is no study.

        Raises:
            BusyError: too many jobs wait.
            OSError: the folder cannot be written.
        """
        with self._lock:
            current = self._jobs.get(key)
            if current is not None and current.is_open:
                return current
            if len(self.waiting()) >= MOST_QUEUED:
                raise BusyError(
                    f"{MOST_QUEUED} jobs are waiting already; cancel one or wait for the next end."
                )
            job = Job(key, title, QUEUED, stage="Waiting")
            try:
                self._write(job)
            except OSError as error:
                raise OSError(
                    f"{self.folder} cannot be written ({error.strerror}); free some space, or name "
                    "another folder by AUGLOCAL_LIBRARY and start the app again."
                ) from error
            self._jobs.pop(key, None)  # the latest job is the last one
            self._jobs[key] = job
            self._queue.append(_Waiting(job, work, result, stopped, save))
            if self.running() is None:
                self._start_next()
        return job

    def cancel(self, key: str) -> None:
        """Ask a job to stop, or take it out of the queue."""
        job = self._jobs.get(key)
        if job is not None and job.is_open:
            job.cancel()
            if job.ended is not None:  # it waited, and nothing else notes its end
                with contextlib.suppress(OSError):
                    self._write(job)

    def dismiss(self, key: str) -> None:
        """Forget an ended job, so that its message goes away."""
        job = self._jobs.get(key)
        if job is None or not job.is_open:
            self._jobs.pop(key, None)
            self._path(key).unlink(missing_ok=True)

    def _start_next(self) -> None:
        """Give the turn to the first job that still waits; the lock is held."""
        while self._queue:
            entry = self._queue.pop(0)
            if entry.job.begin():
                with contextlib.suppress(OSError):
                    self._write(entry.job)
                threading.Thread(target=self._run, args=(entry,), daemon=True).start()
                return

    def _run(self, entry: _Waiting) -> None:
        """Do the work, note how it ended, and let the next one begin."""
        job = entry.job
        state, message = self._outcome(entry)
        with self._lock:
            # The next one runs before this one has ended: a page that looks finds one of both.
            self._start_next()
            job.message, job.ended, job.partial = message, time.monotonic(), None
            job.state = state
            ended = [key for key, other in self._jobs.items() if not other.is_open]
            for key in ended[:-KEPT_STATES]:
                del self._jobs[key]
        with contextlib.suppress(OSError):
            self._write(job)

    def _outcome(self, entry: _Waiting) -> tuple[str, str]:
        """State and message of what came out; nothing escapes a thread that nobody joins."""
        job = entry.job
        try:
            answer = entry.work(_JobReport(job), job._cancel.is_set)
            if answer is None:
                return DONE, ""
            if isinstance(answer, Study) and entry.stopped and answer.provenance.stopped:
                _keep(answer, entry.stopped, entry.save)
                return CANCELLED, answer.provenance.stopped
            _keep(answer, entry.result, entry.save)
        except Cancelled:
            return CANCELLED, ""
        except Exception as error:
            message = sentence(error)
            expected = isinstance(error, (ValueError, OSError))
            LOGGER.error("job %s failed: %s", job.key, message, exc_info=not expected)
            return FAILED, message
        if entry.stopped is not None:
            entry.stopped.unlink(missing_ok=True)  # the whole takes the place of a part
        return DONE, ""

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}.json"

    def _write(self, job: Job) -> None:
        """Keep a job's state, whole or not at all, and few of them."""
        self.folder.mkdir(parents=True, exist_ok=True)
        values = {"title": job.title, "state": job.state, "message": job.message}
        handle, temporary = tempfile.mkstemp(dir=self.folder, prefix=".job.")
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump(values, file)
        Path(temporary).replace(self._path(job.key))
        states = sorted(self.folder.glob("*.json"), key=lambda path: path.stat().st_mtime)
        for path in states[:-KEPT_STATES]:
            path.unlink(missing_ok=True)

    def _read(self, key: str) -> Job | None:
        """A job of an earlier server; one that was running then was interrupted."""
        try:
            values = json.loads(self._path(key).read_text(encoding="utf-8"))
            title, state = str(values["title"]), str(values["state"])
            message = str(values["message"])
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return Job(key, title, INTERRUPTED if state in OPEN_STATES else state, message=message)


def _keep(answer: Any, path: Path, save: Callable[[Any, Path], None]) -> None:
    """Write an answer, in a folder that may not be there yet."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save(answer, path)


def sentence(error: Exception) -> str:
    """What a user reads about a failure: our own sentences as they are, others in general terms."""
    from auglocal.errors import WorkError

    if isinstance(error, (ValueError, WorkError)) and str(error).strip():
        # The command line's way to name a folder is not that of a page's field.
        text = str(error).replace("give imagefolder:PATH of a folder", "name a folder")
        if text.split()[0].isalpha():  # not a file's name
            text = text[0].upper() + text[1:]
        return text if text.endswith(".") else f"{text}."
    if isinstance(error, MemoryError):
        return "The machine ran out of memory; take fewer samples or a smaller batch size."
    return (
        f"Something unexpected went wrong ({type(error).__name__}); the terminal where the app "
        "runs shows the details."
    )
