"""Plans of auxiliary networks in, plotly figures out: which later layers each local layer copies.

A plan is the dictionary that `python -m auglocal plan --json` prints, so that this file needs
nothing but plain values.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go

from analysis.figure_style import (
    FAINT,
    HEIGHT,
    NEUTRAL,
    RULE_STYLES,
    lay_out,
    stage_edges,
    stage_ticks,
    text,
)

Plan = Mapping[str, Any]
Row = Mapping[str, Any]

COPIED, HALVED = "#EFA36B", "#B54A00"  # light and dark of AugLocal's colour
LAYER = RULE_STYLES["bp"].colour
AUXILIARY = RULE_STYLES["auglocal"].colour
LATER = "rgba(128, 140, 148, 0.14)"
BOX = "rgba(128, 140, 148, 0.22)"
ORIGINAL = "rgba(213, 94, 0, 0.2)"  # of a layer that is copied: the copy itself is opaque
UPPER, BOX_HEIGHT, BOX_WIDTH = 1.7, 0.62, 0.72  # in units of layers along, and of rows up
ROOM_FOR_TEXT = 0.085  # of the width, between boxes that have words above them


@dataclass(frozen=True)
class CostRow:
    """One kind of cost, by layer, each (L,).

    Attributes:
        title: with its unit.
        layers: of the backbone's own layers.
        auxiliaries: of the auxiliary network that ends there, 0 where none does.
        bp: of BP, where that is something else than the layers' own; otherwise None.
    """

    title: str
    layers: Sequence[float]
    auxiliaries: Sequence[float]
    bp: Sequence[float] | None = None


def copies_map(plan: Plan, chosen: int, *, title: str) -> go.Figure:
    """Which later layers (columns) each local layer (rows) copies into its auxiliary network.

    Args:
        plan: What `auglocal plan` prints.
        chosen: Index of the local layer whose row is outlined.
        title: What is shown.

    Returns:
        A map whose cells can be clicked; (x, y) of a clicked point are the indices of the layers.
    """
    names = [layer["name"] for layer in plan["layers"]]
    figure = go.Figure()
    for is_halved, colour, name in (
        (False, COPIED, "copied"),
        (True, HALVED, "copied, halves the size"),
    ):
        cells = [cell for cell in _copies(plan) if (cell[2] > 1) == is_halved]
        if cells:
            figure.add_trace(_cells(cells, len(names), colour, name))
    figure.add_trace(_click_targets(plan, names))
    lay_out(figure, title)
    num = len(names)
    shapes = [
        {"type": "path", "path": _later_cells(plan), "fillcolor": LATER, "line_width": 0},
        *_stage_lines(names),
        {
            "type": "rect",
            "x0": -0.5,
            "x1": num - 0.5,
            "y0": chosen - 0.5,
            "y1": chosen + 0.5,
            "line": {"color": AUXILIARY, "width": 2},
        },
    ]
    figure.update_layout(shapes=shapes, hoverdistance=-1)
    tick_values, tick_texts = stage_ticks(names)
    shared = {
        "range": [-0.5, num - 0.5],
        "tickvals": tick_values,
        "ticktext": tick_texts,
        "showgrid": False,
        "zeroline": False,
        "fixedrange": True,
        "constrain": "domain",
    }
    figure.update_xaxes(title="layer that is copied", **shared)
    figure.update_yaxes(title="local layer", scaleanchor="x", **shared)
    return figure


def _copies(plan: Plan) -> list[tuple[int, int, int]]:
    """(local layer, copied layer, stride) of every copy."""
    return [
        (row["layer"], index, stride)
        for row in plan["auxiliaries"]
        for index, stride in zip(row["selected"], row["strides"])
    ]


def _cells(cells: Sequence[tuple[int, int, int]], size: int, colour: str, name: str) -> go.Heatmap:
    """Some cells of the map in one colour."""
    values: list[list[float | None]] = [[None] * size for _ in range(size)]
    for row, column, _ in cells:
        values[row][column] = 1.0
    return go.Heatmap(
        z=values,
        colorscale=[[0, colour], [1, colour]],
        showscale=False,
        hoverinfo="skip",
        xgap=1 if size < 30 else 0.5,
        ygap=1 if size < 30 else 0.5,
        name=name,
        showlegend=True,
    )


def _click_targets(plan: Plan, names: Sequence[str]) -> go.Scatter:
    """Transparent squares that take hovering and clicks: heatmaps take no clicks in Streamlit."""
    xs, ys, hover = [], [], []
    for row in plan["auxiliaries"]:
        for column in range(row["layer"] + 1, len(names)):
            xs.append(column)
            ys.append(row["layer"])
            hover.append(_cell_text(row, column, names))
    size = max(5, round(360 / len(names)))
    return go.Scatter(
        x=xs,
        y=ys,
        mode="markers",
        marker={"symbol": "square", "size": size, "color": "rgba(0, 0, 0, 0)"},
        selected={"marker": {"opacity": 0}},
        unselected={"marker": {"opacity": 0}},
        hovertext=hover,
        hoverinfo="text",
        showlegend=False,
    )


def _cell_text(row: Row, column: int, names: Sequence[str]) -> str:
    """What hovering over a cell says."""
    local, other = (text(names[index]) for index in (row["layer"], column))
    if column not in row["selected"]:
        return f"<b>{local}</b> does not copy {other}"
    return f"<b>{local}</b> copies {other}<br>{copy_text(row, row['selected'].index(column))}"


def copy_text(row: Row, place: int) -> str:
    """Channels and stride of one copy of an auxiliary network, in words."""
    before, after = row["channels"][place]
    channels = f"{before} → {after} channels" if before != after else f"{after} channels"
    return f"{channels}, stride {row['strides'][place]}"


def _later_cells(plan: Plan) -> str:
    """All cells of local layers with the layers after them, as an SVG path."""
    end = len(plan["layers"]) - 0.5
    rows = [row["layer"] for row in plan["auxiliaries"]]
    return " ".join(
        f"M {row + 0.5},{row - 0.5} H {end} V {row + 0.5} H {row + 0.5} Z" for row in rows
    )


def _stage_lines(names: Sequence[str]) -> list[dict[str, object]]:
    """Thin lines between stages, both ways."""
    line = {"color": FAINT, "width": 0.5}
    low, high = -0.5, len(names) - 0.5
    lines: list[dict[str, object]] = []
    for edge in stage_edges(names):
        lines.append({"type": "line", "x0": edge, "x1": edge, "y0": low, "y1": high, "line": line})
        lines.append({"type": "line", "x0": low, "x1": high, "y0": edge, "y1": edge, "line": line})
    return lines


# ---------------------------------------------------------------------------------------- diagram


def auxiliary_diagram(plan: Plan, chosen: int | None, *, title: str) -> go.Figure:
    """The backbone as a row of boxes; above it, the auxiliary network of the chosen local layer.

    Each copy stands above the layer it is a copy of, with a dotted line between them. Short strokes
    below the boxes are where no gradient passes.

    Args:
        plan: What `auglocal plan` prints.
        chosen: Index of the local layer; None where a rule has none (BP).
        title: What is shown.
    """
    layers = plan["layers"]
    row = next((row for row in plan["auxiliaries"] if row["layer"] == chosen), None)
    figure = go.Figure()
    shapes = _backbone_shapes(plan, row)
    annotations = [_word(len(layers), 0, "classifier", "bottom")]
    if row is not None:
        shapes += _auxiliary_shapes(row, len(layers))
        annotations += _auxiliary_words(row, len(layers))
    figure.add_trace(_box_hover(plan, row))
    lay_out(figure, title)
    tick_values, tick_texts = stage_ticks([layer["name"] for layer in layers])
    quiet = {"showgrid": False, "zeroline": False, "fixedrange": True}
    figure.update_layout(
        shapes=shapes,
        annotations=annotations,
        height=280 if row is not None else 190,
        margin={"l": 16, "r": 24, "t": 48, "b": 44},
        showlegend=False,
    )
    figure.update_xaxes(
        range=[-0.8, len(layers) + 0.8], tickvals=tick_values, ticktext=tick_texts, **quiet
    )
    top = UPPER + 0.75 if row is not None else 0.8
    return figure.update_yaxes(range=[-0.75, top], visible=False, **quiet)


def _box(x: float, y: float, fill: str, line: str, width: float = 1) -> dict[str, object]:
    """A box of a layer around its middle."""
    return {
        "type": "rect",
        "x0": x - BOX_WIDTH / 2,
        "x1": x + BOX_WIDTH / 2,
        "y0": y - BOX_HEIGHT / 2,
        "y1": y + BOX_HEIGHT / 2,
        "fillcolor": fill,
        "line": {"color": line, "width": width},
    }


def _line(xs: tuple[float, float], ys: tuple[float, float], **style: object) -> dict[str, object]:
    """A straight line below the boxes."""
    ends = {"x0": xs[0], "x1": xs[1], "y0": ys[0], "y1": ys[1]}
    return {"type": "line", "layer": "below", **ends, "line": style}


def _backbone_shapes(plan: Plan, row: Row | None) -> list[dict[str, object]]:
    """The boxes of the backbone, the line through them and the ends of its blocks."""
    num = len(plan["layers"])
    shapes: list[dict[str, object]] = [
        {
            "type": "path",
            "path": _between_boxes([-1, *range(num + 1)], 0),
            "line": {"color": NEUTRAL, "width": 1.5},
        }
    ]
    copied = set(row["selected"]) if row is not None else set()
    for index in range(num):
        is_chosen = row is not None and index == row["layer"]
        fill = AUXILIARY if is_chosen else ORIGINAL if index in copied else BOX
        line = AUXILIARY if is_chosen or index in copied else NEUTRAL
        shapes.append(_box(index, 0, fill, line))
    shapes.append(_box(num, 0, BOX, NEUTRAL))
    for block in plan["blocks"][:-1]:
        edge = block[-1] + 0.5
        style = {"color": NEUTRAL, "width": 1.5}
        shapes.append(_line((edge, edge), (-0.6, -BOX_HEIGHT / 2 - 0.08), **style))
    return shapes


def _auxiliary_shapes(row: Row, num: int) -> list[dict[str, object]]:
    """The boxes of an auxiliary network, the way into them, and what each is a copy of."""
    half = BOX_HEIGHT / 2
    flow = {"color": AUXILIARY, "width": 2}
    end = num if row["selected"] else row["layer"] + 1.2
    shapes: list[dict[str, object]] = [
        _line((row["layer"], row["layer"]), (half, UPPER), **flow),
        {"type": "path", "path": _way_in(row, end), "line": flow},
    ]
    for index, stride in zip(row["selected"], row["strides"]):
        dots = {"color": AUXILIARY, "width": 1.2, "dash": "dot"}
        shapes.append(_line((index, index), (half, UPPER - half), **dots))
        shapes.append(_box(index, UPPER, HALVED if stride > 1 else COPIED, AUXILIARY))
    shapes.append(_box(end, UPPER, BOX, AUXILIARY))
    return shapes


def _between_boxes(places: Sequence[float], y: float) -> str:
    """A line through boxes, left out inside them, as an SVG path."""
    half = BOX_WIDTH / 2
    return " ".join(
        f"M {before + half},{y} L {after - half},{y}"
        for before, after in itertools.pairwise(places)
    )


def _way_in(row: Row, end: float) -> str:
    """The line from above the local layer through the copies to the end, as an SVG path."""
    places = [*row["selected"], end]
    first = f"M {row['layer']},{UPPER} L {places[0] - BOX_WIDTH / 2},{UPPER}"
    return f"{first} {_between_boxes(places, UPPER)}".strip()


def _word(x: float, y: float, words: str, side: str) -> dict[str, object]:
    """A word above or below a box."""
    sign = 1 if side == "top" else -1
    return {
        "x": x,
        "y": y + sign * (BOX_HEIGHT / 2 + 0.05),
        "text": words,
        "showarrow": False,
        "yanchor": "bottom" if side == "top" else "top",
        "font": {"size": 11},
        "xanchor": "center",
    }


def _auxiliary_words(row: Row, num: int) -> list[dict[str, object]]:
    """Channels above the copies, where there is room, and what stands at the end."""
    places = [*row["selected"], num] if row["selected"] else [row["layer"] + 1.2]
    words = [_word(places[-1], UPPER, "local loss", "top")]
    words[0]["xanchor"] = "right" if row["selected"] else "left"
    words[0]["x"] = places[-1] + (BOX_WIDTH / 2 if row["selected"] else -BOX_WIDTH / 2)
    gaps = [later - earlier for earlier, later in itertools.pairwise([row["layer"], *places])]
    for place, gap, after in zip(range(len(row["selected"])), gaps, [*gaps[1:], 0]):
        if min(gap, after) < ROOM_FOR_TEXT * num and not (num < 14 and gap >= 1 and after >= 2):
            continue
        before, channels = row["channels"][place]
        label = f"{before} → {channels}" if before != channels else f"{channels}"
        words.append(_word(row["selected"][place], UPPER, label, "top"))
    return words


def _box_hover(plan: Plan, row: Row | None) -> go.Scatter:
    """Invisible markers on the boxes that say what each is."""
    names = [text(layer["name"]) for layer in plan["layers"]]
    xs: list[float] = list(range(len(names)))
    ys: list[float] = [0.0] * len(names)
    hover = [
        f"<b>{name}</b><br>{layer['channels']} channels, {layer['size']} x {layer['size']}"
        for name, layer in zip(names, plan["layers"])
    ]
    for place, index in enumerate(row["selected"] if row is not None else ()):
        assert row is not None
        xs.append(index)
        ys.append(UPPER)
        hover.append(f"a fresh copy of <b>{names[index]}</b><br>{copy_text(row, place)}")
    return go.Scatter(
        x=xs,
        y=ys,
        mode="markers",
        marker={"size": 14, "color": "rgba(0, 0, 0, 0)"},
        hovertext=hover,
        hoverinfo="text",
        showlegend=False,
    )


# ------------------------------------------------------------------------------------------ costs


def cost_bars(names: Sequence[str], rows: Sequence[CostRow], *, title: str) -> go.Figure:
    """Costs by layer, a kind above another: the layer's own, and on it its auxiliary network's.

    Args:
        names: (L,) of the layers.
        rows: Kinds of cost, from the top.
        title: What is shown.
    """
    figure = go.Figure()
    xs = list(range(len(names)))
    labels = [text(name) for name in names]
    for place, row in enumerate(rows, start=1):
        axis = f"y{place}"
        first = place == 1
        for values, name, colour in (
            (row.layers, "the layer", LAYER),
            (row.auxiliaries, "its auxiliary network", AUXILIARY),
        ):
            figure.add_trace(
                go.Bar(
                    x=xs,
                    y=list(values),
                    name=name,
                    legendgroup=name,
                    showlegend=first,
                    yaxis=axis,
                    marker={"color": colour, "line": {"width": 0}},
                    customdata=labels,
                    hovertemplate=f"<b>%{{customdata}}</b><br>{name}: %{{y:,.4~g}} "
                    f"{text(row.title)}<extra></extra>",
                )
            )
        if row.bp is not None:
            figure.add_trace(_bp_line(xs, row, labels, axis))
    lay_out(figure, title)
    _stack(figure, rows)
    tick_values, tick_texts = stage_ticks(names)
    figure.update_xaxes(
        range=[-0.6, len(names) - 0.4],
        tickvals=tick_values,
        ticktext=tick_texts,
        anchor=f"y{len(rows)}",
        showgrid=False,
        zeroline=False,
        fixedrange=True,
    )
    return figure


def _bp_line(xs: list[int], row: CostRow, labels: list[str], axis: str) -> go.Scatter:
    """What BP pays, as a line."""
    return go.Scatter(
        x=xs,
        y=list(row.bp or ()),
        name="BP",
        mode="lines",
        yaxis=axis,
        line={"color": LAYER, "width": 2, "dash": "dot"},
        customdata=labels,
        hovertemplate=f"<b>%{{customdata}}</b><br>BP: %{{y:,.4~g}} {text(row.title)}"
        "<extra></extra>",
    )


def _stack(figure: go.Figure, rows: Sequence[CostRow]) -> None:
    """Give each kind of cost a strip of the height, from the top."""
    gap = 0.09
    height = (1 - gap * (len(rows) - 1)) / len(rows)
    for place, row in enumerate(rows):
        top = 1 - place * (height + gap)
        figure.update_layout(
            {
                f"yaxis{place + 1}": {
                    "domain": [max(0.0, top - height), top],
                    "title": {"text": text(row.title)},
                    "fixedrange": True,
                    "rangemode": "tozero",
                    "nticks": 4,
                    "zeroline": False,
                }
            }
        )
    figure.update_layout(barmode="stack", bargap=0.15, height=HEIGHT)
