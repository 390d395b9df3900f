"""What geometry's measures share: features as a matrix, and the sums that add up over images.

In: features of one layer. Out: `Moments`, from which spectra and class statistics follow
without another look at the images; moments of parts of the images add up to those of all.
This file knows numpy only, and treats torch tensors by the verbs that both share.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.floating[Any]]
IntArray = npt.NDArray[np.integer[Any]]

NOT_FINITE = "its features are not all finite numbers, or too large to multiply"
CONSTANT = "its features are the same for every image"
# Features are centred and multiplied this many columns at a time: the float64 copy stays small.
BLOCK_COLUMNS = 4096
EPSILON = float(np.finfo(np.float64).eps)


class Undefined(ValueError):  # noqa: N818  a measure without a value is no fault of the program
    """A measure has no value for these features; the message is the reason."""


@dataclass(frozen=True, eq=False)
class Moments:
    """Sums over images of one layer's features x, taken off one point: all images the same.

    `counts` (K,) images and `sums` (K, D) of x by class; `second` (D, D) sum of x x^T over all.
    float64. They add (more images) and subtract (images left out) exactly, up to rounding.
    """

    counts: FloatArray
    sums: FloatArray
    second: FloatArray

    def __add__(self, other: Moments) -> Moments:
        return Moments(
            self.counts + other.counts, self.sums + other.sums, self.second + other.second
        )

    def __sub__(self, other: Moments) -> Moments:
        return Moments(
            self.counts - other.counts, self.sums - other.sums, self.second - other.second
        )

    @property
    def samples(self) -> int:
        """Number of images."""
        return round(float(self.counts.sum()))

    def moved(self, step: FloatArray) -> Moments:
        """Take the sums off a point that lies `step` (D,) before the present one."""
        if not step.any():
            return self
        cross = np.outer(self.sums.sum(axis=0), step)
        second = self.second + cross + cross.T + self.samples * np.outer(step, step)
        return Moments(self.counts, self.sums + self.counts[:, None] * step, second)

    def total(self) -> FloatArray:
        """Scatter about the mean of all images, (D, D): sum (x - mean) (x - mean)^T."""
        whole = self.sums.sum(axis=0)
        return np.asarray(self.second - np.outer(whole, whole) / self.samples)

    def within(self) -> FloatArray:
        """Scatter about the mean of each image's class, (D, D)."""
        present = self.counts > 0
        scaled = self.sums[present] / np.sqrt(self.counts[present])[:, None]
        return self.second - scaled.T @ scaled

    def class_means(self) -> FloatArray:
        """Means of the K' classes that have images, less the mean of these means, (K', D)."""
        present = self.counts > 0
        means = self.sums[present] / self.counts[present][:, None]
        return np.asarray(means - means.mean(axis=0))


def matrix(features: Any) -> FloatArray:
    """Give one layer's features as a numpy matrix.

    Args:
        features: (N, ...) array, tensor or nested lists of any real type.

    Returns:
        (N, D), fp32 or float64; half precision is widened to fp32.

    Raises:
        ValueError: no axis but the images', or nothing in it.
        Undefined: features that are not finite.
    """
    if hasattr(features, "detach"):
        features = features.detach()
        if str(features.dtype) != "torch.float64":
            features = features.float()
        features = features.cpu().numpy()
    array = np.asarray(features)
    if array.dtype not in (np.float32, np.float64):
        array = array.astype(np.float32 if array.dtype == np.float16 else np.float64)
    if array.ndim < 2 or array.size == 0:
        raise ValueError(
            "geometry needs features of the shape (N, ...) of at least one image, but they have "
            f"the shape {array.shape}"
        )
    if not np.isfinite(array).all():
        raise Undefined(NOT_FINITE)
    return array.reshape(len(array), -1)


def class_labels(labels: Any, samples: int) -> IntArray:
    """Check labels.

    Args:
        labels: (N,) whole numbers from 0, array, tensor or list.
        samples: N.

    Returns:
        (N,) int64.

    Raises:
        ValueError: another shape or kind, or a label below 0.
    """
    array = np.asarray(labels.detach().cpu() if hasattr(labels, "detach") else labels)
    if array.shape != (samples,):
        raise ValueError(
            f"{samples} images need labels of the shape ({samples},), but they have the shape "
            f"{array.shape}"
        )
    if array.dtype.kind not in "iu" or (array < 0).any():
        raise ValueError("labels must be whole numbers from 0, one class an image")
    return array.astype(np.int64)


def add_up(rows: FloatArray, labels: IntArray, num_classes: int) -> Moments:
    """Sum float64 `rows` (N, D), already off the common point, into `Moments`."""
    counts = np.bincount(labels, minlength=num_classes).astype(np.float64)
    members = (np.arange(num_classes)[:, None] == labels).astype(np.float64)
    with np.errstate(all="ignore"):
        return Moments(counts, members @ rows, rows.T @ rows)


def moments(features: Any, labels: Any = None) -> Moments:
    """Reduce features to moments, in a rotated frame where they are wider than images are many.

    Args:
        features: (N, ...) array or tensor, flattened to (N, D).
        labels: (N,) classes; None puts all images into one class.

    Returns:
        moments of the width D, or N - 1 at most if D >= N: rotations change no measure of them.

    Raises:
        ValueError: shapes that do not fit.
        Undefined: features that are not finite, or too large to multiply.
    """
    array = matrix(features)
    classes = class_labels([0] * len(array) if labels is None else labels, len(array))
    rows = coordinates(array) if array.shape[1] >= len(array) else centred(array)
    result = add_up(rows, classes, int(classes.max()) + 1)
    if not np.isfinite(result.second).all():
        raise Undefined(NOT_FINITE)
    return result


def centred(features: FloatArray) -> FloatArray:
    """Subtract the mean image from (N, D), in float64; exactly 0 where constant."""
    rows = features.astype(np.float64) - features[0]
    # Off the first image before the mean is taken: no digits are lost far from zero.
    rows -= rows.mean(axis=0)
    return np.asarray(rows)


def centred_products(features: FloatArray) -> FloatArray:
    """Multiply the centred rows of (N, D) among themselves: their Gram matrix, (N, N) float64."""
    gram = np.zeros((len(features), len(features)))
    with np.errstate(all="ignore"):
        for start in range(0, features.shape[1], BLOCK_COLUMNS):
            block = centred(features[:, start : start + BLOCK_COLUMNS])
            gram += block @ block.T
    return gram


def coordinates(features: FloatArray) -> FloatArray:
    """Turn centred features so that all but the first r <= N - 1 axes are empty; drop those.

    Args:
        features: (N, D).

    Returns:
        (N, r) float64 principal coordinates, with the distances and angles of the features.

    Raises:
        Undefined: products that are not finite.
    """
    gram = centred_products(features)
    if not np.isfinite(gram).all():
        raise Undefined(NOT_FINITE)
    squares, vectors = np.linalg.eigh(gram)
    kept = squares > max(squares[-1], 0) * EPSILON * len(gram)
    if not kept.any():
        return np.zeros((len(gram), 1))
    return np.asarray((vectors[:, kept] * np.sqrt(squares[kept]))[:, ::-1])
