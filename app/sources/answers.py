"""Answers to a question about several checkpoints, gathered from whichever studies hold them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import streamlit as st

from analysis.geometry import GeometryResult
from analysis.paired import PairedResult, compare_layers
from analysis.probes import ProbeResult
from analysis.study import Study
from app.sources import studies
from app.sources.studies import Request

if TYPE_CHECKING:
    from app.sources.checkpoints import CheckpointFile


@dataclass(frozen=True, eq=False)
class ProbeAnswer:
    """The probes of one checkpoint under the name it has here, and the study that holds them."""

    entry: CheckpointFile
    study: Study
    probe: ProbeResult

    @property
    def is_whole(self) -> bool:
        """Whether it says what was read of every image; studies of format 1 do not."""
        return studies.has_images(self.study)


@dataclass(frozen=True, eq=False)
class GeometryAnswer:
    """The geometry of one checkpoint under the name it has here, and the study that holds it."""

    entry: CheckpointFile
    study: Study
    geometry: GeometryResult


def probe_answers(request: Request, entries: Sequence[CheckpointFile]) -> list[ProbeAnswer]:
    """Find the probes that are on this machine, one a checkpoint; whole ones before old ones."""
    found = []
    for entry in entries:
        study = studies.find_study(studies.narrowed(request, [entry]))
        if study is not None:
            probe = replace(study.probe(_name(study, entry)), model=entry.name)
            found.append(ProbeAnswer(entry, study, probe))
    return found


def geometry_answers(request: Request, entries: Sequence[CheckpointFile]) -> list[GeometryAnswer]:
    """Find the geometry that is on this machine, one a checkpoint."""
    found = []
    for entry in entries:
        study = studies.find_study(studies.narrowed(request, [entry]))
        if study is not None:
            name = _name(study, entry)
            result = next(result for result in study.geometry if result.model == name)
            found.append(GeometryAnswer(entry, study, replace(result, model=entry.name)))
    return found


def probe_parts(study: Study, entries: Sequence[CheckpointFile]) -> list[ProbeAnswer]:
    """The probes of a study that is not whole, of checkpoints that have any layer yet."""
    found = []
    for entry in entries:
        name = _name(study, entry)
        probe = next((probe for probe in study.probes if probe.model == name), None)
        if probe is not None and np.isfinite(probe.accuracy).any():
            found.append(ProbeAnswer(entry, study, replace(probe, model=entry.name)))
    return found


def geometry_parts(study: Study, entries: Sequence[CheckpointFile]) -> list[GeometryAnswer]:
    """The same of geometry."""
    found = []
    for entry in entries:
        name = _name(study, entry)
        result = next((result for result in study.geometry if result.model == name), None)
        if result is not None:
            found.append(GeometryAnswer(entry, study, replace(result, model=entry.name)))
    return found


def _name(study: Study, entry: CheckpointFile) -> str:
    """What a study calls a checkpoint."""
    return studies.study_checkpoint(study, entry.sha256).name


def paired(first: ProbeAnswer, second: ProbeAnswer) -> PairedResult | str:
    """Test two checkpoints' probes against each other, or say why that cannot be done."""
    questions = (first.study.question, second.study.question)
    if not (first.is_whole and second.is_whole):
        return "the studies do not hold what was read of every image"
    if questions[0].images_sha256 != questions[1].images_sha256:
        return "the two were not scored on the same images"
    identity = questions[0].images_sha256 + str(_options(first)) + str(_options(second))
    return _compared(first.entry.sha256, second.entry.sha256, identity, first, second)


def _options(answer: ProbeAnswer) -> tuple[object, ...]:
    """What makes probes of the same layers and images differ."""
    question = answer.study.question
    options = (question.penalty, question.penalties, question.probe_pooling)
    return (*options, question.train_samples, question.seed)


@st.cache_resource(max_entries=64, show_spinner=False)
def _compared(
    first_sha256: str,
    second_sha256: str,
    identity: str,
    _first: ProbeAnswer,
    _second: ProbeAnswer,
) -> PairedResult:
    """McNemar's test layer by layer; cached by both files, images and options."""
    return compare_layers(_correct(_first), _correct(_second))


def _correct(answer: ProbeAnswer) -> list[np.ndarray | None]:
    """Which images each layer's probe is right on, (N,) booleans; None for one without."""
    labels = np.asarray(answer.study.question.labels)
    assert answer.probe.predictions is not None
    return [
        row == labels if np.isfinite(accuracy) else None
        for accuracy, row in zip(answer.probe.accuracy, answer.probe.predictions, strict=True)
    ]
