"""Checkpoints that the user brought: checked apart, kept as clean copies, told apart by content.

In: the bytes of an upload, and what the user says about it. Out: checkpoints of ours in the library
folder, each with a note beside it: its name, the file it came from, what was found in that, and the
clean copy it was made of, from which it is made again when the user says otherwise. Names and texts
in notes came from outside: show them as text.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analysis.choices import Choices
from analysis.errors import InputError
from app.sources import folders
from auglocal.errors import writing
from auglocal.files import write_whole

if TYPE_CHECKING:
    from analysis.examining import Examined

MOST_UPLOADED_BYTES = 512 * 10**6
MOST_LIBRARY_BYTES = 10 * 2**30
NEARLY_FULL = 0.8
LONGEST_NAME = 80
KEPT = ("name", "file", "report", "rule", "added")  # of a note, when a checkpoint is made again
_UNSAFE = re.compile(r"[^A-Za-z0-9._ -]")


def checkpoints_folder() -> Path:
    """Where checkpoints that can be used lie, "SHA256.safetensors", a note beside each."""
    return folders.library_folder() / "checkpoints"


def originals_folder() -> Path:
    """Where the clean copies of what was uploaded lie, "SHA256.safetensors"."""
    return folders.library_folder() / "originals"


def read_note(checkpoint: Path) -> dict[str, Any]:
    """What is noted about a checkpoint of the library; empty where there is no note."""
    with contextlib.suppress(OSError, ValueError):
        note = json.loads(_note_path(checkpoint).read_text(encoding="utf-8"))
        if isinstance(note, dict):
            return note
    return {}


def write_note(checkpoint: Path, **values: object) -> None:
    """Note something about a checkpoint of the library; what else was noted stays.

    Raises:
        auglocal.errors.WorkError: it cannot be written.
    """
    note = {**read_note(checkpoint), **values}
    write_whole(_note_path(checkpoint), json.dumps(note, sort_keys=True).encode())


def _note_path(checkpoint: Path) -> Path:
    return checkpoint.with_suffix(".json")


# ------------------------------------------------------------------------------------- room


def library_bytes() -> int:
    """Bytes of all files in the library."""
    total = 0
    for folder, _, names in os.walk(folders.library_folder()):
        for name in names:
            with contextlib.suppress(OSError):
                total += (Path(folder) / name).lstat().st_size
    return total


def room_note() -> str:
    """A sentence where the library is nearly full; else nothing."""
    used = library_bytes()
    if used < NEARLY_FULL * MOST_LIBRARY_BYTES:
        return ""
    return (
        f"The library holds {used / 2**30:.1f} of at most {MOST_LIBRARY_BYTES / 2**30:.0f} GiB; "
        "delete checkpoints that are no longer needed."
    )


def _check_room(more: int) -> None:
    """Refuse what would not fit, copies included."""
    if library_bytes() + 2 * more > MOST_LIBRARY_BYTES:
        raise InputError(
            f"The library may hold {MOST_LIBRARY_BYTES / 2**30:.0f} GiB, and there is no room for "
            f"another {more / 2**20:,.0f} MiB and its copy; delete checkpoints first."
        )


# ------------------------------------------------------------------------------------- coming


def receive(name: str, content: bytes | memoryview, state: str | None = None) -> tuple[Path, bool]:
    """Check an uploaded file of any origin in a process of its own, and keep it as one of ours.

    Args:
        name: the file's name where it came from.
        content: its bytes.
        state: the weights to take where a file holds several, by the name that its report gives.

    Returns:
        the checkpoint in the library, and whether it was there before.

    Raises:
        ValueError: it is too large, cannot be opened, or holds no known network; one sentence.
        auglocal.errors.WorkError: the library cannot be written.
    """
    if len(content) > MOST_UPLOADED_BYTES:
        raise InputError(
            f"{_safe_name(name)} is larger than {MOST_UPLOADED_BYTES // 10**6} MB; save the "
            "weights alone, without the optimizer's state, or use python -m analysis convert."
        )
    _check_room(len(content))
    try:
        with _as_file(name, content) as path:
            examined = _examine(path, Choices(state=state))
        return _keep(name, examined, Choices())
    except ValueError:
        _drop_unused_originals()
        raise


def change(checkpoint: Path, choices: Choices) -> Path:
    """Make a checkpoint of the library again, as the user says; it takes the place of the old one.

    Results of the old one stay, under its own checksum.

    Args:
        checkpoint: of the library, with an original.
        choices: what the user says about it.

    Returns:
        the new checkpoint's path.

    Raises:
        ValueError: the choices do not fit the network; one sentence.
        auglocal.errors.WorkError: the library cannot be written.
    """
    note = read_note(checkpoint)
    original = originals_folder() / f"{note.get('original')}.safetensors"
    if not original.is_file():
        raise InputError(
            "The file that this checkpoint was made of is no longer in the library; upload it "
            "again."
        )
    name = str(note.get("name", checkpoint.stem[:12]))
    examined = _examine(original, choices)
    path, _ = _keep(str(note.get("file", name)), examined, choices)
    kept: dict[str, Any] = {
        key: note[key] for key in ("name", "file", "report", "rule", "added") if key in note
    }
    if path != checkpoint:
        kept["was"] = [*note.get("was", []), checkpoint.stem]
    write_note(path, **kept)
    if path != checkpoint:
        checkpoint.unlink(missing_ok=True)
        _note_path(checkpoint).unlink(missing_ok=True)
    return path


def examine_original(checkpoint: Path) -> Examined | None:
    """Read the original of a checkpoint again; None where there is none."""
    original = originals_folder() / f"{read_note(checkpoint).get('original')}.safetensors"
    return _examine(original, None) if original.is_file() else None


def _examine(path: Path, choices: Choices | None) -> Examined:
    """Read a file under the limits of an upload."""
    from analysis.examining import examine
    from auglocal.foreign.limits import UPLOAD

    with writing(originals_folder()):
        originals_folder().mkdir(parents=True, exist_ok=True)
    return examine(path, originals_folder(), choices, limits=UPLOAD)


def _keep(name: str, examined: Examined, choices: Choices) -> tuple[Path, bool]:
    """Keep a file that was examined: one of ours as it is, another as one of ours."""
    from analysis.inspection import describe_file
    from analysis.opening import adopt, is_own, make_model

    folder = checkpoints_folder()
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    clean = examined.imported.path
    if is_own(clean):
        return _keep_own(name, clean)
    model = make_model(examined, choices, auxiliaries=True)
    path = adopt(examined, choices, folder)
    was_there = bool(read_note(path))
    report = describe_file(examined, model)
    if not was_there:
        _note_new(path, name)
    write_note(path, original=clean.stem, report=report)
    return path, was_there


def _keep_own(name: str, clean: Path) -> tuple[Path, bool]:
    """Keep a checkpoint of ours, byte for byte."""
    from auglocal.checkpoint import is_published, load_checkpoint, read_metadata

    path = checkpoints_folder() / clean.name
    try:
        if not is_published(read_metadata(clean)):
            load_checkpoint(clean)
    except ValueError as error:
        clean.unlink(missing_ok=True)
        raise InputError(str(error).replace(clean.name, _safe_name(name))) from error
    was_there = path.is_file()
    with writing(path):
        clean.replace(path)
    if not was_there:
        _note_new(path, name)
    return path, was_there


def _note_new(path: Path, name: str) -> None:
    """Note when and under which name a checkpoint came."""
    stem = _safe_name(name)
    for suffix in (".tar", ".pth", ".safetensors", ".pt", ".th", ".ckpt", ".bin", ".pth"):
        stem = stem.removesuffix(suffix)
    today = datetime.now(UTC).isoformat(timespec="seconds")
    write_note(path, name=stem or path.stem[:12], file=_safe_name(name), added=today)


@contextmanager
def _as_file(name: str, content: bytes | memoryview) -> Iterator[Path]:
    """Bytes as a file of that name in a folder of its own, for as long as it is read."""
    incoming = folders.library_folder() / "incoming"
    with writing(incoming):
        incoming.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(dir=incoming))
    try:
        path = folder / _safe_name(name)
        with writing(path):
            path.write_bytes(content)
        yield path
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _safe_name(name: str) -> str:
    """A file's name of plain characters, without folders; never empty and never hidden."""
    last = name.replace("\\", "/").rpartition("/")[2]
    plain = _UNSAFE.sub("_", last)[-LONGEST_NAME:].lstrip(". ")
    return plain or "upload"


# ------------------------------------------------------------------------------------- going


def delete(checkpoint: Path) -> None:
    """Delete a checkpoint of the library, its note, and its original if nothing else needs it."""
    checkpoint.unlink(missing_ok=True)
    _note_path(checkpoint).unlink(missing_ok=True)
    _drop_unused_originals()


def _drop_unused_originals() -> None:
    """Delete clean copies that no checkpoint was made of."""
    used = {read_note(path).get("original") for path in checkpoints_folder().glob("*.safetensors")}
    for original in originals_folder().glob("*.safetensors"):
        if original.stem not in used:
            original.unlink(missing_ok=True)


def sweep() -> None:
    """Delete what an interrupted upload left behind."""
    shutil.rmtree(folders.library_folder() / "incoming", ignore_errors=True)
    for pattern in ("originals/.*.part", "checkpoints/.*.part", "checkpoints/*.candidate"):
        for path in folders.library_folder().glob(pattern):
            path.unlink(missing_ok=True)
