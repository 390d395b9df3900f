"""Layers along training: a study of a run's snapshots in, epoch x layer maps out.

Snapshots belong together where a study says the same of them but for the epoch. The maps are cut
out of the study's own answers, so they carry its intervals and reasons.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

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
    "probe" or a name of geometry; for CKA `against` names the network that each layer is compared
    with, at the same place or the nearest relative depth.
    """

    measure: str
    title: str
    trajectory: Trajectory
    against: str | None
    layers: tuple[str, ...]
    values: FloatArray
    low: FloatArray
    high: FloatArray


def trajectories(study: Study) -> tuple[Trajectory, ...]:
    """Find the runs of which a study holds two snapshots or more."""
    groups: dict[str, list[StudyCheckpoint]] = {}
    for entry in study.question.checkpoints:
        if not entry.role:
            groups.setdefault(_run_key(entry), []).append(entry)
    found = []
    for entries in groups.values():
        ordered = sorted(entries, key=lambda entry: entry.epoch)
        epochs = tuple(entry.epoch for entry in ordered)
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


def _cka_map(study: Study, trajectory: Trajectory, target: Trajectory, *, own: bool) -> DynamicsMap:
    """CKA of every snapshot's layers with those of a run's end at the same depth."""
    assert study.cka is not None
    cka, end = study.cka, target.names[-1]

    def same_depth(name: str) -> tuple[FloatArray, ...]:
        pair = cka.pair(name, end)
        rows, columns = np.arange(len(pair.rows)), pair.same_depth()
        return tuple(part[rows, columns] for part in (pair.values, pair.low, pair.high))

    layers = dict(zip(cka.models, cka.layers, strict=True))[trajectory.names[-1]]
    title = "CKA with its own end" if own else f"CKA with the end of {target.title}"
    return _stacked("cka", title, trajectory, layers, same_depth, against=end)


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
