"""CIFAR ResNets: a 3x3 stem and three stages of BasicBlocks, 16, 32 and 64 channels at width 1.

Source: He et al. 2016, section 4.2, with projection shortcuts (1x1 convolution and BatchNorm) where
the shape changes, as the AugLocal authors build them; or with that section's own shortcuts without
weights ("option A": every second pixel, and zeros in place of the channels that are new), which
people write in two ways.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import Tensor, nn
from torch.nn import functional

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


class Subsample(nn.Module):
    """Every stride-th pixel, and channels of zeros: (N, C, H, W) -> (N, C + new, H/s, W/s).

    H / stride and W / stride are rounded up.

    Args:
        new_channels: channels of zeros, at least 0.
        stride: at least 1.
        both_sides: half of the zeros come before the channels, else all of them after.
    """

    def __init__(self, new_channels: int, stride: int, *, both_sides: bool) -> None:
        super().__init__()
        self.stride = stride
        before = new_channels // 2 if both_sides else 0
        self.padding = (0, 0, 0, 0, before, new_channels - before)

    def forward(self, features: Tensor) -> Tensor:
        """Features of features."""
        return functional.pad(features[:, :, :: self.stride, :: self.stride], self.padding)


def _project(in_channels: int, channels: int, stride: int) -> nn.Module:
    """1x1 convolution and BatchNorm."""
    return nn.Sequential(
        nn.Conv2d(in_channels, channels, 1, stride=stride, bias=False),
        nn.BatchNorm2d(channels),
    )


def _pad(in_channels: int, channels: int, stride: int, *, both_sides: bool) -> nn.Module:
    """`Subsample`, to at least as many channels as come in."""
    return Subsample(max(0, channels - in_channels), stride, both_sides=both_sides)


# What a block whose shape changes adds to its residual: (C, channels, stride) -> module.
SHORTCUTS: dict[str, Callable[[int, int, int], nn.Module]] = {
    "projection": _project,
    "zeros on both sides": partial(_pad, both_sides=True),
    "zeros after": partial(_pad, both_sides=False),
}


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut: (N, C, H, W) -> (N, channels, H/stride, W/stride)."""

    def __init__(
        self, in_channels: int, stride: int, *, channels: int, shortcut: str = "projection"
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride=stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != channels:
            self.shortcut = SHORTCUTS[shortcut](in_channels, channels, stride)

    def forward(self, features: Tensor) -> Tensor:
        """Features of features."""
        residual = self.relu(self.norm1(self.conv1(features)))
        residual = self.norm2(self.conv2(residual))
        output: Tensor = self.relu(residual + self.shortcut(features))
        return output


def resnet_cifar(
    depth: int,
    num_classes: int,
    input_size: tuple[int, int, int],
    width: float = 1.0,
    *,
    shortcut: str = "projection",
) -> Backbone:
    """Build the CIFAR ResNet with `depth` weighted layers (6n + 2: 20, 32, 44, 56, 110).

    Args:
        depth: number of convolutions and the classifier on the longest path.
        num_classes: K.
        input_size: (C, H, W) of one image.
        width: the first stage has round(16 * width) channels, at least 1. Each later stage doubles
            them exactly, whatever the width, since auxiliary networks halve where channels double.
        shortcut: a name in `SHORTCUTS`.
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
            build = partial(BasicBlock, channels=channels, shortcut=shortcut)
            specs.append(LayerSpec(name, channels, stride, build))
    head = PooledHead(channels, num_classes)
    return Backbone(specs, head, input_size, num_classes, style=CIFAR_STYLE)
