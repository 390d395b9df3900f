"""Orthogonal Procrustes: how closely one layer can be rotated onto another.

In: features of the same images. Out: a distance, an angle or a similarity, all of one number:
the nuclear norm of the cross-covariance of both layers, each scaled to size 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from analysis.arrays import FloatArray, IntArray, principal, some_images, usable_matrix


@dataclass(frozen=True)
class Form:
    """How the nuclear norm is told: as what, in which range, and which way is alike."""

    convert: Callable[[float], float]
    title: str
    range: tuple[float, float]
    direction: str


FORMS = {
    "distance": Form(
        lambda norm: 2 - 2 * norm, "Procrustes distance", (0.0, 2.0), "lower is more alike"
    ),
    "angle": Form(
        # Rounding may take equal features past 1, where there is no angle.
        lambda norm: math.acos(min(norm, 1.0)),
        "Procrustes angle",
        (0.0, math.pi / 2),
        "lower is more alike",
    ),
    "similarity": Form(
        lambda norm: norm, "Procrustes similarity", (0.0, 1.0), "higher is more alike"
    ),
}


@dataclass(frozen=True, eq=False)
class Shape:
    """A layer's centred features of size 1, up to a rotation, (N, R), and their nuclear norm."""

    features: FloatArray
    nuclear_norm: float


@dataclass(frozen=True)
class Procrustes:
    """Distance left between two layers after the best rotation of one onto the other.

    With A and B centred over images and scaled to Frobenius norm 1, and s = |A^T B|_* (the sum
    of singular values): "distance" is min over rotations R of |A - B R|^2 = 2 - 2 s, "angle" is
    arccos s in radians, a metric, and "similarity" is s. Layers of different widths are padded
    with zeros. Unrelated features score s up to about min(|A|_*, |B|_*) / sqrt(N - 1): with more
    dimensions than images, s is large whatever the layers are.

    Args:
        form: "distance", "angle" or "similarity".

    Source: Ding, Denain and Steinhardt 2021 (Grounding representation similarity), section 2;
    Williams, Kunz, Kornblith and Linderman 2021 (Generalized shape metrics), section 2, for the
    angle.
    """

    form: str = "distance"

    invariances: ClassVar[tuple[str, ...]] = (
        "shift, rotation and isotropic scaling of either layer's features",
    )
    symmetric: ClassVar[bool] = True
    sample_limit: ClassVar[int] = 1000
    interval_caution: ClassVar[str] = (
        "intervals of Procrustes show how much the value scatters at this number of images, not "
        "how far few images make layers look alike: see the chance level"
    )

    def __post_init__(self) -> None:
        if self.form not in FORMS:
            raise ValueError(f"form must be one of {', '.join(FORMS)}, but it is {self.form!r}")

    @property
    def title(self) -> str:
        """What to call it."""
        return FORMS[self.form].title

    @property
    def range(self) -> tuple[float, float]:
        """Smallest and largest value."""
        return FORMS[self.form].range

    @property
    def direction(self) -> str:
        """Which way is alike."""
        return FORMS[self.form].direction

    def prepare(self, features: Any) -> Shape:
        """Centre and scale a layer, once; (N, ...) features, N >= 3."""
        left, sizes = principal(usable_matrix(features))
        sizes = sizes / np.linalg.norm(sizes)
        return Shape(left * sizes, float(sizes.sum()))

    def restrict(self, prepared: Shape, images: IntArray) -> Shape:
        """Prepare some of the images anew, given by index."""
        return self.prepare(some_images(prepared.features, images))

    def compare(self, prepared_a: Shape, prepared_b: Shape) -> float:
        """Give the distance, angle or similarity."""
        cross = prepared_a.features.T @ prepared_b.features
        return FORMS[self.form].convert(float(np.linalg.svd(cross, compute_uv=False).sum()))

    def chance(self, prepared_a: Shape, prepared_b: Shape) -> float:
        """Bound what the same features score on average once one layer's images are shuffled.

        A nuclear norm is at most the sum of the norms of the rows, and row i of A^T P B has the
        mean square a_i^2 / (N - 1) over permutations P, with a_i the singular values of A.
        """
        smaller = min(prepared_a.nuclear_norm, prepared_b.nuclear_norm)
        bound = smaller / math.sqrt(len(prepared_a.features) - 1)
        return FORMS[self.form].convert(min(bound, 1.0))
