"""Linear CKA between layers, by unbiased minibatches, in one pass.

In: for every batch of images, the features of each layer. Out: a `CKAResult` with a value, a
standard error and an interval for every pair of layers of every pair of models.

Each batch is reduced to one small U-centred Gram matrix a layer (`centred_gram`), and a batch's
Grams to one table of inner products (`CKAAccumulator`), so features are never stored. This file
knows numpy only, and treats torch tensors by the verbs that both share.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.floating[Any]]
Key = tuple[str, str]

SMALLEST_BATCH = 4  # the unbiased estimator divides by N - 3
CONFIDENCE = 0.95
# Features are centred and multiplied this many columns at a time: the block stays in the cache,
# and the centred copy never grows with the layer.
BLOCK_COLUMNS = 4096
# Gram entries widened to float64 at a time, over all layers.
BLOCK_ENTRIES = 16384
NOT_FINITE = "its features are not all finite numbers, or too large to multiply"
CONSTANT = "its features are the same for every image, so there is nothing to compare"


@dataclass(frozen=True, eq=False)
class CKAPair:
    """The part of a `CKAResult` that compares model A (rows) with model B (columns).

    `rows` and `columns` are the layer names of A and of B. `values`, `standard_errors`, `low` and
    `high` have the shape (L_a, L_b), NaN where undefined; `undefined` says why, by "model/layer".
    """

    model_a: str
    model_b: str
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    values: FloatArray
    standard_errors: FloatArray
    low: FloatArray
    high: FloatArray
    undefined: dict[str, str]
    samples: int
    batch_sizes: tuple[int, ...]
    interval_note: str | None

    def reason(self, row: int, column: int) -> str | None:
        """Say why a cell has no value; None where it has one."""
        keys = f"{self.model_a}/{self.rows[row]}", f"{self.model_b}/{self.columns[column]}"
        return next((self.undefined[key] for key in keys if key in self.undefined), None)

    def same_depth(self) -> npt.NDArray[np.int64]:
        """Find for each layer of A the layer of B at the nearest relative depth.

        Returns:
            (L_a,) column indices; 0, 1, 2, ... where both models have equally many layers.
        """
        return np.rint(np.linspace(0, len(self.columns) - 1, len(self.rows))).astype(np.int64)

    def best_match(self) -> npt.NDArray[np.int64]:
        """Find for each layer of A the layer of B with the highest CKA.

        Returns:
            (L_a,) column indices; -1 for a layer without any defined value.
        """
        filled = np.where(np.isnan(self.values), -np.inf, self.values)
        best = filled.argmax(axis=1)
        return np.where(np.isfinite(filled.max(axis=1)), best, -1).astype(np.int64)


@dataclass(frozen=True, eq=False)
class CKAResult:
    """Linear CKA of all pairs of layers of all models.

    Rows and columns run over the layers of the first model, then of the second, and so on, L in
    all. `values` is symmetric, in [-1, 1], never clamped: independent layers scatter around 0.
    `low` and `high` bound a 95% interval (delete-one-batch jackknife, Student t); they are
    symmetric about the value and may pass 1. NaN is undefined: `undefined` tells why by
    "model/layer", and `interval_note` why intervals are missing.
    """

    models: tuple[str, ...]
    layers: tuple[tuple[str, ...], ...]
    values: FloatArray
    standard_errors: FloatArray
    low: FloatArray
    high: FloatArray
    undefined: dict[str, str]
    samples: int
    batch_sizes: tuple[int, ...]
    interval_note: str | None

    def span(self, model: str) -> slice:
        """Find the rows (and columns) of one model."""
        if model not in self.models:
            raise ValueError(f"no model {model!r} in this comparison of {', '.join(self.models)}")
        index = self.models.index(model)
        start = sum(len(names) for names in self.layers[:index])
        return slice(start, start + len(self.layers[index]))

    def pair(self, model_a: str, model_b: str) -> CKAPair:
        """Cut out the comparison of two models, which may be the same one.

        Args:
            model_a: name of the model on the rows.
            model_b: name of the model on the columns.

        Returns:
            a view, no copy, with arrays of the shape (L_a, L_b).

        Raises:
            ValueError: a name is not in this comparison.
        """
        rows, columns = self.span(model_a), self.span(model_b)
        layers = dict(zip(self.models, self.layers, strict=True))
        own = {f"{model}/{name}" for model in (model_a, model_b) for name in layers[model]}
        return CKAPair(
            model_a=model_a,
            model_b=model_b,
            rows=layers[model_a],
            columns=layers[model_b],
            values=self.values[rows, columns],
            standard_errors=self.standard_errors[rows, columns],
            low=self.low[rows, columns],
            high=self.high[rows, columns],
            undefined={key: why for key, why in self.undefined.items() if key in own},
            samples=self.samples,
            batch_sizes=self.batch_sizes,
            interval_note=self.interval_note,
        )


def batch_slices(samples: int, batch_size: int, *, smallest: int = SMALLEST_BATCH) -> list[slice]:
    """Cut N images into ceil(N / batch_size) runs of nearly equal length.

    Args:
        samples: number of images, N.
        batch_size: longest run allowed.
        smallest: shortest run allowed.

    Returns:
        slices that cover 0 to N in order; their lengths differ by one at most.

    Raises:
        ValueError: N or batch_size is below 1, or a run would be shorter than `smallest`.
    """
    if samples < 1 or batch_size < 1:
        raise ValueError(
            f"samples and batch size must be at least 1, but they are {samples} and {batch_size}"
        )
    count = math.ceil(samples / batch_size)
    if samples // count < smallest:
        raise ValueError(
            f"CKA needs at least {smallest} images in every batch, but {samples} images in batches "
            f"of at most {batch_size} leave {samples // count} in one: "
            "take more samples or another batch size"
        )
    edges = [samples * index // count for index in range(count + 1)]
    return [slice(start, stop) for start, stop in itertools.pairwise(edges)]


def centred_gram(features: Any) -> FloatArray:
    """Reduce one layer's features of one batch to its U-centred Gram matrix.

    K = X X^T of the column-centred features X; then, off the diagonal,
    U_ij = K_ij - sum_l K_il / (N - 2) - sum_l K_lj / (N - 2) + sum_kl K_kl / ((N - 1) (N - 2)),
    where all sums leave out the diagonal, and U_ii = 0. <U(K), U(L)> / (N (N - 3)) is the unbiased
    HSIC_1. Centring first changes nothing in exact arithmetic and saves the digits of features
    far from zero.

    Args:
        features: (N, ...) array or tensor of any real type, N >= 4; flattened to (N, D). Half
            precision is widened to fp32; float64 stays.

    Returns:
        (N, N) in the precision of the product, fp32 or float64; all zero where the features are
        the same for every image, all NaN where they or their products are not finite.

    Raises:
        ValueError: fewer than 4 images, or no axis but the images'.

    Source: Szekely and Rizzo 2014 (Partial distance correlation), equation 2.3; Song et al. 2012
    (Feature selection via dependence maximization), equation 5.
    """
    features = _widened(features)
    if len(features.shape) < 2 or features.shape[0] < SMALLEST_BATCH:
        raise ValueError(
            f"CKA needs features of the shape (N, ...) with N >= {SMALLEST_BATCH} images a batch, "
            f"but they have the shape {tuple(features.shape)}: take larger batches"
        )
    with np.errstate(all="ignore"):
        gram = _gram(features.reshape(features.shape[0], -1))
    if not np.isfinite(gram).all():
        return np.full_like(gram, np.nan)
    return _u_centred(gram.astype(np.float64)).astype(gram.dtype)


class CKAAccumulator:
    """Gather the Grams of batch after batch into CKA of all pairs of layers.

    Keeps one (L, L) table of unbiased HSICs a batch, and nothing else.

    Args:
        layers: layer names, in order, by model name.
    """

    def __init__(self, layers: Mapping[str, Sequence[str]]) -> None:
        self.layers = {model: tuple(names) for model, names in layers.items()}
        self._keys: list[Key] = [(model, name) for model in layers for name in layers[model]]
        self._tables: list[FloatArray] = []
        self._batch_sizes: list[int] = []

    def update(self, grams: Mapping[Key, FloatArray]) -> None:
        """Add one batch; each batch counts equally.

        Args:
            grams: (N, N) from `centred_gram` by (model, layer), of the same N images in the same
                order for every layer.
        """
        size = len(grams[self._keys[0]])
        self._tables.append(_inner_products([grams[key] for key in self._keys]))
        self._tables[-1] /= size * (size - 3)
        self._batch_sizes.append(size)

    def result(self) -> CKAResult:
        """Turn what was gathered into CKA, HSIC_ab / sqrt(HSIC_aa HSIC_bb) of mean HSICs.

        Returns:
            values, standard errors and intervals; a higher value is a greater similarity.

        Raises:
            ValueError: no batch was added.

        Source: Nguyen, Raghu and Kornblith 2021 (Do wide and deep networks learn the same
        things?), equations 2 to 4.
        """
        if not self._tables:
            raise ValueError("CKA needs at least one batch of images, but none was added")
        tables = np.stack(self._tables)
        values = _ratio(tables.mean(axis=0))
        errors, note = _jackknife(tables)
        margin = errors * _student_t(len(tables))
        return CKAResult(
            models=tuple(self.layers),
            layers=tuple(self.layers.values()),
            values=values,
            standard_errors=errors,
            low=values - margin,
            high=values + margin,
            undefined=self._undefined(tables.mean(axis=0)),
            samples=sum(self._batch_sizes),
            batch_sizes=tuple(self._batch_sizes),
            interval_note=note,
        )

    def _undefined(self, table: FloatArray) -> dict[str, str]:
        """Say why a layer's row has no values."""
        reasons = {}
        for (model, name), own in zip(self._keys, np.diagonal(table), strict=True):
            if not own > 0:
                reasons[f"{model}/{name}"] = CONSTANT if own <= 0 else NOT_FINITE
        return reasons


def cka(features_a: Any, features_b: Any, *, batch_size: int = 256) -> float:
    """Linear CKA of two sets of features of the same images, by unbiased minibatches.

    Mean over batches of HSIC_1(a, b) / sqrt(mean HSIC_1(a, a) * mean HSIC_1(b, b)).

    Args:
        features_a: (N, ...) array, tensor or nested lists; flattened to (N, D_a).
        features_b: (N, ...) likewise, of the same images in the same order.
        batch_size: most images a batch. Shuffle class-sorted images before.

    Returns:
        a number in [-1, 1]; 1 for features equal up to rotation and scale, about 0 for
        independent ones. Never clamped.

    Raises:
        ValueError: different N, fewer than 4 images a batch, or features without a value.

    Source: Nguyen, Raghu and Kornblith 2021, equations 2 to 4.
    """
    features_a, features_b = _with_images_axis(features_a), _with_images_axis(features_b)
    if features_a.shape[0] != features_b.shape[0]:
        raise ValueError(
            "CKA compares features of the same images, but there are "
            f"{features_a.shape[0]} of one and {features_b.shape[0]} of the other"
        )
    accumulator = CKAAccumulator({"a": ["features"], "b": ["features"]})
    for batch in batch_slices(features_a.shape[0], batch_size):
        accumulator.update(
            {
                ("a", "features"): centred_gram(features_a[batch]),
                ("b", "features"): centred_gram(features_b[batch]),
            }
        )
    result = accumulator.result()
    for key, reason in result.undefined.items():
        raise ValueError(f"CKA is undefined for features_{key[0]}: {reason}")
    return float(result.values[0, 1])


def _with_images_axis(features: Any) -> Any:
    """Give features that have a shape, as they are or as an array; a lone number is one image."""
    array = features if hasattr(features, "shape") else np.asarray(features)
    return array if len(array.shape) else array.reshape(1)


def _widened(features: Any) -> Any:
    """Give features as fp32 or float64: an array, or a detached tensor on its device."""
    if hasattr(features, "detach"):
        features = features.detach()
        if str(features.dtype) != "torch.float64":
            features = features.float()
        # On the CPU, numpy's product of a matrix with itself takes half the time of torch's.
        return features.numpy() if features.device.type == "cpu" else features
    array = np.asarray(features)
    if array.dtype == np.float16:
        return array.astype(np.float32)
    return array if array.dtype in (np.float32, np.float64) else array.astype(np.float64)


def _gram(features: Any) -> FloatArray:
    """Multiply column-centred (N, D) features into (N, N)."""
    gram: Any = 0
    for start in range(0, features.shape[1], BLOCK_COLUMNS):
        block = features[:, start : start + BLOCK_COLUMNS]
        # Off the first image, then off the mean: exact far from zero, and exactly 0 where constant.
        block = block - block[0]
        block = block - block.mean(0)
        gram = gram + block @ block.T
    return np.asarray(gram.cpu().numpy() if hasattr(gram, "cpu") else gram)


def _u_centred(gram: FloatArray) -> FloatArray:
    """U-centre a symmetric (N, N) Gram in place; its diagonal does not matter."""
    size = len(gram)
    np.fill_diagonal(gram, 0)
    row_sums = gram.sum(axis=1)
    shift = row_sums / (size - 2) - row_sums.sum() / (2 * (size - 1) * (size - 2))
    gram -= shift[:, None]
    gram -= shift[None, :]
    np.fill_diagonal(gram, 0)
    return gram


def _inner_products(grams: Sequence[FloatArray]) -> FloatArray:
    """Multiply all pairs of L Grams, as one (L, N * N) product summed in float64."""
    rows = [gram.reshape(-1) for gram in grams]
    table = np.zeros((len(rows), len(rows)))
    for start in range(0, len(rows[0]), BLOCK_ENTRIES):
        block = np.stack([row[start : start + BLOCK_ENTRIES] for row in rows], dtype=np.float64)
        table += block @ block.T
    return table


def _ratio(tables: FloatArray) -> FloatArray:
    """Divide (..., L, L) HSICs by the roots of their diagonals; NaN where one is not positive."""
    own = np.diagonal(tables, axis1=-2, axis2=-1)
    root = np.sqrt(np.where(own > 0, own, np.nan))
    return tables / root[..., :, None] / root[..., None, :]


def _jackknife(tables: FloatArray) -> tuple[FloatArray, str | None]:
    """Delete-one-batch standard errors of the ratio, (L, L), and why there are none."""
    count = len(tables)
    if count < 2:
        missing = np.full(tables.shape[1:], np.nan)
        return missing, "intervals need at least 2 batches of images, and there is 1"
    total = tables.sum(axis=0)
    deviations = np.stack([_ratio(total - table) for table in tables])
    deviations -= deviations.mean(axis=0)
    errors = np.sqrt((count - 1) / count * (deviations**2).sum(axis=0))
    if (np.isnan(errors) & ~np.isnan(_ratio(total))).any():
        return (
            errors,
            "some intervals are missing because one batch alone tells a layer's images apart",
        )
    return errors, None


def _student_t(batches: int) -> float:
    """Give the two-sided 95% quantile of Student's t for a jackknife over batches."""
    if batches < 2:
        return math.nan
    from scipy.stats import t  # takes half a second to import, and readers of studies need none

    return float(t.ppf(0.5 + CONFIDENCE / 2, batches - 1))
