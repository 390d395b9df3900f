"""Probes in, plotly figures out: accuracy by depth, recall, confusion, scores, paired differences.

One function a result, no mathematics and no torch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import plotly.graph_objects as go

from analysis.figure_maps import Axis, Colours, draw_map
from analysis.figure_style import (
    FAINT,
    HEIGHT,
    LOW_HEIGHT,
    NEUTRAL,
    NO_REASON,
    FloatArray,
    Style,
    add_curve,
    checkpoint_label,
    checkpoint_styles,
    depth_axis,
    gapped,
    lay_out,
    mark_stages,
    positions,
    text,
    with_interval,
)
from analysis.paired import PairedResult
from analysis.probes import ProbeResult

SIGNIFICANT = 0.05
PERCENT = {"tickformat": ".0%", "fixedrange": True}


@dataclass(frozen=True)
class Score:
    """A score of probes by depth: its name, what its axis and hover say, in which form."""

    title: str
    axis: str
    form: str


SCORES: dict[str, Score] = {
    "cross_entropy": Score("cross-entropy", "cross-entropy, nats", ".3f"),
    "calibration_error": Score("calibration error", "calibration error", ".1%"),
}


def probe_curves(
    probes: Sequence[ProbeResult], rules: Mapping[str, str], *, title: str
) -> go.Figure:
    """What a linear probe reads from every layer of any number of checkpoints.

    Args:
        probes: Accuracies (L,) with Wilson intervals, one result a checkpoint.
        rules: The rule by checkpoint name, for colour, dash and marker.
        title: What is shown, with the number of images.

    Returns:
        A curve with its 95% band for each checkpoint, a dotted line at the accuracy of the
        checkpoint's own classifier, and a line at chance; where the probes have them, a thin dotted
        curve of nearest neighbours and large open markers of the auxiliary networks.
    """
    styles = checkpoint_styles({probe.model: rules.get(probe.model, "") for probe in probes})
    figure = go.Figure()
    places = positions([probe.layers for probe in probes])
    for probe, xs in zip(probes, places, strict=True):
        style = styles[probe.model]
        label = checkpoint_label(rules.get(probe.model, ""), probe.model)
        hover = [_probe_text(probe, index, label) for index in range(len(probe.layers))]
        bounds = (probe.accuracy, probe.low, probe.high)
        add_curve(figure, xs, bounds, style, name=text(label), hover=hover)
        _classifier_line(figure, probe, xs, style, label)
        _neighbours_curve(figure, probe, xs, style, label)
        _auxiliary_marks(figure, probe, xs, style, label)
    _keys(figure, probes)
    _chance_lines(figure, probes)
    lay_out(figure, title)
    figure.update_yaxes(title="accuracy", range=[0, 1.02], **PERCENT)
    figure.update_xaxes(**depth_axis([probe.layers for probe in probes]))
    mark_stages(figure, [probe.layers for probe in probes])
    return figure


def _probe_text(probe: ProbeResult, index: int, label: str) -> str:
    """What hovering over a point of a probe curve says."""
    name = probe.layers[index]
    layer = f"<b>{text(name)}</b>, {text(label)}<br>"
    if not math.isfinite(probe.accuracy[index]):
        return f"{layer}undefined: {text(probe.undefined.get(name, NO_REASON))}"
    value = with_interval(probe.accuracy[index], probe.low[index], probe.high[index], form=".1%")
    return (
        f"{layer}probe {value}<br>"
        f"n = {probe.test_samples:,} test, {probe.train_samples:,} training images"
    )


def _classifier_line(
    figure: go.Figure, probe: ProbeResult, xs: Sequence[float], style: Style, label: str
) -> None:
    """A dotted line at the accuracy of the checkpoint's own classifier."""
    if probe.classifier_accuracy is None:
        return
    value = f"{probe.classifier_accuracy:.1%}"
    if probe.classifier_low is not None and probe.classifier_high is not None:
        value = with_interval(
            probe.classifier_accuracy, probe.classifier_low, probe.classifier_high, form=".1%"
        )
    figure.add_trace(
        go.Scatter(
            x=[xs[0], xs[-1]],
            y=[probe.classifier_accuracy] * 2,
            mode="lines",
            line={"color": style.colour, "width": 1.25, "dash": "dot"},
            hovertext=f"own classifier of {text(label)}<br>{value}",
            hoverinfo="text",
            legendgroup=text(label),
            showlegend=False,
        )
    )


def _neighbours_curve(
    figure: go.Figure, probe: ProbeResult, xs: Sequence[float], style: Style, label: str
) -> None:
    """A thin dotted curve with small markers: the probe without a fit."""
    if probe.neighbours_accuracy is None:
        return
    low, high = probe.neighbours_low, probe.neighbours_high
    hover = []
    for index, name in enumerate(probe.layers):
        value = probe.neighbours_accuracy[index]
        ends = (math.nan, math.nan) if low is None or high is None else (low[index], high[index])
        hover.append(
            f"<b>{text(name)}</b>, {text(label)}<br>{_neighbours_name(probe)} "
            + (with_interval(value, *ends, form=".1%") if math.isfinite(value) else "undefined")
        )
    figure.add_trace(
        go.Scatter(
            x=list(xs),
            y=gapped(probe.neighbours_accuracy),
            mode="lines+markers",
            line={"color": style.colour, "width": 1, "dash": "dot"},
            marker={"color": style.colour, "symbol": "circle", "size": 3},
            hovertext=hover,
            hoverinfo="text",
            legendgroup=text(label),
            showlegend=False,
        )
    )


def neighbours_curves(
    probes: Sequence[ProbeResult], rules: Mapping[str, str], *, title: str
) -> go.Figure:
    """What the nearest training images say of the class, at every layer: a probe without a fit.

    Args:
        probes: One result a checkpoint; those without nearest neighbours are left out.
        rules: The rule by checkpoint name, for colour, dash and marker.
        title: What is shown, with the number of images.

    Returns:
        A curve with its 95% band for each checkpoint, a dotted line at the accuracy of the
        checkpoint's own classifier, and a line at chance.
    """
    styles = checkpoint_styles({probe.model: rules.get(probe.model, "") for probe in probes})
    probes = [probe for probe in probes if probe.neighbours_accuracy is not None]
    layer_lists = [probe.layers for probe in probes]
    figure = go.Figure()
    for probe, xs in zip(probes, positions(layer_lists) if probes else [], strict=True):
        label = checkpoint_label(rules.get(probe.model, ""), probe.model)
        missing = np.full(len(probe.layers), math.nan)
        values, low, high = (
            missing if part is None else np.asarray(part, dtype=np.float64)
            for part in (probe.neighbours_accuracy, probe.neighbours_low, probe.neighbours_high)
        )
        hover = [
            f"<b>{text(name)}</b>, {text(label)}<br>"
            + (
                f"{_neighbours_name(probe)} {with_interval(value, *ends, form='.1%')}<br>"
                f"n = {probe.test_samples:,} test, {probe.train_samples:,} training images"
                if math.isfinite(value)
                else f"undefined: {text(probe.undefined.get(name, NO_REASON))}"
            )
            for name, value, *ends in zip(probe.layers, values, low, high, strict=True)
        ]
        style = styles[probe.model]
        add_curve(figure, xs, (values, low, high), style, name=text(label), hover=hover)
        _classifier_line(figure, probe, xs, style, label)
    _chance_lines(figure, probes)
    lay_out(figure, title)
    figure.update_yaxes(title="accuracy", range=[0, 1.02], **PERCENT)
    figure.update_xaxes(**depth_axis(layer_lists))
    mark_stages(figure, layer_lists)
    return figure


def _neighbours_name(probe: ProbeResult) -> str:
    """How the probe without a fit is called."""
    count = probe.num_neighbours
    return f"{count} nearest neighbours" if count else "nearest neighbours"


def _auxiliary_marks(
    figure: go.Figure, probe: ProbeResult, xs: Sequence[float], style: Style, label: str
) -> None:
    """Large open markers with intervals: what the checkpoint's own auxiliary networks get right."""
    known = [name for name in probe.auxiliary_layers if name in probe.layers]
    if probe.auxiliary_accuracy is None or not known:
        return
    chosen = [probe.auxiliary_layers.index(name) for name in known]
    values = np.asarray(probe.auxiliary_accuracy, dtype=np.float64)[chosen]
    low, high = (
        np.full(len(chosen), math.nan) if part is None else np.asarray(part)[chosen]
        for part in (probe.auxiliary_low, probe.auxiliary_high)
    )
    hover = [
        f"<b>{text(name)}</b>, {text(label)}<br>its auxiliary network "
        + (with_interval(value, *ends, form=".1%") if math.isfinite(value) else "undefined")
        for name, value, *ends in zip(known, values, low, high, strict=True)
    ]
    symbol = style.symbol.removesuffix("-open")
    figure.add_trace(
        go.Scatter(
            x=[xs[probe.layers.index(name)] for name in known],
            y=gapped(values),
            error_y=_whiskers(values, low, high, style.colour),
            mode="markers",
            marker={
                "color": style.colour,
                "symbol": f"{symbol}-open",
                "size": 12,
                "line": {"width": 1.5},
            },
            hovertext=hover,
            hoverinfo="text",
            legendgroup=text(label),
            showlegend=False,
        )
    )


def _whiskers(
    values: FloatArray, low: FloatArray, high: FloatArray, colour: str
) -> dict[str, object]:
    """Intervals of single points."""
    return {
        "type": "data",
        "symmetric": False,
        "array": gapped(high - values),
        "arrayminus": gapped(values - low),
        "color": colour,
        "thickness": 1,
        "width": 3,
    }


def _keys(figure: go.Figure, probes: Sequence[ProbeResult]) -> None:
    """Grey entries of the legend for what is not a checkpoint's curve."""
    with_neighbours = [probe for probe in probes if probe.neighbours_accuracy is not None]
    if with_neighbours:
        line = {"color": NEUTRAL, "width": 1, "dash": "dot"}
        marker = {"color": NEUTRAL, "symbol": "circle", "size": 3}
        _key(figure, _neighbours_name(with_neighbours[0]), "lines+markers", line, marker)
    if any(probe.auxiliary_accuracy is not None and probe.auxiliary_layers for probe in probes):
        marker = {"color": NEUTRAL, "symbol": "circle-open", "size": 12}
        _key(figure, "auxiliary networks", "markers", {"color": NEUTRAL}, marker)


def _key(
    figure: go.Figure,
    name: str,
    mode: str,
    line: Mapping[str, object],
    marker: Mapping[str, object],
) -> None:
    """An entry of the legend without points."""
    figure.add_trace(
        go.Scatter(
            x=[None], y=[None], mode=mode, name=name, line=line, marker=marker, hoverinfo="skip"
        )
    )


def _chance_lines(figure: go.Figure, probes: Sequence[ProbeResult]) -> None:
    """A thin line at chance; checkpoints probed on the same data share one."""
    for chance in sorted({float(probe.chance) for probe in probes}):
        _level_line(figure, chance, f"chance, {chance:.1%}")


def _level_line(figure: go.Figure, level: float, note: str) -> None:
    """A thin line across, with what it means."""
    figure.add_hline(
        y=level,
        line={"color": FAINT, "width": 1.25},
        annotation={"text": note, "font": {"size": 12}},
        annotation_position="top right",
    )


# ---------------------------------------------------------------------------------- classes, scores


def recall_map(
    probe: ProbeResult,
    classes: Sequence[str],
    *,
    title: str,
    layer: str | None = None,
    true_class: int | None = None,
) -> go.Figure:
    """How many images of each class a probe of each layer finds, as a map of classes and layers.

    Args:
        probe: With `recall` (L, K).
        classes: Names of the K classes.
        title: What is shown, with the number of images.
        layer: Name of a layer whose column is framed.
        true_class: Index of the class whose cell alone is framed in it.

    Returns:
        Classes in rows, from the top, and layers in columns. The second trace holds one point a
        cell: x is the layer's index, y is K - 1 minus that of the class.

    Raises:
        ValueError: The probes have no recall, as those of old studies.
    """
    if probe.recall is None:
        raise ValueError("these probes have no recall by class; make the study again")
    # A map starts at the bottom, a list of classes is read from the top.
    recall = np.asarray(probe.recall, dtype=np.float64).T[::-1]
    names = list(reversed(classes))

    def hover(row: int, column: int) -> str:
        layer = probe.layers[column]
        heading = f"<b>{text(names[row])}</b> at <b>{text(layer)}</b><br>"
        if not math.isfinite(recall[row, column]):
            reason = probe.undefined.get(layer, "there are no test images of this class")
            return f"{heading}undefined: {text(reason)}"
        low, high = (
            math.nan if part is None else part[column, -1 - row]
            for part in (probe.recall_low, probe.recall_high)
        )
        return f"{heading}recall {with_interval(recall[row, column], low, high, form='.1%')}"

    figure = draw_map(
        recall,
        hover,
        title=title,
        rows=Axis("true class", names, by_stage=False),
        columns=Axis("layer", probe.layers),
        colours=Colours("recall", tick_form=".0%"),
        square=False,
    )
    if layer in probe.layers:
        rows = (0, len(classes) - 1)
        if true_class is not None:
            rows = (len(classes) - 1 - true_class,) * 2
        _outline(figure, rows, (probe.layers.index(layer),) * 2)
    return figure.update_layout(margin_l=96, height=_tall(len(classes)))


def confusion_map(
    probe: ProbeResult,
    layer: str,
    classes: Sequence[str],
    *,
    title: str,
    true_class: int | None = None,
    predicted: int | None = None,
) -> go.Figure:
    """Which classes the probe of one layer takes for which.

    Args:
        probe: With `confusion` (L, K, K).
        layer: Name of the layer.
        classes: Names of the K classes.
        title: What is shown, with the number of images.
        true_class: Index of the class whose row is framed.
        predicted: Index of the class whose column is framed; with `true_class`, one cell is.

    Returns:
        True classes in rows, from the top, and predicted ones in columns; colours are shares of the
        true class, and hovering gives the counts. The second trace holds one point a cell: x is the
        predicted class, y is K - 1 minus the true one.

    Raises:
        ValueError: The probes have no confusions, or no such layer.
    """
    if probe.confusion is None or layer not in probe.layers:
        raise ValueError(f"these probes have no confusions of {layer!r}; choose another layer")
    # A map starts at the bottom, a confusion matrix is read from the top.
    counts = np.asarray(probe.confusion[probe.layers.index(layer)])[::-1]
    names = list(reversed(classes))
    # Counts of -1 stand for a layer without a probe.
    totals = np.where(counts.min(axis=1) < 0, 0, counts.sum(axis=1))
    shares = np.full(counts.shape, math.nan)
    np.divide(counts, totals[:, None], out=shares, where=totals[:, None] > 0)

    def hover(row: int, column: int) -> str:
        heading = f"true <b>{text(names[row])}</b>, read as <b>{text(classes[column])}</b><br>"
        if not totals[row]:
            reason = probe.undefined.get(layer, "there are no test images of this class")
            return f"{heading}undefined: {text(reason)}"
        return (
            f"{heading}{counts[row, column]:,} of {totals[row]:,} images "
            f"({shares[row, column]:.1%})"
        )

    figure = draw_map(
        shares,
        hover,
        title=title,
        rows=Axis("true class", names, by_stage=False),
        columns=Axis("predicted class", classes, by_stage=False),
        colours=Colours("share", tick_form=".0%"),
    )
    if true_class is not None or predicted is not None:
        last = len(classes) - 1
        rows = (0, last) if true_class is None else (last - true_class,) * 2
        columns = (0, last) if predicted is None else (predicted,) * 2
        _outline(figure, rows, columns)
    return figure.update_layout(margin_l=96)


def _outline(figure: go.Figure, rows: tuple[int, int], columns: tuple[int, int]) -> None:
    """Frame all cells from the first to the last row and column."""
    corners = {"x0": columns[0] - 0.5, "x1": columns[1] + 0.5}
    corners |= {"y0": rows[0] - 0.5, "y1": rows[1] + 0.5}
    figure.add_shape(type="rect", line={"color": "#FFFFFF", "width": 5}, **corners)
    figure.add_shape(type="rect", line={"color": "#111111", "width": 2}, **corners)


def _tall(num_rows: int) -> int:
    """Pixels for a map with a readable row for each class."""
    return max(LOW_HEIGHT, min(HEIGHT * 2, 170 + 24 * num_rows))


def score_curves(
    probes: Sequence[ProbeResult], rules: Mapping[str, str], score: str, *, title: str
) -> go.Figure:
    """Cross-entropy or calibration error of probes by depth.

    Args:
        probes: One result a checkpoint; those without the score are left out.
        rules: The rule by checkpoint name, for colour, dash and marker.
        score: Name in SCORES.
        title: What is shown, with the number of images.

    Returns:
        One curve for each checkpoint; both scores are better the lower they are, and have no
        intervals.
    """
    kind = SCORES[score]
    styles = checkpoint_styles({probe.model: rules.get(probe.model, "") for probe in probes})
    probes = [probe for probe in probes if getattr(probe, score) is not None]
    layer_lists = [probe.layers for probe in probes]
    figure = go.Figure()
    for probe, xs in zip(probes, positions(layer_lists) if probes else [], strict=True):
        label = text(checkpoint_label(rules.get(probe.model, ""), probe.model))
        values = np.asarray(getattr(probe, score), dtype=np.float64)
        missing = np.full(len(values), math.nan)
        hover = [
            f"<b>{text(name)}</b>, {label}<br>"
            + (
                f"{kind.title} {value:{kind.form}}"
                if math.isfinite(value)
                else f"undefined: {text(probe.undefined.get(name, NO_REASON))}"
            )
            for name, value in zip(probe.layers, values, strict=True)
        ]
        style = styles[probe.model]
        add_curve(figure, xs, (values, missing, missing), style, name=label, hover=hover)
    lay_out(figure, title, LOW_HEIGHT + 60)
    figure.update_yaxes(title=kind.axis, rangemode="tozero", fixedrange=True)
    if kind.form.endswith("%"):
        figure.update_yaxes(**PERCENT)
    figure.update_xaxes(**depth_axis(layer_lists))
    mark_stages(figure, layer_lists)
    return figure


# ------------------------------------------------------------------------------------------- pairs


def paired_curve(
    paired: PairedResult,
    probes: tuple[ProbeResult, ProbeResult],
    rules: Mapping[str, str],
    *,
    title: str,
) -> go.Figure:
    """How many more images the probes of A get right than those of B, layer by layer.

    Args:
        paired: Differences (P,) with 95% intervals, and p-values corrected by Holm.
        probes: Those of A and of B, for the names of models and layers.
        rules: The rule by checkpoint name.
        title: What is shown, with the number of images.

    Returns:
        One point a layer of A, with its interval: filled in the colour of the better network where
        the corrected test finds a difference, open and grey where it does not.
    """
    first, second = probes
    styles = checkpoint_styles({probe.model: rules.get(probe.model, "") for probe in probes})
    layers = [first.layers[row] for row in paired.rows]
    xs = positions([layers])[0]
    hover = [_paired_text(paired, probes, index) for index in range(len(layers))]
    is_better = np.asarray(paired.difference) > 0
    is_clear = np.asarray(paired.adjusted) < SIGNIFICANT
    figure = go.Figure()
    kinds = (
        (f"{text(first.model)} better", is_clear & is_better, styles[first.model], False),
        (f"{text(second.model)} better", is_clear & ~is_better, styles[second.model], False),
        ("no clear difference", ~is_clear, Style(NEUTRAL, "solid", "circle"), True),
    )
    for name, chosen, style, is_open in kinds:
        _differences(figure, paired, xs, np.flatnonzero(chosen), style, is_open, name, hover)
    figure.add_hline(y=0, line={"color": FAINT, "width": 1.25})
    lay_out(figure, title, LOW_HEIGHT + 60)
    axis = f"accuracy of {text(first.model)}<br>minus {text(second.model)}"
    figure.update_yaxes(title=axis, zeroline=False, tickformat="+.0%", fixedrange=True)
    figure.update_xaxes(**depth_axis([layers]))
    mark_stages(figure, [layers])
    return figure.update_layout(margin_l=88)


def _differences(
    figure: go.Figure,
    paired: PairedResult,
    xs: Sequence[float],
    chosen: npt.NDArray[np.intp],
    style: Style,
    is_open: bool,
    name: str,
    hover: Sequence[str],
) -> None:
    """Points of one kind with their intervals."""
    if chosen.size == 0:
        return
    values, low, high = (
        np.asarray(part, dtype=np.float64)[chosen]
        for part in (paired.difference, paired.low, paired.high)
    )
    symbol = style.symbol.removesuffix("-open")
    figure.add_trace(
        go.Scatter(
            x=[xs[index] for index in chosen],
            y=gapped(values),
            error_y=_whiskers(values, low, high, style.colour),
            mode="markers",
            name=name,
            marker={
                "color": style.colour,
                "symbol": f"{symbol}-open" if is_open else symbol,
                "size": 9,
                "line": {"width": 1.5, "color": style.colour},
            },
            hovertext=[hover[index] for index in chosen],
            hoverinfo="text",
        )
    )


def _paired_text(paired: PairedResult, probes: tuple[ProbeResult, ProbeResult], index: int) -> str:
    """What hovering over a difference says."""
    first, second = probes
    row, column = int(paired.rows[index]), int(paired.columns[index])
    heading = (
        f"<b>{text(first.layers[row])}</b>, {text(first.model)}<br>"
        f"<b>{text(second.layers[column])}</b>, {text(second.model)}<br>"
    )
    if not math.isfinite(paired.difference[index]):
        return f"{heading}undefined: one of the two has no probe"
    value = with_interval(
        paired.difference[index], paired.low[index], paired.high[index], form="+.1%"
    )
    return (
        f"{heading}difference {value}<br>"
        f"{paired.only_a[index]:,} images only {text(first.model)} gets right, "
        f"{paired.only_b[index]:,} only {text(second.model)}<br>"
        f"McNemar p = {paired.p_values[index]:.2g}, {paired.adjusted[index]:.2g} by Holm; "
        f"n = {paired.samples:,}"
    )
