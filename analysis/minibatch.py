"""CKA by unbiased minibatches, in one pass over the images.

In: for every batch of images, the features or Grams of each layer. Out: a `CKAResult` with a value,
a standard error and an interval for every pair of layers of every pair of models.

A batch's Grams are reduced to one table of inner products, so features are never stored. What two
accumulators hold is added by `merge`, in any order, bit for bit as if one had seen all.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from analysis.batch_plan import SMALLEST_BATCH
from analysis.cka_result import CKAResult
from analysis.gram import DEFAULT_BANDWIDTH, centred_gram, check_kernel, packed, unpacked_size
from analysis.hsic import (
    CONSTANT,
    NOT_FINITE,
    NOT_POSITIVE,
    FloatArray,
    inner_products,
    interval_note,
    jackknife,
    null_level,
    ratio,
    shuffled_products,
    student_t,
)

Key = tuple[str, str]
State = dict[str, npt.NDArray[Any]]

DEFAULT_SHUFFLES = 100
TOO_FEW = (
    f"no batch has {SMALLEST_BATCH} images, the least that the unbiased estimator can do with: "
    "take larger batches"
)
# What a batch's Gram says of its layer; the reasons are in order of what overrules what.
FINE, SAME, APART, BROKEN = range(4)
REASONS = {SAME: CONSTANT, APART: NOT_POSITIVE, BROKEN: NOT_FINITE}


@dataclass(frozen=True, eq=False)
class _Batch:
    """One batch: N, HSICs (L, L), a code a layer (L,), and HSICs of shuffles (S, pairs)."""

    size: int
    table: FloatArray
    codes: npt.NDArray[np.uint8]
    shuffled: FloatArray


class CKAAccumulator:
    """Gather the Grams of batch after batch into CKA of all pairs of layers.

    Keeps one (L, L) table of unbiased HSICs a batch, with shuffles S more numbers for each pair of
    layers of different models, and nothing else.

    Args:
        layers: layer names, in order, by model name.
        kernel: "linear" or "rbf".
        bandwidth: of the RBF kernel, as a fraction of each batch's median distance.
        precision: of `add`: "fp32" or "bf16".
        num_shuffles: S, shuffles of one model's images in every batch, for null levels.
        seed: of the shuffles; a batch's depend on it and the batch's index alone.

    Raises:
        ValueError: an unknown kernel or precision, or a negative number of shuffles.
    """

    def __init__(
        self,
        layers: Mapping[str, Sequence[str]],
        *,
        kernel: str = "linear",
        bandwidth: float = DEFAULT_BANDWIDTH,
        precision: str = "fp32",
        num_shuffles: int = 0,
        seed: int = 0,
    ) -> None:
        check_kernel(kernel, bandwidth, precision)
        if num_shuffles < 0 or seed < 0:
            raise ValueError(
                f"shuffles and seed must be 0 or more, but they are {num_shuffles} and {seed}"
            )
        self.layers = {model: tuple(names) for model, names in layers.items()}
        self.kernel, self.bandwidth, self.precision = kernel, bandwidth, precision
        self.num_shuffles, self.seed = num_shuffles, seed
        self._keys: list[Key] = [(model, name) for model in layers for name in layers[model]]
        self._pairs = np.nonzero(_compared(self.layers))
        self._batches: dict[int, _Batch] = {}
        self._dropped: dict[int, int] = {}

    def add(
        self,
        features: Mapping[Key, Any],
        *,
        index: int | None = None,
        images: Mapping[str, Any] | None = None,
    ) -> None:
        """Add one batch of features; a batch of fewer than 4 images is dropped and counted.

        Args:
            features: (N, ...) by (model, layer), of the same N images in the same order.
            index: of the batch; the next one if None.
            images: (N,) what tells the images apart, by model; refused where models differ.

        Raises:
            ValueError: a layer is missing, or layers differ in their images.
        """
        self._check_keys(features)
        check_same_images(images or {})
        sizes = {key: len(features[key]) for key in self._keys}
        _check_sizes(sizes)
        if (size := sizes[self._keys[0]]) < SMALLEST_BATCH:
            self._dropped[self._next(index)] = size
            return
        grams = {
            key: centred_gram(
                features[key],
                kernel=self.kernel,
                bandwidth=self.bandwidth,
                precision=self.precision,
            )
            for key in self._keys
        }
        self.update(grams, index=index)

    def update(self, grams: Mapping[Key, FloatArray], *, index: int | None = None) -> None:
        """Add the Grams of one batch; each batch counts equally.

        Args:
            grams: (N, N) from `centred_gram` by (model, layer), of the same N images in the same
                order for every layer, or (N (N - 1) / 2,) from `packed`.
            index: of the batch; the next one if None.

        Raises:
            ValueError: a layer is missing, layers differ in N, or the batch was added before.
        """
        self._check_keys(grams)
        rows = [packed(grams[key]) for key in self._keys]
        _check_sizes({key: unpacked_size(len(row)) for key, row in zip(self._keys, rows)})
        index = self._next(index)
        codes = np.array([_code(row) for row in rows], np.uint8)
        # Where all images are equally far apart, the centred Gram is 0.
        rows = [np.zeros_like(row) if code == APART else row for row, code in zip(rows, codes)]
        size = unpacked_size(len(rows[0]))
        scale = size * (size - 3)
        shuffled = self._shuffle(rows, size, index) / scale
        self._batches[index] = _Batch(size, inner_products(rows) / scale, codes, shuffled)

    def merge(self, other: CKAAccumulator) -> CKAAccumulator:
        """Add what two accumulators hold of different batches.

        Args:
            other: of the same layers and options.

        Returns:
            a new accumulator, equal bit for bit to one that saw all batches.

        Raises:
            ValueError: layers or options differ, or both hold the same batch.
        """
        if self._question() != other._question():
            raise ValueError(
                "accumulators can be merged where models, layers, kernel and shuffles are the "
                "same, but these differ: merge parts of one comparison"
            )
        merged = self._empty()
        for index in sorted(self._indices() & other._indices()):
            raise ValueError(
                f"both accumulators hold batch {index}, which would count twice: give each part "
                "its own batch indices"
            )
        merged._batches = self._batches | other._batches
        merged._dropped = self._dropped | other._dropped
        return merged

    def state(self) -> State:
        """Give all that is held as plain arrays, for a file or another process.

        Returns:
            arrays of numbers and texts, none of objects; `from_state` takes them.
        """
        batches = [self._batches[index] for index in sorted(self._batches)]
        width, pairs = len(self._keys), len(self._pairs[0])
        return {
            "models": np.array(list(self.layers), dtype=np.str_),
            "num_layers": np.array([len(names) for names in self.layers.values()], np.int64),
            "layers": np.array([name for _model, name in self._keys], dtype=np.str_),
            "kernel": np.array(self.kernel),
            "bandwidth": np.array(self.bandwidth),
            "precision": np.array(self.precision),
            "num_shuffles": np.array(self.num_shuffles),
            "seed": np.array(self.seed),
            "indices": np.array(sorted(self._batches), np.int64),
            "sizes": np.array([batch.size for batch in batches], np.int64),
            "tables": _stacked([batch.table for batch in batches], (width, width)),
            "codes": _stacked([batch.codes for batch in batches], (width,)).astype(np.uint8),
            "shuffled": _stacked([batch.shuffled for batch in batches], (self.num_shuffles, pairs)),
            "dropped": np.array(sorted(self._dropped.items()), np.int64).reshape(-1, 2),
        }

    @classmethod
    def from_state(cls, state: Mapping[str, npt.NDArray[Any]]) -> CKAAccumulator:
        """Make the accumulator whose `state` this is."""
        names = iter(str(name) for name in state["layers"])
        accumulator = cls(
            {
                str(model): [next(names) for _ in range(count)]
                for model, count in zip(state["models"], state["num_layers"])
            },
            kernel=str(state["kernel"]),
            bandwidth=float(state["bandwidth"]),
            precision=str(state["precision"]),
            num_shuffles=int(state["num_shuffles"]),
            seed=int(state["seed"]),
        )
        accumulator._batches = {
            int(index): _Batch(int(size), table, codes, shuffled)
            for index, size, table, codes, shuffled in zip(
                *(state[name] for name in ("indices", "sizes", "tables", "codes", "shuffled"))
            )
        }
        accumulator._dropped = {int(index): int(size) for index, size in state["dropped"]}
        return accumulator

    def result(self) -> CKAResult:
        """Turn what was gathered so far into CKA, HSIC_ab / sqrt(HSIC_aa HSIC_bb) of mean HSICs.

        Returns:
            values, standard errors and intervals; a higher value is a greater similarity.

        Raises:
            ValueError: no batch was added.

        Source: Nguyen, Raghu and Kornblith 2021 (Do wide and deep networks learn the same
        things?), equations 2 to 4.
        """
        if not self._batches and not self._dropped:
            raise ValueError("CKA needs at least one batch of images, but none was added")
        state = self.state()
        tables, count = state["tables"], len(self._batches)
        mean = tables.sum(axis=0) / max(count, 1)
        values = ratio(mean)
        total = tables.sum(axis=0)
        errors = jackknife(mean, (total - table for table in tables), count)
        margin = errors * student_t(count)
        return CKAResult(
            models=tuple(self.layers),
            layers=tuple(self.layers.values()),
            values=values,
            standard_errors=errors,
            low=values - margin,
            high=values + margin,
            undefined=self._undefined(mean, state["codes"]),
            samples=int(state["sizes"].sum()),
            batch_sizes=tuple(state["sizes"].tolist()),
            interval_note=interval_note(values, errors, count, "batches"),
            kernel=self.kernel,
            bandwidth=self.bandwidth if self.kernel == "rbf" else None,
            null_levels=self._null_levels(state["shuffled"], mean),
            num_shuffles=self.num_shuffles,
            dropped=sum(self._dropped.values()),
        )

    def _undefined(self, table: FloatArray, codes: npt.NDArray[np.uint8]) -> dict[str, str]:
        """Say why a layer's row has no values."""
        reasons = {}
        for index, (model, name) in enumerate(self._keys):
            if not table[index, index] > 0:
                worst = int(codes[:, index].max(initial=FINE))
                reason = REASONS.get(worst, NOT_POSITIVE)
                reasons[f"{model}/{name}"] = reason if len(codes) else TOO_FEW
        return reasons

    def _null_levels(self, shuffled: FloatArray, table: FloatArray) -> FloatArray | None:
        """Put the shuffles of all batches together."""
        if not self.num_shuffles:
            return None
        mean = np.full((self.num_shuffles, *table.shape), np.nan)
        rows, columns = self._pairs
        mean[:, rows, columns] = shuffled.sum(axis=0) / max(len(shuffled), 1)
        mean[:, columns, rows] = mean[:, rows, columns]
        return null_level(mean, table)

    def _shuffle(self, rows: list[FloatArray], size: int, index: int) -> FloatArray:
        """Multiply Grams with shuffled ones: (S, pairs)."""
        if not self.num_shuffles:
            return np.empty((0, len(self._pairs[0])))
        generator = np.random.default_rng([self.seed, index])
        orders = np.stack([generator.permutation(size) for _ in range(self.num_shuffles)])
        products = shuffled_products(rows, _spans(self.layers), orders)
        return products[:, self._pairs[0], self._pairs[1]]

    def _question(self) -> tuple[object, ...]:
        """Give all that must agree for two accumulators to be parts of one comparison."""
        options = self.kernel, self.bandwidth, self.precision, self.num_shuffles, self.seed
        return (tuple(self.layers.items()), *options)

    def _empty(self) -> CKAAccumulator:
        return CKAAccumulator(
            self.layers,
            kernel=self.kernel,
            bandwidth=self.bandwidth,
            precision=self.precision,
            num_shuffles=self.num_shuffles,
            seed=self.seed,
        )

    def _indices(self) -> set[int]:
        return {*self._batches, *self._dropped}

    def _next(self, index: int | None) -> int:
        """Give the index of a batch that is new."""
        if index is None:
            return max(self._indices(), default=-1) + 1
        if index in self._indices():
            raise ValueError(f"batch {index} was added before: give every batch its own index")
        return index

    def _check_keys(self, given: Mapping[Key, Any]) -> None:
        """Refuse a batch that lacks a layer."""
        for model, name in self._keys:
            if (model, name) not in given:
                raise ValueError(
                    f"a batch must hold every layer of every model, but {name!r} of {model!r} is "
                    "missing: run all models on the same images, batch by batch"
                )


def _compared(layers: Mapping[str, Sequence[str]]) -> npt.NDArray[np.bool_]:
    """Mark the pairs above the diagonal that shuffles are made for: (L, L)."""
    spans = _spans(layers)
    count = spans[-1].stop if spans else 0
    marks = np.triu(np.ones((count, count), bool))
    if len(spans) > 1:
        for span in spans:
            marks[span, span] = False
    return marks


def _spans(layers: Mapping[str, Sequence[str]]) -> list[slice]:
    """Give the rows of every model that has layers."""
    edges = np.cumsum([0, *map(len, layers.values())]).tolist()
    return [slice(a, b) for a, b in itertools.pairwise(edges) if b > a]


def _code(row: FloatArray) -> int:
    """Tell what the Gram of one batch says of its layer, as `centred_gram` marks it."""
    if np.isfinite(row[0]):
        return FINE if row.any() else SAME
    return APART if np.isinf(row[0]) else BROKEN


def _stacked(arrays: Sequence[npt.NDArray[Any]], shape: tuple[int, ...]) -> npt.NDArray[Any]:
    """Stack arrays of a known shape; there may be none."""
    return np.stack(arrays) if arrays else np.empty((0, *shape))


def _check_sizes(sizes: Mapping[Key, int]) -> None:
    """Refuse layers of different numbers of images."""
    first = next(iter(sizes))
    for key, size in sizes.items():
        if size != sizes[first]:
            raise ValueError(
                f"CKA compares features of the same images, but there are {sizes[first]} of "
                f"{'/'.join(first)} and {size} of {'/'.join(key)}"
            )


def check_same_images(images: Mapping[str, Any]) -> None:
    """Refuse models that were given different images, or the same in another order.

    Args:
        images: (N,) what tells images apart (indices, names, hashes), by model.

    Raises:
        ValueError: they differ.
    """
    given = {model: np.asarray(ids) for model, ids in images.items()}
    for model, ids in given.items():
        first_model, first = next(iter(given.items()))
        if ids.shape != first.shape or (ids != first).any():
            same = ids.shape == first.shape and sorted(ids.tolist()) == sorted(first.tolist())
            raise ValueError(
                f"{model} and {first_model} were given "
                f"{'the same images in another order' if same else 'different images'}: run both "
                "on each batch of one pass"
            )
