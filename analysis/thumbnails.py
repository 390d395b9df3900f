"""A study in, a small picture of it out: SVG text that a browser draws without any library.

Lines and letters take the colour of the page around them (`currentColor`) unless another is given.
Names come from files and are escaped.
"""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from analysis.cka_result import CKAPair
from analysis.rule_styles import Style, checkpoint_styles, network_titles
from analysis.study import Study

FloatArray = npt.NDArray[np.floating[Any]]

WIDTH, HEIGHT = 300, 190  # of one panel, in SVG units
LEFT, RIGHT, TOP, BOTTOM = 34, 8, 26, 24
LETTERS = 11
FONTS = "system-ui, Segoe UI, Roboto, Helvetica, Arial, sans-serif"
# By Plotly's names: lengths of strokes and gaps.
DASHES = {
    "solid": "",
    "dot": "1.5 3",
    "dash": "6 3",
    "longdash": "9 4",
    "dashdot": "6 3 1.5 3",
    "longdashdot": "9 3 1.5 3",
}
CEILING = Style("currentColor", "dash", "")
FLOOR = Style("currentColor", "dot", "")


@dataclass(frozen=True, eq=False)
class Curve:
    """Values by depth, (L,), with the ends of their intervals, NaN where there are none."""

    name: str
    style: Style
    values: FloatArray
    low: FloatArray
    high: FloatArray


@dataclass(frozen=True)
class Panel:
    """One plot: curves over relative depth, 0 the first layer and 1 the last."""

    title: str
    curves: Sequence[Curve]


def study_thumbnail(study: Study, ink: str = "currentColor") -> str:
    """Draw what a study says, each measure it holds as a panel.

    Similarity of layers at the same depth with the first network, and accuracy of linear probes;
    95% intervals as bands, the study's ceiling and floor as grey lines.

    Args:
        study: of any measures.
        ink: colour of letters and axes; a picture shown as a file does not know the page's.

    Returns:
        an SVG element; empty text where there is nothing that a panel could show.
    """
    panels = [panel for panel in (_similarity_panel(study), _probe_panel(study)) if panel.curves]
    return draw_panels(panels).replace("currentColor", ink) if panels else ""


def _similarity_panel(study: Study) -> Panel:
    """Every other network against the first, at the same depth."""
    if study.cka is None or len(study.models) < 2:
        return Panel("", ())
    first, *others = study.models
    titles = network_titles(study.question.checkpoints)
    styles = checkpoint_styles(_rules(study))
    shown = [(name, styles[name]) for name in others]
    for role, style in (("ceiling", CEILING), ("floor", FLOOR)):
        reference = study.reference(role)
        if reference is not None:
            shown.append((reference, style))
    curves = [
        _same_depth(study.cka.pair(first, name), titles[name], style) for name, style in shown
    ]
    return Panel(f"CKA with {titles[first]}, same depth", curves)


def _same_depth(pair: CKAPair, name: str, style: Style) -> Curve:
    """The cells of a map at the same relative depth."""
    cells = np.arange(len(pair.rows)), pair.same_depth()
    return Curve(name, style, pair.values[cells], pair.low[cells], pair.high[cells])


def _probe_panel(study: Study) -> Panel:
    """Accuracy of the linear probes of every network that is compared."""
    titles, styles = network_titles(study.question.checkpoints), checkpoint_styles(_rules(study))
    curves = [
        Curve(titles[probe.model], styles[probe.model], probe.accuracy, probe.low, probe.high)
        for probe in study.probes
        if probe.model in study.models
    ]
    return Panel("Accuracy of linear probes", curves)


def _rules(study: Study) -> dict[str, str]:
    """Rules by name of all networks of a study."""
    return {entry.name: entry.rule for entry in study.question.checkpoints}


# ------------------------------------------------------------------------------------- drawing


def draw_panels(panels: Sequence[Panel]) -> str:
    """Draw panels side by side, with one legend a panel.

    Returns:
        an SVG element.
    """
    rows = max(len(panel.curves) for panel in panels)
    height = HEIGHT + 16 * math.ceil(rows / 2)
    # One panel as wide as two: stretched to a page's width, its letters are those of the others.
    width = WIDTH * max(2, len(panels))
    label = html.escape("; ".join(panel.title for panel in panels))
    body = "".join(
        f'<g transform="translate({index * WIDTH},0)">{_panel(panel)}</g>'
        for index, panel in enumerate(panels)
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" '
        f'aria-label="{label}" width="{width}" height="{height}" '
        f'font-family="{FONTS}" font-size="{LETTERS}" fill="currentColor">{body}</svg>'
    )


def _panel(panel: Panel) -> str:
    """Axes, curves and legend of one panel."""
    title = f'<text x="{LEFT}" y="14" font-weight="600">{html.escape(panel.title)}</text>'
    bands = "".join(_band(curve) for curve in panel.curves)
    lines = "".join(_line(curve) for curve in panel.curves)
    return f"<g>{title}{_axes()}{bands}{lines}{_legend(panel.curves)}</g>"


def _axes() -> str:
    """Lines at 0, a half and 1, and the name of the horizontal axis."""
    parts = []
    for value in (0.0, 0.5, 1.0):
        y = _y(value)
        parts.append(
            f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:g}" y2="{y:g}" '
            'stroke="currentColor" stroke-opacity="0.18"/>'
            f'<text x="{LEFT - 5}" y="{y + 4:g}" text-anchor="end" '
            f'fill-opacity="0.75">{value:g}</text>'
        )
    for x, anchor, name in (
        (LEFT, "start", "first layer"),
        (WIDTH - RIGHT, "end", "last layer"),
    ):
        parts.append(
            f'<text x="{x}" y="{HEIGHT - BOTTOM + 15}" text-anchor="{anchor}" '
            f'fill-opacity="0.75">{name}</text>'
        )
    return "".join(parts)


def _x(curve: Curve, index: int) -> float:
    last = max(len(curve.values) - 1, 1)
    return LEFT + (WIDTH - LEFT - RIGHT) * index / last


def _y(value: float) -> float:
    """Height of a value; what lies outside 0 to 1 is drawn at the edge."""
    share = min(max(value, 0.0), 1.0)
    return TOP + (HEIGHT - TOP - BOTTOM) * (1 - share)


def _runs(defined: npt.NDArray[np.bool_]) -> list[list[int]]:
    """Indices of each run of values that are there."""
    runs: list[list[int]] = []
    for index in np.flatnonzero(defined).tolist():
        if runs and runs[-1][-1] == index - 1:
            runs[-1].append(index)
        else:
            runs.append([index])
    return runs


def _points(places: Iterable[tuple[float, float]]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in places)


def _band(curve: Curve) -> str:
    """The 95% interval around a curve."""
    shapes = []
    for run in _runs(np.isfinite(curve.low) & np.isfinite(curve.high)):
        over = [(_x(curve, index), _y(float(curve.high[index]))) for index in run]
        under = [(_x(curve, index), _y(float(curve.low[index]))) for index in reversed(run)]
        shapes.append(
            f'<polygon points="{_points([*over, *under])}" fill="{curve.style.colour}" '
            'fill-opacity="0.18"/>'
        )
    return "".join(shapes)


def _line(curve: Curve) -> str:
    """The values themselves; a dot for one that stands alone."""
    shapes = []
    for run in _runs(np.isfinite(curve.values)):
        places = [(_x(curve, index), _y(float(curve.values[index]))) for index in run]
        if len(places) == 1:
            x, y = places[0]
            shapes.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2" fill="{curve.style.colour}"/>')
        else:
            shapes.append(f'<polyline points="{_points(places)}" {_stroke(curve.style)}/>')
    return "".join(shapes)


def _stroke(style: Style) -> str:
    """How a line is drawn."""
    return (
        f'fill="none" stroke="{style.colour}" stroke-width="2" stroke-linejoin="round" '
        f'stroke-dasharray="{DASHES.get(style.dash, "")}"'
    )


def _legend(curves: Sequence[Curve]) -> str:
    """A stroke and a name for each curve, two beside each other."""
    parts = []
    column = (WIDTH - LEFT - RIGHT) / 2
    for index, curve in enumerate(curves):
        x = LEFT + column * (index % 2)
        y = HEIGHT + 10 + 16 * (index // 2)
        name = curve.name if len(curve.name) <= 18 else f"{curve.name[:17]}…"
        parts.append(
            f'<line x1="{x:g}" x2="{x + 22:g}" y1="{y - 4:g}" y2="{y - 4:g}" '
            f"{_stroke(curve.style)}/>"
            f'<text x="{x + 27:g}" y="{y:g}">{html.escape(name)}</text>'
        )
    return "".join(parts)
