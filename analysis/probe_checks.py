"""What every probe asks of its input.

In: features, labels and options. Out: a ValueError in one sentence where they do not fit.
This file knows numpy only.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.floating[Any]]
IntArray = npt.NDArray[np.integer[Any]]

NOT_FINITE = "its features are not all finite numbers"


def check_labels(name: str, labels: IntArray, num_classes: int | None) -> None:
    """Refuse what are no labels."""
    if labels.ndim != 1 or not len(labels) or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(
            f"a probe needs {name} labels (N,) of whole numbers, one for each image, but they are "
            f"{labels.dtype} of the shape {labels.shape}"
        )
    if labels.min() < 0 or (num_classes is not None and labels.max() >= num_classes):
        range_text = "0 or more" if num_classes is None else f"in 0..{num_classes - 1}"
        raise ValueError(
            f"{name} labels must be {range_text}, but they reach from {labels.min()} to "
            f"{labels.max()}"
        )


def check_features(name: str, features: FloatArray, labels: IntArray) -> None:
    """Refuse features that belong to other images, or are no numbers."""
    if features.ndim != 2 or len(features) != len(labels) or not features.shape[1]:
        raise ValueError(
            f"a probe needs {name} features (N, D) with N labels, but they have the shapes "
            f"{features.shape} and {labels.shape}"
        )
    if not np.isfinite(features).all():
        raise ValueError(NOT_FINITE)


def check_widths(train: FloatArray, test: FloatArray) -> None:
    """Refuse features of different layers."""
    if train.shape[1] != test.shape[1]:
        raise ValueError(
            f"train and test features differ in width: {train.shape[1]} and {test.shape[1]}"
        )


def check_penalty(penalty: float) -> None:
    """Refuse what makes no minimum."""
    if not (penalty > 0 and np.isfinite(penalty)):
        raise ValueError(f"the penalty of a probe must be above 0, but it is {penalty}")
