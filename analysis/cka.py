"""CKA of layers: one function on arrays, and the door to what streams.

In: features of the same images, (N, ...). Out: CKA of them. `CKAAccumulator` compares all layers of
many models batch by batch (analysis/minibatch.py), `FullSetAccumulator` over the whole set at once
(analysis/full_set.py); both give a `CKAResult` (analysis/cka_result.py).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from analysis.batch_plan import SMALLEST_BATCH, batch_slices
from analysis.cka_result import CKAPair, CKAResult
from analysis.full_set import ESTIMATORS as FULL_SET_ESTIMATORS
from analysis.full_set import FullSetAccumulator
from analysis.gram import DEFAULT_BANDWIDTH, centred_gram
from analysis.hsic import FloatArray
from analysis.minibatch import CKAAccumulator, check_same_images

__all__ = [
    "ESTIMATORS",
    "SMALLEST_BATCH",
    "CKAAccumulator",
    "CKAPair",
    "CKAResult",
    "FloatArray",
    "FullSetAccumulator",
    "batch_slices",
    "centred_gram",
    "cka",
]

ESTIMATORS = ("unbiased", *FULL_SET_ESTIMATORS)


def cka(
    features_a: Any,
    features_b: Any,
    *,
    kernel: str = "linear",
    bandwidth: float = DEFAULT_BANDWIDTH,
    estimator: str = "unbiased",
    batch_size: int = 256,
    precision: str = "fp32",
    images_a: Any = None,
    images_b: Any = None,
) -> float:
    """CKA of two sets of features of the same images.

    unbiased: mean over batches of HSIC_1(a, b) / sqrt(mean HSIC_1(a, a) * mean HSIC_1(b, b));
    debiased: the same with one batch of all images; biased: HSIC_0 of all images.

    Args:
        features_a: (N, ...) array, tensor or nested lists; flattened to (N, D_a).
        features_b: (N, ...) likewise, of the same images in the same order.
        kernel: "linear" or "rbf".
        bandwidth: of the RBF kernel, as a fraction of the median distance.
        estimator: "unbiased", "debiased" or "biased".
        batch_size: most images a batch of "unbiased". Shuffle class-sorted images before.
        precision: "fp32" or "bf16".
        images_a: (N,) what tells the images apart, to be sure that both are of the same.
        images_b: (N,) likewise.

    Returns:
        a number in [-1, 1]; 1 for features equal up to rotation and scale, about 0 for
        independent ones ("biased": in [0, 1], and the higher the more features there are for the
        images). Never clamped.

    Raises:
        ValueError: different N, fewer than 4 images a batch, features without a value, different
            images, or an unknown option.

    Source: Nguyen, Raghu and Kornblith 2021, equations 2 to 4 (unbiased); Kornblith et al. 2019
    (biased).
    """
    if estimator not in ESTIMATORS:
        raise ValueError(f"the estimator must be one of {', '.join(ESTIMATORS)}, not {estimator!r}")
    features_a, features_b = _with_images_axis(features_a), _with_images_axis(features_b)
    size = features_a.shape[0]
    if size != features_b.shape[0]:
        raise ValueError(
            "CKA compares features of the same images, but there are "
            f"{size} of one and {features_b.shape[0]} of the other"
        )
    if images_a is not None and images_b is not None:
        check_same_images({"features_a": images_a, "features_b": images_b})
    layers, keys = {"a": ["features"], "b": ["features"]}, [("a", "features"), ("b", "features")]
    given = dict(zip(keys, (features_a, features_b), strict=True))
    options: dict[str, Any] = {"kernel": kernel, "bandwidth": bandwidth, "precision": precision}
    accumulator: CKAAccumulator | FullSetAccumulator
    if estimator == "unbiased":
        accumulator = CKAAccumulator(layers, **options)
        for batch in batch_slices(size, batch_size):
            accumulator.add({key: features[batch] for key, features in given.items()})
    else:
        accumulator = FullSetAccumulator(layers, size, estimator=estimator, **options)
        for key, features in given.items():
            accumulator.add(key, [features])
    result = accumulator.result()
    for layer, reason in result.undefined.items():
        raise ValueError(f"CKA is undefined for features_{layer[0]}: {reason}")
    return float(result.values[0, 1])


def _with_images_axis(features: Any) -> Any:
    """Give features that have a shape, as they are or as an array; a lone number is one image."""
    array = features if hasattr(features, "shape") else np.asarray(features)
    return array if len(array.shape) else array.reshape(1)
