"""From features to Grams: kernels, precision, pooling, packing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from analysis.full_set import FullSetAccumulator
from analysis.gram import (
    centred_gram,
    flattened,
    gram,
    has_fast_bf16,
    packed,
    spatial_pool,
    unpacked_size,
)
from tests.analysis.naive_cka import linear_gram, rbf_gram


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def doubly_centred(matrix):
    centring = np.eye(len(matrix)) - 1 / len(matrix)
    return centring @ matrix @ centring


@pytest.mark.parametrize("cuts", [[], [5], [3, 4, 20]])
@pytest.mark.parametrize("as_features", [np.asarray, torch.from_numpy])
def test_a_gram_of_parts_is_the_gram_of_the_whole(rng, cuts, as_features):
    x = rng.normal(size=(30, 6, 4, 4))
    parts = [as_features(part) for part in np.split(x, cuts)]
    np.testing.assert_allclose(doubly_centred(gram(parts)), linear_gram(x), atol=1e-12)
    centred = doubly_centred(gram(parts, kernel="rbf", bandwidth=0.5))
    np.testing.assert_allclose(centred, doubly_centred(rbf_gram(x, 0.5)), atol=1e-12)


@pytest.mark.parametrize("samples", [30, 1100])
@pytest.mark.parametrize("threads", [False, True])
@pytest.mark.parametrize("kind", [torch.float32, torch.float64])
def test_tensors_are_multiplied_alike_with_one_thread_and_with_more(
    rng, samples, threads, kind, monkeypatch
):
    monkeypatch.setattr("analysis.gram._has_threads", lambda parts: threads)
    x = torch.from_numpy(rng.normal(size=(samples, 5, 3, 3)) + 40).to(kind)
    matrix = gram([x])
    assert matrix.dtype == np.dtype(str(kind).removeprefix("torch."))
    expected = linear_gram(x.numpy())
    tolerance = 1e-4 if kind == torch.float32 else 1e-9
    np.testing.assert_allclose(doubly_centred(matrix), expected, atol=tolerance)


def test_few_images_are_multiplied_in_fp32_whatever_was_asked(rng):
    x = torch.from_numpy(rng.normal(size=(127, 30))).float()
    np.testing.assert_array_equal(gram([x], precision="bf16"), gram([x]))
    more = torch.cat([x, x[:1]])
    assert (gram([more], precision="bf16") != gram([more])).any()


def test_a_tall_bf16_gram_mirrors_what_it_leaves_out(rng):
    x = torch.from_numpy(rng.normal(size=(1100, 40))).float()
    matrix = gram([x[:300], x[300:]], precision="bf16")
    np.testing.assert_array_equal(matrix, matrix.T)
    expected = linear_gram(x.numpy())
    matrix = doubly_centred(matrix)
    assert np.abs(matrix - expected).max() < 0.02 * expected.max()
    assert np.corrcoef(matrix.ravel(), expected.ravel())[0, 1] > 0.99999


def test_the_bandwidth_of_mostly_equal_images_is_that_of_those_that_differ():
    x = np.zeros((8, 1))
    x[0], x[1] = 1, 1
    matrix = gram([x], kernel="rbf", bandwidth=1)
    assert matrix[0, 1] == matrix[2, 3] == 0
    assert matrix[0, 2] == pytest.approx(np.exp(-0.5) - 1)


def test_a_u_centred_gram_has_rows_that_sum_to_zero_and_an_empty_diagonal(rng):
    for kernel in ("linear", "rbf"):
        matrix = centred_gram(rng.normal(size=(20, 7)), kernel=kernel)
        np.testing.assert_allclose(matrix.sum(axis=1), 0, atol=1e-10)
        np.testing.assert_array_equal(np.diagonal(matrix), 0)
        np.testing.assert_allclose(matrix, matrix.T, atol=1e-12)


def test_marks_tell_constant_broken_and_equally_distant_features_apart():
    assert not centred_gram(np.full((6, 3), 0.1)).any()
    assert np.isnan(centred_gram(np.full((6, 3), np.inf))).all()
    apart = centred_gram(3 * np.eye(6, dtype=np.float32))
    assert np.isinf(packed(apart)).all()
    assert not np.isinf(centred_gram(np.random.default_rng(0).normal(size=(6, 20000)))).any()


def test_a_constant_layer_is_constant_to_an_rbf_kernel_too():
    assert not centred_gram(np.full((6, 3), 0.1), kernel="rbf").any()


def test_channels_last_features_are_flattened_without_a_copy(rng):
    x = torch.from_numpy(rng.normal(size=(4, 3, 5, 6))).float()
    last = x.to(memory_format=torch.channels_last)
    (matrix,) = flattened([last])
    assert matrix.ctypes.data == last.data_ptr()
    np.testing.assert_array_equal(np.sort(matrix), np.sort(x.numpy().reshape(4, -1)))


@pytest.mark.parametrize("width", [5, 200])
def test_parts_that_lie_differently_in_memory_are_multiplied_all_the_same(rng, width):
    x = torch.from_numpy(rng.normal(size=(80, width, 2, 2)))
    parts = [x[:30].to(memory_format=torch.channels_last), x[30:]]
    expected = linear_gram(x.numpy())
    np.testing.assert_allclose(doubly_centred(gram(parts)), expected, atol=1e-9)
    accumulator = FullSetAccumulator({"m": ["x", "y"]}, 80)
    accumulator.add(("m", "x"), parts)
    accumulator.add(("m", "y"), [x])
    assert accumulator.result().values[0, 1] == pytest.approx(1, abs=1e-12)


def test_features_of_one_axis_are_refused():
    with pytest.raises(ValueError, match=r"shape \(N, ...\), one row an image, .* \(7,\)"):
        gram([np.ones(7)])


# ------------------------------------------------------------------------ pooling


@pytest.mark.parametrize(("height", "width", "size"), [(8, 8, 2), (7, 5, 3), (5, 9, 4), (6, 6, 1)])
def test_pooling_is_pytorchs_adaptive_average(rng, height, width, size):
    x = torch.from_numpy(rng.normal(size=(3, 4, height, width)))
    expected = torch.nn.functional.adaptive_avg_pool2d(x, size)
    torch.testing.assert_close(spatial_pool(x, size), expected)
    np.testing.assert_allclose(spatial_pool(x.numpy(), size), expected.numpy())


def test_pooling_to_more_cells_than_there_are_changes_nothing(rng):
    x = rng.normal(size=(3, 4, 2, 5))
    np.testing.assert_array_equal(spatial_pool(x, 8), x)


def test_features_without_height_and_width_stay(rng):
    x = rng.normal(size=(3, 40))
    assert spatial_pool(x, 1) is x


@pytest.mark.parametrize("kind", [np.float16, np.float32])
def test_pooled_half_precision_is_averaged_in_fp32(rng, kind):
    x = rng.normal(size=(3, 4, 32, 32)).astype(kind)
    expected = x.astype(np.float64).mean(axis=(2, 3))
    for features in (x, torch.from_numpy(x)):
        pooled = np.asarray(spatial_pool(features, 1))
        assert pooled.dtype == np.float32
        np.testing.assert_allclose(pooled[:, :, 0, 0], expected, atol=1e-6)


def test_pooling_to_nothing_is_refused():
    with pytest.raises(ValueError, match="s >= 1, not 0"):
        spatial_pool(np.ones((2, 3, 4, 4)), 0)


# ------------------------------------------------------------------------ packing


def test_a_packed_gram_is_its_upper_triangle(rng):
    matrix = centred_gram(rng.normal(size=(9, 4)))
    np.testing.assert_array_equal(packed(matrix), matrix[np.triu_indices(9, 1)])
    assert packed(packed(matrix)) is not None
    assert unpacked_size(len(packed(matrix))) == 9


def test_a_number_of_entries_that_no_matrix_has_is_refused():
    with pytest.raises(ValueError, match="7 entries are not the upper triangle"):
        unpacked_size(7)


@pytest.mark.skipif(not Path("/proc/cpuinfo").exists(), reason="only Linux lists what it has")
def test_bf16_is_fast_where_the_processor_lists_it():
    flags = Path("/proc/cpuinfo").read_text()
    assert has_fast_bf16() == ("avx512_bf16" in flags or "amx_bf16" in flags)
