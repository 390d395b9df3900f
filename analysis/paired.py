"""Compare two classifiers on the same images, layer by layer.

In: for every layer of two models, which of N images its probe got right, (N,) booleans. Out: a
`PairedResult`: the difference of the accuracies with its 95% interval, and the exact McNemar test,
corrected for the number of layers. This file knows numpy; scipy is imported when a test is made.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.floating[Any]]
IntArray = npt.NDArray[np.integer[Any]]
BoolArray = npt.NDArray[np.bool_]

CONFIDENCE = 0.95
BISECTIONS = 60  # halve an interval of length 2 down to the rounding of float64


@dataclass(frozen=True, eq=False)
class PairedResult:
    """Model A against model B on the same N images, layer by layer; P pairs of layers.

    Attributes:
        rows: (P,), the layer of A.
        columns: (P,), the layer of B: the same index, or the nearest relative depth.
        difference: (P,), accuracy of A minus accuracy of B, in [-1, 1].
        low: (P,), lower end of its 95% interval (Tango 1998).
        high: (P,), upper end. The interval is of one layer, not corrected for their number.
        only_a: (P,), images that only A gets right.
        only_b: (P,), images that only B gets right.
        p_values: (P,), exact McNemar test of equal accuracy.
        adjusted: (P,), the same by Holm: below 0.05 for no layer that is equal, in 95% of studies.
        samples: N.

    Where either layer has no probe, the numbers are NaN, the counts 0, and it does not count as
    a test.
    """

    rows: IntArray
    columns: IntArray
    difference: FloatArray
    low: FloatArray
    high: FloatArray
    only_a: IntArray
    only_b: IntArray
    p_values: FloatArray
    adjusted: FloatArray
    samples: int


def compare_layers(
    correct_a: Sequence[BoolArray | None], correct_b: Sequence[BoolArray | None]
) -> PairedResult:
    """Compare two models layer by layer on the same images, in the same order.

    Args:
        correct_a: for each layer of A, (N,) whether its probe is right; None without a probe.
        correct_b: the same of B. With another number of layers, each layer of A is compared with
            the layer of B at the nearest relative depth.

    Raises:
        ValueError: no layers, or layers scored on different numbers of images.
    """
    counts = {len(part) for part in (*correct_a, *correct_b) if part is not None}
    if len(counts) != 1 or 0 in counts or not len(correct_a) or not len(correct_b):
        raise ValueError(
            "a paired comparison needs layers of both models on the same images, but they have "
            f"{len(correct_a)} and {len(correct_b)} layers scored on {sorted(counts)} images; "
            "score both models on one sample"
        )
    columns = matched_depth(len(correct_a), len(correct_b))
    pairs = [(left, correct_b[column]) for left, column in zip(correct_a, columns, strict=True)]
    tests = np.array([_tested(left, right) for left, right in pairs])
    difference, low, high, p_values = tests.T
    only = np.array([_only(left, right) for left, right in pairs])
    return PairedResult(
        rows=np.arange(len(correct_a)),
        columns=columns,
        difference=difference,
        low=low,
        high=high,
        only_a=only[:, 0],
        only_b=only[:, 1],
        p_values=p_values,
        adjusted=holm(p_values),
        samples=counts.pop(),
    )


def matched_depth(num_rows: int, num_columns: int) -> IntArray:
    """Find for each of `num_rows` layers the one of `num_columns` at the nearest relative depth."""
    return np.rint(np.linspace(0, num_columns - 1, num_rows)).astype(np.int64)


def _only(left: BoolArray | None, right: BoolArray | None) -> tuple[int, int]:
    """Count the images that only one of two gets right; none without a probe."""
    if left is None or right is None:
        return 0, 0
    return int((left & ~right).sum()), int((right & ~left).sum())


def _tested(left: BoolArray | None, right: BoolArray | None) -> tuple[float, float, float, float]:
    """Difference, low, high and p-value of one pair; NaN without a probe."""
    if left is None or right is None:
        return (np.nan,) * 4
    return *difference_interval(left, right), mcnemar(left, right)


def mcnemar(correct_a: BoolArray, correct_b: BoolArray) -> float:
    """Test whether two classifiers are equally often right on the same images (exact McNemar).

    Of the n images that only one of them gets right, each is A's with probability 1/2 if they are
    equal: p = min(1, 2 P(X <= min(only A, only B))), X binomial (n, 1/2).

    Args:
        correct_a: (N,), whether A is right.
        correct_b: (N,), whether B is right, on the same images in the same order.

    Returns:
        p-value in (0, 1]; 1 where both are right on the same images.

    Source: McNemar 1947, in the exact form.
    """
    from scipy.stats import binom  # slow to import, and readers of results need none

    only_a, only_b = _only(*_checked(correct_a, correct_b))
    tail = binom.cdf(min(only_a, only_b), only_a + only_b, 0.5)
    return min(1.0, 2 * float(tail))


def difference_interval(correct_a: BoolArray, correct_b: BoolArray) -> tuple[float, float, float]:
    """Accuracy of A minus accuracy of B on the same N images, with its 95% score interval.

    The interval holds every difference d that the score test does not reject, |T(d)| <= 1.96:

        T(d) = (b - c - N d) / sqrt(N (2 q + d (1 - d))),

    with b and c the images that only A and only B get right, and q the likeliest probability that
    only B is right if the difference is d: the larger root of
    2 N q^2 + (-b - c + (2 N - b + c) d) q - c d (1 - d) = 0. T(0) = (b - c) / sqrt(b + c) is
    McNemar's statistic, so the interval leaves out 0 when that test (not the exact one, which is a
    little more careful) is significant.

    Args:
        correct_a: (N,), whether A is right.
        correct_b: (N,), whether B is right, on the same images in the same order.

    Returns:
        difference, low and high, in [-1, 1]. The interval covers the choice of images, not of
        training runs.

    Source: Tango 1998, equations 6 to 10.
    """
    left, right = _checked(correct_a, correct_b)
    only_a, only_b = _only(left, right)
    count = len(left)
    z = NormalDist().inv_cdf((1 + CONFIDENCE) / 2)
    difference = (only_a - only_b) / count
    low = _boundary(lambda d: _score(only_a, only_b, count, d) > z, -1.0, difference)
    high = _boundary(lambda d: _score(only_a, only_b, count, d) < -z, 1.0, difference)
    return difference, low, high


def _checked(correct_a: BoolArray, correct_b: BoolArray) -> tuple[BoolArray, BoolArray]:
    """Refuse what cannot be paired."""
    left, right = np.asarray(correct_a), np.asarray(correct_b)
    if left.dtype != bool or right.dtype != bool or left.ndim != 1 or left.shape != right.shape:
        raise ValueError(
            "a paired test needs two arrays (N,) of booleans, whether each image is right, but "
            f"they are {left.dtype} {left.shape} and {right.dtype} {right.shape}"
        )
    if not len(left):
        raise ValueError("a paired test needs at least one image, but there is none")
    return left, right


def _score(only_a: int, only_b: int, count: int, difference: float) -> float:
    """Tango's statistic T(d)."""
    slope = -only_a - only_b + (2 * count - only_a + only_b) * difference
    product = only_b * difference * (1 - difference)
    root = np.sqrt(max(slope**2 + 8 * count * product, 0.0))
    share = (root - slope) / (4 * count)
    variance = count * (2 * share + difference * (1 - difference))
    surplus = only_a - only_b - count * difference
    if variance > 0:
        return float(surplus / np.sqrt(variance))
    # At the ends of the range nothing varies: any surplus is impossible there.
    return math.copysign(math.inf, surplus) if surplus else 0.0


def _boundary(rejected: Callable[[float], bool], outside: float, inside: float) -> float:
    """Find where a test starts to reject, between an end of the range and the estimate."""
    if not rejected(outside):
        return outside
    for _ in range(BISECTIONS):
        middle = (outside + inside) / 2
        outside, inside = (middle, inside) if rejected(middle) else (outside, middle)
    return inside


def holm(p_values: FloatArray) -> FloatArray:
    """Adjust p-values so that all tests together err with the probability of one (Holm).

    Sorted from the smallest, the i-th of m is multiplied by m - i + 1, and none may be smaller
    than one before it.

    Args:
        p_values: (P,), in [0, 1]; NaN for no test.

    Returns:
        (P,), in [0, 1]; NaN stays.

    Source: Holm 1979.
    """
    adjusted = np.array(p_values, dtype=np.float64)
    tested = np.flatnonzero(~np.isnan(adjusted))
    order = tested[np.argsort(adjusted[tested], kind="stable")]
    factors = np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(1, np.maximum.accumulate(factors * adjusted[order]))
    return adjusted
