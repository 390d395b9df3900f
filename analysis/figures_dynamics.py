"""Layers along training, as figures: epoch x layer maps, curves by depth and by epoch.

Maps of `analysis.dynamics` in, plotly figures out; no mathematics and no torch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import plotly.graph_objects as go
from plotly.colors import sample_colorscale

from analysis.dynamics import RECORDS, DynamicsMap
from analysis.figure_maps import Axis, Colours, draw_map
from analysis.figure_style import (
    LOW_HEIGHT,
    NEUTRAL,
    NO_REASON,
    add_curve,
    add_ring,
    checkpoint_styles,
    depth_axis,
    gapped,
    lay_out,
    mark_stages,
    positions,
    text,
    with_interval,
)

FRACTIONS = ("cka", "probe", "accuracies", "test_local_accuracies")
PERCENTS = ("probe", "accuracies", "test_local_accuracies")
ROW = 34  # pixels of an epoch in a map
HIGHEST = 380
DEPTHS = "Viridis"
SHADES = (0.3, 0.85)  # of it; beyond, curves cannot be seen on a dark or on a light page
MARGIN = 0.04  # of the range of an axis, so that no curve lies on its edge


@dataclass(frozen=True)
class Scale:
    """The range that maps of one measure share."""

    low: float
    high: float


def common_scale(parts: Sequence[DynamicsMap]) -> Scale:
    """The range of values of maps that are to compare.

    Args:
        parts: of one measure.

    Returns:
        0 to 1 for fractions, whatever the values; otherwise from the least to the largest.
    """
    if parts and parts[0].measure in FRACTIONS:
        return Scale(0.0, 1.0)
    values = [part.values[np.isfinite(part.values)] for part in parts]
    finite = np.concatenate(values) if values else np.array([])
    if not finite.size:
        return Scale(0.0, 1.0)
    low, high = float(finite.min()), float(finite.max())
    return Scale(low, high if high > low else low + 1)


def short_title(part: DynamicsMap) -> str:
    """What a value is, as an axis names it."""
    if part.measure == "cka":
        return "CKA"
    if part.measure in PERCENTS:
        return "accuracy"
    return "loss, nats" if part.measure == "losses" else part.title


def development_map(
    part: DynamicsMap,
    *,
    title: str,
    label: str,
    scale: Scale,
    selected: tuple[int, str] | None = None,
    rows: int | None = None,
) -> go.Figure:
    """Each layer (columns) after each epoch (rows), the first epoch at the bottom.

    Args:
        part: values (E, L).
        title: what is shown.
        label: the run, for hover texts.
        scale: of the colours; the same for maps that are to compare.
        selected: epoch and layer that are chosen elsewhere, framed where they are here.
        rows: for how many epochs there is room; that of the longest run for maps side by side.

    Returns:
        A figure whose second trace holds one transparent point a cell: `x` is the layer, `y` the
        row of the epoch.
    """
    ticks = (scale.low, (scale.low + scale.high) / 2, scale.high)

    def hover(row: int, column: int) -> str:
        return _cell_text(part, row, column, label)

    epochs = part.trajectory.epochs
    figure = draw_map(
        part.values,
        hover,
        title=title,
        rows=Axis("epoch", epochs, by_stage=False),
        columns=Axis("layer", part.layers),
        colours=Colours(
            text(short_title(part)),
            scale.low,
            scale.high,
            ticks=ticks,
            tick_form=".0%" if part.measure in PERCENTS else ".1f",
        ),
        square=False,
    )
    height = min(HIGHEST, max(4, rows or len(epochs)) * ROW)
    figure.data[1].marker.size = max(6, min(18, height // max(1, len(epochs)) - 4))
    figure.update_layout(height=height + 152, margin={"l": 56, "t": 96, "b": 56, "r": 8})
    if selected is not None and selected[1] in part.layers:
        _frame(figure, row_at(part, selected[0]), part.layers.index(selected[1]))
    return figure


def row_at(part: DynamicsMap, epoch: int) -> int:
    """The row of the last epoch up to a given one; the first row where all come later."""
    rows = [row for row, value in enumerate(part.trajectory.epochs) if value <= epoch]
    return rows[-1] if rows else 0


def _cell_text(part: DynamicsMap, row: int, column: int, label: str) -> str:
    """What hovering over a cell says."""
    epoch = part.trajectory.epochs[row]
    where = f"<b>{text(part.layers[column])}</b> after epoch {epoch}, {text(label)}<br>"
    return f"{where}{text(part.title)}<br>{_value_text(part, row, column)}"


def _value_text(part: DynamicsMap, row: int, column: int) -> str:
    """A value with its interval, or why there is none."""
    value = float(part.values[row, column])
    if not math.isfinite(value):
        return f"undefined: {text(part.undefined.get((row, column), NO_REASON))}"
    form = ".1%" if part.measure in PERCENTS else ".3f"
    return with_interval(
        value, float(part.low[row, column]), float(part.high[row, column]), form=form
    )


def _frame(figure: go.Figure, row: int, column: int) -> None:
    """Frame a cell in white and black, which shows on every colour."""
    ends = {"x0": column - 0.5, "x1": column + 0.5, "y0": row - 0.5, "y1": row + 0.5}
    figure.add_shape(type="rect", line={"color": "#FFFFFF", "width": 4}, **ends)
    figure.add_shape(type="rect", line={"color": "#111111", "width": 1.5}, **ends)


# ------------------------------------------------------------------------------------------ curves


def depth_curves(
    parts: Mapping[str, DynamicsMap],
    rules: Mapping[str, str],
    *,
    title: str,
    epoch: int,
    scale: Scale,
    layer: str | None = None,
) -> go.Figure:
    """One measure of all layers after one epoch, a curve a run, with 95% bands.

    Args:
        parts: the map of each run, by its name.
        rules: the rule of each, for colour, dash and marker.
        title: what is shown.
        epoch: of which the last snapshot up to it is taken.
        scale: of the vertical axis.
        layer: that is chosen elsewhere; a ring marks it.
    """
    styles = checkpoint_styles({name: rules[name] for name in parts})
    places = positions([part.layers for part in parts.values()])
    figure = go.Figure()
    for (name, part), xs in zip(parts.items(), places, strict=True):
        row = row_at(part, epoch)
        hover = [_cell_text(part, row, column, name) for column in range(len(part.layers))]
        bounds = (part.values[row], part.low[row], part.high[row])
        label = f"{text(name)}, epoch {part.trajectory.epochs[row]}"
        add_curve(figure, xs, bounds, styles[name], name=label, hover=hover)
        if layer in part.layers:
            column = part.layers.index(layer)
            add_ring(figure, xs[column], float(part.values[row, column]), styles[name])
    layer_lists = [part.layers for part in parts.values()]
    _finish(figure, title, next(iter(parts.values())), scale)
    figure.update_xaxes(**depth_axis(layer_lists))
    mark_stages(figure, layer_lists)
    return figure


def epoch_curves(
    parts: Mapping[str, DynamicsMap],
    rules: Mapping[str, str],
    *,
    title: str,
    layer: str,
    scale: Scale,
    epoch: int | None = None,
) -> go.Figure:
    """One layer along training, a curve a run, with 95% bands.

    Args:
        parts: the map of each run, by its name; runs without this layer are left out.
        rules: the rule of each, for colour, dash and marker.
        title: what is shown.
        layer: by its name.
        scale: of the vertical axis.
        epoch: that is chosen elsewhere; a ring marks it.
    """
    styles = checkpoint_styles({name: rules[name] for name in parts})
    figure = go.Figure()
    for name, part in parts.items():
        if layer not in part.layers:
            continue
        column, epochs = part.layers.index(layer), part.trajectory.epochs
        xs = [float(value) for value in epochs]
        hover = [_cell_text(part, row, column, name) for row in range(len(epochs))]
        bounds = (part.values[:, column], part.low[:, column], part.high[:, column])
        add_curve(figure, xs, bounds, styles[name], name=text(name), hover=hover)
        if epoch is not None:
            row = row_at(part, epoch)
            add_ring(figure, xs[row], float(part.values[row, column]), styles[name])
    _finish(figure, title, next(iter(parts.values())), scale)
    _epoch_axis(figure, list(parts.values()))
    return figure


def recorded_curves(
    part: DynamicsMap,
    *,
    title: str,
    scale: Scale,
    test_accuracy: Sequence[tuple[int, float]] = (),
) -> go.Figure:
    """What a run recorded, a curve a layer over the epochs, dark for the first and bright after.

    Args:
        part: of `dynamics.recorded_map`.
        title: what is shown.
        scale: of the vertical axis.
        test_accuracy: (epoch, fraction) of the whole network, drawn thick.
    """
    figure = go.Figure()
    epochs = part.trajectory.epochs
    count = len(part.layers)
    start, stop = SHADES if count > 1 else (0.5, 0.5)
    shades = sample_colorscale(DEPTHS, np.linspace(start, stop, count).tolist())
    for column, (layer, shade) in enumerate(zip(part.layers, shades, strict=True)):
        figure.add_trace(
            go.Scatter(
                x=list(epochs),
                y=gapped(part.values[:, column]),
                mode="lines+markers" if len(epochs) < 3 else "lines",
                name=text(layer),
                line={"color": shade, "width": 1.75},
                hovertext=[
                    _cell_text(part, row, column, part.trajectory.title)
                    for row in range(len(epochs))
                ],
                hoverinfo="text",
                showlegend=column in (0, count - 1),
            )
        )
    if test_accuracy:
        _test_curve(figure, test_accuracy)
    _finish(figure, title, part, scale)
    figure.update_yaxes(title=RECORDS[part.measure])
    _epoch_axis(figure, [part])
    return figure


def _test_curve(figure: go.Figure, values: Sequence[tuple[int, float]]) -> None:
    """The whole network on the test split."""
    figure.add_trace(
        go.Scatter(
            x=[epoch for epoch, _ in values],
            y=[value for _, value in values],
            mode="lines",
            name="whole network, test",
            line={"color": NEUTRAL, "width": 3, "dash": "dot"},
            hovertext=[f"test accuracy after epoch {e}<br>{v:.1%}" for e, v in values],
            hoverinfo="text",
        )
    )


def _finish(figure: go.Figure, title: str, part: DynamicsMap, scale: Scale) -> None:
    """Title, height and the vertical axis."""
    lay_out(figure, title, LOW_HEIGHT + 30)
    room = MARGIN * (scale.high - scale.low)
    form = ".0%" if part.measure in PERCENTS else ".1f"
    figure.update_yaxes(
        title=text(short_title(part)),
        range=[scale.low - room, scale.high + room],
        tickformat=form,
        fixedrange=True,
        zeroline=False,
    )


def _epoch_axis(figure: go.Figure, parts: Sequence[DynamicsMap]) -> None:
    """Epochs from the first to the last of all runs."""
    epochs = [epoch for part in parts for epoch in part.trajectory.epochs]
    room = max(0.5, 0.03 * (max(epochs) - min(epochs)))
    figure.update_xaxes(
        title="epoch",
        range=[min(epochs) - room, max(epochs) + room],
        tickformat="d",
        fixedrange=True,
        zeroline=False,
        showgrid=False,
    )
