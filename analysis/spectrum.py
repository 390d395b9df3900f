"""How many directions a layer's features fill: effective rank, participation ratio, TwoNN.

In: features (N, ...) of one layer, numpy or torch. Out: numbers; `Undefined` with the reason
where there is none. This file knows numpy and scipy only (the latter is imported when used).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from analysis.moments import (
    BLOCK_COLUMNS,
    CONSTANT,
    EPSILON,
    NOT_FINITE,
    FloatArray,
    IntArray,
    Moments,
    Undefined,
    centred,
    centred_products,
    matrix,
    moments,
)

CONFIDENCE = 0.95
SMALLEST_SAMPLE = 10  # different images for TwoNN: below, its interval spans a factor of four
DISCARDED = 0.1  # share of the largest distance ratios, as in Facco et al. 2017
CANDIDATES = 8  # neighbours by products whose distances are then taken anew, exactly


@dataclass(frozen=True)
class IntrinsicDimension:
    """TwoNN's estimate with its standard error and 95% interval.

    `samples` different images were used; `duplicates` were left out.
    """

    value: float
    standard_error: float
    low: float
    high: float
    samples: int
    duplicates: int


@dataclass(frozen=True, eq=False)
class Neighbours:
    """The two nearest images of each of N: `distances` (N, 2), the nearer first, and `indices`."""

    distances: FloatArray
    indices: IntArray


def effective_rank(features: Any) -> float:
    """Effective rank: exp(-sum_i p_i log p_i) with p_i = s_i / sum_j s_j.

    The s_i are the singular values of the centred feature matrix (N, D), so square roots of the
    covariance's eigenvalues up to a factor; those that are rounding noise count as 0.

    Args:
        features: (N, ...) array or tensor, flattened to (N, D).

    Returns:
        in [1, min(N - 1, D)]; higher is spread over more directions. Few images bound it: it
        still grows with N until N is many times D. Unchanged by rotation, scale and offset.

    Raises:
        ValueError: no axis but the images'.
        Undefined: constant features, a single image, or features that are not finite.

    Source: Roy and Vetterli 2007 (The effective rank), definition 1; they do not centre.
    """
    return effective_rank_of(moments(features))


def effective_rank_of(sums: Moments) -> float:
    """Effective rank of features with these moments."""
    squares = np.linalg.eigvalsh(_covariance(sums))
    noise = squares[-1] * EPSILON * max(sums.samples, len(squares))
    shares = np.sqrt(squares[squares > noise])
    shares /= shares.sum()
    return float(np.exp(-(shares * np.log(shares)).sum()))


def participation_ratio(features: Any) -> float:
    """Participation ratio: (tr C)^2 / tr C^2 = (sum_i l_i)^2 / sum_i l_i^2 of the covariance C.

    Args:
        features: (N, ...) array or tensor, flattened to (N, D).

    Returns:
        in [1, min(N - 1, D)]; higher is spread over more directions. Few images bound it: for
        isotropic Gaussian features 1 / PR is (N + D) / ((N - 1) D + 2) on average, not 1 / D.
        Unchanged by rotation, scale and offset.

    Raises:
        ValueError: no axis but the images'.
        Undefined: constant features, a single image, or features that are not finite.

    Source: Gao et al. 2017 (A theory of multineuronal dimensionality, dynamics and measurement).
    """
    return participation_ratio_of(moments(features))


def participation_ratio_of(sums: Moments) -> float:
    """Participation ratio of features with these moments."""
    covariance = _covariance(sums)
    return float(np.trace(covariance) ** 2 / (covariance**2).sum())


def _covariance(sums: Moments) -> FloatArray:
    """Total scatter, divided by its trace so that no square over- or underflows."""
    if sums.samples < 2:
        raise Undefined("a spectrum needs at least 2 images")
    scatter = sums.total()
    size = float(np.trace(scatter))
    # What constant features leave after sums were subtracted from sums is rounding noise.
    if not size > EPSILON * float(np.trace(sums.second)):
        raise Undefined(CONSTANT)
    return scatter / size


def two_nn(features: Any, *, discarded: float = DISCARDED) -> IntrinsicDimension:
    """Intrinsic dimension from the two nearest neighbours of every image.

    The ratio m_i = r_2 / r_1 of an image's distances to its second and first neighbour follows
    P(m > t) = t^-d where the density hardly changes over that distance. Of the N ratios in
    ascending order the first M = (1 - discarded) N give the maximum likelihood
    d = M / (sum_{i <= M} log m_i + (N - M) log m_M). Its variance is that of the sum of scores,
    with the products of scores of images of which one is among the other's two neighbours: taken
    as independent, as is often done, the ratios gave intervals that covered 0.85 to 0.90. With v
    = 2 d^2 / variance, v d_true / d is taken as chi-squared with v degrees of freedom, as it is
    for independent ratios (v = 2 M). Repeated images are counted once.

    Args:
        features: (N, ...) array or tensor, flattened to (N, D); at least 10 different images.
        discarded: share of the largest ratios to leave out, in [0, 1): they meet the curvature
            and the borders first.

    Returns:
        d above 0, higher has more degrees of freedom. Borders and few images lower it: 1,000
        images drawn evenly from a cube of 2, 5, 10, 20 dimensions give 2.0, 4.6, 8.5, 15.
        Unchanged by rotation, scale and offset. The interval covers the choice of images,
        not that bias.

    Raises:
        ValueError: `discarded` out of range, or no axis but the images'.
        Undefined: too few different images, or neighbours all equally near.

    Source: Facco, d'Errico, Rodriguez and Laio 2017 (Estimating the intrinsic dimension of
    datasets by a minimal neighborhood information), equation 5. They fit a line to the same
    ratios; we take the censored maximum likelihood, whose interval is known.
    """
    if not 0 <= discarded < 1:
        raise ValueError(f"the discarded share must be in [0, 1), but it is {discarded}")
    array = matrix(features)
    return two_nn_of(nearest_two(array), len(array), discarded)


def two_nn_of(
    nearest: Neighbours, samples: int, discarded: float = DISCARDED
) -> IntrinsicDimension:
    """Intrinsic dimension from the neighbours of the different ones among N images."""
    from scipy.stats import chi2  # slow to import, and readers of studies need none

    logs = np.log(nearest.distances[:, 1]) - np.log(nearest.distances[:, 0])
    kept = max(1, int(len(logs) * (1 - discarded)))
    last = np.partition(logs, kept - 1)[kept - 1]
    censored = np.minimum(logs, last)
    if not censored.sum() > 0:
        raise Undefined("every image's two nearest neighbours are equally near")
    value = float(kept / censored.sum())
    scores = (logs <= last) / value - censored
    error = value**2 / kept * np.sqrt(_variance_of_sum(scores, nearest.indices))
    freedom, tail = 2 * (value / error) ** 2, (1 - CONFIDENCE) / 2
    low, high = chi2.ppf([tail, 1 - tail], freedom) / freedom * value
    return IntrinsicDimension(
        value=value,
        standard_error=float(error),
        low=float(low),
        high=float(high),
        samples=len(logs),
        duplicates=samples - len(logs),
    )


def _variance_of_sum(scores: FloatArray, neighbours: IntArray) -> float:
    """Variance of sum_i s_i where neighbours (N, 2) depend on each other; not below sum_i s_i^2."""
    linked = np.zeros((len(scores), len(scores)), bool)
    linked[np.arange(len(scores))[:, None], neighbours] = True
    linked |= linked.T
    alone = float((scores**2).sum())
    return max(alone, alone + float(scores @ (linked @ scores)))


def nearest_two(features: FloatArray) -> Neighbours:
    """Find the two nearest neighbours of every different image.

    Args:
        features: (N, D), finite.

    Returns:
        distances above 0 and positions among the N' images that differ from one another.

    Raises:
        Undefined: fewer than 10 different images, or features too large to multiply.
    """
    different = np.unique(features + 0.0, axis=0)  # + 0.0 makes -0.0 equal to 0.0
    if len(different) < SMALLEST_SAMPLE:
        raise Undefined(
            f"TwoNN needs at least {SMALLEST_SAMPLE} different images, and there are "
            f"{len(different)}"
        )
    squares = squared_distances(different)
    np.fill_diagonal(squares, np.inf)
    candidates = min(CANDIDATES, len(different) - 1)
    nearest = np.argpartition(squares, candidates - 1, axis=1)[:, :candidates]
    # Products lose the digits of small distances; differences keep them.
    exact = np.stack([_row_distances(different, column) for column in nearest.T], axis=1)
    order = np.argsort(exact, axis=1, kind="stable")[:, :2]
    return Neighbours(
        np.take_along_axis(exact, order, axis=1), np.take_along_axis(nearest, order, axis=1)
    )


def squared_distances(features: FloatArray) -> FloatArray:
    """Squared distances between all pairs of rows of (N, D), by products: (N, N) float64.

    Raises:
        Undefined: features too large to multiply.
    """
    gram = centred_products(features)
    if not np.isfinite(gram).all():
        raise Undefined(NOT_FINITE)
    own = np.diagonal(gram)
    return np.maximum(own[:, None] + own[None, :] - 2 * gram, 0)


def _row_distances(features: FloatArray, others: Any) -> FloatArray:
    """Distance from each row i to row others[i], by differences: (N,) float64."""
    squares = np.zeros(len(features))
    for start in range(0, features.shape[1], BLOCK_COLUMNS):
        block = centred(features[:, start : start + BLOCK_COLUMNS])
        squares += ((block - block[others]) ** 2).sum(axis=1)
    return np.asarray(np.sqrt(squares))
