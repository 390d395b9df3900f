"""What the measures make of a pass over images: pooled features and predictions in, results out."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np

from analysis.cka_result import FloatArray
from analysis.features import ImageSample, IntArray, linear_head
from analysis.geometry import GeometryAccumulator, GeometryResult
from analysis.geometry_layer import Classifier
from analysis.models import Model
from analysis.paired import compare_layers
from analysis.probe_neighbours import NeighbourProbe, knn_probe
from analysis.probe_scores import wilson_interval
from analysis.probes import TO_COME, ProbeFits, ProbeResult, fit_probes
from analysis.reading import Features, Key, Reading, Watch
from analysis.request import StudyRequest
from analysis.similarity import MEASURES, SimilarityResult, similarity_map
from analysis.study import PairedProbes, PairSimilarity

VALIDATION_FRACTION = 0.2
CONFIDENCE_DIGITS = 4  # of what a file keeps of each image's probability


# Takes an answer that is not whole: its name in a study, a function that gives it, how far it is.
Keep = Callable[[str, Callable[[], Any], str], None]


@dataclass(frozen=True)
class Questions:
    """What the answers need to know of a run besides its readings, and where parts of them go."""

    models: Mapping[str, Model]
    test: ImageSample
    request: StudyRequest
    watch: Watch
    keep: Keep = lambda name, make, so_far: None


# ------------------------------------------------------------------------------------- probes


def answer_probes(
    questions: Questions, train: ImageSample, train_features: Features, reading: Reading
) -> tuple[ProbeResult, ...]:
    """Fit a probe to every layer of every model, and score it; one result a model."""
    test, request = questions.test, questions.request
    test_features = reading.all_features()
    total = len(train_features)

    def results(
        fits: ProbeFits[Key], neighbours: Mapping[Key, NeighbourProbe]
    ) -> tuple[ProbeResult, ...]:
        return tuple(
            _probe_result(questions, name, train, fits, neighbours, reading)
            for name in questions.models
        )

    def refined(fits: ProbeFits[Key]) -> None:
        done = total - sum(reason == TO_COME for reason in fits.undefined.values())
        questions.keep("probes", lambda: results(fits, {}), f"{done} of {total} layers")

    questions.watch.start("Fitting probes", total)
    questions.watch.check()
    fits: ProbeFits[Key] = fit_probes(
        train_features,
        train.labels,
        test_features,
        test.labels,
        penalties=request.penalties or (request.penalty,),
        validation_fraction=VALIDATION_FRACTION,
        seed=request.seed,
        num_classes=len(test.classes),
        progress=lambda done, total: questions.watch.to(done) if done else None,
        refined=refined,
        cancelled=questions.watch.cancelled,
    )
    questions.watch.check()

    def found_more(found: Mapping[Key, NeighbourProbe], done: int) -> None:
        so_far = f"all linear probes and the neighbours of {done} of {total} layers"
        questions.keep("probes", lambda: results(fits, found), so_far)

    return results(fits, _neighbours(questions, train, train_features, test_features, found_more))


def _neighbours(
    questions: Questions,
    train: ImageSample,
    train_features: Features,
    test_features: Features,
    found_more: Callable[[Mapping[Key, NeighbourProbe], int], None],
) -> dict[Key, NeighbourProbe]:
    """Ask the nearest training images of every layer that they can be found in."""
    k = min(questions.request.num_neighbours, len(train.labels))
    if k == 0:
        return {}
    questions.watch.start("Finding nearest neighbours", len(train_features))
    found: dict[Key, NeighbourProbe] = {}
    for done, (key, features) in enumerate(train_features.items(), start=1):
        questions.watch.check()
        if np.isfinite(features).all() and np.isfinite(test_features[key]).all():
            found[key] = knn_probe(
                features,
                train.labels,
                test_features[key],
                questions.test.labels,
                neighbours=k,
                num_classes=len(questions.test.classes),
            )
        questions.watch.step()
        found_more(found, done)
    return found


def _probe_result(
    questions: Questions,
    name: str,
    train: ImageSample,
    fits: ProbeFits[Key],
    neighbours: Mapping[Key, NeighbourProbe],
    reading: Reading,
) -> ProbeResult:
    """Put together what the probes of one model, and its own classifiers, got right."""
    model, test, request = questions.models[name], questions.test, questions.request
    layers = model.layer_names
    probes = [fits.layers.get((name, layer)) for layer in layers]
    nearest = [neighbours.get((name, layer)) for layer in layers]
    undefined = {
        layer: fits.undefined[name, layer] for layer in layers if (name, layer) in fits.undefined
    }
    own = _own_classifiers(questions, name, reading, undefined)
    classes = len(test.classes)
    scores = [None if probe is None else probe.scores for probe in probes]
    return ProbeResult(
        model=name,
        layers=layers,
        accuracy=_column(scores, "accuracy"),
        low=_column(scores, "low"),
        high=_column(scores, "high"),
        chance=1 / classes,
        train_samples=len(train.labels),
        test_samples=len(test.labels),
        penalty=request.penalty,
        undefined=undefined,
        penalties=_column(probes, "penalty"),
        cross_entropy=_finite(_column(scores, "cross_entropy")),
        calibration_error=_column(scores, "calibration_error"),
        recall=_rows(scores, "recall", (classes,)),
        recall_low=_rows(scores, "recall_low", (classes,)),
        recall_high=_rows(scores, "recall_high", (classes,)),
        confusion=_rows(scores, "confusion", (classes, classes), empty=0),
        num_neighbours=nearest[0].neighbours if nearest[0] else None,
        neighbours_accuracy=_column([n and n.scores for n in nearest], "accuracy"),
        neighbours_low=_column([n and n.scores for n in nearest], "low"),
        neighbours_high=_column([n and n.scores for n in nearest], "high"),
        predictions=_rows(scores, "predictions", (len(test.labels),), empty=-1),
        confidence=_rows(scores, "confidence", (len(test.labels),)).round(CONFIDENCE_DIGITS),
        **own,
    )


def _column(items: Sequence[Any], name: str) -> FloatArray:
    """One number of each layer, NaN where there is none: (L,)."""
    return np.array([math.nan if item is None else getattr(item, name) for item in items])


def _rows(items: Sequence[Any], name: str, shape: tuple[int, ...], empty: float = math.nan) -> Any:
    """One array of each layer: (L, ...)."""
    kind = np.float64 if isinstance(empty, float) else np.int64
    rows = [np.full(shape, empty) if item is None else getattr(item, name) for item in items]
    return np.stack(rows).astype(kind)


def _finite(values: FloatArray) -> FloatArray:
    """An infinite cross-entropy is one of a class that the probe has never seen: undefined."""
    return np.where(np.isfinite(values), values, np.nan)


def _own_classifiers(
    questions: Questions, name: str, reading: Reading, undefined: dict[str, str]
) -> dict[str, Any]:
    """What the model's own head and auxiliary networks say of the test images."""
    model, test = questions.models[name], questions.test
    empty = {"accuracy": None, "low": None, "high": None}
    if model.metadata.classes != test.classes:
        undefined["classifier"] = _class_mismatch(model, test)
        return {f"classifier_{key}": value for key, value in empty.items()}
    answers: dict[str, Any] = {f"classifier_{key}": value for key, value in empty.items()}
    predictions = reading.all_predictions().get(name)
    if predictions is None:
        undefined["classifier"] = "the network gives no logits"
    else:
        accuracy, low, high = _score(predictions, test.labels)
        answers |= {"classifier_accuracy": accuracy, "classifier_low": low}
        answers |= {"classifier_high": high, "classifier_predictions": predictions}
    return answers | _auxiliary_answers(name, reading, test)


def _auxiliary_answers(name: str, reading: Reading, test: ImageSample) -> dict[str, Any]:
    """Accuracy of the auxiliary networks that the checkpoint carries."""
    said = {
        layer: answers
        for (model, layer), answers in reading.all_auxiliary().items()
        if model == name
    }
    if not said:
        return {}
    scores = np.array([_score(answers, test.labels) for answers in said.values()])
    return {
        "auxiliary_layers": tuple(said),
        "auxiliary_accuracy": scores[:, 0],
        "auxiliary_low": scores[:, 1],
        "auxiliary_high": scores[:, 2],
        "auxiliary_predictions": np.stack(list(said.values())),
    }


def _score(predictions: IntArray, labels: IntArray) -> tuple[float, float, float]:
    """Fraction correct with its 95% interval."""
    correct = int((predictions == labels).sum())
    return correct / len(labels), *wilson_interval(correct, len(labels))


def _class_mismatch(model: Model, sample: ImageSample) -> str:
    """Say why a network's own answers cannot be scored on this data."""
    own, given = model.metadata.classes, sample.classes
    return (
        f"the network tells {len(own)} classes apart ({', '.join(own[:3])}, ...), and "
        f"{sample.title} has {len(given)} others ({', '.join(given[:3])}, ...)"
    )


def answer_paired(questions: Questions, probes: Sequence[ProbeResult]) -> tuple[PairedProbes, ...]:
    """Test the probes of every two models against each other on the same images."""
    labels = questions.test.labels
    return tuple(
        PairedProbes(a.model, b.model, compare_layers(_correct(a, labels), _correct(b, labels)))
        for a, b in combinations(probes, 2)
        if _has_any(a) and _has_any(b)
    )


def _has_any(probe: ProbeResult) -> bool:
    return bool(np.isfinite(probe.accuracy).any())


def _correct(probe: ProbeResult, labels: IntArray) -> list[Any]:
    """Which images each layer's probe is right on; None for one without."""
    assert probe.predictions is not None
    return [
        None if math.isnan(accuracy) else row == labels
        for accuracy, row in zip(probe.accuracy, probe.predictions, strict=True)
    ]


# ------------------------------------------------------------------- similarity and geometry


def answer_similarity(
    questions: Questions, reading: Reading, pairs: Sequence[tuple[str, str]]
) -> tuple[PairSimilarity, ...]:
    """Compare pairs of models by every measure beside CKA that was asked for."""
    features = reading.all_features()
    by_model = {
        name: {layer: features[name, layer] for layer in model.layer_names}
        for name, model in questions.models.items()
    }
    results: list[PairSimilarity] = []
    for measure in questions.request.similarities:
        for pair in pairs:
            result = _compare(questions, by_model, measure, pair, results)
            results.append(PairSimilarity(*pair, result))
    return tuple(results)


def _compare(
    questions: Questions,
    by_model: Mapping[str, Mapping[str, FloatArray]],
    measure: str,
    pair: tuple[str, str],
    before: Sequence[PairSimilarity],
) -> SimilarityResult:
    """Compare one pair of models; after every row of layers, keep it beside the pairs before it."""
    request, watch = questions.request, questions.watch
    first, second = pair
    rows = len(by_model[first])
    # The steps of `similarity_map`: layers, rows of pairs, and the same again for each group.
    steps = 2 * rows + len(by_model[second]) + request.groups * (1 + rows)
    watch.start(f"{MEASURES[measure]().title}: {first} and {second}", steps)

    def keep(result: SimilarityResult, so_far: str) -> None:
        part = (*before, PairSimilarity(first, second, result))
        questions.keep("similarity", lambda: part, f"{so_far} of {first} against {second}")

    result = similarity_map(
        by_model[first],
        by_model[second],
        MEASURES[measure](),
        groups=request.groups,
        seed=request.seed,
        progress=lambda done, total: watch.to(done) if done else None,
        refined=lambda done, part: keep(part, f"{done} of {rows} layers"),
        cancelled=watch.cancelled,
    )
    watch.check()
    watch.to(steps)
    keep(result, f"all {rows} layers")
    return result


def answer_geometry(questions: Questions, reading: Reading) -> tuple[GeometryResult, ...]:
    """Measure the geometry of every layer of every model."""
    features = reading.all_features()
    watch, total = questions.watch, len(features)
    watch.start("Measuring geometry", total)
    results: list[GeometryResult] = []
    for name, model in questions.models.items():
        accumulator = GeometryAccumulator(
            groups=questions.request.geometry_groups, seed=questions.request.seed
        )
        for layer in model.layer_names:
            accumulator.update(layer, features[name, layer], questions.test.labels)

        def keep(part: GeometryResult, whole: Sequence[GeometryResult] = tuple(results)) -> None:
            watch.step()
            so_far = f"{watch.done} of {total} layers"
            questions.keep("geometry", lambda: (*whole, part), so_far)

        results.append(
            accumulator.result(
                model=name,
                classifier=_classifier(questions, name, reading),
                refined=keep,
                cancelled=watch.cancelled,
            )
        )
        watch.check()
    return tuple(results)


def _classifier(questions: Questions, name: str, reading: Reading) -> Classifier | None:
    """The model's own linear head, where it has one for these classes."""
    model = questions.models[name]
    predictions = reading.all_predictions().get(name)
    if predictions is None or model.metadata.classes != questions.test.classes:
        return None
    head = linear_head(model)
    pooled_features = questions.request.probe_pooling == 1
    if head is None or not pooled_features:
        return Classifier(predictions=predictions)
    weights, bias = head
    return Classifier(model.layer_names[-1], weights, bias, predictions)
