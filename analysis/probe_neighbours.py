"""Nearest-neighbour probes: what the training images most like a test image say of its class.

In: features and labels of training and of test images. Out: a `NeighbourProbe`. Nothing is fitted,
so it also sees what no linear map separates. This file knows numpy, and the scores beside it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from analysis.probe_checks import check_features, check_labels, check_widths
from analysis.probe_scores import ProbeScores, score
from analysis.probe_solver import moments

FloatArray = npt.NDArray[np.floating[Any]]
IntArray = npt.NDArray[np.integer[Any]]

NEIGHBOURS = 20
DISTANCES_AT_ONCE = 2**22  # float64 distances held at a time: 32 MiB


@dataclass(frozen=True, eq=False)
class NeighbourProbe:
    """The k nearest training images of every test image, and how right their vote is.

    `votes` (N_test, K) counts neighbours by class. `log_probabilities` (N_test, K) are those of
    (votes + 1) / (k + K), the mean of a uniform prior after k votes: finite, and with the same
    winner. `neighbours` is k, `metric` "cosine" or "euclidean".
    """

    votes: IntArray
    log_probabilities: FloatArray
    scores: ProbeScores
    neighbours: int
    metric: str


def knn_probe(
    train: Any,
    train_labels: IntArray,
    test: Any,
    test_labels: IntArray,
    *,
    neighbours: int = NEIGHBOURS,
    metric: str = "cosine",
    num_classes: int | None = None,
) -> NeighbourProbe:
    """Let the k nearest training images of each test image vote on its class.

    Features are standardised by the training images (constant ones become 0), so that no channel
    counts for more because its values are larger; then "cosine" compares directions (an image
    of only zeros is at cosine 0 to all) and "euclidean" positions. Each neighbour has one vote;
    equal votes go to the first class, equally near images to the first in order.

    Args:
        train: (N_train, D) features.
        train_labels: (N_train,), from 0.
        test: (N_test, D) features.
        test_labels: (N_test,), from 0.
        neighbours: k, from 1 to N_train.
        metric: "cosine" or "euclidean".
        num_classes: K; None takes the largest label and adds 1.

    Returns:
        votes and scores. No more than `DISTANCES_AT_ONCE` distances are held at a time.

    Raises:
        ValueError: features, labels or options that do not fit.

    Source: Cover and Hart 1967; on features of networks, Wu, Xiong, Yu, Lin 2018 (there with
    weighted votes).
    """
    train_labels, test_labels = np.asarray(train_labels), np.asarray(test_labels)
    train, test = np.asarray(train), np.asarray(test)
    check_labels("train", train_labels, num_classes)
    check_labels("test", test_labels, num_classes)
    check_features("train", train, train_labels)
    check_features("test", test, test_labels)
    check_widths(train, test)
    if not 1 <= neighbours <= len(train):
        raise ValueError(
            f"the number of neighbours must be 1 to {len(train)}, the number of training images, "
            f"but it is {neighbours}"
        )
    if metric not in _PREPARE:
        raise ValueError(f"there is no metric {metric!r}; choose one of {', '.join(_PREPARE)}")
    mean, scale = moments(train)
    near = _PREPARE[metric]((train.astype(np.float64) - mean) * scale)
    far = _PREPARE[metric]((test.astype(np.float64) - mean) * scale)
    lengths = (near * near).sum(axis=1) if metric == "euclidean" else np.zeros(len(near))
    num_classes = num_classes or int(max(train_labels.max(), test_labels.max())) + 1
    votes = _votes(near, lengths, np.eye(num_classes)[train_labels], far, neighbours)
    log_probabilities = np.log((votes + 1) / (neighbours + num_classes))
    return NeighbourProbe(
        votes=votes,
        log_probabilities=log_probabilities,
        scores=score(log_probabilities, test_labels),
        neighbours=neighbours,
        metric=metric,
    )


def _unit_length(features: FloatArray) -> FloatArray:
    """Scale images to length 1; those of length 0 stay."""
    lengths = np.linalg.norm(features, axis=1, keepdims=True)
    return np.asarray(features / np.where(lengths == 0, 1, lengths))


_PREPARE: dict[str, Callable[[FloatArray], FloatArray]] = {
    "cosine": _unit_length,
    "euclidean": lambda features: features,
}


def _votes(
    near: FloatArray, lengths: FloatArray, one_hot: FloatArray, far: FloatArray, neighbours: int
) -> IntArray:
    """Count the classes (N_test, K) of each test image's nearest training images.

    Distances are |a|^2 - 2 a.b, which order training images as |a - b|^2 does; for cosines the
    lengths are left out.
    """
    rows = max(1, DISTANCES_AT_ONCE // len(near))
    parts = []
    for start in range(0, len(far), rows):
        distances = lengths - 2 * far[start : start + rows] @ near.T
        bound = np.partition(distances, neighbours - 1, axis=1)[:, neighbours - 1, None]
        chosen = distances < bound
        equal = distances == bound
        missing = neighbours - chosen.sum(axis=1, keepdims=True)
        chosen |= equal & (equal.cumsum(axis=1) <= missing)
        parts.append(chosen @ one_hot)
    return np.asarray(np.rint(np.concatenate(parts)), np.int64)
