"""Representational similarity analysis: whether two layers find the same images unlike.

In: features of the same images. Out: the correlation of both layers' dissimilarities over all
pairs of images.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from analysis.arrays import FloatArray, IntArray, UndefinedError, products, usable_matrix

# Dissimilarities closer than this part of the largest are equal but for rounding.
ROUNDING = 1e-12
ALL_EQUAL = "all its pairs of images are equally dissimilar, so there is nothing to compare"


def squared_euclidean(matrix: FloatArray) -> FloatArray:
    """Squared distances of all pairs of images, (N, N); unchanged by shift and rotation."""
    inner = products(matrix)
    own = np.diagonal(inner)
    return np.maximum(own[:, None] + own[None, :] - 2 * inner, 0)


def euclidean(matrix: FloatArray) -> FloatArray:
    """Distances of all pairs of images, (N, N); unchanged by shift and rotation."""
    return np.sqrt(squared_euclidean(matrix))


def cosine(matrix: FloatArray) -> FloatArray:
    """1 - cosine of all pairs of images, (N, N); unchanged by rotation and each image's scale."""
    if not matrix.any(axis=1).all():
        count = int((~matrix.any(axis=1)).sum())
        raise UndefinedError(
            f"all features of {count} images are zero, so that they have no direction: choose "
            "euclidean"
        )
    return _one_minus_cosine(products(matrix, lambda block: block.astype(np.float64)))


def correlation(matrix: FloatArray) -> FloatArray:
    """1 - Pearson correlation over features of all pairs of images, (N, N)."""
    level = np.ptp(matrix, axis=1) == 0
    if level.any():
        raise UndefinedError(
            f"the features of {int(level.sum())} images do not differ from each other, so that "
            "they have no correlation: choose euclidean"
        )
    means = matrix.mean(axis=1, dtype=np.float64)
    # products hands over blocks of columns; the mean is that over all columns.
    return _one_minus_cosine(products(matrix, lambda block: block - means[:, None]))


def _one_minus_cosine(inner: FloatArray) -> FloatArray:
    """Turn inner products of all pairs into 1 - cosine, (N, N)."""
    lengths = np.sqrt(np.diagonal(inner))
    if not (lengths > 0).all():
        raise UndefinedError("its features are too small to multiply")
    return 1 - inner / lengths[:, None] / lengths[None, :]


@dataclass(frozen=True)
class Dissimilarity:
    """A way to tell two images apart, what leaves it as it is, and the scale that it is exact to.

    `scale` is 1 where values are 1 minus a cosine, however small they come out, and 0 where they
    are exact to their own size.
    """

    between: Callable[[FloatArray], FloatArray]
    invariance: str
    scale: float

    def rounding(self, values: FloatArray) -> float:
        """Give the difference up to which values are equal."""
        return ROUNDING * max(float(values.max()), self.scale)


_RIGID = "shift, rotation and isotropic scaling of either layer's features"
DISSIMILARITIES = {
    "correlation": Dissimilarity(
        correlation, "scaling of either layer, and a shift and scale of each image's features", 1
    ),
    "cosine": Dissimilarity(
        cosine, "rotation of either layer's features, and the scale of each image", 1
    ),
    "euclidean": Dissimilarity(euclidean, _RIGID, 0),
    "squared-euclidean": Dissimilarity(squared_euclidean, _RIGID, 0),
}
COMPARISONS = {
    "spearman": "monotone transforms of either layer's dissimilarities",
    "kendall": "monotone transforms of either layer's dissimilarities",
    "pearson": "shift and positive scaling of either layer's dissimilarities",
}


@dataclass(frozen=True, eq=False)
class Dissimilarities:
    """A layer's dissimilarities (N, N), and the upper triangle (N (N - 1) / 2,) as compared.

    `standard` holds values (pearson) or ranks (spearman, kendall), of mean 0 and norm 1, and
    `rounding` is the difference up to which dissimilarities are equal.
    """

    square: FloatArray
    standard: FloatArray
    rounding: float


@dataclass(frozen=True)
class RSA:
    """Correlation of two layers' dissimilarities over all pairs of images.

    1 where both order (spearman, kendall) or space (pearson) all pairs alike, 0 on average for
    unrelated features. Kendall's tau is tau-b, and takes a hundred times longer than the others.

    Args:
        dissimilarity: "correlation" (1 - Pearson over features), "cosine", "euclidean" or
            "squared-euclidean", of two images' features.
        comparison: "spearman", "pearson" or "kendall", of two layers' dissimilarities.

    Source: Kriegeskorte, Mur and Bandettini 2008 (Representational similarity analysis); Nili et
    al. 2014 (A toolbox for representational similarity analysis) on the comparisons.
    """

    dissimilarity: str = "correlation"
    comparison: str = "spearman"

    title: ClassVar[str] = "Representational similarity (RSA)"
    range: ClassVar[tuple[float, float]] = (-1.0, 1.0)
    direction: ClassVar[str] = "higher is more alike"
    symmetric: ClassVar[bool] = True
    sample_limit: ClassVar[int] = 1000
    interval_caution: ClassVar[str] = ""

    def __post_init__(self) -> None:
        if self.dissimilarity not in DISSIMILARITIES:
            raise ValueError(
                f"dissimilarity must be one of {', '.join(DISSIMILARITIES)}, but it is "
                f"{self.dissimilarity!r}"
            )
        if self.comparison not in COMPARISONS:
            raise ValueError(
                f"comparison must be one of {', '.join(COMPARISONS)}, but it is {self.comparison!r}"
            )

    @property
    def invariances(self) -> tuple[str, ...]:
        """What leaves the value as it is."""
        return DISSIMILARITIES[self.dissimilarity].invariance, COMPARISONS[self.comparison]

    def prepare(self, features: Any) -> Dissimilarities:
        """Find a layer's dissimilarities, once; (N, ...) features, N >= 3."""
        matrix = usable_matrix(features)
        kind = DISSIMILARITIES[self.dissimilarity]
        square = kind.between(matrix)
        return self._standardised(square, kind.rounding(square))

    def restrict(self, prepared: Dissimilarities, images: IntArray) -> Dissimilarities:
        """Keep some of the images, given by index."""
        return self._standardised(prepared.square[np.ix_(images, images)], prepared.rounding)

    def compare(self, prepared_a: Dissimilarities, prepared_b: Dissimilarities) -> float:
        """Give the correlation, in [-1, 1]."""
        if self.comparison == "kendall":
            from scipy.stats import kendalltau  # slow to import, and readers of results need none

            return float(kendalltau(prepared_a.standard, prepared_b.standard).statistic)
        return float(prepared_a.standard @ prepared_b.standard)

    def chance(self, prepared_a: Dissimilarities, prepared_b: Dissimilarities) -> float:
        """Tell what the same features score on average once one layer's images are shuffled: 0."""
        return 0.0

    def _standardised(self, square: FloatArray, rounding: float) -> Dissimilarities:
        """Take the upper triangle, as ranks but for Pearson, to mean 0 and norm 1."""
        upper = square[np.triu_indices(len(square), 1)]
        if np.ptp(upper) <= rounding:
            raise UndefinedError(ALL_EQUAL)
        if self.comparison != "pearson":
            upper = ranks(upper, rounding)
        upper = upper - upper.mean()
        return Dissimilarities(square, upper / np.linalg.norm(upper), rounding)


def ranks(values: FloatArray, rounding: float) -> FloatArray:
    """Rank values from 1; those that only rounding tells apart share their mean rank."""
    order = np.argsort(values)
    ties = np.concatenate([[0], (np.diff(values[order]) > rounding).cumsum()])
    counts = np.bincount(ties)
    result = np.empty(len(values))
    result[order] = (counts.cumsum() - (counts - 1) / 2)[ties]
    return result
