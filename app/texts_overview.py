"""What is seen in a study, in sentences that its numbers make."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from analysis.cka import CKAPair
from analysis.dynamics import DynamicsMap, trajectories
from analysis.rule_styles import network_titles
from analysis.study import Study
from analysis.study_panels import (
    DIMENSION,
    approaching,
    half_way,
    reading,
    run_titles,
    settling,
)
from app.texts import percent, plain, similarity
from app.texts_dynamics import NEAR, arrival

ROLES = ("ceiling", "floor")


def seen_in(study: Study) -> list[str]:
    """Sentences on what a study shows, one a measure, with its numbers; markdown-safe.

    Of two networks: the depths of highest and lowest similarity, and similarity, probes and the
    dimension of features half-way. Of more: who half-way is most and least like the first, and who
    has most and least of the others. Of snapshots: from when on the layer half-way is near its end,
    and what it is like then. Similarities stand beside the study's references. Sentences say
    whether intervals overlap, so that they are true whichever way the numbers come out.
    """
    if trajectories(study):
        sentences = [_settled(study), _approached(study), _read_at_the_end(study)]
    else:
        alike = _alike_of_two(study) if len(study.models) < 3 else _likeness_of_several(study)
        sentences = [alike, _probes(study), _dimension(study)]
    found = [sentence for sentence in sentences if sentence]
    return found or ["No value of this study is defined."]


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
class Reading:
    """A value of a layer of a network, which people call `title`; markdown-safe."""

    title: str
    layer: str
    value: float
    low: float
    high: float
    write: Callable[[float], str]

    def __str__(self) -> str:
        return self.with_interval("")

    def with_interval(self, name: str) -> str:
        """The value; in brackets what it is and its interval, as far as there are any."""
        ends = ""
        if math.isfinite(self.low):
            ends = f"{self.write(self.low)} to {self.write(self.high)}"
        brackets = ", ".join(filter(None, (name, f"95% {ends}" if name and ends else ends)))
        return f"{self.write(self.value)} ({brackets})" if brackets else self.write(self.value)


def _titles(study: Study) -> Mapping[str, str]:
    """What to call the networks, by name; markdown-safe."""
    titles = network_titles(study.question.checkpoints)
    return {name: plain(title) for name, title in titles.items()}


# ------------------------------------------------------------------------------------ similarity


def _half_way_with(study: Study, first: str) -> dict[str, Similar]:
    """Every other network's similarity with the first one half-way through it, where defined."""
    assert study.cka is not None
    found = {}
    for name in study.cka.models:
        pair = study.cka.pair(first, name)
        row = (len(pair.rows) - 1) // 2
        cell = Similar(name, pair, (row, int(pair.same_depth()[row])))
        if name != first and math.isfinite(cell.value):
            found[name] = cell
    return found


def _beside(study: Study, found: Mapping[str, Similar]) -> str:
    """The study's ceiling and floor, as far as it has them."""
    titles = _titles(study)
    names = [study.reference(role) for role in ROLES]
    references = [found[name] for name in names if name is not None and name in found]
    words = " and ".join(f"{titles[other.name]} ({other})" for other in references)
    return f", beside {words}" if words else ""


def _alike_of_two(study: Study) -> str:
    """Where layers of equal depth are most and least alike, and how much half-way."""
    if study.cka is None or len(study.models) < 2:
        return ""
    pair = study.cka.pair(*study.models)
    cells = [Similar("", pair, (row, int(at))) for row, at in enumerate(pair.same_depth())]
    cells = [cell for cell in cells if math.isfinite(cell.value)]
    if not cells:
        return ""
    highest, lowest = (choose(cells, key=lambda cell: cell.value) for choose in (max, min))
    text = (
        f"At equal depth the two networks are most alike at {plain(pair.rows[highest.cell[0]])} "
        f"({highest}) and least alike at {plain(pair.rows[lowest.cell[0]])} ({lowest})."
    )
    found = _half_way_with(study, study.models[0])
    beside = _beside(study, found)
    if study.models[1] not in found or not beside:
        return text
    middle = found[study.models[1]]
    return f"{text} Half-way, at {plain(pair.rows[middle.cell[0]])}, they have {middle}{beside}."


def _likeness_of_several(study: Study) -> str:
    """Who is most and who is least like the first network half-way through it."""
    if study.cka is None:
        return ""
    first, titles = study.models[0], _titles(study)
    found = _half_way_with(study, first)
    ranked = sorted(
        (found[name] for name in study.models if name in found), key=lambda cell: -cell.value
    )
    if len(ranked) < 2:
        return ""
    most, *_, least = ranked
    layer = plain(most.pair.rows[most.cell[0]])
    then = f", then {titles[ranked[1].name]} ({ranked[1]})," if len(ranked) > 2 else ""
    return (
        f"Half-way, at {layer}, {titles[most.name]} is most like {titles[first]} ({most}){then} "
        f"and {titles[least.name]} least ({least}){_beside(study, found)}."
    )


# ------------------------------------------------------------------------- probes and dimension


def _half_way_through(
    known: Iterable[tuple[str, Sequence[str], Sequence[Any], Callable[[float], str]]],
) -> list[Reading]:
    """The values half-way, of (title, layers, (values, low, high), how to write); defined ones."""
    found = []
    for title, layers, parts, write in known:
        at = (len(layers) - 1) // 2
        value, low, high = (math.nan if part is None else float(part[at]) for part in parts)
        if math.isfinite(value):
            found.append(Reading(title, plain(layers[at]), value, low, high, write))
    return found


def _probes(study: Study) -> str:
    """What probes read half-way: from two networks, or from whom most and least."""
    titles = _titles(study)
    found = _half_way_through(
        (titles[probe.model], probe.layers, (probe.accuracy, probe.low, probe.high), percent)
        for probe in study.probes
        if probe.model in study.models
    )
    if len(found) != 2:
        return _most_and_least(
            found,
            lambda most: f"a probe is right most often on {most.title}, {most} of the images",
            "on",
            "least often on",
        )
    first, second = found
    return (
        f"Half-way, at {first.layer}, a linear probe is right on {first} of the images from "
        f"{first.title} and on {second} from {second.title}{_overlap(first, second)}."
    )


def _dimension(study: Study) -> str:
    """Over how many directions features spread half-way, most and least."""
    titles = _titles(study)
    found = _half_way_through(
        (
            titles[result.model],
            result.layers,
            (result.values[DIMENSION], result.low.get(DIMENSION), result.high.get(DIMENSION)),
            "{:.1f}".format,
        )
        for result in study.geometry
        if result.model in study.models and DIMENSION in result.measures
    )
    if len(found) != 2:
        return _most_and_least(
            found,
            lambda most: (
                f"features spread over most directions in {most.title}, "
                f"{most.with_interval('participation ratio')}"
            ),
            "in",
            "over fewest in",
        )
    most, least = sorted(found, key=lambda read: -read.value)
    return (
        f"Half-way, the features of {most.title} spread over more directions, "
        f"{most.with_interval('participation ratio')}, and those of {least.title} over fewer, "
        f"{least}{_overlap(most, least)}."
    )


def _most_and_least(
    found: Sequence[Reading], lead: Callable[[Reading], str], then: str, fewest: str
) -> str:
    """Of three networks or more: the highest two values, the lowest, and the first network's."""
    if len(found) < 3:
        return ""
    most, second, *_, least = sorted(found, key=lambda read: -read.value)
    text = (
        f"Half-way, {lead(most)}, then {then} {second.title}, {second}, and {fewest} "
        f"{least.title}, {least}"
    )
    if found[0] not in (most, second, least):
        text = f"{text}; {found[0].title} has {found[0]}"
    verdict = _verdict(most, second)
    return f"{text}; the first two intervals {verdict}." if verdict else f"{text}."


def _verdict(first: Reading, second: Reading) -> str:
    """What the intervals of two values do; empty where one has none."""
    if not all(map(math.isfinite, (first.low, first.high, second.low, second.high))):
        return ""
    apart = first.low > second.high or second.low > first.high
    return "do not overlap" if apart else "overlap"


def _overlap(first: Reading, second: Reading) -> str:
    """The same as the end of a sentence about two values."""
    verdict = _verdict(first, second)
    return f", intervals that {verdict}" if verdict else ""


# ------------------------------------------------------------------------------------- snapshots


def _half_way_at(part: DynamicsMap, row: int, title: str, write: Callable[[float], str]) -> Reading:
    """A run's value of the layer half-way after one of its epochs."""
    at = (row, half_way(part))
    ends = (float(part.low[at]), float(part.high[at]))
    return Reading(title, plain(part.layers[at[1]]), float(part.values[at]), *ends, write)


def _settled(study: Study) -> str:
    """From when on each run's layer half-way is near its end."""
    titles = run_titles(study)
    found = []
    for part in settling(study):
        epoch = arrival(part.values[:, half_way(part)], part.trajectory.epochs)
        if epoch is not None:
            title = plain(titles[part.trajectory.names[-1]])
            layer = plain(part.layers[half_way(part)])
            found.append((layer, f"{title} from the one after epoch {epoch} on"))
    if not found:
        return ""
    return (
        f"Half-way, at {found[0][0]}, the CKA of a run's snapshots with its own end stays at "
        f"{NEAR:g} or above: {_listed([words for _, words in found])}."
    )


def _approached(study: Study) -> str:
    """How like the first run's end the others start and end."""
    titles = {name: plain(title) for name, title in run_titles(study).items()}
    first = next(iter(trajectories(study)))
    sentences = []
    for part in approaching(study):
        title, epochs = titles[part.trajectory.names[-1]], part.trajectory.epochs
        ends = [_half_way_at(part, row, title, "{:.3f}".format) for row in (0, -1)]
        if all(math.isfinite(each.value) for each in ends):
            start, end = (each.with_interval("") for each in ends)
            sentences.append(
                f"{title}'s CKA with {titles[first.names[-1]]}'s end goes there from {start} after "
                f"epoch {epochs[0]} to {end} after epoch {epochs[-1]}."
            )
    return " ".join(sentences)


def _read_at_the_end(study: Study) -> str:
    """What probes read from every run's last snapshot."""
    titles = {name: plain(title) for name, title in run_titles(study).items()}
    found = [
        _half_way_at(part, -1, titles[part.trajectory.names[-1]], percent)
        for part in reading(study)
    ]
    found = [read for read in found if math.isfinite(read.value)]
    words = [
        f"{read}{'' if index else ' of the images'} from {read.title}"
        for index, read in enumerate(found)
    ]
    return f"A linear probe there is right in the end on {_listed(words)}." if words else ""


def _listed(words: Sequence[str]) -> str:
    """Words as a sentence lists them."""
    *others, last = words
    return f"{', '.join(others)} and {last}" if others else last
