"""Checkpoints on this machine: shipped ones and uploaded ones; opened only when a page asks."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import streamlit as st

from analysis.errors import InputError
from app import jobs
from app.sources import folders, studies
from auglocal.errors import writing
from auglocal.files import file_sha256, write_whole

if TYPE_CHECKING:
    from auglocal.checkpoint import CheckpointMetadata


MOST_UPLOADS = 50


MOST_UPLOADED_BYTES = 64 * 2**20


@dataclass(frozen=True)
class CheckpointFile:
    """A checkpoint on this machine.

    Attributes:
        name: a short readable one; text from outside, to be shown as text only.
        path, sha256, size: the file, its checksum and its bytes.
        uploaded: whether it came through the page rather than with the project.
        rule: the rule that trained it.
    """

    name: str
    path: Path
    sha256: str
    size: int
    uploaded: bool
    rule: str


def checkpoint_files() -> tuple[list[CheckpointFile], list[str]]:
    """All checkpoints on this machine, and a sentence for each file that cannot be opened."""
    shipped = sorted(folders.shipped_folder().glob("*.safetensors"))
    uploaded = sorted((folders.library_folder() / "checkpoints").glob("*.safetensors"))
    rules = _studied_rules()
    found: dict[str, CheckpointFile] = {}
    problems: list[str] = []
    for path in (*shipped, *uploaded):
        try:
            entry = _open_checkpoint(path, path in uploaded, rules)
            found.setdefault(entry.sha256, entry)
        except ValueError as error:
            problems.append(jobs.sentence(error))
        except OSError as error:
            problems.append(f"{path.name} could not be read: {error.strerror or error}.")
    return _with_distinct_names(list(found.values())), problems


def _studied_rules() -> dict[str, str]:
    """Rules by checksum of the checkpoints of all studies; saves importing torch for them."""
    return {
        entry.sha256: entry.rule
        for file in studies.study_files()
        for entry in file.study.question.checkpoints
    }


def _open_checkpoint(path: Path, uploaded: bool, rules: dict[str, str]) -> CheckpointFile:
    """What the lists of pages show of a file."""
    stamp = folders.stamp(path)
    sha256 = _sha256(*stamp)
    rule = rules.get(sha256) or _metadata(*stamp).rule
    name = _uploaded_name(path) if uploaded else path.stem
    return CheckpointFile(name, path, sha256, stamp[1], uploaded, rule)


def metadata(entry: CheckpointFile) -> CheckpointMetadata:
    """What a checkpoint says about itself."""
    return _metadata(*folders.stamp(entry.path))


def with_metadata(
    entries: Sequence[CheckpointFile],
) -> list[tuple[CheckpointFile, CheckpointMetadata]]:
    """Checkpoints with what they say about themselves."""
    return [(entry, metadata(entry)) for entry in entries]


@st.cache_resource(max_entries=256, show_spinner=False)
def _sha256(path: str, size: int, changed: int) -> str:
    """A file's checksum; cached by path, size and time of change."""
    return file_sha256(path)


@st.cache_resource(max_entries=256, show_spinner=False)
def _metadata(path: str, size: int, changed: int) -> CheckpointMetadata:
    """A file's header; cached by path, size and time of change."""
    from auglocal.checkpoint import read_metadata

    return read_metadata(path)


def _uploaded_name(path: Path) -> str:
    """The name an uploaded file came with, kept beside the copy."""
    with contextlib.suppress(OSError, ValueError):
        return Path(path.with_suffix(".name").read_text(encoding="utf-8").strip()).stem[:80]
    return path.stem[:12]


def _with_distinct_names(entries: list[CheckpointFile]) -> list[CheckpointFile]:
    """Add the start of the checksum to every name that occurs twice."""
    names = [entry.name for entry in entries]
    return [
        replace(entry, name=f"{entry.name} {entry.sha256[:6]}")
        if names.count(entry.name) > 1
        else entry
        for entry in entries
    ]


def keep_upload(name: str, content: bytes) -> CheckpointFile:
    """Check an uploaded checkpoint and keep a copy named by its checksum.

    Args:
        name: the file's name where it came from.
        content: its bytes.

    Raises:
        ValueError: not a checkpoint of ours, too large, or too many are kept; one sentence.
        auglocal.errors.WorkError: the copy cannot be written.
    """
    from auglocal.checkpoint import load_checkpoint

    if len(content) > MOST_UPLOADED_BYTES:
        raise InputError(
            f"The file is larger than {MOST_UPLOADED_BYTES // 2**20} MB; upload a smaller one, or "
            "train without keeping the auxiliary networks."
        )
    sha256 = hashlib.sha256(content).hexdigest()
    present = next((entry for entry in checkpoint_files()[0] if entry.sha256 == sha256), None)
    if present is not None:
        return present
    folder = folders.library_folder() / "checkpoints"
    path = folder / f"{sha256}.safetensors"
    if not path.exists() and len(list(folder.glob("*.safetensors"))) >= MOST_UPLOADS:
        raise InputError(
            f"There are already {MOST_UPLOADS} uploaded checkpoints; delete one first."
        )
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    candidate = folder / f"{sha256}.candidate"
    try:
        write_whole(candidate, content)
        load_checkpoint(candidate)
        write_whole(path.with_suffix(".name"), name[:200].encode())
        candidate.replace(path)
    except ValueError as error:
        raise InputError(str(error).replace(candidate.name, "The file")) from error
    finally:
        candidate.unlink(missing_ok=True)
    return _open_checkpoint(path, True, {})


def delete_upload(entry: CheckpointFile) -> None:
    """Delete an uploaded checkpoint; shipped ones are never touched."""
    if entry.uploaded:
        entry.path.unlink(missing_ok=True)
        entry.path.with_suffix(".name").unlink(missing_ok=True)


def by_prefix(entries: Sequence[CheckpointFile], prefix: str) -> CheckpointFile | None:
    """The one checkpoint whose checksum starts like this; links carry such starts."""
    matches = [entry for entry in entries if len(prefix) >= 6 and entry.sha256.startswith(prefix)]
    return matches[0] if len(matches) == 1 else None


def first_pair(entries: Sequence[CheckpointFile]) -> tuple[CheckpointFile, CheckpointFile]:
    """The pair to start with: that of the overview if it is here, else the first two."""
    by_sha256 = {entry.sha256: entry for entry in entries}
    for study in studies.pairs():
        pair = [by_sha256.get(entry.sha256) for entry in study.question.checkpoints[:2]]
        if pair[0] and pair[1]:
            return pair[0], pair[1]
    return entries[0], entries[min(1, len(entries) - 1)]


def num_layers(metadata: CheckpointMetadata) -> int:
    """How many layers a checkpoint's backbone has."""
    return _num_layers(metadata.architecture, metadata.num_classes)


@st.cache_resource(max_entries=64, show_spinner=False)
def _num_layers(architecture: str, num_classes: int) -> int:
    """Build the backbone once to count."""
    from auglocal.backbones.registry import build_meta_backbone

    return len(build_meta_backbone(architecture, num_classes).layer_names)
