"""CKA against theory and against a naive second implementation."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from analysis.batch_plan import batch_slices
from analysis.cka import CKAAccumulator, centred_gram, cka
from tests.analysis.naive_cka import biased_hsic, cka_of, linear_gram, rbf_gram


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def related(rng):
    """Convolutional fp32 features of 60 images: two layers that share some of their content."""
    shared = rng.normal(size=(60, 6, 5, 5))
    x = np.concatenate([shared, rng.normal(size=(60, 3, 5, 5))], axis=1).astype(np.float32)
    y = (shared[:, :4] + rng.normal(size=(60, 4, 5, 5))).astype(np.float32)
    return x, y


# ------------------------------------------------------------------------ the value


@pytest.mark.parametrize("as_features", [np.asarray, torch.from_numpy])
@pytest.mark.parametrize("batch_size", [60, 16, 7])
def test_cka_agrees_with_a_naive_float64_implementation(related, as_features, batch_size):
    x, y = related
    expected = cka_of(x, y, batch_slices(60, batch_size))
    value = cka(as_features(x), as_features(y), batch_size=batch_size)
    assert 0.1 < expected < 0.9
    assert value == pytest.approx(expected, abs=1e-6)


def test_cka_agrees_with_the_naive_one_when_features_span_many_blocks(rng, monkeypatch):
    monkeypatch.setattr("analysis.gram.BLOCK_COLUMNS", 7)
    monkeypatch.setattr("analysis.hsic.BLOCK_ENTRIES", 10)
    x, y = rng.normal(size=(12, 100)), rng.normal(size=(12, 30))
    assert cka(x, y) == pytest.approx(cka_of(x, y, [slice(None)]), abs=1e-12)


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_half_precision_features_are_multiplied_in_single_precision(related, kind):
    x, y = (torch.from_numpy(features).to(kind) for features in related)
    expected = cka_of(x.double().numpy(), y.double().numpy(), batch_slices(60, 20))
    assert cka(x, y, batch_size=20) == pytest.approx(expected, abs=1e-6)


def test_whole_numbers_and_half_precision_arrays_are_features_too(rng):
    x, y = rng.integers(0, 256, (20, 9)), rng.normal(size=(20, 5)).astype(np.float16)
    expected = cka_of(x, y, [slice(None)])
    assert cka(x.astype(np.uint8), y) == pytest.approx(expected, abs=1e-6)


KERNEL_GRAMS = {"linear": linear_gram, "rbf": lambda features: rbf_gram(features, 0.8)}


@pytest.mark.parametrize("offset", [0, 1, 10, 100])
@pytest.mark.parametrize("scale", [1e-3, 1, 1e3])
@pytest.mark.parametrize("kernel", KERNEL_GRAMS)
def test_cka_is_unchanged_far_from_zero_and_at_any_scale(related, offset, scale, kernel):
    x, y = related
    moved = ((x.astype(np.float64) + offset) * scale).astype(np.float32)
    expected = cka_of(x, y, batch_slices(60, 20), gram=KERNEL_GRAMS[kernel])
    for features in (moved, torch.from_numpy(moved)):
        value = cka(features, y, batch_size=20, kernel=kernel)
        assert value == pytest.approx(expected, abs=1e-5)
    for estimator in ("debiased", "biased"):
        apart = cka(moved, y, kernel=kernel, estimator=estimator)
        near = cka(x, y, kernel=kernel, estimator=estimator)
        assert apart == pytest.approx(near, abs=1e-5)


@pytest.mark.parametrize("offset", [0, 100])
@pytest.mark.parametrize("scale", [1e-3, 1, 1e3])
def test_bf16_stays_within_its_bound_far_from_zero_and_at_any_scale(rng, offset, scale):
    shared = rng.normal(size=(512, 20))
    x, y = (shared @ rng.normal(size=(20, 300)) + rng.normal(size=(512, 300)) for _ in range(2))
    x = ((x + offset * x.std()) * scale).astype(np.float32)
    y = y.astype(np.float32)
    expected = cka_of(x, y, batch_slices(512, 128))
    value = cka(torch.from_numpy(x), y, batch_size=128, precision="bf16")
    assert value == pytest.approx(expected, abs=1e-4)
    if offset == 0:
        assert value == pytest.approx(expected, abs=5e-5)
        assert value != expected


@pytest.mark.parametrize("scale", [1e-30, 1e-22, 1e22, 1e30])
def test_fp32_features_whose_squares_overflow_or_vanish_keep_their_cka(related, scale):
    x, y = related
    scaled = (x.astype(np.float64) * scale).astype(np.float32)
    expected = cka_of(x, y, batch_slices(60, 20))
    assert cka(scaled, y, batch_size=20) == pytest.approx(expected, abs=1e-6)
    assert cka(torch.from_numpy(scaled), scaled, batch_size=20) == pytest.approx(1, abs=1e-12)
    whole = cka(x, y, estimator="debiased")
    assert cka(scaled, y, estimator="debiased") == pytest.approx(whole, abs=1e-6)


@pytest.mark.parametrize("fraction", [0.2, 0.8, 3])
def test_rbf_cka_agrees_with_a_naive_float64_implementation(related, fraction):
    x, y = related
    expected = cka_of(x, y, batch_slices(60, 20), gram=lambda part: rbf_gram(part, fraction))
    value = cka(x, y, batch_size=20, kernel="rbf", bandwidth=fraction)
    assert value == pytest.approx(expected, abs=1e-5)


def test_wide_rbf_cka_is_linear_cka(related):
    x, y = (features.astype(np.float64) for features in related)
    wide = cka(x, y, kernel="rbf", bandwidth=1000)
    assert wide == pytest.approx(cka(x, y), abs=1e-4)


def test_rbf_cka_sees_a_circle_that_linear_cka_cannot(rng):
    angles = rng.uniform(0, 2 * np.pi, 400)
    circle = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    twice = np.stack([np.cos(2 * angles), np.sin(2 * angles)], axis=1)
    assert abs(cka(circle, twice)) < 0.02
    assert cka(circle, twice, kernel="rbf", bandwidth=0.3) > 0.2


@pytest.mark.parametrize("kernel", KERNEL_GRAMS)
def test_full_set_estimators_agree_with_naive_float64_implementations(related, kernel):
    x, y = related
    grams = KERNEL_GRAMS[kernel]
    debiased = cka_of(x, y, gram=grams)
    biased = cka_of(x, y, gram=grams, hsic=biased_hsic)
    assert cka(x, y, kernel=kernel, estimator="debiased") == pytest.approx(debiased, abs=1e-6)
    assert cka(x, y, kernel=kernel, estimator="biased") == pytest.approx(biased, abs=1e-6)
    assert biased > debiased + 0.1


def test_biased_linear_cka_is_the_closed_form_of_features(rng):
    x, y = rng.normal(size=(30, 4)), rng.normal(size=(30, 7))
    x, y = x - x.mean(axis=0), y - y.mean(axis=0)
    norm = np.linalg.norm
    expected = norm(x.T @ y) ** 2 / (norm(x.T @ x) * norm(y.T @ y))
    assert cka(x, y, estimator="biased") == pytest.approx(expected, abs=1e-12)


def test_biased_cka_of_few_images_with_many_features_is_near_one_and_debiased_is_not(rng):
    x, y = rng.normal(size=(20, 2000)), rng.normal(size=(20, 2000))
    assert cka(x, y, estimator="biased") > 0.9
    assert abs(cka(x, y, estimator="debiased")) < 0.3


def test_minibatch_and_full_set_estimates_converge_on_shuffled_images_and_not_on_sorted_ones(rng):
    labels = np.repeat(np.arange(10), 300)
    centres = rng.normal(size=(2, 10, 16)) * 2
    centres[1] += centres[0]
    x, y = (centre[labels] + rng.normal(size=(3000, 16)) for centre in centres)
    order = rng.permutation(3000)
    whole = cka(x, y, estimator="debiased")
    assert cka(x[order], y[order], batch_size=256) == pytest.approx(whole, abs=0.02)
    assert abs(cka(x, y, batch_size=256) - whole) > 0.1


def test_published_values_of_the_estimators_for_a_worked_example():
    # Four images, one feature: deviations x = (-3, -1, 1, 3), y = (-1, -1, 1, 1), K = x x^T.
    x, y = np.array([[0.0], [2], [4], [6]]), np.array([[0.0], [0], [1], [1]])
    # biased: (x . y)^2 / (|x|^2 |y|^2) = 8^2 / (20 * 4)
    assert cka(x, y, estimator="biased") == pytest.approx(0.8, abs=1e-12)
    # debiased, 4 HSIC: xy 64 - 2 * 40 + 80 / 6; xx 400 - 2 * 164 + 400 / 6; yy 16 - 2 * 4 + 16 / 6,
    # from |X^T Y|^2 - N / (N - 2) d_x . d_y + sum d_x sum d_y / ((N - 1) (N - 2)), d the squares.
    crossed, own_x, own_y = 64 - 40 + 80 / 6 - 0, 400 - 2 * 164 + 400 / 6, 16 - 8 + 16 / 6
    expected = (64 - 2 * 20 + 80 / 6) / np.sqrt(own_x * own_y)
    assert crossed == 64 - 2 * 20 + 80 / 6
    assert cka(x, y, estimator="debiased") == pytest.approx(expected, abs=1e-12)


def test_cka_is_the_same_at_any_scale_since_no_epsilon_enters_the_ratio(rng):
    x = rng.normal(size=(40, 6))
    for scale in (1e-12, 1e-3, 0.1, 1e6):
        for estimator in ("unbiased", "debiased", "biased"):
            assert cka(scale * x, x, estimator=estimator) == pytest.approx(1, abs=1e-9)


def test_conv_features_are_compared_by_image_not_by_channel(rng):
    x = rng.normal(size=(6, 24, 3, 3))
    y = rng.normal(size=(6, 2, 9, 9))
    assert cka(x, y) == pytest.approx(cka_of(x, y), abs=1e-12)


def test_channels_last_tensors_give_what_contiguous_ones_do(related):
    x, y = map(torch.from_numpy, related)
    last = x.to(memory_format=torch.channels_last)
    assert not last.is_contiguous()
    assert cka(last, y, batch_size=20) == pytest.approx(cka(x, y, batch_size=20), abs=1e-6)


def test_cka_with_its_own_rotation_is_one(rng):
    x = rng.normal(size=(40, 30))
    rotation = np.linalg.qr(rng.normal(size=(30, 30)))[0]
    assert cka(x, x @ rotation, batch_size=20) == pytest.approx(1, abs=1e-12)
    assert cka(x, -3 * x @ rotation + 5, batch_size=20) == pytest.approx(1, abs=1e-12)


def test_cka_is_unchanged_by_rotation_of_one_side(related, rng):
    x, y = (features.reshape(60, -1).astype(np.float64) for features in related)
    rotation = np.linalg.qr(rng.normal(size=(x.shape[1], x.shape[1])))[0]
    assert cka(x @ rotation, y) == pytest.approx(cka(x, y), abs=1e-12)


def test_cka_is_changed_by_stretching_one_direction(rng):
    x = rng.normal(size=(40, 10))
    stretched = x * np.array([10, *[1] * 9])
    assert cka(x, stretched) < 0.7


def test_cka_is_unchanged_by_reordering_images_together(related, rng):
    x, y = related
    order = rng.permutation(60)
    assert cka(x[order], y[order]) == pytest.approx(cka(x, y), abs=1e-6)
    assert cka(x[order], y) < 0.3 * cka(x, y)


def test_cka_of_independent_features_scatters_around_zero_unclamped(rng):
    draws = np.array(
        [cka(rng.normal(size=(24, 50)), rng.normal(size=(24, 50))) for _ in range(400)]
    )
    standard_error = draws.std() / 20
    assert abs(draws.mean()) < 4 * standard_error
    assert standard_error < 0.01
    assert 0.3 < (draws < 0).mean() < 0.7


def test_each_batch_counts_equally_whatever_its_size(rng):
    x, y = rng.normal(size=(14, 6)), rng.normal(size=(14, 3))
    y[:, 0] += x[:, 0]
    batches = [slice(0, 4), slice(4, 14)]
    accumulator = CKAAccumulator({"m": ["x", "y"]})
    for batch in batches:
        accumulator.update({("m", "x"): centred_gram(x[batch]), ("m", "y"): centred_gram(y[batch])})
    result = accumulator.result()
    assert result.values[0, 1] == pytest.approx(cka_of(x, y, batches), abs=1e-12)
    assert result.batch_sizes == (4, 10)
    assert result.samples == 14


def test_one_product_for_all_pairs_gives_what_pair_by_pair_gives(rng):
    layers = {"a": ["one", "two"], "b": ["one", "two", "three"]}
    features = {
        (model, name): rng.normal(size=(30, 5)) @ rng.normal(size=(5, 8))
        for model in layers
        for name in layers[model]
    }
    result = accumulate(layers, features, batch_size=10)
    pair = result.pair("a", "b")
    assert pair.values.shape == (2, 3)
    assert (pair.rows, pair.columns) == (("one", "two"), ("one", "two", "three"))
    for row, column in itertools.product(range(2), range(3)):
        x, y = features["a", pair.rows[row]], features["b", pair.columns[column]]
        assert pair.values[row, column] == pytest.approx(cka(x, y, batch_size=10), abs=1e-12)
    np.testing.assert_allclose(result.values, result.values.T, atol=1e-15)


def test_a_layer_is_exactly_as_similar_to_itself_as_can_be(related):
    result = accumulate({"m": ["x", "y"]}, {("m", "x"): related[0], ("m", "y"): related[1]}, 15)
    np.testing.assert_allclose(np.diagonal(result.values), 1, atol=1e-12)
    np.testing.assert_allclose(np.diagonal(result.standard_errors), 0, atol=1e-12)


def test_grams_do_not_change_when_features_are_overwritten(rng):
    features = torch.from_numpy(rng.normal(size=(8, 3)))
    gram = centred_gram(features)
    before = gram.copy()
    features.zero_()
    np.testing.assert_array_equal(gram, before)


def test_features_with_gradients_leave_no_graph(rng):
    features = torch.from_numpy(rng.normal(size=(8, 3))).requires_grad_()
    assert isinstance(centred_gram(features), np.ndarray)


# ------------------------------------------------------------------------ intervals


def accumulate(layers, features, batch_size):
    accumulator = CKAAccumulator(layers)
    samples = len(next(iter(features.values())))
    for batch in batch_slices(samples, batch_size):
        accumulator.update({key: centred_gram(part[batch]) for key, part in features.items()})
    return accumulator.result()


def test_standard_error_is_that_of_leaving_out_one_batch_after_another(related):
    x, y = related
    batches = batch_slices(60, 10)
    left_out = [cka_of(x, y, [other for other in batches if other != batch]) for batch in batches]
    expected = np.sqrt(5 / 6 * np.sum((np.array(left_out) - np.mean(left_out)) ** 2))
    result = accumulate({"m": ["x", "y"]}, {("m", "x"): x, ("m", "y"): y}, 10)
    assert result.standard_errors[0, 1] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(("batches", "quantile"), [(2, 12.7062), (6, 2.5706)])
def test_intervals_use_students_t_with_a_degree_of_freedom_less_than_batches(
    related, batches, quantile
):
    x, y = related
    result = accumulate({"m": ["x", "y"]}, {("m", "x"): x, ("m", "y"): y}, 60 // batches)
    margin = quantile * result.standard_errors[0, 1]
    assert result.high[0, 1] - result.values[0, 1] == pytest.approx(margin, rel=1e-4)
    assert result.values[0, 1] - result.low[0, 1] == pytest.approx(margin, rel=1e-4)
    assert result.interval_note is None


def test_standard_error_matches_the_scatter_of_repeated_draws(rng):
    mixing = rng.normal(size=(5, 8))
    values, errors = [], []
    for _ in range(120):
        x = rng.normal(size=(64, 5))
        y = x @ mixing + 2 * rng.normal(size=(64, 8))
        result = accumulate({"m": ["x", "y"]}, {("m", "x"): x, ("m", "y"): y}, 8)
        values.append(result.values[0, 1])
        errors.append(result.standard_errors[0, 1])
    assert np.mean(errors) == pytest.approx(np.std(values), rel=0.25)


def test_one_batch_gives_values_and_says_why_there_are_no_intervals(related):
    x, y = related
    result = accumulate({"m": ["x", "y"]}, {("m", "x"): x, ("m", "y"): y}, 60)
    assert np.isfinite(result.values).all()
    assert np.isnan(result.standard_errors).all()
    assert np.isnan(result.low).all()
    assert result.interval_note == "intervals need at least 2 batches of images, and there is 1"


def test_a_layer_that_is_constant_in_all_batches_but_one_says_why_it_has_no_interval(rng):
    x = np.zeros((20, 3))
    x[:5] = rng.normal(size=(5, 3))
    y = rng.normal(size=(20, 3))
    result = accumulate({"m": ["x", "y"]}, {("m", "x"): x, ("m", "y"): y}, 5)
    assert np.isfinite(result.values).all()
    assert np.isnan(result.low[0, 1])
    assert np.isfinite(result.low[1, 1])
    assert "one batch alone" in result.interval_note


# ------------------------------------------------------------------------ undefined


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda x: np.full_like(x, 0.1), "same for every image"),
        (lambda x: np.where(np.arange(x.size).reshape(x.shape) == 5, np.nan, x), "not all finite"),
        (lambda x: np.where(np.arange(x.size).reshape(x.shape) == 5, np.inf, x), "not all finite"),
        (lambda x: x.astype(np.float64) * 1e200, "too large to multiply"),
    ],
)
@pytest.mark.parametrize("as_features", [np.asarray, torch.from_numpy])
def test_a_layer_without_a_value_is_nan_with_a_reason_and_spoils_no_other(
    related, spoil, reason, as_features
):
    x, y = related
    layers = {"a": ["good", "bad"], "b": ["good"]}
    features = {
        ("a", "good"): as_features(x),
        ("a", "bad"): as_features(spoil(x)),
        ("b", "good"): as_features(y),
    }
    result = accumulate(layers, features, 20)
    assert np.isnan(result.values[1]).all()
    assert np.isnan(result.values[:, 1]).all()
    assert np.isfinite(result.values[np.ix_([0, 2], [0, 2])]).all()
    assert list(result.undefined) == ["a/bad"]
    assert reason in result.undefined["a/bad"]
    assert result.pair("b", "a").reason(0, 1) == result.undefined["a/bad"]
    assert result.pair("b", "a").reason(0, 0) is None
    assert result.pair("b", "b").undefined == {}


def test_plain_cka_of_constant_features_is_refused_with_the_reason(related):
    with pytest.raises(ValueError, match="undefined for features_b: .* same for every image"):
        cka(related[0], np.ones((60, 3)))


# ------------------------------------------------------------------------ refusals and helpers


def test_too_few_images_a_batch_are_refused(rng):
    with pytest.raises(ValueError, match=r"N >= 4 images a batch, but .* \(3, 5\)"):
        centred_gram(rng.normal(size=(3, 5)))
    with pytest.raises(ValueError, match="at least 4 images in every batch, but 10 images"):
        cka(rng.normal(size=(10, 5)), rng.normal(size=(10, 5)), batch_size=4)


def test_features_without_a_feature_axis_are_refused(rng):
    with pytest.raises(ValueError, match=r"shape \(N, ...\)"):
        centred_gram(rng.normal(size=10))


def test_different_numbers_of_images_are_refused(rng):
    with pytest.raises(ValueError, match="same images, but there are 8 of one and 9 of the other"):
        cka(rng.normal(size=(8, 5)), rng.normal(size=(9, 5)))


def test_nested_lists_are_features_too(related):
    x, y = related
    assert cka(x.tolist(), y.tolist()) == pytest.approx(cka(x, y), abs=1e-6)


@pytest.mark.parametrize(
    ("features_a", "features_b", "message"),
    [
        ([1, 2], [3], "same images, but there are 2 of one and 1 of the other"),
        ([1, 2], [3, 4], "at least 4 images in every batch, but 2 images"),
        ([1, 2, 3, 4], [1, 2, 3, 4], r"shape \(N, ...\)"),
        (1.0, np.float64(2), "at least 4 images in every batch, but 1 images"),
    ],
)
def test_lists_and_numbers_that_are_no_features_are_refused(features_a, features_b, message):
    with pytest.raises(ValueError, match=message):
        cka(features_a, features_b)


def test_a_result_without_batches_is_refused():
    with pytest.raises(ValueError, match="at least one batch"):
        CKAAccumulator({"m": ["x"]}).result()


def test_an_unknown_model_is_refused(related):
    result = accumulate({"m": ["x"]}, {("m", "x"): related[0]}, 30)
    with pytest.raises(ValueError, match="no model 'other' in this comparison of m"):
        result.pair("m", "other")


def test_equally_deep_networks_meet_layer_by_layer_and_others_at_relative_depth(rng):
    layers = {"a": list("pqr"), "b": list("xyz"), "c": list("klmno")}
    features = {(m, n): rng.normal(size=(8, 3)) for m in layers for n in layers[m]}
    result = accumulate(layers, features, 8)
    assert result.pair("a", "b").same_depth().tolist() == [0, 1, 2]
    assert result.pair("a", "c").same_depth().tolist() == [0, 2, 4]
    assert result.pair("c", "a").same_depth()[[0, -1]].tolist() == [0, 2]


def test_best_match_is_the_most_similar_layer_and_minus_one_where_there_is_none(rng):
    x, y = rng.normal(size=(12, 4)), rng.normal(size=(12, 4))
    layers = {"a": ["y", "flat"], "b": ["x", "flat", "y"]}
    features = {("a", "y"): y, ("a", "flat"): np.zeros((12, 2)), ("b", "flat"): np.ones((12, 2))}
    features |= {("b", "x"): x, ("b", "y"): 2 * y}
    assert accumulate(layers, features, 12).pair("a", "b").best_match().tolist() == [2, -1]


# ------------------------------------------------------------------------ coverage


def test_intervals_of_independent_isotropic_features_cover_zero_as_often_as_they_say():
    rng = np.random.default_rng(2024)
    covered = []
    for _ in range(5):  # 200 trials at a time, as layers of two models
        trials = [str(trial) for trial in range(200)]
        accumulator = CKAAccumulator({"a": trials, "b": trials})
        for _ in range(16):
            accumulator.update(
                {
                    (model, trial): centred_gram(rng.normal(size=(16, 10)))
                    for model in "ab"
                    for trial in trials
                }
            )
        pair = accumulator.result().pair("a", "b")
        low, high = np.diagonal(pair.low), np.diagonal(pair.high)
        covered.extend((low <= 0) & (high >= 0))
    assert len(covered) == 1000
    assert 0.92 <= np.mean(covered) <= 0.98


# ------------------------------------------------------------------------ shuffles


TWO = {"a": ["one", "two"], "b": ["one", "two", "three"]}


@pytest.fixture
def batches(rng):
    """Features of four batches of 12 images for the layers of `TWO`, as fp32."""

    def draw():
        shared = rng.normal(size=(12, 4))
        return {
            (model, name): (shared @ rng.normal(size=(4, 7)) + rng.normal(size=(12, 7))).astype(
                "f4"
            )
            for model in TWO
            for name in TWO[model]
        }

    return [draw() for _ in range(4)]


def gather(batches, order=None, layers=TWO, **options):
    accumulator = CKAAccumulator(layers, **options)
    for index in range(len(batches)) if order is None else order:
        accumulator.add(batches[index], index=index)
    return accumulator


def test_null_levels_are_what_95_percent_of_shuffled_comparisons_stay_under(batches):
    result = gather(batches, num_shuffles=40, seed=3).result()
    pair = result.pair("a", "b")
    orders = []
    for index in range(4):
        generator = np.random.default_rng([3, index])
        orders.append([generator.permutation(12) for _ in range(40)])
    for row, column in itertools.product(range(2), range(3)):
        x = np.concatenate([batch["a", pair.rows[row]] for batch in batches])
        y = np.concatenate([batch["b", pair.columns[column]] for batch in batches])
        values = [
            cka_of(
                np.concatenate([x[12 * i : 12 * i + 12][orders[i][draw]] for i in range(4)]),
                y,
                batch_slices(48, 12),
            )
            for draw in range(40)
        ]
        assert pair.null_levels[row, column] == pytest.approx(np.quantile(values, 0.95), abs=1e-5)
    assert np.isnan(result.pair("a", "a").null_levels).all()
    assert result.num_shuffles == 40
    turned = result.pair("b", "a").null_levels
    np.testing.assert_allclose(turned, pair.null_levels.T, atol=1e-15)


def test_independent_features_pass_their_null_level_as_rarely_as_it_says(rng):
    names = [str(index) for index in range(60)]
    accumulator = CKAAccumulator({"a": names, "b": names}, num_shuffles=100)
    for _ in range(8):
        accumulator.add({(m, n): rng.normal(size=(16, 6)) for m in "ab" for n in names})
    pair = accumulator.result().pair("a", "b")
    passed = np.mean(pair.values > pair.null_levels)
    assert 0.02 < passed < 0.09


def test_related_features_pass_their_null_level(batches):
    pair = gather(batches, num_shuffles=100).result().pair("a", "b")
    assert (pair.values > pair.null_levels).all()
    assert (np.abs(pair.null_levels) < 0.5).all()


def test_layers_of_a_lone_model_have_null_levels_too(batches):
    one = gather(batches, layers={"a": TWO["a"]}, num_shuffles=20).result()
    assert np.isfinite(one.null_levels).all()
    np.testing.assert_allclose(one.null_levels, one.null_levels.T, atol=1e-15)


def test_null_levels_of_three_models_compare_each_with_each(batches):
    layers = {**TWO, "c": ["one"]}
    three = [batch | {("c", "one"): batch["a", "two"]} for batch in batches]
    result = gather(three, layers=layers, num_shuffles=5).result()
    for first, second in itertools.permutations(layers, 2):
        assert np.isfinite(result.pair(first, second).null_levels).all()


def test_without_shuffles_there_are_no_null_levels(batches):
    assert gather(batches).result().null_levels is None
    assert gather(batches).result().pair("a", "b").null_levels is None


def test_a_layer_without_a_value_has_no_null_level(batches):
    for batch in batches:
        batch["b", "two"][:] = 1
    levels = gather(batches, num_shuffles=5).result().pair("a", "b").null_levels
    assert np.isnan(levels[:, 1]).all()
    assert np.isfinite(levels[:, [0, 2]]).all()


# ------------------------------------------------------------------------ parts


def assert_same_result(first, second):
    for name in ("values", "standard_errors", "low", "high", "null_levels"):
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name))
    assert (first.batch_sizes, first.samples) == (second.batch_sizes, second.samples)
    assert (first.undefined, first.interval_note) == (second.undefined, second.interval_note)
    assert first.dropped == second.dropped


@pytest.mark.parametrize("split", [([0, 1], [2, 3]), ([3, 1], [2, 0]), ([2], [3, 0, 1])])
def test_merged_parts_equal_one_pass_bit_for_bit_in_any_order(batches, split):
    whole = gather(batches, num_shuffles=7).result()
    parts = [gather(batches, order, num_shuffles=7) for order in split]
    assert_same_result(parts[0].merge(parts[1]).result(), whole)
    assert_same_result(parts[1].merge(parts[0]).result(), whole)


def test_an_accumulator_survives_a_file(batches, tmp_path):
    part = gather(batches, [0, 2], num_shuffles=7, seed=5, kernel="rbf", bandwidth=0.5)
    part.add({key: features[:2] for key, features in batches[0].items()}, index=9)
    np.savez(tmp_path / "part.npz", **part.state())
    with np.load(tmp_path / "part.npz", allow_pickle=False) as state:
        again = CKAAccumulator.from_state(state)
    assert_same_result(again.result(), part.result())
    again.add(batches[1], index=1)
    part.add(batches[1], index=1)
    assert_same_result(again.result(), part.result())
    assert again.result().kernel == "rbf"
    assert again.result().bandwidth == 0.5


def test_an_empty_accumulator_survives_a_file_and_changes_nothing_when_merged(batches):
    whole = gather(batches, num_shuffles=3)
    empty = CKAAccumulator.from_state(gather([], num_shuffles=3).state())
    assert_same_result(empty.merge(whole).result(), whole.result())


def test_results_can_be_had_at_any_time_and_close_in(batches):
    accumulator = CKAAccumulator(TWO)
    margins = []
    for batch in batches:
        accumulator.add(batch)
        result = accumulator.result()
        margins.append(result.high[0, 2] - result.low[0, 2])
        assert np.isfinite(result.values).all()
    assert np.isnan(margins[0])
    assert margins[3] < margins[1]
    assert_same_result(accumulator.result(), gather(batches).result())


def test_a_batch_that_counts_twice_is_refused(batches):
    part = gather(batches, [0, 1])
    with pytest.raises(ValueError, match="both accumulators hold batch 1"):
        part.merge(gather(batches, [1, 2]))
    with pytest.raises(ValueError, match="batch 1 was added before"):
        part.add(batches[1], index=1)


def test_parts_of_different_comparisons_are_refused(batches):
    with pytest.raises(ValueError, match="these differ: merge parts of one comparison"):
        gather(batches, [0]).merge(gather(batches, [1], kernel="rbf"))


# ------------------------------------------------------------------------ what breaks others


@pytest.mark.parametrize("ragged", [1, 2, 3])
def test_a_last_batch_of_one_to_three_images_is_dropped_and_counted(batches, ragged):
    whole = gather(batches).result()
    short = [*batches, {key: features[:ragged] for key, features in batches[0].items()}]
    result = gather(short).result()
    np.testing.assert_array_equal(result.values, whole.values)
    np.testing.assert_array_equal(result.low, whole.low)
    assert result.dropped == result.pair("a", "b").dropped == ragged
    assert result.samples == 48


def test_nothing_but_short_batches_leaves_every_layer_undefined_with_the_reason(batches):
    result = gather([{key: features[:3] for key, features in batches[0].items()}]).result()
    assert np.isnan(result.values).all()
    assert set(result.undefined) == {f"{model}/{name}" for model in TWO for name in TWO[model]}
    assert all("no batch has 4 images" in reason for reason in result.undefined.values())


def test_equally_distant_images_are_undefined_as_such_and_not_as_constant(batches):
    for batch in batches:
        batch["a", "one"] = np.eye(12, dtype=np.float32)
        batch["a", "two"] = np.full((12, 3), 0.1, np.float32)
    result = gather(batches, num_shuffles=2).result()
    assert "self-HSIC) is not positive" in result.undefined["a/one"]
    assert "same for every image" in result.undefined["a/two"]
    assert np.isnan(result.values[:2]).all()
    assert np.isfinite(result.values[2:, 2:]).all()
    for estimator in ("unbiased", "debiased"):
        with pytest.raises(ValueError, match="undefined for features_a: .* equally far apart"):
            cka(np.eye(12), batches[0]["b", "one"], estimator=estimator)


def test_equal_distances_in_one_batch_do_not_spoil_the_others(batches):
    expected_own = gather(batches[1:]).result()
    batches[0]["a", "one"] = np.eye(12, dtype=np.float32)
    result = gather(batches).result()
    assert result.undefined == {}
    assert np.isfinite(result.values).all()
    assert 0 < result.values[0, 2] < 1
    assert expected_own.values.shape == result.values.shape


def test_negative_estimates_are_kept(rng):
    draws = [cka(rng.normal(size=(12, 4)), rng.normal(size=(12, 4))) for _ in range(50)]
    assert min(draws) < -0.05


def test_layers_are_found_by_name_whatever_order_a_batch_holds_them_in(batches):
    turned = [dict(reversed(batch.items())) for batch in batches]
    assert_same_result(gather(turned).result(), gather(batches).result())


def test_a_batch_without_one_of_the_layers_is_refused(batches):
    del batches[0]["b", "two"]
    with pytest.raises(ValueError, match="'two' of 'b' is missing: run all models on the same"):
        gather(batches)


def test_layers_of_different_numbers_of_images_are_refused(batches):
    batches[0]["b", "two"] = batches[0]["b", "two"][:11]
    with pytest.raises(ValueError, match="there are 12 of a/one and 11 of b/two"):
        gather(batches)
    with pytest.raises(ValueError, match="there are 12 of a/one and 11 of b/two"):
        CKAAccumulator(TWO).update({key: centred_gram(part) for key, part in batches[0].items()})


def test_two_loaders_of_different_order_are_noticed_where_images_are_named(batches, rng):
    x = rng.normal(size=(12, 3))
    names = np.array([f"{index}.png" for index in range(12)])
    accumulator = CKAAccumulator(TWO)
    accumulator.add(batches[0], images={"a": names, "b": names.copy()})
    with pytest.raises(ValueError, match="b and a were given the same images in another order"):
        accumulator.add(batches[1], images={"a": names, "b": names[::-1]})
    with pytest.raises(ValueError, match="b and a were given different images"):
        accumulator.add(batches[1], images={"a": np.arange(12), "b": np.arange(1, 13)})
    with pytest.raises(ValueError, match="features_b and features_a were given the same images in"):
        cka(x, x[::-1], images_a=np.arange(12), images_b=np.arange(12)[::-1])
    assert cka(x, 2 * x, images_a=names, images_b=names) == pytest.approx(1)


def test_grams_of_live_tensors_do_not_change_with_them(rng):
    x, y = (torch.from_numpy(rng.normal(size=(16, 5))) for _ in range(2))
    for precision in ("fp32", "bf16"):
        before = cka(x, y, precision=precision)
        accumulator = CKAAccumulator({"m": ["x", "y"]}, precision=precision)
        accumulator.add({("m", "x"): x, ("m", "y"): y})
        kept_x, kept_y = x.clone(), y.clone()
        x.relu_()
        y.zero_()
        assert accumulator.result().values[0, 1] == pytest.approx(before, abs=1e-12)
        x, y = kept_x, kept_y


def test_features_are_left_as_they_were(rng):
    x, y = rng.normal(size=(16, 5)), torch.from_numpy(rng.normal(size=(16, 3))).float()
    kept_x, kept_y = x.copy(), y.clone()
    for estimator, precision in itertools.product(
        ("unbiased", "debiased", "biased"), ("fp32", "bf16")
    ):
        cka(x, y, estimator=estimator, precision=precision)
    np.testing.assert_array_equal(x, kept_x)
    assert torch.equal(y, kept_y)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kernel": "cosine"}, "kernel must be one of linear, rbf, not 'cosine'"),
        ({"estimator": "exact"}, "must be one of unbiased, debiased, biased, not 'exact'"),
        ({"precision": "fp8"}, "precision must be one of fp32, bf16, not 'fp8'"),
        ({"bandwidth": 0}, "bandwidth must be above 0, not 0"),
    ],
)
def test_unknown_options_are_refused(related, options, message):
    with pytest.raises(ValueError, match=message):
        cka(*related, **options)


def test_negative_shuffles_are_refused():
    with pytest.raises(ValueError, match="shuffles and seed must be 0 or more"):
        CKAAccumulator(TWO, num_shuffles=-1)
