"""A study in, what small pictures of it show out: curves by depth, by epoch for snapshots.

Needs no drawing library, and no torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from analysis.cka_result import CKAPair
from analysis.dynamics import DynamicsMap, cka_development, dynamics_maps, trajectories
from analysis.rule_styles import Style, checkpoint_styles, network_titles
from analysis.study import Study

FloatArray = npt.NDArray[np.floating[Any]]

DEPTHS = ("first layer", "last layer")
DIMENSION = "participation_ratio"
MOST_TICKS = 8
REFERENCE_STYLES = {
    "ceiling": Style("currentColor", "dash", ""),
    "floor": Style("currentColor", "dot", ""),
}


@dataclass(frozen=True, eq=False)
class Curve:
    """Values (n,) from left to right, with the ends of their intervals, NaN where there are none.

    `places` (n,) says where they stand, 0 the left end and 1 the right; None: evenly.
    """

    name: str
    style: Style
    values: FloatArray
    low: FloatArray
    high: FloatArray
    places: FloatArray | None = None


@dataclass(frozen=True)
class Panel:
    """One plot: curves over relative depth or over epochs, from 0 to `top`."""

    title: str
    curves: Sequence[Curve]
    ticks: Sequence[str] = DEPTHS
    top: float = 1.0


def study_panels(study: Study) -> tuple[Panel, ...]:
    """What a study says, each measure it holds as a panel.

    Of networks: similarity of layers at the same depth with the first one, accuracy of linear
    probes, and the dimension of features, beside the study's ceiling and floor. Of snapshots: the
    same of the layer half-way by epoch.

    Args:
        study: of any measures.

    Returns:
        panels with at least a curve each.
    """
    makers = BY_EPOCH if trajectories(study) else BY_DEPTH
    return tuple(panel for make in makers for panel in make(study) if panel.curves)


# ------------------------------------------------------------------------------------ by depth


def _networks(study: Study) -> list[tuple[str, str, Style]]:
    """Name, title and style of every network: the compared ones, the ceiling, the floor."""
    entries = study.question.checkpoints
    titles = network_titles(entries)
    styles = checkpoint_styles({entry.name: entry.rule for entry in entries})
    roles = ("", *REFERENCE_STYLES)
    return [
        (entry.name, titles[entry.name], REFERENCE_STYLES.get(role, styles[entry.name]))
        for role in roles
        for entry in entries
        if entry.role == role
    ]


def _similarity(study: Study) -> Iterator[Panel]:
    """Every other network against the first, at the same depth."""
    if study.cka is None or len(study.models) < 2:
        return
    (first, first_title, _), *others = _networks(study)
    curves = [
        _same_depth(study.cka.pair(first, name), title, style) for name, title, style in others
    ]
    yield Panel(f"CKA with {first_title}, same depth", curves)


def _same_depth(pair: CKAPair, title: str, style: Style) -> Curve:
    """The cells of a map at the same relative depth."""
    cells = np.arange(len(pair.rows)), pair.same_depth()
    return Curve(title, style, pair.values[cells], pair.low[cells], pair.high[cells])


def _probes(study: Study) -> Iterator[Panel]:
    """Accuracy of the linear probes of every network."""
    found = {probe.model: probe for probe in study.probes}
    curves = [
        Curve(title, style, found[name].accuracy, found[name].low, found[name].high)
        for name, title, style in _networks(study)
        if name in found
    ]
    yield Panel("Accuracy of linear probes", curves)


def _dimension(study: Study) -> Iterator[Panel]:
    """Over how many directions the features' variance is spread."""
    found = {result.model: result for result in study.geometry if DIMENSION in result.measures}
    curves = []
    for name, title, style in _networks(study):
        if name in found:
            parts = (found[name].values, found[name].low, found[name].high)
            none = np.full(len(found[name].layers), np.nan)
            curves.append(Curve(title, style, *(part.get(DIMENSION, none) for part in parts)))
    highest = max((np.nanmax(c.values, initial=0.0) for c in curves), default=0.0)
    yield Panel("Participation ratio, directions", curves, top=round_top(float(highest)))


def round_top(highest: float) -> float:
    """The least number of one digit times a power of ten, or 12 or 15 times one, not below it."""
    if highest <= 0:
        return 1.0
    power = 10.0 ** np.floor(np.log10(highest))
    steps = (1, 1.2, 1.5, 2, 3, 4, 5, 6, 8, 10)
    return float(next(step * power for step in steps if step * power >= highest * (1 - 1e-12)))


# ------------------------------------------------------------------------------------ by epoch


def half_way(part: DynamicsMap) -> int:
    """The layer that curves by epoch are about."""
    return (len(part.layers) - 1) // 2


def run_titles(study: Study) -> dict[str, str]:
    """What to call the runs whose snapshots a study holds, by the name of the last snapshot."""
    ends = {run.names[-1] for run in trajectories(study)}
    return network_titles([entry for entry in study.question.checkpoints if entry.name in ends])


def settling(study: Study) -> list[DynamicsMap]:
    """CKA of every run's layers with their own end."""
    if study.cka is None:
        return []
    return [cka_development(study, run, "end") for run in trajectories(study)]


def approaching(study: Study) -> list[DynamicsMap]:
    """CKA of every other run's layers with the end of the first."""
    if study.cka is None:
        return []
    first, *others = trajectories(study)
    return [cka_development(study, run, first) for run in others]


def reading(study: Study) -> list[DynamicsMap]:
    """Accuracy of the linear probes of every run's layers."""
    return [part for part in dynamics_maps(study) if part.measure == "probe"]


def _by_epoch(title: str, study: Study, parts: Sequence[DynamicsMap]) -> Panel:
    """The layer half-way in every run, by epoch; epochs stand at equal distances."""
    every = sorted({epoch for run in trajectories(study) for epoch in run.epochs})
    titles = run_titles(study)
    rules = {entry.name: entry.rule for entry in study.question.checkpoints}
    styles = checkpoint_styles({name: rules[name] for name in titles})
    curves = []
    for part in parts:
        end, column = part.trajectory.names[-1], half_way(part)
        places = np.array([every.index(epoch) for epoch in part.trajectory.epochs])
        values = (part.values[:, column], part.low[:, column], part.high[:, column])
        curves.append(Curve(titles[end], styles[end], *values, places / (len(every) - 1)))
    return Panel(f"{title}, half-way, by epoch", curves, epoch_ticks(every))


def epoch_ticks(epochs: Sequence[int]) -> tuple[str, ...]:
    """Epochs as an axis names them: the last and every so many before, so that none touch."""
    step = -(-len(epochs) // MOST_TICKS)
    last = len(epochs) - 1
    return tuple(
        str(epoch) if (last - index) % step == 0 else "" for index, epoch in enumerate(epochs)
    )


def _settling(study: Study) -> Iterator[Panel]:
    yield _by_epoch("CKA with its own end", study, settling(study))


def _approaching(study: Study) -> Iterator[Panel]:
    first = next(iter(run_titles(study).values()))
    yield _by_epoch(f"CKA with {first}'s end", study, approaching(study))


def _reading(study: Study) -> Iterator[Panel]:
    yield _by_epoch("Probe accuracy", study, reading(study))


Makers = tuple[Callable[[Study], Iterator[Panel]], ...]
BY_DEPTH: Makers = (_similarity, _probes, _dimension)
BY_EPOCH: Makers = (_settling, _approaching, _reading)
