"""Scores against scikit-learn, scipy and closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import binomtest
from sklearn.metrics import confusion_matrix, log_loss, recall_score

from analysis.probe_scores import calibration_error, score, wilson_interval


def make_beliefs(samples=500, classes=5, seed=0):
    """Log-probabilities (N, K) that are right about half the time, and labels (N,)."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, samples)
    scores = rng.normal(size=(samples, classes))
    scores[np.arange(samples), labels] += 1.2
    return scores - np.logaddexp.reduce(scores, axis=1, keepdims=True), labels


def test_scores_are_those_of_scikit_learn():
    beliefs, labels = make_beliefs()
    scores = score(beliefs, labels)
    predictions = beliefs.argmax(axis=1)
    np.testing.assert_array_equal(scores.predictions, predictions)
    np.testing.assert_array_equal(scores.confusion, confusion_matrix(labels, predictions))
    np.testing.assert_allclose(scores.recall, recall_score(labels, predictions, average=None))
    assert scores.cross_entropy == pytest.approx(log_loss(labels, np.exp(beliefs)), rel=1e-12)
    assert scores.accuracy == np.mean(predictions == labels)
    np.testing.assert_allclose(scores.confidence, np.exp(beliefs).max(axis=1))


def test_intervals_of_accuracy_and_recall_are_scipys():
    beliefs, labels = make_beliefs()
    scores = score(beliefs, labels)
    expected = binomtest(scores.confusion.trace(), 500).proportion_ci(0.95, method="wilson")
    assert (scores.low, scores.high) == pytest.approx((expected.low, expected.high), abs=1e-12)
    for k, row in enumerate(scores.confusion):
        expected = binomtest(row[k], row.sum()).proportion_ci(0.95, method="wilson")
        found = scores.recall_low[k], scores.recall_high[k]
        assert found == pytest.approx((expected.low, expected.high), abs=1e-12)


@pytest.mark.parametrize(("correct", "samples"), [(0, 10), (10, 10), (0, 1), (37, 50), (973, 1000)])
def test_wilsons_interval_is_scipys(correct, samples):
    expected = binomtest(correct, samples).proportion_ci(0.95, method="wilson")
    assert wilson_interval(correct, samples) == pytest.approx((expected.low, expected.high))


def test_a_class_without_test_images_has_no_recall_but_a_row_and_a_column():
    beliefs, labels = make_beliefs()
    kept = labels != 3
    scores = score(beliefs[kept], labels[kept])
    assert math.isnan(scores.recall[3])
    assert math.isnan(scores.recall_low[3])
    assert math.isnan(scores.recall_high[3])
    assert scores.confusion.shape == (5, 5)
    assert scores.confusion[3].sum() == 0
    assert scores.confusion[:, 3].sum() > 0
    assert np.isfinite(np.delete(scores.recall, 3)).all()


def test_a_true_class_of_probability_zero_costs_infinitely_much():
    beliefs = np.log(np.array([[0.5, 0.5], [1, 1]])) + np.array([[0, 0], [0, -np.inf]])
    assert score(beliefs, np.array([0, 1])).cross_entropy == math.inf
    assert score(beliefs, np.array([0, 0])).cross_entropy == pytest.approx(math.log(2) / 2)


def test_calibration_error_is_the_sum_over_bins_of_its_definition():
    beliefs, labels = make_beliefs()
    confidence, correct = np.exp(beliefs).max(axis=1), beliefs.argmax(axis=1) == labels
    for bins in (1, 7, 15):
        error = 0.0
        for m in range(1, bins + 1):
            inside = (confidence > (m - 1) / bins) & (confidence <= m / bins)
            if inside.any():
                gap = abs(correct[inside].mean() - confidence[inside].mean())
                error += inside.sum() / len(labels) * gap
        assert calibration_error(beliefs, labels, bins) == pytest.approx(error, abs=1e-12)
    assert score(beliefs, labels).calibration_error == pytest.approx(error, abs=1e-12)


@pytest.mark.parametrize(("right", "expected"), [(8, 0.0), (10, 0.2), (0, 0.8)])
def test_calibration_error_of_one_confidence_is_its_distance_from_accuracy(right, expected):
    beliefs = np.log(np.tile([0.8, 0.2], (10, 1)))
    labels = (np.arange(10) >= right).astype(int)
    assert calibration_error(beliefs, labels) == pytest.approx(expected, abs=1e-12)


def test_calibration_error_of_certainty_is_the_share_of_errors():
    with np.errstate(divide="ignore"):
        beliefs = np.log(np.eye(2)[[0, 0, 1, 1]])
    assert calibration_error(beliefs, np.array([0, 1, 1, 1])) == 0.25


def test_labels_drawn_from_the_beliefs_are_calibrated():
    beliefs, _ = make_beliefs(40_000)
    rng = np.random.default_rng(1)
    labels = (np.exp(beliefs).cumsum(axis=1) < rng.random((40_000, 1))).sum(axis=1)
    assert calibration_error(beliefs, np.minimum(labels, 4)) < 0.015
    assert calibration_error(beliefs, make_beliefs(40_000, seed=2)[1]) > 0.2


# ------------------------------------------------------------------------ refusals


def test_what_cannot_be_scored_is_refused():
    beliefs, labels = make_beliefs(20)
    with pytest.raises(ValueError, match=r"log-probabilities \(N, K\) and labels \(N,\)"):
        score(beliefs[1:], labels)
    with pytest.raises(ValueError, match="at least one test image"):
        score(beliefs[:0], labels[:0])
    with pytest.raises(ValueError, match=r"labels must lie in 0\.\.4"):
        score(beliefs, labels + 1 + (labels.max() < 4))
    beliefs[3, 2] = np.nan
    with pytest.raises(ValueError, match="some log-probabilities are not numbers"):
        score(beliefs, labels)
