"""Matrices of features: what is accepted, and exactness far from zero."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from analysis.arrays import (
    UndefinedError,
    as_matrix,
    centred,
    principal,
    products,
    rotated,
    some_images,
    usable_matrix,
)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.mark.parametrize(
    ("features", "kind"),
    [
        (torch.zeros(3, 2, 2, dtype=torch.bfloat16), np.float32),
        (torch.zeros(3, 2, 2, dtype=torch.float64), np.float64),
        (torch.zeros(3, 4, requires_grad=True), np.float32),
        (np.zeros((3, 4), np.float16), np.float32),
        (np.zeros((3, 2, 2), np.uint8), np.float64),
        ([[0, 1, 2, 3]] * 3, np.float64),
    ],
)
def test_any_real_features_become_a_matrix_of_single_or_double_precision(features, kind):
    matrix = as_matrix(features)
    assert matrix.shape == (3, 4)
    assert matrix.dtype == kind


@pytest.mark.parametrize("features", [3.0, [1.0, 2.0], np.zeros((0, 4)), np.zeros((4, 0))])
def test_features_without_images_or_columns_are_refused(features):
    with pytest.raises(ValueError, match="give one row for every image"):
        as_matrix(features)


@pytest.mark.parametrize(
    ("features", "reason"),
    [
        ([[1.0], [2.0]], "needs at least 3 images, and there are 2"),
        ([[1.0], [2.0], [np.nan]], "not all finite"),
        ([[1.0], [2.0], [np.inf]], "not all finite"),
        ([[0.1, 7.0]] * 5, "the same for every image"),
    ],
)
def test_features_that_cannot_be_compared_say_why(features, reason):
    with pytest.raises(UndefinedError, match=reason):
        usable_matrix(features)


def test_products_too_large_for_float64_say_why():
    with pytest.raises(UndefinedError, match="too large to multiply"):
        products(np.array([[1e200], [-1e200], [3e200]]))


def test_products_are_those_of_centred_features_across_blocks(rng, monkeypatch):
    monkeypatch.setattr("analysis.arrays.BLOCK_COLUMNS", 7)
    x = rng.normal(size=(12, 40)) + 5
    expected = (x - x.mean(axis=0)) @ (x - x.mean(axis=0)).T
    np.testing.assert_allclose(products(x), expected, atol=1e-12)


def test_centring_keeps_the_digits_of_features_far_from_zero(rng):
    x = rng.integers(-50, 50, size=(20, 3)).astype(np.float64)
    np.testing.assert_allclose(centred(x + 2.0**50), x - x.mean(axis=0), atol=1e-12)


@pytest.mark.parametrize("num_features", [5, 30, 80])
def test_principal_directions_rebuild_the_products_of_centred_features(rng, num_features):
    x = rng.normal(size=(30, num_features))
    left, sizes = principal(x)
    assert len(sizes) == min(num_features, 29)
    assert (np.diff(sizes) <= 0).all()
    np.testing.assert_allclose(left.T @ left, np.eye(len(sizes)), atol=1e-10)
    np.testing.assert_allclose((left * sizes) @ (left * sizes).T, products(x), atol=1e-10)
    np.testing.assert_allclose(rotated(x) @ rotated(x).T, products(x), atol=1e-10)
    assert rotated(x).shape[1] <= 29 or num_features < 30


@pytest.mark.parametrize("num_features", [10, 60])
def test_rank_counts_directions_not_features(rng, num_features):
    x = rng.normal(size=(30, 4)) @ rng.normal(size=(4, num_features))
    assert len(principal(x)[1]) == 4


@pytest.mark.parametrize("num_features", [4, 90])
def test_images_that_only_rounding_tells_apart_are_the_same(rng, num_features):
    x = np.tile(rng.normal(size=num_features), (30, 1))
    x[2] += 1
    with pytest.raises(UndefinedError, match="the same for every image"):
        some_images(rotated(x), np.arange(3, 30))
    np.testing.assert_array_equal(some_images(x, np.array([1, 2])), x[1:3])
