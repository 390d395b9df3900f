"""Maps: a matrix of numbers in, coloured cells with hover texts out.

A heatmap reports no selection to Streamlit, so that every map has one transparent point a cell
over its colours: what the pointer hovers over and clicks.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import plotly.graph_objects as go

from analysis.figure_style import (
    NEUTRAL,
    FloatArray,
    lay_out,
    name_ticks,
    stage_edges,
    stage_ticks,
    text,
)

UNDEFINED = "rgba(128, 140, 148, 0.15)"
SEPARATOR = "rgba(255, 255, 255, 0.8)"
BAR_LENGTH, LETTER = 180, 7  # pixels of a colour bar and of a letter of its title
WIDEST_GAPS = 40  # with more cells a side, gaps would take more room than colours


@dataclass(frozen=True)
class Axis:
    """One axis of a map: its title (of several lines maybe) and the names along it, (L,), plain.

    `by_stage` names and separates stages of layers; otherwise the entries have names themselves.
    """

    title: str
    names: Sequence[object]
    by_stage: bool = True

    def ticks(self) -> tuple[list[float], list[str]]:
        """Places and escaped names of the ticks."""
        return (
            stage_ticks([str(n) for n in self.names]) if self.by_stage else name_ticks(self.names)
        )

    def edges(self) -> list[float]:
        """Places between stages."""
        return stage_edges([str(name) for name in self.names]) if self.by_stage else []


@dataclass(frozen=True)
class Colours:
    """Which colours stand for which values: plotly's `scale`, from `low` to `high`.

    `title` is that of the colour bar, short and escaped. `ticks` are the values named along it,
    with texts of their own in `tick_texts` or else in the form `tick_form`.
    """

    title: str
    low: float = 0.0
    high: float = 1.0
    scale: str = "Cividis"
    ticks: tuple[float, ...] = (0.0, 0.5, 1.0)
    tick_form: str = ".1f"
    tick_texts: tuple[str, ...] = field(default=())


def draw_map(
    values: FloatArray,
    hover: Callable[[int, int], str],
    *,
    title: str,
    rows: Axis,
    columns: Axis,
    colours: Colours,
    square: bool = True,
) -> go.Figure:
    """Coloured cells; undefined ones are empty and crossed.

    Args:
        values: (R, C); the first row is the lowest.
        hover: Gives the escaped text of a cell by row and column.
        title: What is shown.
        rows: The vertical axis.
        columns: The horizontal axis.
        colours: Range, scale and colour bar.
        square: Whether cells are square, or fill the figure.

    Returns:
        A figure whose second trace holds one transparent point a cell: `x` is the column, `y` the
        row.
    """
    values = np.asarray(values, dtype=np.float64)
    num_rows, num_columns = values.shape
    figure = go.Figure([_cells(values, colours), _targets(values.shape, hover)])
    if not np.isfinite(values).all():
        figure.add_trace(_undefined_marks(values))
    lay_out(figure, title)
    figure.update_xaxes(range=[-0.5, num_columns - 0.5], constraintoward="left", **_axis(columns))
    figure.update_yaxes(range=[-0.5, num_rows - 0.5], constraintoward="top", **_axis(rows))
    if square:
        figure.update_yaxes(scaleanchor="x")
    figure.update_layout(
        hoverdistance=-1,
        plot_bgcolor=UNDEFINED,
        margin={"t": 88, "pad": 0},
        shapes=_boundaries(rows, columns),
    )
    return figure


def _cells(values: FloatArray, colours: Colours) -> go.Heatmap:
    """The coloured cells; undefined ones stay empty."""
    gap = 1 if max(values.shape) <= WIDEST_GAPS else 0
    return go.Heatmap(
        z=values,
        zmin=colours.low,
        zmax=colours.high,
        colorscale=colours.scale,
        hoverinfo="skip",
        xgap=gap,
        ygap=gap,
        colorbar=_colour_bar(colours),
    )


def _colour_bar(colours: Colours) -> dict[str, object]:
    """A thin bar above the map, so that the map keeps the width."""
    bar: dict[str, object] = {
        "title": {"text": f"{colours.title}&nbsp;&nbsp;", "side": "right"},
        "lenmode": "pixels",  # the title is part of the length, and would leave a long one no bar
        "len": BAR_LENGTH + LETTER * len(colours.title),
        "orientation": "h",
        "thickness": 8,
        "x": 0,
        "xanchor": "left",
        "xpad": 0,
        "y": 0.999,  # from 1 on plotly moves the title up, out of the figure
        "yanchor": "bottom",
        "outlinewidth": 0,
        "tickvals": list(colours.ticks),
        "tickformat": colours.tick_form,
    }
    if colours.tick_texts:
        bar["ticktext"] = list(colours.tick_texts)
    return bar


def _targets(shape: tuple[int, ...], hover: Callable[[int, int], str]) -> go.Scatter:
    """One transparent square a cell: what the pointer hovers over and clicks."""
    cells = list(itertools.product(range(shape[0]), range(shape[1])))
    return go.Scatter(
        x=[column for _, column in cells],
        y=[row for row, _ in cells],
        mode="markers",
        marker={"symbol": "square", "size": 16, "opacity": 0, "color": NEUTRAL},
        selected={"marker": {"opacity": 0}},
        unselected={"marker": {"opacity": 0}},
        hovertext=[hover(row, column) for row, column in cells],
        hoverinfo="text",
        showlegend=False,
    )


def _undefined_marks(values: FloatArray) -> go.Scatter:
    """A small cross in every undefined cell, so that it is not taken for a colour."""
    rows, columns = np.nonzero(~np.isfinite(values))
    return go.Scatter(
        x=columns.tolist(),
        y=rows.tolist(),
        mode="markers",
        marker={"symbol": "x-thin", "size": 8, "line": {"width": 1.5, "color": NEUTRAL}},
        hoverinfo="skip",
        showlegend=False,
    )


def outline(figure: go.Figure, row: int, column: int) -> None:
    """Frame the selected cell in white and black, which shows on every colour of the map."""
    corners = {"x0": column - 0.5, "x1": column + 0.5, "y0": row - 0.5, "y1": row + 0.5}
    figure.add_shape(type="rect", line={"color": "#FFFFFF", "width": 5}, **corners)
    figure.add_shape(type="rect", line={"color": "#111111", "width": 2}, **corners)


def _axis(axis: Axis) -> dict[str, object]:
    """An axis of a map: stages named at their middle, no grid, no zoom."""
    ticks, names = axis.ticks()
    return {
        "title": text(axis.title).replace("\n", "<br>"),
        "tickvals": ticks,
        "ticktext": names,
        "ticks": "",
        "showgrid": False,
        "zeroline": False,
        "showline": False,
        "constrain": "domain",
        "fixedrange": True,
    }


def _boundaries(rows: Axis, columns: Axis) -> list[dict[str, Any]]:
    """Thin lines between stages, over the map."""
    line = {"color": SEPARATOR, "width": 2}
    horizontal = [
        {"type": "line", "x0": -0.5, "x1": len(columns.names) - 0.5, "y0": y, "y1": y, "line": line}
        for y in rows.edges()
    ]
    vertical = [
        {"type": "line", "y0": -0.5, "y1": len(rows.names) - 0.5, "x0": x, "x1": x, "line": line}
        for x in columns.edges()
    ]
    return horizontal + vertical
