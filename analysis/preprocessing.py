"""A model and some labelled images in, evidence for how its images were normalised out.

A file of weights rarely says which mean and deviation its images had, in which order their channels
came, or which class each output means. All three show in the accuracy: the wrong choice loses much
of it, so each usual choice is tried and scored.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy.optimize import linear_sum_assignment
from scipy.special import log_softmax
from torch import Tensor

from analysis.choices import BGR, RGB, Choices
from analysis.errors import InputError
from analysis.features import ImageSample, check_images, visit_features
from analysis.models import Model
from analysis.probe_scores import wilson_interval

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.floating[Any]]

BATCH_SIZE = 256
# Of resamples of 2,000 images, so many named a third-party ResNet-20's true preset: 300 images 92%,
# 500 98%, 1,000 all.
DEFAULT_SAMPLES = 1000
FIRST_PART = 4  # of all images, on which every choice is tried
FEWEST = 100
SAME_CROSS_ENTROPY = 1e-3  # nats; of what differs by rounding, the first choice counts


@dataclass(frozen=True)
class Preprocessing:
    """How pixel values in [0, 1] become a network's input: (value - mean) / std by channel.

    Attributes:
        name: what people call it.
        mean, std: by channel, in the order red, green, blue.
        channel_order: "RGB", or "BGR" where the network reads blue first.
    """

    name: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    channel_order: str = RGB


# Mean and deviation of the training images, as the usual training codes write them.
PRESETS = (
    Preprocessing("CIFAR-10", (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    Preprocessing("CIFAR-100", (0.5071, 0.4866, 0.4409), (0.2673, 0.2564, 0.2762)),
    Preprocessing("SVHN", (0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970)),
    Preprocessing("ImageNet", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    Preprocessing("0.5", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    Preprocessing("none", (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
)
GREY_PRESETS = (
    Preprocessing("MNIST", (0.1307,), (0.3081,)),
    Preprocessing("0.5", (0.5,), (0.5,)),
    Preprocessing("none", (0.0,), (1.0,)),
)


@dataclass(frozen=True)
class Trial:
    """How a model did under one choice of preprocessing, on images of a data set.

    Attributes:
        preprocessing: the choice.
        correct: right answers where output k means class k of the data.
        low, high: 95% interval (Wilson) of `correct / samples`.
        samples: images.
        class_order: for each output of the network the class of the data that it answers to best,
            found on every second image.
        reordered: (right answers, images) on the other images, with that order.
        cross_entropy: mean of -log p(true class) in nats, in the order that the evidence is for.
    """

    preprocessing: Preprocessing
    correct: int
    samples: int
    low: float
    high: float
    class_order: tuple[int, ...]
    reordered: tuple[int, int]
    cross_entropy: float

    @property
    def accuracy(self) -> float:
        """Share of right answers where output k means class k."""
        return self.correct / self.samples

    @property
    def needs_order(self) -> bool:
        """True if another order of the classes is better, beyond both 95% intervals."""
        return _needs_order(self.reordered, self.high)

    @property
    def score(self) -> tuple[int, int]:
        """(right answers, images) with the order of the classes that the evidence is for."""
        return self.reordered if self.needs_order else (self.correct, self.samples)

    @property
    def best(self) -> float:
        """Accuracy with that order."""
        right, images = self.score
        return right / images


@dataclass(frozen=True)
class Evidence:
    """All trials on the same images.

    Attributes:
        trials: one of each choice, by accuracy, highest first.
        best: the one of least cross-entropy among those as good as the most accurate (accuracy
            alone hardly tells CIFAR-10's mean from ImageNet's); of equals the first tried.
        classes: K names of the data's classes.
        images: what they were, for people.
        tells: True if the best trial is above chance beyond its interval; otherwise no choice can
            be made from these images.
        alike: names of the choices whose interval overlaps that of the highest accuracy.
    """

    trials: tuple[Trial, ...]
    best: Trial
    classes: tuple[str, ...]
    images: str
    tells: bool
    alike: tuple[str, ...]

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the network's outputs, in their order, as the best trial has them."""
        order = self.best.class_order if self.best.needs_order else range(len(self.classes))
        return tuple(self.classes[index] for index in order)


def presets(channels: int) -> tuple[Preprocessing, ...]:
    """Give the usual choices for images of so many channels; of three channels in both orders."""
    if channels == 1:
        return GREY_PRESETS
    if channels != 3:
        return (Preprocessing("none", (0.0,) * channels, (1.0,) * channels),)
    return (*PRESETS, *(replace(preset, channel_order=BGR) for preset in PRESETS))


def try_preprocessing(
    model: Model, sample: ImageSample, choices: Sequence[Preprocessing] | None = None
) -> Evidence:
    """Score a model under each choice of preprocessing.

    Every choice is tried on a quarter of the images, and those that may be the best on all.

    Args:
        model: of any origin, with as many outputs as the sample has classes.
        sample: labelled images of its size.
        choices: what to try; None tries `presets`.

    Returns:
        the trials and what they tell.

    Raises:
        InputError: images or classes do not fit the model, or it gives no logits.
    """
    check_images(model, sample)
    num_classes = len(sample.classes)
    if model.metadata.num_classes != num_classes:
        raise InputError(
            f"{model.name} tells {model.metadata.num_classes:,} classes apart, and {sample.title} "
            f"has {num_classes:,}, so its preprocessing cannot be found on these images; choose it "
            "by hand, or take images of its own classes."
        )
    tried = list(choices if choices is not None else presets(sample.images.shape[1]))
    few = max(len(sample.labels) // FIRST_PART, min(len(sample.labels), FEWEST))
    first = {choice: _try(model, sample, choice, few) for choice in tried}
    kept = [trial.preprocessing for trial in _best_alike(list(first.values()))]
    trials = [_try(model, sample, choice) if choice in kept else first[choice] for choice in tried]
    trials.sort(key=lambda trial: -trial.best)
    alike = _best_alike([trial for trial in trials if trial.preprocessing in kept])
    least = min(trial.cross_entropy for trial in alike)
    near = [trial for trial in alike if trial.cross_entropy <= least + SAME_CROSS_ENTROPY]
    best = min(near, key=lambda trial: tried.index(trial.preprocessing))
    return Evidence(
        trials=tuple(trials),
        best=best,
        classes=sample.classes,
        images=f"{len(sample.labels):,} images of the {sample.split} split of {sample.title}",
        tells=_interval(best)[0] > 1 / num_classes,
        alike=tuple(describe(trial.preprocessing) for trial in alike),
    )


def _best_alike(trials: Sequence[Trial]) -> list[Trial]:
    """The trials as good as the most accurate; with the classes as they stand where that is."""
    trials = sorted(trials, key=lambda trial: -trial.best)
    plain = [trial for trial in trials if not trial.needs_order]
    top = plain[0] if plain and _overlaps(plain[0], trials[0]) else trials[0]
    return [trial for trial in trials if _is_alike(trial, top)]


def _try(
    model: Model, sample: ImageSample, choice: Preprocessing, count: int | None = None
) -> Trial:
    """Score one choice, on the first images of the sample or on all."""
    part = slice(count)
    log_probabilities = _log_probabilities(model, sample.images[part], choice)
    return _score(choice, log_probabilities, sample.labels[part])


def describe(choice: Preprocessing) -> str:
    """Name a choice, with its order of channels where that is unusual."""
    return choice.name if choice.channel_order == RGB else f"{choice.name}, {choice.channel_order}"


def with_preprocessing(model: Model, mean: Sequence[float], std: Sequence[float]) -> Model:
    """Give the same model with another normalisation of its images.

    Raises:
        InputError: not one number for each channel, or a deviation that is not above 0.
    """
    channels = model.metadata.input_size[0]
    if not len(mean) == len(std) == channels or not min(std) > 0:
        raise InputError(
            f"The mean and std of images with {channels} channels are {channels} numbers each, std "
            f"above 0, not {list(mean)} and {list(std)}; give both so."
        )
    metadata = replace(model.metadata, mean=tuple(mean), std=tuple(std))
    return replace(model, metadata=metadata)


def logits_of(model: Model, images: Tensor) -> FloatArray:
    """Compute a model's own logits, batch by batch.

    Args:
        model: of any origin.
        images: uint8, (N, C, H, W).

    Returns:
        (N, K) float32.

    Raises:
        InputError: the model does not give one row of values an image.
    """
    rows = []
    for batch in torch.split(images, BATCH_SIZE):
        logits = visit_features(model, batch, lambda _name, _features: None)
        if logits is None:
            raise InputError(
                f"{model.name} does not give one row of values an image, so it has no classes to "
                "tell; open a network that classifies."
            )
        rows.append(logits.float().cpu())
    result: FloatArray = torch.cat(rows).numpy()
    return result


def _log_probabilities(model: Model, images: Tensor, choice: Preprocessing) -> FloatArray:
    """What the model makes of images prepared by this choice: (N, K), natural logarithms."""
    mean, std = choice.mean, choice.std
    if choice.channel_order == BGR:
        images, mean, std = images.flip(1), mean[::-1], std[::-1]
    logits = logits_of(with_preprocessing(model, mean, std), images).astype(np.float64)
    result: FloatArray = log_softmax(logits, axis=1)
    return result


def _score(choice: Preprocessing, log_probabilities: FloatArray, labels: IntArray) -> Trial:
    """Count right answers, as the classes stand and as they would answer best."""
    num_classes = log_probabilities.shape[1]
    predictions = log_probabilities.argmax(axis=1)
    correct = int((predictions == labels).sum())
    low, high = wilson_interval(correct, len(labels))
    order = best_order(predictions[::2], labels[::2], num_classes)
    held_out = order[predictions[1::2]] == labels[1::2]
    reordered = (int(held_out.sum()), len(held_out))
    # Where each class stands among the outputs.
    place = np.argsort(order) if _needs_order(reordered, high) else np.arange(num_classes)
    likelihood = log_probabilities[np.arange(len(labels)), place[labels]]
    return Trial(
        preprocessing=choice,
        correct=correct,
        samples=len(labels),
        low=low,
        high=high,
        class_order=tuple(order.tolist()),
        reordered=reordered,
        cross_entropy=float(-likelihood.mean()),
    )


def _needs_order(reordered: tuple[int, int], high: float) -> bool:
    """Whether the other order's interval lies above that of the order as it is."""
    return reordered[1] > 0 and wilson_interval(*reordered)[0] > high


def best_order(predictions: IntArray, labels: IntArray, num_classes: int) -> IntArray:
    """Match outputs to classes one to one, so that most answers are right.

    Args:
        predictions: (N,) outputs, 0 .. K - 1.
        labels: (N,) classes, 0 .. K - 1.
        num_classes: K.

    Returns:
        (K,) the class of each output; an output keeps its own where that is as good.
    """
    counts = np.zeros((num_classes, num_classes))
    np.add.at(counts, (predictions, labels), 1)
    # Less than one answer, so that it only decides between equals.
    counts += np.eye(num_classes) * (0.5 / num_classes)
    _, columns = linear_sum_assignment(counts, maximize=True)
    order: IntArray = columns.astype(np.int64)
    return order


def _is_alike(trial: Trial, top: Trial) -> bool:
    """Whether a trial is as good as the top one, and as simple.

    Another order of the classes is no evidence where the classes as they stand do as well.
    """
    if trial.needs_order and not top.needs_order:
        return False
    return _overlaps(trial, top)


def _overlaps(trial: Trial, other: Trial) -> bool:
    """Whether the intervals of two accuracies overlap; the other's is the higher."""
    return _interval(trial)[1] >= _interval(other)[0]


def _interval(trial: Trial) -> tuple[float, float]:
    """95% interval of a trial's accuracy, with the order that the evidence is for."""
    return wilson_interval(*trial.score)


def evidence_record(evidence: Evidence) -> dict[str, Any]:
    """Give the trials as plain values, and what they tell as a sentence."""
    trials = [
        {
            "name": describe(trial.preprocessing),
            "mean": list(trial.preprocessing.mean),
            "std": list(trial.preprocessing.std),
            "channel_order": trial.preprocessing.channel_order,
            "accuracy": trial.best,
            "samples": trial.score[1],
            "low": _interval(trial)[0],
            "high": _interval(trial)[1],
            "cross_entropy": trial.cross_entropy,
            "class_order": list(trial.class_order) if trial.needs_order else None,
        }
        for trial in evidence.trials
    ]
    return {
        "images": evidence.images,
        "best": describe(evidence.best.preprocessing),
        "tells": evidence.tells,
        "alike": list(evidence.alike),
        "classes": list(evidence.class_names),
        "sentence": evidence_sentence(evidence),
        "trials": trials,
    }


def evidence_sentence(evidence: Evidence) -> str:
    """Say what the trials tell, with their numbers."""
    best = evidence.best
    low, high = _interval(best)
    if not evidence.tells:
        return (
            f"No usual preprocessing is better than chance on {evidence.images} (the best, "
            f"{describe(best.preprocessing)}, is right on {best.best:.1%}); are these its classes?"
        )
    others = [name for name in evidence.alike if name != describe(best.preprocessing)]
    order = (
        ", with its outputs in another order than the data's classes" if best.needs_order else ""
    )
    alike = f"; accuracy alone does not tell it from {', '.join(others)}" if others else ""
    return (
        f"{describe(best.preprocessing)}: right on {best.best:.1%} ({low:.1%} to {high:.1%}) of "
        f"{evidence.images}{order}{alike}."
    )


def choices_of(evidence: Evidence, choices: Choices) -> Choices:
    """Fill in what the evidence tells where the user said nothing; nothing if it tells nothing."""
    if not evidence.tells:
        return choices
    found = evidence.best.preprocessing
    if choices.mean is None and choices.std is None:
        choices = replace(
            choices, mean=found.mean, std=found.std, channel_order=found.channel_order
        )
    return choices if choices.classes else replace(choices, classes=evidence.class_names)
