"""Linear probes: what a multinomial logistic regression reads off a layer's pooled features.

In: pooled features and labels of training and of test images. Out: a `ProbeFit` for a layer; the
layers of a model make a `ProbeResult`. This file knows numpy and scikit-learn only (the latter
is imported when a probe is fitted, so that results are quick to read), and treats torch tensors
by the verbs that both share.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.floating[Any]]
IntArray = npt.NDArray[np.integer[Any]]

# The largest entry of the gradient of the mean loss at the end of a fit: with it, predictions
# no longer differ from those at the float64 optimum (FACTS: 0 differences at 1e-6).
GRADIENT_TOLERANCE = 1e-6
MOST_STEPS = 10_000
CONFIDENCE = 0.95


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


def pooled(features: Any) -> FloatArray:
    """Average features over everything but images and channels.

    Args:
        features: (N, C, ...) array or tensor; (N, C) passes unchanged.

    Returns:
        (N, C) numpy array, fp32 or float64.
    """
    if hasattr(features, "detach"):
        features = features.detach()
        features = features if str(features.dtype) == "torch.float64" else features.float()
    if len(features.shape) > 2:
        features = features.reshape(features.shape[0], features.shape[1], -1).mean(-1)
    # A copy, because a later layer may work in place on the memory of this one.
    return np.array(features.cpu().numpy() if hasattr(features, "cpu") else features)


def wilson_interval(correct: int, samples: int) -> tuple[float, float]:
    """Bound a fraction that was measured on `samples` images by its 95% Wilson interval.

    Returns:
        low and high, in [0, 1].
    """
    from scipy.stats import binomtest  # slow to import, and readers of studies need none

    interval = binomtest(correct, samples).proportion_ci(CONFIDENCE, method="wilson")
    return float(interval.low), float(interval.high)


def fit_probe(
    train: FloatArray,
    train_labels: IntArray,
    test: FloatArray,
    test_labels: IntArray,
    *,
    penalty: float = 1.0,
) -> ProbeFit:
    """Fit a multinomial logistic regression to standardised features and score it.

    Minimises sum_i cross-entropy(W z_i + b, y_i) + penalty / 2 |W|^2 over W and b in float64,
    with z the features standardised by the mean and deviation of the training images. Two
    classes share one row of W, as in scikit-learn. A class without training images is never
    predicted.

    Args:
        train: (N_train, D) features.
        train_labels: (N_train,) classes.
        test: (N_test, D) features.
        test_labels: (N_test,) classes.
        penalty: weight of the squared norm, 1 / C in scikit-learn, above 0.

    Returns:
        predictions, accuracy in [0, 1] (higher is better) and the objective.

    Raises:
        ValueError: features that are not finite, shapes that do not fit, a penalty not above 0.

    Source: scikit-learn's LogisticRegression, at one thread: more only get in each other's way.
    """
    _check(train, train_labels, test, test_labels, penalty)
    train, test = _standardised(train.astype(np.float64), test.astype(np.float64))
    predictions, objective = _fit(train, train_labels, test, penalty)
    return ProbeFit(
        predictions=predictions,
        accuracy=float((predictions == test_labels).mean()),
        objective=objective,
    )


def _check(
    train: FloatArray,
    train_labels: IntArray,
    test: FloatArray,
    test_labels: IntArray,
    penalty: float,
) -> None:
    """Refuse what cannot be fitted."""
    if not (penalty > 0 and np.isfinite(penalty)):
        raise ValueError(f"the penalty of a probe must be above 0, but it is {penalty}")
    for name, features, labels in (("train", train, train_labels), ("test", test, test_labels)):
        if features.ndim != 2 or len(features) != len(labels) or len(labels) == 0:
            raise ValueError(
                f"a probe needs {name} features (N, D) with N labels, but they have the shapes "
                f"{features.shape} and {labels.shape}"
            )
        if not np.isfinite(features).all():
            raise ValueError("its features are not all finite numbers")
    if train.shape[1] != test.shape[1]:
        raise ValueError(
            f"train and test features differ in width: {train.shape[1]} and {test.shape[1]}"
        )


def _standardised(train: FloatArray, test: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Give both sets mean 0 and deviation 1 by the training set; constant features become 0."""
    mean, deviation = train.mean(axis=0), train.std(axis=0)
    constant = (np.ptp(train, axis=0) == 0) | (deviation == 0)
    scale = np.where(constant, 0, 1 / np.where(constant, 1, deviation))
    return (train - mean) * scale, (test - mean) * scale


def _fit(
    train: FloatArray, labels: IntArray, test: FloatArray, penalty: float
) -> tuple[IntArray, float]:
    """Fit standardised features; give the predictions for test and the objective on train."""
    present = np.unique(labels)
    if len(present) == 1:
        return np.full(len(test), present[0]), 0.0
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from threadpoolctl import threadpool_limits

    model = LogisticRegression(C=1 / penalty, tol=GRADIENT_TOLERANCE, max_iter=MOST_STEPS)
    with threadpool_limits(1), warnings.catch_warnings():
        # At the limit of float64 the line search gives up, which is fine; too many steps are not.
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(train, labels)
        scores = model.decision_function(train)
        predictions = model.predict(test)
    if model.n_iter_.max() >= MOST_STEPS:
        raise ValueError(f"its fit did not end within {MOST_STEPS:,} steps; take a larger penalty")
    scores = np.stack([0 * scores, scores], axis=1) if scores.ndim == 1 else scores
    chosen = scores[np.arange(len(labels)), np.searchsorted(present, labels)]
    losses = np.logaddexp.reduce(scores, axis=1) - chosen
    return predictions, float(penalty / 2 * (model.coef_**2).sum() + losses.sum())
