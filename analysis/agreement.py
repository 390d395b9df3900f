"""How far a study's answers moved when it was run again: two studies in, a line a measure out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from analysis.study import Study

FloatArray = npt.NDArray[np.floating[Any]]
# What another processor or number of threads may move a value by, rounding alone.
ROUNDING = 1e-3


@dataclass(frozen=True)
class Agreement:
    """One measure of a study and of its repetition.

    Attributes:
        measure: its name, with the network's where it is of one.
        count: values of both.
        largest: difference of two values that should be equal.
        outside: new values that lie outside the old intervals by more than `ROUNDING`.
        undefined: values that are defined in one of the two alone.
    """

    measure: str
    count: int
    largest: float
    outside: int
    undefined: int

    @property
    def holds(self) -> bool:
        """Whether the same came out."""
        return not self.outside and not self.undefined


def compare_studies(before: Study, after: Study) -> list[Agreement]:
    """Hold the answers of a study against those of another run of the same question.

    Raises:
        ValueError: they are not of the same checkpoints, images or measures.
    """
    _require_same_question(before, after)
    found = []
    if before.cka is not None and after.cka is not None:
        found.append(_agreement("cka", before.cka, before.cka.values, after.cka.values))
    for old, new in zip(before.probes, after.probes, strict=True):
        found.append(_agreement(f"probe {old.model}", old, old.accuracy, new.accuracy))
    for first, second in zip(before.similarity, after.similarity, strict=True):
        name = f"{first.result.measure} {first.model_a} {first.model_b}"
        found.append(_agreement(name, first.result, first.result.values, second.result.values))
    return [*found, *_geometry(before, after)]


def _geometry(before: Study, after: Study) -> Iterator[Agreement]:
    """Every measure of geometry of every network."""
    for old, new in zip(before.geometry, after.geometry, strict=True):
        for measure, values in old.values.items():
            interval = old.low[measure], old.high[measure]
            yield _count(f"{measure} {old.model}", values, new.values[measure], *interval)


def _agreement(name: str, old: Any, values: FloatArray, again: FloatArray) -> Agreement:
    return _count(name, values, again, old.low, old.high)


def _count(
    name: str, values: FloatArray, again: FloatArray, low: FloatArray, high: FloatArray
) -> Agreement:
    """Compare arrays of one shape; a value without an interval has itself for one."""
    defined, defined_again = np.isfinite(values), np.isfinite(again)
    both = defined & defined_again
    margin = ROUNDING * np.maximum(1, np.abs(values[both]))
    least = np.where(np.isfinite(low[both]), low[both], values[both]) - margin
    most = np.where(np.isfinite(high[both]), high[both], values[both]) + margin
    differences = np.abs(again[both] - values[both])
    return Agreement(
        measure=name,
        count=int(both.sum()),
        largest=float(differences.max(initial=0.0)),
        outside=int(((again[both] < least) | (again[both] > most)).sum()),
        undefined=int((defined != defined_again).sum()),
    )


def _require_same_question(before: Study, after: Study) -> None:
    asked = [
        (
            [(entry.sha256, entry.role) for entry in study.question.checkpoints],
            study.question.images_sha256,
            study.question.measures,
        )
        for study in (before, after)
    ]
    for name, old, new in zip(("checkpoints", "images", "measures"), *asked, strict=True):
        if old != new:
            raise ValueError(f"the {name} are not those of the study; redo it with the same ones.")
