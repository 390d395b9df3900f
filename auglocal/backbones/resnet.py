"""ResNet-18, 34, 50, 101 and 152 of torchvision's blocks: a stem and four stages.

The ImageNet form is torchvision's model. The CIFAR form has a 3x3 stem of stride 1 and no pool, so
that a 32x32 image reaches the first stage whole; everything after the stem is the same. Either form
may have a pool in its stem or none; that changes no weights, so that files leave it open.

Source: He et al. 2016, table 1; the bottleneck halves in its 3x3 convolution, as torchvision's
("v1.5"), or in its first 1x1 convolution, as theirs ("v1").
"""

from __future__ import annotations

from collections import OrderedDict
from functools import partial

from torch import nn
from torchvision.models.resnet import BasicBlock, Bottleneck, conv1x1

from auglocal.backbones.backbone import Backbone, LayerSpec
from auglocal.backbones.heads import PooledHead
from auglocal.backbones.key_map import KeyMap
from auglocal.backbones.style import CIFAR_STYLE, IMAGENET_STYLE

FIRST_CHANNELS = 64
# Blocks of each stage, by depth.
STAGES: dict[int, tuple[type[nn.Module], tuple[int, ...]]] = {
    18: (BasicBlock, (2, 2, 2, 2)),
    34: (BasicBlock, (3, 4, 6, 3)),
    50: (Bottleneck, (3, 4, 6, 3)),
    101: (Bottleneck, (3, 4, 23, 3)),
    152: (Bottleneck, (3, 8, 36, 3)),
}


def _stem(
    in_channels: int, stride: int, *, channels: int, kernel_size: int, pooled: bool
) -> nn.Module:
    """Convolution, BatchNorm, ReLU, and perhaps a pool, which takes a factor 2 of the stride."""
    convolution = nn.Conv2d(
        in_channels,
        channels,
        kernel_size,
        stride=stride // 2 if pooled else stride,
        padding=kernel_size // 2,
        bias=False,
    )
    parts: list[tuple[str, nn.Module]] = [
        ("conv1", convolution),
        ("bn1", nn.BatchNorm2d(channels)),
        ("relu", nn.ReLU(inplace=True)),
    ]
    if pooled:
        parts.append(("maxpool", nn.MaxPool2d(3, stride=2, padding=1)))
    return nn.Sequential(OrderedDict(parts))


def _block(
    in_channels: int,
    stride: int,
    *,
    block: type[nn.Module],
    channels: int,
    halves_first: bool = False,
) -> nn.Module:
    """A residual block with `channels` output channels."""
    shortcut = None
    if stride != 1 or in_channels != channels:
        shortcut = nn.Sequential(conv1x1(in_channels, channels, stride), nn.BatchNorm2d(channels))
    built = block(in_channels, channels // _expansion(block), stride, shortcut)
    if halves_first and isinstance(built, Bottleneck):
        built.conv1.stride, built.conv2.stride = built.conv2.stride, built.conv1.stride
    return built


def _expansion(block: type[nn.Module]) -> int:
    """Output channels of a block for each channel of its 3x3 convolution."""
    return 4 if block is Bottleneck else 1


def resnet(
    depth: int,
    num_classes: int,
    input_size: tuple[int, int, int],
    width: float = 1.0,
    *,
    imagenet: bool,
    pooled: bool | None = None,
    halves_first: bool = False,
) -> Backbone:
    """Build a ResNet.

    Args:
        depth: 18, 34, 50, 101 or 152.
        num_classes: K.
        input_size: (C, H, W) of one image.
        width: the stem has round(64 * width) channels, at least 1. Stages multiply them exactly.
        imagenet: the ImageNet form, else the CIFAR form.
        pooled: a max pool ends the stem; None is as published: in the ImageNet form alone.
        halves_first: bottlenecks halve in their first convolution, not in the second.
    """
    block, blocks_by_stage = STAGES[depth]
    first = max(1, round(FIRST_CHANNELS * width))
    pooled = imagenet if pooled is None else pooled
    stem = partial(_stem, channels=first, kernel_size=7 if imagenet else 3, pooled=pooled)
    specs = [LayerSpec("stem", first, (2 if imagenet else 1) * (2 if pooled else 1), stem)]
    pairs = [(f"{part}.", f"layers.stem.{part}.") for part in ("conv1", "bn1")]
    for stage, num_blocks in enumerate(blocks_by_stage, start=1):
        channels = first * 2 ** (stage - 1) * _expansion(block)
        for index in range(num_blocks):
            stride = 2 if stage > 1 and index == 0 else 1
            name = f"stage{stage}_block{index + 1}"
            build = partial(_block, block=block, channels=channels, halves_first=halves_first)
            specs.append(LayerSpec(name, channels, stride, build))
            pairs.append((f"layer{stage}.{index}.", f"layers.{name}."))
    pairs.append(("fc.", "head.linear."))
    return Backbone(
        specs,
        PooledHead(channels, num_classes),
        input_size,
        num_classes,
        style=IMAGENET_STYLE if imagenet else CIFAR_STYLE,
        key_map=KeyMap(f"resnet{depth}", tuple(pairs)),
    )
