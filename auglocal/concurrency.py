"""Blocks that train at the same time: no gradient crosses blocks, so none waits for another's.

As soon as a block has its output, the next block may start on it, while the first goes on with its
auxiliary network and its backward. Each thread computes with one thread of its own, so the result
is bit for bit that of one block after the other on a single thread.
"""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context

import torch
from torch import Tensor, nn
from torchvision.ops import StochasticDepth

from auglocal.network import LocalNetwork

BlockResult = tuple[Tensor, Tensor]


class BlockThreads:
    """Threads that run the blocks of a network on the CPU, at most one block each at a time.

    Args:
        num_threads: blocks at the same time; the tensors of so many are held at once.
    """

    def __init__(self, num_threads: int) -> None:
        self._pool = ThreadPoolExecutor(
            num_threads,
            thread_name_prefix="block",
            initializer=torch.set_num_threads,
            initargs=(1,),
        )

    def backward(
        self,
        network: LocalNetwork,
        images: Tensor,
        labels: Tensor,
        precision: torch.dtype,
        weight: float = 1.0,
    ) -> list[BlockResult]:
        """Run every block and the backward of its loss; gradients are left on the parameters.

        Args: as `LocalNetwork.local_losses`, and `weight`: of each loss in its gradients.

        Returns:
            (loss, scalar, detached; logits (N, K), detached) of each block, input to output.
        """
        futures: dict[int, Future[BlockResult]] = {}

        def start_block(index: int, features: Tensor) -> None:
            # PyTorch keeps settings of its compiler in the context, which threads do not share.
            futures[index] = self._pool.submit(copy_context().run, train_block, index, features)

        def train_block(index: int, features: Tensor) -> BlockResult:
            output = network.run_block(index, features, precision)
            if index + 1 < len(network.blocks):
                start_block(index + 1, output.detach())
            loss, logits = network.block_loss(index, output, images, labels, precision)
            part = loss if weight == 1 else loss * weight
            part.backward()  # type: ignore[no-untyped-call]
            return loss.detach(), logits.detach()

        start_block(0, images)
        # A block's successor is noted before the block is done.
        return [futures[index].result() for index in range(len(network.blocks))]

    def close(self) -> None:
        """Let the threads end."""
        self._pool.shutdown()


def draws_at_random(network: nn.Module) -> bool:
    """True if a step draws random numbers: threads would draw them in no fixed order."""
    kinds = (nn.modules.dropout._DropoutNd, StochasticDepth)
    return any(isinstance(module, kinds) for module in network.modules())
