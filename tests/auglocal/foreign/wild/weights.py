"""Random weights for any network, statistics of BatchNorm included, that keep features in size."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


def random_state(model: nn.Module, seed: int = 0) -> dict[str, Tensor]:
    """Values for every tensor of a network, which may be on the "meta" device."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for key, tensor in model.state_dict().items():
        if not tensor.is_floating_point():
            state[key] = torch.ones(tensor.shape, dtype=tensor.dtype)
            continue
        values = torch.empty(tensor.shape).uniform_(-1, 1, generator=generator)
        if key.endswith("running_var"):
            values = values.mul_(0.5).add_(1)
        elif tensor.ndim > 1:
            values *= math.sqrt(6 / tensor[0].numel())
        state[key] = values
    return state


def fill(model: nn.Module, seed: int = 0) -> dict[str, Tensor]:
    """Put random weights into a network and make it ready to be read; returns them."""
    state = random_state(model, seed)
    model.load_state_dict(state, assign=True)
    model.eval().requires_grad_(False)
    return state


def random_images(count: int, channels: int, size: int) -> Tensor:
    """Images (N, C, size, size) of unit variance."""
    return torch.randn(count, channels, size, size, generator=torch.Generator().manual_seed(1))
