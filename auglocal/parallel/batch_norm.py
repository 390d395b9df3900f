"""BatchNorm over the whole batch where each rank holds a share of it, on any device.

torch.nn.SyncBatchNorm wants a GPU; this one computes the same and runs, and is tested, on CPUs.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as distributed
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from auglocal.parallel.team import Team


class SharedBatchNorm(nn.BatchNorm2d):
    """(x - mean) / sqrt(var + eps) * weight + bias, mean and var by channel over all ranks' images.

    A gradient flows through mean and variance on all ranks, as in one process. Parameters and
    buffers have BatchNorm2d's names. The running variance is the unbiased one, as there.

    Args:
        original: whose parameters, buffers and settings it takes over.
        team: the ranks of its data group.
    """

    def __init__(self, original: nn.BatchNorm1d | nn.BatchNorm2d, team: Team) -> None:
        super().__init__(
            original.num_features,
            eps=original.eps,
            momentum=original.momentum,
            affine=False,
            track_running_stats=original.track_running_stats,
        )
        self.affine = original.affine
        self.weight, self.bias = original.weight, original.bias
        self.running_mean, self.running_var = original.running_mean, original.running_var
        self.num_batches_tracked = original.num_batches_tracked
        self.training = original.training
        self._team = team

    def forward(self, features: Tensor) -> Tensor:
        """Normalise (N, C) or (N, C, H, W), float; computed in float32."""
        if not self.training:
            return super().forward(features)
        values = features.float()
        others = [dimension for dimension in range(values.dim()) if dimension != 1]
        shape = [-1 if dimension == 1 else 1 for dimension in range(values.dim())]
        count = values.new_full((1,), values.numel() / self.num_features)
        totals = self._sum(torch.cat([values.sum(others), count]))
        total = totals[-1].detach()
        mean = totals[:-1] / total
        # Two sums: the difference of mean square and squared mean would lose digits.
        centred = values - mean.view(shape)
        variance = self._sum(centred.square().sum(others)) / total
        self._note(mean.detach(), variance.detach() * (total / (total - 1)))
        scale = self.weight * torch.rsqrt(variance + self.eps)
        return (centred * scale.view(shape) + self.bias.view(shape)).to(features.dtype)

    def _sum(self, numbers: Tensor) -> Tensor:
        with self._team.watch.waiting():
            summed: Tensor = _SumOverRanks.apply(numbers, self._team)
        return summed

    def _check_input_dim(self, input: Tensor) -> None:  # noqa: A002 (PyTorch's name)
        """Take what BatchNorm1d takes, too."""

    def _note(self, mean: Tensor, variance: Tensor) -> None:
        """Move the running statistics."""
        if self.num_batches_tracked is None:
            momentum = self.momentum or 0.0
        else:
            self.num_batches_tracked += 1
            momentum = self.momentum or 1 / float(self.num_batches_tracked)
        if self.running_mean is not None and self.running_var is not None:
            self.running_mean.lerp_(mean, momentum)
            self.running_var.lerp_(variance, momentum)


class _SumOverRanks(torch.autograd.Function):
    """Numbers added up over the ranks of a data group; so are their gradients."""

    @staticmethod
    def forward(ctx: Any, numbers: Tensor, team: Team) -> Tensor:
        ctx.team = team
        total = numbers.contiguous().clone()
        distributed.all_reduce(total, group=team.data_group)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        with ctx.team.watch.waiting():
            return _SumOverRanks.forward(ctx, gradient, ctx.team), None


def share_batch_norms(module: nn.Module, team: Team) -> None:
    """Put a `SharedBatchNorm` in the place of every BatchNorm inside a module."""
    for name, part in module.named_children():
        if isinstance(part, (nn.BatchNorm1d, nn.BatchNorm2d)):
            setattr(module, name, SharedBatchNorm(part, team))
        else:
            share_batch_norms(part, team)
