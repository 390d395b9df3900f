"""A study as one page: figures, tables, definitions, caveats, provenance, the command to redo it.

In: a `Study`. Out: one HTML file that loads nothing from anywhere, draws its figures by the copy
of plotly.js inside it, and shows its tables without JavaScript too. Reads without torch and
scikit-learn.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import plotly.graph_objects as go

from analysis import figures
from analysis.cka_result import CKAPair
from analysis.figure_style import checkpoint_label
from analysis.figures_geometry import geometry_curves
from analysis.figures_probes import (
    SCORES,
    confusion_map,
    paired_curve,
    probe_curves,
    recall_map,
    score_curves,
)
from analysis.figures_similarity import similarity_curve, similarity_pair_map
from analysis.files import write_text
from analysis.geometry_measures import GEOMETRY_MEASURES
from analysis.plane import plane_of_layers
from analysis.probes import ProbeResult
from analysis.report_html import (
    Markup,
    element,
    figure_markup,
    folded,
    grid,
    joined,
    section,
    table,
    whole_page,
)
from analysis.report_tables import (
    checkpoint_table,
    cka_table,
    geometry_tables,
    map_table,
    paired_table,
    probe_table,
    recall_table,
    similarity_table,
)
from analysis.report_texts import caveats, definitions, gaps
from analysis.study import Study

MOST_OWN_MAPS = 3  # networks up to which each has a map of its own layers too
WIDEST_TABLE = 32  # layers up to which a whole map is a table too


@dataclass
class Page:
    """The figures of a page so far, to number them."""

    study: Study
    count: int = field(default=0)

    @property
    def rules(self) -> dict[str, str]:
        """The rule by checkpoint name."""
        return {entry.name: entry.rule for entry in self.study.question.checkpoints}

    def label(self, model: str) -> str:
        """Rule and checkpoint."""
        return checkpoint_label(self.rules.get(model, ""), model)

    def titled(self, measure: str, samples: int | None = None) -> str:
        """What a figure shows, of which images."""
        count = self.study.question.samples if samples is None else samples
        return f"{measure}, {self.study.question.split} split, n = {count:,}"

    def figure(self, figure: go.Figure, alternative: str, caption: str = "") -> Markup:
        """Number a figure and make it a part of the page."""
        self.count += 1
        return figure_markup(figure, f"figure-{self.count}", alternative, caption)


def write_report(study: Study, path: Path | str) -> None:
    """Write a study as one self-contained HTML page, whole or not at all.

    Args:
        study: What to show; a study of an older version has fewer parts.
        path: File to write or to replace, `*.html` by custom; its folder must exist.

    Raises:
        OSError: The file cannot be written; an older file of that name is then unharmed.
    """
    write_text(Path(path), report_page(study))


def report_page(study: Study) -> str:
    """The page of a study as HTML, about 5 MB with the library that draws its figures."""
    page = Page(study)
    found = [
        (identifier, title, [part for part in parts(page) if part])
        for identifier, (title, parts) in SECTIONS.items()
    ]
    shown = [(identifier, title, parts) for identifier, title, parts in found if parts]
    links = {identifier: title for identifier, title, _ in shown}
    main = joined([section(identifier, title, parts) for identifier, title, parts in shown])
    return whole_page(study.title, _header(study, links), main, has_figures=page.count > 0)


def _header(study: Study, links: dict[str, str]) -> Markup:
    """Title, images and contents."""
    question = study.question
    balanced = ", as many of each class" if question.balanced else ""
    images = (
        f"{question.dataset_title}, {question.split} split: {question.samples:,} images drawn with "
        f"seed {question.seed}{balanced}. Measured {study.provenance.date[:10]}."
    )
    entries = [
        f"<li>{element('a', title, href=f'#{identifier}')}</li>"
        for identifier, title in links.items()
    ]
    contents = Markup(f"<nav><ul>{''.join(entries)}</ul></nav>")
    return joined([element("h1", study.title), element("p", images), contents])


# --------------------------------------------------------------------------------------------- CKA


def _checkpoints(page: Page) -> Iterator[Markup]:
    """What was compared."""
    yield checkpoint_table(page.study)


def _cka(page: Page) -> Iterator[Markup]:
    """Maps, their differences, curves by depth with references, and the plane of all layers."""
    study = page.study
    if study.cka is None:
        return
    yield element("p", figures.cka_caption(study), class_="caption")
    pairs = [study.cka.pair(*models) for models in _pairs(study.models)]
    models = study.models if len(study.models) <= MOST_OWN_MAPS else ()
    own = [study.cka.pair(model, model) for model in models]
    maps = [*pairs, *own]
    drawn = [_cka_map(page, pair) for pair in maps]
    yield grid([*drawn, *_difference_maps(page, pairs, own), _plane(page)])
    for pair in pairs:
        yield from _cka_curves(page, pair)
    numbers = joined([_whole_map(pair) for pair in maps])
    yield folded("Whole maps as numbers", numbers, printed=False)


def _pairs(models: Sequence[str]) -> list[tuple[str, str]]:
    """Every two different models."""
    return list(itertools.combinations(models, 2))


def _cka_map(page: Page, pair: CKAPair) -> Markup:
    labels = page.label(pair.model_a), page.label(pair.model_b)
    title = page.titled(figures.cka_name(page.study), pair.samples)
    figure = figures.cka_map(pair, title=title, row_label=labels[0], column_label=labels[1])
    return page.figure(figure, f"Map of CKA between layers of {labels[0]} and {labels[1]}")


def _difference_maps(page: Page, pairs: Sequence[CKAPair], own: Sequence[CKAPair]) -> list[Markup]:
    """Of two networks with equally many layers: each with itself, and against the ceiling."""
    compared = []
    if len(own) == 2:
        compared.append((own[0], own[1]))
    for pair in pairs[:1]:
        ceiling = figures.reference_pairs(page.study, pair.model_a, pair.model_b).get("ceiling")
        if ceiling is not None:
            compared.append((pair, ceiling))
    compared = [(a, b) for a, b in compared if a.values.shape == b.values.shape]
    if not compared:
        return []
    limit = figures.largest_difference([a.values - b.values for a, b in compared])
    return [_difference_map(page, first, second, limit) for first, second in compared]


def _difference_map(page: Page, first: CKAPair, second: CKAPair, limit: float) -> Markup:
    names = (
        f"{first.model_a} with {first.model_b}",
        f"{second.model_a} with {second.model_b}",
    )
    figure = figures.cka_difference_map(
        first,
        second,
        title=page.titled("Difference of CKA", first.samples),
        row_label=_shared_label(first.model_a, second.model_a),
        column_label=_shared_label(first.model_b, second.model_b),
        names=names,
        limit=limit,
    )
    caption = f"{names[0]}, minus {names[1]}; blue is more alike in the former."
    return page.figure(figure, f"Map of the difference of CKA: {caption}", caption)


def _shared_label(first: str, second: str) -> str:
    """What the layers of an axis of a difference belong to."""
    return first if first == second else f"{first} and {second}"


def _cka_curves(page: Page, pair: CKAPair) -> Iterator[Markup]:
    """Same depth and best match of one pair, beside its references, and the numbers."""
    references = figures.reference_pairs(page.study, pair.model_a, pair.model_b)
    name = figures.cka_name(page.study)
    yield element("h3", f"{page.label(pair.model_a)} and {page.label(pair.model_b)}, by depth")
    same = figures.same_depth_curve(
        pair, title=page.titled(f"{name} at the same depth", pair.samples), references=references
    )
    best = figures.best_match_curve(
        pair, title=page.titled(f"{name} of the best match", pair.samples), references=references
    )
    both = f"of {pair.model_a} and {pair.model_b}, with references"
    yield grid(
        [
            page.figure(same, f"CKA of layers at the same depth {both}"),
            page.figure(best, f"CKA of best matching layers {both}"),
        ]
    )
    yield folded("Numbers", cka_table(pair, references))


def _plane(page: Page) -> Markup:
    """All layers of all networks, references too, on one plane."""
    assert page.study.cka is not None
    plane = plane_of_layers(page.study.cka)
    if plane is None:
        return Markup("")
    figure = figures.layer_plane(plane, page.rules, title=page.titled("Layers on a plane by CKA"))
    caption = (
        f"Near means alike; rings mark first layers, and markers grow with depth. The plane holds "
        f"{plane.explained.sum():.0%} of the distances (stress {plane.stress:.2f})."
    )
    return page.figure(figure, "All layers of all networks on a plane", caption)


def _whole_map(pair: CKAPair) -> Markup:
    """A map as a table, unless it is too wide to read."""
    if max(pair.values.shape) > WIDEST_TABLE:
        return element(
            "p",
            f"The map of {pair.model_a} and {pair.model_b} is too wide for a table; the study's "
            "file holds it.",
        )
    caption = f"CKA of {pair.model_a} (rows) and {pair.model_b} (columns)"
    return map_table(caption, pair.rows, pair.columns, pair.values)


# ------------------------------------------------------------------------------------------ others


def _similarity(page: Page) -> Iterator[Markup]:
    """A map and a curve for each measure and pair."""
    for pair in page.study.similarity:
        result = pair.result
        labels = page.label(pair.model_a), page.label(pair.model_b)
        title = page.titled(result.title, result.samples)
        yield element("h3", f"{result.title}: {labels[0]} and {labels[1]}")
        cells = similarity_pair_map(
            result, title=title, row_label=labels[0], column_label=labels[1]
        )
        curve = similarity_curve(
            result,
            title=f"{title}, same depth",
            row_label=pair.model_a,
            column_label=pair.model_b,
        )
        both = f"{result.title} between layers of {labels[0]} and {labels[1]}"
        yield grid([page.figure(cells, f"Map of {both}"), page.figure(curve, f"{both} by depth")])
        yield folded("Numbers", similarity_table(result, pair.model_a, pair.model_b))


def _probes(page: Page) -> Iterator[Markup]:
    """Accuracy, scores, paired differences, recall and confusions."""
    study = page.study
    if not study.probes:
        return
    probes = study.probes
    samples = probes[0].test_samples
    figure = probe_curves(probes, page.rules, title=page.titled("Linear probes", samples))
    caption = "Level dotted lines: each network's own classifier."
    yield page.figure(figure, "Accuracy of linear probes by depth", caption)
    yield grid([_scores(page, score) for score in SCORES if _has(probes, score)])
    for pair in study.paired:
        both = study.probe(pair.model_a), study.probe(pair.model_b)
        title = page.titled("Paired difference of probes", pair.result.samples)
        drawn = paired_curve(pair.result, both, page.rules, title=title)
        yield page.figure(drawn, f"Accuracy of {pair.model_a} minus {pair.model_b} by depth")
        yield folded("Numbers", paired_table(pair.result, both))
    if study.question.classes:
        yield grid([part for probe in probes for part in _by_class(page, probe)])
    yield folded("Numbers of all probes", joined([probe_table(probe) for probe in probes]))
    recalls = [probe for probe in probes if probe.recall is not None and study.question.classes]
    if recalls:
        tables = [recall_table(probe, study.question.classes) for probe in recalls]
        yield folded("Recall by class as numbers", joined(tables), printed=False)


def _has(probes: Sequence[ProbeResult], score: str) -> bool:
    """Whether any checkpoint has a score."""
    return any(getattr(probe, score) is not None for probe in probes)


def _scores(page: Page, score: str) -> Markup:
    name = SCORES[score].title.capitalize()
    title = page.titled(f"{name} of probes", page.study.probes[0].test_samples)
    figure = score_curves(page.study.probes, page.rules, score, title=title)
    return page.figure(figure, f"{name} of probes by depth", "Lower is better.")


def _by_class(page: Page, probe: ProbeResult) -> Iterator[Markup]:
    """Recall by class and layer, and the confusions of the last layer that has a probe."""
    classes = page.study.question.classes
    label = page.label(probe.model)
    if probe.recall is not None:
        drawn = recall_map(probe, classes, title=f"Recall by class and layer, {label}")
        yield page.figure(drawn, f"Recall by class and layer of {label}")
    defined = [
        layer
        for layer, value in zip(probe.layers, probe.accuracy, strict=True)
        if np.isfinite(value)
    ]
    if probe.confusion is not None and defined:
        title = f"Confusions at {defined[-1]}, {label}"
        drawn = confusion_map(probe, defined[-1], classes, title=title)
        yield page.figure(drawn, f"Confusions of the probe of {defined[-1]}, {label}")


def _geometry(page: Page) -> Iterator[Markup]:
    """One small figure a measure."""
    results = page.study.geometry
    names = dict.fromkeys(name for result in results for name in result.measures)
    drawn = [
        _geometry_figure(page, name)
        for name in names
        if name in GEOMETRY_MEASURES
        and any(np.isfinite(r.values[name]).any() for r in results if name in r.values)
    ]
    yield grid(drawn, thirds=True)
    if results:
        yield folded("Numbers", geometry_tables(results))


def _geometry_figure(page: Page, name: str) -> Markup:
    kind = GEOMETRY_MEASURES[name]
    figure = geometry_curves(page.study.geometry, page.rules, name, title=kind.title)
    caption = f"{kind.direction[0].upper()}{kind.direction[1:]}."
    return page.figure(figure, f"{kind.title} by depth", caption)


# ------------------------------------------------------------------------------------------- words


def _definitions(page: Page) -> Iterator[Markup]:
    """What the measures mean, with sources."""
    entries = []
    for definition in definitions(page.study):
        source = element("span", f"Source: {definition.source}.", class_="source")
        meaning = element("dd", Markup(f"{element('span', definition.meaning)} {source}"))
        entries.append(Markup(f"<div>{element('dt', definition.term)}\n{meaning}</div>"))
    if entries:
        yield Markup(f"<dl>{joined(entries)}</dl>")


def _caveats(page: Page) -> Iterator[Markup]:
    """What to keep in mind, and what is undefined."""
    yield _list(caveats(page.study))
    missing = gaps(page.study)
    if missing:
        yield element("h3", "Undefined values and notes")
        yield _list(missing)


def _list(sentences: Sequence[str]) -> Markup:
    """Sentences as a list."""
    return Markup(f"<ul>{joined([element('li', sentence) for sentence in sentences])}</ul>")


def _provenance(page: Page) -> Iterator[Markup]:
    """Versions, device, time, images, and the command."""
    question, provenance = page.study.question, page.study.provenance
    facts: list[list[object]] = [
        ["date", provenance.date],
        ["device", provenance.device],
        ["seconds", f"{provenance.seconds:,.1f}"],
        ["dataset", question.dataset],
        ["images (sha256)", element("code", question.images_sha256)],
        ["precision", question.precision],
    ]
    facts += [[f"version of {name}", version] for name, version in provenance.versions.items()]
    yield table("", ["fact", "value"], facts, wide=("value",))
    yield element("p", "The same again, from a terminal in the folder that holds the files above:")
    yield Markup(f"<pre>{element('code', provenance.command)}</pre>")


SECTIONS: dict[str, tuple[str, Callable[[Page], Iterator[Markup]]]] = {
    "checkpoints": ("Checkpoints", _checkpoints),
    "cka": ("Layers compared by CKA", _cka),
    "similarity": ("Other similarities", _similarity),
    "probes": ("Probes", _probes),
    "geometry": ("Geometry", _geometry),
    "definitions": ("What the measures mean", _definitions),
    "caveats": ("Caveats", _caveats),
    "provenance": ("Provenance", _provenance),
}
