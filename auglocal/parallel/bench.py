"""How much faster ranks train than one process does, beside what counted operations promise.

In: the number of ranks that torchrun started. Out: images a second by layout, the ideal, and bytes
that a rank sends in a step. Ranks that a layout does not need wait meanwhile, without computing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from auglocal.bench import random_batch
from auglocal.memory import Subject
from auglocal.parallel.balance import Sharing, share_out
from auglocal.parallel.layout import Layout, Part, plan_epoch
from auglocal.parallel.pipeline import RankBlocks, Work
from auglocal.parallel.team import Team, subteam
from auglocal.step import train_step


@dataclass(frozen=True)
class Throughput:
    """Of one layout.

    Attributes:
        layout: who did what.
        images_per_second: in the fastest round.
        ideal: images a second, as a ratio to one rank, if nothing but operations took time.
        bytes_per_step: most that a rank sends in a step.
    """

    layout: Layout
    images_per_second: float
    ideal: float
    bytes_per_step: int


def layouts_to_time(num_ranks: int, num_blocks: int) -> list[Layout]:
    """One rank, then blocks shared out among 2, 3 ... ranks, then batches."""
    by_layers = [Layout(layers=count) for count in range(1, min(num_ranks, num_blocks) + 1)]
    return [*by_layers, *(Layout(data=count) for count in range(2, num_ranks + 1))]


def time_layouts(
    subject: Subject,
    team: Team,
    costs: list[float],
    *,
    num_rounds: int,
    steps_per_round: int,
    report: Callable[[str], None] = lambda text: None,
) -> list[Throughput]:
    """Time every layout that fits the ranks; every rank calls it.

    The layouts take turns, so that what else the machine does falls on all of them.

    Args:
        subject: what to train.
        team: all ranks, as layers.
        costs: (B,), of the blocks.
        num_rounds: at least 1; one more warms up.
        steps_per_round: long enough to fill the pipeline and time it.
        report: hears what is timed.

    Returns:
        On rank 0; an empty list on the others.
    """
    device = torch.device(team.device_kind)
    crews = {}
    for layout in layouts_to_time(team.layout.size, len(costs)):
        part_of = subteam(team, layout)
        sharing = share_out(costs, layout.layers)
        crews[layout] = (
            sharing,
            None if part_of is None else Crew(subject, part_of, sharing, device),
        )
    best: dict[Layout, float] = dict.fromkeys(crews, float("inf"))
    num_bytes: dict[Layout, int] = {}
    for round_index in range(num_rounds + 1):
        for layout, (_, crew) in crews.items():
            report(str(layout))
            team.meet()
            started = time.perf_counter()
            sent = 0 if crew is None else crew.take_steps(steps_per_round)
            team.meet()
            seconds = (time.perf_counter() - started) / steps_per_round
            if round_index > 0:
                best[layout] = min(best[layout], seconds)
            counts = team.gather(sent // steps_per_round)
            if round_index > 0 and counts is not None:
                num_bytes[layout] = max(counts)
    return [
        Throughput(
            layout,
            subject.config.batch_size / best[layout],
            sharing.speed_up * layout.data,
            num_bytes[layout],
        )
        for layout, (sharing, _) in crews.items()
        if team.is_first
    ]


class Crew:
    """A rank of one layout, ready to take steps on random images.

    Args:
        subject: what to train.
        team: the ranks of the layout.
        sharing: who owns which blocks.
        device: where to compute.
    """

    def __init__(
        self, subject: Subject, team: Team, sharing: Sharing, device: torch.device
    ) -> None:
        self._subject, self._team = subject, team
        state = subject.make_state(device)
        self._blocks = RankBlocks(subject.config, state, sharing.spans[team.layer_index], team)
        self._state = state
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


def throughput_rows(timed: list[Throughput]) -> list[dict[str, Any]]:
    """Images a second by layout, and ratios to one rank."""
    alone = timed[0].images_per_second
    return [
        {
            "layout": str(item.layout),
            "ranks": item.layout.size,
            "images_per_second": item.images_per_second,
            "speed_up": item.images_per_second / alone,
            "ideal": item.ideal,
            "bytes_per_step": item.bytes_per_step,
        }
        for item in timed
    ]
