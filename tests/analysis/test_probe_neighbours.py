"""Nearest-neighbour probes against scikit-learn and by hand."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from analysis import probe_neighbours
from analysis.probe_neighbours import knn_probe


def make_data(classes=4, samples=400, width=6, seed=0):
    """Overlapping classes: features (N, D) and labels, the first three quarters to train."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, samples)
    features = rng.normal(size=(classes, width))[labels] + rng.normal(size=(samples, width))
    features = features * rng.uniform(0.01, 100, width) + 5
    cut = 3 * samples // 4
    return features[:cut], labels[:cut], features[cut:], labels[cut:]


@pytest.mark.parametrize("neighbours", [1, 5, 20, 300])
@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_votes_are_scikit_learns(metric, neighbours):
    train, train_labels, test, test_labels = make_data()
    reference = make_pipeline(
        StandardScaler(), KNeighborsClassifier(neighbours, metric=metric, algorithm="brute")
    ).fit(train, train_labels)
    probe = knn_probe(train, train_labels, test, test_labels, neighbours=neighbours, metric=metric)
    expected = reference.predict_proba(test) * neighbours
    np.testing.assert_allclose(probe.votes, expected, atol=1e-9)
    np.testing.assert_array_equal(probe.scores.predictions, reference.predict(test))
    assert probe.scores.accuracy == reference.score(test, test_labels)


def test_probabilities_are_the_mean_after_a_uniform_prior():
    probe = knn_probe(*make_data(), num_classes=6)
    np.testing.assert_allclose(np.exp(probe.log_probabilities), (probe.votes + 1) / 26)
    np.testing.assert_allclose(np.exp(probe.log_probabilities).sum(axis=1), 1)
    np.testing.assert_array_equal(probe.votes.argmax(axis=1), probe.scores.predictions)
    assert probe.neighbours == 20
    assert probe.votes.shape == (100, 6)


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_an_image_is_its_own_nearest_neighbour(metric):
    train, train_labels, _, _ = make_data()
    probe = knn_probe(train, train_labels, train, train_labels, neighbours=1, metric=metric)
    assert probe.scores.accuracy == 1


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_chunks_change_nothing(metric, monkeypatch):
    whole = knn_probe(*make_data(), metric=metric)
    monkeypatch.setattr(probe_neighbours, "DISTANCES_AT_ONCE", 7 * 300)
    np.testing.assert_array_equal(knn_probe(*make_data(), metric=metric).votes, whole.votes)


def test_cosine_ignores_the_length_of_an_image():
    train = np.array([[1.0, 0], [-1, 0], [0, 9], [0, -9]])  # standardised: root 2 along each axis
    for size in (1e-3, 1, 1e3):  # 20 and 150 / 9 deviations, so nearest to the first
        probe = knn_probe(
            train, np.arange(4), np.array([[20.0, 150]]) * size, np.array([0]), neighbours=1
        )
        assert probe.scores.predictions.tolist() == [0]


@pytest.mark.parametrize(("metric", "nearest"), [("cosine", 4), ("euclidean", 3)])
def test_cosine_compares_directions_and_euclidean_positions(metric, nearest):
    train = np.array([[-1.0, -1], [-1, 1], [1, -1], [0.1, 0.2], [0.9, 0.9]])
    probe = knn_probe(
        train, np.arange(5), np.array([[0.3, 0.3]]), np.array([3]), neighbours=1, metric=metric
    )
    assert probe.scores.predictions.tolist() == [nearest]


def test_scale_and_offset_of_each_feature_change_nothing():
    train, train_labels, test, test_labels = make_data()
    scale, offset = np.geomspace(1e-3, 1e3, 6), np.linspace(-50, 50, 6)
    moved = knn_probe(train * scale + offset, train_labels, test * scale + offset, test_labels)
    np.testing.assert_array_equal(moved.votes, knn_probe(*make_data()).votes)


def test_equally_near_images_are_taken_in_order():
    train = np.array([[0.0], [1], [1], [1], [5]])
    probe = knn_probe(
        train,
        np.array([0, 1, 2, 2, 0]),
        train[1:2],
        np.array([1]),
        neighbours=2,
        metric="euclidean",
    )
    assert probe.votes.tolist() == [[0, 1, 1]]
    assert probe.scores.predictions.tolist() == [1]  # equal votes: the first class


def test_constant_features_still_count_votes():
    labels = np.array([2, 0, 1])
    probe = knn_probe(np.ones((3, 2)), labels, np.ones((2, 2)), np.array([2, 0]), neighbours=1)
    assert probe.votes.tolist() == [[0, 0, 1]] * 2


# ------------------------------------------------------------------------ refusals


@pytest.mark.parametrize("neighbours", [0, 301])
def test_a_number_of_neighbours_outside_the_training_images_is_refused(neighbours):
    with pytest.raises(ValueError, match=r"must be 1 to 300, .* but it is"):
        knn_probe(*make_data(), neighbours=neighbours)


def test_other_input_that_does_not_fit_is_refused():
    train, train_labels, test, test_labels = make_data()
    with pytest.raises(ValueError, match="no metric 'dot'; choose one of cosine, euclidean"):
        knn_probe(train, train_labels, test, test_labels, metric="dot")
    with pytest.raises(ValueError, match="not all finite"):
        knn_probe(train * np.inf, train_labels, test, test_labels)
    with pytest.raises(ValueError, match="differ in width: 6 and 5"):
        knn_probe(train, train_labels, test[:, 1:], test_labels)
    with pytest.raises(ValueError, match=r"train features \(N, D\) with N labels"):
        knn_probe(train[1:], train_labels, test, test_labels)
    with pytest.raises(ValueError, match=r"test labels must be in 0\.\.2"):
        knn_probe(train, np.minimum(train_labels, 2), test, test_labels, num_classes=3)
