"""Results in, plotly figures out: one function a result, no mathematics and no torch.

Colours, dashes and markers follow the learning rule and are the same in every figure. Backgrounds
are transparent and text takes the colour of the page, so that a figure fits a light and a dark one.
Names come from files, so everything that plotly would read as HTML is escaped here.
"""

from __future__ import annotations

import html
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import plotly.graph_objects as go

from analysis.cka_result import CKAPair, FloatArray
from analysis.probes import ProbeResult

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


@dataclass(frozen=True)
class Style:
    """How the curves of one checkpoint are drawn.

    Args:
        colour: Hexadecimal colour of the learning rule.
        dash: Plotly's name of the dash.
        symbol: Plotly's name of the marker.
    """

    colour: str
    dash: str
    symbol: str


# Colours of Okabe and Ito; dash and marker tell rules apart where colour alone does not.
RULE_STYLES: dict[str, Style] = {
    "bp": Style("#0072B2", "solid", "circle"),
    "auglocal": Style("#D55E00", "dash", "square"),
    "dgl": Style("#009E73", "dot", "diamond"),
    "predsim": Style("#CC79A7", "dashdot", "triangle-up"),
    "infopro": Style("#E69F00", "longdash", "cross"),
    "linear": Style("#56B4E9", "longdashdot", "star"),
}
RULE_TITLES: dict[str, str] = {
    "bp": "BP",
    "auglocal": "AugLocal",
    "dgl": "DGL",
    "predsim": "PredSim",
    "infopro": "InfoPro",
    "linear": "Linear",
}
OTHER_RULE = Style("#8A8A8A", "longdashdot", "x")
REPEATED_DASHES = ("dot", "dashdot", "longdash", "longdashdot")
NO_REASON = "no reason was kept"
NEUTRAL = "#6E8290"
UNDEFINED = "rgba(128, 140, 148, 0.15)"
FAINT = "rgba(128, 140, 148, 0.55)"
SEPARATOR = "rgba(255, 255, 255, 0.8)"


def rule_title(rule: str) -> str:
    """The name of a rule as people write it; an unknown rule is shown as it is."""
    return RULE_TITLES.get(rule, rule)


def checkpoint_styles(rules: Mapping[str, str]) -> dict[str, Style]:
    """A style for each checkpoint: the colour of its rule, told apart within a rule by dash.

    Args:
        rules: The rule by checkpoint name, in the order of drawing.

    Returns:
        The style by checkpoint name.
    """
    styles: dict[str, Style] = {}
    seen: dict[str, int] = {}
    for name, rule in rules.items():
        repeat = seen.get(rule, 0)
        seen[rule] = repeat + 1
        styles[name] = _repeated(RULE_STYLES.get(rule, OTHER_RULE), repeat)
    return styles


def _repeated(style: Style, repeat: int) -> Style:
    """The style of the second, third, ... checkpoint of the same rule: other dash, open marker."""
    if repeat == 0:
        return style
    dashes = [dash for dash in REPEATED_DASHES if dash != style.dash]
    return Style(style.colour, dashes[(repeat - 1) % len(dashes)], f"{style.symbol}-open")


def cka_map(
    pair: CKAPair,
    *,
    title: str,
    row_label: str,
    column_label: str,
    selected: tuple[int, int] | None = None,
    stretch: bool = False,
) -> go.Figure:
    """The similarity of every layer of one network to every layer of another, as square cells.

    The first layers meet in the lower left corner. Colours run from 0 to 1 whatever the values, so
    that two maps compare; unbiased estimates can lie slightly outside, and hovering shows them.

    Args:
        pair: Similarities (L_a, L_b), rows are layers of the first network.
        title: What is shown, with the number of images.
        row_label: The first network: rule and checkpoint.
        column_label: The second network: rule and checkpoint.
        selected: Row and column of the outlined cell.
        stretch: Run the colours over the range of this map only; the colour bar then says so.

    Returns:
        A figure whose second trace holds one transparent point a cell: `x` is the column, `y` the
        row. A heatmap reports no selection to Streamlit, points do.
    """
    values = np.asarray(pair.values, dtype=np.float64)
    figure = go.Figure([_cells(values, stretch), _targets(pair, row_label, column_label)])
    if not np.isfinite(values).all():
        figure.add_trace(_undefined_marks(values))
    _style(figure, title)
    num_rows, num_columns = values.shape
    figure.update_xaxes(
        title=_text(column_label),
        range=[-0.5, num_columns - 0.5],
        constraintoward="left",
        **_map_axis(pair.columns),
    )
    figure.update_yaxes(
        title=_text(row_label),
        range=[-0.5, num_rows - 0.5],
        scaleanchor="x",
        constraintoward="top",
        **_map_axis(pair.rows),
    )
    figure.update_layout(
        hoverdistance=-1,
        plot_bgcolor=UNDEFINED,
        margin={"t": 88, "pad": 0},
        shapes=_boundaries(pair.rows, pair.columns),
    )
    if selected is not None:
        _outline(figure, *selected)
    return figure


def _cells(values: FloatArray, stretch: bool) -> go.Heatmap:
    """The coloured cells; undefined ones stay empty."""
    finite = values[np.isfinite(values)]
    stretched = stretch and finite.size > 0
    low, high = (float(finite.min()), float(finite.max())) if stretched else (0.0, 1.0)
    return go.Heatmap(
        z=values,
        zmin=low,
        zmax=high,
        colorscale="Cividis",
        hoverinfo="skip",
        xgap=1,
        ygap=1,
        colorbar={
            "title": {
                "text": "CKA, stretched&nbsp;&nbsp;" if stretched else "CKA&nbsp;&nbsp;",
                "side": "right",
            },
            "orientation": "h",
            "thickness": 8,
            "len": 0.5,
            "x": 0,
            "xanchor": "left",
            "xpad": 0,
            "y": 0.999,  # from 1 on plotly moves the title up, out of the figure
            "yanchor": "bottom",
            "outlinewidth": 0,
            "tickvals": [low, (low + high) / 2, high],
            "tickformat": ".2f" if stretched else ".1f",
        },
    )


def _targets(pair: CKAPair, row_label: str, column_label: str) -> go.Scatter:
    """One transparent square a cell: what the pointer hovers over and clicks."""
    num_rows, num_columns = np.asarray(pair.values).shape
    cells = list(itertools.product(range(num_rows), range(num_columns)))
    return go.Scatter(
        x=[column for _, column in cells],
        y=[row for row, _ in cells],
        mode="markers",
        marker={"symbol": "square", "size": 16, "opacity": 0, "color": NEUTRAL},
        selected={"marker": {"opacity": 0}},
        unselected={"marker": {"opacity": 0}},
        hovertext=[_cell_text(pair, row, column, row_label, column_label) for row, column in cells],
        hoverinfo="text",
        showlegend=False,
    )


def _cell_text(pair: CKAPair, row: int, column: int, row_label: str, column_label: str) -> str:
    """What hovering over a cell says: both layers, the value with its interval, n or the reason."""
    layers = (
        f"<b>{_text(pair.rows[row])}</b>, {_text(row_label)}<br>"
        f"<b>{_text(pair.columns[column])}</b>, {_text(column_label)}<br>"
    )
    return layers + _value_text(pair, row, column)


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


def _outline(figure: go.Figure, row: int, column: int) -> None:
    """Frame the selected cell in white and black, which shows on every colour of the map."""
    corners = {"x0": column - 0.5, "x1": column + 0.5, "y0": row - 0.5, "y1": row + 0.5}
    figure.add_shape(type="rect", line={"color": "#FFFFFF", "width": 5}, **corners)
    figure.add_shape(type="rect", line={"color": "#111111", "width": 2}, **corners)


def _map_axis(layers: Sequence[str]) -> dict[str, object]:
    """An axis of a map: stages named at their middle, no grid, no zoom."""
    ticks, names = _stage_ticks(layers)
    return {
        "tickvals": ticks,
        "ticktext": names,
        "ticks": "",
        "showgrid": False,
        "zeroline": False,
        "showline": False,
        "constrain": "domain",
        "fixedrange": True,
    }


def _boundaries(rows: Sequence[str], columns: Sequence[str]) -> list[dict[str, object]]:
    """Thin lines between stages, over the map."""
    line = {"color": SEPARATOR, "width": 2}
    horizontal = [
        {"type": "line", "x0": -0.5, "x1": len(columns) - 0.5, "y0": y, "y1": y, "line": line}
        for y in _stage_edges(rows)
    ]
    vertical = [
        {"type": "line", "y0": -0.5, "y1": len(rows) - 0.5, "x0": x, "x1": x, "line": line}
        for x in _stage_edges(columns)
    ]
    return horizontal + vertical


def same_depth_curve(pair: CKAPair, *, title: str) -> go.Figure:
    """The similarity of layers at the same depth of two networks, with its 95% band.

    Args:
        pair: Similarities (L_a, L_b). Of unequal depths, each layer of the first network meets the
            layer of the second at the nearest relative depth.
        title: What is shown, with the number of images.

    Returns:
        One curve over the layers of the first network.
    """
    rows = list(range(len(pair.rows)))
    columns = pair.same_depth().tolist()
    figure = go.Figure()
    points = [
        f"<b>{_text(pair.rows[row])}</b> and <b>{_text(pair.columns[column])}</b><br>"
        + _value_text(pair, row, column)
        for row, column in zip(rows, columns, strict=True)
    ]
    _add_curve(
        figure,
        [float(row) for row in rows],
        (pair.values[rows, columns], pair.low[rows, columns], pair.high[rows, columns]),
        Style(NEUTRAL, "solid", "circle"),
        name="CKA at the same depth",
        hover=points,
    )
    _style(figure, title)
    _similarity_axis(figure)
    figure.update_xaxes(**_depth_axis([pair.rows]))
    figure.update_layout(showlegend=False, height=LOW_HEIGHT, margin_t=48)
    return figure


def profile_curves(
    pair: CKAPair,
    selected: tuple[int, int],
    *,
    title: str,
    row_label: str,
    column_label: str,
    row_rule: str,
    column_rule: str,
) -> go.Figure:
    """A row and a column of the map through one cell, as curves with 95% bands.

    Args:
        pair: Similarities (L_a, L_b).
        selected: Row and column of the cell; each curve marks it with a ring.
        title: What is shown.
        row_label: The first network: rule and checkpoint.
        column_label: The second network.
        row_rule: Rule of the first network, for the colour of the curve of its layer.
        column_rule: Rule of the second network.

    Returns:
        Two curves: the chosen layer of each network against all layers of the other.
    """
    row, column = selected
    styles = list(checkpoint_styles({"row": row_rule, "column": column_rule}).values())
    figure = go.Figure()
    row_name = f"{_text(pair.rows[row])} of {_text(row_label)}"
    column_name = f"{_text(pair.columns[column])} of {_text(column_label)}"
    positions = _positions([pair.columns, pair.rows])
    along_row = (pair.values[row], pair.low[row], pair.high[row])
    along_column = (pair.values[:, column], pair.low[:, column], pair.high[:, column])
    row_hover = [
        f"{row_name}<br>and <b>{_text(name)}</b> of {_text(column_label)}<br>"
        + _value_text(pair, row, index)
        for index, name in enumerate(pair.columns)
    ]
    column_hover = [
        f"{column_name}<br>and <b>{_text(name)}</b> of {_text(row_label)}<br>"
        + _value_text(pair, index, column)
        for index, name in enumerate(pair.rows)
    ]
    _add_curve(figure, positions[0], along_row, styles[0], name=row_name, hover=row_hover)
    _add_curve(figure, positions[1], along_column, styles[1], name=column_name, hover=column_hover)
    _ring(figure, positions[0][column], pair.values[row, column], styles[0])
    _ring(figure, positions[1][row], pair.values[row, column], styles[1])
    _style(figure, title)
    _similarity_axis(figure)
    figure.update_xaxes(**_depth_axis([pair.columns, pair.rows]))
    figure.update_xaxes(title="layer compared with")
    return figure


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
        checkpoint's own classifier, and a line at chance.
    """
    styles = checkpoint_styles({probe.model: rules.get(probe.model, "") for probe in probes})
    figure = go.Figure()
    positions = _positions([probe.layers for probe in probes])
    for probe, xs in zip(probes, positions, strict=True):
        style = styles[probe.model]
        label = checkpoint_label(rules.get(probe.model, ""), probe.model)
        hover = [_probe_text(probe, index, label) for index in range(len(probe.layers))]
        _add_curve(
            figure,
            xs,
            (probe.accuracy, probe.low, probe.high),
            style,
            name=_text(label),
            hover=hover,
        )
        _classifier_line(figure, probe, xs, style, label)
    _chance_lines(figure, probes)
    _style(figure, title)
    figure.update_yaxes(title="accuracy", range=[0, 1.02], tickformat=".0%", fixedrange=True)
    figure.update_xaxes(**_depth_axis([probe.layers for probe in probes]))
    return figure


def checkpoint_label(rule: str, name: str) -> str:
    """Rule and checkpoint as axes and legends name them; plain text, not yet escaped."""
    return f"{rule_title(rule)}, {name}" if rule else name


def _probe_text(probe: ProbeResult, index: int, label: str) -> str:
    """What hovering over a point of a probe curve says."""
    name = probe.layers[index]
    layer = f"<b>{_text(name)}</b>, {_text(label)}<br>"
    if not math.isfinite(probe.accuracy[index]):
        return f"{layer}undefined: {_text(probe.undefined.get(name, NO_REASON))}"
    return (
        f"{layer}probe {probe.accuracy[index]:.1%} "
        f"(95%: {probe.low[index]:.1%} to {probe.high[index]:.1%})<br>"
        f"n = {probe.test_samples:,} test, {probe.train_samples:,} training images"
    )


def _classifier_line(
    figure: go.Figure, probe: ProbeResult, xs: Sequence[float], style: Style, label: str
) -> None:
    """A dotted line at the accuracy of the checkpoint's own classifier."""
    if probe.classifier_accuracy is None:
        return
    text = f"own classifier of {_text(label)}<br>{probe.classifier_accuracy:.1%}"
    figure.add_trace(
        go.Scatter(
            x=[xs[0], xs[-1]],
            y=[probe.classifier_accuracy] * 2,
            mode="lines",
            line={"color": style.colour, "width": 1.25, "dash": "dot"},
            hovertext=text,
            hoverinfo="text",
            showlegend=False,
        )
    )


def _chance_lines(figure: go.Figure, probes: Sequence[ProbeResult]) -> None:
    """A thin line at chance; checkpoints probed on the same data share one."""
    for chance in sorted({float(probe.chance) for probe in probes}):
        figure.add_hline(
            y=chance,
            line={"color": FAINT, "width": 1.25},
            annotation={"text": f"chance, {chance:.1%}", "font": {"size": 12}},
            annotation_position="top right",
        )


def _value_text(pair: CKAPair, row: int, column: int) -> str:
    """A similarity with its interval, n, or the reason why there is none."""
    if not math.isfinite(pair.values[row, column]):
        return f"undefined: {_text(pair.reason(row, column) or NO_REASON)}"
    value = f"CKA {pair.values[row, column]:.3f}"
    if math.isfinite(pair.low[row, column]):
        value += f" (95%: {pair.low[row, column]:.3f} to {pair.high[row, column]:.3f})"
    return f"{value}<br>n = {pair.samples:,}"


def _add_curve(
    figure: go.Figure,
    xs: Sequence[float],
    bounds: tuple[FloatArray, FloatArray, FloatArray],
    style: Style,
    *,
    name: str,
    hover: Sequence[str],
) -> None:
    """A band from low to high and on it the curve with its markers; undefined points leave gaps."""
    values, low, high = bounds
    for start, stop in _finite_runs(low, high):
        figure.add_trace(_band(xs[start:stop], low[start:stop], high[start:stop], style))
    figure.add_trace(
        go.Scatter(
            x=list(xs),
            y=[float(value) if math.isfinite(value) else None for value in values],
            mode="lines+markers",
            name=name,
            line={"color": style.colour, "dash": style.dash, "width": 2},
            marker={"color": style.colour, "symbol": style.symbol, "size": 7},
            hovertext=list(hover),
            hoverinfo="text",
            connectgaps=False,
        )
    )


def _band(xs: Sequence[float], low: FloatArray, high: FloatArray, style: Style) -> go.Scatter:
    """The filled area of an interval."""
    red, green, blue = (int(style.colour[start : start + 2], 16) for start in (1, 3, 5))
    return go.Scatter(
        x=[*xs, *reversed(xs)],
        y=[*low.tolist(), *reversed(high.tolist())],
        fill="toself",
        mode="lines",
        line={"width": 0},
        fillcolor=f"rgba({red}, {green}, {blue}, 0.25)",
        hoverinfo="skip",
        showlegend=False,
    )


def _finite_runs(low: FloatArray, high: FloatArray) -> list[tuple[int, int]]:
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


def _ring(figure: go.Figure, x: float, y: float, style: Style) -> None:
    """Mark the selected cell on a curve."""
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


def _style(figure: go.Figure, title: str) -> None:
    """What every figure shares: transparent, quiet, the title at the left."""
    figure.update_layout(
        title={"text": _text(title), "x": 0, "xref": "container", "y": 0.98, "yanchor": "top"},
        title_font={"size": 15},
        height=HEIGHT,
        margin={"l": 64, "r": 16, "t": 84, "b": 56},
        paper_bgcolor="rgba(0, 0, 0, 0)",
        plot_bgcolor="rgba(0, 0, 0, 0)",
        dragmode=False,
        hovermode="closest",
        legend={"orientation": "h", "x": 0, "y": 1.01, "xanchor": "left", "yanchor": "bottom"},
        hoverlabel={"align": "left"},
    )


def _similarity_axis(figure: go.Figure) -> None:
    """CKA from 0 to 1, with room for unbiased estimates slightly below 0."""
    figure.update_yaxes(title="CKA", range=[-0.04, 1.02], tickformat=".1f", fixedrange=True)


def _positions(layer_lists: Sequence[Sequence[str]]) -> list[list[float]]:
    """Where the layers of each network stand: by index, or by relative depth if names differ."""
    if _same_layers(layer_lists):
        return [[float(index) for index in range(len(layers))] for layers in layer_lists]
    return [
        [index / max(1, len(layers) - 1) for index in range(len(layers))] for layers in layer_lists
    ]


def _depth_axis(layer_lists: Sequence[Sequence[str]]) -> dict[str, object]:
    """The horizontal axis of a curve over layers."""
    shared = {"showgrid": False, "zeroline": False, "fixedrange": True}
    if not layer_lists or not _same_layers(layer_lists):
        ticks = {"tickvals": [0, 1], "ticktext": ["first layer", "last layer"]}
        return {"title": "depth", "range": [-0.03, 1.03], **ticks, **shared}
    layers = layer_lists[0]
    tick_values, tick_texts = _stage_ticks(layers)
    return {
        "title": "layer",
        "range": [-0.4, len(layers) - 0.6],
        "tickvals": tick_values,
        "ticktext": tick_texts,
        **shared,
    }


def _same_layers(layer_lists: Sequence[Sequence[str]]) -> bool:
    """Whether all networks have the same layers in the same order."""
    return all(tuple(layers) == tuple(layer_lists[0]) for layers in layer_lists)


def _stage_edges(layers: Sequence[str]) -> list[float]:
    """Positions between layers of different stages."""
    stages = [layer.split("_")[0] for layer in layers]
    return [index - 0.5 for index in range(1, len(stages)) if stages[index] != stages[index - 1]]


def _stage_ticks(layers: Sequence[str]) -> tuple[list[float], list[str]]:
    """Middle and name of every stage; of many stages only every few, so that names do not touch."""
    edges = [-0.5, *_stage_edges(layers), len(layers) - 0.5]
    middles = [(start + stop) / 2 for start, stop in itertools.pairwise(edges)]
    names = [_text(layers[math.ceil(edge)].split("_")[0]) for edge in edges[:-1]]
    step = math.ceil(len(middles) / 10)
    return middles[::step], names[::step]


def _text(text: str) -> str:
    """Text as plotly shows it and no more: no tags, no links."""
    return html.escape(str(text), quote=False)
