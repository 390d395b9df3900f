"""Geometry in, plotly figures out: one figure a measure, by depth, for any number of models."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import plotly.graph_objects as go

from analysis.figure_style import (
    LOW_HEIGHT,
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
    lay_out(figure, title)
    drawn = [
        part for result in shown for part in (result.values[measure], _ends(result, measure)[0])
    ]
    figure.update_yaxes(**_value_axis(kind, drawn))
    figure.update_xaxes(**depth_axis(layer_lists))
    mark_stages(figure, layer_lists)
    return figure.update_layout(height=LOW_HEIGHT + 40)


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
