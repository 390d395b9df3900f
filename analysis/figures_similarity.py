"""Similarities other than CKA, and measures along training, as plotly figures.

One function a result, no mathematics and no torch. Colours know which way a measure runs: the
light end of the scale is always the one where layers are alike.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go

from analysis.figure_maps import Axis, Colours, draw_map, outline
from analysis.figure_style import (
    LOW_HEIGHT,
    NO_REASON,
    FloatArray,
    Style,
    add_curve,
    add_level,
    depth_axis,
    lay_out,
    mark_stages,
    positions,
    text,
    with_interval,
)
from analysis.paired import matched_depth
from analysis.similarity import SimilarityResult

SHORT_NAMES: dict[str, str] = {
    "svcca": "SVCCA",
    "pwcca": "PWCCA",
    "procrustes": "Procrustes",
    "rsa": "RSA",
    "neighbours": "overlap",
    "predictivity": "R²",
}
PAIR_STYLE = Style("#8E63B8", "solid", "circle")


def similarity_pair_map(
    result: SimilarityResult,
    *,
    title: str,
    row_label: str,
    column_label: str,
    selected: tuple[int, int] | None = None,
) -> go.Figure:
    """The similarity of every layer of one network to every layer of another, by any measure.

    Colours run over the whole range of the measure whatever the values, so that two maps of one
    measure compare. A range without a lower end begins at 0, and the colour bar says so; a range
    on both sides of 0 has a scale with two colours.

    Args:
        result: Values (L_a, L_b) with their range and direction.
        title: What is shown, with the number of images.
        row_label: The first network: rule and checkpoint.
        column_label: The second network: rule and checkpoint.
        selected: Row and column of the outlined cell.

    Returns:
        A figure as of `cka_map`: its second trace holds one transparent point a cell.
    """

    def hover(row: int, column: int) -> str:
        layers = (
            f"<b>{text(result.rows[row])}</b>, {text(row_label)}<br>"
            f"<b>{text(result.columns[column])}</b>, {text(column_label)}<br>"
        )
        return layers + value_text(result, row, column)

    figure = draw_map(
        result.values,
        hover,
        title=title,
        rows=Axis(row_label, result.rows),
        columns=Axis(column_label, result.columns),
        colours=measure_colours(result),
    )
    if selected is not None:
        outline(figure, *selected)
    return figure


def measure_colours(result: SimilarityResult) -> Colours:
    """The colours of a measure: its range, and the way it runs."""
    low, high = _ends(result)
    is_higher = result.direction.startswith("higher")
    name = text(SHORT_NAMES.get(result.measure, result.title))
    if low < 0 < high:
        ticks, scale = (low, 0.0, high), "RdBu" if is_higher else "RdBu_r"
    else:
        ticks, scale = (low, (low + high) / 2, high), "Cividis" if is_higher else "Cividis_r"
    texts = [f"{tick:.3g}" for tick in ticks]
    if not math.isfinite(result.range[0]):
        texts[0] = f"≤ {texts[0]}"
    if not math.isfinite(result.range[1]):
        texts[-1] = f"≥ {texts[-1]}"
    return Colours(name, low, high, scale, ticks, tick_texts=tuple(texts))


def _ends(result: SimilarityResult) -> tuple[float, float]:
    """The measure's range; where it has no end, 0 below and the largest value above."""
    low, high = result.range
    values = np.asarray(result.values, dtype=np.float64)
    finite = values[np.isfinite(values)]
    low = low if math.isfinite(low) else 0.0
    if not math.isfinite(high):
        high = float(finite.max()) if finite.size else 1.0
    return low, high if high > low else low + 1.0


def value_text(result: SimilarityResult, row: int, column: int) -> str:
    """A value with its interval, chance level, direction and n, or why there is none; escaped."""
    cell = (row, column)
    if not math.isfinite(result.values[cell]):
        return f"undefined: {text(result.reason(row, column) or NO_REASON)}"
    value = with_interval(result.values[cell], result.low[cell], result.high[cell])
    chance = result.chance[cell]
    level = f"<br>chance level {chance:.3f}" if math.isfinite(chance) else ""
    return (
        f"{text(result.title)} {value}{level}<br>{text(result.direction)}; n = {result.samples:,}"
    )


def similarity_curve(
    result: SimilarityResult, *, title: str, row_label: str, column_label: str
) -> go.Figure:
    """Any measure of layers at the same depth of two networks, with its 95% band and chance level.

    Args:
        result: Values (L_a, L_b). Of unequal depths, each layer of the first network meets the
            layer of the second at the nearest relative depth.
        title: What is shown, with the number of images.
        row_label: The first network.
        column_label: The second network.

    Returns:
        One curve over the layers of the first network, and what unrelated layers would score.
    """
    columns = matched_depth(len(result.rows), len(result.columns)).tolist()
    rows = list(range(len(result.rows)))
    name = f"{text(row_label)} and {text(column_label)}"
    hover = [
        f"<b>{text(result.rows[row])}</b> and <b>{text(result.columns[column])}</b><br>"
        + value_text(result, row, column)
        for row, column in zip(rows, columns, strict=True)
    ]
    xs = positions([result.rows])[0]
    figure = go.Figure()
    bounds = tuple(part[rows, columns] for part in (result.values, result.low, result.high))
    add_curve(figure, xs, (bounds[0], bounds[1], bounds[2]), PAIR_STYLE, name=name, hover=hover)
    levels = result.chance[rows, columns]
    if np.isfinite(levels).any():
        texts = [f"chance level {level:.3f}" for level in levels]
        add_level(figure, xs, levels, name="chance level", hover=texts)
    lay_out(figure, title, LOW_HEIGHT + 60)
    low, high = _ends(result)
    margin = 0.03 * (high - low)
    figure.update_yaxes(
        title=f"{text(SHORT_NAMES.get(result.measure, result.title))} ({text(result.direction)})",
        fixedrange=True,
    )
    figure.update_yaxes(range=_shown(bounds, low - margin, high + margin), zeroline=False)
    figure.update_xaxes(**depth_axis([result.rows]))
    mark_stages(figure, [result.rows])
    return figure


def _shown(bounds: Sequence[FloatArray], low: float, high: float) -> list[float]:
    """The range of the axis: that of the measure, and what lies below its drawn end."""
    finite = bounds[0][np.isfinite(bounds[0])]
    return [min([low, *finite.tolist()]), high]


def epoch_layer_map(
    values: FloatArray,
    epochs: Sequence[int],
    layers: Sequence[str],
    *,
    title: str,
    unit: str,
    lowest: float | None = None,
    highest: float | None = None,
) -> go.Figure:
    """A measure along training: layers upwards, epochs to the right.

    Args:
        values: (E, L), NaN where undefined.
        epochs: (E,) epochs of the snapshots, in order.
        layers: (L,) names of the layers.
        title: What is shown, with the number of images.
        unit: What the values are, for the colour bar.
        lowest: Where colours begin; by default the smallest value here. Give it, and `highest`,
            for maps that are to compare.
        highest: Where colours end.

    Raises:
        ValueError: The shape of the values is not that of epochs and layers.
    """
    values = np.asarray(values, dtype=np.float64)
    if values.shape != (len(epochs), len(layers)):
        raise ValueError(
            f"the values of {len(epochs)} epochs and {len(layers)} layers have the shape "
            f"{values.shape}; give one row an epoch and one column a layer"
        )
    finite = values[np.isfinite(values)]
    low = lowest if lowest is not None else float(finite.min()) if finite.size else 0.0
    high = highest if highest is not None else float(finite.max()) if finite.size else 1.0
    high = high if high > low else low + 1.0

    def hover(row: int, column: int) -> str:
        value = values[column, row]
        shown = f"{text(unit)} {value:.3f}" if math.isfinite(value) else "undefined"
        return f"<b>{text(layers[row])}</b>, epoch {epochs[column]}<br>{shown}"

    ticks = (low, (low + high) / 2, high)
    return draw_map(
        values.T,
        hover,
        title=title,
        rows=Axis("layer", layers),
        columns=Axis("epoch", list(epochs), by_stage=False),
        colours=Colours(
            text(unit), low, high, ticks=ticks, tick_texts=tuple(f"{tick:.3g}" for tick in ticks)
        ),
        square=False,
    )
