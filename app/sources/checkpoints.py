"""Checkpoints on this machine: shipped ones and uploaded ones; opened only when a page asks."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import streamlit as st

from app import jobs
from app.sources import folders, library, studies, training
from auglocal.files import file_sha256

if TYPE_CHECKING:
    from auglocal.checkpoint import CheckpointMetadata


STATISTICS = (".running_mean", ".running_var", ".num_batches_tracked")
SHORTEST_PREFIX = 6  # characters of a checksum in a link
SHIPPED, UPLOADED, TRAINED = "this project", "uploaded", "trained here"


@dataclass(frozen=True)
class CheckpointFile:
    """A checkpoint on this machine.

    Attributes:
        name: a short readable one; text from outside, to be shown as text only.
        path, sha256, size: the file, its checksum and its bytes.
        origin: `SHIPPED`, `UPLOADED` or `TRAINED`.
        rule: the rule that trained it, as the user labels it or else as the file says.
        added: when the file came or was written, seconds since 1970.
        aliases: checksums of what it was made of and was before, to which links may point.
    """

    name: str
    path: Path
    sha256: str
    size: int
    origin: str
    rule: str
    added: float
    aliases: tuple[str, ...] = ()

    @property
    def uploaded(self) -> bool:
        """Whether it came through the page, and can be renamed, labelled and deleted there."""
        return self.origin == UPLOADED


def checkpoint_files() -> tuple[list[CheckpointFile], list[str]]:
    """All checkpoints on this machine, and a sentence for each file that cannot be opened."""
    paths = dict.fromkeys(sorted(folders.shipped_folder().glob("*.safetensors")), SHIPPED)
    paths |= dict.fromkeys(sorted(library.checkpoints_folder().glob("*.safetensors")), UPLOADED)
    paths |= dict.fromkeys(training.finished_checkpoints(), TRAINED)
    rules = _studied_rules()
    found: dict[str, CheckpointFile] = {}
    problems: list[str] = []
    for path, origin in paths.items():
        try:
            entry = _open_checkpoint(path, origin, rules)
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


def _open_checkpoint(path: Path, origin: str, rules: dict[str, str]) -> CheckpointFile:
    """What the lists of pages show of a file."""
    stamp = folders.stamp(path)
    sha256 = _sha256(*stamp)
    note = library.read_note(path) if origin == UPLOADED else {}
    rule = note.get("rule") or rules.get(sha256) or _metadata(*stamp).rule
    name = {
        SHIPPED: path.stem,
        UPLOADED: str(note.get("name", path.stem[:12])),
        TRAINED: path.parent.name,
    }[origin]
    aliases = (note.get("report", {}).get("sha256", ""), *note.get("was", ()))
    return CheckpointFile(
        name, path, sha256, stamp[1], origin, str(rule), path.stat().st_mtime, aliases
    )


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


def _with_distinct_names(entries: list[CheckpointFile]) -> list[CheckpointFile]:
    """Add the start of the checksum to every name that occurs twice."""
    names = [entry.name for entry in entries]
    return [
        replace(entry, name=f"{entry.name} {entry.sha256[:6]}")
        if names.count(entry.name) > 1
        else entry
        for entry in entries
    ]


def keep_upload(
    name: str, content: bytes | memoryview, state: str | None = None
) -> tuple[str, bool]:
    """Keep an uploaded file of any origin as a checkpoint, unless it is on this machine already.

    Args:
        name: the file's name where it came from.
        content: its bytes.
        state: the weights to take where a file holds several.

    Returns:
        the checkpoint's checksum, and whether it was here before.

    Raises:
        ValueError, auglocal.errors.WorkError: see `library.receive`.
    """
    sha256 = hashlib.sha256(content).hexdigest()
    if any(entry.sha256 == sha256 for entry in checkpoint_files()[0]):
        return sha256, True
    path, was_there = library.receive(name, content, state)
    return path.stem, was_there


def by_prefix(entries: Sequence[CheckpointFile], prefix: str) -> CheckpointFile | None:
    """The one checkpoint whose checksum starts like this; links carry such starts."""
    if len(prefix) < SHORTEST_PREFIX:
        return None
    matches = [entry for entry in entries if entry.sha256.startswith(prefix)]
    matches = matches or [
        entry for entry in entries if any(alias.startswith(prefix) for alias in entry.aliases)
    ]
    return matches[0] if len(matches) == 1 else None


def first_pair(entries: Sequence[CheckpointFile]) -> tuple[CheckpointFile, CheckpointFile]:
    """The pair to start with: that of the overview if it is here, else the first two."""
    by_sha256 = {entry.sha256: entry for entry in entries}
    for study in studies.pairs():
        pair = [by_sha256.get(entry.sha256) for entry in study.question.checkpoints[:2]]
        if pair[0] and pair[1]:
            return pair[0], pair[1]
    return entries[0], entries[min(1, len(entries) - 1)]


def num_layers(entry: CheckpointFile) -> int:
    """How many layers a checkpoint's backbone has."""
    report = library.read_note(entry.path).get("report", {}) if entry.uploaded else {}
    about = metadata(entry)
    if ":" in about.architecture:  # of a library, which would take seconds to build
        return len(report.get("layers", ()))
    return _num_layers(about.architecture, about.num_classes, about.width)


@st.cache_resource(max_entries=64, show_spinner=False)
def _num_layers(architecture: str, num_classes: int, width: float) -> int:
    """Build the backbone once to count."""
    from auglocal.backbones.registry import build_meta_backbone

    return len(build_meta_backbone(architecture, num_classes, width=width).layer_names)


def parameters(entry: CheckpointFile) -> int:
    """Weights of a checkpoint's backbone, counted from its header."""
    return _parameters(*folders.stamp(entry.path))


@st.cache_resource(max_entries=256, show_spinner=False)
def _parameters(path: str, size: int, changed: int) -> int:
    """Count what training changes: no running statistics, no auxiliary networks."""
    from safetensors import safe_open

    total = 0
    with safe_open(path, framework="np") as file:
        for key in file.keys():  # noqa: SIM118 (a reader, not a dictionary)
            if not key.startswith("auxiliary.") and not key.endswith(STATISTICS):
                total += math.prod(file.get_slice(key).get_shape())
    return total
