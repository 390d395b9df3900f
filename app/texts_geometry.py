"""Geometry in, words and tables out: groups of measures, lists of images as people type them."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

from analysis.geometry import GeometryResult
from analysis.geometry_measures import GEOMETRY_MEASURES
from app.texts_probes import table

Ints = npt.NDArray[np.integer]

GROUPS: dict[str, tuple[str, ...]] = {
    "Dimension": ("effective_rank", "participation_ratio", "two_nn"),
    "Classes": ("class_separability", "silhouette", "class_mean_accuracy"),
    "Neural collapse": ("nc1", "nc2_norms", "nc2_angles", "nc3", "nc4"),
    "Activity": ("sparsity", "sparseness", "dead_units"),
    "Length": ("norm_mean", "norm_deviation"),
}
MOST_LISTED = 300  # images in the address; a link of some thousand characters still travels
_PART = re.compile(r"(\d{1,7})(?:\s*-\s*(\d{1,7}))?")


def definition(measure: str) -> str:
    """A measure in one sentence or two, with what higher means and where it comes from."""
    kind = GEOMETRY_MEASURES[measure]
    direction = f"{kind.direction[0].upper()}{kind.direction[1:]}"
    return f"{kind.definition} {direction}. Source: {kind.source}."


def parse_images(text: str, count: int) -> tuple[list[int], str]:
    """Read a list of images such as "3, 17, 40-60".

    Args:
        text: as typed.
        count: how many images there are.

    Returns:
        positions from 0 to count - 1 in the order typed, each once, and a sentence about what
        could not be read; empty where all could.
    """
    found: dict[int, None] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        match = _PART.fullmatch(part)
        if match is None:
            return list(found), f"“{part}” is no number; type numbers such as 3, 17, 40-60."
        first = int(match[1])
        last = first if match[2] is None else int(match[2])
        if last >= count or first > last:
            return list(found), f"“{part}” is not within 0 to {count - 1}."
        found.update(dict.fromkeys(range(first, last + 1)))
    return list(found), ""


def written_images(places: Iterable[int]) -> str:
    """Write a list of images with runs shortened: "3, 17, 40-60"."""
    runs: list[list[int]] = []
    for place in sorted(set(map(int, places))):
        if runs and place == runs[-1][1] + 1:
            runs[-1][1] = place
        else:
            runs.append([place, place])
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)


def measure_rows(results: Sequence[GeometryResult]) -> list[dict[str, str]]:
    """All measures as a table to read: one line a model and layer."""
    return [
        {
            "Checkpoint": result.model,
            "Layer": layer,
            **{
                GEOMETRY_MEASURES[name].title: _value_text(result, layer, index, name)
                for name in result.measures
            },
        }
        for result in results
        for index, layer in enumerate(result.layers)
    ]


def _value_text(result: GeometryResult, layer: str, index: int, measure: str) -> str:
    """A value with its interval, or why there is none."""
    value = result.values[measure][index]
    if not math.isfinite(value):
        return f"undefined: {result.reason(layer, measure) or 'no reason was kept'}"
    low, high = _end(result.low, measure, index), _end(result.high, measure, index)
    interval = f" ({low:.3g} to {high:.3g})" if math.isfinite(low) else ""
    return f"{value:.4g}{interval}"


def _end(ends: dict[str, npt.NDArray[np.floating]], measure: str, index: int) -> float:
    return float(ends[measure][index]) if measure in ends else math.nan


def measures_csv(results: Sequence[GeometryResult]) -> str:
    """All measures as a table to compute with: one line a model, layer and measure."""
    rows = []
    for result in results:
        for index, layer in enumerate(result.layers):
            for name in result.measures:
                numbers = [
                    float(result.values[name][index]),
                    _end(result.low, name, index),
                    _end(result.high, name, index),
                ]
                cells = [repr(number) if math.isfinite(number) else "" for number in numbers]
                reason = result.reason(layer, name) or result.notes.get(f"{layer}/{name}", "")
                rows.append([result.model, layer, name, *cells, reason])
    return table(["model", "layer", "measure", "value", "low", "high", "note"], rows)


def points_csv(
    points: npt.NDArray[np.floating],
    labels: Ints,
    classes: Sequence[str],
    numbers: Ints,
    places: Sequence[int],
) -> str:
    """Images of a scatter as a table: one line an image of `places`."""
    header = ["image", "number_in_split", "class", *"xyz"[: points.shape[1]]]
    rows = [
        [int(place), int(numbers[place]), classes[labels[place]], *map(float, points[place])]
        for place in places
    ]
    return table(header, rows)
