"""Multinomial logistic regression to its optimum: the solver behind the linear probes.

In: training features (N, D), class indices (N,), a penalty. Out: a `Solution`, the weights and
intercepts at the minimum of

    f(W, b) = sum_i cross-entropy(W z_i + b, y_i) + penalty / 2 |W|^2,

with z the features standardised by the mean and deviation of the training images. f is strictly
convex in W, so there is one minimum and every solver ends there; this one gets there quickly:

- The features are turned to their principal axes (`PrincipalAxes`), which changes neither f nor
  |W|, and each axis j is scaled by 1 / sqrt(e_j / K + penalty), with e_j its sum of squares. At
  W = 0 the Hessian is (I - 11'/K) / K times Z'Z, so after that it is the identity there, and near
  it later: for pooled layers of ResNets and a penalty of 1, L-BFGS needs 20 to 130 evaluations
  of f where the plain features take 130 to 550.
- With more features than images the axes come from the N x N Gram matrix, in blocks of columns.
- All in float64, one layer at a time, in arrays that mostly stay in the processor's cache. Tried:
  nine layers of 64 features and 5,000 images in one stack take as long for an evaluation as one
  by one (7.7 ms on one core), and a stack would wait for its slowest layer.

Letters: N images, D features, R principal axes, K classes. This file knows numpy only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.floating[Any]]
IntArray = npt.NDArray[np.integer[Any]]

# Euclidean norm of the gradient of f / N at the end of a fit: with it, predictions no longer
# differ from those at the float64 optimum (FACTS: 0 differences at 1e-6 for the largest entry).
GRADIENT_TOLERANCE = 1e-6
# Where rounding stops a fit earlier, this much is still a fit.
STALLED_TOLERANCE = 1e-4
MOST_STEPS = 10_000
MEMORY = 20  # pairs of steps that L-BFGS remembers
SMALLEST_STEP = 1e-10
BLOCK_ENTRIES = 2**23  # of features widened to float64 at a time: 64 MiB


@dataclass(frozen=True, eq=False)
class Solution:
    """The minimum: `weights` (K, D) and `intercept` (K,) for standardised features.

    `objective` is f, `gradient` the Euclidean norm of the gradient of f / N, and `evaluations`
    how often f was computed. `rotated` (K, R + 1) are the weights and intercepts along the
    principal axes, where another penalty can start.
    """

    weights: FloatArray
    intercept: FloatArray
    objective: float
    gradient: float
    evaluations: int
    rotated: FloatArray


class PrincipalAxes:
    """Training features standardised and turned to their principal axes.

    Args:
        features: (N, D), finite.

    Attributes:
        mean: (D,), over the images.
        scale: (D,), 1 / deviation; 0 for constant features.
        coordinates: (R, N) float64, one row an axis, R <= min(N, D).
        squares: (R,), the sum of squares of each row.
    """

    def __init__(self, features: FloatArray) -> None:
        self._features = features
        self.mean, self.scale = moments(features)
        if features.shape[1] <= features.shape[0]:
            standardised = self._standardised(slice(None))
            self.squares, self._axes = _positive_axes(standardised.T @ standardised)
            self.coordinates = np.ascontiguousarray((standardised @ self._axes).T)
            self._dual: FloatArray | None = None
        else:
            self.squares, axes = _positive_axes(self._gram())
            lengths = np.sqrt(self.squares)
            self.coordinates = np.ascontiguousarray((axes * lengths).T)
            self._dual = axes / lengths

    def weights(self, rotated: FloatArray) -> FloatArray:
        """Turn weights (K, R) along the axes into weights (K, D) of standardised features."""
        if self._dual is None:
            return np.asarray(rotated @ self._axes.T)
        images = rotated @ self._dual.T
        parts = [images @ self._standardised(block) for block in self._blocks()]
        return np.concatenate(parts, axis=1)

    def _gram(self) -> FloatArray:
        """Inner products (N, N) of standardised images."""
        gram = np.zeros((len(self._features), len(self._features)))
        for block in self._blocks():
            standardised = self._standardised(block)
            gram += standardised @ standardised.T
        return gram

    def _standardised(self, columns: slice) -> FloatArray:
        """Standardise some columns in float64."""
        block = self._features[:, columns].astype(np.float64)
        return np.asarray((block - self.mean[columns]) * self.scale[columns])

    def _blocks(self) -> list[slice]:
        """Cut the columns."""
        return column_blocks(*self._features.shape)


def column_blocks(rows: int, columns: int) -> list[slice]:
    """Cut columns into blocks of at most `BLOCK_ENTRIES` entries."""
    width = max(1, BLOCK_ENTRIES // max(rows, 1))
    return [slice(start, start + width) for start in range(0, columns, width)]


def moments(features: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Mean (D,) and 1 / deviation (D,) of each column in float64; 0 for constant columns."""
    means, scales = [], []
    for columns in column_blocks(*features.shape):
        block = features[:, columns].astype(np.float64)
        with np.errstate(over="ignore", invalid="ignore"):
            deviation = block.std(axis=0)
        if not np.isfinite(deviation).all():
            raise ValueError("its features are too large to square in float64")
        constant = (np.ptp(block, axis=0) == 0) | (deviation < np.finfo(np.float64).tiny)
        means.append(block.mean(axis=0))
        scales.append(np.where(constant, 0, 1 / np.where(constant, 1, deviation)))
    return np.concatenate(means), np.concatenate(scales)


def _positive_axes(products: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Eigenvalues (R,) and vectors (., R) of a matrix of products, without those of rounding."""
    squares, axes = np.linalg.eigh(products)
    kept = squares > len(squares) * np.finfo(np.float64).eps * max(squares[-1], 0)
    return squares[kept], axes[:, kept]


def minimise(
    axes: PrincipalAxes,
    classes: IntArray,
    num_classes: int,
    penalty: float,
    start: FloatArray | None = None,
) -> Solution:
    """Find the minimum of f by L-BFGS along scaled principal axes.

    Args:
        axes: of the training images.
        classes: (N,), in 0..K-1, each of them at least once.
        num_classes: K.
        penalty: above 0.
        start: (K, R + 1), the `rotated` of another penalty; None starts at 0.

    Raises:
        ValueError: the fit did not end.

    Source: Nocedal 1980 (L-BFGS); the scaling is the Hessian at W = 0 of Böhning 1992.
    """
    problem = _Problem(axes, classes, num_classes, penalty)
    if start is None:
        start = np.zeros((num_classes, len(problem.scale)))
    point, objective, gradient = _descend(problem, start / problem.scale)
    rotated = point * problem.scale
    return Solution(
        weights=axes.weights(rotated[:, :-1]),
        intercept=rotated[:, -1].copy(),
        objective=objective,
        gradient=problem.norm(gradient),
        evaluations=problem.evaluations,
        rotated=rotated,
    )


class _Problem:
    """f and its gradient at points (K, R + 1) along scaled axes; the last column is b."""

    def __init__(
        self, axes: PrincipalAxes, classes: IntArray, num_classes: int, penalty: float
    ) -> None:
        num_images = len(classes)
        squares = np.append(axes.squares / num_classes + penalty, num_images / num_classes)
        self.scale = 1 / np.sqrt(squares)
        self.evaluations = 0
        self._penalties = np.append(np.full(len(axes.squares), penalty), 0) * self.scale**2
        self._inputs = np.empty((len(squares), num_images))
        np.multiply(axes.coordinates, self.scale[:-1, None], out=self._inputs[:-1])
        self._inputs[-1] = self.scale[-1]
        self._chosen = (classes, np.arange(num_images))
        self._scores = np.empty((num_classes, num_images))

    def evaluate(self, point: FloatArray) -> tuple[float, FloatArray]:
        """Compute f and its gradient (K, R + 1)."""
        self.evaluations += 1
        scores = np.matmul(point, self._inputs, out=self._scores)
        scores -= scores.max(axis=0)
        right = scores[self._chosen].sum()
        np.exp(scores, out=scores)
        sums = scores.sum(axis=0)
        shrunk = self._penalties * point
        objective = float(np.log(sums).sum() - right + 0.5 * (shrunk * point).sum())
        scores /= sums
        scores[self._chosen] -= 1
        return objective, scores @ self._inputs.T + shrunk

    def norm(self, gradient: FloatArray) -> float:
        """Norm of the gradient of f / N by W and b, from that along scaled axes."""
        return float(np.linalg.norm(gradient / self.scale)) / self._inputs.shape[1]


def _descend(problem: _Problem, point: FloatArray) -> tuple[FloatArray, float, FloatArray]:
    """Go down to the minimum; give the point, f and the gradient there."""
    objective, gradient = problem.evaluate(point)
    history = _History(point.size)
    for _ in range(MOST_STEPS):
        if problem.norm(gradient) <= GRADIENT_TOLERANCE:
            return point, objective, gradient
        found = _search(problem, point, objective, gradient, history.direction(gradient))
        if found is not None:
            history.remember(found[0] - point, found[2] - gradient)
            point, objective, gradient = found
        elif len(history.steps):
            history = _History(point.size)
        elif problem.norm(gradient) <= STALLED_TOLERANCE:
            return point, objective, gradient
        else:
            raise ValueError("its fit came to a halt before its end; take a larger penalty")
    raise ValueError(f"its fit did not end within {MOST_STEPS:,} steps; take a larger penalty")


def _search(
    problem: _Problem,
    point: FloatArray,
    objective: float,
    gradient: FloatArray,
    direction: FloatArray,
) -> tuple[FloatArray, float, FloatArray] | None:
    """Step along a direction until f falls enough; None where rounding leaves nothing to gain."""
    slope = float((gradient * direction).sum())
    rounding = 1e-13 * abs(objective)
    step = 1.0
    while slope < 0 and step > SMALLEST_STEP:
        there = point + step * direction
        value, gradient_there = problem.evaluate(there)
        if value <= objective + 1e-4 * step * slope + rounding:
            return there, value, gradient_there
        # The minimum of the parabola through both values and the slope, kept inside the step.
        bend = value - objective - step * slope
        step *= float(np.clip(-step * slope / (2 * bend), 0.1, 0.5))
    return None


class _History:
    """What L-BFGS remembers: the last steps and the changes of the gradient along them, (M, P)."""

    def __init__(self, num_parameters: int) -> None:
        self.steps = np.empty((0, num_parameters))
        self.changes = np.empty((0, num_parameters))

    def remember(self, step: FloatArray, change: FloatArray) -> None:
        """Keep a step that saw curvature; rounding can hide it at the very end."""
        if (step * change).sum() > np.finfo(np.float64).eps * (change * change).sum():
            self.steps = np.vstack([self.steps[1 - MEMORY :], step.ravel()])
            self.changes = np.vstack([self.changes[1 - MEMORY :], change.ravel()])

    def direction(self, gradient: FloatArray) -> FloatArray:
        """Turn a gradient into a step downhill.

        In the form of Byrd, Nocedal and Schnabel 1994, equation 3.1: a few products of small
        matrices instead of two loops over the memory, which would take as long as f itself.
        """
        if not len(self.steps):
            return -gradient
        flat = gradient.ravel()
        products = self.steps @ self.changes.T
        squares = self.changes @ self.changes.T
        size = products[-1, -1] / squares[-1, -1]
        upper = np.triu(products)
        bottom = np.linalg.solve(upper, self.steps @ flat)
        inner = products.diagonal() * bottom + size * (squares @ bottom - self.changes @ flat)
        top = np.linalg.solve(upper.T, inner)
        result = size * (flat - bottom @ self.changes) + top @ self.steps
        return np.asarray(-result.reshape(gradient.shape))
