"""Scores of a classifier from its log-probabilities: accuracy, recall, confusion, calibration.

In: log-probabilities (N, K) and labels (N,). Out: a `ProbeScores`. This file knows numpy only.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.floating[Any]]
IntArray = npt.NDArray[np.integer[Any]]

CONFIDENCE = 0.95
CALIBRATION_BINS = 15


@dataclass(frozen=True, eq=False)
class ProbeScores:
    """What a classifier got right on N test images of K classes.

    Attributes:
        samples: N.
        accuracy: fraction, with its 95% Wilson interval `low` and `high`.
        predictions: (N,), the most probable class of each image; the first of equals.
        confidence: (N,), its probability.
        confusion: (K, K) counts, true classes in rows and predicted ones in columns.
        recall: (K,), the fraction of each class that is right, with 95% Wilson intervals
            `recall_low` and `recall_high`; NaN for a class without test images.
        cross_entropy: mean of -log p(true class) in nats, lower is better; inf where a true
            class has probability 0, as one without training images has.
        calibration_error: expected calibration error, in [0, 1], lower is better.
    """

    samples: int
    accuracy: float
    low: float
    high: float
    predictions: IntArray
    confidence: FloatArray
    confusion: IntArray
    recall: FloatArray
    recall_low: FloatArray
    recall_high: FloatArray
    cross_entropy: float
    calibration_error: float


def score(log_probabilities: FloatArray, labels: IntArray) -> ProbeScores:
    """Score a classifier on images it was not fitted to.

    Args:
        log_probabilities: (N, K), natural logarithms, -inf allowed.
        labels: (N,), in 0..K-1.

    Raises:
        ValueError: shapes that do not fit, no images, NaN, or a label outside 0..K-1.
    """
    _check(log_probabilities, labels)
    count, num_classes = log_probabilities.shape
    predictions = log_probabilities.argmax(axis=1)
    confusion = np.zeros((num_classes, num_classes), np.int64)
    np.add.at(confusion, (labels, predictions), 1)
    correct = int(confusion.trace())
    low, high = wilson_interval(correct, count)
    recall, recall_low, recall_high = _recalls(confusion)
    return ProbeScores(
        samples=count,
        accuracy=correct / count,
        low=low,
        high=high,
        predictions=predictions,
        confidence=np.exp(log_probabilities.max(axis=1)),
        confusion=confusion,
        recall=recall,
        recall_low=recall_low,
        recall_high=recall_high,
        cross_entropy=float(-log_probabilities[np.arange(count), labels].mean()),
        calibration_error=calibration_error(log_probabilities, labels),
    )


def _check(log_probabilities: FloatArray, labels: IntArray) -> None:
    """Refuse what cannot be scored."""
    if log_probabilities.ndim != 2 or labels.shape != log_probabilities.shape[:1]:
        raise ValueError(
            "scores need log-probabilities (N, K) and labels (N,), but they have the shapes "
            f"{log_probabilities.shape} and {labels.shape}"
        )
    if not len(labels):
        raise ValueError("scores need at least one test image, but there is none")
    if np.isnan(log_probabilities).any():
        raise ValueError("some log-probabilities are not numbers; check the features they are of")
    num_classes = log_probabilities.shape[1]
    if labels.min() < 0 or labels.max() >= num_classes:
        raise ValueError(
            f"labels must lie in 0..{num_classes - 1}, one for each column of probabilities, but "
            f"they reach from {labels.min()} to {labels.max()}"
        )


def _recalls(confusion: IntArray) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Recall (K,) of each class and its interval; NaN for classes without images."""
    rows = []
    for correct, total in zip(confusion.diagonal(), confusion.sum(axis=1), strict=True):
        interval = wilson_interval(int(correct), int(total)) if total else (np.nan, np.nan)
        rows.append((correct / total if total else np.nan, *interval))
    recall, low, high = np.array(rows).T
    return recall, low, high


def wilson_interval(correct: int, samples: int) -> tuple[float, float]:
    """Bound a fraction that was measured on `samples` images by its 95% Wilson interval.

    With p = correct / samples and z the normal quantile, the interval is
    (p + z^2 / 2n -+ z sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2 / n).

    Returns:
        low and high, in [0, 1].

    Source: Wilson 1927.
    """
    z = NormalDist().inv_cdf((1 + CONFIDENCE) / 2)
    fraction, share = correct / samples, z**2 / samples
    centre = (fraction + share / 2) / (1 + share)
    reach = z * (fraction * (1 - fraction) / samples + share / (4 * samples)) ** 0.5 / (1 + share)
    # Exact at the ends, where both terms cancel but for rounding.
    low = 0.0 if correct == 0 else max(0.0, centre - reach)
    high = 1.0 if correct == samples else min(1.0, centre + reach)
    return low, high


def calibration_error(
    log_probabilities: FloatArray, labels: IntArray, bins: int = CALIBRATION_BINS
) -> float:
    """Expected calibration error: how far confidence is from accuracy, on average over images.

    The images are sorted into M bins of equal width by confidence, the probability of the
    predicted class: bin m holds those in ((m - 1) / M, m / M]. Then the error is

        ECE = sum_m |B_m| / N * |accuracy(B_m) - mean confidence(B_m)|.

    Args:
        log_probabilities: (N, K).
        labels: (N,), in 0..K-1.
        bins: M, at least 1.

    Returns:
        A number in [0, 1], lower is better. With few images in a bin, chance alone makes it
        larger than 0.

    Source: Guo, Pleiss, Sun, Weinberger 2017, equation 3 (M = 15 in their tables).
    """
    confidence = np.exp(log_probabilities.max(axis=1))
    correct = log_probabilities.argmax(axis=1) == labels
    places = np.clip(np.ceil(confidence * bins).astype(np.int64) - 1, 0, bins - 1)
    surplus = np.bincount(places, weights=correct - confidence, minlength=bins)
    return float(np.abs(surplus).sum() / len(labels))
