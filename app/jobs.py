"""Long work in a thread: one job at a time, with progress, a way to stop it and a state on disk.

In: a function that computes a study. Out: a `Job` that pages watch. Knows neither Streamlit nor
torch. A thread survives a reload of the page but not the end of the server; a job that a file calls
running and no thread runs is reported as interrupted.
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
from typing import TypeVar

from analysis.errors import Cancelled
from analysis.study import Study, save_study

RUNNING, DONE, FAILED = "running", "done", "failed"
CANCELLED, INTERRUPTED = "cancelled", "interrupted"
KEPT_STATES = 50  # files of ended jobs that are kept to explain a link to one of them

Report = Callable[[str, int, int], None]
Work = Callable[[Report, Callable[[], bool]], Study]
Result = TypeVar("Result")
LOGGER = logging.getLogger(__name__)


class BusyError(RuntimeError):
    """Another job runs; the message says which."""


@dataclass
class Job:
    """One piece of long work and how far it is; its thread writes, pages read.

    Attributes:
        key: identifies what was asked, so that the same question finds the same job.
        title: what people read while it runs.
        state: one of the five constants of this module.
        stage, done, total: the step that runs, and how much of it is done.
        stage_started, started, ended: seconds of the monotonic clock.
        message: why it failed, one sentence.
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
    _cancel: threading.Event = field(default_factory=threading.Event)

    @property
    def is_cancelling(self) -> bool:
        """Whether somebody asked it to stop and it has not yet."""
        return self.state == RUNNING and self._cancel.is_set()

    def cancel(self) -> None:
        """Ask it to stop; it does after the batch at hand."""
        self._cancel.set()

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


class Registry:
    """All jobs of this server, and the states of earlier ones in a folder.

    Args:
        folder: where states are kept; made when the first job starts.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._jobs: dict[str, Job] = {}
        self._lock = threading.Lock()

    def running(self) -> Job | None:
        """The job that runs now."""
        return next((job for job in self._jobs.values() if job.state == RUNNING), None)

    def find(self, key: str) -> Job | None:
        """The latest job that was asked this question, also one of an earlier server."""
        return self._jobs.get(key) or self._read(key)

    def start(
        self,
        key: str,
        title: str,
        work: Callable[[Report, Callable[[], bool]], Result],
        result: Path,
        save: Callable[[Result, Path], None] = save_study,
    ) -> Job:
        """Run `work` in a thread and save its study, or whatever else it finds.

        Args:
            key: identifies the question; a running job of the same key is returned as it is.
            title: what people read while it runs.
            work: takes (report(stage, done, total), cancelled()) and returns a study.
            result: file for the study.
            save: writes what `work` returns, whole or not at all, where that is no study.

        Raises:
            BusyError: another job runs.
        """
        with self._lock:
            current = self.running()
            if current is not None and current.key == key:
                return current
            if current is not None:
                raise BusyError(f"{current.title} is still running; cancel it or wait for its end.")
            job = Job(key, title)
            try:
                self._write(job)
            except OSError as error:
                raise OSError(
                    f"{self.folder} cannot be written ({error.strerror}); free some space, or name "
                    "another folder by AUGLOCAL_LIBRARY and start the app again."
                ) from error
            self._jobs[key] = job
        threading.Thread(target=self._run, args=(job, work, result, save), daemon=True).start()
        return job

    def dismiss(self, key: str) -> None:
        """Forget an ended job, so that its message goes away."""
        job = self._jobs.get(key)
        if job is None or job.state != RUNNING:
            self._jobs.pop(key, None)
            self._path(key).unlink(missing_ok=True)

    def _run(
        self, job: Job, work: Callable[..., Result], result: Path, save: Callable[..., None]
    ) -> None:
        """Do the work and note how it ended; nothing escapes a thread that nobody joins."""
        try:
            answer = work(job.report, job._cancel.is_set)
            result.parent.mkdir(parents=True, exist_ok=True)
            save(answer, result)
            state, message = DONE, ""
        except Cancelled:
            state, message = CANCELLED, ""
        except Exception as error:
            state, message = FAILED, sentence(error)
            expected = isinstance(error, (ValueError, OSError))
            LOGGER.error("job %s failed: %s", job.key, message, exc_info=not expected)
        job.message, job.ended = message, time.monotonic()
        job.state = state
        with contextlib.suppress(OSError):
            self._write(job)

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
        return Job(key, title, INTERRUPTED if state == RUNNING else state, message=message)


def sentence(error: Exception) -> str:
    """What a user reads about a failure: our own sentences as they are, others in general terms."""
    from auglocal.errors import WorkError

    if isinstance(error, (ValueError, WorkError)) and str(error).strip():
        text = str(error)
        if text.split()[0].isalpha():  # not a file's name
            text = text[0].upper() + text[1:]
        return text if text.endswith(".") else f"{text}."
    if isinstance(error, MemoryError):
        return "The machine ran out of memory; take fewer samples or a smaller batch size."
    return (
        f"Something unexpected went wrong ({type(error).__name__}); the terminal where the app "
        "runs shows the details."
    )
