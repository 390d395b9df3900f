"""Run a part of a network without keeping its insides, and run it again when gradients come back.

In: a module and its input. Out: its output, whose backward costs a second forward and needs the
input only. Gradients, weights and buffers come out as if the module had run once.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


def recompute(module: nn.Module, features: Tensor) -> Tensor:
    """module(features), of which only `features` is saved for backward.

    The second run draws what the first one drew (dropout, stochastic depth) and computes in the
    first one's precision. BatchNorm's running statistics and counter move in the first run alone; a
    module that keeps other memories of what it saw would keep them twice.

    Args:
        module: one tensor in, one tensor out.
        features: its input, float; a gradient flows back to it where it asks for one.

    Returns:
        Its output; differentiable once.
    """
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    output: Tensor = _Recomputed.apply(module, features, *parameters)
    return output


class _Recomputed(torch.autograd.Function):
    """A module as a function of its input and parameters that saves nothing but the input."""

    @staticmethod
    def forward(ctx: Any, module: nn.Module, features: Tensor, *parameters: Tensor) -> Tensor:
        """Run without a graph: inside a Function, PyTorch records none."""
        device = features.device
        ctx.module, ctx.parameters = module, parameters
        ctx.autocast = torch.is_autocast_enabled(device.type), torch.get_autocast_dtype(device.type)
        ctx.random_states = _random_states(device)
        ctx.save_for_backward(features)
        output: Tensor = module(features)
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Run again with a graph, and push the output's gradient through it."""
        features = ctx.saved_tensors[0].detach().requires_grad_(ctx.needs_input_grad[1])
        kind, (enabled, precision) = features.device.type, ctx.autocast
        with (
            torch.enable_grad(),
            # A cast that the first run cached would carry no gradient.
            torch.autocast(kind, precision, enabled, cache_enabled=False),
            _replayed_draws(features.device, ctx.random_states),
            _frozen_statistics(ctx.module),
        ):
            output = ctx.module(features)
        inputs = [tensor for tensor in (features, *ctx.parameters) if tensor.requires_grad]
        gradients = torch.autograd.grad(output, inputs, gradient, allow_unused=True)
        own = () if features.requires_grad else (None,)
        return None, *own, *gradients


@contextlib.contextmanager
def _frozen_statistics(module: nn.Module) -> Iterator[None]:
    """Normalise by the batch without taking note of it.

    Momentum 0 leaves the running values exactly as they are; without its counter a BatchNorm counts
    nothing, and a cumulative average (momentum None) is no special case.
    """
    norms = [part for part in module.modules() if isinstance(part, BATCH_NORMS)]
    kept = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    try:
        for norm in norms:
            norm.momentum, norm.num_batches_tracked = 0.0, None
        yield
    finally:
        for norm, (momentum, counter) in zip(norms, kept):
            norm.momentum, norm.num_batches_tracked = momentum, counter


@contextlib.contextmanager
def _replayed_draws(device: torch.device, states: list[Tensor]) -> Iterator[None]:
    """Draw from the generators as they were, and leave them as they are."""
    current = _random_states(device)
    try:
        _set_random_states(device, states)
        yield
    finally:
        _set_random_states(device, current)


def _random_states(device: torch.device) -> list[Tensor]:
    """States of the CPU's global generator and of the device's own."""
    states = [torch.get_rng_state()]
    if device.type == "cuda":
        states.append(torch.cuda.get_rng_state(device))
    elif device.type == "mps":
        states.append(torch.mps.get_rng_state())
    return states


def _set_random_states(device: torch.device, states: list[Tensor]) -> None:
    """Put back what `_random_states` gave."""
    torch.set_rng_state(states[0])
    if device.type == "cuda":
        torch.cuda.set_rng_state(states[1], device)
    elif device.type == "mps":
        torch.mps.set_rng_state(states[1])
