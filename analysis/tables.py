"""Results as tables of text, for a terminal."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from analysis.cka_result import CKAPair, CKAResult
from analysis.geometry import GeometryResult
from analysis.geometry_measures import GEOMETRY_MEASURES
from analysis.probes import ProbeResult
from analysis.study import PairedProbes, PairSimilarity, Study


def heading(study: Study) -> str:
    """Say in a line what was measured on what."""
    question = study.question
    return (
        f"{' and '.join(checkpoint.name for checkpoint in question.checkpoints)}: "
        f"{question.dataset_title}, {question.split} split, n = {question.samples:,}"
    )


def pairs(result: CKAResult) -> list[CKAPair]:
    """Every two different models, or the only one with itself."""
    models = result.models
    chosen = [(a, b) for index, a in enumerate(models) for b in models[index + 1 :]]
    return [result.pair(a, b) for a, b in chosen or [(models[0], models[0])]]


def cka_table(pair: CKAPair) -> str:
    """Lay out, for each layer of A, its CKA at the same depth of B and with its best match."""
    rows = [
        (
            f"layer of {pair.model_a}",
            "same depth",
            "CKA",
            "95% interval",
            f"best match in {pair.model_b}",
            "CKA",
            "95% interval",
        )
    ]
    matches = zip(pair.rows, pair.same_depth(), pair.best_match(), strict=True)
    for row, (name, same, best) in enumerate(matches):
        rows.append((name, *_cell(pair, row, int(same)), *_cell(pair, row, int(best))))
    lines = [f"linear CKA, {pair.model_a} and {pair.model_b}", aligned(rows)]
    lines += [f"undefined: {key}, because {reason}" for key, reason in pair.undefined.items()]
    lines += [f"note: {pair.interval_note}"] if pair.interval_note else []
    return "\n".join(lines)


def _cell(pair: CKAPair, row: int, column: int) -> tuple[str, str, str]:
    """Name, value and interval of one pair of layers."""
    if column < 0:
        return "-", "-", "-"
    value, low, high = (part[row, column] for part in (pair.values, pair.low, pair.high))
    interval = "-" if np.isnan(low) else f"{low:.3f} to {high:.3f}"
    return pair.columns[column], "-" if np.isnan(value) else f"{value:.3f}", interval


def probe_table(results: Sequence[ProbeResult]) -> str:
    """Lay out accuracies, a row a layer and a column a checkpoint."""
    # The deepest network first, so that the layers of the others fall into its order.
    by_depth = sorted(results, key=lambda result: -len(result.layers))
    layers = list(dict.fromkeys(layer for result in by_depth for layer in result.layers))
    rows = [("layer", *(result.model for result in results))]
    for layer in layers:
        rows.append((layer, *(_accuracy(result, layer) for result in results)))
    classifiers = [
        _fraction(result.classifier_accuracy, result.classifier_low, result.classifier_high)
        for result in results
    ]
    rows += [("classifier", *classifiers), ("chance", *(f"{r.chance:.3f}" for r in results))]
    count = results[0].train_samples
    title = f"linear probes, accuracy with 95% interval, from {count:,} training images"
    lines = [title, aligned(rows)]
    for result in results:
        for key, reason in result.undefined.items():
            lines.append(f"undefined: {result.model}/{key}, because {reason}")
    return "\n".join(lines)


def _accuracy(result: ProbeResult, layer: str) -> str:
    """Accuracy of one layer; empty where the model has no such layer."""
    if layer not in result.layers:
        return ""
    index = result.layers.index(layer)
    return _fraction(result.accuracy[index], result.low[index], result.high[index])


def _fraction(value: float | None, low: float | None, high: float | None) -> str:
    if value is None or low is None or high is None or np.isnan(value):
        return "-"
    return f"{value:.3f} ({low:.3f} to {high:.3f})"


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Put texts into columns, two spaces apart."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True))
        for row in rows
    ]
    return "\n".join(line.rstrip() for line in lines)


def similarity_table(pair: PairSimilarity) -> str:
    """Lay out, for each layer of A, a measure's value at the same depth of B and all over B."""
    result = pair.result
    alike = np.nanmin if "lower" in result.direction.split()[0] else np.nanmax
    columns = np.rint(np.linspace(0, len(result.columns) - 1, len(result.rows))).astype(int)
    rows = [
        (
            f"layer of {pair.model_a}",
            f"same depth of {pair.model_b}",
            "value",
            "95% interval",
            "chance",
            "most alike",
        )
    ]
    for row, (name, column) in enumerate(zip(result.rows, columns, strict=True)):
        values, low = result.values[row], result.low[row, column]
        interval = "-" if np.isnan(low) else f"{low:.3f} to {result.high[row, column]:.3f}"
        best = "-" if np.isnan(values).all() else f"{alike(values):.3f}"
        numbers = _number(values[column]), interval, _number(result.chance[row, column])
        rows.append((name, result.columns[column], *numbers, best))
    lines = [f"{result.title}, {pair.model_a} and {pair.model_b}; {result.direction}"]
    lines += [aligned(rows)]
    lines += [f"undefined: {key}, because {reason}" for key, reason in result.undefined.items()]
    return "\n".join([*lines, *(f"note: {note}" for note in result.notes)])


def paired_table(pair: PairedProbes, probes: Sequence[ProbeResult]) -> str:
    """Lay out the differences of two models' probes, a row a pair of layers."""
    layers = {probe.model: probe.layers for probe in probes}
    result = pair.result
    rows = [("layers", "accuracy difference", "95% interval", "p (McNemar)", "p (Holm)")]
    for index, (row, column) in enumerate(zip(result.rows, result.columns, strict=True)):
        names = dict.fromkeys((layers[pair.model_a][row], layers[pair.model_b][column]))
        interval = f"{result.low[index]:+.3f} to {result.high[index]:+.3f}"
        tests = f"{result.p_values[index]:.2g}", f"{result.adjusted[index]:.2g}"
        difference = f"{result.difference[index]:+.3f}"
        rows.append((" and ".join(names), difference, interval, *tests))
    return f"probes of {pair.model_a} less those of {pair.model_b}\n{aligned(rows)}"


def geometry_table(result: GeometryResult) -> str:
    """Lay out a model's geometry, a row a layer and a column a measure."""
    titles = [GEOMETRY_MEASURES[name].title for name in result.measures]
    rows = [("layer", *titles)]
    for index, layer in enumerate(result.layers):
        rows.append((layer, *(_number(result.values[name][index]) for name in result.measures)))
    lines = [f"geometry of {result.model}, {result.samples:,} images", aligned(rows)]
    lines += [f"undefined: {key}, because {why}" for key, why in _first_of_each(result.undefined)]
    return "\n".join(lines)


def _first_of_each(reasons: dict[str, str]) -> list[tuple[str, str]]:
    """One key of each reason, with how many more it holds for."""
    keys: dict[str, list[str]] = {}
    for key, reason in reasons.items():
        keys.setdefault(reason, []).append(key)
    return [
        (found[0] + (f" and {len(found) - 1} more" if len(found) > 1 else ""), reason)
        for reason, found in keys.items()
    ]


def _number(value: float) -> str:
    return "-" if np.isnan(value) else f"{value:.3f}"


def study_tables(study: Study) -> str:
    """All tables of a study, under a line that says what was measured."""
    tables = [heading(study)]
    if study.provenance.stopped:
        tables[0] += f"; {study.provenance.stopped}"
    if study.cka is not None:
        tables += [cka_table(pair) for pair in pairs(study.cka)]
    tables += [similarity_table(pair) for pair in study.similarity]
    tables += [probe_table(study.probes)] if study.probes else []
    tables += [paired_table(pair, study.probes) for pair in study.paired]
    tables += [geometry_table(result) for result in study.geometry]
    return "\n\n".join(tables)
