"""Mutual nearest neighbours against brute force and the level of chance."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.distance import cdist

from analysis.neighbours import MutualNeighbours
from analysis.similarity import similarity


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def brute_force(x, y, num_neighbours, metric):
    """Sort all others by distance, image by image, and intersect sets."""
    shared = 0
    for image in range(len(x)):
        nearest = []
        for features in (x, y):
            distances = cdist(features[image : image + 1], features, metric)[0]
            others = [other for other in range(len(x)) if other != image]
            nearest.append(set(sorted(others, key=distances.__getitem__)[:num_neighbours]))
        shared += len(nearest[0] & nearest[1])
    return shared / num_neighbours / len(x)


@pytest.mark.parametrize("dissimilarity", ["cosine", "euclidean"])
@pytest.mark.parametrize("num_neighbours", [1, 5])
def test_overlap_agrees_with_brute_force(rng, dissimilarity, num_neighbours):
    x = rng.normal(size=(50, 6)) + 1
    y = x @ rng.normal(size=(6, 9)) + rng.normal(size=(50, 9))
    expected = brute_force(x, y, num_neighbours, dissimilarity)
    assert 0.1 < expected < 0.9
    found = similarity(x, y, MutualNeighbours(num_neighbours, dissimilarity))
    assert found == pytest.approx(expected, abs=1e-12)


def test_unrelated_features_share_k_in_n_minus_one(rng):
    measure = MutualNeighbours(num_neighbours=6)
    draws = [
        similarity(rng.normal(size=(31, 5)), rng.normal(size=(31, 5)), measure) for _ in range(200)
    ]
    prepared = measure.prepare(rng.normal(size=(31, 5)))
    assert measure.chance(prepared, prepared) == pytest.approx(6 / 30)
    assert np.mean(draws) == pytest.approx(6 / 30, abs=4 * np.std(draws) / np.sqrt(200))
    assert np.std(draws) < 0.1


def test_four_images_on_a_line_by_hand():
    # Nearest of 0, 1, 3, 4 are 1, 0, 4, 3; of 0, 1, 1.9, 9 they are 1, 1.9, 1, 1.9.
    x, y = np.array([[0], [1], [3], [4.0]]), np.array([[0], [1], [1.9], [9.0]])
    assert similarity(x, y, MutualNeighbours(1, "euclidean")) == pytest.approx(2 / 4)


def test_ties_share_the_places_that_are_left(rng):
    # Seven images in one spot and one apart: each of the seven has six equal nearest ones.
    tied = np.zeros((8, 1))
    tied[7] = 1
    measure = MutualNeighbours(2, "euclidean")
    members = measure.prepare(tied).members
    np.testing.assert_allclose(members.sum(axis=1), 2)
    np.testing.assert_allclose(members[0], [0, *[1 / 3] * 6, 0])
    np.testing.assert_allclose(members[7], [*[2 / 7] * 7, 0])
    # Against random neighbours such ties are worth what chance is, not what their order says.
    draws = [similarity(tied, rng.normal(size=(8, 2)), measure) for _ in range(300)]
    assert np.mean(draws) == pytest.approx(2 / 7, abs=0.03)


@pytest.mark.parametrize("dissimilarity", ["cosine", "euclidean"])
def test_stated_invariances_hold(rng, dissimilarity):
    x, y = rng.normal(size=(2, 60, 8)) + 0.3
    y += x
    measure = MutualNeighbours(5, dissimilarity)
    rotation = np.linalg.qr(rng.normal(size=(8, 8)))[0]
    scales = rng.uniform(0.5, 2, size=(60, 1))
    moved = {"cosine": scales * x @ rotation, "euclidean": 3 * x @ rotation + 50}[dissimilarity]
    assert similarity(moved, y, measure) == pytest.approx(similarity(x, y, measure), abs=1e-12)
    assert similarity(moved, x, measure) == pytest.approx(1, abs=1e-12)
    assert similarity(x, y, measure) == similarity(y, x, measure)
    assert similarity(x * [20, *[1] * 7], x, measure) < 0.8


def test_more_noise_leaves_fewer_neighbours_in_common(rng):
    x, noise = rng.normal(size=(150, 5)), rng.normal(size=(150, 5))
    values = [similarity(x, x + level * noise, MutualNeighbours()) for level in (0, 0.05, 0.3, 1)]
    assert values == sorted(values, reverse=True)
    assert values[0] == pytest.approx(1)
    assert values[-1] < 0.5


def test_too_few_images_for_the_neighbours_say_so(rng):
    x = rng.normal(size=(11, 4))
    with pytest.raises(ValueError, match="it needs at least 12 images, and there are 11"):
        similarity(x, x, MutualNeighbours(10))
    whole = MutualNeighbours(9).prepare(x)
    with pytest.raises(ValueError, match="9 neighbours need at least 11 images, and there are 8"):
        MutualNeighbours(9).restrict(whole, np.arange(8))


def test_images_all_equally_far_apart_have_no_neighbours():
    with pytest.raises(ValueError, match="all its pairs of images are equally dissimilar"):
        similarity(np.eye(9) / 3, np.eye(9), MutualNeighbours(2, "euclidean"))


def test_an_image_without_any_activity_has_no_cosine(rng):
    x = rng.normal(size=(20, 4))
    x[[3, 5]] = 0
    with pytest.raises(ValueError, match="all features of 2 images are zero"):
        similarity(x, x, MutualNeighbours(3))
    assert similarity(x, x, MutualNeighbours(3, "euclidean")) == pytest.approx(1, abs=0.1)


def test_unknown_choices_are_refused():
    with pytest.raises(ValueError, match="the number of neighbours must be at least 1"):
        MutualNeighbours(0)
    with pytest.raises(ValueError, match="dissimilarity must be one of correlation, cosine"):
        MutualNeighbours(3, "manhattan")
