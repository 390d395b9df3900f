"""Linear probes: what a multinomial logistic regression reads off the features of each layer.

In: features (`pooled` or flattened) and labels of training and of test images. Out: for every
layer a `LayerProbe`: its scores and what it says of every test image. Its `ProbeModel` reads
further images. (The probe without a fit is in probe_neighbours.py.)

This file knows numpy, and the solver and the scores beside it; torch tensors are treated by the
verbs that both share.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from threading import Event
from typing import Any, Generic, TypeVar

import numpy as np
import numpy.typing as npt

from analysis.probe_checks import (
    NOT_FINITE,
    check_features,
    check_labels,
    check_penalty,
    check_widths,
)
from analysis.probe_scores import ProbeScores, score
from analysis.probe_scores import wilson_interval as wilson_interval  # part of this interface
from analysis.probe_solver import PrincipalAxes, Solution, column_blocks, minimise

FloatArray = npt.NDArray[np.floating[Any]]
IntArray = npt.NDArray[np.integer[Any]]
KeyT = TypeVar("KeyT", bound=Hashable)

PENALTIES = (0.1, 1.0, 10.0, 100.0, 1000.0)
CONSTANT = "its features are the same for every training image, so there is nothing to read"
CANCELLED = "the fit was cancelled before it came to this layer"
TO_COME = "no probe is fitted to this layer yet"


@dataclass(frozen=True, eq=False)
class ProbeFit:
    """One fitted probe, scored on test images.

    `predictions` (N_test,) are labels, `accuracy` is the fraction that is right, and `objective`
    is the sum of cross-entropies over the training images plus penalty / 2 |W|^2.
    """

    predictions: IntArray
    accuracy: float
    objective: float


@dataclass(frozen=True, eq=False)
class ProbeResult:
    """Test accuracy of a linear probe on every layer of one model, with 95% Wilson intervals.

    `accuracy`, `low` and `high` are (L,) fractions, NaN where undefined. The classifier is the
    model's own head on the same test images: None where undefined. `chance` is the accuracy of
    guessing at random, 1 / K. `undefined` tells why by layer, and under "classifier" for the head.

    What follows `undefined` may be missing (None, or empty) in studies of older versions, NaN and
    -1 stand for undefined: `penalties` (L,) chosen on a validation part of the training images;
    `cross_entropy` (L,) in nats and `calibration_error` (L,), both lower is better; `recall`
    (L, K) with intervals; `confusion` (L, K, K) counts, true classes in rows; the accuracy of
    `num_neighbours` nearest neighbours (L,) with intervals; `predictions` (L, N) and `confidence`
    (L, N), the probability of the predicted class; `classifier_predictions` (N,). Auxiliary
    networks that the checkpoint carries have `auxiliary_accuracy` (A,) with intervals and
    `auxiliary_predictions` (A, N), at the layers `auxiliary_layers`.
    """

    model: str
    layers: tuple[str, ...]
    accuracy: FloatArray
    low: FloatArray
    high: FloatArray
    classifier_accuracy: float | None
    classifier_low: float | None
    classifier_high: float | None
    chance: float
    train_samples: int
    test_samples: int
    penalty: float
    undefined: dict[str, str]
    penalties: FloatArray | None = None
    cross_entropy: FloatArray | None = None
    calibration_error: FloatArray | None = None
    recall: FloatArray | None = None
    recall_low: FloatArray | None = None
    recall_high: FloatArray | None = None
    confusion: IntArray | None = None
    num_neighbours: int | None = None
    neighbours_accuracy: FloatArray | None = None
    neighbours_low: FloatArray | None = None
    neighbours_high: FloatArray | None = None
    predictions: IntArray | None = None
    confidence: FloatArray | None = None
    classifier_predictions: IntArray | None = None
    auxiliary_layers: tuple[str, ...] = ()
    auxiliary_accuracy: FloatArray | None = None
    auxiliary_low: FloatArray | None = None
    auxiliary_high: FloatArray | None = None
    auxiliary_predictions: IntArray | None = None


@dataclass(frozen=True, eq=False)
class ProbeModel:
    """A fitted linear probe: log p(k) = log softmax(W (x - mean) scale + b) at class k.

    `mean` and `scale` are (D,), `weights` (C, D) and `intercept` (C,) belong to the C `classes`
    that had training images, of `num_classes` (K) in all.
    """

    mean: FloatArray
    scale: FloatArray
    weights: FloatArray
    intercept: FloatArray
    classes: IntArray
    num_classes: int

    def log_probabilities(self, features: Any) -> FloatArray:
        """Read images, seen or new.

        Args:
            features: (N, D), pooled as the features that the probe was fitted to.

        Returns:
            (N, K) float64, natural logarithms; -inf for classes without training images.

        Raises:
            ValueError: another width, or features that are not finite.
        """
        features = np.asarray(features)
        if features.ndim != 2 or features.shape[1] != len(self.mean):
            raise ValueError(
                f"this probe reads features (N, {len(self.mean)}), but they have the shape "
                f"{features.shape}; pool them as those that it was fitted to"
            )
        if not np.isfinite(features).all():
            raise ValueError(NOT_FINITE)
        scores = np.tile(self.intercept, (len(features), 1))
        for columns in column_blocks(*features.shape):
            block = features[:, columns].astype(np.float64) - self.mean[columns]
            scores += block @ (self.weights[:, columns] * self.scale[columns]).T
        result = np.full((len(features), self.num_classes), -np.inf)
        result[:, self.classes] = scores - np.logaddexp.reduce(scores, axis=1, keepdims=True)
        return result


@dataclass(frozen=True, eq=False)
class LayerProbe:
    """The linear probe of one layer.

    Attributes:
        model: reads further images.
        log_probabilities: (N_test, K), what it says of each test image.
        scores: how right that is.
        penalty: that it was fitted with.
        validation: accuracy on the validation part by penalty; empty if there was one penalty.
        objective: sum of cross-entropies over the training images plus penalty / 2 |W|^2.
        gradient: Euclidean norm of the gradient of objective / N_train; 0 at the optimum.
        evaluations: of objective and gradient that the last fit took.
    """

    model: ProbeModel
    log_probabilities: FloatArray
    scores: ProbeScores
    penalty: float
    validation: dict[float, float]
    objective: float
    gradient: float
    evaluations: int


@dataclass(frozen=True, eq=False)
class ProbeFits(Generic[KeyT]):
    """Linear probes of all layers: `layers` by key, in the order given, or why there is none.

    `labels` (N_test,) and `num_classes` are those of the test images; `cancelled` tells that the
    fit was stopped, and `undefined` then holds the layers it did not come to.
    """

    layers: dict[KeyT, LayerProbe]
    undefined: dict[KeyT, str]
    labels: IntArray
    num_classes: int
    cancelled: bool = False

    def correct(self, key: KeyT) -> npt.NDArray[np.bool_] | None:
        """Tell of each test image (N_test,) whether a layer's probe is right; None without one."""
        if key not in self.layers:
            return None
        return np.asarray(self.layers[key].scores.predictions == self.labels)

    def log_probabilities(
        self, features_by_layer: Mapping[KeyT, Any] | None = None
    ) -> dict[KeyT, FloatArray]:
        """Tell what each layer's probe believes of every image: "which layer decides".

        Args:
            features_by_layer: (N, D) features of further images; None for the test images.

        Returns:
            (N, K) by key, in the order of the layers; only layers with a probe.
        """
        if features_by_layer is None:
            return {key: probe.log_probabilities for key, probe in self.layers.items()}
        return {
            key: probe.model.log_probabilities(features_by_layer[key])
            for key, probe in self.layers.items()
            if key in features_by_layer
        }


# -------------------------------------------------------------------------------- features


def pooled(features: Any, size: int | None = 1) -> FloatArray:
    """Average features over a grid of s x s cells, or flatten them.

    Along an axis of length H, cell i covers i H / s to (i + 1) H / s, rounded outwards, as in
    PyTorch's adaptive average pooling. An axis shorter than s is kept as it is.

    Args:
        features: (N, C, ...) array or tensor; (N, C) passes unchanged.
        size: s, cells along each axis after the channels; None flattens.

    Returns:
        (N, C), (N, C s s) or (N, C H W) numpy array, fp32 or float64, channels outermost.

    Raises:
        ValueError: a size below 1.
    """
    if size is not None and size < 1:
        raise ValueError(f"features are pooled to 1 x 1 cells or more, but the size is {size}")
    if hasattr(features, "detach"):
        features = features.detach()
        features = features if str(features.dtype) == "torch.float64" else features.float()
    lengths = tuple(features.shape[2:])
    if size is not None and any(length > size for length in lengths):
        return _pooled_cells(features, [_cells(length, size) for length in lengths])
    # A copy, because a later layer may work in place on the memory of this one.
    return np.array(_numpy(features)).reshape(features.shape[0], -1)


def _cells(length: int, size: int) -> list[slice]:
    """Cut an axis into cells."""
    size = min(size, length)
    return [slice(i * length // size, -(-(i + 1) * length // size)) for i in range(size)]


def _pooled_cells(features: Any, cells: Sequence[Sequence[slice]]) -> FloatArray:
    """Average each cell of a grid."""
    count, channels = features.shape[:2]
    means = [
        _numpy(features[(slice(None), slice(None), *cell)].reshape(count, channels, -1).mean(-1))
        for cell in product(*cells)
    ]
    return np.stack(means, axis=2).reshape(count, -1)


def _numpy(features: Any) -> FloatArray:
    """Bring an array or a tensor to numpy."""
    return np.asarray(features.cpu().numpy() if hasattr(features, "cpu") else features)


# ---------------------------------------------------------------------------- linear probes


def fit_probes(
    train_by_layer: Mapping[KeyT, Any],
    train_labels: IntArray,
    test_by_layer: Mapping[KeyT, Any],
    test_labels: IntArray,
    *,
    penalties: Sequence[float] = PENALTIES,
    validation_fraction: float = 0.2,
    seed: int = 0,
    num_classes: int | None = None,
    threads: int | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
    refined: Callable[[ProbeFits[KeyT]], None] = lambda fits: None,
    cancelled: Callable[[], bool] = lambda: False,
) -> ProbeFits[KeyT]:
    """Fit a linear probe to every layer of every model and score it.

    A probe is a multinomial logistic regression: it minimises

        sum_i cross-entropy(W z_i + b, y_i) + penalty / 2 |W|^2

    over W and b in float64, with z the features standardised by the mean and deviation of the
    training images; constant features become 0. That is scikit-learn's LogisticRegression with
    C = 1 / penalty behind a StandardScaler, for two classes too: there one row of weights, the
    difference of the two, is penalised. A class without training images is never predicted.

    With several penalties, each layer takes the one with the highest accuracy on a validation
    part of the training images (stratified by class, the same for all layers; the stronger of
    equals), and is then fitted to all training images. With one there is no search.

    A layer that cannot be fitted gets its reason in `undefined`; the others are fitted. Layers do
    not influence each other, so neither their order nor their number changes a result.

    Args:
        train_by_layer: (N_train, D) features by key; keys name a layer, or a model and a layer.
        train_labels: (N_train,), from 0.
        test_by_layer: (N_test, D) features by the same keys.
        test_labels: (N_test,), from 0.
        penalties: weights of the squared norm, above 0.
        validation_fraction: of each class of the training images, above 0 and below 1.
        seed: draws the validation part.
        num_classes: K; None takes the largest label and adds 1.
        threads: layers fitted at the same time; None takes as many as BLAS may use, and BLAS
            uses one in each.
        progress: called with (layers done, layers in all), first with 0.
        refined: called after every layer with the probes fitted so far.
        cancelled: asked after every layer; after True no further layer is begun.

    Raises:
        ValueError: labels or options that fit no layer.

    Example:
        >>> labels = np.arange(100) % 2
        >>> features = labels[:, None] + np.random.default_rng(0).normal(size=(100, 3)) / 9
        >>> fits = fit_probes({"stem": features}, labels, {"stem": features}, labels)
        >>> fits.layers["stem"].scores.accuracy
        1.0

    Source: Alain and Bengio 2017 (linear probes).
    """
    train_labels, test_labels = np.asarray(train_labels), np.asarray(test_labels)
    plan = _plan(
        train_labels, test_labels, penalties, validation_fraction, seed, num_classes, cancelled
    )
    _check_keys(train_by_layer, test_by_layer)
    total = len(train_by_layer)
    progress(0, total)
    answers: dict[KeyT, LayerProbe | str] = {}
    with _one_blas_thread() as allowed:
        workers = max(1, min(threads or allowed, total))
        with ThreadPoolExecutor(workers) as executor:
            futures = {
                executor.submit(_answer, plan, features, test_by_layer[key]): key
                for key, features in train_by_layer.items()
            }
            try:
                for done, future in enumerate(as_completed(futures), start=1):
                    answers[futures[future]] = future.result()
                    progress(done, total)
                    if not plan.stop.is_set():
                        refined(_gathered(plan, train_by_layer, answers))
                    if cancelled():
                        plan.stop.set()
            except BaseException:
                plan.stop.set()
                raise
    return _gathered(plan, train_by_layer, answers)


@dataclass(frozen=True, eq=False)
class _Plan:
    """What all layers share: labels, which images validate, and whether to stop."""

    train_labels: IntArray
    test_labels: IntArray
    penalties: tuple[float, ...]
    fit_part: IntArray
    validation_part: IntArray
    num_classes: int
    stop: Event


def _plan(
    train_labels: IntArray,
    test_labels: IntArray,
    penalties: Sequence[float],
    validation_fraction: float,
    seed: int,
    num_classes: int | None,
    cancelled: Callable[[], bool],
) -> _Plan:
    """Check what all layers share, and split the training images."""
    for name, labels in (("train", train_labels), ("test", test_labels)):
        check_labels(name, labels, num_classes)
    if not len(penalties):
        raise ValueError("probes need at least one penalty, but there is none; give 1.0, say")
    for penalty in penalties:
        check_penalty(penalty)
    strongest_first = tuple(sorted({float(penalty) for penalty in penalties}, reverse=True))
    fit_part: IntArray = np.arange(len(train_labels))
    validation_part: IntArray = np.arange(0)
    if len(strongest_first) > 1:
        fit_part, validation_part = split_stratified(train_labels, validation_fraction, seed)
    stop = Event()
    if cancelled():
        stop.set()
    return _Plan(
        train_labels=train_labels,
        test_labels=test_labels,
        penalties=strongest_first,
        fit_part=fit_part,
        validation_part=validation_part,
        num_classes=num_classes or int(max(train_labels.max(), test_labels.max())) + 1,
        stop=stop,
    )


def _gathered(
    plan: _Plan, keys: Iterable[KeyT], answers: Mapping[KeyT, LayerProbe | str]
) -> ProbeFits[KeyT]:
    """Put the layers answered so far in order."""
    found = {key: answers.get(key, TO_COME) for key in keys}
    return ProbeFits(
        layers={key: probe for key, probe in found.items() if not isinstance(probe, str)},
        undefined={key: text for key, text in found.items() if isinstance(text, str)},
        labels=plan.test_labels,
        num_classes=plan.num_classes,
        cancelled=plan.stop.is_set(),
    )


def _check_keys(train_by_layer: Mapping[KeyT, Any], test_by_layer: Mapping[KeyT, Any]) -> None:
    """Refuse layers without test features."""
    missing = [str(key) for key in train_by_layer if key not in test_by_layer]
    if missing or not train_by_layer:
        raise ValueError(
            "probes need train and test features of the same layers, but test features are "
            f"missing for {', '.join(missing)}"
            if missing
            else "probes need the features of at least one layer, but there is none"
        )


def split_stratified(labels: IntArray, fraction: float, seed: int) -> tuple[IntArray, IntArray]:
    """Draw a part of every class at random, and leave at least one image of each.

    Args:
        labels: (N,).
        fraction: of each class, rounded to whole images, above 0 and below 1.
        seed: decides which.

    Returns:
        sorted indices of the images left and of the images drawn.

    Raises:
        ValueError: a fraction outside, or too few images to draw any.
    """
    if not 0 < fraction < 1:
        raise ValueError(
            f"the validation fraction must be above 0 and below 1, but it is {fraction}"
        )
    generator = np.random.default_rng(seed)
    drawn = []
    for value in np.unique(labels):
        places = generator.permutation(np.flatnonzero(labels == value))
        drawn.append(places[: min(round(fraction * len(places)), len(places) - 1)])
    validation = np.sort(np.concatenate(drawn))
    if not len(validation):
        raise ValueError(
            f"{len(labels)} training images are too few to choose a penalty with "
            f"{fraction:g} of them; give more images, or a single penalty"
        )
    return np.setdiff1d(np.arange(len(labels)), validation), validation


@contextmanager
def _one_blas_thread() -> Iterator[int]:
    """Hold BLAS to one thread, and give how many it was allowed."""
    from threadpoolctl import ThreadpoolController  # finds the libraries, in milliseconds

    controller = ThreadpoolController().select(user_api="blas")
    allowed = max((library["num_threads"] for library in controller.info()), default=1)
    with controller.limit(limits=1):
        yield allowed


def _answer(plan: _Plan, train: Any, test: Any) -> LayerProbe | str:
    """Fit one layer, or say why that cannot be."""
    if plan.stop.is_set():
        return CANCELLED
    train, test = np.asarray(train), np.asarray(test)
    try:
        check_features("train", train, plan.train_labels)
        check_features("test", test, plan.test_labels)
        check_widths(train, test)
        return CONSTANT if (train == train[0]).all() else _fit_layer(plan, train, test)
    except ValueError as error:
        return str(error)


def _fit_layer(plan: _Plan, train: FloatArray, test: FloatArray) -> LayerProbe:
    """Choose the penalty of a layer, fit all training images, and read the test images."""
    validation = _validated(plan, train) if len(plan.penalties) > 1 else {}
    # The strongest comes first, and max takes the first of equals.
    penalty = max(validation, key=validation.__getitem__) if validation else plan.penalties[0]
    ((model, solution),) = _fits(train, plan.train_labels, plan.num_classes, (penalty,))
    log_probabilities = model.log_probabilities(test)
    return LayerProbe(
        model=model,
        log_probabilities=log_probabilities,
        scores=score(log_probabilities, plan.test_labels),
        penalty=penalty,
        validation=validation,
        objective=solution.objective,
        gradient=solution.gradient,
        evaluations=solution.evaluations,
    )


def _validated(plan: _Plan, train: FloatArray) -> dict[float, float]:
    """Accuracy on the validation part by penalty, the strongest first."""
    labels = plan.train_labels[plan.fit_part]
    held_out, expected = train[plan.validation_part], plan.train_labels[plan.validation_part]
    accuracy = {}
    fits = _fits(train[plan.fit_part], labels, plan.num_classes, plan.penalties)
    for penalty, (model, _) in zip(plan.penalties, fits, strict=True):
        predictions = model.log_probabilities(held_out).argmax(axis=1)
        accuracy[penalty] = float((predictions == expected).mean())
        if plan.stop.is_set():
            raise ValueError(CANCELLED)
    return accuracy


def _fits(
    train: FloatArray, labels: IntArray, num_classes: int, penalties: Sequence[float]
) -> Iterator[tuple[ProbeModel, Solution]]:
    """Fit one penalty after the other, each from where the last one ended."""
    present, classes = np.unique(labels, return_inverse=True)
    axes = PrincipalAxes(train)
    start = None
    for penalty in penalties:
        # Of two classes, scikit-learn penalises a single row u. Two rows are u / 2 and -u / 2, and
        # (2 penalty) / 2 (|u / 2|^2 + |-u / 2|^2) = penalty / 2 |u|^2.
        strength = 2 * penalty if len(present) == 2 else penalty
        solution = minimise(axes, classes, len(present), strength, start)
        start = solution.rotated
        model = ProbeModel(
            mean=axes.mean,
            scale=axes.scale,
            weights=solution.weights,
            intercept=solution.intercept,
            classes=present,
            num_classes=num_classes,
        )
        yield model, solution


def fit_probe(
    train: FloatArray,
    train_labels: IntArray,
    test: FloatArray,
    test_labels: IntArray,
    *,
    penalty: float = 1.0,
) -> ProbeFit:
    """Fit the linear probe of `fit_probes` to a single layer, with a given penalty.

    Constant features answer with the commonest class.

    Args:
        train: (N_train, D) features.
        train_labels: (N_train,), from 0.
        test: (N_test, D) features.
        test_labels: (N_test,), from 0.
        penalty: weight of the squared norm, 1 / C in scikit-learn, above 0.

    Returns:
        predictions, accuracy in [0, 1] (higher is better) and the objective.

    Raises:
        ValueError: features that are not finite, shapes that do not fit, a penalty not above 0.
    """
    check_penalty(penalty)
    check_labels("train", train_labels, None)
    check_labels("test", test_labels, None)
    check_features("train", train, train_labels)
    check_features("test", test, test_labels)
    check_widths(train, test)
    num_classes = int(max(train_labels.max(), test_labels.max())) + 1
    with _one_blas_thread():
        ((model, solution),) = _fits(train, train_labels, num_classes, (penalty,))
        predictions = model.log_probabilities(test).argmax(axis=1)
    return ProbeFit(
        predictions=predictions,
        accuracy=float((predictions == test_labels).mean()),
        objective=solution.objective,
    )
