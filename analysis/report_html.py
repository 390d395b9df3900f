"""Pieces of a self-contained page: tables, figures, the style sheet and the script that draws.

Plain texts, numbers and plotly figures in, HTML out. Every text is escaped here, at the one place
where it becomes markup, and figures travel as JSON in which no character can end a script: what a
study file says never becomes code.
"""

from __future__ import annotations

import html
import json
from collections.abc import Sequence

import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from analysis.figure_style import CONFIG

# Nothing is loaded from anywhere; styles and scripts are those in the page.
SECURITY = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "img-src data: blob:; base-uri 'none'; form-action 'none'"
)
# Inside a script element these could end it or, in old engines, a line.
TITLE_HEIGHT = 26  # pixels that a figure gives to its title
SCRIPT_ESCAPES = {ord(character): f"\\u{ord(character):04x}" for character in "<>&\u2028\u2029"}

STYLE = """
:root { color-scheme: light dark; --ink: #1d2a33; --faint: #5b6b76; --line: #d5dde2;
  --page: #ffffff; --panel: #f4f7f8; --link: #005a8f; }
@media (prefers-color-scheme: dark) { :root { --ink: #e3e8ec; --faint: #9fb0bb; --line: #33424d;
  --page: #10181e; --panel: #182229; --link: #7cc4f2; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2rem 1.5rem 4rem; max-width: 76rem; background: var(--page);
  color: var(--ink); font: 16px/1.5 system-ui, -apple-system, "Segoe UI", sans-serif; }
h1 { font-size: 1.75rem; line-height: 1.2; margin: 0 0 .25rem; overflow-wrap: anywhere; }
h2 { font-size: 1.3rem; margin: 3rem 0 .75rem; padding-top: .75rem;
  border-top: 1px solid var(--line); }
h3 { font-size: 1.05rem; margin: 2rem 0 .5rem; overflow-wrap: anywhere; }
p, dd, li { max-width: 46rem; overflow-wrap: anywhere; }
a { color: var(--link); }
header p, .caption, figcaption, dd .source, .muted { color: var(--faint); font-size: .9rem; }
nav ul { display: flex; flex-wrap: wrap; gap: .25rem 1.25rem; list-style: none; padding: 0;
  margin: 1rem 0 0; }
.grid { display: grid; grid-template-columns: repeat(2, minmax(0, 1fr)); gap: 1.5rem; }
.grid.thirds { grid-template-columns: repeat(3, minmax(0, 1fr)); }
@media (max-width: 56rem) { .grid, .grid.thirds { grid-template-columns: minmax(0, 1fr); }
  dl { columns: 1; } }
figure { margin: 0 0 1rem; min-width: 0; }
.figure-title { margin: .5rem 0 .25rem; max-width: none; }
.thirds .figure-title { font-size: .95rem; }
.chart { width: 100%; overflow: hidden; }
.scroll { overflow-x: auto; margin: .5rem 0 1rem; }
table { border-collapse: collapse; font-size: .875rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; font-weight: 600; padding: .25rem 0; overflow-wrap: anywhere; }
th, td { text-align: left; padding: .3rem .9rem .3rem 0; vertical-align: top;
  border-bottom: 1px solid var(--line); white-space: nowrap; }
td.text { white-space: normal; overflow-wrap: anywhere; min-width: 8rem; max-width: 22rem; }
thead th { font-weight: 600; white-space: normal; vertical-align: bottom; }
tbody th { font-weight: 400; }
details { margin: .5rem 0 1rem; }
summary { cursor: pointer; color: var(--link); font-size: .9rem; }
dl { columns: 2; column-gap: 2.5rem; }
dl > div { break-inside: avoid; padding-bottom: .9rem; }
dt { font-weight: 600; }
dd { margin: 0; }
pre { background: var(--panel); border: 1px solid var(--line); border-radius: 6px; padding: .9rem;
  white-space: pre-wrap; overflow-wrap: anywhere; font-size: .85rem; }
code { font-size: .9em; overflow-wrap: anywhere; }
@page { size: A4; margin: 15mm; }
@media print {
  :root { --ink: #000000; --faint: #444444; --line: #cccccc; --page: #ffffff; --panel: #ffffff;
    --link: #000000; }
  body { padding: 0; max-width: none; font-size: 10.5pt; }
  nav, summary { display: none; }
  .grid, .grid.thirds { display: block; }
  figure, tr, pre { break-inside: avoid; }
  h2, h3, caption { break-after: avoid; }
  .scroll { overflow: visible; }
  details.wide { display: none; }
  table { width: 100%; }
  th, td, td.text { white-space: normal; font-size: 8pt; padding-right: .4rem; min-width: 0; }
}
"""

# Figures are drawn when they come into view; a long report then opens at once. For printing all
# are drawn, on white and as wide as an A4 page between its margins, and all tables are opened.
SCRIPT = """
"use strict";
const dark = matchMedia("(prefers-color-scheme: dark)");
const charts = [...document.querySelectorAll(".chart")];
let printing = false;
function template() {
  const isDark = dark.matches && !printing;
  const ink = isDark ? "#e3e8ec" : "#1d2a33";
  const grid = isDark ? "rgba(160, 180, 192, 0.18)" : "rgba(60, 80, 95, 0.14)";
  const axis = {gridcolor: grid, linecolor: grid, zerolinecolor: grid, title: {standoff: 10}};
  return {layout: {
    font: {color: ink, size: 12, family: "system-ui, -apple-system, Segoe UI, sans-serif"},
    xaxis: axis, yaxis: axis,
    hoverlabel: {bgcolor: isDark ? "#22303a" : "#ffffff", bordercolor: grid, font: {color: ink}},
  }};
}
function draw(chart) {
  if (chart.dataset.drawn) return;
  chart.dataset.drawn = "yes";
  const source = document.getElementById(chart.dataset.source);
  const figure = JSON.parse(source.textContent);
  figure.layout.template = template();
  Plotly.newPlot(chart, figure.data, figure.layout, CONFIG);
}
function restyle(width) {
  for (const chart of charts) {
    if (chart.dataset.drawn) {
      const size = width ? {width: width} : {width: null, autosize: true};
      Plotly.relayout(chart, {template: template(), ...size});
    }
  }
}
const watcher = new IntersectionObserver((entries) => {
  for (const entry of entries) if (entry.isIntersecting) draw(entry.target);
}, {rootMargin: "600px"});
charts.forEach((chart) => watcher.observe(chart));
dark.addEventListener("change", () => restyle(null));
addEventListener("beforeprint", () => {
  printing = true;
  charts.forEach(draw);
  restyle(670);
  for (const part of document.querySelectorAll("details:not([open], .wide)")) {
    part.dataset.closed = "yes";
    part.open = true;
  }
});
addEventListener("afterprint", () => {
  printing = false;
  restyle(null);
  for (const part of document.querySelectorAll("details[data-closed]")) {
    delete part.dataset.closed;
    part.open = false;
  }
});
"""


class Markup(str):
    """HTML that may stand in the page as it is; any other text is escaped."""

    __slots__ = ()


def escaped(value: object) -> Markup:
    """Text that means nothing to a browser, neither in an element nor in a quoted attribute."""
    return value if isinstance(value, Markup) else Markup(html.escape(str(value), quote=True))


def joined(parts: Sequence[Markup]) -> Markup:
    """Pieces one under the other."""
    return Markup("\n".join(part for part in parts if part))


def element(tag: str, content: object, **attributes: str) -> Markup:
    """One element; its content and the values of its attributes are escaped."""
    names = {name.rstrip("_").replace("_", "-"): value for name, value in attributes.items()}
    given = "".join(f' {name}="{escaped(value)}"' for name, value in names.items())
    return Markup(f"<{tag}{given}>{escaped(content)}</{tag}>")


def section(identifier: str, title: str, parts: Sequence[Markup]) -> Markup:
    """A part of the page with a heading to link to."""
    heading = element("h2", title, id=identifier)
    return Markup(f"<section>\n{joined([heading, *parts])}\n</section>")


def table(
    caption: str,
    header: Sequence[str],
    rows: Sequence[Sequence[object]],
    *,
    wide: Sequence[str] = (),
) -> Markup:
    """A table whose first column names the rows.

    Args:
        caption: What it shows; "" under a heading that says so.
        header: (C,) titles of the columns.
        rows: Each (C,) texts, numbers or markup.
        wide: Titles of the columns whose texts may break into lines.
    """
    head = "".join(element("th", name, scope="col") for name in header)
    body = []
    for row in rows:
        cells = [element("th", row[0], scope="row")]
        for name, cell in zip(header[1:], row[1:], strict=True):
            kind = {"class_": "text"} if name in wide else {}
            cells.append(element("td", cell, **kind))
        body.append(f"<tr>{''.join(cells)}</tr>")
    title = element("caption", caption) if caption else ""
    inside = f"{title}<thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody>"
    return Markup(f'<div class="scroll"><table>{inside}</table></div>')


def folded(summary: str, content: Markup, *, printed: bool = True) -> Markup:
    """Something to open with a click, without JavaScript too; opened for printing, if it fits."""
    kind = "" if printed else ' class="wide"'
    return Markup(f"<details{kind}>{element('summary', summary)}\n{content}\n</details>")


def grid(parts: Sequence[Markup], *, thirds: bool = False) -> Markup:
    """Figures beside each other, where the window is wide enough."""
    kind = "grid thirds" if thirds else "grid"
    return Markup(f'<div class="{kind}">\n{joined(parts)}\n</div>') if parts else Markup("")


def figure_markup(
    figure: go.Figure, identifier: str, alternative: str, caption: str = ""
) -> Markup:
    """A figure that the script of the page draws.

    Args:
        figure: What to draw, as of `lay_out`; its template is left out, the page has its own, and
            its title becomes a line of the page.
        identifier: Unique in the page.
        alternative: What it shows, for those who do not see it.
        caption: Plain text under it.
    """
    record = json.loads(figure.to_json(engine="json"))
    record["layout"].pop("template", None)
    # A title in the page wraps, and can be searched and selected.
    title = html.unescape(record["layout"].pop("title", {}).get("text", ""))
    record["layout"]["height"] -= TITLE_HEIGHT
    record["layout"]["margin"]["t"] -= TITLE_HEIGHT
    data = json.dumps(record, separators=(",", ":"), allow_nan=False).translate(SCRIPT_ESCAPES)
    height = int(record["layout"]["height"])
    heading = element("p", title, class_="figure-title")
    legend = element("figcaption", caption) if caption else ""
    chart = (
        f'<div class="chart" data-source="{escaped(identifier)}" role="img" '
        f'aria-label="{escaped(alternative)}" style="min-height: {height}px"></div>'
    )
    source = f'<script type="application/json" id="{escaped(identifier)}">{data}</script>'
    return Markup(f"<figure>{heading}{chart}{source}{legend}</figure>")


def whole_page(title: str, header: Markup, main: Markup, *, has_figures: bool) -> str:
    """The page: one file, with plotly's library in it once, if anything is to be drawn."""
    config = json.dumps({**CONFIG, "responsive": True, "plotlyServerURL": ""})
    scripts = ""
    if has_figures:
        scripts = (
            f"<script>{get_plotlyjs()}</script>\n"
            f"<script>const CONFIG = {config.translate(SCRIPT_ESCAPES)};\n{SCRIPT}</script>\n"
        )
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{SECURITY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"{element('title', title)}\n<style>{STYLE}</style>\n"
        "<noscript><style>.chart, .needs-script { display: none; }</style></noscript>\n"
        f"</head>\n<body>\n<header>\n{header}\n"
        "<noscript><p>Figures need JavaScript; the tables hold the same numbers.</p></noscript>\n"
        f"</header>\n<main>\n{main}\n</main>\n{scripts}</body>\n</html>\n"
    )
