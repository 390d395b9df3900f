"""CIFAR ResNets: a 3x3 stem and three stages of BasicBlocks, 16, 32 and 64 channels at width 1.

Source: He et al. 2016, section 4.2, with projection shortcuts (1x1 convolution and BatchNorm) where
the shape changes, as the AugLocal authors build them.
"""

from __future__ import annotations

from functools import partial

from torch import Tensor, nn

from auglocal.backbones.backbone import Backbone, LayerSpec
from auglocal.backbones.heads import PooledHead
from auglocal.backbones.style import CIFAR_STYLE

FIRST_CHANNELS = 16
NUM_STAGES = 3


class Stem(nn.Module):
    """3x3 convolution, BatchNorm, ReLU: (N, C, H, W) -> (N, channels, H/stride, W/stride)."""

    def __init__(self, in_channels: int, stride: int, *, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, channels, 3, stride=stride, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, images: Tensor) -> Tensor:
        """Features of normalised images."""
        features: Tensor = self.relu(self.norm(self.conv(images)))
        return features


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut: (N, C, H, W) -> (N, channels, H/stride, W/stride)."""

    def __init__(self, in_channels: int, stride: int, *, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride=stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_channels, channels, 1, stride=stride, bias=False),
                nn.BatchNorm2d(channels),
            )

    def forward(self, features: Tensor) -> Tensor:
        """Features of features."""
        residual = self.relu(self.norm1(self.conv1(features)))
        residual = self.norm2(self.conv2(residual))
        output: Tensor = self.relu(residual + self.shortcut(features))
        return output


def resnet_cifar(
    depth: int, num_classes: int, input_size: tuple[int, int, int], width: float = 1.0
) -> Backbone:
    """Build the CIFAR ResNet with `depth` weighted layers (6n + 2: 20, 32, 44, 56, 110).

    Args:
        depth: number of convolutions and the classifier on the longest path.
        num_classes: K.
        input_size: (C, H, W) of one image.
        width: the first stage has round(16 * width) channels, at least 1. Each later stage doubles
            them exactly, whatever the width, since auxiliary networks halve where channels double.
    """
    blocks_per_stage, remainder = divmod(depth - 2, 6)
    if remainder or blocks_per_stage < 1:
        raise ValueError(f"expected a depth of 6n + 2, came {depth}")
    channels = max(1, round(FIRST_CHANNELS * width))
    specs = [LayerSpec("stem", channels, 1, partial(Stem, channels=channels))]
    for stage_index in range(NUM_STAGES):
        channels *= 2 if stage_index > 0 else 1
        for block_index in range(blocks_per_stage):
            stride = 2 if stage_index > 0 and block_index == 0 else 1
            name = f"stage{stage_index + 1}_block{block_index + 1}"
            specs.append(LayerSpec(name, channels, stride, partial(BasicBlock, channels=channels)))
    head = PooledHead(channels, num_classes)
    return Backbone(specs, head, input_size, num_classes, style=CIFAR_STYLE)
