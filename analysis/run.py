"""Models and the name of a data set in, a study out: every measure from one streamed pass.

At most one batch of one layer's features is alive at a time; what stays is a batch's Grams and
the pooled features of the probes.
"""

from __future__ import annotations

import importlib.metadata
import math
import platform
import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path, PurePath

import numpy as np
from threadpoolctl import threadpool_limits

from analysis.cka import SMALLEST_BATCH, CKAAccumulator, FloatArray, batch_slices, centred_gram
from analysis.errors import Cancelled, InputError
from analysis.features import (
    ImageSample,
    IntArray,
    check_images,
    classify,
    sample_images,
    stream_features,
)
from analysis.models import Model, describe_device, unique_names
from analysis.probes import ProbeResult, fit_probe, pooled, wilson_interval
from analysis.study import Study, StudyCheckpoint, StudyProvenance, StudyQuestion

MEASURES = ("cka", "probe")
DEFAULT_BATCH_SIZE = 125  # 1,000 images in 8 batches: enough for a jackknife over batches
DEFAULT_TRAIN_SAMPLES = 5000
DEFAULT_PENALTY = 1.0
PACKAGES = ("torch", "numpy", "scikit-learn", "auglocal")
Key = tuple[str, str]


@dataclass(frozen=True)
class Progress:
    """How far a run is: `done` of `total` steps of the stage with this name."""

    stage: str
    done: int
    total: int


def run_study(
    models: Sequence[Model],
    *,
    dataset: str,
    split: str = "test",
    samples: int | None = None,
    seed: int = 0,
    batch_size: int = DEFAULT_BATCH_SIZE,
    measures: Sequence[str] = MEASURES,
    train_samples: int | None = None,
    penalty: float = DEFAULT_PENALTY,
    folder: Path | str = "data",
    image_size: int | None = None,
    dataset_title: str | None = None,
    download: bool = False,
    title: str | None = None,
    out: str = "again.study.json",
    progress: Callable[[Progress], None] = lambda progress: None,
    cancelled: Callable[[], bool] = lambda: False,
) -> Study:
    """Compare the layers of models by CKA, and read them by linear probes.

    Args:
        models: one or more; those of the same name get a suffix.
        dataset: a name, or "imagefolder:PATH".
        split: the split that CKA, probes and classifiers are measured on.
        samples: images of it; None takes 1,000, or all where there are fewer.
        seed: decides which images.
        batch_size: most images a batch; each batch needs 4 for CKA.
        measures: "cka", "probe" or both.
        train_samples: training images of the probes; None takes 5,000, or all where there are
            fewer.
        penalty: weight of the probes' squared norm, 1 / C in scikit-learn.
        folder: where downloaded data sets lie.
        image_size: pixels; resizes the images of a folder.
        dataset_title: what to call the data of a folder.
        download: fetch a data set that is not there.
        title: of the study; made of the models' names if None.
        out: the file that the recorded command writes.
        progress: called at the start of a stage, after every batch and after every probe.
        cancelled: asked before every batch and every probe.

    Returns:
        the study.

    Raises:
        InputError: images, models and options do not fit together.
        Cancelled: `cancelled` said so.
    """
    started = time.perf_counter()
    _check_options(models, split, batch_size, measures, penalty)
    draw = partial(
        sample_images,
        dataset,
        seed=seed,
        folder=folder,
        image_size=image_size,
        title=dataset_title,
        download=download,
    )
    job = _Job(
        models=dict(zip(unique_names([model.name for model in models]), models, strict=True)),
        test=draw(split, samples),
        train=draw("train", train_samples, default_samples=DEFAULT_TRAIN_SAMPLES)
        if "probe" in measures
        else None,
        compares="cka" in measures,
        batch_size=batch_size,
        penalty=penalty,
        watch=_Watch(progress, cancelled),
    )
    for model in models:
        check_images(model, job.test)
    # NumPy's threads and PyTorch's wait for each other by spinning: together they took six times
    # as long as PyTorch's alone (40 s against 6.5 s on two busy cores).
    with threadpool_limits(1, user_api="blas"):
        readings = _read_test(job)
        probes = () if job.train is None else _run_probes(job, job.train, readings)
    command = _command(
        job,
        {
            "--image-size": image_size,
            "--dataset-title": dataset_title,
            "--data-folder": None if str(folder) == "data" else _portable(folder),
            "--title": title,
        },
        out,
    )
    return Study(
        title=title or f"{' and '.join(job.models)} on {job.test.title}",
        question=_question(job, image_size),
        cka=None if readings.cka is None else readings.cka.result(),
        probes=probes,
        provenance=StudyProvenance(
            versions=_versions(),
            device=describe_device(models[0].device),
            seconds=round(time.perf_counter() - started, 3),
            date=datetime.now(UTC).isoformat(timespec="seconds"),
            command=command,
        ),
    )


def _check_options(
    models: Sequence[Model],
    split: str,
    batch_size: int,
    measures: Sequence[str],
    penalty: float,
) -> None:
    """Refuse options that cannot be served, before anything is read."""
    if not models:
        raise InputError("There is no checkpoint to read; give at least one.")
    if not measures or not set(measures) <= set(MEASURES):
        raise InputError(
            f"The measures must be of {' and '.join(MEASURES)}, not {list(measures)}; choose one."
        )
    if "probe" in measures and split == "train":
        raise InputError(
            "Probes learn from training images and cannot be scored on the train split; choose "
            "another --split."
        )
    if not 0 < penalty < math.inf:
        raise InputError(
            f"The penalty of a probe must be above 0, not {penalty:g}; give another --penalty."
        )
    if batch_size < 1:
        raise InputError(
            f"The batch size must be at least 1, not {batch_size}; give another --batch-size."
        )


# ------------------------------------------------------------------------- reading the models


class _Watch:
    """Report progress, and listen for a wish to stop."""

    def __init__(self, progress: Callable[[Progress], None], cancelled: Callable[[], bool]) -> None:
        self._progress = progress
        self._cancelled = cancelled
        self._at = Progress("", 0, 0)

    def start(self, stage: str, total: int) -> None:
        """Begin a stage of `total` steps."""
        self._at = Progress(stage, 0, total)
        self._progress(self._at)

    def check(self) -> None:
        """Stop here if that is wished."""
        if self._cancelled():
            raise Cancelled("The analysis was cancelled; nothing was saved.")

    def step(self) -> None:
        """Count one step."""
        self._at = Progress(self._at.stage, self._at.done + 1, self._at.total)
        self._progress(self._at)


@dataclass(frozen=True)
class _Job:
    """What a run works on: models by name, images, options."""

    models: Mapping[str, Model]
    test: ImageSample
    train: ImageSample | None
    compares: bool
    batch_size: int
    penalty: float
    watch: _Watch


@dataclass(frozen=True)
class _Readings:
    """What one pass over the test images gave, by (model, layer) or by model."""

    cka: CKAAccumulator | None
    features: dict[Key, FloatArray]
    predictions: dict[str, IntArray]


def _read_test(job: _Job) -> _Readings:
    """Read every layer of every model once: Grams, pooled features and predictions."""
    layers = {name: model.layer_names for name, model in job.models.items()}
    accumulator = CKAAccumulator(layers) if job.compares else None
    features_by_key: dict[Key, list[FloatArray]] = {}
    predictions: dict[str, list[IntArray]] = {name: [] for name in job.models}
    batches = _batches(job, job.test, SMALLEST_BATCH if job.compares else 1)
    job.watch.start("Reading test images", len(batches) * len(job.models))
    for batch in batches:
        grams: dict[Key, FloatArray] = {}
        for name, model in job.models.items():
            job.watch.check()
            for layer, features in stream_features(model, job.test.images[batch]):
                if job.compares:
                    grams[name, layer] = centred_gram(features)
                if job.train is not None:
                    features_by_key.setdefault((name, layer), []).append(pooled(features))
            predictions[name].append(classify(model, features))
            job.watch.step()
        if accumulator is not None:
            accumulator.update(grams)
    return _Readings(
        cka=accumulator,
        features={key: np.concatenate(parts) for key, parts in features_by_key.items()},
        predictions={name: np.concatenate(parts) for name, parts in predictions.items()},
    )


def _read_train(job: _Job, train: ImageSample) -> dict[Key, FloatArray]:
    """Pool the features of the probes' training images."""
    features_by_key: dict[Key, list[FloatArray]] = {}
    batches = _batches(job, train, 1)
    job.watch.start("Reading training images", len(batches) * len(job.models))
    for batch in batches:
        for name, model in job.models.items():
            job.watch.check()
            for layer, features in stream_features(model, train.images[batch]):
                features_by_key.setdefault((name, layer), []).append(pooled(features))
            job.watch.step()
    return {key: np.concatenate(parts) for key, parts in features_by_key.items()}


def _batches(job: _Job, sample: ImageSample, smallest: int) -> list[slice]:
    """Cut images into batches, naming the options where that fails."""
    count = len(sample.images)
    try:
        return batch_slices(count, job.batch_size, smallest=smallest)
    except ValueError as error:
        raise InputError(
            f"CKA needs at least {smallest} images in every batch, but {count:,} images in batches "
            f"of at most {job.batch_size} leave fewer; give more --samples or another --batch-size."
        ) from error


# ------------------------------------------------------------------------------------- probes


def _run_probes(job: _Job, train: ImageSample, readings: _Readings) -> tuple[ProbeResult, ...]:
    """Fit a probe to every layer of every model, and score it."""
    train_features = _read_train(job, train)
    job.watch.start("Fitting probes", len(train_features))
    correct: dict[Key, int] = {}
    reasons: dict[Key, str] = {}
    for key, features in train_features.items():
        job.watch.check()
        test_features = readings.features[key]
        try:
            fit = fit_probe(
                features, train.labels, test_features, job.test.labels, penalty=job.penalty
            )
            correct[key] = int((fit.predictions == job.test.labels).sum())
        except ValueError as error:
            reasons[key] = str(error)
        job.watch.step()
    return tuple(_probe_result(job, train, name, correct, reasons, readings) for name in job.models)


def _probe_result(
    job: _Job,
    train: ImageSample,
    name: str,
    correct: Mapping[Key, int],
    reasons: Mapping[Key, str],
    readings: _Readings,
) -> ProbeResult:
    """Put together what the probes of one model, and its own classifier, got right."""
    count = len(job.test.labels)
    layers = job.models[name].layer_names
    scores = np.array([_score(correct.get((name, layer)), count) for layer in layers])
    undefined = {layer: reasons[name, layer] for layer in layers if (name, layer) in reasons}
    classifier: tuple[float, float, float] | tuple[None, None, None] = (None, None, None)
    if job.models[name].metadata.classes == job.test.classes:
        own_correct = int((readings.predictions[name] == job.test.labels).sum())
        classifier = _score(own_correct, count)
    else:
        undefined["classifier"] = _class_mismatch(job.models[name], job.test)
    return ProbeResult(
        model=name,
        layers=layers,
        accuracy=scores[:, 0],
        low=scores[:, 1],
        high=scores[:, 2],
        classifier_accuracy=classifier[0],
        classifier_low=classifier[1],
        classifier_high=classifier[2],
        chance=1 / len(job.test.classes),
        train_samples=len(train.labels),
        test_samples=count,
        penalty=job.penalty,
        undefined=undefined,
    )


def _score(correct: int | None, samples: int) -> tuple[float, float, float]:
    """Fraction correct with its interval."""
    if correct is None:
        return math.nan, math.nan, math.nan
    return correct / samples, *wilson_interval(correct, samples)


def _class_mismatch(model: Model, sample: ImageSample) -> str:
    """Say why a network's own answers cannot be scored on this data."""
    own, given = model.metadata.classes, sample.classes
    return (
        f"the network tells {len(own)} classes apart ({', '.join(own[:3])}, ...), and "
        f"{sample.title} has {len(given)} others ({', '.join(given[:3])}, ...)"
    )


# ------------------------------------------------------------------------- where it came from


def _question(job: _Job, image_size: int | None) -> StudyQuestion:
    """Record what was asked."""
    return StudyQuestion(
        checkpoints=tuple(_checkpoint(name, model) for name, model in job.models.items()),
        dataset=_portable_dataset(job.test.dataset),
        dataset_title=job.test.title,
        split=job.test.split,
        samples=len(job.test.labels),
        seed=job.test.seed,
        batch_size=job.batch_size,
        image_size=image_size,
        images_sha256=job.test.sha256,
        train_samples=None if job.train is None else len(job.train.labels),
        penalty=None if job.train is None else job.penalty,
    )


def _checkpoint(name: str, model: Model) -> StudyCheckpoint:
    """Record which checkpoint a model came from."""
    metadata = model.metadata
    return StudyCheckpoint(
        name=name,
        sha256=model.sha256,
        architecture=metadata.architecture,
        rule=metadata.rule,
        rule_options=metadata.rule_options,
        dataset=metadata.dataset,
        accuracy=metadata.accuracy,
        epoch=metadata.epoch,
        seed=metadata.seed,
    )


def _versions() -> dict[str, str]:
    """Versions of what computed the answers; packages that are not installed are left out."""
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def _command(job: _Job, extras: Mapping[str, object], out: str) -> str:
    """Write the one command that redoes this run, with no path of this machine in it."""
    verb = "cka" if job.train is None else "study" if job.compares else "probe"
    options: dict[str, object] = {
        "--dataset": _portable_dataset(job.test.dataset),
        "--split": job.test.split,
        "--samples": len(job.test.labels),
        "--seed": job.test.seed,
        "--batch-size": job.batch_size,
    }
    if job.train is not None:
        options |= {"--train-samples": len(job.train.labels), "--penalty": job.penalty}
    options |= extras
    words = ["python", "-m", "analysis", verb]
    words += [_portable(model.path) for model in job.models.values()]
    for option, value in options.items():
        words += [] if value is None else [option, str(value)]
    words += ["--out", _portable(out)] if verb == "study" else ["--json"]
    return shlex.join(words)


def _portable(path: Path | str) -> str:
    """Give a relative path as it is, of any other the last part."""
    pure = PurePath(path)
    return pure.name if pure.is_absolute() else str(pure)


def _portable_dataset(name: str) -> str:
    """Give a data set's name without the machine's folders."""
    kind, colon, path = name.partition(":")
    return f"{kind}:{_portable(path)}" if colon else name
