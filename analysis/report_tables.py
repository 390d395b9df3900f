"""The numbers of a report as tables, which need no JavaScript: one line a layer.

Results in, HTML tables out; undefined values are a dash, and the report says elsewhere why.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from analysis.cka_result import CKAPair
from analysis.figure_style import FloatArray, rule_title
from analysis.geometry import GeometryResult
from analysis.geometry_measures import GEOMETRY_MEASURES
from analysis.paired import PairedResult, matched_depth
from analysis.probe_scores import wilson_interval
from analysis.probes import ProbeResult
from analysis.report_html import Markup, element, joined, table
from analysis.similarity import SimilarityResult
from analysis.study import Study, StudyCheckpoint

DASH = "\N{EN DASH}"
MEASURES_A_TABLE = 4
ROLE_TITLES = {"": "compared", "ceiling": "ceiling", "floor": "floor"}


def number(value: object, form: str = ".3f") -> str:
    """A number as it stands in a table; a dash where there is none."""
    if value is None or not math.isfinite(float(value)):  # type: ignore[arg-type]
        return DASH
    return f"{value:{form}}"


def interval(low: float | None, high: float | None, form: str = ".3f") -> str:
    """Both ends of an interval; a dash where there is none."""
    if low is None or high is None or not (math.isfinite(low) and math.isfinite(high)):
        return DASH
    return f"{low:{form}} to {high:{form}}"


# ------------------------------------------------------------------------------------- checkpoints


def checkpoint_table(study: Study) -> Markup:
    """What was compared: rule, data, accuracy with interval; and each file, and how it read."""
    header = [
        "checkpoint",
        "role",
        "rule",
        "architecture",
        "trained on",
        "accuracy",
        "95% interval",
        "epochs",
        "seed",
    ]
    entries = study.question.checkpoints
    rows = [_checkpoint_row(entry) for entry in entries]
    files = [[entry.name, reading(entry), _checksum(entry)] for entry in entries]
    return joined(
        [
            table("", header, rows, wide=("rule", "trained on", "accuracy")),
            table(
                "Files, and how the images were read",
                ["checkpoint", "images", "sha256"],
                files,
                wide=("images", "sha256"),
            ),
        ]
    )


def reading(entry: StudyCheckpoint) -> str:
    """How a network read the images; a dash in studies that do not say."""
    found = entry.preprocessing
    if not found:
        return DASH
    size = " x ".join(map(str, found.get("input_size", ())))
    mean, std = (
        "(" + ", ".join(f"{value:.4g}" for value in found.get(name, ())) + ")"
        for name in ("mean", "std")
    )
    assumed = "; assumed, as neither file nor user says" if found.get("assumed") else ""
    return f"{size}, {found.get('channel_order', 'RGB')}, mean {mean}, std {std}{assumed}"


def _checksum(entry: StudyCheckpoint) -> Markup:
    """The whole checksum, which wraps."""
    return element("code", entry.sha256)


def _checkpoint_row(entry: StudyCheckpoint) -> list[object]:
    accuracy, ends = DASH, DASH
    if entry.accuracy is not None:
        value, samples = entry.accuracy["value"], entry.accuracy["samples"]
        accuracy = f"{value:.1%} of {samples:,} {entry.accuracy['split']} images"
        if samples > 0 and 0 <= value <= 1:
            ends = interval(*wilson_interval(round(value * samples), samples), ".1%")
    given = {name: value for name, value in entry.rule_options.items() if value is not None}
    options = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in given.items())
    rule = rule_title(entry.rule) + (f" ({options})" if options else "")
    role = ROLE_TITLES.get(entry.role, entry.role)
    epochs, seed = ("not said" if value is None else value for value in (entry.epoch, entry.seed))
    description = [rule, entry.architecture, entry.dataset, accuracy, ends]
    return [entry.name, role, *description, epochs, seed]


# -------------------------------------------------------------------------------------- similarity


def cka_table(pair: CKAPair, references: Mapping[str, CKAPair]) -> Markup:
    """For each layer of A its CKA at the same depth of B and with its best match.

    References with the same layers have a column each.
    """
    known = {role: other for role, other in references.items() if other.rows == pair.rows}
    header = [
        f"layer of {pair.model_a}",
        f"same depth of {pair.model_b}",
        "CKA",
        "95% interval",
        "null level",
        *known,
        "best match",
        "CKA of it",
        "its interval",
    ]
    rows = []
    matches = zip(pair.rows, pair.same_depth().tolist(), pair.best_match().tolist(), strict=True)
    for row, (name, same, best) in enumerate(matches):
        null = None if pair.null_levels is None else pair.null_levels[row, same]
        levels = [other.values[row, other.same_depth()[row]] for other in known.values()]
        rows.append(
            [
                name,
                *_cell(pair, row, same),
                number(null),
                *map(number, levels),
                *_cell(pair, row, best),
            ]
        )
    return table(f"CKA of {pair.model_a} and {pair.model_b}", header, rows)


def _cell(pair: CKAPair, row: int, column: int) -> list[str]:
    """Name, value and interval of one pair of layers."""
    if column < 0:
        return [DASH] * 3
    cell = (row, column)
    ends = interval(pair.low[cell], pair.high[cell])
    return [pair.columns[column], number(pair.values[cell]), ends]


def map_table(caption: str, rows: Sequence[str], columns: Sequence[str], values: object) -> Markup:
    """A whole map as numbers (L_a, L_b)."""
    numbers = np.asarray(values, dtype=np.float64)
    body = [[name, *map(number, numbers[index])] for index, name in enumerate(rows)]
    return table(caption, ["layer", *columns], body)


def similarity_table(result: SimilarityResult, model_a: str, model_b: str) -> Markup:
    """For each layer of A another measure at the same depth of B."""
    columns = matched_depth(len(result.rows), len(result.columns)).tolist()
    header = [f"layer of {model_a}", f"same depth of {model_b}", result.title]
    rows = [
        [
            name,
            result.columns[column],
            number(result.values[row, column]),
            interval(result.low[row, column], result.high[row, column]),
            number(result.chance[row, column]),
        ]
        for row, (name, column) in enumerate(zip(result.rows, columns, strict=True))
    ]
    caption = f"{result.title} of {model_a} and {model_b} ({result.direction})"
    return table(caption, [*header, "95% interval", "chance level"], rows)


# ------------------------------------------------------------------------------------------ probes


def probe_table(probe: ProbeResult) -> Markup:
    """All scores of the probes of one checkpoint."""
    columns: dict[str, list[str]] = {
        "accuracy": [number(value, ".1%") for value in probe.accuracy],
        "95% interval": _intervals(probe.low, probe.high),
    }
    if probe.neighbours_accuracy is not None:
        title = f"{probe.num_neighbours or ''} nearest neighbours".strip()
        columns[title] = [number(value, ".1%") for value in probe.neighbours_accuracy]
        if probe.neighbours_low is not None and probe.neighbours_high is not None:
            columns["their interval"] = _intervals(probe.neighbours_low, probe.neighbours_high)
    if probe.auxiliary_accuracy is not None:
        found = dict(zip(probe.auxiliary_layers, probe.auxiliary_accuracy, strict=True))
        columns["auxiliary network"] = [number(found.get(name), ".1%") for name in probe.layers]
    optional = {
        "cross-entropy": (probe.cross_entropy, ".3f"),
        "calibration error": (probe.calibration_error, ".1%"),
        "penalty": (probe.penalties, "g"),
    }
    for title, (values, form) in optional.items():
        if values is not None:
            columns[title] = [number(value, form) for value in values]
    rows = [
        [name, *(texts[index] for texts in columns.values())]
        for index, name in enumerate(probe.layers)
    ]
    ends = interval(probe.classifier_low, probe.classifier_high, ".1%")
    rest = [DASH] * (len(columns) - 2)
    rows.append(["own classifier", number(probe.classifier_accuracy, ".1%"), ends, *rest])
    rows.append(["chance", number(probe.chance, ".1%"), DASH, *rest])
    caption = (
        f"Probes of {probe.model}: {probe.train_samples:,} training and {probe.test_samples:,} "
        "test images"
    )
    return table(caption, ["layer", *columns], rows)


def _intervals(low: FloatArray, high: FloatArray) -> list[str]:
    """Intervals of fractions."""
    return [interval(*ends, ".1%") for ends in zip(low, high, strict=True)]


def recall_table(probe: ProbeResult, classes: Sequence[str]) -> Markup:
    """Recall of every class by layer."""
    assert probe.recall is not None
    rows = [
        [name, *(number(value, ".1%") for value in probe.recall[index])]
        for index, name in enumerate(probe.layers)
    ]
    return table(f"Recall of {probe.model}'s probes by class", ["layer", *classes], rows)


def paired_table(paired: PairedResult, probes: tuple[ProbeResult, ProbeResult]) -> Markup:
    """Differences of two networks' probes, with tests."""
    first, second = probes
    header = [
        f"layer of {first.model}",
        f"layer of {second.model}",
        "difference",
        "95% interval",
        f"only {first.model} right",
        f"only {second.model} right",
        "p (McNemar)",
        "p (Holm)",
    ]
    rows = [
        [
            first.layers[row],
            second.layers[column],
            number(paired.difference[index], "+.1%"),
            interval(paired.low[index], paired.high[index], "+.1%"),
            f"{paired.only_a[index]:,}",
            f"{paired.only_b[index]:,}",
            number(paired.p_values[index], ".2g"),
            number(paired.adjusted[index], ".2g"),
        ]
        for index, (row, column) in enumerate(zip(paired.rows, paired.columns, strict=True))
    ]
    caption = f"Probes of {first.model} minus {second.model}, n = {paired.samples:,}"
    return table(caption, header, rows)


# ---------------------------------------------------------------------------------------- geometry


def geometry_tables(results: Sequence[GeometryResult]) -> Markup:
    """Measures by layer, with intervals, a few in a table, so that it fits a page."""
    found = []
    for result in results:
        known = set(result.values) & set(result.low) & set(result.high)
        measures = [
            name
            for name in result.measures
            if name in known and np.isfinite(result.values[name]).any()
        ]
        for start in range(0, len(measures), MEASURES_A_TABLE):
            found.append(_geometry_table(result, measures[start : start + MEASURES_A_TABLE]))
    return joined(found)


def _geometry_table(result: GeometryResult, measures: Sequence[str]) -> Markup:
    """Some measures of one model by layer."""
    titles = [
        GEOMETRY_MEASURES[name].title if name in GEOMETRY_MEASURES else name for name in measures
    ]
    rows = []
    for index, layer in enumerate(result.layers):
        cells = [
            (result.values[name][index], result.low[name][index], result.high[name][index])
            for name in measures
        ]
        rows.append([layer, *(_with_ends(*cell) for cell in cells)])
    caption = f"Geometry of {result.model}, n = {result.samples:,} (95% intervals in brackets)"
    return table(caption, ["layer", *titles], rows)


def _with_ends(value: float, low: float, high: float) -> str:
    """A number with its interval in brackets."""
    if not (math.isfinite(low) and math.isfinite(high)):
        return number(value, ".4g")
    return f"{number(value, '.4g')} ({interval(low, high, '.4g')})"
