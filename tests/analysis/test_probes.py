"""Probes against scikit-learn's own pipeline, and their corner cases."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from analysis.probes import fit_probe, pooled, wilson_interval


def make_data(classes=4, samples=400, width=12, seed=0):
    """Overlapping classes: features (N, D) fp32 and labels, the first three quarters to train."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, samples)
    centres = rng.normal(size=(classes, width))
    features = centres[labels] + 1.5 * rng.normal(size=(samples, width))
    features = (features * rng.uniform(0.01, 100, width) + 5).astype(np.float32)
    cut = 3 * samples // 4
    return features[:cut], labels[:cut], features[cut:], labels[cut:]


@pytest.mark.parametrize("penalty", [0.01, 1.0, 100.0])
@pytest.mark.parametrize("classes", [2, 4])
def test_probe_is_scikit_learns_logistic_regression_of_standardised_features(classes, penalty):
    train, train_labels, test, test_labels = make_data(classes)
    reference = make_pipeline(
        StandardScaler(), LogisticRegression(C=1 / penalty, solver="newton-cholesky", tol=1e-12)
    ).fit(train.astype(np.float64), train_labels)
    log_probabilities = reference.predict_log_proba(train.astype(np.float64))
    objective = penalty / 2 * (reference[-1].coef_ ** 2).sum()
    objective -= log_probabilities[np.arange(len(train)), train_labels].sum()

    fit = fit_probe(train, train_labels, test, test_labels, penalty=penalty)

    assert fit.objective == pytest.approx(objective, rel=1e-7)
    expected = reference.predict(test.astype(np.float64))
    np.testing.assert_array_equal(fit.predictions, expected)
    assert fit.accuracy == np.mean(expected == test_labels)
    assert 0.4 < fit.accuracy < 1


def test_a_larger_penalty_never_fits_the_training_images_better():
    data = make_data()
    objectives = [fit_probe(*data, penalty=penalty).objective for penalty in (0.1, 1, 10, 100)]
    assert objectives == sorted(objectives)


def test_a_probe_is_unchanged_by_offset_and_scale_of_each_feature():
    train, train_labels, test, test_labels = make_data()
    scale, offset = np.geomspace(1e-3, 1e3, 12), np.linspace(-50, 50, 12)
    moved = [features.astype(np.float64) * scale + offset for features in (train, test)]
    fit = fit_probe(moved[0], train_labels, moved[1], test_labels)
    plain = fit_probe(train, train_labels, test, test_labels)
    np.testing.assert_array_equal(fit.predictions, plain.predictions)
    assert fit.objective == pytest.approx(plain.objective, rel=1e-7)


@pytest.mark.parametrize("constant", [0.0, 0.1, 1e6])
def test_constant_features_change_nothing(constant):
    train, train_labels, test, test_labels = make_data()
    wider = [np.c_[part, np.full(len(part), constant, np.float32)] for part in (train, test)]
    wider[1][:, -1] += 1  # not even where the test images differ from the training images
    fit = fit_probe(wider[0], train_labels, wider[1], test_labels)
    plain = fit_probe(train, train_labels, test, test_labels)
    assert fit.objective == pytest.approx(plain.objective, rel=1e-9)
    np.testing.assert_array_equal(fit.predictions, plain.predictions)


def test_only_constant_features_answer_with_the_commonest_class():
    labels = np.array([2] * 6 + [0] * 4)
    fit = fit_probe(np.ones((10, 3)), labels, np.ones((5, 3)), np.array([2, 2, 0, 1, 2]))
    assert fit.predictions.tolist() == [2] * 5
    assert fit.accuracy == 0.6


def test_a_class_without_training_images_is_scored_as_wrong():
    train, train_labels, test, test_labels = make_data()
    kept = train_labels != 1
    fit = fit_probe(train[kept], train_labels[kept], test, test_labels)
    assert 1 not in fit.predictions
    assert fit.accuracy == np.mean(fit.predictions == test_labels)
    assert fit.accuracy <= np.mean(test_labels != 1)


def test_training_images_of_one_class_only_are_still_scored():
    train, _, test, test_labels = make_data()
    fit = fit_probe(train, np.full(len(train), 3), test, test_labels)
    assert fit.accuracy == np.mean(test_labels == 3)
    assert fit.objective == 0


def test_perfectly_separable_features_reach_accuracy_one_without_a_warning():
    labels = np.arange(40) % 2
    features = (labels[:, None] * 1000.0) + np.arange(40)[:, None] / 100
    assert fit_probe(features, labels, features, labels, penalty=1e-9).accuracy == 1


# ------------------------------------------------------------------------ refusals


@pytest.mark.parametrize("penalty", [0, -1, math.nan, math.inf])
def test_a_penalty_that_is_not_above_zero_is_refused(penalty):
    with pytest.raises(ValueError, match="penalty of a probe must be above 0"):
        fit_probe(*make_data(), penalty=penalty)


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("part", [0, 2])
def test_features_that_are_not_finite_are_refused(part, value):
    data = list(make_data())
    data[part][3, 1] = value
    with pytest.raises(ValueError, match="not all finite numbers"):
        fit_probe(*data)


def test_features_and_labels_of_different_lengths_are_refused():
    train, train_labels, test, test_labels = make_data()
    with pytest.raises(ValueError, match=r"train features \(N, D\) with N labels"):
        fit_probe(train[1:], train_labels, test, test_labels)
    with pytest.raises(ValueError, match=r"test features \(N, D\) with N labels"):
        fit_probe(train, train_labels, test[:0], test_labels[:0])


def test_train_and_test_features_of_different_widths_are_refused():
    train, train_labels, test, test_labels = make_data()
    with pytest.raises(ValueError, match="differ in width: 12 and 11"):
        fit_probe(train, train_labels, test[:, 1:], test_labels)


def test_a_fit_that_does_not_end_is_refused(monkeypatch):
    monkeypatch.setattr("analysis.probes.MOST_STEPS", 2)
    with pytest.raises(ValueError, match="did not end within 2 steps; take a larger penalty"):
        fit_probe(*make_data())


# ------------------------------------------------------------------------ helpers


def test_pooling_averages_over_height_and_width():
    features = np.random.default_rng(0).normal(size=(5, 3, 4, 2))
    expected = features.sum(axis=(2, 3)) / 8
    np.testing.assert_allclose(pooled(features), expected, atol=1e-12)
    np.testing.assert_allclose(pooled(torch.from_numpy(features)), expected, atol=1e-12)


def test_pooling_widens_half_precision_before_it_sums():
    features = torch.full((1, 1, 300, 300), 1.0, dtype=torch.float16)
    assert pooled(features).dtype == np.float32
    assert pooled(features) == pytest.approx(1.0)


def test_pooling_of_flat_features_gives_a_copy():
    features = torch.arange(6.0).reshape(2, 3)
    flat = pooled(features)
    features.zero_()
    assert flat.tolist() == [[0, 1, 2], [3, 4, 5]]


@pytest.mark.parametrize(("correct", "samples"), [(0, 10), (10, 10), (37, 50), (973, 1000)])
def test_interval_is_wilsons_closed_form(correct, samples):
    z, fraction = 1.959963984540054, correct / samples
    centre = (fraction + z**2 / (2 * samples)) / (1 + z**2 / samples)
    root = math.sqrt(fraction * (1 - fraction) / samples + z**2 / (4 * samples**2))
    margin = z * root / (1 + z**2 / samples)
    low, high = wilson_interval(correct, samples)
    assert low == pytest.approx(max(0, centre - margin), abs=1e-9)
    assert high == pytest.approx(min(1, centre + margin), abs=1e-9)
