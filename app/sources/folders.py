"""Where things lie on this machine: what came with the project, and what its user added."""

from __future__ import annotations

import itertools
import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent


def shipped_folder() -> Path:
    """Where the project's own checkpoints and studies lie."""
    return Path(os.environ.get("AUGLOCAL_SHIPPED") or ROOT / "checkpoints")


def library_folder() -> Path:
    """Where uploaded checkpoints and computed studies are kept; not made before it is needed.

    `streamlit run app -- --library DIR` names it, or AUGLOCAL_LIBRARY.
    """
    chosen = _argument("--library") or os.environ.get("AUGLOCAL_LIBRARY")
    if chosen:
        return Path(chosen)
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Application Support"
    else:
        base = Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share")
    return base / "auglocal" / "library"


def _argument(name: str) -> str | None:
    """What follows a name among the app's own arguments, or after its equals sign."""
    words = sys.argv[1:]
    for word, following in itertools.zip_longest(words, words[1:]):
        if word == name:
            return following
        if word.startswith(f"{name}="):
            return word.partition("=")[2]
    return None


def stamp(path: Path) -> tuple[str, int, int]:
    """Path, size and time of change of a file: what a cached reading of it depends on."""
    status = path.stat()
    return str(path), status.st_size, status.st_mtime_ns


def readable(path: Path) -> Path:
    """A path as people would type it: from the working directory where it lies below that."""
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path
