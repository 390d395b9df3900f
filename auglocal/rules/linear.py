"""Linear: every hidden block learns from a linear classifier, the floor of local learning.

Source: Belilovsky, Eickenberg, Oyallon, "Greedy Layerwise Learning Can Scale to ImageNet", ICML
2019, without auxiliary layers; here all blocks train side by side, there one after the other.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from auglocal.backbones.backbone import Backbone
from auglocal.batches import UNCHANGED, Normalisation
from auglocal.blocks import cut_into_blocks
from auglocal.local_loss import LocalClassifier
from auglocal.network import LocalNetwork


class LinearClassifier(LocalClassifier):
    """Global average pool and Linear.

    Args:
        channels: C of the block's output.
        num_classes: K.
    """

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        self.linear = nn.Linear(channels, num_classes)

    def logits(self, features: Tensor) -> Tensor:
        """Logits (N, K) of a hidden block's output (N, C, H, W)."""
        logits: Tensor = self.linear(features.mean(dim=(2, 3)))
        return logits


@dataclass(frozen=True)
class Linear:
    """A linear classifier a block; the last layer trains with the backbone's own.

    Attributes:
        modules: K, blocks in all; None is a block a layer.
    """

    modules: int | None = None

    def build(self, backbone: Backbone, normalisation: Normalisation = UNCHANGED) -> LocalNetwork:
        """Cut the backbone into blocks and give each hidden block a linear classifier."""
        blocks = cut_into_blocks(len(backbone.layers), self.modules, smallest_tail=1)
        auxiliaries = [
            LinearClassifier(backbone.specs[block[-1]].channels, backbone.num_classes)
            for block in blocks[:-1]
        ]
        return LocalNetwork(backbone, blocks, auxiliaries)
