"""Layers as points: features of some images in every layer of a checkpoint, and their coordinates.

In: a checkpoint and a `Question`. Out: `LayerPoints`, kept in memory for all sessions. What takes
long reports its progress by a function that may raise to stop it, as drawing does in Streamlit
once something else was clicked; nothing is then kept.
"""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
import streamlit as st

from analysis.moments import FloatArray, Undefined
from analysis.projection import AlignedCoordinates, aligned_coordinates, rotation, tsne, umap
from app.sources import datasets, images

if TYPE_CHECKING:
    from app.sources.checkpoints import CheckpointFile

MOST_POINTS = 1000  # t-SNE takes 3 s a layer for as many; more are hard to tell apart
KEPT = 12  # checkpoints; 1,000 images of a ResNet-20 take 2 MB
BATCH = 125
METHODS = {"pca": "PCA", "tsne": "t-SNE", "umap": "UMAP"}
# Seconds for 1,000 images and one layer on one core, measured with scikit-learn 1.9.
TSNE_SECONDS = {2: 3.1, 3: 7.3}

Report = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Question:
    """Which features of which images.

    Attributes:
        sha256: of the checkpoint.
        dataset, split, samples, seed: the images, as in `analysis.request.StudyRequest`.
        pooling: features are pooled to s x s.
        balanced: as many images of each class.
    """

    sha256: str
    dataset: str
    split: str
    samples: int
    seed: int
    pooling: int
    balanced: bool = False

    @property
    def key(self) -> tuple[object, ...]:
        """What identifies the answer, with the contents of an image folder."""
        return (datasets.folder_prefix(self.dataset), self)


@dataclass(frozen=True, eq=False)
class LayerPoints:
    """One checkpoint's layers as points of N images, and the images.

    `features` (N, D) by layer; `aligned` is their PCA by number of dimensions, every layer turned
    to the one before; `undefined` says why a layer has no points. `found` keeps t-SNE and UMAP as
    they are asked for.
    """

    images: images.Images
    features: dict[str, FloatArray]
    aligned: dict[int, AlignedCoordinates]
    found: dict[tuple[str, int, float, str], FloatArray | str] = field(default_factory=dict)

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the layers in order."""
        return tuple(self.features)


@st.cache_resource(show_spinner=False)
def _store() -> tuple[OrderedDict[tuple[object, ...], LayerPoints], threading.Lock]:
    """What was read, the least recently used first."""
    return OrderedDict(), threading.Lock()


def at_hand(question: Question) -> LayerPoints | None:
    """Find features that were read before."""
    kept, lock = _store()
    with lock:
        found = kept.get(question.key)
        if found is not None:
            kept.move_to_end(question.key)
        return found


def read(question: Question, entry: CheckpointFile, report: Report) -> LayerPoints:
    """Run the images through a checkpoint once, and find the PCA of every layer.

    Args:
        question: which images; `samples` at most MOST_POINTS.
        entry: the checkpoint.
        report: called with stage, done and total; what it raises stops the work.

    Raises:
        InputError: the data are not here, or do not fit the checkpoint.
    """
    report("Opening the checkpoint and the images", 0, 0)
    from analysis.features import check_images
    from analysis.models import open_model
    from analysis.reading import Share, Watch, read_features

    model = replace(open_model(entry.path, "auto"), name=entry.name)
    is_folder = question.dataset.startswith(datasets.FOLDER_PREFIX)
    size = model.metadata.input_size[1] if is_folder else None
    shown = images.draw(
        question.dataset,
        question.split,
        question.samples,
        question.seed,
        image_size=size,
        balanced=question.balanced,
    )
    check_images(model, shown.sample)
    watch = Watch(lambda step: report("Reading images", step.done, step.total), lambda: False)
    starts = range(0, question.samples, BATCH)
    slices = [slice(start, start + BATCH) for start in starts]
    reading = read_features(
        {entry.name: model}, {entry.name: shown.sample}, slices, question.pooling, watch, Share()
    )
    features = {layer: values for (_, layer), values in reading.all_features().items()}
    report("Finding principal components", 0, 0)
    aligned = {dimensions: aligned_coordinates(features, dimensions) for dimensions in (2, 3)}
    points = LayerPoints(shown, features, aligned)
    kept, lock = _store()
    with lock:
        kept[question.key] = points
        while len(kept) > KEPT:
            kept.popitem(last=False)
    return points


def coordinates(
    points: LayerPoints, method: str, dimensions: int, setting: float, layer: str
) -> FloatArray | str | None:
    """Where the images of a layer lie.

    Args:
        points: what was read.
        method: of METHODS.
        dimensions: 2 or 3.
        setting: the perplexity of t-SNE or the neighbours of UMAP.
        layer: its name.

    Returns:
        (N, d) with an RMS distance of 1 from their mean; a reason where there are none; None
        where they were not computed yet.
    """
    if method == "pca":
        aligned = points.aligned[dimensions]
        return aligned.points.get(layer, aligned.undefined.get(layer, "it has no features"))
    return points.found.get((method, dimensions, setting, layer))


def compute(
    points: LayerPoints,
    method: str,
    dimensions: int,
    setting: float,
    layers: tuple[str, ...],
    report: Report,
) -> None:
    """Find t-SNE or UMAP of some layers, each turned to lie best on the layer's PCA.

    Args:
        points: what was read; gets the coordinates.
        method: "tsne" or "umap".
        dimensions: 2 or 3.
        setting: the perplexity of t-SNE or the neighbours of UMAP.
        layers: their names.
        report: called with stage, done and total; what it raises stops the work.
    """
    for count, layer in enumerate(layers):
        report(f"{METHODS[method]} of {layer}", count, len(layers))
        key = (method, dimensions, setting, layer)
        if key not in points.found:
            points.found[key] = _embedded(points, *key)


def _embedded(
    points: LayerPoints, method: str, dimensions: int, setting: float, layer: str
) -> FloatArray | str:
    """Coordinates of one layer, or why there are none."""
    features = points.features[layer]
    try:
        if method == "tsne":
            found = tsne(features, perplexity=setting, dimensions=dimensions)
        else:
            found = umap(features, neighbours=int(setting), dimensions=dimensions)
    except Undefined as reason:
        return str(reason)
    centred = found.points - found.points.mean(axis=0)
    target = points.aligned[dimensions].points[layer]
    turned = centred @ rotation(centred, target)
    return np.asarray(turned / math.sqrt((turned**2).sum(axis=1).mean()))


def missing_layers(
    points: LayerPoints, method: str, dimensions: int, setting: float
) -> tuple[str, ...]:
    """Layers whose coordinates were not computed yet."""
    if method == "pca":
        return ()
    return tuple(
        layer for layer in points.layers if (method, dimensions, setting, layer) not in points.found
    )


def seconds(method: str, dimensions: int, num_images: int, num_layers: int) -> float:
    """Estimate how long t-SNE or UMAP takes; it grows a little faster than the images."""
    once = TSNE_SECONDS[dimensions] * (num_images / 1000) ** 1.1
    return float(num_layers * once * (2.0 if method == "umap" else 1.0))


def is_installed(method: str) -> bool:
    """Whether a method can be used here; UMAP needs a package of its own."""
    import importlib.util

    return method != "umap" or importlib.util.find_spec("umap") is not None
