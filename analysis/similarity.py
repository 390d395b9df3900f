"""Measures of similarity other than CKA, with one interface: all pairs of layers of two models.

In: features of the same images by layer. Out: a `SimilarityResult` with a value for every pair.
`MEASURES` lists the measures by the name that the command line uses; each is a frozen dataclass
of its options. This file knows numpy and the measures' files only, and needs neither torch nor
scipy to be imported.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, is_dataclass
from functools import partial
from typing import Any, Protocol, cast

import numpy as np

from analysis.arrays import FloatArray, IntArray, UndefinedError, as_matrix
from analysis.cca import PWCCA, SVCCA
from analysis.neighbours import MutualNeighbours
from analysis.predictivity import LinearPredictivity
from analysis.procrustes import Procrustes
from analysis.rsa import RSA

CONFIDENCE = 0.95
SMALLEST_GROUPS = 10  # a jackknife of fewer parts has intervals too wide to be of use
# Unrelated features that score this part of the way from "unlike" to "alike" deserve a word.
HIGH_CHANCE = 0.3
STOPPED = "the run was stopped before this pair was compared"
TO_COME = "this pair is not compared yet"


class Measure(Protocol):
    """What a measure of similarity says about itself, and does.

    `range` bounds its values, `direction` says which way is alike, `invariances` what leaves the
    value as it is; `symmetric` whether both layers may change places. `sample_limit` is the most
    images that it compares in sensible time and memory (at most 16 N^2 bytes a layer), and
    `interval_caution` why jackknife intervals need care, or "".
    """

    @property
    def title(self) -> str: ...  # noqa: D102
    @property
    def range(self) -> tuple[float, float]: ...  # noqa: D102
    @property
    def direction(self) -> str: ...  # noqa: D102
    @property
    def invariances(self) -> tuple[str, ...]: ...  # noqa: D102
    @property
    def symmetric(self) -> bool: ...  # noqa: D102
    @property
    def sample_limit(self) -> int: ...  # noqa: D102
    @property
    def interval_caution(self) -> str: ...  # noqa: D102

    def prepare(self, features: Any) -> Any:
        """Do once a layer what does not depend on the other; raises UndefinedError."""

    def restrict(self, prepared: Any, images: IntArray) -> Any:
        """Prepare some of the images, given by index, from all; raises UndefinedError."""

    def compare(self, prepared_a: Any, prepared_b: Any) -> float:
        """Give the value of two prepared layers."""
        ...

    def chance(self, prepared_a: Any, prepared_b: Any) -> float:
        """Tell about what the same features score with one layer's images shuffled."""
        ...


MEASURES: dict[str, Callable[..., Measure]] = {
    "svcca": SVCCA,
    "pwcca": PWCCA,
    "procrustes": Procrustes,
    "rsa": RSA,
    "neighbours": MutualNeighbours,
    "predictivity": LinearPredictivity,
}


@dataclass(frozen=True, eq=False)
class SimilarityResult:
    """One measure of all pairs of layers of model A (rows) and model B (columns).

    `values`, `standard_errors`, `low`, `high` and `chance` have the shape (L_a, L_b), NaN where
    undefined or not asked for. `undefined` says why by "a/layer", "b/layer" or "layer|layer" of
    one pair. `chance` is what the same features score at most, on average, with one layer's
    images shuffled (for PWCCA about that). `low` and `high` bound a 95% interval (delete-one-group
    jackknife over `groups` random parts of the images, Student t); they are symmetric about the
    value and may leave the measure's range. `samples` images were compared; where those are fewer
    than were given, they were drawn with `seed`, and `notes` says so.
    """

    measure: str
    title: str
    options: dict[str, Any]
    range: tuple[float, float]
    direction: str
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    values: FloatArray
    standard_errors: FloatArray
    low: FloatArray
    high: FloatArray
    chance: FloatArray
    undefined: dict[str, str]
    samples: int
    groups: int
    seed: int
    notes: tuple[str, ...]

    def reason(self, row: int, column: int) -> str | None:
        """Say why a cell has no value; None where it has one."""
        row_name, column_name = self.rows[row], self.columns[column]
        keys = f"a/{row_name}", f"b/{column_name}", f"{row_name}|{column_name}"
        return next((self.undefined[key] for key in keys if key in self.undefined), None)


def similarity(features_a: Any, features_b: Any, measure: Measure) -> float:
    """Compare two sets of features of the same images by any measure.

    Args:
        features_a: (N, ...) array, tensor or nested lists; flattened to (N, D_a).
        features_b: (N, ...) likewise, of the same images in the same order.
        measure: for instance `RSA(dissimilarity="euclidean")`.

    Returns:
        a number in `measure.range`; `measure.direction` says which way is alike.

    Raises:
        ValueError: different N, or features without a value; the message says why.

    Example:
        >>> round(similarity([[0.0], [1.0], [3.0], [2.0]], [[5.0], [3.0], [-1.0], [1.0]], SVCCA()))
        1
    """
    if isinstance(measure, str | type):
        raise ValueError(
            f"the measure must be an object such as MEASURES['procrustes'](), not {measure!r}; "
            "call what MEASURES holds"
        )
    matrices = {"features_a": as_matrix(features_a), "features_b": as_matrix(features_b)}
    _check_samples({name: len(matrix) for name, matrix in matrices.items()})
    prepared = []
    for name, matrix in matrices.items():
        try:
            prepared.append(measure.prepare(matrix))
        except UndefinedError as error:
            raise ValueError(f"{measure.title} is undefined for {name}: {error}") from error
    try:
        return measure.compare(*prepared)
    except UndefinedError as error:
        raise ValueError(f"{measure.title} is undefined for this pair: {error}") from error


def similarity_map(
    features_by_layer_a: Mapping[str, Any],
    features_by_layer_b: Mapping[str, Any],
    measure: Measure,
    *,
    groups: int = 0,
    sample_limit: int | None = None,
    seed: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
    refined: Callable[[int, SimilarityResult], None] = lambda rows, result: None,
    cancelled: Callable[[], bool] = lambda: False,
) -> SimilarityResult:
    """Compare all layers of one model with all layers of another.

    Each layer is prepared once, and asked for once: a mapping that makes features when they are
    asked for keeps one layer's alive at a time. For a model with itself pass the same mapping
    twice: its layers are then prepared once, and symmetric pairs compared once.

    Intervals are by a jackknife that leaves out one of `groups` random parts of the images after
    another. It is over images, because pairs of images or folds are not independent, and no
    bootstrap, because repeated images are each other's nearest neighbours, at distance 0, and add
    no dimension. It takes `groups` times longer than the values. Trust it for RSA and linear
    predictivity. With CCA and Procrustes it measures the scatter at this number of images, not the
    bias that few images bring (see `chance`); with CCA and neighbour overlap it is too wide, for
    these also change with the number of images and of directions kept. (In trials at 200 images,
    20 features and 10 groups, 95% intervals covered the mean of draws of that size in 0.92 to 0.97
    for RSA, 0.97 Procrustes, 0.98 predictivity, 0.99 neighbours and CCA, whose standard errors
    were 1.2 to 1.5 times too large.) Intervals cover the choice of images, not of training runs.

    Args:
        features_by_layer_a: (N, ...) features by layer name, the rows; arrays or tensors.
        features_by_layer_b: likewise the columns, of the same N images in the same order.
        measure: for instance `SVCCA(variance=0.99)`.
        groups: parts for the jackknife, 10 or more; 0 for no intervals.
        sample_limit: most images to compare, drawn at random if there are more; None is the
            measure's own limit.
        seed: decides which images are drawn, and the parts.
        progress: called with the steps done and all steps; a step is a layer or a row of pairs.
        refined: called after every row with the rows done and what is there; intervals come last.
        cancelled: asked before every step; if it says yes, what is there is returned, and the
            cells that are not say so.

    Returns:
        values, intervals and chance levels; undefined cells are NaN with a reason.

    Raises:
        ValueError: no layers, different N, or options out of range.
    """
    _check_options(features_by_layer_a, features_by_layer_b, groups, sample_limit)
    job = _Job(
        measure=measure,
        limit=measure.sample_limit if sample_limit is None else sample_limit,
        seed=seed,
        same=features_by_layer_a is features_by_layer_b,
        steps=_steps(len(features_by_layer_a), len(features_by_layer_b), groups),
        progress=progress,
        cancelled=cancelled,
    )
    rows = job.prepare(features_by_layer_a, "a")
    columns = job.prepared_again(rows) if job.same else job.prepare(features_by_layer_b, "b")

    def row_done(count: int, so_far: FloatArray) -> None:
        errors = np.full_like(so_far, np.nan)
        refined(count, _result(job, rows, columns, so_far.copy(), errors, groups))

    values = job.compare(rows, columns, row_done)
    errors = job.jackknife(rows, columns, groups)
    return _result(job, rows, columns, values, errors, groups)


def _result(
    job: _Job,
    rows: Mapping[str, Any],
    columns: Mapping[str, Any],
    values: FloatArray,
    errors: FloatArray,
    groups: int,
) -> SimilarityResult:
    """Put values and standard errors together with what a reader should know of them."""
    measure = job.measure
    chance = _chances(measure, rows, columns, values)
    margin = errors * _student_t(groups)
    return SimilarityResult(
        measure=_name(measure),
        title=measure.title,
        options=_options(measure),
        range=measure.range,
        direction=measure.direction,
        rows=tuple(rows),
        columns=tuple(columns),
        values=values,
        standard_errors=errors,
        low=values - margin,
        high=values + margin,
        chance=chance,
        undefined=job.explained(values, list(rows), list(columns)),
        samples=len(job.images),
        groups=groups,
        seed=job.seed,
        notes=_notes(job, values, chance, errors, groups),
    )


def _check_options(
    layers_a: Mapping[str, Any], layers_b: Mapping[str, Any], groups: int, limit: int | None
) -> None:
    """Refuse what cannot be compared at all."""
    if not layers_a or not layers_b:
        raise ValueError(
            f"there must be layers on both sides, but there are {len(layers_a)} and {len(layers_b)}"
        )
    if groups != 0 and groups < SMALLEST_GROUPS:
        raise ValueError(
            f"a jackknife needs {SMALLEST_GROUPS} or more groups of images, or 0 for none, but "
            f"groups is {groups}"
        )
    if limit is not None and limit < 3:
        raise ValueError(f"sample_limit must be at least 3, but it is {limit}")


def _check_samples(samples: Mapping[str, int]) -> None:
    """Refuse features of different numbers of images."""
    first = next(iter(samples))
    for name, count in samples.items():
        if count != samples[first]:
            raise ValueError(
                f"similarity compares features of the same images, but there are {samples[first]} "
                f"of {first} and {count} of {name}"
            )


def _steps(num_rows: int, num_columns: int, groups: int) -> int:
    """Count layers to prepare and rows to compare, with those of the jackknife."""
    return num_rows + num_columns + num_rows + groups * (1 + num_rows)


@dataclass(eq=False)
class _Job:
    """One map in the making: what was asked, what is undefined, and how far it is."""

    measure: Measure
    limit: int
    seed: int
    same: bool
    steps: int
    progress: Callable[[int, int], None]
    cancelled: Callable[[], bool]
    undefined: dict[str, str] = field(default_factory=dict)
    given: dict[str, int] = field(default_factory=dict)
    done: int = 0
    stopped: bool = False

    def step(self) -> bool:
        """Begin a step, unless somebody asked to stop."""
        self.stopped = self.stopped or self.cancelled()
        if not self.stopped:
            self.progress(self.done, self.steps)
            self.done += 1
        return not self.stopped

    @property
    def images(self) -> IntArray:
        """The images to compare, of all that were given, by index."""
        samples = next(iter(self.given.values()), 0)
        if samples <= self.limit:
            return np.arange(samples)
        chosen = np.random.default_rng(self.seed).choice(samples, self.limit, replace=False)
        return np.sort(chosen)

    def prepare(self, features_by_layer: Mapping[str, Any], side: str) -> dict[str, Any]:
        """Prepare each layer; None for one that is undefined."""
        prepared: dict[str, Any] = {}
        for name in features_by_layer:
            key = f"{side}/{name}"
            if not self.step():
                self.undefined[key] = STOPPED
                prepared[name] = None
                continue
            matrix = as_matrix(features_by_layer[name])
            self.given[key] = len(matrix)
            _check_samples(self.given)
            images = self.images
            matrix = matrix if len(images) == len(matrix) else matrix[images]
            prepared[name] = self._defined(key, partial(self.measure.prepare, matrix))
        return prepared

    def prepared_again(self, rows: Mapping[str, Any]) -> Mapping[str, Any]:
        """Let the rows be the columns too."""
        for name in rows:
            if f"a/{name}" in self.undefined:
                self.undefined[f"b/{name}"] = self.undefined[f"a/{name}"]
        self.done += len(rows)
        return rows

    def compare(
        self,
        rows: Mapping[str, Any],
        columns: Mapping[str, Any],
        row_done: Callable[[int, FloatArray], None] = lambda count, values: None,
    ) -> FloatArray:
        """Fill the (L_a, L_b) values; NaN where there is none."""
        values = np.full((len(rows), len(columns)), np.nan)
        mirrored = self.same and self.measure.symmetric
        for row_index, (row_name, row) in enumerate(rows.items()):
            going_on = self.step()
            # A copy drops what the row works out for itself alone once the row is done.
            row = copy.copy(row)
            for column_index, (column_name, column) in enumerate(columns.items()):
                if row is None or column is None:
                    continue
                if mirrored and column_index < row_index:
                    values[row_index, column_index] = values[column_index, row_index]
                elif going_on:
                    compare = partial(self.measure.compare, row, column)
                    value = self._defined(f"{row_name}|{column_name}", compare)
                    values[row_index, column_index] = np.nan if value is None else value
            if going_on:
                row_done(row_index + 1, values)
        return values

    def explained(self, values: FloatArray, rows: list[str], columns: list[str]) -> dict[str, str]:
        """Give all reasons, also of cells without a value whose layers have none."""
        reasons = dict(self.undefined)
        for row_index, column_index in zip(*np.nonzero(np.isnan(values)), strict=True):
            row, column = rows[row_index], columns[column_index]
            if f"a/{row}" not in reasons and f"b/{column}" not in reasons:
                twin = reasons.get(f"{column}|{row}") if self.same else None
                missing = STOPPED if self.stopped else TO_COME
                reasons.setdefault(f"{row}|{column}", twin or missing)
        return reasons

    def enough_for(self, groups: int) -> bool:
        """Tell whether every group of a jackknife would have two images or more."""
        return groups > 0 and len(self.images) >= 2 * groups

    def jackknife(
        self, rows: Mapping[str, Any], columns: Mapping[str, Any], groups: int
    ) -> FloatArray:
        """Delete-one-group standard errors (L_a, L_b); NaN where any part has no value."""
        missing = np.full((len(rows), len(columns)), np.nan)
        if not self.enough_for(groups):
            return missing
        reasons = dict(self.undefined)
        order = np.random.default_rng(self.seed).permutation(len(self.images))
        parts = []
        for group in np.array_split(order, groups):
            if not self.step():
                break
            kept = np.setdiff1d(order, group)
            kept_rows = self._restrict(rows, kept)
            kept_columns = kept_rows if self.same else self._restrict(columns, kept)
            parts.append(self.compare(kept_rows, kept_columns))
        # What a part lacks leaves a gap in the intervals, and is no word on the whole.
        self.undefined = reasons
        if len(parts) < groups:
            return missing
        deviations = np.stack(parts)
        deviations -= deviations.mean(axis=0)
        errors: FloatArray = np.sqrt((groups - 1) / groups * (deviations**2).sum(axis=0))
        return errors

    def _restrict(self, prepared: Mapping[str, Any], images: IntArray) -> dict[str, Any]:
        """Prepare some of the images; None for a layer that has no value on these."""
        return {
            name: None
            if whole is None
            else self._defined(name, partial(self.measure.restrict, whole, images))
            for name, whole in prepared.items()
        }

    def _defined(self, key: str, work: Callable[[], Any]) -> Any:
        """Do it; None, and the reason under `key`, where that is undefined."""
        try:
            return work()
        except UndefinedError as error:
            self.undefined[key] = str(error)
            return None


def _chances(
    measure: Measure, rows: Mapping[str, Any], columns: Mapping[str, Any], values: FloatArray
) -> FloatArray:
    """Give the chance level of each cell that has a value."""
    chance = np.full(values.shape, np.nan)
    prepared_rows, prepared_columns = list(rows.values()), list(columns.values())
    for row, column in zip(*np.nonzero(~np.isnan(values)), strict=True):
        chance[row, column] = measure.chance(prepared_rows[row], prepared_columns[column])
    return chance


def _notes(
    job: _Job, values: FloatArray, chance: FloatArray, errors: FloatArray, groups: int
) -> tuple[str, ...]:
    """Say what a reader of the map should know."""
    samples, given = len(job.images), next(iter(job.given.values()), 0)
    notes = []
    if job.stopped:
        notes.append("the run was stopped: what was compared until then is here")
    if samples < given:
        notes.append(f"{samples} of {given} images were drawn at random with seed {job.seed}")
    notes += _chance_note(job.measure, chance, samples)
    if groups and not job.stopped:
        notes += _interval_notes(job, values, errors, groups)
    return tuple(notes)


def _chance_note(measure: Measure, chance: FloatArray, samples: int) -> list[str]:
    """Warn where there are too few images for the features' dimensions."""
    low, high = measure.range
    if not np.isfinite([low, high]).all() or np.isnan(chance).all():
        return []
    alike, unlike = (high, low) if measure.direction.startswith("higher") else (low, high)
    # A correlation is unlike at 0, not at -1.
    unlike = max(unlike, 0.0)
    height = (chance - unlike) / (alike - unlike)
    count = int((height > HIGH_CHANCE).sum())
    if count == 0:
        return []
    worst = float(chance.flat[np.nanargmax(height)])
    return [
        f"{samples} images are few for these features: in {count} of {chance.size} cells even "
        f"unrelated layers would score about {worst:.2f}; take more images or pool the features, "
        "and compare values with the chance level"
    ]


def _interval_notes(job: _Job, values: FloatArray, errors: FloatArray, groups: int) -> list[str]:
    """Say what intervals are worth, and why some are missing."""
    if not job.enough_for(groups):
        return [
            f"intervals are missing: {groups} groups need two images each, and there are "
            f"{len(job.images)}"
        ]
    notes = ["intervals cover the choice of images, not of training runs"]
    if job.measure.interval_caution:
        notes.append(job.measure.interval_caution)
    missing = int((np.isnan(errors) & ~np.isnan(values)).sum())
    if missing:
        notes.append(
            f"intervals of {missing} cells are missing, since they have no value once some of the "
            "images are left out: take more images"
        )
    return notes


def _name(measure: Measure) -> str:
    """Find the name in MEASURES; that of the class for a measure that is not there."""
    return next((name for name, kind in MEASURES.items() if kind is type(measure)), measure.title)


def _options(measure: Measure) -> dict[str, Any]:
    """List a measure's options by name."""
    return asdict(cast(Any, measure)) if is_dataclass(measure) else {}


def _student_t(groups: int) -> float:
    """Give the two-sided 95% quantile of Student's t for a jackknife over groups."""
    if groups < 2:
        return float("nan")
    from scipy.stats import t  # slow to import, and readers of results need none

    return float(t.ppf(0.5 + CONFIDENCE / 2, groups - 1))
