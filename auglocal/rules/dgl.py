"""DGL: every hidden block learns from a small classifier of 1x1 convolutions.

Source: Belilovsky, Eickenberg, Oyallon, "Decoupled Greedy Learning of CNNs", ICML 2020, its
auxiliary network "MLP-SR", as the AugLocal authors build it for CIFAR.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional

from auglocal.backbones.backbone import Backbone, initialise
from auglocal.batches import UNCHANGED, Normalisation
from auglocal.blocks import cut_into_blocks
from auglocal.local_loss import LocalClassifier
from auglocal.network import LocalNetwork

NUM_CONVOLUTIONS = 3
NUM_HIDDEN_LINEAR = 2
POOLED_SIZE = 2


class DGLClassifier(LocalClassifier):
    """Pool to a quarter, three 1x1 convolutions, pool to 2x2, two hidden Linear, Linear.

    Each convolution and each hidden Linear is without bias and followed by BatchNorm and ReLU; the
    first pool goes to ceil(H / 4) by ceil(W / 4), and the hidden Linear are 4 C wide.

    Args:
        channels: C of the block's output.
        num_classes: K.
    """

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        width = POOLED_SIZE**2 * channels
        convolutions: list[nn.Module] = []
        for _ in range(NUM_CONVOLUTIONS):
            convolution = nn.Conv2d(channels, channels, 1, bias=False)
            convolutions += [convolution, nn.BatchNorm2d(channels), nn.ReLU(inplace=True)]
        hidden: list[nn.Module] = []
        for _ in range(NUM_HIDDEN_LINEAR):
            linear = nn.Linear(width, width, bias=False)
            hidden += [linear, nn.BatchNorm1d(width), nn.ReLU(inplace=True)]
        self.convolutions = nn.Sequential(*convolutions)
        self.hidden = nn.Sequential(*hidden)
        self.linear = nn.Linear(width, num_classes)

    def logits(self, features: Tensor) -> Tensor:
        """Logits (N, K) of a hidden block's output (N, C, H, W)."""
        height, width = (math.ceil(size / 4) for size in features.shape[2:])
        pooled = functional.adaptive_avg_pool2d(features, (height, width))
        pooled = functional.adaptive_avg_pool2d(self.convolutions(pooled), POOLED_SIZE)
        logits: Tensor = self.linear(self.hidden(pooled.flatten(1)))
        return logits


@dataclass(frozen=True)
class DGL:
    """A `DGLClassifier` a block; the last layer trains with the backbone's own classifier.

    Attributes:
        modules: K, blocks in all; None is a block a layer.
    """

    modules: int | None = None

    def build(self, backbone: Backbone, normalisation: Normalisation = UNCHANGED) -> LocalNetwork:
        """Cut the backbone into blocks and give each hidden block a classifier."""
        blocks = cut_into_blocks(len(backbone.layers), self.modules, smallest_tail=1)
        auxiliaries = []
        for block in blocks[:-1]:
            channels = backbone.specs[block[-1]].channels
            classifier = DGLClassifier(channels, backbone.num_classes)
            initialise(classifier)
            auxiliaries.append(classifier)
        return LocalNetwork(backbone, blocks, auxiliaries)
