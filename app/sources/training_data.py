"""What checkpoints were trained on, as far as it is known, and whether that is on this machine.

Of a foreign file it is the data that its preprocessing was found on. Reads studies before files, as
the latter takes PyTorch.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from app.sources import checkpoints, datasets, library, studies
from app.sources.checkpoints import CheckpointFile

UNKNOWN = ("", "unknown")
RECODED = " (JPEG)"  # the same images, stored with loss


def title_of(entry: CheckpointFile) -> str:
    """What people call the data that a checkpoint was trained on; empty where nothing tells."""
    note = library.read_note(entry.path) if entry.uploaded else {}
    evidence = note.get("evidence") or {}
    if evidence.get("tells") and evidence.get("title"):
        return str(evidence["title"])
    title = _studied().get(entry.sha256)
    if title is None:
        title = checkpoints.metadata(entry).dataset
    return "" if title in UNKNOWN else title


def _studied() -> dict[str, str]:
    """Data by checksum of the checkpoints of all studies."""
    return {
        entry.sha256: entry.dataset
        for file in studies.study_files()
        for entry in file.study.question.checkpoints
    }


def home(entries: Sequence[CheckpointFile]) -> str:
    """The data on this machine that the first checkpoint was trained on; empty where there is none.

    The same images as JPEG will do.
    """
    named = datasets.named_data()
    for title in filter(None, map(title_of, entries)):
        for is_same in (title.__eq__, partial(_are_same, title)):
            found = next((name for name, other in named.items() if is_same(other)), None)
            if found is not None:
                return found
    return ""


def _are_same(title: str, other: str) -> bool:
    """Whether two titles mean the same images."""
    return title.removesuffix(RECODED) == other.removesuffix(RECODED)


def mismatch(entries: Sequence[CheckpointFile], dataset: str) -> str:
    """A sentence where networks were trained on other data than those chosen; else empty.

    A folder of the user's own may hold anything, so that nothing is said of it.
    """
    chosen = datasets.named_data().get(dataset)
    if chosen is None:
        return ""
    titles = {entry.name: title_of(entry) for entry in entries}
    others = {name: title for name, title in titles.items() if not _are_same(title, chosen)}
    parts = [
        f"{name} was trained on {title}" if title else f"it is not known what {name} was trained on"
        for name, title in others.items()
    ]
    if not parts:
        return ""
    text = "; ".join(parts)
    return f"Other data than in training: {text}, and these images are {chosen}."
