"""The solver against finite differences, closed forms and scikit-learn."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.optimize import brentq
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from analysis import probe_solver
from analysis.probe_solver import GRADIENT_TOLERANCE, PrincipalAxes, minimise


def make_data(samples=200, width=9, classes=3, seed=0):
    """Correlated features (N, D) of very different scales, and classes (N,) that overlap."""
    rng = np.random.default_rng(seed)
    labels = np.arange(samples) % classes
    features = rng.normal(size=(classes, width))[labels] + rng.normal(size=(samples, width))
    features = features @ np.linalg.qr(rng.normal(size=(width, width)))[0]
    return features * np.geomspace(0.01, 100, width) + 3, labels


def objective(weights, intercept, features, labels, penalty):
    """f by its definition."""
    scores = StandardScaler().fit_transform(features) @ weights.T + intercept
    losses = np.logaddexp.reduce(scores, axis=1) - scores[np.arange(len(labels)), labels]
    return losses.sum() + penalty / 2 * (weights**2).sum()


@pytest.mark.parametrize(("samples", "width"), [(200, 9), (60, 60), (40, 150)])
@pytest.mark.parametrize("penalty", [1e-3, 1.0, 1e3])
def test_the_minimum_is_scikit_learns(samples, width, penalty):
    features, labels = make_data(samples, width)
    solution = minimise(PrincipalAxes(features), labels, 3, penalty)
    model = LogisticRegression(
        C=1 / penalty, solver="newton-cholesky", tol=1e-12, max_iter=1000
    ).fit(StandardScaler().fit_transform(features), labels)
    best = objective(model.coef_, model.intercept_, features, labels, penalty)
    found = objective(solution.weights, solution.intercept, features, labels, penalty)
    assert solution.objective == pytest.approx(found, rel=1e-9, abs=1e-9)
    assert best * (1 - 1e-9) <= found <= best * (1 + 1e-6) + 1e-6
    assert solution.gradient <= GRADIENT_TOLERANCE


@pytest.mark.parametrize(("samples", "width"), [(60, 5), (20, 33)])
def test_the_gradient_vanishes_at_the_minimum_by_finite_differences(samples, width):
    features, labels = make_data(samples, width)
    solution = minimise(PrincipalAxes(features), labels, 3, 0.5)

    def value(weights, intercept):
        return objective(weights, intercept, features, labels, 0.5)

    step = 1e-4
    for k, j in [(0, 0), (1, width - 1), (2, width // 2)]:
        up, down = solution.weights.copy(), solution.weights.copy()
        up[k, j] += step
        down[k, j] -= step
        slope = (value(up, solution.intercept) - value(down, solution.intercept)) / (2 * step)
        assert abs(slope) / samples < 1e-5
        assert value(up, solution.intercept) > solution.objective
    shifted = solution.intercept + np.array([step, 0, 0])
    assert value(solution.weights, shifted) > solution.objective


def test_two_symmetric_classes_of_one_feature_in_closed_form():
    # Features -1 and 1: with rows v and -v, d/dv of N log(1 + exp(-2 v)) + penalty v^2 is 0.
    features, labels = np.repeat([-1.0, 1.0], 25)[:, None], np.repeat([0, 1], 25)
    solution = minimise(PrincipalAxes(features), labels, 2, 3.0)
    expected = brentq(lambda v: -100 / (1 + math.exp(2 * v)) + 6 * v, 0, 50)
    np.testing.assert_allclose(solution.weights, [[-expected], [expected]], atol=1e-6)
    np.testing.assert_allclose(solution.intercept, 0, atol=1e-9)


def test_without_features_that_vary_the_intercepts_are_the_classes_shares():
    labels = np.repeat([0, 1, 2], [50, 30, 20])
    solution = minimise(PrincipalAxes(np.full((100, 4), 7.0)), labels, 3, 1.0)
    assert solution.weights.shape == (3, 4)
    assert not solution.weights.any()
    shares = np.exp(solution.intercept) / np.exp(solution.intercept).sum()
    np.testing.assert_allclose(shares, [0.5, 0.3, 0.2], atol=1e-5)
    entropy = -(shares * np.log(shares)).sum()
    assert solution.objective == pytest.approx(100 * entropy)


def test_a_single_class_needs_no_weights():
    features, _ = make_data()
    solution = minimise(PrincipalAxes(features), np.zeros(200, int), 1, 1.0)
    assert solution.objective == 0
    assert not solution.weights.any()


def test_rows_of_weights_sum_to_zero():
    # Adding a vector to all rows changes no cross-entropy, so the penalty removes it.
    features, labels = make_data()
    solution = minimise(PrincipalAxes(features), labels, 3, 1.0)
    np.testing.assert_allclose(solution.weights.sum(axis=0), 0, atol=1e-9)


@pytest.mark.parametrize("width", [9, 300])
def test_axes_rebuild_the_standardised_features(width):
    features, _ = make_data(100, width)
    axes = PrincipalAxes(features)
    standardised = StandardScaler().fit_transform(features)
    # Weights along single axes, brought back, are the axes: coordinates times them is all there is.
    directions = axes.weights(np.eye(len(axes.squares)))
    np.testing.assert_allclose(axes.coordinates.T @ directions, standardised, atol=1e-8)
    np.testing.assert_allclose(directions @ directions.T, np.eye(len(axes.squares)), atol=1e-8)
    np.testing.assert_allclose((axes.coordinates**2).sum(axis=1), axes.squares, rtol=1e-6)


@pytest.mark.parametrize("width", [9, 300])
def test_blocks_of_columns_change_nothing(width, monkeypatch):
    features, labels = make_data(100, width)
    whole = minimise(PrincipalAxes(features), labels, 3, 1.0)
    monkeypatch.setattr(probe_solver, "BLOCK_ENTRIES", 700)
    blocks = minimise(PrincipalAxes(features), labels, 3, 1.0)
    np.testing.assert_allclose(blocks.weights, whole.weights, atol=1e-6)


@pytest.mark.parametrize("penalty", [1e-4, 1.0, 1e4])
def test_a_warm_start_ends_at_the_same_minimum(penalty):
    features, labels = make_data()
    axes = PrincipalAxes(features)
    start = minimise(axes, labels, 3, 10.0).rotated
    warm = minimise(axes, labels, 3, penalty, start)
    cold = minimise(axes, labels, 3, penalty)
    assert warm.objective == pytest.approx(cold.objective, rel=1e-7)
    assert minimise(axes, labels, 3, 10.0, start).evaluations == 1


@pytest.mark.parametrize("offset", [0.0, 1e4])
@pytest.mark.parametrize("scale", [1e-3, 1e3])
def test_scale_and_offset_of_features_do_not_move_the_minimum(scale, offset):
    features, labels = make_data()
    plain = minimise(PrincipalAxes(features), labels, 3, 1.0)
    moved = minimise(PrincipalAxes(features * scale + offset * scale), labels, 3, 1.0)
    # At an offset of a million deviations, ten digits of float64 are left.
    assert moved.objective == pytest.approx(plain.objective, rel=1e-6)
    np.testing.assert_allclose(moved.weights, plain.weights, atol=1e-4)


def test_equal_columns_share_the_weight():
    features, labels = make_data()
    doubled = np.c_[features, features[:, :1]]
    solution = minimise(PrincipalAxes(doubled), labels, 3, 1.0)
    np.testing.assert_allclose(solution.weights[:, 0], solution.weights[:, -1], atol=1e-7)


@pytest.mark.parametrize("penalty", [1e-12, 1e-6])
def test_separable_classes_at_a_vanishing_penalty_still_end(penalty):
    labels = np.arange(60) % 3
    features = np.eye(3)[labels] + np.random.default_rng(0).normal(size=(60, 3)) / 20
    solution = minimise(PrincipalAxes(features), labels, 3, penalty)
    scores = StandardScaler().fit_transform(features) @ solution.weights.T + solution.intercept
    assert (scores.argmax(axis=1) == labels).all()
    assert solution.objective < 1e-3


def test_a_fit_that_takes_too_many_steps_says_so(monkeypatch):
    features, labels = make_data()
    monkeypatch.setattr(probe_solver, "MOST_STEPS", 2)
    with pytest.raises(ValueError, match="did not end within 2 steps; take a larger penalty"):
        minimise(PrincipalAxes(features), labels, 3, 1.0)


def test_a_fit_that_rounding_stops_too_early_says_so(monkeypatch):
    features, labels = make_data()
    monkeypatch.setattr(probe_solver, "SMALLEST_STEP", 2.0)  # no step is long enough
    with pytest.raises(ValueError, match="came to a halt before its end; take a larger penalty"):
        minimise(PrincipalAxes(features), labels, 3, 1.0)


def test_features_too_large_to_square_are_refused():
    with pytest.raises(ValueError, match="too large to square in float64"):
        PrincipalAxes(np.array([[1e200], [-1e200]]))
