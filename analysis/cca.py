"""Canonical correlations of two layers: SVCCA and projection-weighted CCA.

In: features of the same images. Out: a mean of canonical correlations. Both overfit: with few
images any two sets of features have large correlations. `chance` tells how large, and with as
many directions as images there is no value at all.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from analysis.arrays import (
    FloatArray,
    IntArray,
    UndefinedError,
    centred,
    principal,
    some_images,
    usable_matrix,
)

CAUTION = (
    "intervals of CCA show how much the value scatters at this number of images, rather too wide, "
    "not how far overfitting raises it: where the chance level is high, more images give less"
)


@dataclass(frozen=True, eq=False)
class Directions:
    """A layer's principal directions U (N, R), their singular values (R,), and how many count."""

    left: FloatArray
    sizes: FloatArray
    kept: int

    @property
    def basis(self) -> FloatArray:
        """(N, kept) orthonormal."""
        return self.left[:, : self.kept]


@dataclass(frozen=True)
class SVCCA:
    """Mean canonical correlation of the principal directions that carry most of the variance.

    Each layer is cut to the fewest principal directions, k, that hold the fraction `variance`;
    the value is the mean of the min(k_a, k_b) singular values of Q_a^T Q_b, with Q orthonormal
    bases over the images. 1 for equal subspaces. Unrelated features score up to about
    sqrt(max(k_a, k_b) / (N - 1)), because the mean square of N - 1 dimensions' random
    correlations is just that; a layer that keeps all N - 1 directions has no value.

    Args:
        variance: fraction of each layer's variance to keep, above 0 and at most 1.

    Source: Raghu, Gilmer, Yosinski and Sohl-Dickstein 2017 (SVCCA), section 2.
    """

    variance: float = 0.99

    title: ClassVar[str] = "SVCCA"
    range: ClassVar[tuple[float, float]] = (0.0, 1.0)
    direction: ClassVar[str] = "higher is more alike"
    invariances: ClassVar[tuple[str, ...]] = (
        "shift, rotation and isotropic scaling of either layer's features",
        "invertible linear maps of either layer where all its directions are kept (variance = 1)",
    )
    symmetric: ClassVar[bool] = True
    sample_limit: ClassVar[int] = 2000
    interval_caution: ClassVar[str] = CAUTION

    def __post_init__(self) -> None:
        if not 0 < self.variance <= 1:
            raise ValueError(
                f"variance must be a fraction above 0 and at most 1, but it is {self.variance}"
            )

    def prepare(self, features: Any) -> Directions:
        """Find a layer's principal directions, once; (N, ...) features, N >= 3."""
        return self._directions(usable_matrix(features))

    def restrict(self, prepared: Directions, images: IntArray) -> Directions:
        """Prepare some of the images anew, given by index."""
        return self._directions(some_images(prepared.left * prepared.sizes, images))

    def compare(self, prepared_a: Directions, prepared_b: Directions) -> float:
        """Give the mean canonical correlation, in [0, 1]."""
        correlations = np.linalg.svd(prepared_a.basis.T @ prepared_b.basis, compute_uv=False)
        return float(correlations.mean())

    def chance(self, prepared_a: Directions, prepared_b: Directions) -> float:
        """Bound what the same features score on average once one layer's images are shuffled."""
        return _chance(prepared_a, prepared_b)

    def _directions(self, matrix: FloatArray) -> Directions:
        """Decompose, and count the directions that hold the wanted variance."""
        left, sizes = principal(matrix)
        held = np.cumsum(sizes**2) / (sizes**2).sum()
        kept = min(int(np.searchsorted(held, self.variance * (1 - 1e-12))) + 1, len(sizes))
        if kept >= len(matrix) - 1:
            raise UndefinedError(
                f"{kept} directions hold {self.variance:g} of its variance over {len(matrix)} "
                "images, so that it correlates fully with anything: take more images, pool the "
                "features, or keep less variance"
            )
        return Directions(left, sizes, kept)


@dataclass(frozen=True, eq=False)
class Neurons(Directions):
    """Directions, and each neuron written in them: `loadings` (R, D) = U^T X."""

    loadings: FloatArray


@dataclass(frozen=True)
class PWCCA:
    """Mean canonical correlation, weighted by how much of layer A each canonical variate carries.

    sum_i alpha_i rho_i / sum_i alpha_i, where h_i are the canonical variates of A, rho_i their
    correlations with those of B, and alpha_i = sum_j |<h_i, x_j>| over the neurons x_j of A. The
    weights are A's, so it is not symmetric; where A has more dimensions than B, only as many
    variates as B has dimensions are weighed. No value with as many features as images or more:
    it would be 1 whatever the layers are.

    Source: Morcos, Raghu and Bengio 2018 (Insights on representational similarity with canonical
    correlation), section 3 on projection weighting. Their code takes the weights of whichever
    layer kept fewer directions; here they are A's always.
    """

    title: ClassVar[str] = "Projection-weighted CCA"
    range: ClassVar[tuple[float, float]] = (0.0, 1.0)
    direction: ClassVar[str] = "higher is more alike"
    invariances: ClassVar[tuple[str, ...]] = (
        "shift and invertible linear maps of the features of layer B (columns)",
        "shift, isotropic scaling, reordering and sign flips of the features of layer A (rows); "
        "not rotation, since the weights are sums over its neurons",
    )
    symmetric: ClassVar[bool] = False
    sample_limit: ClassVar[int] = 5000
    interval_caution: ClassVar[str] = CAUTION

    def prepare(self, features: Any) -> Neurons:
        """Decompose a layer, once; (N, ...) features, N >= D + 2."""
        matrix = usable_matrix(features)
        samples, num_features = matrix.shape
        if samples < num_features + 2:
            raise UndefinedError(
                f"it has {num_features} features for {samples} images, so that PWCCA would be 1 "
                f"with anything: take at least {num_features + 2} images, or pool the features"
            )
        left, sizes = principal(matrix)
        return Neurons(left, sizes, len(sizes), left.T @ centred(matrix))

    def restrict(self, prepared: Neurons, images: IntArray) -> Neurons:
        """Prepare some of the images anew, given by index."""
        return self.prepare(some_images(prepared.left @ prepared.loadings, images))

    def compare(self, prepared_a: Neurons, prepared_b: Neurons) -> float:
        """Give the weighted mean of the correlations, in [0, 1]."""
        variates, correlations, _ = np.linalg.svd(
            prepared_a.basis.T @ prepared_b.basis, full_matrices=False
        )
        weights = np.abs(variates.T @ prepared_a.loadings).sum(axis=1)
        return float(weights @ correlations / weights.sum())

    def chance(self, prepared_a: Neurons, prepared_b: Neurons) -> float:
        """Estimate what the same features score on average once one layer's images are shuffled."""
        return _chance(prepared_a, prepared_b)


def _chance(prepared_a: Directions, prepared_b: Directions) -> float:
    """Give the root mean square correlation of shuffled images: E |Q_a^T P Q_b|^2 is known."""
    return math.sqrt(max(prepared_a.kept, prepared_b.kept) / (len(prepared_a.left) - 1))
