"""What CKA of all pairs of layers gives: values, errors, intervals, null levels, reasons.

Frozen results of plain numpy arrays; nothing is computed here but look-ups.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.floating[Any]]


@dataclass(frozen=True, eq=False)
class CKAPair:
    """The part of a `CKAResult` that compares model A (rows) with model B (columns).

    `rows` and `columns` are the layer names of A and of B. `values`, `standard_errors`, `low` and
    `high` have the shape (L_a, L_b), NaN where undefined; `undefined` says why, by "model/layer".
    `null_levels` (L_a, L_b), if there are any, are what 95% of shuffles of one model's images stay
    under; NaN within one model of several.
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
    estimator: str = "unbiased"
    kernel: str = "linear"
    bandwidth: float | None = None
    null_levels: FloatArray | None = None
    num_shuffles: int = 0
    dropped: int = 0

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
    """CKA of all pairs of layers of all models.

    Rows and columns run over the layers of the first model, then of the second, and so on, L in
    all. `values` is symmetric, in [-1, 1], never clamped: independent layers scatter around 0.
    `low` and `high` bound a 95% interval (delete-one-batch jackknife, Student t); they are
    symmetric about the value and may pass 1. NaN is undefined: `undefined` tells why by
    "model/layer", and `interval_note` why intervals are missing.

    `estimator` is "unbiased" (minibatches), "debiased" or "biased" (the whole set); `kernel`
    "linear" or "rbf" of a `bandwidth` in median distances. `null_levels` (L, L) is None, or the
    95th percentile over `num_shuffles` shuffles of the images of one model of each pair, NaN within
    one model of several. `dropped` counts images of batches too small to use.
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
    estimator: str = "unbiased"
    kernel: str = "linear"
    bandwidth: float | None = None
    null_levels: FloatArray | None = None
    num_shuffles: int = 0
    dropped: int = 0

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
            estimator=self.estimator,
            kernel=self.kernel,
            bandwidth=self.bandwidth,
            null_levels=None if self.null_levels is None else self.null_levels[rows, columns],
            num_shuffles=self.num_shuffles,
            dropped=self.dropped,
        )
