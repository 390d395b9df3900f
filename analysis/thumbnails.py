"""A study in, small pictures of it out: SVG text that a browser draws without any library.

Lines and letters take the colour of the page around them (`currentColor`) unless another is given.
Names come from files and are escaped.
"""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from analysis.rule_styles import Style
from analysis.study import Study
from analysis.study_panels import Curve, Panel, study_panels

WIDTH, HEIGHT = 300, 190  # of a picture without its legend, in SVG units
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


@dataclass(frozen=True)
class Thumbnail:
    """A small picture: its title, and an SVG document."""

    title: str
    svg: str


def study_thumbnails(study: Study, ink: str = "currentColor") -> tuple[Thumbnail, ...]:
    """Draw what a study says, a picture for each panel of `study_panels`.

    Args:
        study: of any measures.
        ink: colour of letters and axes; a picture shown as a file does not know the page's.

    Returns:
        pictures of one height; none where there is nothing that a panel could show.
    """
    panels = study_panels(study)
    rows = max((_legend_rows(panel) for panel in panels), default=0)
    return tuple(
        Thumbnail(panel.title, draw_panel(panel, rows).replace("currentColor", ink))
        for panel in panels
    )


# ------------------------------------------------------------------------------------- drawing


def _legend_rows(panel: Panel) -> int:
    """Lines of a legend, two names each."""
    return math.ceil(len(panel.curves) / 2)


def draw_panel(panel: Panel, legend_rows: int | None = None) -> str:
    """Axes, curves and legend of a panel.

    Args:
        panel: with at least one curve.
        legend_rows: lines to leave room for; by default, those that its legend has.

    Returns:
        an SVG element.
    """
    height = HEIGHT + 16 * (_legend_rows(panel) if legend_rows is None else legend_rows)
    title = html.escape(panel.title)
    heading = f'<text x="{LEFT}" y="14" font-weight="600">{title}</text>'
    bands = "".join(_band(curve, panel.top) for curve in panel.curves)
    lines = "".join(_line(curve, panel.top) for curve in panel.curves)
    body = f"{heading}{_axes(panel.ticks, panel.top)}{bands}{lines}{_legend(panel.curves)}"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" '
        f'aria-label="{title}" width="{WIDTH}" height="{height}" '
        f'font-family="{FONTS}" font-size="{LETTERS}" fill="currentColor">{body}</svg>'
    )


def _axes(ticks: Sequence[str], top: float) -> str:
    """Lines at 0, half of the top and the top, and the ticks below, evenly from end to end."""
    parts = []
    for value in (0.0, top / 2, top):
        y = _y(value, top)
        parts.append(
            f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:g}" y2="{y:g}" '
            'stroke="currentColor" stroke-opacity="0.18"/>'
            f'<text x="{LEFT - 5}" y="{y + 4:g}" text-anchor="end" '
            f'fill-opacity="0.75">{value:g}</text>'
        )
    for index, tick in enumerate(ticks):
        x = LEFT + (WIDTH - LEFT - RIGHT) * index / max(len(ticks) - 1, 1)
        anchor = "start" if index == 0 else "end" if index == len(ticks) - 1 else "middle"
        parts.append(
            f'<text x="{x:g}" y="{HEIGHT - BOTTOM + 15}" text-anchor="{anchor}" '
            f'fill-opacity="0.75">{html.escape(tick)}</text>'
        )
    return "".join(parts)


def _x(curve: Curve, index: int) -> float:
    place = index / max(len(curve.values) - 1, 1)
    if curve.places is not None:
        place = float(curve.places[index])
    return LEFT + (WIDTH - LEFT - RIGHT) * place


def _y(value: float, top: float) -> float:
    """Height of a value; what lies outside 0 to `top` is drawn at the edge."""
    share = min(max(value / top, 0.0), 1.0)
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


def _band(curve: Curve, top: float) -> str:
    """The 95% interval around a curve."""
    shapes = []
    for run in _runs(np.isfinite(curve.low) & np.isfinite(curve.high)):
        over = [(_x(curve, index), _y(float(curve.high[index]), top)) for index in run]
        under = [(_x(curve, index), _y(float(curve.low[index]), top)) for index in reversed(run)]
        shapes.append(
            f'<polygon points="{_points([*over, *under])}" fill="{curve.style.colour}" '
            'fill-opacity="0.18"/>'
        )
    return "".join(shapes)


def _line(curve: Curve, top: float) -> str:
    """The values themselves; a dot for one that stands alone."""
    shapes = []
    for run in _runs(np.isfinite(curve.values)):
        places = [(_x(curve, index), _y(float(curve.values[index]), top)) for index in run]
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
