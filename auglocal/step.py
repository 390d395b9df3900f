"""One training step: a batch in, every block's weights moved, and the epoch's sums with it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from auglocal.concurrency import BlockThreads
from auglocal.config import TrainConfig
from auglocal.errors import InputError, WorkError
from auglocal.network import LocalNetwork
from auglocal.parallel.layout import count_parts, cut_evenly

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}
# Where PyTorch moves all weights of a step in one kernel.
FUSED_DEVICES = ("cpu", "cuda")


@dataclass
class State:
    """What carries over from step to step.

    Attributes:
        epoch: epochs completed.
        step: steps done of the epoch in progress.
        losses, correct: (B,) sums over the epoch's images, by block, on the device.
        images: images seen in the epoch.
        seconds: time spent in the epoch's steps.
        best: highest validation accuracy so far.
    """

    network: LocalNetwork
    optimizer: torch.optim.Optimizer
    losses: Tensor
    correct: Tensor
    epoch: int = 0
    step: int = 0
    images: int = 0
    seconds: float = 0.0
    best: float | None = None

    def reset_sums(self) -> None:
        """Begin an epoch's sums."""
        self.losses.zero_()
        self.correct.zero_()
        self.step, self.images, self.seconds = 0, 0, 0.0


def make_state(config: TrainConfig, network: LocalNetwork, device: torch.device) -> State:
    """A network on its device, with a fresh optimizer."""
    network = network.to(device).to(memory_format=memory_format(config, device))
    optimizer = torch.optim.SGD(
        network.parameters(),
        lr=config.learning_rate,
        momentum=config.momentum,
        weight_decay=config.weight_decay,
        nesterov=config.momentum > 0,
        fused=device.type in FUSED_DEVICES,
    )
    losses = torch.zeros(len(network.blocks), device=device)
    return State(network, optimizer, losses, torch.zeros_like(losses))


def memory_format(config: TrainConfig, device: torch.device) -> torch.memory_format:
    """Layout of images and weights.

    On a CPU a network of few channels keeps the contiguous one: with several threads, PyTorch 2.11
    and 2.15 corrupted memory in channels-last convolutions of 4 and 8 channels.
    """
    narrow = device.type == "cpu" and config.width < 1
    return torch.channels_last if config.channels_last and not narrow else torch.contiguous_format


def pack_state(state: State) -> dict[str, Any]:
    """Tensors and plain values that `unpack_state` reads back."""
    return {
        "epoch": state.epoch,
        "step": state.step,
        "images": state.images,
        "seconds": state.seconds,
        "best": state.best,
        "losses": state.losses,
        "correct": state.correct,
        "network": state.network.state_dict(),
        "optimizer": state.optimizer.state_dict(),
    }


def unpack_state(state: State, saved: dict[str, Any]) -> None:
    """Put back what `pack_state` gave.

    Raises:
        InputError: it belongs to another network.
    """
    try:
        state.network.load_state_dict(saved["network"])
        state.optimizer.load_state_dict(saved["optimizer"])
        state.losses.copy_(saved["losses"])
        state.correct.copy_(saved["correct"])
        for name in ("epoch", "step", "images", "seconds", "best"):
            setattr(state, name, saved[name])
    except (KeyError, RuntimeError, ValueError, TypeError) as error:
        raise InputError(
            "The saved state does not fit the run's configuration; restore its config.json, or "
            "start again with --overwrite."
        ) from error


def train_step(
    state: State,
    images: Tensor,
    labels: Tensor,
    rate: float,
    precision: torch.dtype = torch.float32,
    *,
    recompute: bool = False,
    step_per_block: bool = False,
    accumulate: int = 1,
    threads: BlockThreads | None = None,
) -> None:
    """One batch: every block's loss backward at once, then a step of the optimizer.

    Args:
        state: its network, optimizer and sums change.
        images: normalised, float, (N, C, H, W).
        labels: int64, (N,).
        rate: learning rate of this step.
        precision: of the forward passes, see `LocalNetwork.local_losses`.
        recompute: as `recompute_blocks` there.
        step_per_block: step a block's weights right after its backward. No block's weights are in
            another's loss, so the result is that of one step at the end.
        accumulate: work through the batch in so many parts, see `cut_batch`.
        threads: train blocks at the same time on these; with neither of the two options before.
    """
    set_rate(state.optimizer, rate)
    if threads is None:
        move_weights(
            state,
            images,
            labels,
            precision,
            recompute=recompute,
            step_per_block=step_per_block,
            accumulate=accumulate,
        )
    else:
        state.optimizer.zero_grad(set_to_none=True)
        for part, part_labels, weight in cut_batch(images, labels, accumulate):
            results = threads.backward(state.network, part, part_labels, precision, weight)
            add_sums(state, part_labels, *zip(*results, strict=True))
        apply_gradients(state.optimizer)
    count_step(state, len(labels))


def set_rate(optimizer: torch.optim.Optimizer, rate: float | Tensor) -> None:
    """Give every parameter this learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = rate


def count_step(state: State, num_images: int) -> None:
    """Note that a step was done."""
    state.images += num_images
    state.step += 1


def move_weights(
    state: State,
    images: Tensor,
    labels: Tensor,
    precision: torch.dtype,
    *,
    recompute: bool,
    step_per_block: bool,
    accumulate: int = 1,
) -> None:
    """The part of `train_step` that computes on the device, and nothing that asks it for a value.

    Args: as there; the learning rate is the optimizer's.
    """
    state.optimizer.zero_grad(set_to_none=True)
    images_left = len(labels)
    for part, part_labels, weight in cut_batch(images, labels, accumulate):
        images_left -= len(part_labels)
        losses, logits_by_block = [], []
        for _, loss, logits in state.network.local_losses(
            part, part_labels, precision, recompute_blocks=recompute
        ):
            weighted(loss, weight).backward()  # type: ignore[no-untyped-call]
            if step_per_block and images_left == 0:
                apply_gradients(state.optimizer)
            losses.append(loss.detach())
            logits_by_block.append(logits)
        add_sums(state, part_labels, losses, logits_by_block)
    apply_gradients(state.optimizer)


def cut_batch(
    images: Tensor, labels: Tensor, accumulate: int
) -> Iterator[tuple[Tensor, Tensor, float]]:
    """Yield (images, labels, share of the batch) of each part that goes through the blocks at once.

    Parts differ by one image at most, and have two at least: BatchNorm needs them.
    """
    num_parts = count_parts(len(labels), accumulate)
    edges = cut_evenly(0, len(labels), num_parts)
    for start, stop in pairwise(edges):
        yield images[start:stop], labels[start:stop], (stop - start) / len(labels)


def weighted(loss: Tensor, weight: float) -> Tensor:
    """A part's share of the batch's mean loss."""
    return loss if weight == 1 else loss * weight


def add_sums(
    state: State,
    labels: Tensor,
    losses: Sequence[Tensor],
    logits: Sequence[Tensor],
    *,
    first_block: int = 0,
    copies: int = 1,
) -> None:
    """Add a batch's losses and right answers to the epoch's sums, of each block from `first_block`.

    Args:
        state: whose sums they are.
        labels: (N,).
        losses: mean loss of each block.
        logits: (N, K) of each block.
        first_block: index of the first of these blocks.
        copies: ranks that train on these images; each counts its part of them.
    """
    blocks = slice(first_block, first_block + len(losses))
    state.losses[blocks] += torch.stack(list(losses)) * (len(labels) / copies)
    answers = [(block.argmax(dim=1) == labels).sum() for block in logits]
    state.correct[blocks] += torch.stack(answers) / copies


def apply_gradients(optimizer: torch.optim.Optimizer) -> None:
    """Step the parameters that have a gradient, and free it; the others stay as they are."""
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def step_options(config: TrainConfig) -> dict[str, Any]:
    """How a run takes its steps: the options of `train_step`."""
    return {
        "precision": PRECISIONS[config.precision],
        "recompute": config.recompute,
        "step_per_block": config.step_per_block,
        "accumulate": config.accumulate,
    }


def check_losses(state: State) -> None:
    """Stop a run whose loss is no number; the first such block is where it began.

    Raises:
        WorkError: naming the block.
    """
    finite = torch.isfinite(state.losses).tolist()
    if all(finite):
        return
    name = state.network.block_names[finite.index(False)]
    raise WorkError(
        f"The loss of block {name} became NaN or infinite in epoch {state.epoch + 1}, step "
        f"{state.step}; start again with a smaller --learning-rate (the last good state is kept)."
    )
