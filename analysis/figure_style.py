"""What all figures share: colours by rule, escaped texts, curves with bands, axes of layers.

Numbers and names in, parts of plotly figures out. Colours, dashes and markers follow the learning
rule and are the same in every figure. Backgrounds are transparent and text takes the colour of the
page, so that a figure fits a light and a dark one. Names come from files, so everything that plotly
would read as HTML is escaped by `text`.
"""

from __future__ import annotations

import html
import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import plotly.graph_objects as go

from analysis.rule_styles import OTHER_RULE as OTHER_RULE
from analysis.rule_styles import RULE_STYLES as RULE_STYLES
from analysis.rule_styles import RULE_TITLES as RULE_TITLES
from analysis.rule_styles import Style as Style
from analysis.rule_styles import checkpoint_label as checkpoint_label
from analysis.rule_styles import checkpoint_styles as checkpoint_styles
from analysis.rule_styles import rule_title as rule_title

FloatArray = npt.NDArray[np.floating[Any]]
Bounds = tuple[FloatArray, FloatArray, FloatArray]
"""Values, lower and upper ends of intervals of a curve, each (L,)."""

CONFIG: dict[str, object] = {
    # Plotly's own button would upload the figure to a cloud service.
    "showSendToCloud": False,
    "displaylogo": False,
    "modeBarButtonsToRemove": ["select2d", "lasso2d", "zoom", "pan", "autoScale2d"],
}
"""The plotly configuration that every page and report passes on."""

HEIGHT = 500
"""Pixels of every figure, so that two side by side line up."""

LOW_HEIGHT = 320
"""Pixels of a figure that stands alone over the whole width."""

NO_REASON = "no reason was kept"
NEUTRAL = "#6E8290"
FAINT = "rgba(128, 140, 148, 0.55)"
CURVE_WIDTH = 2.0
MOST_TICKS = 10  # names along an axis; more would touch


def text(value: object) -> str:
    """Text as plotly shows it and no more: no tags, no links."""
    return html.escape(str(value), quote=False)


def with_interval(value: float, low: float, high: float, *, form: str = ".3f") -> str:
    """A number with its 95% interval, or alone where there is none."""
    if not (math.isfinite(low) and math.isfinite(high)):
        return f"{value:{form}}"
    return f"{value:{form}} (95%: {low:{form}} to {high:{form}})"


# ------------------------------------------------------------------------------------------ curves


def add_curve(
    figure: go.Figure,
    xs: Sequence[float],
    bounds: Bounds,
    style: Style,
    *,
    name: str,
    hover: Sequence[str],
    width: float = CURVE_WIDTH,
) -> None:
    """A band from low to high and on it the curve with its markers; undefined points leave gaps.

    Args:
        figure: Gets the traces.
        xs: (L,) places of the points.
        bounds: Values, low and high, each (L,); NaN where undefined.
        style: Colour, dash and marker.
        name: Of the curve in the legend, escaped; all its traces show and hide together.
        hover: (L,) escaped texts.
        width: Of the line, in pixels.
    """
    values, low, high = (np.asarray(part, dtype=np.float64) for part in bounds)
    for start, stop in finite_runs(low, high):
        figure.add_trace(_band(xs[start:stop], low[start:stop], high[start:stop], style, name))
    figure.add_trace(
        go.Scatter(
            x=list(xs),
            y=gapped(values),
            mode="lines+markers",
            name=name,
            legendgroup=name,
            line={"color": style.colour, "dash": style.dash, "width": width},
            marker={"color": style.colour, "symbol": style.symbol, "size": 7 if width > 1.5 else 4},
            hovertext=list(hover),
            hoverinfo="text",
            connectgaps=False,
        )
    )


def gapped(values: FloatArray) -> list[float | None]:
    """Values (L,) for a curve: None, which plotly leaves out, where undefined."""
    return [float(value) if math.isfinite(value) else None for value in values]


def _band(
    xs: Sequence[float], low: FloatArray, high: FloatArray, style: Style, group: str
) -> go.Scatter:
    """The filled area of an interval; of a single point, a bar."""
    red, green, blue = (int(style.colour[start : start + 2], 16) for start in (1, 3, 5))
    lone = len(xs) == 1
    return go.Scatter(
        x=[*xs, *reversed(xs)],
        y=[*low.tolist(), *reversed(high.tolist())],
        fill=None if lone else "toself",
        mode="lines",
        line={"width": 3 if lone else 0, "color": f"rgba({red}, {green}, {blue}, 0.45)"},
        fillcolor=f"rgba({red}, {green}, {blue}, 0.22)",
        hoverinfo="skip",
        legendgroup=group,
        showlegend=False,
    )


def finite_runs(low: FloatArray, high: FloatArray) -> list[tuple[int, int]]:
    """Start and stop of every run of points whose interval is defined."""
    runs: list[tuple[int, int]] = []
    start: int | None = None
    finite = [*np.isfinite(low) & np.isfinite(high), False]
    for index, defined in enumerate(finite):
        if defined and start is None:
            start = index
        if not defined and start is not None:
            runs.append((start, index))
            start = None
    return runs


def add_level(
    figure: go.Figure, xs: Sequence[float], values: FloatArray, *, name: str, hover: Sequence[str]
) -> None:
    """A thin dotted line without markers: what chance alone would give, layer by layer."""
    figure.add_trace(
        go.Scatter(
            x=list(xs),
            y=gapped(np.asarray(values, dtype=np.float64)),
            mode="lines",
            name=name,
            line={"color": NEUTRAL, "dash": "dot", "width": 1.25},
            hovertext=list(hover),
            hoverinfo="text",
            connectgaps=False,
        )
    )


def add_ring(figure: go.Figure, x: float, y: float, style: Style) -> None:
    """Mark a point of a curve."""
    if not math.isfinite(y):
        return
    figure.add_trace(
        go.Scatter(
            x=[x],
            y=[float(y)],
            mode="markers",
            marker={
                "symbol": "circle-open",
                "size": 15,
                "color": style.colour,
                "line": {"width": 2},
            },
            hoverinfo="skip",
            showlegend=False,
        )
    )


# ------------------------------------------------------------------------------------------ layout


# On a narrow screen each entry of a legend has a row of its own, between title and picture. Plotly
# widens the margin for that, but does not know of the figure's title: the legend's own, which is
# blank, keeps that place free.
LEGEND_ROW = 30
ROWS_WITH_ROOM = 2
TITLE_PLACE = {"text": "&nbsp;", "side": "top", "font": {"size": 15}}


def lay_out(figure: go.Figure, title: str, height: int = HEIGHT) -> None:
    """What every figure shares: transparent, quiet, the title at the left, room for the legend.

    Args:
        figure: with all its traces.
        title: of the figure, not yet escaped.
        height: in pixels, to which a row for each further entry of the legend is added.
    """
    num_entries = sum(bool(trace.name) and trace.showlegend is not False for trace in figure.data)
    room = LEGEND_ROW * max(0, num_entries - ROWS_WITH_ROOM)
    figure.update_layout(
        title={"text": text(title), "x": 0, "xref": "container", "y": 0.98, "yanchor": "top"},
        title_font={"size": 15},
        height=height + room,
        margin={"l": 64, "r": 16, "t": 84, "b": 56},
        paper_bgcolor="rgba(0, 0, 0, 0)",
        plot_bgcolor="rgba(0, 0, 0, 0)",
        dragmode=False,
        hovermode="closest",
        legend={"orientation": "h", "x": 0, "y": 1.01, "xanchor": "left", "yanchor": "bottom"},
        legend_title=TITLE_PLACE,
        legend_maxheight=0.7,
        hoverlabel={"align": "left"},
    )


def positions(layer_lists: Sequence[Sequence[str]]) -> list[list[float]]:
    """Where the layers of each network stand: by index, or by relative depth if names differ."""
    if _same_layers(layer_lists):
        return [[float(index) for index in range(len(layers))] for layers in layer_lists]
    return [
        [index / max(1, len(layers) - 1) for index in range(len(layers))] for layers in layer_lists
    ]


def depth_axis(layer_lists: Sequence[Sequence[str]]) -> dict[str, object]:
    """The horizontal axis of a curve over layers."""
    shared = {"showgrid": False, "zeroline": False, "fixedrange": True}
    if not layer_lists or not _same_layers(layer_lists):
        ticks = {"tickvals": [0, 1], "ticktext": ["first layer", "last layer"]}
        return {"title": "depth", "range": [-0.03, 1.03], **ticks, **shared}
    layers = layer_lists[0]
    tick_values, tick_texts = stage_ticks(layers)
    return {
        "title": "layer",
        "range": [-0.4, len(layers) - 0.6],
        "tickvals": tick_values,
        "ticktext": tick_texts,
        **shared,
    }


def mark_stages(figure: go.Figure, layer_lists: Sequence[Sequence[str]]) -> None:
    """Thin lines between the stages of networks that have the same layers, if these are few."""
    edges = stage_edges(layer_lists[0]) if layer_lists and _same_layers(layer_lists) else []
    if len(edges) > MOST_TICKS:
        return
    shared = {"type": "line", "y0": 0, "y1": 1, "yref": "paper", "layer": "below"}
    line = {"color": FAINT, "width": 0.5}
    lines = [{"x0": edge, "x1": edge, "line": line, **shared} for edge in edges]
    # All at once: adding one shape after another takes plotly a second for a deep network.
    figure.update_layout(shapes=[*figure.layout.shapes, *lines])


def _same_layers(layer_lists: Sequence[Sequence[str]]) -> bool:
    """Whether all networks have the same layers in the same order."""
    return all(tuple(layers) == tuple(layer_lists[0]) for layers in layer_lists)


def stage_edges(layers: Sequence[str]) -> list[float]:
    """Positions between layers of different stages."""
    stages = [layer.split("_")[0] for layer in layers]
    return [index - 0.5 for index in range(1, len(stages)) if stages[index] != stages[index - 1]]


def stage_ticks(layers: Sequence[str]) -> tuple[list[float], list[str]]:
    """Middle and name of every stage; of many stages only every few, so that names do not touch."""
    edges = [-0.5, *stage_edges(layers), len(layers) - 0.5]
    middles = [(start + stop) / 2 for start, stop in itertools.pairwise(edges)]
    names = [text(layers[math.ceil(edge)].split("_")[0]) for edge in edges[:-1]]
    step = math.ceil(len(middles) / MOST_TICKS)
    return middles[::step], names[::step]


def name_ticks(names: Sequence[object]) -> tuple[list[float], list[str]]:
    """Place and name of every entry of an axis; of many only every few."""
    step = max(1, math.ceil(len(names) / (2 * MOST_TICKS)))
    return [float(index) for index in range(0, len(names), step)], [
        text(name) for name in names[::step]
    ]
