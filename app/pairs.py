"""Two checkpoints by any measure: one interface over CKA and the other measures, for the pages.

In: a study and two checksums. Out: a `LayerPair` with numbers, figures and words, so that a page
need not ask which measure it shows.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import plotly.graph_objects as go

from analysis import figures, figures_pair
from analysis.cka import CKAPair
from analysis.figure_maps import outline
from analysis.figures_similarity import SHORT_NAMES, similarity_pair_map
from analysis.similarity import MEASURES, SimilarityResult
from analysis.study import Study, StudyCheckpoint
from app import texts
from app.sources import studies

Cell = tuple[int, int]
MEASURE_TITLES = {"cka": "CKA", **{name: kind().title for name, kind in MEASURES.items()}}


@dataclass(frozen=True, eq=False)
class LayerPair:
    """All layers of two checkpoints by one measure, as a study has them.

    Attributes:
        study: where the values come from.
        ends: both checkpoints.
        result: the measure's values.
    """

    study: Study
    ends: tuple[StudyCheckpoint, StudyCheckpoint]
    result: CKAPair | SimilarityResult

    @property
    def rows(self) -> tuple[str, ...]:
        """Layers of the first checkpoint."""
        return self.result.rows

    @property
    def columns(self) -> tuple[str, ...]:
        """Layers of the second checkpoint."""
        return self.result.columns

    @property
    def labels(self) -> tuple[str, str]:
        """Rule and name of both."""
        first, second = (figures.checkpoint_label(end.rule, end.name) for end in self.ends)
        return first, second

    @property
    def names(self) -> str:
        """Both in one phrase."""
        return f"{self.ends[0].name} with {self.ends[1].name}"

    @property
    def measure(self) -> str:
        """What is measured, for titles."""
        if isinstance(self.result, CKAPair):
            return figures.cka_name(self.study)
        return self.result.title

    @property
    def key(self) -> str:
        """What is measured, as the command line calls it."""
        return "cka" if isinstance(self.result, CKAPair) else self.result.measure

    @property
    def short(self) -> str:
        """What is measured, for a number."""
        if isinstance(self.result, CKAPair):
            return "CKA"
        return SHORT_NAMES.get(self.result.measure, self.result.title)

    def titled(self, what: str = "") -> str:
        """A figure's title: the measure, of what, of which images; short enough for half a page."""
        is_long = what and isinstance(self.result, SimilarityResult)
        name = self.short[0].upper() + self.short[1:] if is_long else self.measure
        return f"{name}{what}, {self.study.question.split} split, n = {self.result.samples:,}"

    def matched(self, *, best: bool) -> list[int]:
        """For each row the column at its depth, or the one most like it."""
        if isinstance(self.result, SimilarityResult):
            return figures_pair.matched_columns(self.result, best=best)
        same = self.result.same_depth().tolist()
        if not best:
            return list(same)
        found = self.result.best_match().tolist()
        return [b if b >= 0 else s for b, s in zip(found, same, strict=True)]


def find_pair(study: Study, measure: str, sha256_a: str, sha256_b: str) -> LayerPair | None:
    """Two checkpoints of a study by their checksums; None where the study lacks the measure."""
    ends = (studies.study_checkpoint(study, sha256_a), studies.study_checkpoint(study, sha256_b))
    result: CKAPair | SimilarityResult | None
    if measure == "cka":
        result = studies.study_pair(study, sha256_a, sha256_b)
    else:
        result = studies.study_similarity(study, sha256_a, sha256_b, measure)
    return None if result is None else LayerPair(study, ends, result)


def find_references(pair: LayerPair, chosen: Mapping[str, bool]) -> dict[str, LayerPair]:
    """The ceiling and the floor of a pair's study, as far as they are there and chosen.

    A reference takes the place of the network that has its rule, and else of the first one's
    partner: of A and B, with a second seed of B, that is the second seed and B.
    """
    found = {}
    for entry in pair.study.question.checkpoints:
        if not chosen.get(entry.role) or entry.sha256 in {end.sha256 for end in pair.ends}:
            continue
        reference = _with_reference(pair, entry)
        if reference is not None:
            found[entry.role] = reference
    return found


def _with_reference(pair: LayerPair, entry: StudyCheckpoint) -> LayerPair | None:
    """One network of a pair with a reference in the other's place; None where nothing holds it."""
    first, second = (end.sha256 for end in pair.ends)
    rules = [end.rule for end in pair.ends]
    ways = [(first, entry.sha256), (entry.sha256, second)]
    if rules[1] == entry.rule != rules[0]:
        ways.reverse()
    # Studies of other measures than CKA hold a reference with one network only.
    pairs = (find_pair(pair.study, pair.key, *way) for way in ways)
    return next((found for found in pairs if found is not None), None)


# ----------------------------------------------------------------------------------------- figures


def pair_map(pair: LayerPair, *, selected: Cell | None = None, stretch: bool = False) -> go.Figure:
    """The map, with a cell framed."""
    if isinstance(pair.result, CKAPair):
        return figures.cka_map(
            pair.result,
            title=pair.titled(),
            row_label=pair.labels[0],
            column_label=pair.labels[1],
            selected=selected,
            stretch=stretch,
        )
    return similarity_pair_map(
        pair.result,
        title=pair.titled(),
        row_label=pair.labels[0],
        column_label=pair.labels[1],
        selected=selected,
    )


def has_difference(first: LayerPair, second: LayerPair) -> bool:
    """Whether two maps can be subtracted."""
    return bool(first.result.values.shape == second.result.values.shape)


def difference_limit(parts: Sequence[tuple[LayerPair, LayerPair]]) -> float:
    """Where colours end, on both sides, of maps of differences that are to compare."""
    return figures.largest_difference(
        [first.result.values - second.result.values for first, second in parts]
    )


def difference_map(
    first: LayerPair,
    second: LayerPair,
    *,
    selected: Cell | None = None,
    limit: float | None = None,
) -> go.Figure:
    """The first map minus the second; `limit` is where colours end, the largest one if None.

    The axes name the networks of both maps, a line each, but no reference: the title does.
    """
    roles = [end.role for end in second.ends if end.role]
    title = first.titled(f" minus the {roles[0]}" if roles else ", difference")
    rows, columns = (
        a if a == b or roles else f"{a}\nand {b}"
        for a, b in zip(first.labels, second.labels, strict=True)
    )
    names = (first.names, second.names)
    if isinstance(first.result, CKAPair) and isinstance(second.result, CKAPair):
        figure = figures.cka_difference_map(
            first.result,
            second.result,
            title=title,
            row_label=rows,
            column_label=columns,
            names=names,
            limit=limit,
        )
    else:
        assert isinstance(first.result, SimilarityResult)
        assert isinstance(second.result, SimilarityResult)
        figure = figures_pair.measure_difference_map(
            first.result,
            second.result,
            title=title,
            row_label=rows,
            column_label=columns,
            names=names,
            limit=limit,
        )
    if selected is not None:
        outline(figure, *selected)
    return figure


def depth_curve(pair: LayerPair, references: Mapping[str, LayerPair], *, best: bool) -> go.Figure:
    """Similarity of layers at the same depth, or of best matches, beside references."""
    title = pair.titled(" of best matches" if best else " at the same depth")
    if isinstance(pair.result, CKAPair):
        draw = figures.best_match_curve if best else figures.same_depth_curve
        found = {
            role: reference.result
            for role, reference in references.items()
            if isinstance(reference.result, CKAPair)
        }
        return draw(pair.result, title=title, references=found)
    others = {
        role: (reference.names, reference.result)
        for role, reference in references.items()
        if isinstance(reference.result, SimilarityResult)
    }
    return figures_pair.measure_curve(
        pair.result, title=title, name=pair.names, best=best, references=others
    )


def profile(pair: LayerPair, cell: Cell) -> go.Figure:
    """Both layers of a cell against all others."""
    title = "Both layers against all others"
    if isinstance(pair.result, CKAPair):
        return figures.profile_curves(
            pair.result,
            cell,
            title=title,
            row_label=pair.labels[0],
            column_label=pair.labels[1],
            row_rule=pair.ends[0].rule,
            column_rule=pair.ends[1].rule,
        )
    rules = (pair.ends[0].rule, pair.ends[1].rule)
    return figures_pair.measure_profile(
        pair.result, cell, title=title, labels=pair.labels, rules=rules
    )


# ------------------------------------------------------------------------------------------- words


def null_level(pair: LayerPair, cell: Cell) -> float:
    """What chance alone would give; NaN where that is not known."""
    result = pair.result
    levels = result.null_levels if isinstance(result, CKAPair) else result.chance
    return math.nan if levels is None else float(levels[cell])


def cell_parts(pair: LayerPair, cell: Cell) -> dict[str, str]:
    """What the page shows of a cell, by title."""
    value, low, high = (
        float(part[cell]) for part in (pair.result.values, pair.result.low, pair.result.high)
    )
    level = null_level(pair, cell)
    return {
        pair.short: f"{value:.3f}" if math.isfinite(value) else "undefined",
        "95% interval": f"{low:.3f} to {high:.3f}" if math.isfinite(low) else "none",
        "Null level" if pair.key == "cka" else "Chance level": f"{level:.3f}"
        if math.isfinite(level)
        else "none",
    }


def cell_note(pair: LayerPair, cell: Cell) -> str:
    """Why a number of a cell is missing; empty where all are there."""
    result = pair.result
    if not math.isfinite(float(result.values[cell])):
        return f"Undefined: {result.reason(*cell) or 'no reason was kept'}."
    if math.isfinite(float(result.low[cell])):
        return ""
    if isinstance(result, CKAPair):
        return f"{result.interval_note or 'This interval is undefined'}."
    return "Without intervals: choose them under the options of the measure."


def caption(pair: LayerPair) -> str:
    """What stands under all figures of a pair: the estimate, its intervals, its range; plain."""
    if isinstance(pair.result, CKAPair):
        return figures.cka_caption(pair.study)
    result = pair.result
    low, high = result.range
    ends = " to ".join(f"{end:g}" if math.isfinite(end) else "no end" for end in (low, high))
    invariances = ", ".join(MEASURES[result.measure]().invariances)
    notes = [f"{note[0].upper()}{note[1:]}." for note in result.notes]
    same = f"Unchanged by {invariances}." if invariances else ""
    return " ".join([f"{result.title}, {ends}: {result.direction}.", same, *notes])


def map_csv(pair: LayerPair) -> str:
    """A map as a table: one line a cell; undefined values stay empty and say why."""
    if isinstance(pair.result, CKAPair):
        return texts.map_csv(pair.result)
    result, stream = pair.result, io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    names = ("model_a", "layer_a", "model_b", "layer_b", result.measure, "low", "high", "chance")
    writer.writerow([*names, "reason"])
    for row, column in np.ndindex(result.values.shape):
        arrays = (result.values, result.low, result.high, result.chance)
        numbers = [float(array[row, column]) for array in arrays]
        writer.writerow(
            [
                pair.ends[0].name,
                result.rows[row],
                pair.ends[1].name,
                result.columns[column],
                *(repr(number) if math.isfinite(number) else "" for number in numbers),
                result.reason(row, column) or "",
            ]
        )
    return stream.getvalue()


def curve_csv(pair: LayerPair, references: Mapping[str, LayerPair]) -> str:
    """The curves by depth as a table: one line a layer, kind of match and pair."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["pair", "match", "layer_a", "layer_b", "value", "low", "high"])
    for role, shown in {"": pair, **references}.items():
        for best in (False, True):
            for row, column in enumerate(shown.matched(best=best)):
                arrays = (shown.result.values, shown.result.low, shown.result.high)
                numbers = [float(array[row, column]) for array in arrays]
                writer.writerow(
                    [
                        role or shown.names,
                        "best match" if best else "same depth",
                        shown.rows[row],
                        shown.columns[column],
                        *(repr(number) if math.isfinite(number) else "" for number in numbers),
                    ]
                )
    return stream.getvalue()
