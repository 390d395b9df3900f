"""Words and tables about geometry."""

from __future__ import annotations

import csv
import io

import numpy as np
import pytest

from analysis.geometry import measure_geometry
from analysis.geometry_measures import GEOMETRY_MEASURES
from app import texts_geometry


def test_every_measure_is_in_one_group():
    grouped = [measure for group in texts_geometry.GROUPS.values() for measure in group]
    assert sorted(grouped) == sorted(GEOMETRY_MEASURES)


def test_a_definition_says_what_higher_means_and_where_it_comes_from():
    text = texts_geometry.definition("participation_ratio")
    assert "squared sum of the covariance's eigenvalues" in text
    assert "Higher: variance spread over more directions." in text
    assert text.endswith("Source: Gao et al. 2017.")


@pytest.mark.parametrize("places", [[], [0], [3, 4, 5], [9, 1, 7, 2], list(range(100))])
def test_lists_of_images_are_read_as_they_were_written(places):
    text = texts_geometry.written_images(places)
    assert texts_geometry.parse_images(text, 100) == (sorted(places), "")


def test_runs_are_shortened():
    assert texts_geometry.written_images([5, 3, 4, 17, 3]) == "3-5, 17"


def test_images_come_in_the_order_typed_and_once():
    assert texts_geometry.parse_images("7, 2-4,3 , ", 10) == ([7, 2, 3, 4], "")


@pytest.mark.parametrize("text", ["cat", "3;4", "-1", "1-2-3", "1e3", "9" * 50])
def test_what_is_no_list_is_told(text):
    places, problem = texts_geometry.parse_images(f"1, {text}", 10)
    assert places == [1]
    assert "is no number; type numbers such as 3, 17, 40-60." in problem


@pytest.mark.parametrize("text", ["10", "4-10", "5-4", "1-9999999"])
def test_images_that_are_not_there_are_told(text):
    places, problem = texts_geometry.parse_images(text, 10)
    assert (places, problem) == ([], f"“{text}” is not within 0 to 9.")


def result():
    generator = np.random.default_rng(0)
    features = {"first": generator.normal(size=(60, 4)), "dead": np.ones((60, 4))}
    return measure_geometry(features, np.arange(60) % 3, model="net", groups=10)


def test_measures_as_a_table_keep_reasons():
    rows = list(csv.DictReader(io.StringIO(texts_geometry.measures_csv([result()]))))
    assert len(rows) == 2 * len(GEOMETRY_MEASURES)
    by_key = {(row["layer"], row["measure"]): row for row in rows}
    expected = result().values["participation_ratio"][0]
    assert float(by_key["first", "participation_ratio"]["value"]) == expected
    assert by_key["dead", "participation_ratio"]["value"] == ""
    assert by_key["dead", "participation_ratio"]["note"]
    shown = texts_geometry.measure_rows([result()])
    assert shown[1]["Participation ratio"].startswith("undefined: ")
    assert shown[0]["Participation ratio"].startswith(f"{expected:.4g} (")


def test_points_as_a_table_hold_places_and_classes():
    points = np.arange(12.0).reshape(4, 3)
    text = texts_geometry.points_csv(
        points, np.array([0, 1, 0, 1]), ("ant", "bee"), np.array([40, 41, 42, 43]), [2, 3]
    )
    rows = list(csv.DictReader(io.StringIO(text)))
    assert rows[0] == {
        **{"image": "2", "number_in_split": "42", "class": "ant"},
        **{"x": "6.0", "y": "7.0", "z": "8.0"},
    }
    assert len(rows) == 2
