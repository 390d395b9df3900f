"""The two errors that a user meets: one sentence each, saying what, why and what to do next."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator
from pathlib import Path


class InputError(ValueError):
    """What the user gave (a file, an option, a name) is wrong; the commands exit with status 2."""


class WorkError(RuntimeError):
    """Something failed while working on good input; the commands exit with status 1."""


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn a failure to write `path` into a sentence that says what to do next."""
    try:
        yield
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        advice = "choose a folder that you may write to"
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            advice = "free some space, then continue; what was saved before is intact"
        raise WorkError(f"Could not write {path}: {reason}; {advice}.") from error
