"""A split of a data set, and the choice of a fixed part of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from auglocal.randomness import derive_seed

# Held-out and test images must be the same in every run, whatever the run's seed.
SPLIT_SEED = 0


@dataclass(frozen=True)
class Split:
    """Images and labels of one split, read when they are needed.

    Attributes:
        labels: int64, (N,).
        read: indices (M,) int64 -> images uint8 (M, C, H, W).
    """

    labels: Tensor
    read: Callable[[Tensor], Tensor]

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: Tensor) -> Tensor:
        """Images uint8 (M, C, H, W) at `indices` (M,)."""
        return self.read(indices)

    @cached_property
    def images(self) -> Tensor:
        """All images, uint8, (N, C, H, W)."""
        return self.read(torch.arange(len(self)))

    def subset(self, indices: Tensor) -> Split:
        """The split made of the images at `indices`."""
        return Split(self.labels[indices], lambda chosen: self.read(indices[chosen]))


def stratified_choice(labels: Tensor, num_chosen: int) -> Tensor:
    """Indices of `num_chosen` samples, sorted, each class in proportion, always the same ones.

    Args:
        labels: int64, (N,).
        num_chosen: 0 .. N.

    Returns:
        int64, (num_chosen,).
    """
    values = labels.numpy()
    classes, counts = np.unique(values, return_counts=True)
    exact = counts * num_chosen / len(values)
    quotas = np.floor(exact).astype(int)
    # The largest remainders get the samples that rounding down left over.
    for position in np.argsort(quotas - exact, kind="stable")[: num_chosen - quotas.sum()]:
        quotas[position] += 1
    # RandomState, not default_rng: its stream is frozen across NumPy versions.
    state = np.random.RandomState(derive_seed(SPLIT_SEED, "split") % 2**32)
    members = [state.permutation(np.flatnonzero(values == label)) for label in classes]
    chosen = np.concatenate([part[:quota] for part, quota in zip(members, quotas)])
    return torch.from_numpy(np.sort(chosen))


def other_indices(indices: Tensor, length: int) -> Tensor:
    """The indices below `length` that are not among `indices`, sorted."""
    mask = torch.ones(length, dtype=torch.bool)
    mask[indices] = False
    return mask.nonzero().flatten()
