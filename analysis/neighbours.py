"""Mutual nearest neighbours: whether two layers put the same images side by side.

In: features of the same images. Out: the mean share of each image's k nearest neighbours that
both layers agree on.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from analysis.arrays import FloatArray, IntArray, UndefinedError, usable_matrix
from analysis.rsa import ALL_EQUAL, DISSIMILARITIES


@dataclass(frozen=True, eq=False)
class Neighbourhoods:
    """Dissimilarities of a layer's images (N, N), and who is whose neighbour, (N, N) in [0, 1].

    `rounding` is the difference up to which dissimilarities are equal.
    """

    square: FloatArray
    members: FloatArray
    rounding: float


@dataclass(frozen=True)
class MutualNeighbours:
    """Share of the k nearest neighbours that two layers have in common, averaged over images.

    mean_i |neighbours_a(i) and neighbours_b(i)| / k. 1 for the same neighbours everywhere,
    k / (N - 1) on average for unrelated features, so it can be compared between equal N and k
    only. Images equally far away share the places that are left, as if drawn at random.

    Args:
        num_neighbours: k, at least 1 and below N - 1.
        dissimilarity: "cosine", "correlation" or "euclidean" ("squared-euclidean" is the same).

    Source: Huh, Cheung, Wang and Isola 2024 (The platonic representation hypothesis), appendix A,
    with k = 10 and cosine on features as they are; ties are ours.
    """

    num_neighbours: int = 10
    dissimilarity: str = "cosine"

    title: ClassVar[str] = "Mutual nearest neighbours"
    range: ClassVar[tuple[float, float]] = (0.0, 1.0)
    direction: ClassVar[str] = "higher is more alike"
    symmetric: ClassVar[bool] = True
    sample_limit: ClassVar[int] = 1000
    interval_caution: ClassVar[str] = (
        "intervals of neighbour overlap are rough, too wide rather than too narrow: where images "
        "are left out, others move up among the nearest"
    )

    def __post_init__(self) -> None:
        if self.num_neighbours < 1:
            raise ValueError(
                f"the number of neighbours must be at least 1, but it is {self.num_neighbours}"
            )
        if self.dissimilarity not in DISSIMILARITIES:
            raise ValueError(
                f"dissimilarity must be one of {', '.join(DISSIMILARITIES)}, but it is "
                f"{self.dissimilarity!r}"
            )

    @property
    def invariances(self) -> tuple[str, ...]:
        """What leaves the value as it is."""
        return (DISSIMILARITIES[self.dissimilarity].invariance,)

    def prepare(self, features: Any) -> Neighbourhoods:
        """Find a layer's neighbours, once; (N, ...) features, N >= k + 2."""
        matrix = usable_matrix(features, smallest=self.num_neighbours + 2)
        kind = DISSIMILARITIES[self.dissimilarity]
        square = kind.between(matrix)
        return self._neighbourhoods(square, kind.rounding(square))

    def restrict(self, prepared: Neighbourhoods, images: IntArray) -> Neighbourhoods:
        """Keep some of the images, given by index, and find their neighbours among them."""
        return self._neighbourhoods(prepared.square[np.ix_(images, images)], prepared.rounding)

    def compare(self, prepared_a: Neighbourhoods, prepared_b: Neighbourhoods) -> float:
        """Give the mean overlap, in [0, 1]."""
        shared = np.vdot(prepared_a.members, prepared_b.members)
        return float(shared / len(prepared_a.members) / self.num_neighbours)

    def chance(self, prepared_a: Neighbourhoods, prepared_b: Neighbourhoods) -> float:
        """Tell what the same features score on average once one layer's images are shuffled."""
        return self.num_neighbours / (len(prepared_a.members) - 1)

    def _neighbourhoods(self, square: FloatArray, rounding: float) -> Neighbourhoods:
        """Give each image its k nearest; those tied for the last places share them."""
        count = self.num_neighbours
        if len(square) < count + 2:
            raise UndefinedError(
                f"{count} neighbours need at least {count + 2} images, and there are {len(square)}"
            )
        others = square.copy()
        np.fill_diagonal(others, np.inf)
        if square.max() - others.min() <= rounding:
            raise UndefinedError(ALL_EQUAL)
        last = np.partition(others, count - 1, axis=1)[:, count - 1 : count]
        nearer, tied = others < last - rounding, np.abs(others - last) <= rounding
        places = (count - nearer.sum(axis=1)) / tied.sum(axis=1)
        return Neighbourhoods(square, nearer + tied * places[:, None], rounding)
