"""Gradients that ranks with the same blocks add up, while the next blocks go on computing.

In: a block whose backward is done. Out: the same gradients on every rank, and the same running
statistics of BatchNorm, so that replicas are equal after every step.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as distributed
from torch import Tensor, nn

from auglocal.parallel.team import Team, copy_back
from auglocal.recompute import BATCH_NORMS


class GradientSum:
    """One all-reduce a block and step: a bucket of all its gradients and running statistics.

    Args:
        team: the ranks of its data group add up.

    Attributes:
        num_bytes: of the buckets so far.
    """

    def __init__(self, team: Team) -> None:
        self._team = team
        self._buckets: list[tuple[distributed.Work, Tensor, list[Tensor]]] = []
        self.num_bytes = 0

    def start(self, modules: Sequence[nn.Module], weight: float) -> None:
        """Begin to add up a block's gradients.

        Args:
            modules: of the block, the one that trains it among them.
            weight: share of this rank's images in the batch; its gradients hold it already, its
                running statistics do not.
        """
        if self._team.layout.data == 1:
            return
        gradients = [
            parameter.grad
            for module in modules
            for parameter in module.parameters()
            if parameter.grad is not None
        ]
        statistics = [tensor for module in modules for tensor in running_statistics(module)]
        pieces = [gradient.reshape(-1) for gradient in gradients]
        pieces += [tensor.reshape(-1) * weight for tensor in statistics]
        if not pieces:
            return
        flat = torch.cat(pieces)
        self.num_bytes += flat.nbytes
        work = distributed.all_reduce(flat, group=self._team.data_group, async_op=True)
        assert work is not None
        self._buckets.append((work, flat, [*gradients, *statistics]))

    def finish(self) -> None:
        """Wait for the sums, and put them in the gradients' place."""
        for work, flat, tensors in self._buckets:
            with self._team.watch.waiting():
                work.wait()
            copy_back(flat, tensors)
        self._buckets = []


def running_statistics(module: nn.Module) -> list[Tensor]:
    """Running means and variances of all BatchNorms in a module."""
    return [
        tensor
        for part in module.modules()
        if isinstance(part, BATCH_NORMS)
        for tensor in (part.running_mean, part.running_var)
        if tensor is not None
    ]
