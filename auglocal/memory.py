"""What a training step costs in memory and arithmetic, counted rather than read off a device.

In: a configuration. Out: for any batch size, the peak bytes of the tensors that autograd saves for
backward, the bytes of weights, gradients and optimizer state, and floating-point operations.

Steps run on the CPU with batches of 2, 3 and 4 images. They save the same tensors in the same
order, and the size of each is a polynomial of the batch size N, of degree 2 at most (a similarity
matrix has N * N entries): three batches say exactly what any other one would hold.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from auglocal.blocks import cut_into_blocks
from auglocal.config import PRECISION_NAMES, TrainConfig
from auglocal.counters import FlopCounter, LiveGradients, SavedTensors, num_bytes
from auglocal.network import LocalNetwork
from auglocal.recompute import recompute
from auglocal.rules.registry import build_network
from auglocal.step import State, make_state, memory_format, step_options, train_step

BATCH_SIZES = (2, 3, 4)  # BatchNorm needs two images

IntArray = np.ndarray[Any, np.dtype[np.int64]]


@dataclass(frozen=True)
class Subject:
    """A way to train a backbone.

    Attributes:
        config: architecture, rule, precision, memory options; its batch size plays no part.
        num_classes: K.
        input_size: (C, H, W) of one image.
        num_segments: checkpoint the activations of the whole backbone in so many segments (for
            BP); None does not.
    """

    config: TrainConfig
    num_classes: int = 10
    input_size: tuple[int, int, int] = (3, 32, 32)
    num_segments: int | None = None

    def make_state(self, device: torch.device) -> State:
        """A fresh network, ready to train, and its optimizer."""
        network = build_network(
            self.config.architecture,
            self.config.make_rule(),
            self.num_classes,
            self.input_size,
            self.config.seed,
            width=self.config.width,
        )
        if self.num_segments is not None:
            checkpoint_activations(network, self.num_segments)
        state = make_state(self.config, network, device)
        state.network.train()
        return state

    def run_step(self, state: State, batch_size: int) -> None:
        """Take a training step with random images."""
        generator = torch.Generator().manual_seed(0)
        images = torch.rand(batch_size, *self.input_size, generator=generator)
        labels = torch.arange(batch_size) % self.num_classes
        device = state.losses.device
        images = images.to(device).to(memory_format=memory_format(self.config, device))
        train_step(state, images, labels.to(device), 0.1, **step_options(self.config))


@dataclass(frozen=True)
class StepCost:
    """What a training step needs, for any batch size.

    Attributes:
        timelines: (3, T), bytes of saved tensors over time, for batches of 2, 3 and 4.
        flops_by_batch: (3,), floating-point operations for the same batches.
        parameters: bytes of weights and buffers.
        gradients: most bytes of weight gradients at a time.
        optimizer_state: bytes that the optimizer keeps between steps.
    """

    timelines: IntArray
    flops_by_batch: IntArray
    parameters: int
    gradients: int
    optimizer_state: int

    def saved_tensors(self, batch_size: int) -> int:
        """Most bytes of saved tensors at a time; weights and buffers are not among them."""
        return int(extrapolate(self.timelines, batch_size).max())

    def flops(self, batch_size: int) -> int:
        """Floating-point operations of a step; a multiplication and an addition are two."""
        return int(extrapolate(self.flops_by_batch, batch_size))

    def total(self, batch_size: int) -> int:
        """All bytes together: an upper bound, since they do not all peak at one time."""
        fixed = self.parameters + self.gradients + self.optimizer_state
        return self.saved_tensors(batch_size) + fixed

    def largest_batch(self, budget: int) -> int:
        """Images of the largest batch with a `total` of at most `budget` bytes; 0 if none has."""
        fits, too_large = 0, BATCH_SIZES[0]
        while self.total(too_large) <= budget:
            fits, too_large = too_large, 2 * too_large
        while fits and too_large - fits > 1:
            middle = (fits + too_large) // 2
            if self.total(middle) <= budget:
                fits = middle
            else:
                too_large = middle
        return fits


def extrapolate(values: IntArray, batch_size: int) -> IntArray:
    """f(2), f(3), f(4) of a polynomial of degree 2 -> f(N), exact in integers.

    f(N) = f(2) + s D + s (s - 1) / 2 DD, s = N - 2, with D and DD the first and second difference
    (Newton's forward formula).

    Args:
        values: (3, ...).
        batch_size: N.

    Returns:
        (...).
    """
    steps = batch_size - BATCH_SIZES[0]
    first, second = values[1] - values[0], values[2] - 2 * values[1] + values[0]
    result: IntArray = values[0] + steps * first + steps * (steps - 1) // 2 * second
    return result


def measure_step(subject: Subject) -> StepCost:
    """Take small steps on the CPU, and count."""
    timelines, flops = [], []
    for batch_size in BATCH_SIZES:
        state = subject.make_state(torch.device("cpu"))
        saved, gradients = SavedTensors(state.network), LiveGradients(state.network.parameters())
        with saved.watch(), FlopCounter() as counter:
            subject.run_step(state, batch_size)
        timelines.append(saved.timeline)
        flops.append(counter.total)
    kept = (value for values in state.optimizer.state.values() for value in values.values())
    return StepCost(
        np.array(timelines),
        np.array(flops),
        num_bytes([*state.network.parameters(), *state.network.buffers()]),
        gradients.peak,
        num_bytes(value for value in kept if isinstance(value, Tensor)),
    )


def count_saved_tensors(subject: Subject, batch_size: int) -> int:
    """Most bytes of saved tensors at a time, by a step with a batch of this size."""
    state = subject.make_state(torch.device("cpu"))
    saved = SavedTensors(state.network)
    with saved.watch():
        subject.run_step(state, batch_size)
    return saved.peak


def measure_allocated(subject: Subject, batch_size: int, device: torch.device) -> int | None:
    """Most bytes that a step allocates on a CUDA device; None if they are not to be had."""
    try:
        state = subject.make_state(device)
        subject.run_step(state, batch_size)  # makes the optimizer's state
        torch.cuda.reset_peak_memory_stats(device)
        subject.run_step(state, batch_size)
        return torch.cuda.max_memory_allocated(device)
    except torch.OutOfMemoryError:
        return None


class Checkpointed(nn.Sequential):
    """Layers of which only the input is saved; backward runs them again."""

    def forward(self, features: Tensor) -> Tensor:
        """Features of features."""
        return recompute(nn.Sequential(*self), features)


def checkpoint_activations(network: LocalNetwork, num_segments: int) -> None:
    """Run the layers of a network of one block (BP) as checkpointed segments, in place."""
    layers = list(network.backbone.layers.values())
    segments = cut_into_blocks(len(layers), num_segments, smallest_tail=1)
    parts = [Checkpointed(*(layers[index] for index in segment)) for segment in segments]
    network.backbone.layers = nn.ModuleDict({f"segment{i}": part for i, part in enumerate(parts)})
    network.blocks = (tuple(range(num_segments)),)


def best_num_segments(bp: Subject, report: Callable[[str], None] = lambda text: None) -> int:
    """Number of segments with which checkpointed BP saves the fewest bytes; all are tried.

    Args:
        bp: a backbone that BP trains.
        report: hears what is tried.
    """

    def count(num_segments: int) -> int:
        report(f"BP checkpointed in {num_segments} segments")
        return count_saved_tensors(replace(bp, num_segments=num_segments), BATCH_SIZES[0])

    num_layers = len(bp.make_state(torch.device("cpu")).network.backbone.layers)
    return min(range(1, num_layers + 1), key=count)


@dataclass(frozen=True)
class Variant:
    """A way to train, its name for people, and its cost."""

    name: str
    subject: Subject
    cost: StepCost


def measure_variants(
    asked: Subject, report: Callable[[str], None] = lambda text: None
) -> Iterator[Variant]:
    """BP, BP with checkpointed activations, and the rule asked for with each memory option.

    Each comes in fp32 and then in bf16. The rule BP has no variants of its own: a network of one
    block has nothing to free early.

    Args:
        asked: backbone, rule and data; its precision and memory options play no part.
        report: hears what is measured.
    """
    bp = _change(asked, rule="bp", modules=None, recompute=False, step_per_block=False)
    num_segments = best_num_segments(_change(bp, precision="fp32"), report)
    rival = replace(bp, num_segments=num_segments)
    named = {"BP": bp, f"BP checkpointed ({num_segments} segments)": rival}
    if asked.config.rule != "bp":
        for name, options in MEMORY_OPTIONS.items():
            title = f"{asked.config.rule}{name}"
            named[title] = _change(asked, **options)
    for precision in PRECISION_NAMES:
        for name, subject in named.items():
            report(f"{name}, {precision}")
            variant = _change(subject, precision=precision)
            yield Variant(name, variant, measure_step(variant))


MEMORY_OPTIONS = {
    "": {"recompute": False, "step_per_block": False},
    " --step-per-block": {"recompute": False, "step_per_block": True},
    " --recompute": {"recompute": True, "step_per_block": False},
    " --recompute --step-per-block": {"recompute": True, "step_per_block": True},
}


def _change(subject: Subject, **changes: Any) -> Subject:
    """The same with another configuration."""
    return replace(subject, config=replace(subject.config, **changes))
