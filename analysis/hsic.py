"""Estimators: tables of HSIC of all pairs of layers in, CKA, errors and null levels out.

A table has the shape (L, L), over the layers of all models. Pure functions of numpy arrays.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from analysis.gram import triangle, unpacked_size

FloatArray = npt.NDArray[np.floating[Any]]
IntArray = npt.NDArray[np.int64]

NOT_FINITE = "its features are not all finite numbers, or too large to multiply"
CONSTANT = "its features are the same for every image, so there is nothing to compare"
NOT_POSITIVE = (
    "its images are all equally far apart, so its similarity with itself (self-HSIC) is not "
    "positive and there is nothing to divide by"
)
CONFIDENCE = 0.95
NULL_LEVEL = 0.95  # the null level is this quantile of shuffles
# Entries of the stacked Grams that are multiplied at a time, over all layers.
BLOCK_ENTRIES = 16384


# ------------------------------------------------------------------------------------- products


def inner_products(rows: Sequence[FloatArray]) -> FloatArray:
    """Multiply all pairs of L packed Grams: (L, L), each pair of images counted twice.

    Products of fp32 Grams are added up in fp32 over some thousand entries, those sums in float64;
    each row is brought to size 1 first, so that none overflows.
    """
    kind = np.result_type(*rows)
    scales = np.array([_scale(row) for row in rows])
    table = np.zeros((len(rows), len(rows)))
    for start in range(0, len(rows[0]), BLOCK_ENTRIES):
        block = np.empty((len(rows), len(rows[0][start : start + BLOCK_ENTRIES])), kind)
        for index, row in enumerate(rows):
            np.multiply(row[start : start + BLOCK_ENTRIES], 1 / scales[index], out=block[index])
        table += block @ block.T
    table *= 2 * scales[:, None] * scales[None, :]
    return table


def _scale(row: FloatArray) -> float:
    """Give the power of two next to the largest entry; 1 where that is 0 or not finite."""
    largest = float(np.abs(row).max())
    return 2.0 ** math.frexp(largest)[1] if 0 < largest < math.inf else 1.0


def shuffled_products(
    rows: Sequence[FloatArray], groups: Sequence[slice], permutations: IntArray
) -> FloatArray:
    """Multiply Grams of one model, its images shuffled, with those of another, in order.

    Args:
        rows: L packed Grams of the same N images.
        groups: the rows of each model. Pairs of different models are multiplied; of a lone model,
            its layers with each other.
        permutations: (S, N), the orders to take; the same for all pairs.

    Returns:
        (S, L, L), symmetric, each pair of images counted twice; NaN where nothing was
        multiplied.
    """
    size = unpacked_size(len(rows[0]))
    scales = np.array([_scale(row) for row in rows])
    stacked = np.empty((len(rows), len(rows[0])), np.float32)
    for index, row in enumerate(rows):
        np.multiply(row, 1 / scales[index], out=stacked[index])
    products = np.full((len(permutations), len(rows), len(rows)), np.nan)
    # Gathering costs as much as multiplying, so the narrower model of a pair is shuffled. Its Grams
    # lie entry by entry, so that one entry of all layers is one short read.
    order = sorted(groups, key=lambda group: group.stop - group.start)
    pairs = [(order[i], order[i + 1 :]) for i in range(len(order) - 1)] or [(order[0], order)]
    entry_of = _entries(size)
    by_entry = [np.ascontiguousarray(stacked[moved].T) for moved, _others in pairs]
    for index, permutation in enumerate(permutations):
        # `take` is four times as fast as an index in brackets.
        places = entry_of.take(permutation, 0).take(permutation, 1).take(triangle(size))
        for (moved, others), entries in zip(pairs, by_entry):
            shuffled = entries.take(places, axis=0)
            for other in others:
                block = stacked[other] @ shuffled
                products[index, other, moved] = block
                products[index, moved, other] = block.T
    products *= 2 * scales[:, None] * scales[None, :]
    return products


def _entries(size: int) -> npt.NDArray[np.int32]:
    """Number the pairs of images: (N, N), symmetric, the place in a packed Gram."""
    numbers = np.zeros((size, size), np.int32)
    count = size * (size - 1) // 2
    numbers.reshape(-1)[triangle(size)] = np.arange(count, dtype=np.int32)
    return numbers + numbers.T


# ------------------------------------------------------------------------------------- from sums


def whole_set_hsic(
    estimator: str, size: int, products: FloatArray, row_sums: FloatArray
) -> FloatArray:
    """HSIC of a whole set of N images from sums over its Grams K, L.

    debiased: (sum_ij K_ij L_ij + s_K s_L / ((N - 1) (N - 2)) - 2 r_K r_L / (N - 2)) / (N (N - 3)),
    with diagonals set to 0; biased: (sum_ij K_ij L_ij + s_K s_L / N^2 - 2 r_K r_L / N) / (N - 1)^2.
    r are row sums and s their sum.

    Args:
        estimator: "debiased" or "biased".
        size: N.
        products: (L, L), sum_ij K_ij L_ij.
        row_sums: (L, N).

    Returns:
        (L, L).

    Source: Song et al. 2012, equation 5 (debiased); Gretton et al. 2005 and Kornblith et al. 2019,
    equation 3 (biased).
    """
    totals = row_sums.sum(axis=1)
    squares, crossed = np.outer(totals, totals), row_sums @ row_sums.T
    if estimator == "biased":
        return (products + squares / size**2 - 2 / size * crossed) / (size - 1) ** 2
    table = products + squares / ((size - 1) * (size - 2)) - 2 / (size - 2) * crossed
    return table / (size * (size - 3))


def ratio(tables: FloatArray) -> FloatArray:
    """Divide (..., L, L) HSICs by the roots of their diagonals; NaN where one is not positive."""
    own = np.diagonal(tables, axis1=-2, axis2=-1)
    root = np.sqrt(np.where(own > 0, own, np.nan))
    return tables / root[..., :, None] / root[..., None, :]


# ------------------------------------------------------------------------------------- errors


def jackknife(total: FloatArray, left_out: Iterator[FloatArray], count: int) -> FloatArray:
    """Delete-one-part standard errors of the ratio.

    sqrt((B - 1) / B * sum_b (CKA without b - their mean)^2).

    Args:
        total: (L, L), HSICs of all parts.
        left_out: (L, L) HSICs without each of the parts.
        count: number of parts, B.

    Returns:
        (L, L); NaN for fewer than 2 parts, and where one part alone makes a value.

    Source: Efron and Stein 1981 (The jackknife estimate of variance).
    """
    values = ratio(total)
    if count < 2:
        return np.full(total.shape, np.nan)
    sums, squares = np.zeros(total.shape), np.zeros(total.shape)
    for table in left_out:
        deviation = ratio(table) - values  # small, so that the squares lose no digits
        sums += deviation
        squares += deviation**2
    return np.sqrt(np.maximum(squares - sums**2 / count, 0) * (count - 1) / count)


def interval_note(values: FloatArray, errors: FloatArray, count: int, parts: str) -> str | None:
    """Say why there are no intervals, or not for all values; None where there are."""
    if count < 2:
        return f"intervals need at least 2 {parts} of images, and there is {count}"
    if (np.isnan(errors) & ~np.isnan(values)).any():
        name = parts.removesuffix("es").removesuffix("s")
        return f"some intervals are missing because one {name} alone tells a layer's images apart"
    return None


def student_t(count: int) -> float:
    """Give the two-sided 95% quantile of Student's t for a jackknife over `count` parts."""
    if count < 2:
        return math.nan
    from scipy.special import stdtrit  # readers of studies need none

    return float(stdtrit(count - 1, 0.5 + CONFIDENCE / 2))


def null_level(shuffled: FloatArray, table: FloatArray) -> FloatArray:
    """Give the CKA that 95% of shuffles stay under.

    Args:
        shuffled: (S, L, L), HSICs with one model's images shuffled.
        table: (L, L), HSICs in order; a shuffle leaves their diagonal as it is.

    Returns:
        (L, L); NaN where CKA is undefined or nothing was shuffled.
    """
    own = np.diagonal(table)
    root = np.sqrt(np.where(own > 0, own, np.nan))
    levels: FloatArray = np.quantile(shuffled, NULL_LEVEL, axis=0) / root[:, None] / root[None, :]
    return levels
