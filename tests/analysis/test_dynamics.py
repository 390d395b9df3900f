"""Layers along training: the maps are those of the study's own answers."""

from __future__ import annotations

import math

import numpy as np
import pytest

from analysis.cka import CKAResult
from analysis.dynamics import (
    NO_PREVIOUS,
    NOT_RECORDED,
    cka_development,
    dynamics_maps,
    recorded_map,
    trajectories,
)
from analysis.study import Study, StudyCheckpoint, StudyProvenance, StudyQuestion

LAYERS = ("stem", "stage1_block1", "stage1_block2")
RUNS = (("bp", (0, 1, 4)), ("auglocal", (0, 2)))


def make(cka: bool = True) -> Study:
    """Two runs; CKA of layers i and j of snapshots a and b is random, and known."""
    names = [(rule, epoch) for rule, epochs in RUNS for epoch in epochs]
    size = len(LAYERS) * len(names)
    values = np.random.default_rng(0).uniform(size=(size, size))
    values = (values + values.T) / 2
    # The stem of AugLocal's start has no value.
    gap = 3 * len(LAYERS)
    values[gap] = values[:, gap] = math.nan
    result = CKAResult(
        models=tuple(f"{rule}-{epoch}" for rule, epoch in names),
        layers=(LAYERS,) * len(names),
        values=values,
        standard_errors=values / 10,
        low=values - 0.1,
        high=values + 0.1,
        undefined={"auglocal-0/stem": "it is constant"},
        samples=100,
        batch_sizes=(50, 50),
        interval_note=None,
    )
    checkpoints = tuple(
        StudyCheckpoint(
            name=f"{rule}-{epoch}",
            sha256=f"{index:064d}",
            architecture="resnet20",
            rule=rule,
            rule_options={},
            dataset="digits",
            accuracy=None,
            epoch=epoch,
            seed=0,
        )
        for index, (rule, epoch) in enumerate(names)
    )
    question = StudyQuestion(
        checkpoints, "digits", "digits", "test", 100, 0, 50, None, "c" * 64, None, None
    )
    return Study("t", question, result if cka else None, (), StudyProvenance({}, "cpu", 1, "", ""))


def value(study: Study, one: str, other: str, layer: str) -> float:
    """A similarity, straight from the matrix."""
    cka = study.cka
    rows = [(model, name) for model, names in zip(cka.models, cka.layers) for name in names]
    return cka.values[rows.index((one, layer)), rows.index((other, layer))]


@pytest.mark.parametrize(
    ("reference", "targets"),
    [
        ("end", ("bp-4", "bp-4", "bp-4")),
        ("start", ("bp-0", "bp-0", "bp-0")),
        ("previous", (None, "bp-0", "bp-1")),
    ],
)
def test_each_snapshot_meets_its_reference(reference, targets):
    study = make()
    part = cka_development(study, trajectories(study)[0], reference)
    for row, (name, target) in enumerate(zip(("bp-0", "bp-1", "bp-4"), targets, strict=True)):
        for column, layer in enumerate(LAYERS):
            expected = math.nan if target is None else value(study, name, target, layer)
            np.testing.assert_equal(part.values[row, column], expected)
    assert part.undefined == (
        {(0, column): NO_PREVIOUS for column in range(3)} if reference == "previous" else {}
    )
    np.testing.assert_allclose(part.high - part.low, 0.2 + 0 * part.values, equal_nan=True)


def test_another_runs_end_is_a_reference_and_gaps_keep_their_reasons():
    study = make()
    bp, local = trajectories(study)
    part = cka_development(study, local, bp)
    assert part.against == "bp-4"
    for row, name in enumerate(("auglocal-0", "auglocal-2")):
        for column, layer in enumerate(LAYERS):
            np.testing.assert_equal(part.values[row, column], value(study, name, "bp-4", layer))
    assert list(part.undefined) == [(0, 0)]
    assert "it is constant" in part.undefined[0, 0]


def test_own_ends_are_the_maps_that_the_command_prints():
    study = make()
    for trajectory in trajectories(study):
        ours = cka_development(study, trajectory, "end")
        theirs = next(
            part
            for part in dynamics_maps(study)
            if part.trajectory.names == trajectory.names and part.against == trajectory.names[-1]
        )
        np.testing.assert_array_equal(ours.values, theirs.values)


def test_what_cannot_be_compared_is_refused():
    study = make()
    with pytest.raises(ValueError, match="no 'middle'; choose one of end, start, previous"):
        cka_development(study, trajectories(study)[0], "middle")
    with pytest.raises(ValueError, match="has no CKA"):
        cka_development(make(cka=False), trajectories(study)[0])


def test_records_are_laid_out_by_epoch_and_layer():
    lines = [
        {"epoch": 1, "losses": {"a": 2.0, "head": 1.0}},
        {"epoch": 2},
        {"epoch": 3, "losses": {"a": 1.5, "head": "damaged"}},
    ]
    part = recorded_map(lines, "losses", "mine")
    assert part.trajectory.epochs == (1, 3)
    assert part.layers == ("a", "head")
    np.testing.assert_array_equal(part.values, [[2.0, 1.0], [1.5, math.nan]])
    assert part.undefined == {(1, 1): NOT_RECORDED}
    assert recorded_map(lines, "accuracies", "mine") is None
    assert recorded_map(lines, "losses", "mine", ("head",)).values.tolist()[0] == [1.0]
