"""What a rank does with a batch: run its blocks, send the last output on at once, then train.

In: parts of batches, from the data or from the rank before. Out: this rank's blocks trained, bit
for bit as one process would on the CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from auglocal.config import TrainConfig
from auglocal.network import OUTPUT_BLOCK, LocalNetwork
from auglocal.parallel.gradients import GradientSum
from auglocal.parallel.layout import Part
from auglocal.parallel.link import Incoming, Outgoing
from auglocal.parallel.team import Team
from auglocal.rules.infopro import ReconstructionLoss
from auglocal.step import (
    State,
    add_sums,
    apply_gradients,
    count_step,
    set_rate,
    step_options,
    weighted,
)


@dataclass(frozen=True)
class Work:
    """A part of a batch as it reaches a rank.

    Attributes:
        part: which part.
        features: the output of the blocks before, (N, ...); of the first rank, the images.
        labels: int64, (N,).
        images: normalised, (N, C, H, W); None where no block of this rank or a later one asks.
    """

    part: Part
    features: Tensor
    labels: Tensor
    images: Tensor | None


class RankBlocks:
    """The blocks that a rank owns, and its ways to the ranks around it.

    Args:
        config: how to train.
        state: of the whole network; only its own blocks change.
        span: indices of its own blocks.
        team: who the others are.
    """

    def __init__(self, config: TrainConfig, state: State, span: range, team: Team) -> None:
        self._state, self._span, self._team = state, span, team
        options: dict[str, Any] = step_options(config)
        self._precision, self._recompute = options["precision"], options["recompute"]
        self._step_per_block = config.step_per_block and team.layout.data == 1
        self._sum = GradientSum(team)
        self._weight = 0.0
        self._previous: Incoming | None = None
        if team.layer_index > 0:
            peer = team.rank_beside(team.layer_index - 1)
            self._previous = Incoming(peer, state.losses.device, team.watch.waiting)
        self._next: Outgoing | None = None
        if team.layer_index + 1 < team.layout.layers:
            self._next = Outgoing(team.rank_beside(team.layer_index + 1), team.watch.waiting)
        self._pass_images = any(
            asks_for_images(state.network, index)
            for index in range(span.stop, len(state.network.blocks))
        )

    def received(self, parts: Iterable[Part]) -> Iterator[Work | Part]:
        """What comes from the rank before, see `receive`."""
        assert self._previous is not None, "the first rank reads the data"
        return receive(parts, self._previous)

    @property
    def num_bytes(self) -> int:
        """Bytes that this rank has sent to the next one or put into sums so far."""
        return self._sum.num_bytes + (0 if self._next is None else self._next.num_bytes)

    def train(self, work: Work, rate: float) -> None:
        """Take a part through the blocks; with the last part of a batch, step the weights."""
        if work.part.first:
            set_rate(self._state.optimizer, rate)
            self._state.optimizer.zero_grad(set_to_none=True)
            self._weight = 0.0
        self._weight += work.part.weight
        self._run_blocks(work)
        if work.part.last:
            self._sum.finish()
            apply_gradients(self._state.optimizer)
            count_step(self._state, work.part.batch)
        self._team.watch.progress()

    def send_stop(self, part: Part) -> None:
        """Tell the next rank that this part does not come, nor any other."""
        if self._next is not None:
            self._next.send_stop(part.num_images, self._state.losses.device)

    def flush(self) -> None:
        """Wait until the next rank has everything."""
        if self._next is not None:
            self._next.flush()

    def _run_blocks(self, work: Work) -> None:
        network, features = self._state.network, work.features
        losses, logits_by_block = [], []
        for index in self._span:
            features = network.run_block(
                index, features.detach(), self._precision, recompute_block=self._recompute
            )
            if index == self._span[-1]:
                self._pass_on(work, features.detach())
            images = features if work.images is None else work.images
            loss, logits = network.block_loss(index, features, images, work.labels, self._precision)
            weighted(loss, work.part.weight).backward()  # type: ignore[no-untyped-call]
            losses.append(loss.detach())
            logits_by_block.append(logits.detach())
            if work.part.last:
                self._sum.start(block_modules(network, index), self._weight)
                if self._step_per_block:
                    apply_gradients(self._state.optimizer)
        add_sums(
            self._state,
            work.labels,
            losses,
            logits_by_block,
            first_block=self._span.start,
            copies=work.part.copies,
        )

    def _pass_on(self, work: Work, output: Tensor) -> None:
        """Send a block's output, before this rank trains the block."""
        if self._next is None:
            return
        message = [output, work.labels]
        if self._pass_images:
            assert work.images is not None
            message.append(work.images)
        self._next.send(message)


def receive(parts: Iterable[Part], incoming: Incoming) -> Iterator[Work | Part]:
    """Yield what comes from the rank before; in place of the first that does not come, its part.

    While a part is worked on, the next one is already on its way.
    """
    ahead = iter(parts)
    part = next(ahead, None)
    if part is not None:
        incoming.ask(part.num_images)
    while part is not None:
        tensors = incoming.take(part.num_images)
        if tensors is None:
            yield part
            return
        following = next(ahead, None)
        if following is not None:
            incoming.ask(following.num_images)
        images = tensors[2] if len(tensors) > 2 else None
        yield Work(part, tensors[0], tensors[1], images)
        part = following


def read(
    parts: Iterable[Part],
    batches: Iterable[tuple[Tensor, Tensor]],
    should_stop: Callable[[], bool],
    prepare: Callable[[Tensor], Tensor],
) -> Iterator[Work | Part]:
    """Yield what the first rank trains on; in place of what it shall not begin any more, its part.

    Args:
        parts: this rank's.
        batches: (images uint8, labels) of each step of `parts`: this rank's share of the batch.
        should_stop: asked before each step.
        prepare: pixels -> images.
    """
    steps = iter(batches)
    for part in parts:
        if part.first:
            pixels, labels = next(steps)
            begin = part.start
            if should_stop():
                yield part
                return
        own = slice(part.start - begin, part.stop - begin)
        images = prepare(pixels[own])
        yield Work(part, images, labels[own], images)


def block_modules(network: LocalNetwork, index: int) -> list[nn.Module]:
    """The layers of a block, and what it learns from."""
    layers = list(network.backbone.layers.values())
    name = network.block_names[index]
    end = network.backbone.head if name == OUTPUT_BLOCK else network.auxiliaries[name]
    return [*(layers[layer_index] for layer_index in network.blocks[index]), end]


def block_tensors(network: LocalNetwork, index: int) -> list[Tensor]:
    """Weights and buffers of a block."""
    return [
        tensor
        for module in block_modules(network, index)
        for tensor in (*module.parameters(), *module.buffers())
    ]


def asks_for_images(network: LocalNetwork, index: int) -> bool:
    """Whether a block's loss needs the images, and not only the block's output."""
    return any(
        isinstance(part, ReconstructionLoss)
        for module in block_modules(network, index)
        for part in module.modules()
    )
