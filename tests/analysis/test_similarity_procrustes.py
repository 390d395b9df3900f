"""Procrustes against scipy's solutions and closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.linalg
import scipy.spatial

from analysis.procrustes import Procrustes
from analysis.similarity import similarity


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def related(rng):
    x = rng.normal(size=(80, 12))
    return x, x[:, :9] @ rng.normal(size=(9, 12)) + rng.normal(size=(80, 12))


def unit(x):
    x = x - x.mean(axis=0)
    return x / np.linalg.norm(x)


def test_distance_is_what_the_best_rotation_of_scipy_leaves(related):
    x, y = map(unit, related)
    rotation, _ = scipy.linalg.orthogonal_procrustes(y, x)
    expected = np.linalg.norm(x - y @ rotation) ** 2
    assert similarity(*related, Procrustes()) == pytest.approx(expected, abs=1e-12)


def test_similarity_agrees_with_scipys_disparity(related):
    # scipy also scales the rotated one, which leaves 1 - s^2 of its size.
    disparity = scipy.spatial.procrustes(*related)[2]
    found = similarity(*related, Procrustes("similarity"))
    assert found == pytest.approx(math.sqrt(1 - disparity), abs=1e-12)


def test_the_three_forms_tell_one_number(related):
    s = similarity(*related, Procrustes("similarity"))
    assert similarity(*related, Procrustes("distance")) == pytest.approx(2 - 2 * s)
    assert math.cos(similarity(*related, Procrustes("angle"))) == pytest.approx(s)


def test_two_features_at_a_right_angle_are_as_far_apart_as_can_be():
    x, y = [[1.0], [-1.0], [0.0], [0.0]], [[0.0], [0.0], [1.0], [-1.0]]
    for form, expected in (("distance", 2), ("angle", math.pi / 2), ("similarity", 0)):
        measure = Procrustes(form)
        assert similarity(x, y, measure) == pytest.approx(expected, abs=1e-12)
        assert expected in [pytest.approx(end) for end in measure.range]


@pytest.mark.parametrize("form", ["distance", "similarity"])
@pytest.mark.parametrize("width", [12, 100])
def test_shift_rotation_and_scaling_change_nothing(related, rng, form, width):
    x, y = related
    measure = Procrustes(form)
    rotation = np.linalg.qr(rng.normal(size=(width, width)))[0][:12]
    moved = -7 * x @ rotation + 4
    assert similarity(moved, y, measure) == pytest.approx(similarity(x, y, measure), abs=1e-10)
    itself = {"distance": 0, "similarity": 1}[form]
    assert similarity(moved, x, measure) == pytest.approx(itself, abs=1e-10)
    assert similarity(x * [9, *[1] * 11], x, measure) != pytest.approx(itself, abs=0.1)


def test_angle_obeys_the_triangle_inequality(rng):
    measure = Procrustes("angle")
    for _ in range(30):
        shared = rng.normal(size=(15, 4))
        x, y, z = (shared + rng.normal(size=(15, 4)) for _ in range(3))
        direct = similarity(x, z, measure)
        assert direct <= similarity(x, y, measure) + similarity(y, z, measure) + 1e-12


def test_more_noise_takes_layers_further_apart(rng):
    x, noise = rng.normal(size=(200, 5)), rng.normal(size=(200, 5))
    distances = [similarity(x, x + level * noise, Procrustes()) for level in (0, 0.1, 0.5, 1, 3)]
    assert distances == sorted(distances)
    assert distances[0] == pytest.approx(0, abs=1e-12)
    assert distances[-1] > 1


@pytest.mark.parametrize("spectrum", [np.ones(30), np.arange(1.0, 31) ** -1])
def test_chance_bounds_what_shuffled_images_score(rng, spectrum):
    measure = Procrustes("similarity")
    a, b = (measure.prepare(rng.normal(size=(100, 30)) * spectrum) for _ in range(2))
    draws = [measure.compare(a, measure.restrict(b, rng.permutation(100))) for _ in range(20)]
    assert 0.5 * measure.chance(a, b) < np.mean(draws) < measure.chance(a, b)


def test_an_unknown_form_is_refused():
    with pytest.raises(ValueError, match="form must be one of distance, angle, similarity"):
        Procrustes("squared")
