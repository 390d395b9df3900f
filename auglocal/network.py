"""A backbone cut into gradient-isolated blocks, each with a loss of its own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from auglocal.backbones.backbone import Backbone
from auglocal.recompute import recompute

OUTPUT_BLOCK = "head"


class LocalNetwork(nn.Module):
    """A backbone, its blocks, and the module that trains each hidden block.

    A hidden block is named after its last layer; the last block holds the head and is named
    "head". Backpropagation is the case of a single block.

    Args:
        backbone: the network to be trained.
        blocks: layer indices of each block; together every layer once, in order.
        auxiliaries: for each block but the last, a module with `logits(features) -> (N, K)` and
            `forward(features, images, labels) -> (loss, logits)`; see `LocalClassifier`.
    """

    def __init__(
        self,
        backbone: Backbone,
        blocks: Sequence[Sequence[int]],
        auxiliaries: Sequence[nn.Module],
    ) -> None:
        super().__init__()
        if [index for block in blocks for index in block] != list(range(len(backbone.layers))):
            raise ValueError(f"expected blocks that hold every layer once, in order, got {blocks}")
        if len(auxiliaries) != len(blocks) - 1:
            raise ValueError(f"expected {len(blocks) - 1} auxiliaries, got {len(auxiliaries)}")
        self.backbone = backbone
        self.blocks = tuple(tuple(block) for block in blocks)
        names = backbone.layer_names
        self.block_names = (*(names[block[-1]] for block in self.blocks[:-1]), OUTPUT_BLOCK)
        self.auxiliaries = nn.ModuleDict(dict(zip(self.block_names, auxiliaries)))

    def local_losses(
        self,
        images: Tensor,
        labels: Tensor,
        precision: torch.dtype = torch.float32,
        *,
        recompute_blocks: bool = False,
    ) -> Iterator[tuple[str, Tensor, Tensor]]:
        """Run block after block, yielding each block's loss before the next block starts.

        The caller's `loss.backward()` frees the block's graph, so that the memory needed is that of
        the largest block, not of the network.

        Args:
            images: normalised, float, (N, C, H, W).
            labels: int64, (N,).
            precision: torch.bfloat16 computes under autocast; weights and losses stay float32.
            recompute_blocks: `loss.backward()` runs the block again, after its auxiliary network's
                backward, so that the two are never held at once; see `auglocal.recompute`.

        Yields:
            (block name, loss (scalar), detached logits (N, K)), input to output.
        """
        layers = list(self.backbone.layers.values())
        features = images
        for block_name, block in zip(self.block_names, self.blocks):
            features = features.detach()
            # Entered anew for each block: a yield inside it would leak autocast into the caller.
            with torch.autocast(images.device.type, precision, precision != torch.float32):
                part = nn.Sequential(*(layers[index] for index in block))
                features = recompute(part, features) if recompute_blocks else part(features)
                loss, logits = self._local_loss(block_name, features, images, labels)
            yield block_name, loss, logits.detach()

    def _local_loss(
        self, block_name: str, features: Tensor, images: Tensor, labels: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Loss and logits of a block from its output."""
        if block_name != OUTPUT_BLOCK:
            loss, logits = self.auxiliaries[block_name](features, images, labels)
            return loss, logits
        logits = self.backbone.head(features).float()
        return functional.cross_entropy(logits, labels), logits
