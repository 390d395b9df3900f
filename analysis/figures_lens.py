"""One image under the lens, as figures: a strip of beliefs, a curve by depth, small images.

Numbers, names and pixels in, plotly figures out; no mathematics and no torch.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import plotly.graph_objects as go

from analysis.figure_maps import Axis, Colours, draw_map
from analysis.figure_style import (
    LOW_HEIGHT,
    NEUTRAL,
    NO_REASON,
    FloatArray,
    Style,
    add_curve,
    add_ring,
    checkpoint_label,
    checkpoint_styles,
    depth_axis,
    gapped,
    lay_out,
    mark_stages,
    positions,
    text,
)

Pixels = npt.NDArray[np.uint8]

ROW = 25  # pixels of a class in a strip
LONGEST = 14  # letters of a class name beside a strip or under an image
THUMBNAIL = 64  # pixels at least, so that the browser does not blur them
HEAD = "head"  # the classifier's column; a longer name would touch the next one


@dataclass(frozen=True, eq=False)
class Beliefs:
    """What readers of one kind say of one image, along the layers of a network.

    Attributes:
        reader: what to call one of them: "probe", "auxiliary network".
        layers: L names; the classifier's column comes after them.
        probabilities: (L + 1, K), NaN where undefined.
        reasons: why a column is undefined, by its index.
        accuracy: (L + 1,), of each reader on the test images; NaN where unknown.
        classes: K names.
    """

    reader: str
    layers: tuple[str, ...]
    probabilities: FloatArray
    reasons: dict[int, str]
    accuracy: FloatArray
    classes: tuple[str, ...]

    def name(self, column: int) -> str:
        """Who speaks in a column, as hover texts name it; escaped."""
        if column == len(self.layers):
            return "the network's own <b>classifier</b>"
        return f"<b>{text(self.layers[column])}</b>, {self.reader}"


def belief_strip(
    beliefs: Beliefs,
    *,
    title: str,
    shown: Sequence[int],
    true_class: int | None,
    selected: tuple[int, int] | None = None,
) -> go.Figure:
    """Probabilities of classes (rows) by layer (columns), the network's classifier at the end.

    Colours run from 0 to 1 whatever the values. A dot marks the class that each column names; the
    row of the true class is framed and named in bold.

    Args:
        beliefs: what is said.
        title: what is shown.
        shown: indices of the classes to show, from the top down.
        true_class: index of the class that the image is of; None where that is unknown.
        selected: column and class that are chosen elsewhere; marked by a ring.

    Returns:
        A figure whose second trace holds one transparent point a cell: `x` is the column, and `y`
        counts rows from below.
    """
    upwards = list(reversed(shown))
    values = np.asarray(beliefs.probabilities, dtype=np.float64)[:, upwards].T

    def hover(row: int, column: int) -> str:
        return _belief_text(beliefs, column, upwards[row], true_class)

    names = [_short(beliefs.classes[index]) for index in upwards]
    figure = draw_map(
        values,
        hover,
        title=title,
        rows=Axis("", names, by_stage=False),
        columns=Axis("layer", [*beliefs.layers, HEAD]),
        colours=Colours("probability"),
        square=False,
    )
    figure.data[1].marker.size = ROW - 6
    _mark_winners(figure, beliefs, upwards)
    ticks = [
        f"<b>{text(name)}</b>" if index == true_class else text(name)
        for index, name in zip(upwards, names, strict=True)
    ]
    figure.update_yaxes(tickvals=list(range(len(ticks))), ticktext=ticks, title=None)
    figure.update_layout(height=ROW * len(shown) + 148, margin={"l": 92, "t": 96, "b": 52, "r": 16})
    if true_class in upwards:
        _frame_row(figure, upwards.index(true_class), len(beliefs.layers) + 1)
    if selected is not None and selected[1] in upwards:
        _ring(figure, selected[0], upwards.index(selected[1]))
    return figure


def _belief_text(beliefs: Beliefs, column: int, index: int, true_class: int | None) -> str:
    """What hovering over a cell says."""
    who = beliefs.name(column)
    value = beliefs.probabilities[column, index]
    if not math.isfinite(value):
        return f"{who}<br>undefined: {text(beliefs.reasons.get(column, NO_REASON))}"
    note = ", the true class" if index == true_class else ""
    accuracy = beliefs.accuracy[column]
    right = f"<br>right on {accuracy:.1%} of the test images" if math.isfinite(accuracy) else ""
    return f"{who}<br>{text(beliefs.classes[index])}{note}: {value:.3f}{right}"


def _mark_winners(figure: go.Figure, beliefs: Beliefs, upwards: Sequence[int]) -> None:
    """A dot in each column at the class that it names, where that is shown."""
    places = []
    for column, row in enumerate(beliefs.probabilities):
        winner = int(np.argmax(row)) if np.isfinite(row).all() else -1
        if winner in upwards:
            places.append((column, list(upwards).index(winner)))
    figure.add_trace(
        go.Scatter(
            x=[column for column, _ in places],
            y=[row for _, row in places],
            mode="markers",
            marker={
                "symbol": "circle",
                "size": 7,
                "color": "#FFFFFF",
                "line": {"width": 1.5, "color": "#111111"},
            },
            hoverinfo="skip",
            showlegend=False,
        )
    )


def _frame_row(figure: go.Figure, row: int, num_columns: int) -> None:
    """Frame the true class in white and black, which shows on every colour."""
    ends = {"x0": -0.5, "x1": num_columns - 0.5, "y0": row - 0.5, "y1": row + 0.5}
    figure.add_shape(type="rect", line={"color": "#FFFFFF", "width": 4}, **ends)
    figure.add_shape(type="rect", line={"color": "#111111", "width": 1.5}, **ends)


def _ring(figure: go.Figure, column: int, row: int) -> None:
    """Mark the chosen cell."""
    for colour, width in (("#111111", 4), ("#FFFFFF", 2)):
        figure.add_trace(
            go.Scatter(
                x=[column],
                y=[row],
                mode="markers",
                marker={
                    "symbol": "circle-open",
                    "size": 16,
                    "color": colour,
                    "line": {"width": width, "color": colour},
                },
                hoverinfo="skip",
                showlegend=False,
            )
        )


def shown_classes(
    probabilities: Sequence[FloatArray], true_class: int | None, most: int
) -> list[int]:
    """The classes worth a row: the true one, and those that any reader finds likeliest.

    Args:
        probabilities: (R, K) of each network.
        true_class: always shown; None where that is unknown.
        most: how many classes to show.

    Returns:
        indices in their order.
    """
    highest = np.max([np.nanmax(_without_gaps(part), axis=0) for part in probabilities], axis=0)
    order = [int(index) for index in np.argsort(-highest, kind="stable")]
    if true_class is not None:
        order = [true_class, *(index for index in order if index != true_class)]
    return sorted(order[:most])


def _without_gaps(probabilities: FloatArray) -> FloatArray:
    """Rows that are defined, or zeros where none is."""
    defined = probabilities[np.isfinite(probabilities).all(axis=1)]
    return defined if len(defined) else np.zeros((1, probabilities.shape[1]))


# ------------------------------------------------------------------------------------------ curves


@dataclass(frozen=True, eq=False)
class ClassCurve:
    """The probability of one class in one network: of `probes` and `auxiliaries` (L,).

    NaN where undefined; `classifier` is the network's own.
    """

    model: str
    rule: str
    layers: tuple[str, ...]
    probes: FloatArray
    auxiliaries: FloatArray
    classifier: float


def class_curves(
    curves: Sequence[ClassCurve], *, title: str, layer: str | None = None
) -> go.Figure:
    """The probability of one class by depth, for one network or two.

    Args:
        curves: of each network.
        title: what is shown.
        layer: that is chosen elsewhere; a ring marks it.

    Returns:
        For each network a curve of its probes, large open markers of its auxiliary networks, and a
        dotted line at its classifier.
    """
    styles = checkpoint_styles({curve.model: curve.rule for curve in curves})
    places = positions([curve.layers for curve in curves])
    figure = go.Figure()
    for curve, xs in zip(curves, places, strict=True):
        style = styles[curve.model]
        label = text(checkpoint_label(curve.rule, curve.model))
        hover = [
            f"<b>{text(name)}</b>, probe, {label}<br>"
            + (f"{value:.3f}" if math.isfinite(value) else "undefined")
            for name, value in zip(curve.layers, curve.probes, strict=True)
        ]
        none = np.full(len(curve.layers), math.nan)
        add_curve(figure, xs, (curve.probes, none, none), style, name=label, hover=hover)
        _auxiliary_marks(figure, curve, xs, style, label)
        _classifier_line(figure, curve, xs, style, label)
        if layer in curve.layers:
            index = curve.layers.index(layer)
            add_ring(figure, xs[index], float(curve.probes[index]), style)
    lay_out(figure, title, LOW_HEIGHT + 30)
    figure.update_yaxes(
        title="probability", range=[-0.03, 1.03], tickformat=".1f", fixedrange=True, zeroline=False
    )
    figure.update_xaxes(**depth_axis([curve.layers for curve in curves]))
    mark_stages(figure, [curve.layers for curve in curves])
    return figure


def _auxiliary_marks(
    figure: go.Figure, curve: ClassCurve, xs: Sequence[float], style: Style, label: str
) -> None:
    """Large open markers of the auxiliary networks, where there are any."""
    if not np.isfinite(curve.auxiliaries).any():
        return
    hover = [
        f"<b>{text(name)}</b>, auxiliary network, {label}<br>{value:.3f}"
        for name, value in zip(curve.layers, curve.auxiliaries, strict=True)
    ]
    figure.add_trace(
        go.Scatter(
            x=list(xs),
            y=gapped(curve.auxiliaries),
            mode="markers",
            name=f"its auxiliary networks, {label}",
            marker={
                "color": style.colour,
                "symbol": f"{style.symbol.removesuffix('-open')}-open",
                "size": 12,
                "line": {"width": 1.5},
            },
            hovertext=hover,
            hoverinfo="text",
        )
    )


def _classifier_line(
    figure: go.Figure, curve: ClassCurve, xs: Sequence[float], style: Style, label: str
) -> None:
    """A dotted line at the network's own classifier."""
    if not math.isfinite(curve.classifier):
        return
    figure.add_trace(
        go.Scatter(
            x=[xs[0], xs[-1]],
            y=[curve.classifier] * 2,
            mode="lines",
            line={"color": style.colour, "width": 1.25, "dash": "dot"},
            hovertext=f"own classifier of {label}<br>{curve.classifier:.3f}",
            hoverinfo="text",
            legendgroup=label,
            showlegend=False,
        )
    )


# ------------------------------------------------------------------------------------------ images


@dataclass(frozen=True, eq=False)
class Thumbnail:
    """A small image: `pixels` (H, W, 3) uint8, a `caption` and a `hover` text, both plain.

    `is_bold` makes the caption stand out.
    """

    pixels: Pixels
    caption: str
    hover: str
    is_bold: bool = False


def gallery(
    thumbnails: Sequence[Thumbnail],
    *,
    title: str,
    columns: int = 6,
    selected: int | None = None,
    height: int = 92,
) -> go.Figure:
    """Small images in rows, to click.

    Args:
        thumbnails: in reading order.
        title: what is shown.
        columns: images a row.
        selected: index of the framed one.
        height: pixels of a row.

    Returns:
        A figure whose first trace holds one transparent point an image, in their order.
    """
    places = [(index % columns, index // columns) for index in range(len(thumbnails))]
    num_rows = max(1, math.ceil(len(thumbnails) / columns))
    figure = _images(thumbnails, places, columns, num_rows)
    lay_out(figure, title)
    figure.update_xaxes(visible=False)
    figure.update_yaxes(visible=False)
    figure.update_layout(
        height=height * num_rows + 44, margin={"l": 0, "r": 0, "t": 40, "b": 4}, hoverdistance=-1
    )
    if selected is not None and selected < len(places):
        _frame_image(figure, places[selected])
    return figure


def neighbour_rows(
    rows: Sequence[tuple[str, Sequence[Thumbnail]]], *, title: str, height: int = 94
) -> go.Figure:
    """The nearest images of each layer, a row a layer, the nearest at the left.

    Args:
        rows: layer and its neighbours; an empty list leaves a row that says so.
        title: what is shown.
        height: pixels of a row.
    """
    columns = max([1, *(len(thumbnails) for _, thumbnails in rows)])
    flat = [thumbnail for _, thumbnails in rows for thumbnail in thumbnails]
    places = [(x, y) for y, (_, thumbnails) in enumerate(rows) for x in range(len(thumbnails))]
    figure = _images(flat, places, columns, len(rows))
    for y, (_, thumbnails) in enumerate(rows):
        if not thumbnails:
            figure.add_annotation(x=0, y=y, text="undefined", showarrow=False)
    lay_out(figure, title)
    figure.update_xaxes(visible=False)
    figure.update_yaxes(
        tickvals=list(range(len(rows))),
        ticktext=[text(layer) for layer, _ in rows],
        ticks="",
        showgrid=False,
        zeroline=False,
    )
    figure.update_layout(
        height=height * len(rows) + 44, margin={"l": 104, "r": 0, "t": 40, "b": 4}, hoverdistance=-1
    )
    return figure


def _images(
    thumbnails: Sequence[Thumbnail], places: Sequence[tuple[int, int]], columns: int, rows: int
) -> go.Figure:
    """Images with captions below them, and a transparent target on each."""
    figure = go.Figure(
        go.Scatter(
            x=[x for x, _ in places],
            y=[y for _, y in places],
            mode="markers+text",
            marker={"symbol": "square", "size": 62, "opacity": 0, "color": NEUTRAL},
            selected={"marker": {"opacity": 0}},
            unselected={"marker": {"opacity": 0}},
            hovertext=[_lines(thumbnail.hover) for thumbnail in thumbnails],
            hoverinfo="text",
            showlegend=False,
        )
    )
    figure.add_trace(
        go.Scatter(
            x=[x for x, _ in places],
            y=[y + 0.26 for _, y in places],
            mode="text",
            text=[_caption(thumbnail) for thumbnail in thumbnails],
            textposition="bottom center",
            textfont={"size": 11},
            hoverinfo="skip",
            showlegend=False,
        )
    )
    figure.update_layout(
        images=[
            {
                "source": png_uri(thumbnail.pixels),
                "xref": "x",
                "yref": "y",
                "x": x,
                "y": y - 0.13,
                "sizex": 0.94,
                "sizey": 0.68,
                "xanchor": "center",
                "yanchor": "middle",
                "sizing": "contain",
                "layer": "below",
            }
            for thumbnail, (x, y) in zip(thumbnails, places, strict=True)
        ]
    )
    figure.update_xaxes(range=[-0.5, columns - 0.5], fixedrange=True)
    figure.update_yaxes(range=[rows - 0.5, -0.5], fixedrange=True)
    return figure


def _frame_image(figure: go.Figure, place: tuple[int, int]) -> None:
    """A frame around one image."""
    x, y = place
    figure.add_shape(
        type="rect",
        x0=x - 0.48,
        x1=x + 0.48,
        y0=y - 0.49,
        y1=y + 0.49,
        line={"color": "#0072B2", "width": 2.5},
    )


def _lines(plain_text: str) -> str:
    """Escaped text with its line breaks."""
    return text(plain_text).replace("\n", "<br>")


def _caption(thumbnail: Thumbnail) -> str:
    """What stands below an image."""
    short = text(_short(thumbnail.caption))
    return f"<b>{short}</b>" if thumbnail.is_bold else short


def _short(name: str) -> str:
    """A name of bounded length."""
    return name if len(name) <= LONGEST else f"{name[: LONGEST - 1]}…"


def png_uri(pixels: Pixels) -> str:
    """Pixels (H, W, 3) as the address of a PNG, enlarged without blur where they are few."""
    from PIL import Image

    factor = max(1, math.ceil(THUMBNAIL / max(1, min(pixels.shape[:2]))))
    enlarged: Any = np.repeat(np.repeat(pixels, factor, axis=0), factor, axis=1)
    stream = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(enlarged)).save(stream, format="PNG", compress_level=1)
    return f"data:image/png;base64,{base64.b64encode(stream.getvalue()).decode()}"
