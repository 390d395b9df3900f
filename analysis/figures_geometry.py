"""Geometry in, plotly figures out: measures by depth for any number of models, a layer's images."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import plotly.graph_objects as go

from analysis.figure_style import (
    FAINT,
    HEIGHT,
    LOW_HEIGHT,
    NEUTRAL,
    NO_REASON,
    FloatArray,
    add_curve,
    checkpoint_label,
    checkpoint_styles,
    depth_axis,
    lay_out,
    mark_stages,
    positions,
    text,
    with_interval,
)
from analysis.geometry import GeometryResult
from analysis.geometry_measures import GEOMETRY_MEASURES, GeometryMeasure

IntArray = npt.NDArray[np.integer[Any]]
BoolArray = npt.NDArray[np.bool_]

# Colours of classes: those of Okabe and Ito that show on white and on black, and four more. From
# one class to the next the marker changes too.
CLASS_COLOURS = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#E69F00",
    "#56B4E9",
    "#8E63B8",
    "#A08A00",
    "#A0522D",
    "#8A8A8A",
)
CLASS_SYMBOLS = ("circle", "square", "diamond", "cross", "x")
FADED = 0.15  # opacity of images that are not picked, where some are
MOST_RINGS = 12  # more would hide what they ring
MOST_NAMED_CLASSES = 20  # in a legend; more leave no room for the picture
WIDE_RATIO = 50.0  # of largest to smallest value, from which an axis without an end is logarithmic


def geometry_curves(
    results: Sequence[GeometryResult], rules: Mapping[str, str], measure: str, *, title: str
) -> go.Figure:
    """One measure of geometry by depth.

    Args:
        results: One a model; those without the measure are left out.
        rules: The rule by model name, for colour, dash and marker.
        measure: Name in GEOMETRY_MEASURES.
        title: What is shown, with the number of images.

    Returns:
        One curve with its 95% band for each model; a measure without an upper end whose values
        span more than a factor of 50 has a logarithmic axis.
    """
    kind = GEOMETRY_MEASURES[measure]
    styles = checkpoint_styles({result.model: rules.get(result.model, "") for result in results})
    shown = [result for result in results if measure in result.values]
    layer_lists = [result.layers for result in shown]
    figure = go.Figure()
    for result, xs in zip(shown, positions(layer_lists) if shown else [], strict=True):
        label = text(checkpoint_label(rules.get(result.model, ""), result.model))
        hover = [_value_text(result, measure, index, label) for index in range(len(xs))]
        bounds = result.values[measure], *_ends(result, measure)
        add_curve(figure, xs, bounds, styles[result.model], name=label, hover=hover)
    lay_out(figure, title, LOW_HEIGHT + 40)
    drawn = [
        part for result in shown for part in (result.values[measure], _ends(result, measure)[0])
    ]
    figure.update_yaxes(**_value_axis(kind, drawn))
    figure.update_xaxes(**depth_axis(layer_lists))
    mark_stages(figure, layer_lists)
    return figure


def _ends(result: GeometryResult, measure: str) -> tuple[FloatArray, FloatArray]:
    """Both ends of the intervals (L,); NaN where a measure has none."""
    missing = np.full(len(result.layers), math.nan)
    return result.low.get(measure, missing), result.high.get(measure, missing)


def _value_text(result: GeometryResult, measure: str, index: int, label: str) -> str:
    """What hovering over a point says: value, interval or why there is none, images."""
    layer = result.layers[index]
    heading = f"<b>{text(layer)}</b>, {label}<br>"
    value = result.values[measure][index]
    if not math.isfinite(value):
        return f"{heading}undefined: {text(result.reason(layer, measure) or NO_REASON)}"
    low, high = (part[index] for part in _ends(result, measure))
    note = result.notes.get(f"{layer}/{measure}", "")
    counts = result.samples_by_measure.get(measure)
    samples = result.samples if counts is None else int(counts[index])
    return (
        f"{heading}{text(GEOMETRY_MEASURES[measure].title)} "
        f"{with_interval(value, low, high, form='.4g')}<br>n = {samples:,}"
        + (f"<br>{text(note)}" if note else "")
    )


def _value_axis(kind: GeometryMeasure, drawn: Sequence[FloatArray]) -> dict[str, object]:
    """The vertical axis: unit and direction, from 0 where the measure begins there."""
    every = np.concatenate([np.asarray(part) for part in drawn]) if drawn else np.array([])
    finite = every[np.isfinite(every)]
    axis: dict[str, object] = {"title": text(kind.unit), "fixedrange": True, "zeroline": False}
    # A band that reaches 0 has no place on a logarithmic axis.
    if kind.highest is None and finite.size and finite.max() > WIDE_RATIO * finite.min() > 0:
        return {**axis, "type": "log", "title": f"{text(kind.unit)}, logarithmic", "dtick": 1}
    return {**axis, "rangemode": "tozero"} if kind.lowest in (0, 1) else axis


# --------------------------------------------------------------------------------- images as points


def layer_scatter(
    points: FloatArray,
    labels: IntArray,
    classes: Sequence[str],
    numbers: IntArray,
    *,
    title: str,
    limit: float | None = None,
    selected: Sequence[int] = (),
    axis: str = "axis",
) -> go.Figure:
    """The images of one layer as points, coloured by class.

    Args:
        points: (N, 2) or (N, 3), their places.
        labels: (N,) indices into the classes.
        classes: K names.
        numbers: (N,), which images of the split they are, for hovering.
        title: What is shown, with the number of images.
        limit: Where the axes end, on both sides of 0; the same for layers that are to compare. By
            default all points fit.
        selected: Positions (0 to N - 1) of images that are picked: the others fade, and few are
            ringed besides.
        axis: What the axes are, which are numbered.

    Returns:
        One trace a class that has images, and one for its entry in the legend; the custom data of
        a point are its position and its number. A last trace marks what is picked.
    """
    if limit is None:
        limit = 1.05 * float(np.abs(points).max())
    is_picked = np.isin(np.arange(len(points)), selected)
    figure = go.Figure()
    for label in np.unique(labels):
        chosen = np.flatnonzero(labels == label)
        drawn = _class_points(points, chosen, numbers, classes, int(label), is_picked)
        figure.add_traces([drawn, _class_key(drawn)])
    if points.shape[1] == 3 or len(selected) <= MOST_RINGS:
        figure.add_trace(_picked(points, np.asarray(selected, dtype=np.int64), labels))
    lay_out(figure, title)
    if points.shape[1] == 3:
        _lay_out_space(figure, limit, axis)
    else:
        _lay_out_plane(figure, limit, axis)
    num_shown = len(np.unique(labels))
    return figure.update_layout(
        showlegend=num_shown <= MOST_NAMED_CLASSES,
        uirevision=f"{axis} {limit}",  # keeps zoom and camera from layer to layer
        selectionrevision=f"{title} {len(selected)}",  # the lasso goes, the fading stays
    )


def _lay_out_plane(figure: go.Figure, limit: float, axis: str) -> None:
    """Square axes in a thin frame, the legend below, and a lasso in the hand."""
    span = {"range": [-limit, limit], "zeroline": False, "showgrid": False, "constrain": "domain"}
    frame = {"showline": True, "mirror": True, "linecolor": FAINT, "showticklabels": False}
    figure.update_xaxes(title={"text": f"{axis} 1", "standoff": 14}, **span, **frame)
    figure.update_yaxes(
        title={"text": f"{axis} 2", "standoff": 6}, scaleanchor="x", **span, **frame
    )
    figure.update_layout(
        dragmode="lasso",
        height=HEIGHT + 100,
        margin={"l": 28, "r": 8, "t": 40, "b": 40},
        legend={"x": 0, "y": -0.08, "xanchor": "left", "yanchor": "top"},
    )


def _lay_out_space(figure: go.Figure, limit: float, axis: str) -> None:
    """A cube to be turned, the legend below."""
    span = {"range": [-limit, limit], "showticklabels": False, "showbackground": False}
    span |= {"gridcolor": FAINT, "zerolinecolor": FAINT, "showspikes": False}
    axes = {
        name: {**span, "title": {"text": f"{axis} {number}"}}
        for number, name in enumerate(("xaxis", "yaxis", "zaxis"), start=1)
    }
    figure.update_layout(
        scene={**axes, "aspectmode": "cube", "camera": {"eye": {"x": 1.0, "y": 1.0, "z": 0.8}}},
        dragmode="turntable",
        height=HEIGHT + 100,
        margin={"l": 8, "r": 8, "t": 40, "b": 8},
        legend={"x": 0, "y": 0, "xanchor": "left", "yanchor": "top"},
    )


def _class_points(
    points: FloatArray,
    chosen: IntArray,
    numbers: IntArray,
    classes: Sequence[str],
    label: int,
    is_picked: BoolArray,
) -> go.Scatter | go.Scatter3d:
    """The points of one class."""
    name = text(classes[label])
    shared = {
        "x": points[chosen, 0],
        "y": points[chosen, 1],
        "mode": "markers",
        "name": name,
        "legendgroup": name,
        "showlegend": False,
        # Lists: of arrays, Streamlit gives back something else.
        "customdata": np.stack([chosen, numbers[chosen]], axis=1).tolist(),
        "hovertext": [
            f"<b>{name}</b><br>image {place}<br>number {numbers[place]} of the split"
            for place in chosen
        ],
        "hoverinfo": "text",
    }
    marker = {
        "color": CLASS_COLOURS[label % len(CLASS_COLOURS)],
        "symbol": CLASS_SYMBOLS[(label + label // len(CLASS_COLOURS)) % len(CLASS_SYMBOLS)],
        "opacity": 0.8,
    }
    if points.shape[1] == 3:
        # In space a trace has one opacity; what is picked is drawn once more.
        marker |= {"size": 3, "opacity": 0.8 if not is_picked.any() else 2 * FADED}
        return go.Scatter3d(z=points[chosen, 2], marker=marker, **shared)
    opacity = np.where(is_picked[chosen], 1.0, FADED) if is_picked.any() else 0.8
    return go.Scatter(marker={**marker, "size": 6, "opacity": opacity}, **shared)


def _class_key(drawn: go.Scatter | go.Scatter3d) -> go.Scatter | go.Scatter3d:
    """The legend's entry of a class, which does not fade with its points."""
    marker = {"color": drawn.marker.color, "symbol": drawn.marker.symbol, "size": 7}
    shared = {"x": [None], "y": [None], "mode": "markers", "marker": marker, "name": drawn.name}
    shared |= {"legendgroup": drawn.name, "hoverinfo": "skip"}
    if isinstance(drawn, go.Scatter3d):
        return go.Scatter3d(z=[None], **shared)
    return go.Scatter(**shared)


def _picked(points: FloatArray, selected: IntArray, labels: IntArray) -> go.Scatter | go.Scatter3d:
    """The images that are picked once more: ringed in the plane, larger in space."""
    shared = {
        "x": points[selected, 0],
        "y": points[selected, 1],
        "mode": "markers",
        "hoverinfo": "skip",
        "showlegend": False,
    }
    if points.shape[1] == 3:
        colours = [CLASS_COLOURS[label % len(CLASS_COLOURS)] for label in labels[selected]]
        marker = {"symbol": "circle", "color": colours, "size": 6}
        return go.Scatter3d(z=points[selected, 2], marker=marker, **shared)
    line = {"width": 2, "color": NEUTRAL}
    marker = {"symbol": "circle-open", "color": NEUTRAL, "size": 11, "line": line}
    return go.Scatter(marker=marker, **shared)
