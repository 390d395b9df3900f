"""Two networks by any measure beside CKA, and two layers seen through PCA, as plotly figures.

In: a `SimilarityResult`, a cell of it, points of images. Out: figures like those that figures.py
makes of CKA. No mathematics beyond look-ups, no torch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import plotly.graph_objects as go

from analysis.figure_maps import Axis, Colours, draw_map
from analysis.figure_style import (
    HEIGHT,
    LOW_HEIGHT,
    FloatArray,
    Style,
    add_curve,
    add_level,
    add_ring,
    checkpoint_styles,
    depth_axis,
    lay_out,
    mark_stages,
    positions,
    text,
)
from analysis.figures import PAIR_STYLE, REFERENCE_STYLES, largest_difference
from analysis.figures_similarity import SHORT_NAMES, value_text
from analysis.paired import matched_depth
from analysis.similarity import SimilarityResult

IntArray = npt.NDArray[np.integer[Any]]
# Ten colours that colour-blind readers tell apart as far as ten can be; markers do the rest.
CLASS_COLOURS = (
    "#0072B2",
    "#E69F00",
    "#009E73",
    "#CC79A7",
    "#56B4E9",
    "#D55E00",
    "#8C6D31",
    "#7A5195",
    "#999999",
    "#BCBD22",
)
CLASS_SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross", "x", "star")
MOST_LEGEND = 12  # classes beyond which a legend would take more room than the picture


# ------------------------------------------------------------------------------------------ curves


def higher_is_alike(result: SimilarityResult) -> bool:
    """Whether a measure grows with similarity."""
    return result.direction.startswith("higher")


def matched_columns(result: SimilarityResult, *, best: bool) -> list[int]:
    """For each row the column at its depth, or the one most like it; (L_a,)."""
    same: list[int] = matched_depth(len(result.rows), len(result.columns)).tolist()
    if not best:
        return same
    values = np.asarray(result.values, dtype=np.float64)
    scores = values if higher_is_alike(result) else -values
    filled = np.where(np.isnan(scores), -np.inf, scores)
    found = filled.argmax(axis=1).tolist()
    is_defined = np.isfinite(filled.max(axis=1))
    return [b if d else s for b, d, s in zip(found, is_defined, same, strict=True)]


def measure_curve(
    result: SimilarityResult,
    *,
    title: str,
    name: str,
    best: bool = False,
    references: Mapping[str, tuple[str, SimilarityResult]] | None = None,
) -> go.Figure:
    """Any measure by depth: layers at the same depth, or each layer and the one most like it.

    Args:
        result: Values (L_a, L_b).
        title: What is shown, with the number of images.
        name: Both networks.
        best: Whether each layer meets its best match; a maximum lies a little beyond its interval.
        references: By "ceiling" or "floor", the names of two networks and their values.

    Returns:
        One curve over the layers of the first network with its 95% band, one for each reference,
        and the chance level where there is one.
    """
    given = references or {}
    layer_lists = [result.rows, *(reference.rows for _, reference in given.values())]
    places = positions(layer_lists)
    figure = go.Figure()
    for (role, (pair, reference)), xs in zip(given.items(), places[1:], strict=True):
        style = REFERENCE_STYLES.get(role, PAIR_STYLE)
        _add_matched(figure, reference, xs, style, f"{text(role)}: {text(pair)}", best)
    _add_matched(figure, result, places[0], PAIR_STYLE, text(name), best)
    columns = matched_columns(result, best=best)
    levels = result.chance[list(range(len(result.rows))), columns]
    if np.isfinite(levels).any():
        hover = [f"chance level {level:.3f}" for level in levels]
        add_level(figure, places[0], levels, name="chance level", hover=hover)
    lay_out(figure, title, LOW_HEIGHT + 60)
    figure.update_yaxes(**measure_axis([result, *(reference for _, reference in given.values())]))
    figure.update_xaxes(**depth_axis(layer_lists))
    mark_stages(figure, layer_lists)
    return figure


def _add_matched(
    figure: go.Figure,
    result: SimilarityResult,
    xs: Sequence[float],
    style: Style,
    name: str,
    best: bool,
) -> None:
    """One curve with its band and hover texts."""
    columns = matched_columns(result, best=best)
    rows = list(range(len(result.rows)))
    hover = [
        f"{name}<br><b>{text(result.rows[row])}</b> and <b>{text(result.columns[column])}</b><br>"
        + value_text(result, row, column)
        for row, column in zip(rows, columns, strict=True)
    ]
    values, low, high = (part[rows, columns] for part in (result.values, result.low, result.high))
    add_curve(figure, xs, (values, low, high), style, name=name, hover=hover)


def measure_axis(results: Sequence[SimilarityResult]) -> dict[str, object]:
    """The vertical axis of a measure: its range; where it has no end, what is there."""
    low, high = results[0].range
    values = np.concatenate([np.ravel(result.values) for result in results])
    finite = values[np.isfinite(values)]
    low = low if math.isfinite(low) else min([0.0, *finite.tolist()])
    high = high if math.isfinite(high) else max([low + 1.0, *finite.tolist()])
    margin = 0.03 * (high - low)
    name = SHORT_NAMES.get(results[0].measure, results[0].title)
    return {
        "title": f"{text(name)} ({text(results[0].direction)})",
        "range": [low - margin, high + margin],
        "zeroline": False,
        "fixedrange": True,
    }


def measure_profile(
    result: SimilarityResult,
    selected: tuple[int, int],
    *,
    title: str,
    labels: tuple[str, str],
    rules: tuple[str, str],
) -> go.Figure:
    """A row and a column of a map of any measure through one cell, as curves with 95% bands.

    Args:
        result: Values (L_a, L_b).
        selected: Row and column of the cell; each curve marks it with a ring.
        title: What is shown.
        labels: Rule and checkpoint of both networks.
        rules: Rules of both networks, for the colours.
    """
    row, column = selected
    styles = list(checkpoint_styles({"row": rules[0], "column": rules[1]}).values())
    places = positions([result.columns, result.rows])
    whole = slice(None)
    cells: tuple[tuple[int | slice, int | slice], ...] = ((row, whole), (whole, column))
    names = (
        f"{text(result.rows[row])} of {text(labels[0])}",
        f"{text(result.columns[column])} of {text(labels[1])}",
    )
    hovers = (
        [_profile_hover(result, names[0], (row, index), 1) for index in range(len(result.columns))],
        [_profile_hover(result, names[1], (index, column), 0) for index in range(len(result.rows))],
    )
    figure = go.Figure()
    for xs, cell, style, name, hover in zip(places, cells, styles, names, hovers, strict=True):
        bounds = (result.values[cell], result.low[cell], result.high[cell])
        add_curve(figure, xs, bounds, style, name=name, hover=hover)
    add_ring(figure, places[0][column], result.values[row, column], styles[0])
    add_ring(figure, places[1][row], result.values[row, column], styles[1])
    lay_out(figure, title)
    figure.update_yaxes(**measure_axis([result]))
    figure.update_xaxes(**depth_axis([result.columns, result.rows]))
    return figure.update_xaxes(title="layer compared with")


def _profile_hover(result: SimilarityResult, name: str, cell: tuple[int, int], axis: int) -> str:
    """The chosen layer, the other one, and the value."""
    other = (result.rows, result.columns)[axis][cell[axis]]
    return f"{name}<br>and <b>{text(other)}</b><br>{value_text(result, *cell)}"


def measure_difference_map(
    minuend: SimilarityResult,
    subtrahend: SimilarityResult,
    *,
    title: str,
    row_label: str,
    column_label: str,
    names: tuple[str, str],
    limit: float | None = None,
) -> go.Figure:
    """How much more alike layers are in one map of a measure than in another, cell by cell.

    Blue is more alike in the first map, whichever way the measure runs. No interval: both maps
    rest on the same images.

    Args:
        minuend: Values (L_a, L_b).
        subtrahend: Values of the same shape, subtracted.
        title: What is shown, with the number of images.
        row_label: What the rows are layers of.
        column_label: What the columns are layers of.
        names: What to call the two maps.
        limit: The difference at which colours end, on both sides; the largest one here if None.

    Raises:
        ValueError: The maps differ in shape.
    """
    if minuend.values.shape != subtrahend.values.shape:
        raise ValueError(
            f"a difference needs two maps of the same shape, but they are {minuend.values.shape} "
            f"and {subtrahend.values.shape}; choose networks with equally many layers"
        )
    difference: FloatArray = minuend.values - subtrahend.values
    limit = largest_difference([difference]) if limit is None else limit

    def hover(row: int, column: int) -> str:
        heading = f"<b>{text(minuend.rows[row])}</b> and <b>{text(minuend.columns[column])}</b><br>"
        parts = [
            f"{text(name)}: {value_text(result, row, column)}"
            for name, result in zip(names, (minuend, subtrahend), strict=True)
        ]
        if math.isfinite(difference[row, column]):
            parts.insert(0, f"difference {difference[row, column]:+.3f}")
        return heading + "<br>".join(parts)

    return draw_map(
        difference,
        hover,
        title=title,
        rows=Axis(row_label, minuend.rows),
        columns=Axis(column_label, minuend.columns),
        colours=Colours(
            "difference",
            -limit,
            limit,
            scale="RdBu" if higher_is_alike(minuend) else "RdBu_r",
            ticks=(-limit, 0.0, limit),
            tick_texts=(f"-{limit:.2f}", "0", f"+{limit:.2f}"),
        ),
    )


# ------------------------------------------------------------------------------------------ images


def image_scatter(
    points: FloatArray,
    explained: FloatArray,
    labels: IntArray,
    classes: Sequence[str],
    *,
    title: str,
    selected: int | None = None,
) -> go.Figure:
    """Images as points of two principal components, coloured by class.

    Args:
        points: (N, 2).
        explained: (2,) shares of the layer's variance, or of both axes together if (1,).
        labels: (N,) index into `classes`.
        classes: K names.
        title: The layer.
        selected: Index of the image with a ring.

    Returns:
        A trace a class whose `customdata` holds the index of each image.
    """
    figure = go.Figure()
    for label in np.unique(labels).tolist():
        own = np.flatnonzero(labels == label)
        name = text(classes[label])
        figure.add_trace(
            go.Scatter(
                x=points[own, 0].tolist(),
                y=points[own, 1].tolist(),
                customdata=own.tolist(),
                mode="markers",
                name=name,
                marker={
                    "color": CLASS_COLOURS[label % len(CLASS_COLOURS)],
                    "symbol": CLASS_SYMBOLS[label % len(CLASS_SYMBOLS)],
                    "size": 6,
                    "opacity": 0.8,
                },
                selected={"marker": {"opacity": 0.8}},
                unselected={"marker": {"opacity": 0.8}},
                hovertext=[f"{name}, image {index + 1}" for index in own.tolist()],
                hoverinfo="text",
                showlegend=False,
            )
        )
    if selected is not None:
        x, y = (float(value) for value in points[selected])
        add_ring(figure, x, y, Style("#111111", "solid", "circle"))
        add_ring(figure, x, y, Style("#FFFFFF", "solid", "circle"))
        figure.data[-1].marker.size = 19
    lay_out(figure, title)
    share = f"{float(np.sum(explained)):.0%} of the variance"
    hidden = {"showticklabels": False, "zeroline": False, "showgrid": False, "fixedrange": True}
    figure.update_xaxes(title=share, **hidden)
    figure.update_yaxes(scaleanchor="x", **hidden)
    return figure.update_layout(height=HEIGHT - 160, margin={"l": 12, "r": 12, "t": 40, "b": 40})
