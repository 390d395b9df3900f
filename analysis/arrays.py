"""Features of a layer in, plain matrices out: what several measures need before they compare.

This file knows numpy only, and treats torch tensors by the verbs that both share. Products are
summed in float64, over images centred first, so that features far from zero keep their digits.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.floating[Any]]
IntArray = npt.NDArray[np.integer[Any]]

# Columns widened to float64 at a time: the copy never grows with the layer.
BLOCK_COLUMNS = 4096
# Of the largest feature; eigenvectors of products are not exact to the last digit.
RELATIVE_ROUNDING = 1e-9
NOT_FINITE = "its features are not all finite numbers, or too large to multiply"
CONSTANT = "its features are the same for every image, so there is nothing to compare"


class UndefinedError(ValueError):
    """A measure has no value for these features; the message is the reason."""


def as_matrix(features: Any) -> FloatArray:
    """Give features as one row an image.

    Args:
        features: (N, ...) array, tensor on any device, or nested lists, of any real type.

    Returns:
        (N, D) numpy array, fp32 or float64 (half precision is widened to fp32, whole numbers to
        float64). It may share the memory of `features`.

    Raises:
        ValueError: there is no axis but the images', or no image, or no feature.
    """
    if hasattr(features, "detach"):
        features = features.detach()
        features = features if str(features.dtype) == "torch.float64" else features.float()
        features = features.cpu().numpy()
    array = np.asarray(features)
    if array.ndim < 2 or array.size == 0:
        raise ValueError(
            "features must have the shape (N, ...) with at least one image and one feature, but "
            f"they have the shape {array.shape}: give one row for every image"
        )
    if array.dtype not in (np.float32, np.float64):
        array = array.astype(np.float32 if array.dtype == np.float16 else np.float64)
    return array.reshape(len(array), -1)


def usable_matrix(features: Any, *, smallest: int = 3) -> FloatArray:
    """Give features as (N, D), if they can be compared at all.

    Args:
        features: as `as_matrix` takes them.
        smallest: number of images needed.

    Returns:
        (N, D), fp32 or float64; all finite, and not the same for every image.

    Raises:
        UndefinedError: fewer images, features that are not finite, or constant ones.
    """
    matrix = as_matrix(features)
    if len(matrix) < smallest:
        raise UndefinedError(f"it needs at least {smallest} images, and there are {len(matrix)}")
    if not np.isfinite(matrix).all():
        raise UndefinedError(NOT_FINITE)
    if (matrix == matrix[0]).all():
        raise UndefinedError(CONSTANT)
    return matrix


def some_images(matrix: FloatArray, images: IntArray) -> FloatArray:
    """Take some images, given by index, of a matrix that was computed rather than given.

    Raises:
        UndefinedError: but for rounding, they are all the same.
    """
    part = matrix[images]
    if np.abs(part - part[0]).max() <= RELATIVE_ROUNDING * np.abs(matrix).max():
        raise UndefinedError(CONSTANT)
    return part


def centred(matrix: FloatArray) -> FloatArray:
    """Subtract from each feature its mean over images: (N, D) in float64, always a copy."""
    # Off the first image, then off the mean: exact far from zero.
    moved = matrix.astype(np.float64)
    moved -= moved[0].copy()
    moved -= moved.mean(axis=0)
    return moved


def products(
    matrix: FloatArray, prepare_block: Callable[[FloatArray], FloatArray] = centred
) -> FloatArray:
    """Multiply all pairs of images, X X^T, after `prepare_block` of every block of columns.

    Returns:
        (N, N) in float64.

    Raises:
        UndefinedError: the products are too large for float64.
    """
    total = np.zeros((len(matrix), len(matrix)))
    with np.errstate(all="ignore"):
        for start in range(0, matrix.shape[1], BLOCK_COLUMNS):
            block = prepare_block(matrix[:, start : start + BLOCK_COLUMNS])
            total += block @ block.T
    if not np.isfinite(total).all():
        raise UndefinedError(NOT_FINITE)
    return total


def principal(matrix: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Decompose centred features X = U diag(s) V^T, without V.

    U diag(s) is X up to a rotation of the features, and never has more columns than images.

    Args:
        matrix: (N, D) features, not constant.

    Returns:
        U (N, R) and s (R,) in float64, s falling; R is the numerical rank, at most N - 1. With
        fewer features than images by an SVD, which keeps directions down to 1e-13 of the
        largest; else from the products of images, which keeps them down to about 1e-6.
    """
    samples, num_features = matrix.shape
    if num_features < samples:
        left, sizes, _ = np.linalg.svd(centred(matrix), full_matrices=False)
        cutoff = sizes[0] * samples * np.finfo(np.float64).eps
    else:
        eigenvalues, vectors = np.linalg.eigh(products(matrix))
        sizes, left = np.sqrt(np.maximum(eigenvalues[::-1], 0)), vectors[:, ::-1]
        cutoff = sizes[0] * np.sqrt(samples * np.finfo(np.float64).eps)
    rank = min(int((sizes > cutoff).sum()), samples - 1)
    return left[:, :rank], sizes[:rank]


def rotated(matrix: FloatArray) -> FloatArray:
    """Give centred features, up to a rotation, in at most N - 1 columns: (N, R) in float64."""
    if matrix.shape[1] < len(matrix):
        return centred(matrix)
    left, sizes = principal(matrix)
    return left * sizes
