"""Probes against scikit-learn's own pipeline, and their corner cases."""

from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from analysis.probe_solver import GRADIENT_TOLERANCE
from analysis.probes import fit_probe, fit_probes, pooled, split_stratified, wilson_interval


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
        fit_probe(train, train_labels, test[1:], test_labels)
    with pytest.raises(ValueError, match=r"test labels \(N,\) of whole numbers"):
        fit_probe(train, train_labels, test[:0], test_labels[:0])


def test_train_and_test_features_of_different_widths_are_refused():
    train, train_labels, test, test_labels = make_data()
    with pytest.raises(ValueError, match="differ in width: 12 and 11"):
        fit_probe(train, train_labels, test[:, 1:], test_labels)


def test_a_fit_that_does_not_end_is_refused(monkeypatch):
    monkeypatch.setattr("analysis.probe_solver.MOST_STEPS", 2)
    with pytest.raises(ValueError, match="did not end within 2 steps; take a larger penalty"):
        fit_probe(*make_data())


# ------------------------------------------------------------------------ many layers


def make_layers(classes=4, widths=(12, 3, 12, 20)):
    """Features by layer, train and test, with labels; every layer sees the same images."""
    rng = np.random.default_rng(1)
    train, train_labels, test, test_labels = make_data(classes, samples=600)
    train_by_layer, test_by_layer = {}, {}
    for i, width in enumerate(widths):
        mixing = rng.normal(size=(12, width))
        for by_layer, part in ((train_by_layer, train), (test_by_layer, test)):
            noisy = (part - 5) @ mixing + 20 * rng.normal(size=(len(part), width))
            by_layer["net", f"layer{i}"] = np.tanh(noisy / 100).astype(np.float32)
    return train_by_layer, train_labels, test_by_layer, test_labels


def same_probe(left, right):
    """Bit for bit the same fit."""
    np.testing.assert_array_equal(left.log_probabilities, right.log_probabilities)
    assert (left.penalty, left.objective) == (right.penalty, right.objective)


@pytest.mark.parametrize("classes", [2, 4])
def test_probes_of_all_layers_are_scikit_learns(classes):
    train, train_labels, test, test_labels = make_layers(classes)
    fits = fit_probes(train, train_labels, test, test_labels, penalties=[0.3])
    assert list(fits.layers) == list(train)
    assert fits.undefined == {}
    for key, probe in fits.layers.items():
        reference = make_pipeline(
            StandardScaler(), LogisticRegression(C=1 / 0.3, solver="newton-cholesky", tol=1e-12)
        ).fit(train[key].astype(np.float64), train_labels)
        expected = reference.predict_log_proba(test[key].astype(np.float64))
        np.testing.assert_allclose(probe.log_probabilities, expected, atol=1e-4)
        assert probe.scores.accuracy == np.mean(expected.argmax(axis=1) == test_labels)
        assert probe.gradient <= GRADIENT_TOLERANCE
        assert probe.penalty == 0.3
        assert probe.validation == {}
        np.testing.assert_array_equal(fits.correct(key), expected.argmax(axis=1) == test_labels)


def test_layers_do_not_influence_each_other():
    train, train_labels, test, test_labels = make_layers()
    together = fit_probes(train, train_labels, test, test_labels, threads=1)
    backwards = {key: train[key] for key in reversed(train)}
    turned = fit_probes(backwards, train_labels, test, test_labels, threads=2)
    assert list(turned.layers) == list(reversed(together.layers))
    for key in train:
        alone = fit_probes({key: train[key]}, train_labels, test, test_labels)
        same_probe(together.layers[key], alone.layers[key])
        same_probe(together.layers[key], turned.layers[key])


def test_the_penalty_is_the_one_that_an_independent_search_chooses():
    train, train_labels, test, test_labels = make_layers()
    penalties = (0.001, 1.0, 30.0, 1000.0)
    fits = fit_probes(
        train, train_labels, test, test_labels, penalties=penalties, validation_fraction=0.3, seed=5
    )
    fit_part, validation_part = split_stratified(train_labels, 0.3, 5)
    for key, probe in fits.layers.items():
        features = train[key].astype(np.float64)
        accuracy = {}
        for penalty in penalties:
            pipeline = make_pipeline(
                StandardScaler(),
                LogisticRegression(C=1 / penalty, solver="newton-cholesky", tol=1e-12),
            ).fit(features[fit_part], train_labels[fit_part])
            accuracy[penalty] = pipeline.score(
                features[validation_part], train_labels[validation_part]
            )
        assert probe.validation == pytest.approx(accuracy)
        highest = max(accuracy.values())
        assert probe.penalty == max(p for p in penalties if accuracy[p] == highest)
        alone = fit_probes(
            {key: train[key]}, train_labels, test, test_labels, penalties=[probe.penalty]
        )
        assert probe.objective == alone.layers[key].objective


def test_equal_penalties_go_to_the_stronger():
    labels = np.arange(40) % 2
    features = {"a": labels[:, None] + np.arange(40)[:, None] / 1000}
    fits = fit_probes(features, labels, features, labels, penalties=[0.1, 10, 1])
    assert fits.layers["a"].validation == {10: 1, 1: 1, 0.1: 1}
    assert fits.layers["a"].penalty == 10


def test_the_validation_part_is_drawn_by_class_and_seed():
    labels = np.repeat([0, 1, 2, 5], [50, 30, 10, 1])
    fit_part, validation_part = split_stratified(labels, 0.2, 0)
    assert sorted([*fit_part, *validation_part]) == list(range(91))
    assert np.bincount(labels[validation_part], minlength=6).tolist() == [10, 6, 2, 0, 0, 0]
    np.testing.assert_array_equal(validation_part, split_stratified(labels, 0.2, 0)[1])
    assert validation_part.tolist() != split_stratified(labels, 0.2, 1)[1].tolist()


def test_a_layer_that_cannot_be_fitted_gives_its_reason_and_spares_the_others():
    train, train_labels, test, test_labels = make_layers()
    good = fit_probes(train, train_labels, test, test_labels, penalties=[1.0])
    keys = list(train)
    train[keys[0]] = np.where(np.arange(12) == 3, np.nan, train[keys[0]])
    train[keys[2]] = np.full_like(train[keys[2]], 0.1)
    train["net", "wide"], test["net", "wide"] = train[keys[1]], test[keys[3]]
    train["net", "short"], test["net", "short"] = train[keys[1]][1:], test[keys[1]]
    train["net", "huge"] = train[keys[1]].astype(np.float64) * 1e200
    test["net", "huge"] = test[keys[1]]
    fits = fit_probes(train, train_labels, test, test_labels, penalties=[1.0])
    assert list(fits.layers) == [keys[1], keys[3]]
    for key in fits.layers:
        same_probe(fits.layers[key], good.layers[key])
    assert fits.undefined[keys[0]] == "its features are not all finite numbers"
    assert "the same for every training image" in fits.undefined[keys[2]]
    assert "differ in width: 3 and 20" in fits.undefined["net", "wide"]
    assert "train features (N, D) with N labels" in fits.undefined["net", "short"]
    assert fits.undefined["net", "huge"] == "its features are too large to square in float64"
    assert fits.correct(keys[0]) is None


def test_a_fitted_probe_reads_new_images():
    train, train_labels, test, test_labels = make_layers()
    fits = fit_probes(train, train_labels, test, test_labels, num_classes=7)
    new = {key: part[:5] for key, part in test.items()}
    beliefs = fits.log_probabilities(new)
    for key, probe in fits.layers.items():
        assert beliefs[key].shape == (5, 7)
        np.testing.assert_allclose(beliefs[key], probe.log_probabilities[:5], atol=1e-12)
        np.testing.assert_allclose(np.exp(beliefs[key]).sum(axis=1), 1)
        assert (beliefs[key][:, 4:] == -np.inf).all()
        assert fits.log_probabilities()[key] is probe.log_probabilities
        with pytest.raises(ValueError, match=r"reads features \(N, \d+\).*pool them as those"):
            probe.model.log_probabilities(new[key][:, 1:])
        with pytest.raises(ValueError, match="not all finite numbers"):
            probe.model.log_probabilities(new[key] * np.nan)
    assert list(fits.log_probabilities({"other": 0, ("net", "layer1"): new["net", "layer1"]})) == [
        ("net", "layer1")
    ]


def test_torch_tensors_are_read_too():
    train, train_labels, test, test_labels = make_layers()
    tensors = [{key: torch.from_numpy(part) for key, part in by.items()} for by in (train, test)]
    fits = fit_probes(tensors[0], train_labels, tensors[1], test_labels, penalties=[1.0])
    plain = fit_probes(train, train_labels, test, test_labels, penalties=[1.0])
    for key in train:
        same_probe(fits.layers[key], plain.layers[key])


def test_progress_counts_layers_and_cancelling_keeps_what_is_done():
    train, train_labels, test, test_labels = make_layers()
    seen = []
    fits = fit_probes(
        train,
        train_labels,
        test,
        test_labels,
        threads=1,
        progress=lambda done, total: seen.append((done, total)),
        cancelled=lambda: len(seen) > 1,
    )
    assert seen == [(done, 4) for done in range(5)]
    assert fits.cancelled
    assert 1 <= len(fits.layers) <= 2  # the second may have begun before the wish was heard
    assert len(fits.layers) + len(fits.undefined) == 4
    assert set(fits.undefined.values()) == {"the fit was cancelled before it came to this layer"}
    assert not fit_probes(train, train_labels, test, test_labels, penalties=[1.0]).cancelled
    none = fit_probes(train, train_labels, test, test_labels, cancelled=lambda: True)
    assert none.layers == {}


def test_an_exception_of_the_caller_ends_the_fit():
    train, train_labels, test, test_labels = make_layers()

    def progress(done, total):
        if done == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit_probes(train, train_labels, test, test_labels, progress=progress)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"penalties": []}, "at least one penalty"),
        ({"penalties": [1, 0]}, "penalty of a probe must be above 0, but it is 0"),
        ({"validation_fraction": 1.0}, "validation fraction must be above 0 and below 1"),
        ({"validation_fraction": 1e-4}, "450 training images are too few to choose a penalty"),
        ({"num_classes": 3}, r"train labels must be in 0\.\.2, but they reach from 0 to 3"),
    ],
)
def test_options_that_fit_no_layer_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        fit_probes(*make_layers(), **options)


def test_labels_and_layers_that_do_not_fit_are_refused():
    train, train_labels, test, test_labels = make_layers()
    with pytest.raises(ValueError, match="train labels must be 0 or more"):
        fit_probes(train, train_labels - 1, test, test_labels)
    with pytest.raises(ValueError, match=r"test labels \(N,\) of whole numbers"):
        fit_probes(train, train_labels, test, test_labels / 1)
    with pytest.raises(ValueError, match="features are missing for .*layer0"):
        fit_probes(train, train_labels, {}, test_labels)
    with pytest.raises(ValueError, match="at least one layer"):
        fit_probes({}, train_labels, {}, test_labels)


def test_importing_probes_imports_neither_torch_nor_scikit_learn_nor_scipy():
    code = (
        "import sys, analysis.probes, analysis.probe_neighbours, analysis.paired; "
        "print([m for m in ('torch', 'sklearn', 'scipy', 'threadpoolctl') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


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


@pytest.mark.parametrize(("size", "cells"), [(1, 1), (2, 4), (3, 9), (7, 35), (20, 35)])
def test_pooling_to_cells_is_pytorchs(size, cells):
    features = torch.randn(4, 3, 5, 7, generator=torch.Generator().manual_seed(0)).double()
    grid = (min(size, 5), min(size, 7))
    expected = torch.nn.functional.adaptive_avg_pool2d(features, grid).reshape(4, -1).numpy()
    assert expected.shape == (4, 3 * cells)
    np.testing.assert_allclose(pooled(features, size), expected, atol=1e-12)
    np.testing.assert_allclose(pooled(features.numpy(), size), expected, atol=1e-12)


def test_flattening_keeps_every_value_in_a_copy():
    features = torch.arange(24.0).reshape(2, 3, 2, 2)
    flat = pooled(features, None)
    features.zero_()
    np.testing.assert_array_equal(flat, np.arange(24).reshape(2, 12))


def test_pooling_to_less_than_one_cell_is_refused():
    with pytest.raises(ValueError, match="1 x 1 cells or more, but the size is 0"):
        pooled(np.ones((2, 3, 4, 4)), 0)


@pytest.mark.parametrize(("correct", "samples"), [(0, 10), (10, 10), (37, 50), (973, 1000)])
def test_interval_is_wilsons_closed_form(correct, samples):
    z, fraction = 1.959963984540054, correct / samples
    centre = (fraction + z**2 / (2 * samples)) / (1 + z**2 / samples)
    root = math.sqrt(fraction * (1 - fraction) / samples + z**2 / (4 * samples**2))
    margin = z * root / (1 + z**2 / samples)
    low, high = wilson_interval(correct, samples)
    assert low == pytest.approx(max(0, centre - margin), abs=1e-9)
    assert high == pytest.approx(min(1, centre + margin), abs=1e-9)
