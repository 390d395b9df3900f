"""What makes a training step faster and leaves its result as it is.

In: a configuration and a state. Out: a `Stepper` that takes training steps by the fastest way that
works here: blocks in parallel threads on the CPU, compiled blocks, or a step that was recorded as a
CUDA graph. What does not work falls back to the plain step with a warning.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from auglocal.concurrency import BlockThreads, draws_at_random
from auglocal.config import TrainConfig
from auglocal.step import (
    State,
    count_step,
    move_weights,
    set_rate,
    step_options,
    train_step,
)

# Where a step can be recorded.
RECORDING_DEVICES = ("cuda",)
# PyTorch wants a few steps on a side stream before a recording.
TRIAL_STEPS = 3
TRIAL_RATE = 1e-3
# A recorded step sums in another order at most; a wrong one is off by far more.
LOSS_TOLERANCE = 0.02
# Of the way that the weights went: noise in gradients adds up, and a dead optimizer goes nowhere.
WEIGHT_TOLERANCE = 0.5


class Stepper:
    """Takes the training steps of a run.

    Args:
        config: says what to try.
        state: what the steps change.
        warn: hears a sentence about each thing that does not work here.
    """

    def __init__(self, config: TrainConfig, state: State, warn: Callable[[str], None]) -> None:
        self._config, self._state, self._warn = config, state, warn
        self._options: dict[str, Any] = step_options(config)
        self._full_batch: torch.Size | None = None
        self._graph: StepGraph | None = None
        self._threads: BlockThreads | None = None

    def step(self, images: Tensor, labels: Tensor, rate: float) -> None:
        """Take one step, see `auglocal.step.train_step`.

        Args:
            images: normalised, float, (N, C, H, W).
            labels: int64, (N,).
            rate: learning rate.
        """
        if self._full_batch is None:
            self._full_batch = images.shape
            self._prepare(images, labels)
        if images.shape == self._full_batch:
            if self._graph is not None:
                self._graph.step(images, labels, rate)
            else:
                self._plain_step(images, labels, rate)
            return
        with plain_modules():  # compiling for the one smaller batch of an epoch is not worth it
            self._plain_step(images, labels, rate)

    def close(self) -> None:
        """Let threads end."""
        if self._threads is not None:
            self._threads.close()

    def _plain_step(self, images: Tensor, labels: Tensor, rate: float) -> None:
        train_step(self._state, images, labels, rate, threads=self._threads, **self._options)

    def _prepare(self, images: Tensor, labels: Tensor) -> None:
        """Set up what was asked for, and works."""
        kind = images.device.type
        # First, since code that is compiled holds for a number of threads only.
        if kind == "cpu" and uses_block_threads(self._config):
            self._start_threads()
        if self._config.compile:
            self._try("compile", "compiling", lambda: self._compile(images, labels))
        recording = self._config.cuda_graph and not self._config.recompute
        if recording and kind in RECORDING_DEVICES:
            self._try("cuda-graph", "recording", lambda: self._record(images, labels))

    def _start_threads(self) -> None:
        if draws_at_random(self._state.network):
            self._warn(
                "Warning: this network draws random numbers in training, so its blocks train one "
                "after the other in spite of --block-threads."
            )
        else:
            self._threads = BlockThreads(self._config.block_threads)

    def _try(self, option: str, verb: str, attempt: Callable[[], None]) -> None:
        """Go on without what does not work; running out of memory is not for us to hide."""
        try:
            attempt()
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, ImportError, OSError) as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
            self._warn(
                f"Warning: {verb} the training step failed ({reason}); going on without it "
                f"(--no-{option} leaves it out)."
            )

    def _compile(self, images: Tensor, labels: Tensor) -> None:
        """Compile every layer and auxiliary network, after a trial on a copy."""
        trial = copy.deepcopy(self._state)
        compile_modules(trial)
        with _same_draws(images.device):
            train_step(trial, images, labels, 0.0, threads=self._threads, **self._options)
        compile_modules(self._state)

    def _record(self, images: Tensor, labels: Tensor) -> None:
        """Record a step, and take it only if it does what a plain step does."""
        expected = _plain_trial(copy.deepcopy(self._state), images, labels, self._options)
        graph = StepGraph(self._state, images, labels, self._options)
        if not graph.trial(images, labels).agrees_with(expected):
            raise RuntimeError("the recorded step computes something else")
        self._graph = graph


def uses_block_threads(config: TrainConfig) -> bool:
    """True if blocks are to train at the same time; the memory options want one at a time."""
    return config.block_threads > 1 and not (config.recompute or config.step_per_block)


def compile_modules(state: State) -> None:
    """Have every layer, auxiliary network and the head compiled when they are first called."""
    network = state.network
    modules = [*network.backbone.layers.values(), *network.auxiliaries.values()]
    dynamo = torch._dynamo.config
    # Layers share their code, and each kind of them is compiled anew.
    limit = 4 * len(modules)
    dynamo.recompile_limit = max(dynamo.recompile_limit, limit)
    dynamo.accumulated_recompile_limit = max(dynamo.accumulated_recompile_limit, limit)
    for module in (*modules, network.backbone.head):
        module.compile(dynamic=False)


def plain_modules() -> contextlib.AbstractContextManager[None]:
    """Run compiled modules uncompiled meanwhile."""
    stance: contextlib.AbstractContextManager[None] = torch.compiler.set_stance("force_eager")
    return stance


@contextlib.contextmanager
def _same_draws(device: torch.device) -> Iterator[None]:
    """Leave the random numbers to come as they are: a trial takes none from the run."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        yield


class StepGraph:
    """One training step, forward, backward and optimizer, recorded on a CUDA device.

    Args:
        state: what the recorded step changes, in place, wherever its tensors are now.
        images, labels: of the shapes, types and layout of every batch to come.
        options: see `auglocal.step.step_options`.
    """

    def __init__(
        self, state: State, images: Tensor, labels: Tensor, options: dict[str, Any]
    ) -> None:
        self._state = state
        # Not the batch itself: a recording that reads no other is to be found out.
        self._images, self._labels = torch.zeros_like(images), torch.zeros_like(labels)
        self._rate = torch.zeros((), device=images.device)
        make_momentum(state.optimizer)
        set_rate(state.optimizer, self._rate)
        self._graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(self._graph):
                move_weights(state, self._images, self._labels, **options)
        finally:
            set_rate(state.optimizer, 0.0)

    def step(self, images: Tensor, labels: Tensor, rate: float) -> None:
        """Take the recorded step with this batch."""
        self._images.copy_(images)
        self._labels.copy_(labels)
        self._rate.fill_(rate)
        self._graph.replay()
        count_step(self._state, len(labels))

    def trial(self, images: Tensor, labels: Tensor) -> Trial:
        """What a few steps with this batch do; the state is as it was afterwards."""
        state = self._state
        tensors = [*state.network.state_dict().values(), state.losses, state.correct]
        for values in state.optimizer.state.values():
            tensors += [value for value in values.values() if isinstance(value, Tensor)]
        kept = [tensor.clone() for tensor in tensors]
        counts = state.images, state.step
        trial = _try_steps(state, lambda: self.step(images, labels, TRIAL_RATE))
        # In place: the recording knows these tensors by where they lie.
        for tensor, value in zip(tensors, kept, strict=True):
            tensor.copy_(value)
        state.images, state.step = counts
        return trial


@dataclass(frozen=True)
class Trial:
    """What a few steps did.

    Attributes:
        losses: (B,), the sums that they added.
        movement: (P,), of every weight.
    """

    losses: Tensor
    movement: Tensor

    def agrees_with(self, expected: Trial) -> bool:
        """True if both took the same steps, but for the order of sums."""
        distance = (self.movement - expected.movement).norm()
        close = torch.allclose(self.losses, expected.losses, rtol=LOSS_TOLERANCE)
        return close and bool(distance <= WEIGHT_TOLERANCE * expected.movement.norm())


def _try_steps(state: State, take_step: Callable[[], None]) -> Trial:
    """Take a few steps, which change `state`, and say what they did."""
    losses, weights = state.losses.clone(), _all_weights(state)
    with _same_draws(losses.device):
        for _ in range(TRIAL_STEPS):
            take_step()
    return Trial(state.losses - losses, _all_weights(state) - weights)


def _all_weights(state: State) -> Tensor:
    """A copy of every weight, (P,)."""
    parameters = state.network.parameters()
    return torch.cat([parameter.detach().flatten() for parameter in parameters])


def _plain_trial(state: State, images: Tensor, labels: Tensor, options: dict[str, Any]) -> Trial:
    """The same by plain steps, and for good; on a side stream, as PyTorch wants it."""
    stream = torch.cuda.Stream(images.device)  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream(images.device))
    with torch.cuda.stream(stream):
        trial = _try_steps(state, lambda: train_step(state, images, labels, TRIAL_RATE, **options))
    torch.cuda.current_stream(images.device).wait_stream(stream)
    return trial


def make_momentum(optimizer: torch.optim.Optimizer) -> None:
    """Give every parameter a momentum of zeros: the same as none, but a place in memory."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if group["momentum"] and "momentum_buffer" not in optimizer.state[parameter]:
                optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
