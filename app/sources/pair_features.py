"""Two layers' images seen through PCA: checkpoints and images in, points, classes and pictures out.

Each checkpoint is opened once for all of its layers, on a click; what is kept is two numbers an
image and layer, and small pictures.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import streamlit as st

from analysis.arrays import FloatArray, IntArray
from app.sources import datasets, folders
from app.sources.checkpoints import CheckpointFile
from app.sources.studies import Request

MOST_IMAGES = 300  # more points than these cover each other
CELLS = 4  # features are pooled to 4 x 4: fast, and near what flattened ones show
THUMBNAIL = 96  # pixels


@dataclass(frozen=True, eq=False)
class Pictures:
    """The images: classes (N,), K names, and small pictures, (N, H, W, 3) uint8."""

    labels: IntArray
    classes: tuple[str, ...]
    thumbnails: Any


@dataclass(frozen=True, eq=False)
class LayerPoints:
    """One layer's images as points (N, 2), the shares (2,) of variance; or why there are none."""

    points: FloatArray | None
    explained: FloatArray | None
    reason: str = ""


@dataclass(frozen=True, eq=False)
class PairPoints:
    """Both layers' points, the second turned onto the first, and the images."""

    first: LayerPoints
    second: LayerPoints
    pictures: Pictures


def pair_points(
    ends: tuple[CheckpointFile, CheckpointFile], layers: tuple[str, str], request: Request
) -> PairPoints:
    """Find both layers' images on their principal components.

    Args:
        ends: the two checkpoints, which may be one.
        layers: a layer of each.
        request: says which images; the first 300 of them are taken.

    Raises:
        ValueError: images and checkpoints do not fit together, or are not there.
    """
    found = [
        _points(*folders.stamp(entry.path), *_images(request, entry))[layer]
        for entry, layer in zip(ends, layers, strict=True)
    ]
    pictures = _pictures(*folders.stamp(ends[0].path), *_images(request, ends[0]))
    return PairPoints(found[0], _turned(found[1], found[0]), pictures)


def _turned(points: LayerPoints, target: LayerPoints) -> LayerPoints:
    """Turn and mirror points onto others: the signs of principal axes mean nothing."""
    from analysis.projection import rotation

    if points.points is None or target.points is None:
        return points
    turned = points.points @ rotation(points.points, target.points)
    return LayerPoints(turned, points.explained)


def _images(request: Request, entry: CheckpointFile) -> tuple[Any, ...]:
    """What decides which images are read, as plain values to cache by."""
    samples = min(request.samples, MOST_IMAGES)
    prefix = datasets.folder_prefix(request.dataset)
    balanced = bool(request.option("balanced"))
    return request.dataset, prefix, request.split, samples, request.seed, balanced


@st.cache_resource(max_entries=4, show_spinner=False)
def _sample(
    path: str,
    size: int,
    changed: int,
    dataset: str,
    prefix: str,
    split: str,
    samples: int,
    seed: int,
    balanced: bool,
) -> Any:
    """The images, of the size that a checkpoint reads where they lie in a folder."""
    from analysis.features import sample_images
    from auglocal.checkpoint import read_metadata

    is_folder = dataset.startswith(datasets.FOLDER_PREFIX)
    image_size = read_metadata(path).input_size[1] if is_folder else None
    return sample_images(dataset, split, samples, seed, image_size=image_size, balanced=balanced)


@st.cache_resource(max_entries=8, show_spinner=False)
def _pictures(*key: Any) -> Pictures:
    """Classes and small pictures of the images."""
    sample = _sample(*key)
    step = max(1, -(-sample.images.shape[-1] // THUMBNAIL))
    small = sample.images[:, :, ::step, ::step].permute(0, 2, 3, 1).numpy()
    small = small.repeat(3, axis=3) if small.shape[3] == 1 else small
    return Pictures(sample.labels, sample.classes, small)


@st.cache_resource(max_entries=16, show_spinner=False)
def _points(path: str, size: int, changed: int, *images: Any) -> dict[str, LayerPoints]:
    """All layers of a checkpoint, in one pass."""
    from analysis.features import check_images, visit_features
    from analysis.models import open_model
    from analysis.probes import pooled

    model = open_model(path, "auto")
    sample = _sample(path, size, changed, *images)
    check_images(model, sample)
    features: dict[str, list[FloatArray]] = {}
    for start in range(0, len(sample.images), 100):
        visit_features(
            model,
            sample.images[start : start + 100],
            lambda layer, values: features.setdefault(layer, []).append(pooled(values, CELLS)),
        )
    return {layer: _projected(np.concatenate(parts)) for layer, parts in features.items()}


def _projected(features: FloatArray) -> LayerPoints:
    """Two principal components of a layer (N, D)."""
    from analysis.projection import pca

    try:
        found = pca(features, 2)
    except ValueError as error:
        return LayerPoints(None, None, str(error))
    return LayerPoints(found.points, found.explained)
