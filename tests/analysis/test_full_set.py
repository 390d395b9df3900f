"""CKA over whole sets: against the naive one, in both forms, with its errors and its memory."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
import torch

import analysis.full_set
from analysis.cka import CKAAccumulator
from analysis.full_set import FullSetAccumulator, full_set_bytes, in_step
from tests.analysis.naive_cka import biased_hsic, cka_of, unbiased_hsic

LAYERS = {"a": ["one", "two"], "b": ["one"]}
HSIC = {"debiased": unbiased_hsic, "biased": biased_hsic}


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def features(rng):
    """Narrow features of 120 images for the layers of `LAYERS`."""
    shared = rng.normal(size=(120, 4))
    mixed = [shared @ rng.normal(size=(4, width)) for width in (5, 9, 7)]
    noisy = [part + rng.normal(size=part.shape) + 3 for part in mixed]
    return dict(zip([("a", "one"), ("a", "two"), ("b", "one")], noisy, strict=True))


def gather(features, **options):
    samples = len(features["a", "one"])
    accumulator = FullSetAccumulator(LAYERS, samples, **options)
    for key, whole in features.items():
        accumulator.add(key, [whole[:50], whole[50:]])
    return accumulator


@pytest.mark.parametrize("estimator", HSIC)
@pytest.mark.parametrize("narrow", [4, 1000])
def test_both_forms_agree_with_the_naive_one(features, estimator, narrow, monkeypatch):
    monkeypatch.setattr(analysis.full_set, "NARROW", narrow)
    result = gather(features, estimator=estimator).result()
    for row, x in enumerate(features.values()):
        for column, y in enumerate(features.values()):
            expected = cka_of(x, y, hsic=HSIC[estimator])
            assert result.values[row, column] == pytest.approx(expected, abs=1e-12)
    assert result.estimator == estimator
    assert result.batch_sizes == (120,)


@pytest.mark.parametrize("estimator", HSIC)
def test_gram_and_feature_form_are_equal_errors_included(features, estimator, monkeypatch):
    narrow = gather(features, estimator=estimator)
    assert narrow.kept_bytes == 120 * 21 * 8
    monkeypatch.setattr(analysis.full_set, "NARROW", 1000)
    wide = gather(features, estimator=estimator)
    assert wide.kept_bytes == 3 * 120**2 * 8
    for name in ("values", "standard_errors", "low", "high"):
        first, second = getattr(narrow.result(), name), getattr(wide.result(), name)
        np.testing.assert_allclose(first, second, atol=1e-10)


@pytest.mark.parametrize("estimator", HSIC)
def test_narrow_and_wide_layers_are_compared_in_one_form(features, rng, estimator):
    features["b", "one"] = np.hstack([features["b", "one"], rng.normal(size=(120, 90))])
    accumulator = gather(features, estimator=estimator)
    result = accumulator.result()
    x, y = features["a", "two"], features["b", "one"]
    expected = cka_of(x, y, hsic=HSIC[estimator])
    assert result.values[1, 2] == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("estimator", HSIC)
@pytest.mark.parametrize("narrow", [4, 1000])
def test_errors_are_those_of_leaving_out_one_run_of_images_after_another(
    features, estimator, narrow, monkeypatch
):
    monkeypatch.setattr(analysis.full_set, "NARROW", narrow)
    monkeypatch.setattr(analysis.full_set, "CHUNK_BYTES", 8 * 120 * 3 * 3)
    x, y = features["a", "one"], features["b", "one"]
    runs = np.array_split(np.arange(120), 16)
    runs = [np.arange(120 * i // 16, 120 * (i + 1) // 16) for i in range(len(runs))]
    left_out = [
        cka_of(np.delete(x, run, 0), np.delete(y, run, 0), hsic=HSIC[estimator]) for run in runs
    ]
    expected = np.sqrt(15 / 16 * np.sum((np.array(left_out) - np.mean(left_out)) ** 2))
    result = gather(features, estimator=estimator).result()
    assert result.standard_errors[0, 2] == pytest.approx(expected, rel=1e-6)
    margin = result.high[0, 2] - result.values[0, 2]
    assert margin == pytest.approx(2.13145 * expected, rel=1e-5)


def test_debiased_is_one_minibatch_of_all_images(features):
    single = CKAAccumulator(LAYERS)
    single.add(features)
    whole = gather(features).result()
    np.testing.assert_allclose(single.result().values, whole.values, atol=1e-12)


@pytest.mark.parametrize("samples", [200, 1100])
def test_bf16_stays_within_its_bound(rng, samples):
    shared = rng.normal(size=(samples, 20))
    features = {
        key: (shared @ rng.normal(size=(20, 400)) + 2 * rng.normal(size=(samples, 400))).astype(
            "f4"
        )
        for key in [("a", "one"), ("a", "two"), ("b", "one")]
    }
    exact = gather({key: whole.astype(np.float64) for key, whole in features.items()}).result()
    half = gather(features, precision="bf16").result()
    single = gather(features).result()
    assert np.abs(half.values - exact.values).max() < 5e-5
    assert np.abs(single.values - exact.values).max() < 1e-6
    assert np.abs(half.values - single.values).max() > 0


def test_few_images_have_values_and_say_why_they_have_no_interval(features):
    few = gather({key: whole[:6] for key, whole in features.items()}).result()
    assert np.isfinite(few.values).all()
    assert few.interval_note == "intervals need at least 2 groups of images, and there is 1"


@pytest.mark.parametrize("width", [3, 200])
def test_layers_without_a_value_say_why_and_spoil_no_other(features, width):
    features["a", "two"] = np.full((120, width), 0.1)
    broken = features | {("a", "one"): np.full((120, width), np.nan)}
    result = gather(broken).result()
    assert np.isnan(result.values[:2]).all()
    assert result.values[2, 2] == pytest.approx(1)
    assert "not all finite" in result.undefined["a/one"]
    assert "same for every image" in result.undefined["a/two"]
    apart = gather(features | {("a", "one"): np.eye(120)}).result()
    assert "equally far apart" in apart.undefined["a/one"]


def test_a_layer_that_was_not_read_yet_says_so(features):
    accumulator = FullSetAccumulator(LAYERS, 120)
    accumulator.add(("a", "one"), [features["a", "one"]])
    result = accumulator.result()
    assert result.values[0, 0] == pytest.approx(1)
    assert set(result.undefined.values()) == {"it was not read yet"}
    assert np.isnan(result.values[0, 1:]).all()


# ------------------------------------------------------------------------ memory


@pytest.mark.parametrize(
    ("width", "kernel"), [(1500, "linear"), (1500, "rbf"), (60, "linear"), (60, "rbf")]
)
def test_what_it_takes_is_said_beforehand_and_kept(rng, width, kernel):
    samples, layers = 400, [str(index) for index in range(30)]
    said = full_set_bytes([width] * 30, samples, kernel=kernel)
    tracemalloc.start()
    accumulator = FullSetAccumulator({"m": layers}, samples, kernel=kernel)
    for layer in layers:
        accumulator.add(("m", layer), [rng.normal(size=(samples, width)).astype(np.float32)])
    accumulator.result()
    taken = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # The features are drawn here in float64 first, which is not theirs.
    assert taken - 8 * samples * width < said
    assert said < 8 * taken


def test_features_are_kept_where_they_are_fewer_than_a_grams_entries():
    assert full_set_bytes([16] * 10, 10_000) < 0.1 * full_set_bytes([16] * 10, 10_000, kernel="rbf")


# ------------------------------------------------------------------------ streams


def test_streams_in_step_hold_one_layer_of_all_batches_at_a_time(rng):
    batches, alive = [rng.normal(size=(4, 3)) for _ in range(3)], []

    def stream(batch):
        for name in ("one", "two"):
            alive.append(name)
            yield name, torch.from_numpy(batch)

    layers = []
    for name, parts in in_step([stream(batch) for batch in batches]):
        layers.append(name)
        assert alive.count(name) == 3
        np.testing.assert_array_equal(np.concatenate(parts), np.concatenate(batches))
        assert name == "two" or "two" not in alive
    assert layers == ["one", "two"]
    assert list(in_step([])) == []


def test_streams_of_different_networks_are_refused():
    first = iter([("one", 1), ("two", 2)])
    with pytest.raises(ValueError, match=r"different layers \(one, other\)"):
        list(in_step([first, iter([("other", 1)])]))
    with pytest.raises(ValueError, match=r"different layers \(None, one\)"):
        list(in_step([iter([("one", 1)]), iter([])]))


# ------------------------------------------------------------------------ refusals


def test_other_images_than_announced_are_refused(features):
    with pytest.raises(ValueError, match="a/one has 120 and there are 121"):
        FullSetAccumulator(LAYERS, 121).add(("a", "one"), [features["a", "one"]])
    with pytest.raises(ValueError, match="c/one is not one of the layers"):
        FullSetAccumulator(LAYERS, 120).add(("c", "one"), [features["a", "one"]])


@pytest.mark.parametrize(
    ("samples", "options", "message"),
    [
        (3, {}, "at least 4 images, but there are 3"),
        (9, {"estimator": "unbiased"}, "one of debiased, biased, not 'unbiased'"),
        (9, {"kernel": "none"}, "kernel must be one of"),
    ],
)
def test_unknown_options_and_too_few_images_are_refused(samples, options, message):
    with pytest.raises(ValueError, match=message):
        FullSetAccumulator(LAYERS, samples, **options)
