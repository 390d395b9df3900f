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
        features = images
        for index, block_name in enumerate(self.block_names):
            features = self.run_block(
                index, features.detach(), precision, recompute_block=recompute_blocks
            )
            loss, logits = self.block_loss(index, features, images, labels, precision)
            yield block_name, loss, logits.detach()

    def run_block(
        self,
        index: int,
        features: Tensor,
        precision: torch.dtype = torch.float32,
        *,
        recompute_block: bool = False,
    ) -> Tensor:
        """Output of the block at `index` for its input; other arguments as in `local_losses`."""
        layers = list(self.backbone.layers.values())
        part = nn.Sequential(*(layers[layer_index] for layer_index in self.blocks[index]))
        # Entered anew each time: a yield inside it would leak autocast into the caller.
        with torch.autocast(features.device.type, precision, precision != torch.float32):
            output: Tensor = recompute(part, features) if recompute_block else part(features)
        return output

    def block_loss(
        self,
        index: int,
        features: Tensor,
        images: Tensor,
        labels: Tensor,
        precision: torch.dtype = torch.float32,
    ) -> tuple[Tensor, Tensor]:
        """Loss (scalar) and logits (N, K) of the block at `index` from its output."""
        block_name = self.block_names[index]
        with torch.autocast(features.device.type, precision, precision != torch.float32):
            if block_name != OUTPUT_BLOCK:
                loss, logits = self.auxiliaries[block_name](features, images, labels)
                return loss, logits
            logits = self.backbone.head(features).float()
            return functional.cross_entropy(logits, labels), logits
