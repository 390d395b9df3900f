"""Which rank owns which blocks: costs by block in, a run of blocks for each rank out."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from auglocal.config import TrainConfig
from auglocal.errors import InputError
from auglocal.layer_costs import count_layer_costs
from auglocal.material import Material
from auglocal.memory import Subject
from auglocal.network import LocalNetwork
from auglocal.step import PRECISIONS, memory_format

BALANCES = ("flops", "time")
TIMED_ROUNDS = 3


@dataclass(frozen=True)
class Sharing:
    """Which blocks each rank owns.

    Attributes:
        spans: block indices by layer rank, input to output; together every block once.
        costs: (B,), of a training step of each block, in any unit.
    """

    spans: tuple[range, ...]
    costs: tuple[float, ...]

    @property
    def shares(self) -> tuple[float, ...]:
        """Fraction of the whole cost, by layer rank."""
        whole = sum(self.costs)
        return tuple(sum(self.costs[index] for index in span) / whole for span in self.spans)

    @property
    def speed_up(self) -> float:
        """Steps a second, as a ratio to one rank that owns all: 1 / the largest share.

        In a steady state every rank is busy with another batch, and the slowest sets the pace;
        what is sent costs nothing in this ideal.
        """
        return 1 / max(self.shares)

    def speed_up_of(self, num_steps: int) -> float:
        """The same of a round of T steps, in which the ranks first wait and then run out of work.

        T / (1 + (T - 1) max share): the time of T equal jobs that pass through all ranks in order,
        if a rank sent its output at the end of its step. It sends earlier, so this is the least.
        """
        return num_steps / (1 + (num_steps - 1) * max(self.shares))


def share_out(costs: Sequence[float], num_ranks: int) -> Sharing:
    """Cut blocks into runs of which the most expensive costs as little as possible.

    Args:
        costs: (B,), >= 0.
        num_ranks: runs, each of one block at least.

    Raises:
        InputError: there are fewer blocks than ranks.
    """
    num_blocks = len(costs)
    if num_ranks > num_blocks:
        raise InputError(
            f"{num_blocks} blocks cannot be shared out among {num_ranks} ranks; give --parallel "
            f"layers={num_blocks} or less (or more --modules)."
        )
    # best[ranks][blocks]: (largest run's cost, where the last run begins) of the first `blocks`.
    best = [{0: (0.0, 0)}]
    for ranks in range(1, num_ranks + 1):
        best.append(
            {
                blocks: min(
                    (max(best[-1][begin][0], sum(costs[begin:blocks])), begin)
                    for begin in range(ranks - 1, blocks)
                    if begin in best[-1]
                )
                for blocks in range(ranks, num_blocks + 1)
            }
        )
    spans, stop = [], num_blocks
    for ranks in range(num_ranks, 0, -1):
        start = best[ranks][stop][1]
        spans.append(range(start, stop))
        stop = start
    return Sharing(tuple(reversed(spans)), tuple(costs))


def counted_costs(
    config: TrainConfig, num_classes: int, input_size: tuple[int, int, int]
) -> list[float]:
    """(B,) floating-point operations of each block in a training step."""
    costs = count_layer_costs(
        config.architecture,
        config.make_rule(),
        config.batch_size,
        num_classes,
        input_size,
        config.width,
    )
    ends = (*costs.auxiliaries, costs.head)
    return [
        float(end.flops + sum(costs.layers[index].flops for index in block))
        for block, end in zip(costs.blocks, ends)
    ]


def measured_costs(
    config: TrainConfig, num_classes: int, input_size: tuple[int, int, int], device: torch.device
) -> list[float]:
    """(B,) seconds of each block's forward and backward on this device, the best of three.

    It runs a network of its own on random images.
    """
    network = Subject(config, num_classes, input_size).make_state(device).network
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(config.batch_size, *input_size, generator=generator)
    labels = torch.arange(config.batch_size) % num_classes
    images = images.to(device).contiguous(memory_format=memory_format(config, device))
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        rounds = [
            _time_blocks(network, images, labels.to(device), PRECISIONS[config.precision])
            for _ in range(TIMED_ROUNDS + 1)
        ]
    return [min(seconds) for seconds in zip(*rounds[1:])]  # the first round warms up


def _time_blocks(
    network: LocalNetwork, images: torch.Tensor, labels: torch.Tensor, precision: torch.dtype
) -> list[float]:
    """(B,) seconds of one round."""
    seconds = []
    started = time.perf_counter()
    for _, loss, _ in network.local_losses(images, labels, precision):
        loss.backward()  # type: ignore[no-untyped-call]
        loss.item()  # waits for an accelerator
        finished = time.perf_counter()
        seconds.append(finished - started)
        started = finished
    network.zero_grad(set_to_none=True)
    return seconds


def block_costs(balance: str, config: TrainConfig, material: Material) -> list[float]:
    """(B,) costs as `--balance` says.

    Raises:
        InputError: there is no such balance.
    """
    subject = config, material.num_classes, material.input_size
    if balance == "flops":
        return counted_costs(*subject)
    if balance == "time":
        return measured_costs(*subject, material.device)
    raise InputError(f"There is no balance {balance!r}; choose one of {', '.join(BALANCES)}.")


def describe_sharing(sharing: Sharing, block_names: Sequence[str], balance: str) -> str:
    """Who owns what, and what to expect of it, a line a layer rank."""
    unit = {"flops": "FLOPs", "time": "time"}[balance]
    lines = []
    for index, (span, share) in enumerate(zip(sharing.spans, sharing.shares)):
        names = block_names[span[0]], block_names[span[-1]]
        owned = names[0] if len(span) == 1 else f"{names[0]} to {names[1]}"
        blocks = "1 block" if len(span) == 1 else f"{len(span)} blocks"
        lines.append(f"layers {index}: {blocks}, {owned}, {share:.0%} of the {unit}")
    lines.append(
        f"expected speed-up over one process with a rank's threads: {sharing.speed_up:.2f} times "
        f"(by {unit}, if sending costs nothing)"
    )
    return "\n".join(lines)
