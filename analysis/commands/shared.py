"""What the commands share: progress, one-sentence errors, files that can be written."""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from tqdm import tqdm

from analysis.errors import InputError, WorkError

if TYPE_CHECKING:
    from analysis.reading import Progress

PROGRAM = "auglocal-analysis"
DONE, FAILED, WRONG_INPUT, INTERRUPTED = 0, 1, 2, 130
STUDY_SUFFIX = ".study.json"


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one sentence."""

    def error(self, message: str) -> NoReturn:
        """Say what is wrong with the arguments and where help is, then exit with status 2."""
        print(f"{self.prog}: {message}; see {self.prog} --help.", file=sys.stderr)
        raise SystemExit(WRONG_INPUT)


@contextmanager
def progress_bar(*, shown: bool = True) -> Iterator[Callable[[Progress], None]]:
    """Give what shows progress; no bar before the first stage, when the input was checked."""
    bars: list[Any] = []

    def show(progress: Progress) -> None:
        """Move the bar; each stage has its own, and the time left is the bar's own estimate."""
        if progress.done == 0:
            for bar in bars:
                bar.close()
            bars[:] = [
                tqdm(
                    desc=progress.stage,
                    total=progress.total,
                    dynamic_ncols=True,
                    file=sys.stderr,
                    leave=False,
                    disable=not shown,
                )
            ]
        bars[0].update(progress.done - bars[0].n)

    try:
        yield show
    finally:
        for bar in bars:
            bar.close()


def check_out(path: Path, suffix: str = STUDY_SUFFIX) -> None:
    """Refuse a file that could not be written, before the work."""
    if not path.name.endswith(suffix) or path.is_dir():
        raise InputError(f"{path} cannot be the result; give --out a file that ends in {suffix}.")
    if not path.parent.is_dir():
        raise InputError(f"There is no folder {path.parent}; make it, or give another --out.")
    try:  # permission bits do not tell: root passes them, and /proc takes no files
        tempfile.NamedTemporaryFile(prefix=f".{path.name}.", dir=path.parent).close()
    except OSError as error:
        raise InputError(
            f"The folder {path.parent} cannot be written to ({error.strerror}); give another --out."
        ) from error


def failure(error: Exception) -> str:
    """Say in one sentence what failed while working, and what to do next."""
    first_line = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
    if isinstance(error, MemoryError) or "out of memory" in first_line.lower():
        return f"Memory ran out ({first_line}); give a smaller --batch-size or --device cpu."
    if isinstance(error, OSError):
        reason = error.strerror or first_line
        name = error.filename or "A file"
        return f"{name} could not be read or written ({reason}); nothing was saved, so try again."
    if isinstance(error, WorkError):
        return str(error)
    return f"The analysis failed ({first_line}); nothing was saved."
