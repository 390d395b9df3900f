"""Linear predictivity: how much of one layer's features a linear map of another's tells.

In: features of the same images. Out: the R^2 of a ridge regression on images that it was not
fitted to.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np

from analysis.arrays import FloatArray, IntArray, rotated, some_images, usable_matrix

# Decades around the total variance of the predictors: from nearly none to next to nothing left.
PENALTIES = tuple(10.0**exponent for exponent in range(-7, 2))


@dataclass(frozen=True, eq=False)
class Fold:
    """Predictors of one fold, along the principal directions of its training images.

    `train` (N_train,) and `test` (N_test,) index images, `train_scores` (N_train, R) and
    `test_scores` (N_test, R) are centred by the training mean, and `energies` (R,) are the
    squared singular values.
    """

    train: IntArray
    test: IntArray
    train_scores: FloatArray
    test_scores: FloatArray
    energies: FloatArray


@dataclass(frozen=True, eq=False)
class Predictors:
    """A layer's centred features, up to a rotation, (N, R), and the fold of each image, (N,)."""

    features: FloatArray
    fold_by_image: IntArray

    @cached_property
    def folds(self) -> list[Fold]:
        """The decomposition of every fold, when this layer first predicts another."""
        numbers = np.unique(self.fold_by_image)
        return [_decompose(self.features, self.fold_by_image == number) for number in numbers]


@dataclass(frozen=True)
class LinearPredictivity:
    """R^2 of predicting layer B's features from layer A's by ridge regression, cross-validated.

    1 - sum |b - b_hat|^2 / sum |b - b_mean|^2 over all held-out images and all features of B at
    once, where b_mean is the mean of the training images: 1 is perfect, 0 is no better than the
    mean, and below 0 is worse; features of B with more variance count for more. Not symmetric:
    rows predict columns. For each fold, one penalty for all features of B is chosen by generalised
    cross-validation on the training images alone.

    Args:
        penalties: to choose from, 0 or above, as parts of the predictors' total variance: alpha
            in scikit-learn is the penalty times sum_ij a_ij^2 of centred training features.
        folds: parts that are held out in turn.
        seed: decides which image is in which fold.

    Source: Yamins et al. 2014 (Performance-optimized hierarchical models), for predictivity;
    Golub, Heath and Wahba 1979 (Generalized cross-validation) for the choice of the penalty.
    """

    penalties: tuple[float, ...] = PENALTIES
    folds: int = 5
    seed: int = 0

    title: ClassVar[str] = "Linear predictivity"
    range: ClassVar[tuple[float, float]] = (-math.inf, 1.0)
    direction: ClassVar[str] = "higher is more alike"
    invariances: ClassVar[tuple[str, ...]] = (
        "shift, rotation and isotropic scaling of either layer's features",
        "invertible linear maps of the predicting layer A (rows) without a penalty; never of the "
        "predicted layer B (columns), whose features count by their variance",
    )
    symmetric: ClassVar[bool] = False
    sample_limit: ClassVar[int] = 2000
    interval_caution: ClassVar[str] = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "penalties", tuple(float(value) for value in self.penalties))
        if not self.penalties or not all(0 <= value < math.inf for value in self.penalties):
            raise ValueError(
                "penalties must be one or more finite numbers, 0 or above, but they are "
                f"{self.penalties}"
            )
        if self.folds < 2:
            raise ValueError(f"the number of folds must be at least 2, but it is {self.folds}")

    def prepare(self, features: Any) -> Predictors:
        """Centre a layer and deal its images to folds, once; (N, ...) features, N >= 2 folds."""
        matrix = usable_matrix(features, smallest=max(2 * self.folds, 6))
        dealt = np.arange(len(matrix)) % self.folds
        np.random.default_rng(self.seed).shuffle(dealt)
        return Predictors(rotated(matrix), dealt)

    def restrict(self, prepared: Predictors, images: IntArray) -> Predictors:
        """Keep some of the images, given by index, each in its fold."""
        features = some_images(prepared.features, images)
        return Predictors(features, prepared.fold_by_image[images])

    def compare(self, prepared_a: Predictors, prepared_b: Predictors) -> float:
        """Give the R^2 of B predicted from A, at most 1."""
        parts = [
            _squared_errors(fold, prepared_b.features, self.penalties) for fold in prepared_a.folds
        ]
        errors, spreads = np.sum(parts, axis=0)
        return float(1 - errors / spreads)

    def chance(self, prepared_a: Predictors, prepared_b: Predictors) -> float:
        """Tell what unrelated features score on average, at most: 0, for none of it is fitted."""
        return 0.0


def _decompose(features: FloatArray, held_out: Any) -> Fold:
    """Find the principal directions of one fold's training images, and all images along them."""
    train, test = np.flatnonzero(~held_out), np.flatnonzero(held_out)
    mean = features[train].mean(axis=0)
    fitted, others = features[train] - mean, features[test] - mean
    tall = len(train) > fitted.shape[1]
    energies, vectors = np.linalg.eigh(fitted.T @ fitted if tall else fitted @ fitted.T)
    keep = energies > max(energies[-1], 0) * len(train) * np.finfo(np.float64).eps
    energies, vectors = energies[keep], vectors[:, keep]
    if tall:
        return Fold(train, test, fitted @ vectors, others @ vectors, energies)
    sizes = np.sqrt(energies)
    return Fold(train, test, vectors * sizes, others @ fitted.T @ vectors / sizes, energies)


def _squared_errors(
    fold: Fold, targets: FloatArray, penalties: tuple[float, ...]
) -> tuple[float, float]:
    """Sum the squared errors of one fold's predictions, and of the training mean instead."""
    mean = targets[fold.train].mean(axis=0)
    fitted, others = targets[fold.train] - mean, targets[fold.test] - mean
    cross = fold.train_scores.T @ fitted
    penalty = _best_penalty(fold, (fitted**2).sum(), (cross**2).sum(axis=1), penalties)
    predicted = fold.test_scores @ (cross / (fold.energies + penalty)[:, None])
    return float(((others - predicted) ** 2).sum()), float((others**2).sum())


def _best_penalty(
    fold: Fold, total: float, explained: FloatArray, penalties: tuple[float, ...]
) -> float:
    """Choose the penalty of the least generalised cross-validation error, in units of energies.

    `total` is |B|^2 of the centred training targets, `explained` (R,) is |A_r^T B|^2.
    """
    samples, energies = len(fold.train), fold.energies
    candidates = np.array(penalties) * energies.sum()
    shrunk = energies + candidates[:, None]
    residuals = total - (explained * (energies + 2 * candidates[:, None]) / shrunk**2).sum(axis=1)
    # One degree of freedom is the mean's.
    freedom = samples - 1 - (energies / shrunk).sum(axis=1)
    usable = freedom > 1e-6 * samples
    scores = np.where(usable, residuals, np.inf) / np.where(usable, freedom, 1) ** 2
    # Where no penalty leaves any freedom, the largest errs least.
    return float(candidates[scores.argmin()] if usable.any() else candidates.max())
