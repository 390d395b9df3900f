"""Probes in, words and tables out: what differs significantly, which images a later layer mends."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from analysis.figures_probes import SIGNIFICANT
from analysis.paired import PairedResult
from analysis.probes import ProbeResult
from analysis.study import StudyCheckpoint
from app.texts import percent, plain

CLASSIFIER = "own classifier"
ANYTHING = "anything"
NEVER = -1  # stands for "undefined" among predictions
Bools = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.integer]


@dataclass(frozen=True)
class Gallery:
    """Which images of a layer to show.

    Attributes:
        layer: the layer that reads them first.
        later: a later layer, CLASSIFIER, or ANYTHING for no condition on it.
        mended: images that `layer` gets wrong and `later` right; else the other way round.
        true_class, predicted: only images of this class, and read by `layer` as this one.
    """

    layer: str
    later: str
    mended: bool = True
    true_class: int | None = None
    predicted: int | None = None


def chosen_images(probe: ProbeResult, labels: Ints, gallery: Gallery) -> Ints:
    """Find the images of a gallery, those that `layer` is surest of first.

    Args:
        probe: with predictions (L, N) and confidence (L, N).
        labels: (N,) true classes.
        gallery: which.

    Returns:
        positions among the N images.
    """
    assert probe.predictions is not None
    row = probe.layers.index(gallery.layer)
    here = np.asarray(probe.predictions[row])
    is_chosen = (here != labels) if gallery.mended else (here == labels)
    is_chosen &= here != NEVER
    if gallery.later != ANYTHING:
        later = later_predictions(probe, gallery.later)
        is_chosen &= (later == labels) if gallery.mended else (later != labels)
        is_chosen &= later != NEVER
    if gallery.true_class is not None:
        is_chosen &= labels == gallery.true_class
    if gallery.predicted is not None:
        is_chosen &= here == gallery.predicted
    found = np.flatnonzero(is_chosen)
    if probe.confidence is None:
        return found
    sureness = np.nan_to_num(np.asarray(probe.confidence[row])[found])
    return found[np.argsort(-sureness, kind="stable")]


def later_predictions(probe: ProbeResult, later: str) -> Ints:
    """What a later layer's probe, or the network's own classifier, says of every image: (N,)."""
    assert probe.predictions is not None
    if later == CLASSIFIER:
        assert probe.classifier_predictions is not None
        return np.asarray(probe.classifier_predictions)
    return np.asarray(probe.predictions[probe.layers.index(later)])


def later_choices(probe: ProbeResult, layer: str) -> list[str]:
    """What a layer can be held against: the layers after it, the classifier, or nothing."""
    after = list(probe.layers[probe.layers.index(layer) + 1 :])
    own = [CLASSIFIER] if probe.classifier_predictions is not None else []
    return [*reversed(after), *own, ANYTHING]


def gallery_sentence(gallery: Gallery, classes: Sequence[str], count: int, samples: int) -> str:
    """How many images there are and what they are; markdown-safe."""
    first, second = ("wrong", "right") if gallery.mended else ("right", "wrong")
    parts = [f"**{count:,} of {samples:,} images** that {plain(gallery.layer)} gets {first}"]
    if gallery.later != ANYTHING:
        parts.append(f"and {_later_title(gallery.later)} gets {second}")
    if gallery.true_class is not None:
        parts.append(f"of class {plain(classes[gallery.true_class])}")
    if gallery.predicted is not None:
        parts.append(f"read here as {plain(classes[gallery.predicted])}")
    return f"{parts[0]} {', '.join(parts[1:])}".rstrip()


def _later_title(later: str) -> str:
    return "the network's own classifier" if later == CLASSIFIER else plain(later)


def gallery_csv(
    probe: ProbeResult,
    labels: Ints,
    classes: Sequence[str],
    numbers: Ints | None,
    gallery: Gallery,
) -> str:
    """The images of a gallery as a table; `numbers` (N,) say which of the split they are."""
    assert probe.predictions is not None
    row = probe.layers.index(gallery.layer)
    rows = []
    for place in chosen_images(probe, labels, gallery):
        later = None if gallery.later == ANYTHING else later_predictions(probe, gallery.later)
        rows.append(
            [
                int(place),
                "" if numbers is None else int(numbers[place]),
                classes[labels[place]],
                classes[probe.predictions[row, place]],
                "" if probe.confidence is None else float(probe.confidence[row, place]),
                "" if later is None else classes[later[place]],
            ]
        )
    header = ["image", "number_in_split", "true", f"read_at_{gallery.layer}", "confidence"]
    return table([*header, f"read_at_{gallery.later}".replace(" ", "_")], rows)


def paired_sentence(
    paired: PairedResult, probes: tuple[ProbeResult, ProbeResult], labels: tuple[str, str]
) -> str:
    """Which layers differ, after correction, in whose favour; markdown-safe."""
    tested = np.isfinite(paired.adjusted)
    clear = tested & (np.asarray(paired.adjusted) < SIGNIFICANT)
    layers = np.array(probes[0].layers, dtype=object)[paired.rows]
    count = int(tested.sum())
    if not count:
        return "No layer could be tested."
    head = (
        f"{int(clear.sum())} of {count} layers differ significantly (exact McNemar test on the "
        f"same {paired.samples:,} images, p below {SIGNIFICANT} after Holm's correction for "
        f"{count} tests)"
    )
    parts = []
    for label, is_better in zip(labels, (paired.difference > 0, paired.difference < 0)):
        found = runs(np.flatnonzero(clear & is_better).tolist())
        if found:
            names = [_run_text([str(layers[place]) for place in run]) for run in found]
            parts.append(f"**{plain(label)}** reads more at {listed(names)}")
    rest = "no difference is no proof of equality" if not clear.all() else ""
    return "; ".join(part for part in (head, *parts, rest) if part) + "."


def unlike_sentence(
    first: StudyCheckpoint, second: StudyCheckpoint, probes: tuple[ProbeResult, ProbeResult]
) -> str:
    """What sets two networks apart beside their rules; empty where that is nothing; plain."""
    parts = [
        f"{what} ({a} and {b})"
        for what, a, b in (
            ("architecture", first.architecture, second.architecture),
            ("training data", first.dataset, second.dataset),
        )
        if a != b
    ]
    if not parts:
        return ""
    counts = tuple(len(probe.layers) for probe in probes)
    depth = ""
    if counts[0] != counts[1]:
        depth = (
            f" Of their {counts[0]} and {counts[1]} layers, those at the same relative depth are "
            "tested against each other."
        )
    return (
        f"These networks differ in {' and in '.join(parts)}: the differences are not of the rules "
        f"alone.{depth}"
    )


def runs(places: Sequence[int]) -> list[list[int]]:
    """Split ascending places into runs; those of two are no saving and stay apart."""
    found: list[list[int]] = []
    for place in places:
        if found and place == found[-1][-1] + 1:
            found[-1].append(place)
        else:
            found.append([place])
    return [
        part for run in found for part in ([run] if len(run) > 2 else [[place] for place in run])
    ]


def _run_text(layers: Sequence[str]) -> str:
    """A layer, or the first and last of a run."""
    if len(layers) == 1:
        return plain(layers[0])
    return f"{plain(layers[0])} to {plain(layers[-1])} ({len(layers)} layers)"


def listed(names: Sequence[str]) -> str:
    """Names as a sentence lists them."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def score_rows(probes: Sequence[ProbeResult]) -> list[dict[str, str]]:
    """All scores as a table to read: one line a checkpoint and layer."""
    return [
        {
            "Checkpoint": probe.model,
            "Layer": layer,
            "Linear probe": _value(probe, index, "accuracy", "low", "high"),
            "Nearest neighbours": _value(
                probe, index, "neighbours_accuracy", "neighbours_low", "neighbours_high"
            ),
            "Calibration error": _number(probe.calibration_error, index, percent),
            "Cross-entropy": _number(probe.cross_entropy, index, "{:.3f}".format),
        }
        for probe in probes
        for index, layer in enumerate(probe.layers)
    ]


def _value(probe: ProbeResult, index: int, *names: str) -> str:
    """A score with its interval, or why there is none."""
    value, low, high = (getattr(probe, name) for name in names)
    if value is None:
        return "not kept"
    if not math.isfinite(value[index]):
        return f"undefined: {probe.undefined.get(probe.layers[index], 'no reason was kept')}"
    if low is None or high is None or not math.isfinite(low[index]):
        return percent(value[index])
    return f"{percent(value[index])} ({percent(low[index])} to {percent(high[index])})"


def _number(values: npt.NDArray[np.floating] | None, index: int, form: object) -> str:
    """A score without an interval."""
    if values is None:
        return "not kept"
    return form(values[index]) if math.isfinite(values[index]) else "undefined"  # type: ignore[operator]


SCORE_FIELDS = (
    *("accuracy", "low", "high", "neighbours_accuracy", "neighbours_low", "neighbours_high"),
    *("calibration_error", "cross_entropy"),
)


def scores_csv(probes: Sequence[ProbeResult]) -> str:
    """All scores as a table to compute with; undefined values stay empty."""
    rows = [
        [
            probe.model,
            layer,
            *(_cell(getattr(probe, name), index) for name in SCORE_FIELDS),
            probe.undefined.get(layer, ""),
        ]
        for probe in probes
        for index, layer in enumerate(probe.layers)
    ]
    return table(["model", "layer", *SCORE_FIELDS, "reason"], rows)


def classes_csv(probe: ProbeResult, classes: Sequence[str]) -> str:
    """Recall and confusions of every layer as a table: one line a layer and pair of classes."""
    assert probe.confusion is not None
    assert probe.recall is not None
    rows = [
        [
            probe.model,
            layer,
            classes[true],
            classes[read],
            int(count) if (count := probe.confusion[index, true, read]) >= 0 else "",
            _cell(probe.recall[index], true),
        ]
        for index, layer in enumerate(probe.layers)
        for true in range(len(classes))
        for read in range(len(classes))
    ]
    return table(["model", "layer", "true", "read_as", "images", "recall_of_true"], rows)


def paired_csv(paired: PairedResult, probes: tuple[ProbeResult, ProbeResult]) -> str:
    """The paired comparison as a table: one line a pair of layers."""
    numbers = ("difference", "low", "high", "only_a", "only_b", "p_values", "adjusted")
    rows = [
        [
            probes[0].model,
            probes[0].layers[paired.rows[index]],
            probes[1].model,
            probes[1].layers[paired.columns[index]],
            *(_cell(getattr(paired, name), index) for name in numbers),
            paired.samples,
        ]
        for index in range(len(paired.rows))
    ]
    header = ["model_a", "layer_a", "model_b", "layer_b", "difference", "low", "high"]
    return table([*header, "only_a", "only_b", "p_value", "p_value_holm", "images"], rows)


def _cell(values: npt.NDArray[np.generic] | None, index: int) -> str:
    """A number exactly as it is; empty where undefined."""
    if values is None:
        return ""
    value = values[index].item()
    return repr(value) if math.isfinite(value) else ""


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Rows as CSV."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return stream.getvalue()
