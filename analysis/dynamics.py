"""Layers along training: a study of a run's snapshots in, epoch x layer maps out.

Snapshots belong together where a study says the same of them but for the epoch. The maps are cut
out of the study's own answers, so they carry its intervals and reasons.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from analysis.cka_result import FloatArray
from analysis.geometry_measures import GEOMETRY_MEASURES
from analysis.study import Study, StudyCheckpoint


@dataclass(frozen=True, eq=False)
class Trajectory:
    """Snapshots of one run: their names in a study, and their epochs, rising."""

    title: str
    names: tuple[str, ...]
    epochs: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class DynamicsMap:
    """One measure of every layer after every epoch.

    `values`, `low` and `high` have the shape (E, L), NaN where undefined. `measure` is "cka",
    "probe", a name of geometry or of `RECORDS`; for CKA `against` names what each layer is compared
    with, at the same place or the nearest relative depth. `undefined` says why by (epoch, layer).
    """

    measure: str
    title: str
    trajectory: Trajectory
    against: str | None
    layers: tuple[str, ...]
    values: FloatArray
    low: FloatArray
    high: FloatArray
    undefined: dict[tuple[int, int], str] = field(default_factory=dict)


REFERENCES: dict[str, str] = {
    "end": "CKA with its own end",
    "start": "CKA with its own start",
    "previous": "CKA with the snapshot before",
}
# What a run writes down after each epoch, by its name in metrics.jsonl.
RECORDS: dict[str, str] = {
    "losses": "training loss of each block",
    "accuracies": "training accuracy of each block",
    "test_local_accuracies": "test accuracy of each block",
}
NO_PREVIOUS = "there is no earlier snapshot"
NOT_RECORDED = "it was not recorded after this epoch"


def trajectories(study: Study) -> tuple[Trajectory, ...]:
    """Find the runs of which a study holds two snapshots or more."""
    groups: dict[str, list[StudyCheckpoint]] = {}
    for entry in study.question.checkpoints:
        if not entry.role and entry.epoch is not None:
            groups.setdefault(_run_key(entry), []).append(entry)
    found = []
    for entries in groups.values():
        ordered = sorted(entries, key=lambda entry: entry.epoch or 0)
        epochs = tuple(entry.epoch or 0 for entry in ordered)
        if len(epochs) > 1 and len(set(epochs)) == len(epochs):
            title = f"{ordered[-1].rule}, seed {ordered[-1].seed}"
            found.append(Trajectory(title, tuple(entry.name for entry in ordered), epochs))
    return tuple(found)


def _run_key(entry: StudyCheckpoint) -> str:
    """What the snapshots of one run have in common."""
    options = sorted(entry.rule_options.items())
    return repr((entry.architecture, entry.rule, options, entry.dataset, entry.seed))


def dynamics_maps(study: Study) -> tuple[DynamicsMap, ...]:
    """Cut all epoch x layer maps out of a study of snapshots.

    Args:
        study: of the snapshots of one or more runs.

    Returns:
        for each run: CKA with its own end and with every other run's end, accuracy of the probes,
        and each measure of geometry, as far as the study has them.
    """
    found = trajectories(study)
    return tuple(part for trajectory in found for part in _maps_of(study, trajectory, found))


def _maps_of(
    study: Study, trajectory: Trajectory, every: tuple[Trajectory, ...]
) -> Iterator[DynamicsMap]:
    """All maps of one run."""
    if study.cka is not None:
        others = [other for other in every if other is not trajectory]
        for target in (trajectory, *others):
            yield _cka_map(study, trajectory, target, own=target is trajectory)
    if study.probes:
        layers = study.probe(trajectory.names[-1]).layers
        yield _stacked(
            "probe",
            "accuracy of a linear probe",
            trajectory,
            layers,
            lambda name: tuple(getattr(study.probe(name), part) for part in PROBE_PARTS),
        )
    by_model = {result.model: result for result in study.geometry}
    if set(trajectory.names) <= set(by_model):
        for measure in by_model[trajectory.names[-1]].measures:
            yield _stacked(
                measure,
                GEOMETRY_MEASURES[measure].title,
                trajectory,
                by_model[trajectory.names[-1]].layers,
                lambda name, measure=measure: tuple(  # type: ignore[misc]
                    getattr(by_model[name], part)[measure] for part in GEOMETRY_PARTS
                ),
            )


PROBE_PARTS = ("accuracy", "low", "high")
GEOMETRY_PARTS = ("values", "low", "high")


def cka_development(
    study: Study, trajectory: Trajectory, reference: str | Trajectory = "end"
) -> DynamicsMap:
    """Compare every snapshot's layers with those of another moment, or of another run's end.

    Args:
        study: with CKA of the snapshots.
        trajectory: of `trajectories(study)`.
        reference: of `REFERENCES`, or another run of the study, of which the end is taken.

    Returns:
        the map; its row of the first snapshot is undefined for "previous".

    Raises:
        ValueError: the study has no CKA, or there is no such reference.
    """
    if study.cka is None:
        raise ValueError("this study has no CKA; make it again with --measures cka")
    if isinstance(reference, Trajectory):
        return _cka_map(study, trajectory, reference, own=False)
    if reference not in REFERENCES:
        raise ValueError(f"there is no {reference!r}; choose one of {', '.join(REFERENCES)}")
    names = trajectory.names
    targets: dict[str, str | None] = dict.fromkeys(names, names[-1])
    if reference == "start":
        targets = dict.fromkeys(names, names[0])
    if reference == "previous":
        targets = dict(zip(names, (None, *names[:-1]), strict=True))
    part = _cka_to(study, trajectory, targets, REFERENCES[reference], reference)
    if reference == "previous":
        part.undefined.update({(0, column): NO_PREVIOUS for column in range(len(part.layers))})
    return part


def _cka_map(study: Study, trajectory: Trajectory, target: Trajectory, *, own: bool) -> DynamicsMap:
    """CKA of every snapshot's layers with those of a run's end at the same depth."""
    end = target.names[-1]
    title = "CKA with its own end" if own else f"CKA with the end of {target.title}"
    return _cka_to(study, trajectory, dict.fromkeys(trajectory.names, end), title, end)


def _cka_to(
    study: Study,
    trajectory: Trajectory,
    targets: Mapping[str, str | None],
    title: str,
    against: str,
) -> DynamicsMap:
    """CKA of every snapshot's layers with those of its target at the same depth."""
    assert study.cka is not None
    cka = study.cka
    layers = dict(zip(cka.models, cka.layers, strict=True))[trajectory.names[-1]]
    undefined: dict[tuple[int, int], str] = {}

    def same_depth(name: str) -> tuple[FloatArray, ...]:
        target = targets[name]
        if target is None:
            return (np.full(len(layers), math.nan),) * 3
        pair = cka.pair(name, target)
        rows, columns = np.arange(len(pair.rows)), pair.same_depth()
        for row, column in zip(rows.tolist(), columns.tolist(), strict=True):
            reason = pair.reason(row, column)
            if reason and not math.isfinite(pair.values[row, column]):
                undefined[trajectory.names.index(name), row] = reason
        return tuple(part[rows, columns] for part in (pair.values, pair.low, pair.high))

    part = _stacked("cka", title, trajectory, layers, same_depth, against=against)
    return replace(part, undefined=undefined)


def recorded_map(
    lines: Sequence[Mapping[str, Any]], record: str, title: str, layers: Sequence[str] = ()
) -> DynamicsMap | None:
    """Lay out what a run wrote down after its epochs.

    Args:
        lines: of metrics.jsonl, first epoch to last.
        record: of `RECORDS`.
        title: of the run.
        layers: their order; by default, that in which the lines name them.

    Returns:
        a map without intervals over the epochs that have the record; None where none has.
    """
    found = [line for line in lines if line.get(record)]
    if not found:
        return None
    names = tuple(layers) or tuple(dict.fromkeys(name for line in found for name in line[record]))
    values = np.array([[_number(line[record].get(name)) for name in names] for line in found])
    nothing = np.full_like(values, math.nan)
    gaps = [(int(row), int(column)) for row, column in np.argwhere(~np.isfinite(values))]
    trajectory = Trajectory(title, (), tuple(int(line["epoch"]) for line in found))
    undefined = dict.fromkeys(gaps, NOT_RECORDED)
    return DynamicsMap(
        record, RECORDS[record], trajectory, None, names, values, nothing, nothing, undefined
    )


def _number(value: Any) -> float:
    """A number of a record; NaN where there is none."""
    return float(value) if isinstance(value, int | float) else math.nan


def _stacked(
    measure: str,
    title: str,
    trajectory: Trajectory,
    layers: tuple[str, ...],
    read: Callable[[str], tuple[FloatArray, ...]],
    against: str | None = None,
) -> DynamicsMap:
    """Put the snapshots' (value, low, high) of every layer on each other."""
    values, low, high = (np.stack(rows) for rows in zip(*map(read, trajectory.names), strict=True))
    return DynamicsMap(measure, title, trajectory, against, layers, values, low, high)
