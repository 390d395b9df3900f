"""One interface over CKA and the other measures."""

from __future__ import annotations

import csv
import io
from dataclasses import replace

import numpy as np
import pytest

from analysis.predictivity import LinearPredictivity
from analysis.procrustes import Procrustes
from analysis.similarity import similarity_map
from analysis.study import PairSimilarity
from app import pairs
from app.sources import studies

A, B = "a" * 64, "b" * 64


@pytest.fixture
def study(make_study):
    """A study with CKA and two measures of three layers and two."""
    generator = np.random.default_rng(0)
    first = {name: generator.normal(size=(40, 4)) for name in ("one", "two", "three")}
    second = {name: generator.normal(size=(40, 4)) for name in ("one", "two")}
    second["two"] = np.ones((40, 4))
    results = [
        similarity_map(first, second, measure) for measure in (Procrustes(), LinearPredictivity())
    ]
    found = tuple(PairSimilarity("bp-net", "auglocal-net", result) for result in results)
    return replace(make_study(), similarity=found)


def test_a_symmetric_measure_is_found_in_either_order_with_its_reasons(study):
    pair = pairs.find_pair(study, "procrustes", A, B)
    turned = pairs.find_pair(study, "procrustes", B, A)
    np.testing.assert_array_equal(turned.result.values, pair.result.values.T)
    assert turned.rows == pair.columns
    assert turned.result.reason(1, 0) == pair.result.reason(0, 1) is not None
    assert turned.labels == pair.labels[::-1]


def test_a_measure_that_is_not_symmetric_is_not_turned(study):
    assert pairs.find_pair(study, "predictivity", A, B) is not None
    assert pairs.find_pair(study, "predictivity", B, A) is None
    assert studies.holds(study, [A, B], "predictivity")
    assert not studies.holds(study, [B, A], "predictivity")
    assert not studies.holds(study, [A], "predictivity")
    orders = [
        studies.Request("predictivity", order, "digits", 40, 0, 8) for order in ((A, B), (B, A))
    ]
    assert orders[0].key != orders[1].key
    orders = [replace(request, measure="cka") for request in orders]
    assert orders[0].key == orders[1].key


@pytest.mark.parametrize("measure", ["cka", "procrustes"])
def test_tables_hold_every_cell_and_every_layer(study, measure):
    pair = pairs.find_pair(study, measure, A, B)
    cells = list(csv.DictReader(io.StringIO(pairs.map_csv(pair))))
    assert len(cells) == len(pair.rows) * len(pair.columns)
    value = float(pair.result.values[0, 0])
    assert float(cells[0][measure]) == value
    curves = list(csv.DictReader(io.StringIO(pairs.curve_csv(pair, {}))))
    assert len(curves) == 2 * len(pair.rows)
    assert {row["match"] for row in curves} == {"same depth", "best match"}


def test_an_undefined_cell_says_why(study):
    pair = pairs.find_pair(study, "procrustes", A, B)
    assert pairs.cell_parts(pair, (0, 1))["Procrustes"] == "undefined"
    assert pairs.cell_note(pair, (0, 1)).startswith("Undefined: ")
    assert "Without intervals" in pairs.cell_note(pair, (0, 0))
    assert "lower is more alike" in pairs.caption(pair)


def test_a_part_is_no_answer(study, save):
    request = studies.Request("cka", (A, B), "digits", 1000, 0, 125)
    part = replace(study, provenance=replace(study.provenance, stopped="stopped after 1 batch"))
    for path in (
        studies.result_path(request).with_name("x.study.json"),
        studies.stopped_path(request),
    ):
        path.parent.mkdir(parents=True, exist_ok=True)
        save(part, path)
    assert studies.find_study(request) is None
    assert studies.find_stopped(request).provenance.stopped == "stopped after 1 batch"
