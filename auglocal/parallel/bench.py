"""How much faster ranks train than one process does, beside what counted operations promise.

In: the number of ranks that torchrun started. Out: images a second by layout, the ideal, and bytes
that a rank sends in a step. Ranks that a layout does not need wait meanwhile, without computing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch

from auglocal.bench import random_batch
from auglocal.memory import Subject
from auglocal.parallel.balance import Sharing, counted_costs, share_out
from auglocal.parallel.layout import Layout, Part, plan_epoch
from auglocal.parallel.pipeline import RankBlocks, Work
from auglocal.parallel.team import Team, subteam
from auglocal.step import train_step


@dataclass(frozen=True)
class Entry:
    """Something to time.

    Attributes:
        subject: what to train.
        layout: who does what.
        sharing: of the blocks among the ranks of a chain.
        cost: operations of a step, as a ratio to the first entry's.
    """

    subject: Subject
    layout: Layout
    sharing: Sharing
    cost: float

    def ideal(self, num_steps: int | None = None) -> float:
        """Images a second, as a ratio to the first entry's, if only operations took time.

        Args:
            num_steps: of a round, at whose ends ranks wait; None is a run without end.
        """
        sharing = self.sharing
        one_chain = sharing.speed_up if num_steps is None else sharing.speed_up_of(num_steps)
        return one_chain * self.layout.data / self.cost


@dataclass(frozen=True)
class Throughput:
    """Of one entry.

    Attributes:
        entry: what was timed.
        images_per_second: in the fastest round.
        bytes_per_step: most that a rank sends in a step.
    """

    entry: Entry
    images_per_second: float
    bytes_per_step: int


def entries_to_time(subject: Subject, num_ranks: int) -> list[Entry]:
    """One rank, then blocks shared out among 2, 3 ... ranks, then batches; then BP, by batches."""
    costs = counted_costs(subject.config, subject.num_classes, subject.input_size)
    by_layers = [Layout(layers=count) for count in range(1, min(num_ranks, len(costs)) + 1)]
    by_data = [Layout(data=count) for count in range(2, num_ranks + 1)]
    entries = [
        Entry(subject, layout, share_out(costs, layout.layers), 1.0)
        for layout in (*by_layers, *by_data)
    ]
    if subject.config.rule == "bp":
        return entries
    bp = replace(subject, config=replace(subject.config, rule="bp", modules=None, recompute=False))
    whole = counted_costs(bp.config, bp.num_classes, bp.input_size)
    ratio = sum(whole) / sum(costs)
    return entries + [
        Entry(bp, layout, share_out(whole, 1), ratio) for layout in (Layout(), *by_data)
    ]


def time_entries(
    entries: list[Entry],
    team: Team,
    *,
    num_rounds: int,
    steps_per_round: int,
    report: Callable[[str], None] = lambda text: None,
) -> list[Throughput]:
    """Time every entry; every rank calls it.

    The entries take turns, so that what else the machine does falls on all of them.

    Args:
        entries: none needs more ranks than there are.
        team: all ranks, as layers.
        num_rounds: at least 1; one more warms up.
        steps_per_round: long enough to fill the pipeline and time it.
        report: hears what is timed.

    Returns:
        On rank 0; an empty list on the others.
    """
    device = torch.device(team.device_kind)
    crews = []
    for entry in entries:
        part_of = subteam(team, entry.layout)
        crews.append(None if part_of is None else Crew(entry, part_of, device))
    best, num_bytes = [float("inf")] * len(entries), [0] * len(entries)
    for round_index in range(num_rounds + 1):
        for index, (entry, crew) in enumerate(zip(entries, crews)):
            report(f"{entry.subject.config.rule}, {entry.layout}")
            team.meet()
            started = time.perf_counter()
            sent = 0 if crew is None else crew.take_steps(steps_per_round)
            team.meet()
            seconds = (time.perf_counter() - started) / steps_per_round
            counts = team.gather(sent // steps_per_round)
            if round_index > 0:
                best[index] = min(best[index], seconds)
                num_bytes[index] = max(counts or [0])
    if not team.is_first:
        return []
    return [
        Throughput(entry, entry.subject.config.batch_size / seconds, sent)
        for entry, seconds, sent in zip(entries, best, num_bytes)
    ]


class Crew:
    """A rank of one layout, ready to take steps on random images.

    Args:
        entry: what to train, and who does what.
        team: the ranks of the layout.
        device: where to compute.
    """

    def __init__(self, entry: Entry, team: Team, device: torch.device) -> None:
        subject = entry.subject
        self._subject, self._team = subject, team
        self._state = subject.make_state(device)
        span = entry.sharing.spans[team.layer_index]
        self._blocks = RankBlocks(subject.config, self._state, span, team)
        self._images, self._labels = random_batch(subject, device)

    def take_steps(self, num_steps: int) -> int:
        """Train on the same batch again and again; returns the bytes sent."""
        before = self._blocks.num_bytes
        for work in self._works(num_steps):
            assert isinstance(work, Work)
            self._blocks.train(work, 1e-3)
        self._blocks.flush()
        self._state.losses.tolist()  # waits for an accelerator
        return self._blocks.num_bytes - before

    def _works(self, num_steps: int) -> Iterator[Work | Part]:
        size = self._subject.config.batch_size
        parts = plan_epoch(
            size * num_steps,
            size,
            num_shares=self._team.layout.data,
            share_index=self._team.data_index,
            accumulate=self._subject.config.accumulate,
        )
        if self._team.layer_index > 0:
            return self._blocks.received(parts)
        return (
            Work(
                part,
                self._images[part.start : part.stop],
                self._labels[part.start : part.stop],
                self._images[part.start : part.stop],
            )
            for part in parts
        )


def time_all_cores(subject: Subject, device: torch.device, num_threads: int, rounds: int) -> float:
    """Images a second of one process with this many threads: the fastest round."""
    threads = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    try:
        state = subject.make_state(device)
        images, labels = random_batch(subject, device)
        seconds = []
        for _ in range(rounds + 1):
            started = time.perf_counter()
            train_step(state, images, labels, 1e-3)
            state.losses.tolist()
            seconds.append(time.perf_counter() - started)
    finally:
        torch.set_num_threads(threads)
    return subject.config.batch_size / min(seconds[1:])


def throughput_rows(timed: list[Throughput], steps_per_round: int) -> list[dict[str, Any]]:
    """Images a second by entry, and ratios to the first."""
    alone = timed[0].images_per_second
    return [
        {
            **ideal_row(item.entry, steps_per_round),
            "images_per_second": item.images_per_second,
            "speed_up": item.images_per_second / alone,
            "bytes_per_step": item.bytes_per_step,
        }
        for item in timed
    ]


def ideal_row(entry: Entry, steps_per_round: int) -> dict[str, Any]:
    """What counted operations promise of an entry, as ratios to the first."""
    return {
        "rule": entry.subject.config.rule,
        "layout": str(entry.layout),
        "ranks": entry.layout.size,
        "ideal": entry.ideal(),
        "ideal_of_round": entry.ideal(steps_per_round),
    }
