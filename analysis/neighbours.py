"""Mutual nearest neighbours: whether two layers put the same images side by side.

In: features of the same images. Out: the mean share of each image's k nearest neighbours that
both layers agree on.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from analysis.arrays import FloatArray, IntArray, UndefinedError, usable_matrix
from analysis.rsa import cosine, squared_euclidean

DISTANCES: dict[str, Callable[[FloatArray], FloatArray]] = {
    "cosine": cosine,
    "euclidean": squared_euclidean,
}
INVARIANCES = {
    "cosine": "rotation of either layer's features, and the scale of each image",
    "euclidean": "shift, rotation and isotropic scaling of either layer's features",
}


@dataclass(frozen=True, eq=False)
class Neighbourhoods:
    """Distances of a layer's images (N, N), and who is a neighbour of whom, (N, N) in [0, 1]."""

    distances: FloatArray
    members: FloatArray


@dataclass(frozen=True)
class MutualNeighbours:
    """Share of the k nearest neighbours that two layers have in common, averaged over images.

    mean_i |neighbours_a(i) and neighbours_b(i)| / k. 1 for the same neighbours everywhere,
    k / (N - 1) on average for unrelated features, so it can be compared between equal N and k
    only. Images equally far away share the places that are left, as if drawn at random.

    Args:
        num_neighbours: k, at least 1 and below N - 1.
        distance: "cosine" or "euclidean".

    Source: Huh, Cheung, Wang and Isola 2024 (The platonic representation hypothesis), appendix A,
    with k = 10 and cosine on features as they are; ties are ours.
    """

    num_neighbours: int = 10
    distance: str = "cosine"

    title: ClassVar[str] = "Mutual nearest neighbours"
    range: ClassVar[tuple[float, float]] = (0.0, 1.0)
    direction: ClassVar[str] = "higher is more alike"
    symmetric: ClassVar[bool] = True
    sample_limit: ClassVar[int] = 2000
    interval_caution: ClassVar[str] = (
        "intervals of neighbour overlap are rough: leaving images out lets others move up among "
        "the nearest, so that the parts do not measure quite what the whole does"
    )

    def __post_init__(self) -> None:
        if self.num_neighbours < 1:
            raise ValueError(
                f"the number of neighbours must be at least 1, but it is {self.num_neighbours}"
            )
        if self.distance not in DISTANCES:
            raise ValueError(
                f"distance must be one of {', '.join(DISTANCES)}, but it is {self.distance!r}"
            )

    @property
    def invariances(self) -> tuple[str, ...]:
        """What leaves the value as it is."""
        return (INVARIANCES[self.distance],)

    def prepare(self, features: Any) -> Neighbourhoods:
        """Find a layer's neighbours, once; (N, ...) features, N >= k + 2."""
        matrix = usable_matrix(features, smallest=self.num_neighbours + 2)
        return self._neighbourhoods(DISTANCES[self.distance](matrix))

    def restrict(self, prepared: Neighbourhoods, images: IntArray) -> Neighbourhoods:
        """Keep some of the images, given by index, and find their neighbours among them."""
        return self._neighbourhoods(prepared.distances[np.ix_(images, images)])

    def compare(self, prepared_a: Neighbourhoods, prepared_b: Neighbourhoods) -> float:
        """Give the mean overlap, in [0, 1]."""
        shared = np.vdot(prepared_a.members, prepared_b.members)
        return float(shared / len(prepared_a.members) / self.num_neighbours)

    def chance(self, prepared_a: Neighbourhoods, prepared_b: Neighbourhoods) -> float:
        """Tell what the same features score on average once one layer's images are shuffled."""
        return self.num_neighbours / (len(prepared_a.members) - 1)

    def _neighbourhoods(self, distances: FloatArray) -> Neighbourhoods:
        """Give each image its k nearest; those tied for the last places share them."""
        if len(distances) < self.num_neighbours + 2:
            raise UndefinedError(
                f"{self.num_neighbours} neighbours need at least {self.num_neighbours + 2} images, "
                f"and there are {len(distances)}"
            )
        others = distances.copy()
        np.fill_diagonal(others, np.inf)
        last = np.partition(others, self.num_neighbours - 1, axis=1)
        last = last[:, self.num_neighbours - 1 : self.num_neighbours]
        nearer, tied = others < last, others == last
        places = self.num_neighbours - nearer.sum(axis=1, keepdims=True)
        return Neighbourhoods(distances, nearer + tied * (places / tied.sum(axis=1, keepdims=True)))
