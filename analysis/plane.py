"""All layers of many networks on one plane: their CKA in, points whose distances follow it out.

Classical multidimensional scaling of the distances sqrt(2 - 2 CKA). Knows numpy only.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from analysis.cka_result import CKAResult, FloatArray

FEWEST_POINTS = 3
NONE_APART = 1e-12  # squared size below which points are one point but for rounding


@dataclass(frozen=True, eq=False)
class Scaling:
    """Points whose distances are as near to given ones as few dimensions allow.

    Attributes:
        points: (L, D), centred at 0; axes in order of the variance along them.
        explained: (D,), the share of each axis in the sum of absolute eigenvalues, in [0, 1];
            higher is better, and all shares together are 1 if D dimensions hold the distances.
        stress: Kruskal's stress-1, sqrt(sum (d - d_plane)^2 / sum d^2), at least 0, lower is
            better; 0 if the points have the distances exactly.
    """

    points: FloatArray
    explained: FloatArray
    stress: float


@dataclass(frozen=True, eq=False)
class LayerPlane:
    """The L layers of many networks on a plane.

    `layers` and `owners` (L,) name each point's layer and network, in order; `points` is (L, 2).
    `explained` (2,) and `stress` are as in `Scaling`. `left_out` says by "model/layer" why a layer
    has no place.
    """

    models: tuple[str, ...]
    layers: tuple[str, ...]
    owners: tuple[str, ...]
    points: FloatArray
    explained: FloatArray
    stress: float
    left_out: dict[str, str]


def cka_distances(values: FloatArray) -> FloatArray:
    """The distance of two layers' centred Grams, each brought to size 1: sqrt(2 - 2 CKA).

    CKA is the cosine of the angle between the two Grams, so that this is the straight way between
    their directions: 0 for layers alike, sqrt(2) for unrelated ones.

    Args:
        values: (L, L) CKA, symmetric.

    Returns:
        (L, L), in [0, 2], with an exact 0 for CKA that rounding took past 1.

    Source: Williams, Kunz, Kornblith and Linderman 2021 (Generalized shape metrics), section 2,
    who take the angle arccos CKA; both order pairs alike.
    """
    return np.asarray(np.sqrt(np.maximum(2 - 2 * np.asarray(values, dtype=np.float64), 0)))


def classical_scaling(distances: FloatArray, dimensions: int = 2) -> Scaling:
    """Find points whose distances are as given, as well as a few dimensions can.

    With D2 the squared distances and J = I - 1/L the centring, B = -J D2 J / 2 holds the inner
    products of the points; the coordinates are its first eigenvectors times the square roots of
    their eigenvalues. Exact if the points live in that few dimensions.

    Args:
        distances: (L, L), symmetric, 0 on the diagonal, finite.
        dimensions: D, at least 1; axes without any variance are 0.

    Returns:
        points, determined up to nothing: along each axis, the first point is not above the mean.

    Raises:
        ValueError: Fewer than 3 points, or distances that are not finite and symmetric.

    Source: Torgerson 1952; Mardia, Kent and Bibby 1979, section 14.2, for the explained share;
    Kruskal 1964 for the stress.
    """
    distances = np.asarray(distances, dtype=np.float64)
    _check(distances)
    size = len(distances)
    centring = np.eye(size) - 1 / size
    products = -centring @ distances**2 @ centring / 2
    eigenvalues, vectors = np.linalg.eigh(products)
    order = np.argsort(eigenvalues)[::-1][:dimensions]
    kept = np.maximum(eigenvalues[order], 0)
    points = vectors[:, order] * np.sqrt(kept)
    points *= np.where(points[0] > 0, -1.0, 1.0)
    total = np.abs(eigenvalues).sum()
    explained = kept / total if total > NONE_APART else np.zeros(len(kept))
    return Scaling(points, explained, _stress(distances, points))


def _check(distances: FloatArray) -> None:
    """Refuse what are no distances."""
    if distances.ndim != 2 or distances.shape[0] != distances.shape[1]:
        raise ValueError(f"distances have the shape (L, L), but these have {distances.shape}")
    if len(distances) < FEWEST_POINTS:
        raise ValueError(
            f"a plane needs {FEWEST_POINTS} points or more, but there are {len(distances)}"
        )
    if not np.isfinite(distances).all() or not np.allclose(distances, distances.T):
        raise ValueError("distances must be finite and symmetric; leave out undefined layers")


def _stress(distances: FloatArray, points: FloatArray) -> float:
    """Kruskal's stress-1 of points (L, D); 0 where nothing is apart."""
    differences = points[:, None, :] - points[None, :, :]
    found = np.sqrt((differences**2).sum(axis=-1))
    total = float((distances**2).sum())
    return float(np.sqrt(((distances - found) ** 2).sum() / total)) if total > NONE_APART else 0.0


def plane_of_layers(result: CKAResult) -> LayerPlane | None:
    """Lay out all layers of all networks of a comparison.

    Args:
        result: CKA of all pairs of layers.

    Returns:
        their places; None if fewer than 3 layers have a value with every other.
    """
    names = [
        (model, layer)
        for model, layers in zip(result.models, result.layers, strict=True)
        for layer in layers
    ]
    values = np.asarray(result.values, dtype=np.float64)
    kept = _defined(values)
    if len(kept) < FEWEST_POINTS:
        return None
    distances = cka_distances(values[np.ix_(kept, kept)])
    # An unbiased estimate of a layer with itself is 1 but for rounding.
    np.fill_diagonal(distances, 0)
    scaling = classical_scaling(distances)
    return LayerPlane(
        models=result.models,
        layers=tuple(names[index][1] for index in kept),
        owners=tuple(names[index][0] for index in kept),
        points=scaling.points,
        explained=scaling.explained,
        stress=scaling.stress,
        left_out={
            f"{model}/{layer}": result.undefined.get(
                f"{model}/{layer}", "its similarity to another layer is undefined"
            )
            for index, (model, layer) in enumerate(names)
            if index not in kept
        },
    )


def _defined(values: FloatArray) -> list[int]:
    """Layers left when the one with most undefined values is dropped until none has any."""
    kept = list(range(len(values)))
    while kept:
        missing = np.isnan(values[np.ix_(kept, kept)]).sum(axis=1)
        if not missing.any():
            break
        kept.pop(int(missing.argmax()))
    return kept
