"""CKA over a whole set of images at once: debiased, or biased as Kornblith et al. 2019 have it.

In: layer after layer, the features of all N images. Out: a `CKAResult`. Kept of each layer is its
(N, N) Gram or, of a few features each image, the features; `full_set_bytes` says beforehand what
that takes. `in_step` turns one stream a batch into one stream of whole layers, so that no more than
one layer's features are alive.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from analysis.batch_plan import SMALLEST_BATCH
from analysis.cka_result import CKAResult
from analysis.gram import BLOCK_COLUMNS, DEFAULT_BANDWIDTH, ROUNDING, check_kernel, flattened, gram
from analysis.hsic import (
    CONSTANT,
    NOT_FINITE,
    NOT_POSITIVE,
    FloatArray,
    interval_note,
    jackknife,
    ratio,
    student_t,
    whole_set_hsic,
)

Key = tuple[str, str]

ESTIMATORS = ("debiased", "biased")
JACKKNIFE_GROUPS = 16
# Features are kept, not their Gram, where images are this many times as many as features.
NARROW = 4
CHUNK_BYTES = 4 * 2**20  # of Grams multiplied at a time, over all layers


def full_set_bytes(
    widths: Sequence[int], samples: int, *, kernel: str = "linear", precision: str = "fp32"
) -> int:
    """Say what a full-set comparison takes beyond the models and the images, at its peak.

    Args:
        widths: D, features an image, of every layer of every model.
        samples: number of images, N.
        kernel: "linear" or "rbf".
        precision: "fp32" or "bf16".

    Returns:
        bytes, for fp32 features streamed layer by layer (`in_step`): what is kept of all layers,
        and the larger of one layer's features with the work on its Gram, and the work at the end.
    """
    square, alive = samples**2, 4 * samples * max(widths)
    if all(_is_narrow(width, samples, kernel) for width in widths):
        kept = 4 * samples * sum(widths)
        return kept + max(alive, 16 * samples * sum(widths) + 40 * sum(widths) ** 2)
    kept = 4 * square * len(widths)
    block = (4 if precision == "fp32" else 6) * samples * min(BLOCK_COLUMNS, max(widths))
    # A Gram and its product; RBF has float64 copies, and a list of distances.
    work = alive + block + square * ({"linear": 12, "rbf": 36}[kernel])
    sums = 8 * samples * len(widths) * (JACKKNIFE_GROUPS + 3)
    return kept + max(work, 3 * CHUNK_BYTES + sums)


def in_step(streams: Sequence[Iterator[tuple[str, Any]]]) -> Iterator[tuple[str, list[Any]]]:
    """Advance one stream of layers a batch together: all batches' first layer, then their second.

    A network that is run so holds one layer's output of all images, and never two.

    Args:
        streams: of every batch, an iterator of (layer name, features).

    Yields:
        (layer name, features of every batch); use them before asking for the next, when the list
        is emptied.

    Raises:
        ValueError: the streams name different layers, or end at different ones.
    """
    while True:
        items = [next(stream, None) for stream in streams]
        names = {None if item is None else item[0] for item in items}
        if len(names) > 1:
            raise ValueError(
                f"the batches came to different layers ({', '.join(sorted(map(str, names)))}): "
                "stream the same model for each"
            )
        name = next(iter(names), None)
        if name is None:
            return
        parts = [item[1] for item in items if item is not None]
        del items
        yield name, parts
        parts.clear()  # the caller's list too, so that the next layer finds this one gone


class FullSetAccumulator:
    """Gather whole layers into CKA of all pairs over all images at once.

    Args:
        layers: layer names, in order, by model name.
        samples: number of images, N, at least 4.
        estimator: "debiased" or "biased".
        kernel: "linear" or "rbf".
        bandwidth: of the RBF kernel, as a fraction of the median distance of all pairs.
        precision: "fp32" or "bf16".

    Raises:
        ValueError: an unknown option, or too few images.
    """

    def __init__(
        self,
        layers: Mapping[str, Sequence[str]],
        samples: int,
        *,
        estimator: str = "debiased",
        kernel: str = "linear",
        bandwidth: float = DEFAULT_BANDWIDTH,
        precision: str = "fp32",
    ) -> None:
        check_kernel(kernel, bandwidth, precision)
        if estimator not in ESTIMATORS:
            raise ValueError(
                f"a full-set estimator must be one of {', '.join(ESTIMATORS)}, not {estimator!r}"
            )
        if samples < SMALLEST_BATCH:
            raise ValueError(
                f"CKA needs at least {SMALLEST_BATCH} images, but there are {samples}: take more"
            )
        self.layers = {model: tuple(names) for model, names in layers.items()}
        self.samples, self.estimator = samples, estimator
        self._gram_options: dict[str, Any] = {
            "kernel": kernel,
            "bandwidth": bandwidth,
            "precision": precision,
        }
        self._keys: list[Key] = [(model, name) for model in layers for name in layers[model]]
        self._narrow: dict[Key, FloatArray] = {}
        self._grams: dict[Key, FloatArray] = {}
        self._reasons: dict[Key, str] = {}

    def add(self, key: Key, parts: Sequence[Any]) -> None:
        """Add one layer of one model.

        Args:
            key: (model, layer).
            parts: features (N_1, ...), (N_2, ...) and so on of all N images in order.

        Raises:
            ValueError: not a layer that was announced, or not of N images.
        """
        if key not in self._keys:
            raise ValueError(f"{'/'.join(key)} is not one of the layers that are compared")
        given = sum(len(part) for part in parts)
        if given != self.samples:
            raise ValueError(
                f"CKA compares features of the same images, but {'/'.join(key)} has {given} and "
                f"there are {self.samples}"
            )
        width = math.prod(parts[0].shape[1:]) if hasattr(parts[0], "shape") else 0
        if width and _is_narrow(width, self.samples, self._gram_options["kernel"]):
            self._narrow[key] = np.concatenate([_as_array(part) for part in flattened(parts)])
        else:
            self._keep_gram(key, parts)

    @property
    def kept_bytes(self) -> int:
        """Bytes that are kept now."""
        return sum(array.nbytes for kept in (self._narrow, self._grams) for array in kept.values())

    def result(self) -> CKAResult:
        """Turn the layers added into CKA, HSIC_ab / sqrt(HSIC_aa HSIC_bb).

        Errors are of a jackknife that leaves out one of 16 runs of images after another.

        Returns:
            values, standard errors and intervals; a higher value is a greater similarity. Layers
            not added yet are NaN, with that reason.
        """
        if self._grams:
            for key in [key for key in self._keys if key in self._narrow]:
                self._keep_gram(key, [self._narrow.pop(key)])
        keys = [key for key in self._keys if key in self._narrow or key in self._grams]
        groups = _groups(self.samples)
        if self._grams:
            tables = _gram_tables([self._grams[key] for key in keys], groups, self.estimator)
        else:
            tables = self._feature_tables(keys, groups)
        return self._result(keys, tables)

    def _result(self, keys: list[Key], tables: list[FloatArray]) -> CKAResult:
        """Put tables (of all images, then without each group) of some layers among all."""
        count = max(len(tables) - 1, 1)
        values = ratio(tables[0])
        errors = jackknife(tables[0], iter(tables[1:]), count)
        where = np.ix_(*[[self._keys.index(key) for key in keys]] * 2)
        arrays = [np.full((len(self._keys),) * 2, np.nan) for _ in range(4)]
        margin = errors * student_t(count)
        for array, part in zip(arrays, (values, errors, values - margin, values + margin)):
            array[where] = part
        own = dict(zip(keys, np.diagonal(tables[0])))
        return CKAResult(
            models=tuple(self.layers),
            layers=tuple(self.layers.values()),
            values=arrays[0],
            standard_errors=arrays[1],
            low=arrays[2],
            high=arrays[3],
            undefined={
                f"{model}/{name}": self._reason((model, name))
                for model, name in self._keys
                if not own.get((model, name), 0) > 0
            },
            samples=self.samples,
            batch_sizes=(self.samples,),
            interval_note=interval_note(values, errors, count, "groups"),
            estimator=self.estimator,
            kernel=self._gram_options["kernel"],
            bandwidth=self._gram_options["bandwidth"]
            if self._gram_options["kernel"] == "rbf"
            else None,
        )

    def _reason(self, key: Key) -> str:
        """Say why a layer has no values."""
        if key in self._reasons:
            return self._reasons[key]
        return NOT_POSITIVE if key in {**self._narrow, **self._grams} else "it was not read yet"

    def _keep_gram(self, key: Key, parts: Sequence[Any]) -> None:
        """Keep a layer's Gram, centred by what no estimator sees, so that it loses no digits."""
        matrix = gram(parts, **self._gram_options)
        if not np.isfinite(matrix[0, 0]):
            self._reasons[key] = NOT_FINITE
        elif not matrix.any():
            self._reasons[key] = CONSTANT
        else:
            # A power of two, so that products of Grams cannot overflow; CKA does not see it. No
            # entry of a linear Gram exceeds its diagonal's largest; those of RBF are at most 1.
            largest = float(np.diagonal(matrix).max())
            matrix *= matrix.dtype.type(2.0 ** -math.frexp(largest)[1] if largest > 0 else 1)
            means = matrix.mean(axis=1, dtype=np.float64)
            shift = (means - means.mean() / 2).astype(matrix.dtype)
            matrix -= shift[:, None]
            matrix -= shift[None, :]
            matrix = matrix.astype(np.float64 if _is_double(parts[0]) else np.float32, copy=False)
            if self.estimator == "debiased":
                np.fill_diagonal(matrix, 0)
                if _is_flat(matrix):
                    matrix[:] = 0
                    self._reasons[key] = NOT_POSITIVE
        self._grams[key] = matrix

    def _feature_tables(self, keys: list[Key], groups: list[slice]) -> list[FloatArray]:
        """Compute HSICs from features, of all images and without each group."""
        matrices = []
        for key in keys:
            matrix = self._narrow[key].astype(np.float64)
            matrix -= matrix[0]
            matrix -= matrix.mean(axis=0)
            if not np.isfinite(matrix).all():
                self._reasons[key] = NOT_FINITE
            elif not matrix.any():
                self._reasons[key] = CONSTANT
            else:
                matrix /= np.abs(matrix).max()
            matrices.append(matrix)
        return _feature_tables(matrices, groups, self.estimator)


def _as_array(features: Any) -> FloatArray:
    """Give features as an array, from whatever device."""
    return np.asarray(features.cpu() if hasattr(features, "cpu") else features)


def _is_double(part: Any) -> bool:
    return str(getattr(part, "dtype", "float64")).endswith("float64")


def _is_narrow(width: int, samples: int, kernel: str) -> bool:
    """Tell whether a layer's features are cheaper than its Gram."""
    return kernel == "linear" and width * NARROW <= samples


def _is_flat(matrix: FloatArray) -> bool:
    """Tell whether off the diagonal nothing but one value is left, up to rounding.

    The matrix was scaled to entries of at most 1 before it was centred.
    """
    size = len(matrix)
    level = matrix.sum(dtype=np.float64) / (size * (size - 1))
    spread = max(abs(float(matrix[0, 1:].max()) - level), abs(float(matrix[0, 1:].min()) - level))
    if spread > ROUNDING:  # one row tells most
        return False
    outside = ~np.eye(size, dtype=bool)
    return bool(np.abs(matrix - level)[outside].max() <= ROUNDING)


def _groups(samples: int) -> list[slice]:
    """Cut the images into up to 16 runs of 4 or more, to leave out one after another."""
    count = min(JACKKNIFE_GROUPS, samples // SMALLEST_BATCH)
    edges = [samples * index // count for index in range(count + 1)]
    return [slice(start, stop) for start, stop in pairwise(edges)]


def _gram_tables(
    grams: Sequence[FloatArray], groups: Sequence[slice], estimator: str
) -> list[FloatArray]:
    """HSICs of all images, then without each group, from one pass over the Grams."""
    size, count = len(grams[0]), len(grams)
    edges = [group.start for group in groups]
    # (L, N, groups): what each image has with each group
    sums = np.stack([np.add.reduceat(matrix, edges, axis=1, dtype=np.float64) for matrix in grams])
    touched, inside = np.zeros((2, len(groups), count, count))
    kind = np.result_type(*grams)
    step = max(CHUNK_BYTES // (kind.itemsize * size * count), 1)
    for index, group in enumerate(groups):
        for start in range(group.start, group.stop, step):
            rows = slice(start, min(start + step, group.stop))
            # Products of some thousand entries in fp32, their sums in float64.
            chunk = np.stack([matrix[rows] for matrix in grams], dtype=kind)
            flat = chunk.reshape(count, -1)
            touched[index] += flat @ flat.T
            within = chunk[:, :, group].reshape(count, -1)
            inside[index] += within @ within.T
    total, row_sums = touched.sum(axis=0), sums.sum(axis=2)
    tables = [whole_set_hsic(estimator, size, total, row_sums)]
    if len(groups) < 2:
        return tables
    for index, group in enumerate(groups):
        kept = np.delete(row_sums - sums[:, :, index], np.arange(size)[group], axis=1)
        products = total - 2 * touched[index] + inside[index]
        tables.append(whole_set_hsic(estimator, kept.shape[1], products, kept))
    return tables


def _feature_tables(
    matrices: Sequence[FloatArray], groups: Sequence[slice], estimator: str
) -> list[FloatArray]:
    """HSICs of all images, then without each group, from (N, D) features of zero mean.

    sum_ij K_ij L_ij = |X^T Y|^2 of the centred features, less the diagonal where debiased.
    """
    edges = np.cumsum([0, *[matrix.shape[1] for matrix in matrices]])[:-1]
    stacked = np.concatenate(matrices, axis=1)
    total = stacked.T @ stacked
    tables = [_feature_hsic(stacked, np.zeros(stacked.shape[1]), total, edges, estimator)]
    if len(groups) < 2:
        return tables
    for group in groups:
        part = stacked[group]
        kept = np.delete(stacked, np.arange(len(stacked))[group], axis=0)
        mean = kept.mean(axis=0)
        crossed = total - part.T @ part - len(kept) * np.outer(mean, mean)
        tables.append(_feature_hsic(kept, mean, crossed, edges, estimator))
    return tables


def _feature_hsic(
    stacked: FloatArray, mean: FloatArray, crossed: FloatArray, edges: Any, estimator: str
) -> FloatArray:
    """HSIC of all pairs of layers from features, their mean and their X^T Y once centred."""
    products = np.add.reduceat(np.add.reduceat(crossed**2, edges, axis=0), edges, axis=1)
    size = len(stacked)
    if estimator == "biased":
        return whole_set_hsic(estimator, size, products, np.zeros((len(edges), size)))
    norms = np.add.reduceat((stacked - mean) ** 2, edges, axis=1).T
    # Rows of a centred Gram sum to 0, and without the diagonal to what the diagonal was.
    return whole_set_hsic(estimator, size, products - norms @ norms.T, -norms)
