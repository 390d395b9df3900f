"""How long a run will take, from how long others took; nothing is timed and nothing waits.

Time goes with the number of images and of networks. Of the studies that asked the same of the same
architectures, the one with the nearest number of images is taken as the measure: one of this
machine if there is any, else one that came with the project.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence

from analysis.study import Study
from app.sources import checkpoints, studies
from app.sources.checkpoints import CheckpointFile

START = 2.0  # seconds for opening checkpoints, which studies do not count


def seconds(request: studies.Request, entries: Sequence[CheckpointFile]) -> float | None:
    """About how many seconds a request will take; None where nothing like it was measured.

    Args:
        request: what would be asked.
        entries: the checkpoints, the ceiling among them; a floor counts as one more.
    """
    files = studies.study_files()
    architectures = _architectures([file.study for file in files], entries)
    if not architectures:
        return None
    architectures += architectures[:1] * (request.floor is not None)
    for shipped in (False, True):
        alike = [
            file.study
            for file in files
            if file.shipped == shipped and _is_alike(file.study, request, architectures)
        ]
        if alike:
            nearest = min(alike, key=lambda study: _distance(study, request.samples))
            return START + _rate(nearest) * request.samples * len(architectures)
    return None


def _architectures(found: Sequence[Study], entries: Sequence[CheckpointFile]) -> list[str]:
    """Architectures of checkpoints, as far as known without importing torch; else none at all."""
    known = {
        entry.sha256: entry.architecture for study in found for entry in study.question.checkpoints
    }
    if "torch" in sys.modules:
        known |= {
            entry.sha256: checkpoints.metadata(entry).architecture
            for entry in entries
            if entry.sha256 not in known
        }
    names = [known.get(entry.sha256) for entry in entries]
    return [name for name in names if name is not None] if all(names) else []


def _is_alike(study: Study, request: studies.Request, architectures: Sequence[str]) -> bool:
    """Whether a study measured the same, or more, on such networks."""
    question = study.question
    measures = question.measures or ("cka", "probe")
    if request.measure not in measures or study.provenance.stopped is not None:
        return False
    if {entry.architecture for entry in question.checkpoints} != set(architectures):
        return False
    return question.samples > 0 and study.provenance.seconds > 0 and _same_work(study, request)


def _same_work(study: Study, request: studies.Request) -> bool:
    """Whether options that cost time are the same."""
    names = ("kernel", "estimator") if request.measure == "cka" else ()
    if any(getattr(study.question, name) != request.option(name) for name in names):
        return False
    groups = {entry.result.groups for entry in study.similarity}
    return not groups or groups == {request.option("groups")}


def _distance(study: Study, samples: int) -> float:
    """How far apart two numbers of images are, as a ratio."""
    return abs(math.log(study.question.samples / max(samples, 1)))


def _rate(study: Study) -> float:
    """Seconds an image and network."""
    question = study.question
    return study.provenance.seconds / (question.samples * len(question.checkpoints))
