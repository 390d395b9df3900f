"""Linear predictivity against scikit-learn's ridge and cross-validation."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import LinearRegression, Ridge, RidgeCV
from sklearn.model_selection import PredefinedSplit, cross_val_predict

from analysis.predictivity import LinearPredictivity, _best_penalty
from analysis.similarity import similarity


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def related(rng):
    x = rng.normal(size=(90, 12)) * np.arange(1, 13)
    return x + 30, x[:, :5] @ rng.normal(size=(5, 7)) + 2 * rng.normal(size=(90, 7))


def fold_by_image(measure, x):
    return measure.prepare(x).fold_by_image


def pooled_r2(y, predicted, folds):
    """1 - squared errors over those of the training means, all images and features at once."""
    means = np.stack([y[folds != fold].mean(axis=0) for fold in folds])
    return 1 - ((y - predicted) ** 2).sum() / ((y - means) ** 2).sum()


@pytest.mark.parametrize("width", [12, 150])
@pytest.mark.parametrize("penalty", [1e-4, 0.02, 1])
def test_one_penalty_agrees_with_scikit_learns_ridge(related, rng, width, penalty):
    x, y = related
    x = x @ rng.normal(size=(12, width)) + rng.normal(size=(90, width))
    measure = LinearPredictivity(penalties=(penalty,))
    folds = fold_by_image(measure, x)
    predicted = np.empty_like(y)
    for fold in range(5):
        fitted = x[folds != fold]
        alpha = penalty * ((fitted - fitted.mean(axis=0)) ** 2).sum()
        model = Ridge(alpha=alpha).fit(fitted, y[folds != fold])
        predicted[folds == fold] = model.predict(x[folds == fold])
    expected = pooled_r2(y, predicted, folds)
    assert expected < 0.99
    assert similarity(x, y, measure) == pytest.approx(expected, abs=1e-8)


def test_no_penalty_agrees_with_scikit_learns_least_squares(related):
    x, y = related
    measure = LinearPredictivity(penalties=(0,), folds=4, seed=3)
    folds = fold_by_image(measure, x)
    predicted = cross_val_predict(LinearRegression(), x, y, cv=PredefinedSplit(folds))
    expected = pooled_r2(y, predicted, folds)
    assert similarity(x, y, measure) == pytest.approx(expected, abs=1e-10)


@pytest.mark.parametrize("width", [12, 150])
def test_the_penalty_has_the_least_generalised_cross_validation_error(related, rng, width):
    x, y = related
    x = x @ rng.normal(size=(12, width)) + 3 * rng.normal(size=(90, width))
    measure = LinearPredictivity(folds=3)
    fold = measure.prepare(x).folds[1]
    fitted, targets = (part[fold.train] - part[fold.train].mean(axis=0) for part in (x, y))
    energy = (fitted**2).sum()
    errors = []
    for penalty in measure.penalties:
        kernel = fitted @ fitted.T
        hat = np.linalg.solve(kernel + penalty * energy * np.eye(60), kernel).T + 1 / 60
        residuals = targets - hat @ targets
        errors.append((residuals**2).sum() / np.trace(np.eye(60) - hat) ** 2)
    expected = measure.penalties[int(np.argmin(errors))] * energy
    cross = fold.train_scores.T @ targets
    chosen = _best_penalty(fold, (targets**2).sum(), (cross**2).sum(axis=1), measure.penalties)
    assert 0 < np.argmin(errors) < len(errors) - 1
    assert chosen == pytest.approx(expected)


def test_chosen_penalties_do_as_well_as_those_of_scikit_learns_ridgecv(rng):
    x = rng.normal(size=(200, 80)) * np.arange(1, 81) ** -0.5
    y = x @ rng.normal(size=(80, 6)) + 2 * rng.normal(size=(200, 6))
    measure = LinearPredictivity()
    folds = fold_by_image(measure, x)
    alphas = np.array(measure.penalties) * ((x - x.mean(axis=0)) ** 2).sum()
    predicted = cross_val_predict(RidgeCV(alphas), x, y, cv=PredefinedSplit(folds))
    assert similarity(x, y, measure) == pytest.approx(pooled_r2(y, predicted, folds), abs=0.02)


def test_a_linear_map_is_predicted_perfectly_and_its_inverse_cannot_be(rng):
    x = rng.normal(size=(100, 10))
    y = x @ rng.normal(size=(10, 3))
    assert similarity(x, y, LinearPredictivity()) == pytest.approx(1, abs=1e-6)
    # Three dimensions tell three tenths of ten equal ones.
    assert similarity(y, x, LinearPredictivity()) == pytest.approx(0.3, abs=0.1)


@pytest.mark.parametrize("width", [6, 130])
def test_shift_rotation_and_scaling_of_either_layer_change_nothing(related, rng, width):
    x, y = related
    measure = LinearPredictivity()
    value = similarity(x, y, measure)
    turn_x, turn_y = (np.linalg.qr(rng.normal(size=(size + width, size)))[0].T for size in (12, 7))
    assert similarity(-5 * x @ turn_x + 9, y, measure) == pytest.approx(value, abs=1e-9)
    assert similarity(x, 0.1 * y @ turn_y - 4, measure) == pytest.approx(value, abs=1e-9)


def test_invertible_maps_matter_to_the_predicted_layer_and_to_penalised_predictors(related, rng):
    x, y = related
    mix_x, mix_y = rng.normal(size=(12, 12)), rng.normal(size=(7, 7))
    free, strong = LinearPredictivity(penalties=(0,)), LinearPredictivity(penalties=(0.1,))
    value = similarity(x, y, free)
    assert similarity(x @ mix_x, y, free) == pytest.approx(value, abs=1e-9)
    assert similarity(x, y @ mix_y, free) != pytest.approx(value, abs=1e-3)
    assert similarity(x @ mix_x, y, strong) != pytest.approx(similarity(x, y, strong), abs=1e-3)


def test_unrelated_features_predict_nothing_even_with_more_features_than_images(rng):
    for width in (10, 200):
        values = [
            similarity(rng.normal(size=(60, width)), rng.normal(size=(60, 4)), LinearPredictivity())
            for _ in range(10)
        ]
        assert -0.2 < np.mean(values) < 0.02


def test_more_noise_leaves_less_to_predict(rng):
    x, noise = rng.normal(size=(2, 150, 5))
    values = [similarity(x, x + level * noise, LinearPredictivity()) for level in (0, 0.3, 1, 3)]
    assert values == sorted(values, reverse=True)
    # The share of the target's variance that is x's, 1 / (1 + level^2).
    np.testing.assert_allclose(values, [1, 0.917, 0.5, 0.1], atol=0.1)


def test_least_squares_with_as_many_features_as_images_takes_the_largest_penalty(rng):
    x = rng.normal(size=(20, 60))
    value = similarity(x, x[:, :3] + 0.0, LinearPredictivity(penalties=(0,)))
    assert np.isfinite(value)
    assert similarity(x, x[:, :3], LinearPredictivity(penalties=(0, 0.01))) == pytest.approx(
        similarity(x, x[:, :3], LinearPredictivity(penalties=(0.01,)))
    )


def test_a_predictor_that_only_one_image_moves_predicts_the_mean(rng):
    x = np.zeros((30, 2))
    x[4] = 1
    assert similarity(x, rng.normal(size=(30, 3)), LinearPredictivity()) < 0.05


def test_the_seed_deals_the_images(rng):
    x = rng.normal(size=(23, 2))
    deals = [fold_by_image(LinearPredictivity(seed=seed), x) for seed in (0, 0, 1)]
    np.testing.assert_array_equal(deals[0], deals[1])
    assert (deals[0] != deals[2]).any()
    assert sorted(np.bincount(deals[0])) == [4, 4, 5, 5, 5]


def test_options_out_of_range_are_refused(rng):
    for penalties in ((), (-1.0,), (float("inf"),), (float("nan"),)):
        with pytest.raises(ValueError, match="penalties must be one or more finite numbers"):
            LinearPredictivity(penalties=penalties)
    with pytest.raises(ValueError, match="the number of folds must be at least 2"):
        LinearPredictivity(folds=1)
    with pytest.raises(ValueError, match="it needs at least 10 images, and there are 9"):
        similarity(rng.normal(size=(9, 2)), rng.normal(size=(9, 2)), LinearPredictivity())
