"""How a layer arranges its classes: separability, silhouette, neural collapse NC1 to NC4.

In: features (N, ...) of one layer and labels (N,), numpy or torch. Out: numbers; `Undefined` with
the reason where there is none. Throughout, m_c is the mean of class c, and m the mean of the m_c.
This file knows numpy only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from analysis.moments import (
    CONSTANT,
    EPSILON,
    FloatArray,
    IntArray,
    Moments,
    Undefined,
    centred,
    class_labels,
    coordinates,
    matrix,
    moments,
)
from analysis.spectrum import squared_distances

# Class means that differ by less than this share of the features' spread are one and the same:
# far above float64's rounding, far below what any number of images could tell apart.
RESOLUTION = 1e-10
SAME_MEANS = "all classes have the same mean features"


@dataclass(frozen=True)
class Simplex:
    """NC2: how far class means are from a simplex of equal lengths (`norms`) and `angles`."""

    norms: float
    angles: float


def class_separability(features: Any, labels: Any) -> float:
    """Share of the features' variance that lies between classes: tr S_B / (tr S_B + tr S_W).

    S_W is the scatter of images about their class mean and S_B that of these means, each as often
    as it has images, about the mean of all: Fisher's criterion of traces, put into [0, 1].

    Args:
        features: (N, ...) array or tensor, flattened to (N, D).
        labels: (N,) classes, two or more of them.

    Returns:
        in [0, 1]; higher is more separate, and labels at random give (K - 1) / (N - 1). Unchanged
        by rotation, scale and offset.

    Raises:
        ValueError: shapes that do not fit.
        Undefined: one class only, constant features, or features that are not finite.

    Source: Fisher 1936 for two classes; Fukunaga 1990 (Introduction to statistical pattern
    recognition), section 10.2, J = tr S_W / tr S_B, of which this is 1 / (1 + J).
    """
    return class_separability_of(moments(features, labels))


def class_separability_of(sums: Moments) -> float:
    """Class separability of features with these moments."""
    _check_classes(sums)
    total = float(np.trace(sums.total()))
    if not total > EPSILON * float(np.trace(sums.second)):
        raise Undefined(CONSTANT)
    return 1 - float(np.trace(sums.within())) / total


def silhouette(features: Any, labels: Any) -> float:
    """Mean silhouette, (b - a) / max(a, b) over images, of the classes in the feature space.

    a is an image's mean distance to the others of its class, b to those of the nearest other
    class. An image that is alone in its class counts 0.

    Args:
        features: (N, ...) array or tensor, flattened to (N, D).
        labels: (N,) classes, two or more of them.

    Returns:
        in [-1, 1]; higher is more separate, about 0 or below where classes overlap. Unchanged by
        rotation, scale and offset.

    Raises:
        ValueError: shapes that do not fit.
        Undefined: one class only, constant features, or features that are not finite.

    Source: Rousseeuw 1987 (Silhouettes: a graphical aid).
    """
    array = matrix(features)
    classes = class_labels(labels, len(array))
    distances = np.sqrt(squared_distances(array))
    counts = np.bincount(classes)
    return silhouette_of(distances @ np.eye(len(counts))[classes], classes, counts)


def silhouette_of(distance_sums: FloatArray, labels: IntArray, counts: IntArray) -> float:
    """Mean silhouette from each image's summed distances (N, K) to the `counts` (K,) images."""
    if (counts > 0).sum() < 2:
        raise Undefined("it needs images of at least 2 classes")
    if not distance_sums.any():
        raise Undefined(CONSTANT)
    rows = np.arange(len(labels))
    own = distance_sums[rows, labels] / np.maximum(counts[labels] - 1, 1)
    means = np.where(counts > 0, distance_sums / np.maximum(counts, 1), np.inf)
    means[rows, labels] = np.inf
    other = means.min(axis=1)
    largest = np.maximum(own, other)
    counted = (counts[labels] > 1) & (largest > 0)
    scores = np.divide(other - own, largest, out=np.zeros(len(labels)), where=counted)
    return float(scores.mean())


def nc1(features: Any, labels: Any) -> float:
    """NC1, variability within classes: tr(S_W S_B^+) / K.

    S_W = mean over images of (x - m_c)(x - m_c)^T, S_B = mean over classes of
    (m_c - m)(m_c - m)^T, ^+ the pseudo-inverse.

    Args:
        features: (N, ...) array or tensor, flattened to (N, D).
        labels: (N,) classes, two or more of them, one with two images at least.

    Returns:
        0 or more, lower is more collapsed. Large and uncertain where class means hardly differ.
        Unchanged by rotation, scale and offset.

    Raises:
        ValueError: shapes that do not fit.
        Undefined: one class only, one image a class, equal class means, features not finite.

    Source: Papyan, Han and Donoho 2020 (Prevalence of neural collapse during the terminal phase
    of deep learning training), figure 6.
    """
    return nc1_of(moments(features, labels))


def nc1_of(sums: Moments) -> float:
    """NC1 of features with these moments."""
    means = _distinct_means(sums)
    if not (sums.counts > 1).any():
        raise Undefined("no class has 2 images, so there is nothing within classes")
    _, spreads, axes = np.linalg.svd(means, full_matrices=False)
    # K centred means span K - 1 directions at most; what is left of the others is rounding.
    kept = spreads > RESOLUTION * _spread(sums)
    axes, spreads = axes[kept], spreads[kept]
    within = ((axes @ sums.within()) * axes).sum(axis=1) / sums.samples
    # S_B^+ = K sum_j axis_j axis_j^T / spread_j^2, so that K cancels.
    return float((within / spreads**2).sum())


def nc2(features: Any, labels: Any) -> Simplex:
    """NC2, class means as a simplex: equal lengths and equal, largest possible angles.

    Args:
        features: (N, ...) array or tensor, flattened to (N, D).
        labels: (N,) classes, two or more of them.

    Returns:
        `norms`: standard deviation of |m_c - m| over classes divided by their mean.
        `angles`: mean over pairs of classes of |cos(m_c - m, m_c' - m) + 1 / (K - 1)|.
        Both 0 or more, lower is more collapsed, 0 for two classes. Unchanged by rotation, scale
        and offset.

    Raises:
        ValueError: shapes that do not fit.
        Undefined: one class only, equal class means, or features that are not finite.

    Source: Papyan, Han and Donoho 2020, figures 2 and 4.
    """
    sums = moments(features, labels)
    return Simplex(nc2_norms_of(sums), nc2_angles_of(sums))


def nc2_norms_of(sums: Moments) -> float:
    """Unequal lengths of class means, of features with these moments."""
    norms = np.linalg.norm(_distinct_means(sums), axis=1)
    return float(norms.std() / norms.mean())


def nc2_angles_of(sums: Moments) -> float:
    """Deviation of the class means' angles from a simplex, of features with these moments."""
    means = _distinct_means(sums)
    norms = np.linalg.norm(means, axis=1)
    if not (norms > RESOLUTION * _spread(sums)).all():
        raise Undefined("the mean features of a class lie on those of all, so it has no angle")
    cosines = (means / norms[:, None]) @ (means / norms[:, None]).T
    pairs = np.triu_indices(len(means), 1)
    return float(np.abs(cosines[pairs] + 1 / (len(means) - 1)).mean())


def nc3(features: Any, labels: Any, weights: Any) -> float:
    """NC3, self-duality of classifier and class means: |W / |W| - M / |M||^2, Frobenius norms.

    Args:
        features: (N, ...) array or tensor, the classifier's input, flattened to (N, D).
        labels: (N,) classes; each of the classifier's K must have an image.
        weights: (K, D) of the linear classifier.

    Returns:
        in [0, 4]; lower is more dual. Unchanged by scale and offset of the features.

    Raises:
        ValueError: shapes of features and labels that do not fit.
        Undefined: weights of another shape, a class without images, equal class means.

    Source: Papyan, Han and Donoho 2020, figure 5. M has the rows m_c - m.
    """
    array = matrix(features)
    classes = class_labels(labels, len(array))
    counts = np.bincount(classes, minlength=len(weights)).astype(np.float64)
    rows = centred(array)
    means = np.stack([rows[classes == name].sum(axis=0) for name in range(len(counts))])
    return nc3_of(Moments(counts, means, np.array([[(rows**2).sum()]])), weights)


def nc3_of(sums: Moments, weights: Any) -> float:
    """NC3 of features with these moments, of which `second` may be its trace alone, (1, 1)."""
    weights = matrix(weights).astype(np.float64)
    if weights.shape != sums.sums.shape:
        raise Undefined(
            f"the classifier's weights have the shape {weights.shape}, but the class means "
            f"{sums.sums.shape}"
        )
    if not (sums.counts > 0).all():
        raise Undefined(f"there are no images of class {int(np.argmin(sums.counts > 0))}")
    means = _distinct_means(sums)
    size = np.linalg.norm(weights)
    if not size > 0:
        raise Undefined("the classifier's weights are all zero")
    return float(((weights / size - means / np.linalg.norm(means)) ** 2).sum())


def nc4(features: Any, labels: Any, predictions: Any) -> float:
    """NC4, how often the nearest class mean decides as a classifier does.

    Args:
        features: (N, ...) array or tensor, flattened to (N, D).
        labels: (N,) classes.
        predictions: (N,) classes that the classifier, or a probe, gives the same images; the
            labels themselves give the accuracy of the nearest class mean.

    Returns:
        fraction in [0, 1]; higher is more collapsed. Papyan et al. plot 1 minus this.

    Raises:
        ValueError: shapes that do not fit.
        Undefined: one class only, a class of one image, or features that are not finite.

    Source: Papyan, Han and Donoho 2020, figure 7. We leave each image out of its own class mean:
    with more features than images, the mean would otherwise give its label away.
    """
    array = matrix(features)
    given = class_labels(predictions, len(array))
    return float((nearest_class_mean(array, labels) == given).mean())


def nearest_class_mean(features: Any, labels: Any) -> IntArray:
    """Classify each image by the nearest class mean, that of its own class without itself.

    Args:
        features: (N, ...) array or tensor, flattened to (N, D).
        labels: (N,) classes; those present have two images or more.

    Returns:
        (N,) classes; among equally near ones the first.

    Raises:
        ValueError: shapes that do not fit.
        Undefined: one class only, a class of one image, or features that are not finite.
    """
    array = matrix(features)
    classes = class_labels(labels, len(array))
    rows = coordinates(array) if array.shape[1] >= len(array) else centred(array)
    counts = np.bincount(classes).astype(np.float64)
    sums = np.eye(len(counts))[classes].T @ rows
    return nearest_class_mean_of(rows, classes, counts, sums)


def nearest_class_mean_of(
    rows: FloatArray, labels: IntArray, counts: FloatArray, sums: FloatArray
) -> IntArray:
    """Classify float64 `rows` (N, D), which are among the images of `counts` and `sums`."""
    present = np.flatnonzero(counts)
    if len(present) < 2:
        raise Undefined("it needs images of at least 2 classes")
    if (counts[labels] < 2).any():
        raise Undefined("a class has a single image, so no mean without it")
    means = sums[present] / counts[present][:, None]
    middle = means.mean(axis=0)
    rows, means = rows - middle, means - middle
    squares = (rows**2).sum(axis=1)[:, None] - 2 * rows @ means.T + (means**2).sum(axis=1)
    own = np.searchsorted(present, labels), counts[labels]
    # Without itself an image is n / (n - 1) times as far from the mean of its n.
    squares[np.arange(len(rows)), own[0]] *= (own[1] / (own[1] - 1)) ** 2
    return np.asarray(present[squares.argmin(axis=1)])


def _check_classes(sums: Moments) -> None:
    """Refuse a single class."""
    if (sums.counts > 0).sum() < 2:
        raise Undefined("it needs images of at least 2 classes")


def _distinct_means(sums: Moments) -> FloatArray:
    """Centred class means (K', D) that are not all the same."""
    _check_classes(sums)
    means = sums.class_means()
    if not np.linalg.norm(means) > RESOLUTION * _spread(sums):
        raise Undefined(CONSTANT if _spread(sums) == 0 else SAME_MEANS)
    return means


def _spread(sums: Moments) -> float:
    """Root mean square length of the features, off the common point."""
    return float(np.sqrt(max(np.trace(sums.second), 0) / sums.samples))
