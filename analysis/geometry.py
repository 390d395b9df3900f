"""The geometry of a model's layers: ranks, dimension, classes and their collapse, activity.

In: features of each layer, whole or batch after batch, and labels. Out: a `GeometryResult` with a
value, a standard error and a 95% interval by measure and layer. What adds up over images is
summed (spectra of pooled features, class means, norms, zeros); what needs whole images rests on
a seeded sample of them. `geometry_measures` says what each measure means.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from analysis.geometry_layer import FEWEST_GROUPS, Answer, Classifier, Reading, measure_layer
from analysis.geometry_measures import GEOMETRY_MEASURES
from analysis.geometry_sums import LayerSums, SumsOptions, layer_sums
from analysis.moments import FloatArray, IntArray, Undefined, class_labels, matrix

GROUPS = 16
SAMPLE = 1000  # images kept whole: 1,000 x 1,000 distances take 8 MB
STOPPED = "the run was stopped before this layer"
Watch = Callable[[int, int], None]


@dataclass(frozen=True, eq=False)
class GeometryResult:
    """Geometry of the L layers of one model.

    `values`, `standard_errors`, `low` and `high` hold (L,) by measure, NaN where there is none:
    `undefined` says why by "layer/measure", and `notes` why a value has no interval. Intervals
    are 95%: delete-a-group jackknife over `groups` of images with Student's t, Wilson for shares
    of images, chi-squared for TwoNN. They cover the choice of this many images, not of training
    runs, and are never clamped. `samples_by_measure` (L,) counts the images each value rests on.
    """

    model: str
    layers: tuple[str, ...]
    measures: tuple[str, ...]
    values: dict[str, FloatArray]
    standard_errors: dict[str, FloatArray]
    low: dict[str, FloatArray]
    high: dict[str, FloatArray]
    samples_by_measure: dict[str, IntArray]
    undefined: dict[str, str]
    notes: dict[str, str]
    widths: tuple[int, ...]
    samples: int
    groups: int
    seed: int

    def reason(self, layer: str, measure: str) -> str | None:
        """Say why a layer has no value of a measure; None where it has one."""
        return self.undefined.get(f"{layer}/{measure}")


class GeometryAccumulator:
    """Gather features batch after batch; nothing but a sample grows with the images.

    A layer of up to 256 features keeps at most 8 MiB of sums; every layer keeps the features of
    `sample` images. Meant for pooled features.

    Args:
        groups: of images, for the jackknife; 0 gives no such intervals.
        sample: most images to keep whole.
        seed: decides groups and sample, by image index: neither order nor batches matter.

    Raises:
        ValueError: a number of groups or images that makes no sense.
    """

    def __init__(self, *, groups: int = GROUPS, sample: int = SAMPLE, seed: int = 0) -> None:
        if groups != 0 and groups < FEWEST_GROUPS:
            raise ValueError(
                f"a jackknife needs {FEWEST_GROUPS} groups of images or more, but {groups} were "
                "asked for; 0 leaves its intervals out"
            )
        if sample < 1:
            raise ValueError(f"the sample needs at least 1 image, but {sample} were asked for")
        self.groups = groups
        self._options = SumsOptions(groups=max(groups, 1), sample=sample, seed=seed)
        self._layers: dict[str, LayerSums] = {}

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the layers so far, in the order of their first batch."""
        return tuple(self._layers)

    def update(self, layer: str, features: Any, labels: Any = None, indices: Any = None) -> None:
        """Add a batch of one layer.

        Args:
            layer: its name.
            features: (n, ...) array or tensor, flattened to (n, D).
            labels: (n,) classes; None for images without: then no measure of classes.
            indices: (n,) which images these are, the same for every layer and never twice; None
                numbers them on, which only works in one process.

        Raises:
            ValueError: shapes that do not fit, or that differ from earlier batches of the layer.
        """
        count = len(features)
        so_far = self._layers.get(layer)
        classes = class_labels(np.zeros(count, np.int64) if labels is None else labels, count)
        where = _checked_indices(indices, so_far.samples if so_far else 0, count)
        # Sums off the same image are added as they are.
        fits = so_far is not None and so_far.width == math.prod(np.shape(features)[1:])
        origin = so_far.origin if so_far is not None and fits else None
        batch = layer_sums(features, classes, where, self._options, origin)
        if so_far is not None:
            _check_widths(layer, so_far, batch)
        self._layers[layer] = batch if so_far is None else so_far.plus(batch)

    def sums(self, layer: str) -> LayerSums:
        """What was gathered of one layer."""
        return self._layers[layer]

    def merge(self, other: GeometryAccumulator) -> None:
        """Add what another accumulator gathered from other images, of the same or other layers.

        Raises:
            ValueError: the two differ in groups, sample, seed or width of a layer.
        """
        if self._options != other._options:
            raise ValueError(
                "geometry of parts can be merged only if groups, sample and seed are the same, "
                f"but they are {self._options} and {other._options}"
            )
        for layer, sums in other._layers.items():
            if layer in self._layers:
                _check_widths(layer, self._layers[layer], sums)
                sums = self._layers[layer].plus(sums)
            self._layers[layer] = sums

    def result(
        self,
        *,
        model: str = "",
        classifier: Classifier | None = None,
        measures: Sequence[str] = tuple(GEOMETRY_MEASURES),
        progress: Watch = lambda done, total: None,
        refined: Callable[[GeometryResult], None] = lambda result: None,
        cancelled: Callable[[], bool] = lambda: False,
    ) -> GeometryResult:
        """Turn what was gathered into measures; more may be added later.

        Args:
            model: its name.
            classifier: for NC3, at the layer that it reads, and NC4, at every layer.
            measures: names of GEOMETRY_MEASURES.
            progress: called after every layer with the number done and of all.
            refined: called after every layer with the layers measured so far.
            cancelled: asked before every layer; layers from then on are undefined.

        Returns:
            the measures by layer.

        Raises:
            ValueError: no images, an unknown measure, or a classifier of an unknown layer.
        """
        _check_measures(measures)
        if not self._layers:
            raise ValueError("geometry needs at least one batch of images, but none was added")
        predictions = self._predictions(classifier)
        widths = {layer: sums.width for layer, sums in self._layers.items()}
        samples = max(sums.samples for sums in self._layers.values())
        settings = _Settings(model, tuple(measures), samples, self.groups, self._options.seed)
        answers: dict[str, Mapping[str, Answer]] = {}
        for layer, sums in self._layers.items():
            if cancelled():
                break
            reading = Reading(sums, _weights_for(classifier, layer), predictions)
            answers[layer] = measure_layer(reading, measures)
            progress(len(answers), len(self._layers))
            refined(_table(settings, widths, answers))
        return _table(settings, widths, answers)

    def _predictions(self, classifier: Classifier | None) -> dict[int, int] | None:
        """What the classifier predicts for the sample, by image index; None where it cannot."""
        if classifier is None:
            return None
        _check_classifier(classifier, self._layers)
        if classifier.predictions is not None:
            return dict(enumerate(np.asarray(classifier.predictions).tolist()))
        sums = self._layers[str(classifier.layer)]
        if not sums.finite:
            return None
        decided = linear_predictions(sums.sample.features, classifier.weights, classifier.bias)
        return dict(zip(sums.sample.indices.tolist(), decided.tolist(), strict=True))


@dataclass(frozen=True)
class _Settings:
    """What a result tells of how it was made."""

    model: str
    measures: tuple[str, ...]
    samples: int
    groups: int
    seed: int


COLUMNS: dict[str, float] = {
    "value": np.nan,
    "standard_error": np.nan,
    "low": np.nan,
    "high": np.nan,
    "samples": 0,
}


def measure_geometry(
    features_by_layer: Mapping[str, Any],
    labels: Any = None,
    *,
    model: str = "",
    classifier: Classifier | None = None,
    measures: Sequence[str] = tuple(GEOMETRY_MEASURES),
    groups: int = GROUPS,
    sample: int = SAMPLE,
    seed: int = 0,
    progress: Watch = lambda done, total: None,
    cancelled: Callable[[], bool] = lambda: False,
) -> GeometryResult:
    """Measure the geometry of the layers of one model.

    Args:
        features_by_layer: (N, ...) arrays or tensors, pooled or not, flattened to (N, D), by
            layer name in order; the same N images in the same order, drawn at random.
        labels: (N,) classes, or None: then no measure of classes.
        model: its name.
        classifier: for NC3, at the layer that it reads, and NC4, at every layer.
        measures: names of GEOMETRY_MEASURES.
        groups: of images, for the jackknife; 0 gives no such intervals.
        sample: most images for TwoNN, silhouette, nearest class means and layers wider than 256.
        seed: decides groups and sample.
        progress: called after every layer with the number done and of all.
        cancelled: asked before every layer; layers from then on are undefined.

    Returns:
        values, standard errors and intervals by measure; GEOMETRY_MEASURES has their ranges and
        directions.

    Raises:
        ValueError: shapes or options that do not fit.
    """
    _check_measures(measures)
    counts = {layer: len(features) for layer, features in features_by_layer.items()}
    if len(set(counts.values())) != 1:
        raise ValueError(
            "geometry needs one layer or more, all on the same images, but the numbers of images "
            "are: "
            + (", ".join(f"{count} of {layer}" for layer, count in counts.items()) or "none")
        )
    known = _known_predictions(features_by_layer, classifier)
    answers: dict[str, Mapping[str, Answer]] = {}
    for layer, features in features_by_layer.items():
        if cancelled():
            break
        # One accumulator a layer, so that no more than one layer's sample is alive.
        accumulator = GeometryAccumulator(groups=groups, sample=sample, seed=seed)
        accumulator.update(layer, features, labels)
        reading = Reading(accumulator.sums(layer), _weights_for(classifier, layer), known)
        answers[layer] = measure_layer(reading, measures)
        progress(len(answers), len(features_by_layer))
    widths = {name: math.prod(np.shape(layer)[1:]) for name, layer in features_by_layer.items()}
    samples = next(iter(counts.values()))
    settings = _Settings(model, tuple(measures), samples, groups, seed)
    return _table(settings, widths, answers)


def linear_predictions(features: Any, weights: Any, bias: Any = None) -> IntArray:
    """Predict classes by a linear classifier: the largest of W x + b.

    Args:
        features: (N, ...) array or tensor, flattened to (N, D).
        weights: (K, D).
        bias: (K,), or None for none.

    Returns:
        (N,) classes.

    Raises:
        ValueError: widths that do not fit.
    """
    rows, weights = matrix(features).astype(np.float64), matrix(weights).astype(np.float64)
    if rows.shape[1] != weights.shape[1]:
        raise ValueError(
            f"the classifier reads {weights.shape[1]} features, but its layer has {rows.shape[1]}: "
            "pool the features as the model does, or give the classifier's predictions"
        )
    shift = (
        0 if bias is None else matrix(bias.reshape(1, -1) if hasattr(bias, "reshape") else [bias])
    )
    return np.asarray((rows @ weights.T + shift).argmax(axis=1), np.int64)


def _table(
    settings: _Settings, widths: Mapping[str, int], answers: Mapping[str, Mapping[str, Answer]]
) -> GeometryResult:
    """Put answers by layer and measure into arrays (L,) by measure."""
    columns: dict[str, dict[str, list[float]]] = {
        name: {measure: [] for measure in settings.measures} for name in COLUMNS
    }
    undefined, notes = {}, {}
    for layer in widths:
        for measure in settings.measures:
            answer = answers.get(layer, {}).get(measure, STOPPED)
            if isinstance(answer, str):
                undefined[f"{layer}/{measure}"] = answer
            elif answer.note is not None:
                notes[f"{layer}/{measure}"] = answer.note
            for name, missing in COLUMNS.items():
                value = missing if isinstance(answer, str) else getattr(answer, name)
                columns[name][measure].append(value)
    arrays = {
        name: {measure: np.array(column) for measure, column in by_measure.items()}
        for name, by_measure in columns.items()
    }
    return GeometryResult(
        model=settings.model,
        layers=tuple(widths),
        measures=settings.measures,
        values=arrays["value"],
        standard_errors=arrays["standard_error"],
        low=arrays["low"],
        high=arrays["high"],
        samples_by_measure=arrays["samples"],
        undefined=undefined,
        notes=notes,
        widths=tuple(widths.values()),
        samples=settings.samples,
        groups=settings.groups,
        seed=settings.seed,
    )


def _known_predictions(
    features_by_layer: Mapping[str, Any], classifier: Classifier | None
) -> dict[int, int] | None:
    """What the classifier predicts for all images, by position; None where it cannot."""
    if classifier is None:
        return None
    _check_classifier(classifier, features_by_layer)
    if classifier.predictions is not None:
        return dict(enumerate(np.asarray(classifier.predictions).tolist()))
    try:
        features = matrix(features_by_layer[str(classifier.layer)])
    except Undefined:
        return None
    return dict(
        enumerate(linear_predictions(features, classifier.weights, classifier.bias).tolist())
    )


def _check_classifier(classifier: Classifier, layers: Container[str]) -> None:
    """Refuse a classifier that neither predicts nor reads one of the layers."""
    if classifier.predictions is None and classifier.weights is None:
        raise ValueError("a classifier needs weights, or what it predicts, but has neither")
    if classifier.predictions is None and classifier.layer not in layers:
        raise ValueError(
            f"the classifier reads the layer {classifier.layer!r}, which is not among those "
            "measured; give its own layer, or its predictions"
        )


def _weights_for(classifier: Classifier | None, layer: str) -> FloatArray | None:
    """Weights of a classifier that reads this layer; None of any other."""
    if classifier is None or classifier.layer != layer or classifier.weights is None:
        return None
    return matrix(classifier.weights)


def _check_measures(measures: Sequence[str]) -> None:
    """Refuse names that are not in GEOMETRY_MEASURES."""
    for name in measures:
        if name not in GEOMETRY_MEASURES:
            raise ValueError(
                f"there is no measure {name!r} of geometry; choose from "
                f"{', '.join(GEOMETRY_MEASURES)}"
            )


def _check_widths(layer: str, mine: LayerSums, other: LayerSums) -> None:
    """Refuse batches of one layer that differ in width."""
    if mine.width != other.width:
        raise ValueError(
            f"the batches of {layer} differ in width: {mine.width} and {other.width} features"
        )


def _checked_indices(indices: Any, start: int, count: int) -> IntArray:
    """Indices (n,) as int64; counted on from `start` if None."""
    if indices is None:
        return np.arange(start, start + count)
    array = np.asarray(indices.cpu() if hasattr(indices, "cpu") else indices)
    if array.shape != (count,) or array.dtype.kind not in "iu":
        raise ValueError(f"{count} images need as many whole numbers as indices, one each")
    return array.astype(np.int64)
