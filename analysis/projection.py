"""A layer's images in the plane or in space: PCA, t-SNE, UMAP, and layers turned to each other.

In: features (N, ...) of a layer, numpy or torch. Out: `Coordinates` (N, 2 or 3), and for PCA the
`Projection` itself, to be reused. This file knows numpy; scikit-learn and umap-learn are imported
when used.
"""

from __future__ import annotations

import importlib
import importlib.util
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from analysis.moments import (
    BLOCK_COLUMNS,
    CONSTANT,
    EPSILON,
    NOT_FINITE,
    FloatArray,
    Undefined,
    centred,
    centred_products,
    matrix,
)

# t-SNE and UMAP see this many principal components at most: that takes out noise, and time
# (van der Maaten and Hinton 2008, section 4, take 30).
PRINCIPAL_COMPONENTS = 50
# t-SNE's learning rate is N / 48 (Belkina et al. 2019, for an exaggeration of 12) but not below
# this. scikit-learn's floor of 50 fails in 3 dimensions: 90 images in three groups ended at a loss
# of 1.64, against 0.32 here.
SMALLEST_RATE = 5.0
FEWEST_IMAGES = 5  # below, t-SNE and UMAP have no neighbours to keep
NO_UMAP = (
    "UMAP needs the package umap-learn, which is not installed: run `pip install umap-learn`, or "
    "choose PCA or t-SNE"
)


@dataclass(frozen=True, eq=False)
class Coordinates:
    """Images of one layer as points.

    `points` (N, d) float64. `explained` (d,) is the share of the features' variance along each
    axis, None where axes have no such meaning. `note` says what was done that was not asked for.
    """

    method: str
    points: FloatArray
    explained: FloatArray | None = None
    note: str | None = None


@dataclass(frozen=True, eq=False)
class Projection:
    """A fitted PCA: (x - mean) components^T, reusable on any features of the same width.

    `components` (d, D) are orthonormal rows, the entry largest in size positive, or zero where the
    features have fewer directions; `mean` (D,); `explained_variance` (d,) with N - 1;
    `explained` (d,) as shares of the total variance.
    """

    components: FloatArray
    mean: FloatArray
    explained_variance: FloatArray
    explained: FloatArray

    def apply(self, features: Any) -> FloatArray:
        """Project features of the same layer, another layer or another model.

        Args:
            features: (N, ...) array or tensor, flattened to the width that was fitted.

        Returns:
            (N, d) float64.

        Raises:
            ValueError: another width.
            Undefined: features that are not finite.
        """
        array = matrix(features)
        if array.shape[1] != len(self.mean):
            raise ValueError(
                f"this projection was fitted to {len(self.mean)} features, but there are "
                f"{array.shape[1]}: use aligned_coordinates for layers of different widths"
            )
        points = np.zeros((len(array), len(self.components)))
        for start in range(0, len(self.mean), BLOCK_COLUMNS):
            part = slice(start, start + BLOCK_COLUMNS)
            points += (array[:, part] - self.mean[part]) @ self.components[:, part].T
        return points


@dataclass(frozen=True, eq=False)
class AlignedCoordinates:
    """PCA coordinates of many layers, each turned to the one before it.

    `points` (N, d) by layer, divided by `scales` (RMS distance from the mean, in the layer's own
    unit) so that a slider through the layers keeps its axes. `explained` is the share of the
    layer's variance in all d axes together: turning mixes them. `undefined` says why by layer.
    """

    points: dict[str, FloatArray]
    scales: dict[str, float]
    explained: dict[str, float]
    undefined: dict[str, str]


def fit_pca(features: Any, dimensions: int = 2) -> Projection:
    """Fit principal components; through the (N, N) Gram where features are wider than N.

    Args:
        features: (N, ...) array or tensor, flattened to (N, D).
        dimensions: d, how many components, at least 1; more than the features have are zero.

    Returns:
        the projection, with signs that depend on nothing but the components.

    Raises:
        ValueError: `dimensions` below 1.
        Undefined: too few images, constant features, or features that are not finite.

    Source: Hotelling 1933; signs by the largest loading, as in scikit-learn's PCA.
    """
    array = _checked(features, dimensions)
    wide = array.shape[1] > len(array)
    squares, components = _through_gram(array) if wide else _through_covariance(array)
    noise = squares[0] * EPSILON * max(array.shape)
    found = squares[:dimensions] > noise
    kept, width = components[:dimensions][found], array.shape[1]
    largest = kept[np.arange(len(kept)), np.abs(kept).argmax(axis=1)]
    filled = np.zeros((dimensions, width))
    filled[: len(kept)] = kept * np.sign(largest)[:, None]
    variances = np.zeros(dimensions)
    variances[: len(kept)] = squares[: len(kept)]
    return Projection(
        components=filled,
        mean=array[0] + (array.astype(np.float64) - array[0]).mean(axis=0),
        explained_variance=variances / (len(array) - 1),
        explained=variances / squares.sum(),
    )


def pca(features: Any, dimensions: int = 2) -> Coordinates:
    """Principal coordinates of a layer.

    Args:
        features: (N, ...) array or tensor, flattened to (N, D).
        dimensions: d.

    Returns:
        points (N, d) in the features' unit, and the variance explained by each axis.

    Raises:
        ValueError, Undefined: as `fit_pca`.
    """
    projection = fit_pca(features, dimensions)
    return Coordinates("PCA", projection.apply(features), projection.explained)


def tsne(
    features: Any,
    perplexity: float = 30.0,
    seed: int = 0,
    dimensions: int = 2,
    max_steps: int = 1000,
) -> Coordinates:
    """t-SNE coordinates: neighbours stay neighbours; distances between groups mean little.

    Args:
        features: (N, ...) array or tensor; the first 50 principal components are used.
        perplexity: about how many neighbours count, above 1; at most (N - 1) / 3 can.
        seed: of the optimisation; the start is the PCA.
        dimensions: 2 or 3.
        max_steps: of the optimisation, 250 or more.

    Returns:
        points (N, d) without unit; the note says what perplexity was used if not the one asked
        for.

    Raises:
        ValueError: a perplexity of 1 or less, or dimensions other than 2 and 3.
        Undefined: fewer than 5 images, constant features, or features that are not finite.

    Source: van der Maaten and Hinton 2008; Kobak and Berens 2019 on the start; scikit-learn.
    """
    if not perplexity > 1:
        raise ValueError(f"the perplexity of t-SNE must be above 1, but it is {perplexity}")
    start = _principal(features, dimensions)
    possible = (len(start) - 1) / 3
    used = min(perplexity, possible)
    from sklearn.manifold import TSNE  # slow to import
    from threadpoolctl import threadpool_limits

    method = TSNE(
        n_components=dimensions,
        perplexity=used,
        init="pca",
        learning_rate=max(len(start) / 48, SMALLEST_RATE),
        random_state=seed,
        max_iter=max_steps,
        n_jobs=1,
    )
    with threadpool_limits(1):
        points = method.fit_transform(start).astype(np.float64)
    note = None
    if used < perplexity:
        note = (
            f"perplexity {used:.3g} in place of {perplexity:g}: {len(start)} images allow no more"
        )
    return Coordinates("t-SNE", points, note=note)


def umap(features: Any, neighbours: int = 15, seed: int = 0, dimensions: int = 2) -> Coordinates:
    """UMAP coordinates, if umap-learn is installed.

    Args:
        features: (N, ...) array or tensor; the first 50 principal components are used.
        neighbours: how many count, 2 or more; at most N - 1 can.
        seed: of the optimisation.
        dimensions: 2 or 3.

    Returns:
        points (N, d) without unit; the note says how many neighbours were used if not as many
        as asked for.

    Raises:
        ValueError: umap-learn is not installed, too few neighbours, or dimensions other than 2
            and 3.
        Undefined: fewer than 5 images, constant features, or features that are not finite.

    Source: McInnes, Healy and Melville 2018; umap-learn.
    """
    if neighbours < 2:
        raise ValueError(f"UMAP needs 2 neighbours or more, but {neighbours} were asked for")
    if importlib.util.find_spec("umap") is None:
        raise ValueError(NO_UMAP)
    start = _principal(features, dimensions)
    used = min(neighbours, len(start) - 1)
    method = importlib.import_module("umap").UMAP(
        n_components=dimensions,
        n_neighbors=used,
        random_state=seed,
        n_jobs=1,
        # The spectral start needs more images than components to find its eigenvectors.
        init="spectral" if len(start) > 3 * used else "pca",
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about threads and graphs in several parts
        points = np.asarray(method.fit_transform(start), np.float64)
    note = None
    if used < neighbours:
        note = f"{used} neighbours in place of {neighbours}: there are {len(start)} images"
    return Coordinates("UMAP", points, note=note)


PROJECTIONS: dict[str, Callable[..., Coordinates]] = {"pca": pca, "tsne": tsne, "umap": umap}


def aligned_coordinates(
    features_by_layer: Mapping[str, Any], dimensions: int = 2
) -> AlignedCoordinates:
    """PCA of every layer, each turned and mirrored to lie best on the one before.

    The signs of principal axes are arbitrary, and axes of nearly equal variance swap places from
    layer to layer. An orthogonal Procrustes rotation of a layer's points onto those of the layer
    before undoes both and keeps all distances between a layer's points.

    Args:
        features_by_layer: (N, ...) arrays or tensors of the same N images, of any widths, by
            layer name in order.
        dimensions: d, 2 or 3 for pictures.

    Returns:
        points by layer, scaled to an RMS distance of 1 from their mean over all D features' axes
        that are shown; layers without a value are passed over, with the reason.

    Raises:
        ValueError: different numbers of images, or `dimensions` below 1.

    Source: Schoenemann 1966 (A generalized solution of the orthogonal Procrustes problem).
    """
    counts = {len(features) for features in features_by_layer.values()}
    if len(counts) > 1:
        raise ValueError(
            "layers can be aligned on the same images only, but their numbers of images are "
            f"{', '.join(str(count) for count in sorted(counts))}"
        )
    result = AlignedCoordinates({}, {}, {}, {})
    before: FloatArray | None = None
    for layer, features in features_by_layer.items():
        try:
            found = pca(features, dimensions)
        except Undefined as reason:
            result.undefined[layer] = str(reason)
            continue
        points = found.points if before is None else found.points @ rotation(found.points, before)
        scale = float(np.sqrt((points**2).sum(axis=1).mean()))
        before = result.points[layer] = points / scale
        result.scales[layer] = scale
        result.explained[layer] = 0.0 if found.explained is None else float(found.explained.sum())
    return result


def rotation(points: FloatArray, target: FloatArray) -> FloatArray:
    """Find the orthogonal R (d, d), turns and mirrors, that minimises |points R - target|.

    Args:
        points: (N, d), centred.
        target: (N, d), centred; its scale does not matter.

    Returns:
        (d, d).

    Source: Schoenemann 1966.
    """
    left, _, right = np.linalg.svd(points.T @ target)
    return np.asarray(left @ right)


def _checked(features: Any, dimensions: int) -> FloatArray:
    """Give (N, D) that has principal components."""
    if dimensions < 1:
        raise ValueError(f"a projection needs 1 dimension or more, not {dimensions}")
    array = matrix(features)
    if len(array) <= dimensions:
        raise Undefined(
            f"a projection to {dimensions} dimensions needs more than {dimensions} images, and "
            f"there are {len(array)}"
        )
    if (array == array[0]).all():
        raise Undefined(CONSTANT)
    return array


def _through_covariance(features: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Squared singular values (D,), descending, and components (D, D) of centred (N, D)."""
    rows = centred(features)
    with np.errstate(all="ignore"):
        scatter = rows.T @ rows
    if not np.isfinite(scatter).all():
        raise Undefined(NOT_FINITE)
    squares, vectors = np.linalg.eigh(scatter)
    return np.maximum(squares[::-1], 0), vectors.T[::-1]


def _through_gram(features: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Squared singular values (N,), descending, and components (N, D), N < D."""
    gram = centred_products(features)
    if not np.isfinite(gram).all():
        raise Undefined(NOT_FINITE)
    squares, vectors = np.linalg.eigh(gram)
    squares, vectors = np.maximum(squares[::-1], 0), vectors[:, ::-1]
    lengths = np.sqrt(np.where(squares > 0, squares, np.inf))
    components = np.empty((len(squares), features.shape[1]))
    for start in range(0, features.shape[1], BLOCK_COLUMNS):
        part = slice(start, start + BLOCK_COLUMNS)
        components[:, part] = (vectors / lengths).T @ centred(features[:, part])
    return squares, components


def _principal(features: Any, dimensions: int) -> FloatArray:
    """First principal coordinates, scaled to unit RMS, for methods that go on from there."""
    if dimensions not in (2, 3):
        raise ValueError(f"coordinates have 2 or 3 dimensions, but {dimensions} were asked for")
    array = matrix(features)
    if len(array) < FEWEST_IMAGES:
        raise Undefined(f"it needs at least {FEWEST_IMAGES} images, and there are {len(array)}")
    wanted = max(min(PRINCIPAL_COMPONENTS, array.shape[1], len(array) - 1), dimensions)
    points = pca(array, wanted).points
    return np.asarray(points / np.sqrt((points**2).sum(axis=1).mean()))
