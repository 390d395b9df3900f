"""How active a layer is: zeros, sparseness, dead units and lengths of its features.

In: features (N, ...) of one layer, numpy or torch. Out: numbers; `Undefined` with the reason
where there is none. This file knows numpy only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from analysis.moments import NOT_FINITE, FloatArray, Undefined, matrix


@dataclass(frozen=True)
class FeatureNorms:
    """Mean and standard deviation (N - 1) over images of the Euclidean length of features."""

    mean: float
    deviation: float


def sparsity(features: Any) -> float:
    """Fraction of entries that are exactly 0, as rectified layers have them.

    Args:
        features: (N, ...) array or tensor.

    Returns:
        in [0, 1]; higher is sparser. About 0 for layers that are not rectified: see `sparseness`.

    Raises:
        ValueError: no axis but the images'.
        Undefined: features that are not finite.
    """
    return float(zero_fractions(matrix(features)).mean())


def sparseness(features: Any) -> float:
    """Treves-Rolls sparseness, mean over images of (1 - a) / (1 - 1 / D).

    a = (sum_j |x_j| / D)^2 / (sum_j x_j^2 / D). It needs no exact zeros, so it serves layers
    that are not rectified too, by the size of their entries.

    Args:
        features: (N, ...) array or tensor, flattened to (N, D), D >= 2.

    Returns:
        in [0, 1]; 0 if all units are equally active, 1 if a single one is. Unchanged by scale,
        not by rotation or offset. Images with no activity at all are left out.

    Raises:
        ValueError: no axis but the images'.
        Undefined: a single unit, no activity at all, or features that are not finite.

    Source: Treves and Rolls 1991 (What determines the capacity of autoassociative memories in
    the brain?); scaled to [0, 1] as in Vinje and Gallant 2000.
    """
    values = sparseness_by_image(matrix(features))
    return mean_sparseness(float(np.nansum(values)), int((~np.isnan(values)).sum()))


def dead_units(features: Any) -> float:
    """Fraction of units that give the same value for every image, mostly 0: they tell nothing.

    Args:
        features: (N, ...) array or tensor, flattened to (N, D); pool maps first to count
            channels.

    Returns:
        in [0, 1]; lower uses more of the layer. It can only fall as images are added.

    Raises:
        ValueError: no axis but the images'.
        Undefined: a single image, or features that are not finite.
    """
    array = matrix(features)
    return dead_fraction(array.min(axis=0), array.max(axis=0), len(array))


def feature_norms(features: Any) -> FeatureNorms:
    """Euclidean length of the features, over images.

    Args:
        features: (N, ...) array or tensor, flattened to (N, D).

    Returns:
        mean >= 0 and standard deviation, in the features' own unit. Unchanged by rotation.

    Raises:
        ValueError: no axis but the images'.
        Undefined: a single image, or features that are not finite.
    """
    norms = lengths(matrix(features))
    return FeatureNorms(
        mean_norm(float(norms.sum()), len(norms)),
        norm_deviation(float(norms.sum()), float((norms**2).sum()), len(norms)),
    )


def zero_fractions(features: FloatArray) -> FloatArray:
    """Fraction of zeros in each row of (N, D), (N,)."""
    return np.asarray((features == 0).mean(axis=1, dtype=np.float64))


def sparseness_by_image(features: FloatArray) -> FloatArray:
    """Treves-Rolls sparseness of each row of (N, D), (N,); NaN for rows of zeros or D = 1."""
    sizes = np.abs(features, dtype=np.float64)
    width = sizes.shape[1]
    largest = sizes.max(axis=1, keepdims=True)
    if width < 2:
        return np.full(len(sizes), np.nan)
    # By their largest, so that squares neither over- nor underflow.
    sizes = np.divide(sizes, largest, out=np.full_like(sizes, np.nan), where=largest > 0)
    activity = sizes.mean(axis=1) ** 2 / (sizes**2).mean(axis=1)
    return np.asarray((1 - activity) / (1 - 1 / width))


def mean_sparseness(total: float, count: float) -> float:
    """Mean of `count` images' sparseness."""
    if count < 1:
        raise Undefined("sparseness needs at least 2 units and one image that is not all zero")
    return total / count


def dead_fraction(lowest: FloatArray, highest: FloatArray, samples: int) -> float:
    """Fraction of units whose lowest value (D,) is their highest."""
    if samples < 2:
        raise Undefined("whether a unit is dead takes at least 2 images")
    return float((lowest == highest).mean())


def mean_norm(total: float, count: float) -> float:
    """Mean length from the lengths' sum over `count` images."""
    if not np.isfinite(total):
        raise Undefined(NOT_FINITE)
    return total / count


def norm_deviation(total: float, squares: float, count: float) -> float:
    """Standard deviation of lengths from the sums of themselves and of their squares."""
    if count < 2:
        raise Undefined("a standard deviation needs at least 2 images")
    if not np.isfinite(squares):
        raise Undefined(NOT_FINITE)
    # Equal lengths may leave a difference of the size of a rounding error, of either sign.
    return float(np.sqrt(max(squares - total**2 / count, 0.0) / (count - 1)))


def lengths(features: FloatArray) -> FloatArray:
    """Euclidean length of each row of (N, D), (N,) float64."""
    with np.errstate(over="ignore"):
        return np.asarray(np.sqrt(np.einsum("nd,nd->n", features, features, dtype=np.float64)))
