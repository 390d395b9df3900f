"""What is seen in a study, in one sentence that its numbers make."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from analysis.cka import CKAPair
from analysis.probes import ProbeResult
from analysis.rule_styles import network_titles
from analysis.study import Study
from app.texts import plain, probe_value, similarity


def seen_in(study: Study) -> str:
    """One sentence on what a study shows, with its numbers; markdown-safe.

    Of two networks it names the depths of highest and lowest similarity and the probes half-way; of
    more, who half-way is most and least like the first, beside the study's references, and from
    whom probes read most and least. It says whether the intervals of the probes overlap, so that it
    is true whichever way the numbers come out.
    """
    parts = TWO if len(study.models) < 3 else SEVERAL
    text = "; ".join(filter(None, (part(study) for part in parts)))
    text = text or "no value of this study is defined"
    return text[0].upper() + text[1:] + "."


@dataclass(frozen=True)
class Similar:
    """A network's similarity with the first one in a cell of their map."""

    name: str
    pair: CKAPair
    cell: tuple[int, int]

    @property
    def value(self) -> float:
        """NaN where it is undefined."""
        return float(self.pair.values[self.cell])

    def __str__(self) -> str:
        return similarity(self.pair, *self.cell)


@dataclass(frozen=True)
class Read:
    """What a probe reads from a layer."""

    probe: ProbeResult
    index: int

    @property
    def value(self) -> float:
        """Accuracy; NaN where it is undefined."""
        return float(self.probe.accuracy[self.index])

    @property
    def layer(self) -> str:
        """Its name, markdown-safe."""
        return plain(self.probe.layers[self.index])

    def __str__(self) -> str:
        return probe_value(self.probe, self.index)


def _titles(study: Study) -> Mapping[str, str]:
    """What to call the networks, by name; markdown-safe."""
    titles = network_titles(study.question.checkpoints)
    return {name: plain(title) for name, title in titles.items()}


def _extremes_of_two(study: Study) -> str:
    """Where layers of equal depth are most and least alike."""
    if study.cka is None or len(study.models) < 2:
        return ""
    pair = study.cka.pair(*study.models)
    cells = [Similar("", pair, (row, int(at))) for row, at in enumerate(pair.same_depth())]
    cells = [cell for cell in cells if math.isfinite(cell.value)]
    if not cells:
        return ""
    highest, lowest = (choose(cells, key=lambda cell: cell.value) for choose in (max, min))
    return (
        f"at equal depth the two networks are most alike at {plain(pair.rows[highest.cell[0]])} "
        f"({highest}) and least alike at {plain(pair.rows[lowest.cell[0]])} ({lowest})"
    )


def _likeness_of_several(study: Study) -> str:
    """Who is most and who is least like the first network half-way through it."""
    if study.cka is None:
        return ""
    first, titles = study.models[0], _titles(study)
    found = {}
    for name in study.cka.models:
        pair = study.cka.pair(first, name)
        row = (len(pair.rows) - 1) // 2
        cell = Similar(name, pair, (row, int(pair.same_depth()[row])))
        if name != first and math.isfinite(cell.value):
            found[name] = cell
    ranked = sorted(
        (found[name] for name in study.models if name in found), key=lambda cell: cell.value
    )
    if len(ranked) < 2:
        return ""
    least, *_, most = ranked
    layer = plain(most.pair.rows[most.cell[0]])
    text = (
        f"half-way, at {layer}, {titles[most.name]} is most like {titles[first]} ({most}) and "
        f"{titles[least.name]} least ({least})"
    )
    references = [found[name] for name in map(study.reference, ROLES) if name in found]
    beside = " and ".join(f"{titles[other.name]} ({other})" for other in references)
    return f"{text}, beside {beside}" if beside else text


def _half_way(study: Study) -> list[Read]:
    """What probes read from the networks that are compared, half-way; undefined ones left out."""
    found = [
        Read(probe, (len(probe.layers) - 1) // 2)
        for probe in study.probes
        if probe.model in study.models
    ]
    return [read for read in found if math.isfinite(read.value)]


def _probes_of_two(study: Study) -> str:
    """What probes read half-way from two networks."""
    read = _half_way(study)
    if len(read) < 2:
        return ""
    titles, (first, second) = _titles(study), read
    return (
        f"half-way, at {first.layer}, a linear probe is right on {first} of the images from "
        f"{titles[first.probe.model]} and on {second} from {titles[second.probe.model]}, "
        f"intervals that {_overlap(first, second)}"
    )


def _probes_of_several(study: Study) -> str:
    """From whom probes read most and from whom least half-way."""
    read = sorted(_half_way(study), key=lambda probe: probe.value)
    if len(read) < 2:
        return ""
    titles, (least, *_, most) = _titles(study), read
    return (
        f"there, a linear probe is right most often on {titles[most.probe.model]}, {most} of the "
        f"images, and least often on {titles[least.probe.model]}, {least}, intervals that "
        f"{_overlap(most, least)}"
    )


def _overlap(first: Read, second: Read) -> str:
    """What the intervals of two probes do."""
    apart = (
        first.probe.low[first.index] > second.probe.high[second.index]
        or second.probe.low[second.index] > first.probe.high[first.index]
    )
    return "do not overlap" if apart else "overlap"


ROLES = ("ceiling", "floor")
Part = Callable[[Study], str]
TWO: tuple[Part, ...] = (_extremes_of_two, _probes_of_two)
SEVERAL: tuple[Part, ...] = (_likeness_of_several, _probes_of_several)
