"""The plane of layers: known points come back, and what does not fit is told."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from analysis.plane import cka_distances, classical_scaling, plane_of_layers
from tests.analysis.full_study import DEAD, full_study


def distances_of(points):
    return np.linalg.norm(points[:, None] - points[None], axis=-1)


@pytest.mark.parametrize("seed", range(5))
def test_points_on_a_plane_come_back_up_to_shift_rotation_and_reflection(seed):
    points = np.random.default_rng(seed).normal(size=(12, 2)) * (3, 1)
    scaling = classical_scaling(distances_of(points))
    np.testing.assert_allclose(distances_of(scaling.points), distances_of(points), atol=1e-9)
    assert scaling.explained.sum() == pytest.approx(1)
    assert scaling.stress == pytest.approx(0, abs=1e-9)
    np.testing.assert_allclose(scaling.points.mean(axis=0), 0, atol=1e-12)


def test_of_more_dimensions_the_widest_two_are_kept():
    """Against principal components by singular values, a second way to the same axes."""
    points = np.random.default_rng(0).normal(size=(40, 5)) * (5, 3, 1, 0.5, 0.1)
    scaling = classical_scaling(distances_of(points))
    centred = points - points.mean(axis=0)
    sizes = np.linalg.svd(centred, compute_uv=False)
    np.testing.assert_allclose((scaling.points**2).sum(axis=0), sizes[:2] ** 2)
    np.testing.assert_allclose(scaling.explained, sizes[:2] ** 2 / (sizes**2).sum())
    lost = distances_of(points) - distances_of(scaling.points)
    expected = math.sqrt((lost**2).sum() / (distances_of(points) ** 2).sum())
    assert scaling.stress == pytest.approx(expected)
    assert scaling.stress > 0.01


def test_distances_that_no_points_have_lower_the_explained_share():
    corners = np.array([[0, 1, 1, 2.0], [1, 0, 2, 1], [1, 2, 0, 1], [2, 1, 1, 0]])
    scaling = classical_scaling(corners)  # a circle of four: the way round, not across
    assert scaling.explained.sum() < 1
    assert scaling.stress > 0


def test_the_orientation_does_not_depend_on_the_solver():
    points = np.random.default_rng(1).normal(size=(6, 2))
    assert (classical_scaling(distances_of(points)).points[0] <= 0).all()


def test_points_all_in_one_place_explain_nothing():
    scaling = classical_scaling(np.zeros((4, 4)))
    assert not scaling.points.any()
    assert not scaling.explained.any()
    assert scaling.stress == 0


def test_the_distance_is_that_of_normalised_grams():
    rng = np.random.default_rng(0)
    grams = rng.normal(size=(5, 30))
    unit = grams / np.linalg.norm(grams, axis=1)[:, None]
    np.testing.assert_allclose(cka_distances(unit @ unit.T), distances_of(unit), atol=1e-7)
    assert cka_distances(np.array([[1 + 1e-12]]))[0, 0] == 0


@pytest.mark.parametrize(
    ("distances", "words"),
    [
        (np.zeros((2, 2)), "3 points or more, but there are 2"),
        (np.zeros((3, 2)), r"shape \(L, L\), but these have \(3, 2\)"),
        (np.full((3, 3), math.nan), "finite and symmetric; leave out undefined layers"),
        (np.triu(np.ones((3, 3))), "finite and symmetric"),
    ],
)
def test_what_are_no_distances_is_refused(distances, words):
    with pytest.raises(ValueError, match=words):
        classical_scaling(distances)


def test_layers_keep_their_names_and_an_undefined_one_is_left_out_with_its_reason():
    cka = full_study().cka
    plane = plane_of_layers(cka)
    assert len(plane.points) == 39
    assert (plane.owners[0], plane.layers[0]) == ("bp-0", "stem")
    assert ("untrained", DEAD) not in zip(plane.owners, plane.layers, strict=True)
    assert list(plane.left_out) == [f"untrained/{DEAD}"]
    assert "same for every image" in plane.left_out[f"untrained/{DEAD}"]


def test_a_single_undefined_pair_costs_one_layer():
    cka = full_study().cka
    values = np.eye(40)
    values[3, 7] = values[7, 3] = math.nan
    plane = plane_of_layers(replace(cka, values=values, undefined={}))
    assert len(plane.left_out) == 1
    assert "another layer is undefined" in next(iter(plane.left_out.values()))


def test_without_values_there_is_no_plane():
    cka = full_study().cka
    assert plane_of_layers(replace(cka, values=np.full((40, 40), math.nan))) is None
