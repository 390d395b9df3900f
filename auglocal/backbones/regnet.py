"""RegNetX-400MF of torchvision's blocks: a stem and four stages.

The ImageNet form is torchvision's model. The CIFAR form does not halve in the stem and the first
stage, as is usual for 32x32 images: it divides them by 8, not by 32. A wider or narrower one keeps
the group width of 16, so that the channels of its stages are multiples of 16.

Source: Radosavovic et al. 2020, table 6; torchvision computes the stages from four numbers, which
give the last one 400 channels, not the 384 of the table and of timm. The latter is width 0.96.
"""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import nn
from torchvision.models.regnet import BlockParams, ResBottleneckBlock
from torchvision.ops import Conv2dNormActivation

from auglocal.backbones.backbone import Backbone, LayerSpec
from auglocal.backbones.heads import PooledHead
from auglocal.backbones.key_map import KeyMap
from auglocal.backbones.style import CIFAR_STYLE, IMAGENET_STYLE

STEM_CHANNELS = 32
STEM_MULTIPLE = 8
GROUP_WIDTH = 16


def _stem(in_channels: int, stride: int, *, channels: int) -> nn.Module:
    """3x3 convolution, BatchNorm, ReLU."""
    stem: nn.Module = Conv2dNormActivation(in_channels, channels, stride=stride)
    return stem


def _block(in_channels: int, stride: int, *, channels: int) -> nn.Module:
    """Residual block with `channels` output channels, its 3x3 convolution in groups."""
    block: nn.Module = ResBottleneckBlock(
        in_channels, channels, stride, nn.BatchNorm2d, nn.ReLU, GROUP_WIDTH
    )
    return block


def stages() -> BlockParams:
    """Depth and channels of the stages of RegNetX-400MF."""
    with torch.device("cpu"):  # reads its tensors' values, which the "meta" device has not
        return BlockParams.from_init_params(
            depth=22, w_0=24, w_a=24.48, w_m=2.54, group_width=GROUP_WIDTH
        )


def scale(channels: int, width: float, multiple: int) -> int:
    """The multiple nearest to channels * width, halves up, at least one."""
    return max(1, math.floor(channels * width / multiple + 0.5)) * multiple


def regnetx_400mf(
    num_classes: int,
    input_size: tuple[int, int, int],
    width: float = 1.0,
    *,
    imagenet: bool,
) -> Backbone:
    """Build a RegNetX-400MF.

    Args:
        num_classes: K.
        input_size: (C, H, W) of one image.
        width: multiplies the channels, rounded to multiples of 8 in the stem and of the group
            width 16 after it, at least one group.
        imagenet: the ImageNet form, else the CIFAR form.
    """
    channels = scale(STEM_CHANNELS, width, STEM_MULTIPLE)
    stem = partial(_stem, channels=channels)
    specs = [LayerSpec("stem", channels, 2 if imagenet else 1, stem)]
    pairs = [("stem.", "layers.stem.")]
    published_stages = stages()
    for stage, (num_blocks, published) in enumerate(
        zip(published_stages.depths, published_stages.widths), start=1
    ):
        channels = scale(published, width, GROUP_WIDTH)
        build = partial(_block, channels=channels)
        for index in range(num_blocks):
            stride = 2 if index == 0 and (imagenet or stage > 1) else 1
            name = f"stage{stage}_block{index + 1}"
            specs.append(LayerSpec(name, channels, stride, build))
            theirs = f"trunk_output.block{stage}.block{stage}-{index}."
            pairs.append((theirs, f"layers.{name}."))
    pairs.append(("fc.", "head.linear."))
    return Backbone(
        specs,
        PooledHead(channels, num_classes),
        input_size,
        num_classes,
        style=IMAGENET_STYLE if imagenet else CIFAR_STYLE,
        key_map=KeyMap("regnet_x_400mf", tuple(pairs)),
    )
