"""One image under the lens: what every layer's probe, every auxiliary network and the head say.

`fit_lens`: a model, training images and test images in, a `Lens` out: a linear probe a layer, the
features of the training images, and what every reader says of the test images. `ask`: one more
image in, its `LensAnswer` out, by a single forward pass. `nearest`: the training images that are
nearest to it in each layer. A reader is whoever names a class: a probe, an auxiliary network, or
the network's own classifier.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from threadpoolctl import threadpool_limits
from torch import Tensor

from analysis.errors import Cancelled, InputError
from analysis.features import ImageSample, auxiliary_logits, check_images, visit_features
from analysis.models import Model
from analysis.probe_solver import moments
from analysis.probes import ProbeFits, ProbeModel, fit_probes, pooled
from analysis.reading import Progress, Watch

FloatArray = npt.NDArray[np.floating[Any]]
IntArray = npt.NDArray[np.integer[Any]]

PROBE, AUXILIARY, CLASSIFIER = "probe", "auxiliary", "classifier"
DEFAULT_TRAIN_SAMPLES = 2000
DEFAULT_PENALTY = 1.0
NEIGHBOURS = 5
METRICS = ("cosine", "euclidean")
NO_AUXILIARY = "no auxiliary network reads this layer"
NO_LOGITS = "the network gives no logits"
NOT_FINITE = "its logits are not all finite numbers"
BATCH_SIZE = 128


@dataclass(frozen=True)
class Reader:
    """Who names a class: a "probe", an "auxiliary" or the "classifier", whose layer is that too."""

    kind: str
    layer: str


@dataclass(frozen=True, eq=False)
class LensLayer:
    """One layer of a lens.

    Attributes:
        name: of the layer.
        probe: reads pooled features; None where there is none.
        reason: why there is no probe; else "".
        mean, scale: (D,), of the training images; scale is 1 / deviation, 0 for constant features.
        features: (N, D) float32, of the training images, standardised by these two.
    """

    name: str
    probe: ProbeModel | None
    reason: str
    mean: FloatArray
    scale: FloatArray
    features: FloatArray


@dataclass(frozen=True, eq=False)
class Lens:
    """All that reads single images of one model.

    Attributes:
        layers: from input to output.
        classes: K names, of the data.
        readers: R, probes in the order of the layers, then auxiliary networks, then the classifier.
        reasons: why a reader has nothing to say, by its index.
        train_labels: (N,), of the images that probes were fitted to.
        train_indices: (N,), which images of the training split these are.
        test_labels: (M,).
        test_indices: (M,), which images of the split.
        predictions: (R, M), what each reader says of the test images; -1 where undefined.
        confidence: (R, M), the probability of that class; NaN where undefined.
        disagreement: (M,), how much the layers' probes disagree, nats; see `disagreement`.
        penalty: that probes were fitted with.
        pooling: s, of features pooled to s x s; None: flattened.
    """

    layers: tuple[LensLayer, ...]
    classes: tuple[str, ...]
    readers: tuple[Reader, ...]
    reasons: dict[int, str]
    train_labels: IntArray
    train_indices: IntArray
    test_labels: IntArray
    test_indices: IntArray
    predictions: IntArray
    confidence: FloatArray
    disagreement: FloatArray
    penalty: float
    pooling: int | None

    @property
    def layer_names(self) -> tuple[str, ...]:
        """Names of the layers, from input to output."""
        return tuple(layer.name for layer in self.layers)

    def accuracy(self, reader: int) -> float:
        """The fraction of test images that a reader names right; NaN where undefined."""
        predictions = self.predictions[reader]
        if (predictions < 0).all():
            return float("nan")
        return float((predictions == self.test_labels).mean())

    def mean_confidence(self, reader: int) -> float:
        """What a reader claims on average; above its accuracy, it is overconfident."""
        return float(self.confidence[reader].mean())


@dataclass(frozen=True, eq=False)
class LensAnswer:
    """What is said of one image.

    `probabilities` (R, K) are those of each reader, NaN rows where undefined, with their `reasons`
    by index; `features` (D,) are pooled, by layer.
    """

    readers: tuple[Reader, ...]
    classes: tuple[str, ...]
    probabilities: FloatArray
    reasons: dict[int, str]
    features: dict[str, FloatArray] = field(default_factory=dict)

    def indices(self, kind: str) -> list[int]:
        """Rows of the readers of one kind."""
        return [index for index, reader in enumerate(self.readers) if reader.kind == kind]

    def row(self, kind: str, layer: str) -> FloatArray | None:
        """What one reader says, (K,); None where there is no such reader."""
        wanted = Reader(kind, layer)
        return self.probabilities[self.readers.index(wanted)] if wanted in self.readers else None


@dataclass(frozen=True, eq=False)
class Neighbours:
    """The k nearest training images of one image in each layer, the nearest first.

    `positions` (L, k) index the lens's training images, -1 in a layer whose features are not
    finite; `distances` (L, k) are 1 - cosine, in [0, 2], or Euclidean, in deviations.
    """

    layers: tuple[str, ...]
    metric: str
    positions: IntArray
    distances: FloatArray


# ---------------------------------------------------------------------------------------- fitting


def fit_lens(
    model: Model,
    train: ImageSample,
    test: ImageSample,
    *,
    penalty: float = DEFAULT_PENALTY,
    pooling: int | None = 1,
    progress: Callable[[Progress], None] = lambda progress: None,
    cancelled: Callable[[], bool] = lambda: False,
) -> Lens:
    """Fit a linear probe to every layer, and keep what neighbours and rankings need.

    Args:
        model: opened with `auxiliaries=True` to hear its auxiliary networks.
        train: N images of the training split, for probes and neighbours.
        test: M images, to tell how right each reader is and on which images layers disagree.
        penalty: of every probe's squared norm, 1 / C in scikit-learn.
        pooling: probes and neighbours read features pooled to s x s; None takes them flattened.
        progress: called at the start of a stage, after every batch and after every probe.
        cancelled: asked before every batch and every probe.

    Raises:
        InputError: images that the model does not take, or whose classes differ.
        Cancelled: `cancelled` said so.
    """
    check_images(model, train)
    check_images(model, test)
    if train.classes != test.classes:
        raise InputError(
            f"{train.title} and {test.title} do not have the same classes; take both from one "
            "data set."
        )
    watch = Watch(progress, cancelled)
    with threadpool_limits(1, user_api="blas"):
        known = _read(model, train, pooling, watch, "Reading training images", [])
        readers = _readers(model)
        logits: list[dict[Reader, FloatArray]] = []
        unseen = _read(model, test, pooling, watch, "Reading test images", logits)
    fits = _fit(known, unseen, train, test, penalty, watch)
    said, reasons = _said_of_tests(model, test, readers, logits, fits)
    return Lens(
        layers=tuple(_layer(name, known[name], fits) for name in model.layer_names),
        classes=test.classes,
        readers=readers,
        reasons=reasons,
        train_labels=train.labels,
        train_indices=train.indices,
        test_labels=test.labels,
        test_indices=test.indices,
        predictions=_predictions(said),
        confidence=np.exp(said.max(axis=2)),
        disagreement=disagreement(said[: len(model.layer_names)]),
        penalty=penalty,
        pooling=pooling,
    )


def _readers(model: Model) -> tuple[Reader, ...]:
    """All who could say something of an image of this model."""
    return (
        *(Reader(PROBE, name) for name in model.layer_names),
        *(Reader(AUXILIARY, name) for name in model.auxiliary_layers),
        Reader(CLASSIFIER, CLASSIFIER),
    )


def _read(
    model: Model,
    sample: ImageSample,
    pooling: int | None,
    watch: Watch,
    stage: str,
    logits: list[dict[Reader, FloatArray]],
) -> dict[str, FloatArray]:
    """Pooled features (N, D) by layer; `logits` gets one entry a batch."""
    starts = range(0, len(sample.images), BATCH_SIZE)
    watch.start(stage, len(starts))
    parts: dict[str, list[FloatArray]] = {name: [] for name in model.layer_names}
    for start in starts:
        watch.check()
        features, said = _forward(model, sample.images[start : start + BATCH_SIZE], pooling)
        logits.append(said)
        for name, values in features.items():
            parts[name].append(values)
        watch.step()
    return {name: np.concatenate(values) for name, values in parts.items()}


def _forward(
    model: Model, images: Tensor, pooling: int | None
) -> tuple[dict[str, FloatArray], dict[Reader, FloatArray]]:
    """One pass: pooled features by layer, and the logits of the network's own readers."""
    features: dict[str, FloatArray] = {}
    said: dict[Reader, FloatArray] = {}

    def visit(name: str, output: Tensor) -> None:
        features[name] = pooled(output, pooling)
        auxiliary = auxiliary_logits(model, name, output)
        if auxiliary is not None:
            said[Reader(AUXILIARY, name)] = auxiliary.cpu().numpy()

    logits = visit_features(model, images, visit)
    if logits is not None:
        said[Reader(CLASSIFIER, CLASSIFIER)] = logits.cpu().numpy()
    return features, said


def _fit(
    known: dict[str, FloatArray],
    unseen: dict[str, FloatArray],
    train: ImageSample,
    test: ImageSample,
    penalty: float,
    watch: Watch,
) -> ProbeFits[str]:
    """The probes of all layers."""
    watch.start("Fitting probes", len(known))
    fits = fit_probes(
        known,
        train.labels,
        unseen,
        test.labels,
        penalties=(penalty,),
        num_classes=len(test.classes),
        progress=lambda done, total: watch.to(done),
        cancelled=watch.cancelled,
    )
    if fits.cancelled:
        raise Cancelled("The probes were cancelled; nothing was saved.")
    return fits


def _layer(name: str, features: FloatArray, fits: ProbeFits[str]) -> LensLayer:
    """What is kept of a layer."""
    try:
        mean, scale = moments(features)
    except ValueError:  # its features are not finite, as the probe's reason says
        mean, scale = np.full((2, features.shape[1]), np.nan)
    probe = fits.layers.get(name)
    return LensLayer(
        name=name,
        probe=None if probe is None else probe.model,
        reason=fits.undefined.get(name, ""),
        mean=mean,
        scale=scale,
        features=np.asarray((features - mean) * scale, np.float32),
    )


def _said_of_tests(
    model: Model,
    test: ImageSample,
    readers: Sequence[Reader],
    logits: Sequence[dict[Reader, FloatArray]],
    fits: ProbeFits[str],
) -> tuple[FloatArray, dict[int, str]]:
    """Log-probabilities (R, M, K) of all readers, and reasons where they are undefined."""
    shape = (len(readers), len(test.labels), len(test.classes))
    said, reasons = np.full(shape, np.nan, np.float32), {}
    mismatch = _mismatch(model, test.classes)
    for index, reader in enumerate(readers):
        if reader.kind == PROBE and reader.layer in fits.layers:
            said[index] = fits.layers[reader.layer].log_probabilities
        elif reader.kind == PROBE:
            reasons[index] = fits.undefined[reader.layer]
        elif mismatch or reader not in logits[0]:
            reasons[index] = mismatch or NO_LOGITS
        else:
            own = np.concatenate([part[reader] for part in logits])
            if np.isfinite(own).all():
                said[index] = _log_softmax(own)
            else:
                reasons[index] = NOT_FINITE
    return said, reasons


def _mismatch(model: Model, classes: tuple[str, ...]) -> str:
    """Why the network's own readers cannot speak of these classes; "" where they can."""
    own = model.metadata.classes
    if own == classes:
        return ""
    return f"it was trained on other classes than these ({len(own)}: {', '.join(own[:3])}, ...)"


def _log_softmax(logits: FloatArray) -> FloatArray:
    """Logarithms of probabilities (..., K), in float64."""
    wide = np.asarray(logits, np.float64)
    return np.asarray(wide - np.logaddexp.reduce(wide, axis=-1, keepdims=True))


def _predictions(said: FloatArray) -> IntArray:
    """The likeliest class (R, M); -1 where undefined."""
    undefined = np.isnan(said).any(axis=2)
    return np.asarray(np.where(undefined, -1, np.nan_to_num(said, nan=-np.inf).argmax(axis=2)))


# ----------------------------------------------------------------------------------- single images


def ask(model: Model, lens: Lens, image: Tensor) -> LensAnswer:
    """Run one image through a model and let every reader name its class.

    Args:
        model: that the lens was fitted to, with the same auxiliary networks open.
        lens: of `fit_lens`.
        image: uint8, (C, H, W), as the model takes it.

    Returns:
        probabilities (softmax, at temperature 1) of all readers.
    """
    features, logits = _forward(model, image[None].to(torch.uint8), lens.pooling)
    layers = {layer.name: layer for layer in lens.layers}
    probabilities = np.full((len(lens.readers), len(lens.classes)), np.nan)
    reasons = dict(lens.reasons)
    for index, reader in enumerate(lens.readers):
        if index in reasons:
            continue
        if reader.kind != PROBE:
            if np.isfinite(logits[reader]).all():
                probabilities[index] = np.exp(_log_softmax(logits[reader][0]))
            else:
                reasons[index] = NOT_FINITE
            continue
        probe = layers[reader.layer].probe
        assert probe is not None
        try:
            probabilities[index] = np.exp(probe.log_probabilities(features[reader.layer])[0])
        except ValueError as error:  # features of this image that are not finite
            reasons[index] = str(error)
    pooled_features = {name: values[0] for name, values in features.items()}
    return LensAnswer(lens.readers, lens.classes, probabilities, reasons, pooled_features)


def nearest(
    lens: Lens, answer: LensAnswer, *, metric: str = METRICS[0], neighbours: int = NEIGHBOURS
) -> Neighbours:
    """Find the training images that are nearest to an image in every layer.

    Features are standardised by the training images, as in `probe_neighbours.knn_probe`, so that
    no channel counts for more because its values are larger. Equally near images come in their
    order; an image of only zeros is at cosine 0 to all.

    Args:
        lens: whose training images are searched.
        answer: of the image, by `ask`.
        metric: "cosine" or "euclidean".
        neighbours: k, from 1 to N.

    Raises:
        ValueError: another metric, or more neighbours than images.
    """
    if metric not in METRICS:
        raise ValueError(f"there is no metric {metric!r}; choose one of {', '.join(METRICS)}")
    if not 1 <= neighbours <= len(lens.train_labels):
        raise ValueError(
            f"the number of neighbours must be 1 to {len(lens.train_labels)}, the number of "
            f"training images, but it is {neighbours}"
        )
    positions = np.full((len(lens.layers), neighbours), -1)
    distances = np.full((len(lens.layers), neighbours), np.nan)
    for row, layer in enumerate(lens.layers):
        image = (answer.features[layer.name].astype(np.float64) - layer.mean) * layer.scale
        if np.isfinite(image).all() and np.isfinite(layer.features).all():
            all_distances = _distances(layer.features, image, metric)
            positions[row] = np.argsort(all_distances, kind="stable")[:neighbours]
            distances[row] = all_distances[positions[row]]
    return Neighbours(lens.layer_names, metric, positions, distances)


def _distances(features: FloatArray, image: FloatArray, metric: str) -> FloatArray:
    """Distances (N,) of standardised images (N, D) to one (D,)."""
    wide = features.astype(np.float64)
    if metric == "euclidean":
        return np.asarray(np.linalg.norm(wide - image, axis=1))
    lengths = np.linalg.norm(wide, axis=1) * np.linalg.norm(image)
    return np.asarray(1 - wide @ image / np.where(lengths == 0, 1, lengths))


# ----------------------------------------------------------------------------------------- numbers


def disagreement(log_probabilities: FloatArray) -> FloatArray:
    """How much several readers disagree on each image: their Jensen-Shannon divergence.

        H(mean over readers of p) - mean over readers of H(p),  H(p) = -sum_k p_k log p_k

    Args:
        log_probabilities: (R, M, K); readers with an undefined value anywhere are left out.

    Returns:
        (M,) nats, from 0 where all say the same to log(min(R, K)); 0 without readers.

    Source: Lin 1991, equation 5.1, with equal weights.
    """
    defined = np.asarray(log_probabilities, np.float64)
    defined = defined[~np.isnan(defined).any(axis=(1, 2))]
    if not len(defined):
        return np.zeros(log_probabilities.shape[1])
    probabilities = np.exp(defined)
    divergence = _entropy(probabilities.mean(axis=0)) - _entropy(probabilities).mean(axis=0)
    return np.asarray(np.maximum(divergence, 0))


def _entropy(probabilities: FloatArray) -> FloatArray:
    """Entropy over the last axis, nats; 0 log 0 is 0."""
    logarithms = np.log(np.where(probabilities > 0, probabilities, 1))
    return np.asarray(-(probabilities * logarithms).sum(axis=-1))


def settled_at(probabilities: FloatArray) -> int | None:
    """The first layer from which on every layer names the class that the last one names.

    Args:
        probabilities: (L, K), NaN rows where undefined; these are passed over.

    Returns:
        an index of a layer, or None where the last layer is undefined.
    """
    if not len(probabilities) or np.isnan(probabilities[-1]).any():
        return None
    first, last = len(probabilities) - 1, int(probabilities[-1].argmax())
    for index in range(len(probabilities) - 2, -1, -1):
        row = probabilities[index]
        if np.isnan(row).any():
            continue
        if int(row.argmax()) != last:
            break
        first = index
    return first
