"""The geometry of one layer: each measure's value and interval, or the reason why there is none.

In: the `LayerSums` of one layer. Out: an `Estimate` or a reason by measure; `geometry_measures`
says what they mean. This file knows numpy and scipy only (the latter is imported when used).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from analysis.activity import dead_fraction, mean_norm, mean_sparseness, norm_deviation
from analysis.collapse import (
    class_separability_of,
    nc1_of,
    nc2_angles_of,
    nc2_norms_of,
    nc3_of,
    nearest_class_mean_of,
    silhouette_of,
)
from analysis.geometry_sums import LayerSums, with_classes
from analysis.moments import (
    NOT_FINITE,
    FloatArray,
    IntArray,
    Moments,
    Undefined,
    add_up,
    centred,
    coordinates,
)
from analysis.spectrum import (
    CONFIDENCE,
    effective_rank_of,
    nearest_two,
    participation_ratio_of,
    squared_distances,
    two_nn_of,
)

FEWEST_GROUPS = 8  # a jackknife over fewer gives intervals that cover too little
BOUNDED = (
    "no interval: with hardly more images than features, the number of images decides this value"
)
NOT_RESAMPLED = "no interval: leaving images out can only raise this value"
LOST = "no interval: without one group of images there is no value"
NO_CLASSIFIER = "it needs the classifier of the model, or what it predicts, and none was given"
NO_HEAD = "it needs the weights of a linear classifier that reads this very layer"
# A spectrum of fewer images has no interval: the number of images decides it too much.
FEWEST_IMAGES_A_FEATURE = 2


@dataclass(frozen=True)
class Estimate:
    """A value, its standard error and 95% interval (NaN where there is none: `note` says why).

    `samples` is the number of images that it rests on.
    """

    value: float
    samples: int
    standard_error: float = math.nan
    low: float = math.nan
    high: float = math.nan
    note: str | None = None


Answer = Estimate | str  # or why there is none


@dataclass(frozen=True, eq=False)
class Classifier:
    """A model's linear head, or what it predicts.

    `layer` names the layer that it reads, `weights` (K, D) and `bias` (K,) are its own;
    `predictions` are classes by image index, (N,), if something else than the weights decides.
    """

    layer: str | None = None
    weights: Any = None
    bias: Any = None
    predictions: Any = None


@dataclass(frozen=True, eq=False)
class Reading:
    """One layer's sums with what several measures need of them, computed once.

    `weights` (K, D) of the classifier belong to this layer's features; `predictions` of the
    classifier, by image index, to the images.
    """

    sums: LayerSums
    weights: FloatArray | None = None
    predictions: Mapping[int, int] | None = None

    @cached_property
    def rows(self) -> FloatArray:
        """Sample of images in the frame of `whole`, (n, r) float64."""
        features = self.sums.sample.features
        if self.sums.moments:
            return np.asarray(features - self.sums.origin)
        return centred(features) if features.shape[1] < len(features) else coordinates(features)

    @cached_property
    def whole(self) -> Moments:
        """Moments of all images; of the sample, turned to fewer axes, if the layer is wide."""
        parts = iter(self.parts())
        total = next(parts)
        with np.errstate(all="ignore"):
            for part in parts:
                total = total + part
        if not np.isfinite(total.second).all():
            raise Undefined(NOT_FINITE)
        return total

    @cached_property
    def squared_distances(self) -> FloatArray:
        """Squared distances between all pairs of images of the sample, (n, n)."""
        return squared_distances(self.sums.sample.features)

    @cached_property
    def nearest(self) -> IntArray:
        """Class of the nearest class mean for each image of the sample, (n,)."""
        whole = self.whole
        return nearest_class_mean_of(self.rows, self.sums.sample.labels, whole.counts, whole.sums)

    def parts(self) -> Iterator[Moments]:
        """Moments of each group of images that is not empty; made one by one in wide layers."""
        if self.sums.moments:
            return (part for part in self.sums.moments if part.samples)
        return (add_up(*own) for own in self._sampled(self.rows))

    def class_parts(self) -> Iterator[Moments]:
        """Moments of each group in the features' own frame, with the trace of `second` alone."""
        count = 0 if self.weights is None else len(self.weights)
        if self.sums.moments:
            return (with_classes(_traced(part), count) for part in self.parts())
        rows = centred(self.sums.sample.features)
        return (with_classes(_class_sums(*own), count) for own in self._sampled(rows))

    def _sampled(self, rows: FloatArray) -> Iterator[tuple[FloatArray, IntArray, int]]:
        """Cut rows of the sample, and their labels, by group; with the number of classes."""
        sample = self.sums.sample
        for group in np.unique(sample.groups):
            chosen = sample.groups == group
            yield rows[chosen], sample.labels[chosen], int(sample.labels.max()) + 1


def measure_layer(reading: Reading, measures: Sequence[str]) -> dict[str, Answer]:
    """Take the measures of one layer.

    Args:
        reading: the layer.
        measures: names of GEOMETRY_MEASURES.

    Returns:
        an estimate, or the reason why there is none, by measure.
    """
    if not reading.sums.finite:
        return dict.fromkeys(measures, NOT_FINITE)
    answers = _moment_answers(reading, measures) | _tally_answers(reading, measures)
    for name in measures:
        if name in SAMPLE_MEASURES:
            answers[name] = _answer(SAMPLE_MEASURES[name], reading)
    return {name: answers[name] for name in measures}


def jackknife(value: float, left_out: Sequence[float], sizes: Sequence[int]) -> tuple[float, float]:
    """Standard error of a value from what it becomes without each group of images.

    Args:
        value: of all images.
        left_out: (G,) of all images but one group's.
        sizes: (G,) number of images of each group.

    Returns:
        the standard error, and what to multiply it with for a 95% interval (Student's t with
        G - 1 degrees of freedom).

    Source: Busing, Meijer and van der Leeden 1999 (Delete-m jackknife for unequal m), equation 4.
    """
    from scipy.stats import t  # takes half a second to import, and readers of studies need none

    count, without = len(sizes), np.asarray(left_out)
    parts = sum(sizes) / np.asarray(sizes, np.float64)
    centre = count * value - ((1 - 1 / parts) * without).sum()
    deviations = parts * value - (parts - 1) * without - centre
    error = float(np.sqrt((deviations**2 / (parts - 1)).mean()))
    return error, float(t.ppf(0.5 + CONFIDENCE / 2, count - 1))


def _answer(function: Callable[[Reading], Answer], reading: Reading) -> Answer:
    """Call a measure; its reason where it is undefined."""
    try:
        return function(reading)
    except Undefined as reason:
        return str(reason)


def _moment_answers(reading: Reading, measures: Sequence[str]) -> dict[str, Answer]:
    """Measures that follow from moments."""
    wanted = {name: MOMENT_MEASURES[name] for name in measures if name in MOMENT_MEASURES}
    if not wanted:
        return {}
    try:
        whole = reading.whole
    except Undefined as reason:
        return dict.fromkeys(wanted, str(reason))
    few = whole.samples <= FEWEST_IMAGES_A_FEATURE * reading.sums.width
    notes = {name: BOUNDED for name in SPECTRA if few}
    return _resampled(wanted, whole, reading.parts, lambda part: part.samples, notes)


def _tally_answers(reading: Reading, measures: Sequence[str]) -> dict[str, Answer]:
    """Measures that follow from sums of one number an image."""
    wanted = {name: TALLY_MEASURES[name] for name in measures if name in TALLY_MEASURES}
    tallies = reading.sums.tallies
    return _resampled(
        wanted, tallies.sum(axis=0), lambda: iter(tallies[tallies[:, 0] > 0]), lambda part: part[0]
    )


def _resampled(
    functions: Mapping[str, Callable[[Any], float]],
    whole: Any,
    parts: Callable[[], Iterator[Any]],
    size: Callable[[Any], float],
    notes: Mapping[str, str] = MappingProxyType({}),
) -> dict[str, Answer]:
    """Values of sums, with intervals from the sums without each part, except where noted."""
    values = {name: _value(function, whole) for name, function in functions.items()}
    resampled = [name for name, value in values.items() if not isinstance(value, str)]
    left_out: dict[str, list[float]] = {name: [] for name in resampled if name not in notes}
    sizes = []
    for part in parts() if left_out else ():
        sizes.append(round(float(size(part))))
        rest = whole - part if sizes[-1] < size(whole) else None
        for name, found in left_out.items():
            found.append(math.nan if rest is None else _number(_value(functions[name], rest)))
    return {
        name: value
        if isinstance(value, str)
        else _estimate(value, round(float(size(whole))), left_out.get(name), sizes, notes.get(name))
        for name, value in values.items()
    }


def _value(function: Callable[[Any], float], sums: Any) -> float | str:
    """Value of a measure, or the reason why there is none."""
    try:
        value = function(sums)
    except Undefined as reason:
        return str(reason)
    return value if math.isfinite(value) else NOT_FINITE


def _estimate(
    value: float,
    samples: int,
    left_out: Sequence[float] | None,
    sizes: Sequence[int],
    note: str | None = None,
) -> Estimate:
    """Put a jackknife interval about a value, or say why there is none."""
    if left_out is None:
        return Estimate(value, samples, note=note)
    if len(sizes) < FEWEST_GROUPS:
        note = f"no interval: it needs {FEWEST_GROUPS} groups of images, and there are {len(sizes)}"
        return Estimate(value, samples, note=note)
    if np.isnan(left_out).any():
        return Estimate(value, samples, note=LOST)
    error, factor = jackknife(value, left_out, sizes)
    return Estimate(value, samples, error, value - factor * error, value + factor * error)


def _two_nn(reading: Reading) -> Answer:
    features = reading.sums.sample.features
    found = two_nn_of(nearest_two(features), len(features))
    return Estimate(found.value, found.samples, found.standard_error, found.low, found.high)


def _silhouette(reading: Reading) -> Answer:
    """Silhouette, with the distances to a group's images taken off for the jackknife."""
    sample = reading.sums.sample
    distances = np.sqrt(reading.squared_distances)
    members = np.eye(int(sample.labels.max()) + 1)[sample.labels]
    sums, counts = distances @ members, members.sum(axis=0)
    value = silhouette_of(sums, sample.labels, counts)

    def without(out: npt.NDArray[np.bool_]) -> float:
        rest = sums[~out] - distances[np.ix_(~out, out)] @ members[out]
        return silhouette_of(rest, sample.labels[~out], counts - members[out].sum(axis=0))

    groups = [sample.groups == group for group in np.unique(sample.groups)]
    left_out = [_number(_value(without, out)) for out in groups]
    return _estimate(value, len(sample.labels), left_out, [int(out.sum()) for out in groups])


def _nc3(reading: Reading) -> Answer:
    if reading.weights is None:
        return NO_HEAD
    parts = list(reading.class_parts())
    whole = sum(parts[1:], start=parts[0])
    functions = {"nc3": partial(nc3_of, weights=reading.weights)}
    return _resampled(functions, whole, lambda: iter(parts), lambda part: part.samples)["nc3"]


def _nc4(reading: Reading) -> Answer:
    if reading.predictions is None:
        return NO_CLASSIFIER
    indices = reading.sums.sample.indices.tolist()
    if missing := [index for index in indices if index not in reading.predictions]:
        return f"the classifier's prediction for image {missing[0]} is missing"
    return _share(reading.nearest == np.array([reading.predictions[index] for index in indices]))


def _class_mean_accuracy(reading: Reading) -> Answer:
    return _share(reading.nearest == reading.sums.sample.labels)


def _dead_units(reading: Reading) -> Answer:
    sums = reading.sums
    value = dead_fraction(sums.lowest, sums.highest, sums.samples)
    return Estimate(value, sums.samples, note=NOT_RESAMPLED)


def _share(right: npt.NDArray[np.bool_]) -> Estimate:
    """Share of images with its 95% Wilson interval."""
    from scipy.stats import binomtest  # slow to import, and readers of studies need none

    count, share = len(right), float(right.mean())
    interval = binomtest(int(right.sum()), count).proportion_ci(CONFIDENCE, method="wilson")
    error = math.sqrt(share * (1 - share) / count)
    return Estimate(share, count, error, float(interval.low), float(interval.high))


def _number(value: float | str) -> float:
    """A value, or NaN in place of the reason why there is none."""
    return math.nan if isinstance(value, str) else value


def _traced(sums: Moments) -> Moments:
    """Keep of `second` only its trace, (1, 1)."""
    return Moments(sums.counts, sums.sums, np.array([[np.trace(sums.second)]]))


def _class_sums(rows: FloatArray, labels: IntArray, num_classes: int) -> Moments:
    """Moments of (n, D) with the trace of `second` alone, (1, 1)."""
    members = np.eye(num_classes)[labels]
    return Moments(members.sum(axis=0), members.T @ rows, np.array([[(rows**2).sum()]]))


SPECTRA = ("effective_rank", "participation_ratio")
MOMENT_MEASURES: dict[str, Callable[[Moments], float]] = {
    "effective_rank": effective_rank_of,
    "participation_ratio": participation_ratio_of,
    "class_separability": class_separability_of,
    "nc1": nc1_of,
    "nc2_norms": nc2_norms_of,
    "nc2_angles": nc2_angles_of,
}
# Of the columns TALLIES: images, norms, squared norms, zeros, sparseness, active images.
TALLY_MEASURES: dict[str, Callable[[FloatArray], float]] = {
    "sparsity": lambda tally: float(tally[3] / tally[0]),
    "sparseness": lambda tally: mean_sparseness(tally[4], tally[5]),
    "norm_mean": lambda tally: mean_norm(tally[1], tally[0]),
    "norm_deviation": lambda tally: norm_deviation(tally[1], tally[2], tally[0]),
}
SAMPLE_MEASURES: dict[str, Callable[[Reading], Answer]] = {
    "two_nn": _two_nn,
    "silhouette": _silhouette,
    "nc3": _nc3,
    "nc4": _nc4,
    "class_mean_accuracy": _class_mean_accuracy,
    "dead_units": _dead_units,
}
