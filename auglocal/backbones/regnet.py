"""RegNetX-400MF of torchvision's blocks: a stem and four stages.

The ImageNet form is torchvision's model. The CIFAR form does not halve in the stem and the first
stage, as is usual for 32x32 images: it divides them by 8, not by 32.

Source: Radosavovic et al. 2020, table 6; torchvision computes the stages from four numbers.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import nn
from torchvision.models.regnet import BlockParams, ResBottleneckBlock
from torchvision.ops import Conv2dNormActivation

from auglocal.backbones.backbone import Backbone, LayerSpec
from auglocal.backbones.heads import PooledHead
from auglocal.backbones.key_map import KeyMap
from auglocal.backbones.style import CIFAR_STYLE, IMAGENET_STYLE
from auglocal.errors import InputError

STEM_CHANNELS = 32


def _stem(in_channels: int, stride: int) -> nn.Module:
    """3x3 convolution, BatchNorm, ReLU."""
    stem: nn.Module = Conv2dNormActivation(in_channels, STEM_CHANNELS, stride=stride)
    return stem


def _block(in_channels: int, stride: int, *, channels: int, group_width: int) -> nn.Module:
    """Residual block with `channels` output channels, its 3x3 convolution in groups."""
    block: nn.Module = ResBottleneckBlock(
        in_channels, channels, stride, nn.BatchNorm2d, nn.ReLU, group_width
    )
    return block


def _stages() -> BlockParams:
    """Depth, channels and group width of the stages of RegNetX-400MF."""
    with torch.device("cpu"):  # reads its tensors' values, which the "meta" device has not
        return BlockParams.from_init_params(depth=22, w_0=24, w_a=24.48, w_m=2.54, group_width=16)


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
        width: only 1; another width is another RegNet.
        imagenet: the ImageNet form, else the CIFAR form.

    Raises:
        InputError: another width.
    """
    if width != 1:
        raise InputError(
            f"A RegNet comes in one width, not {width:g} times it; give --width 1, or choose "
            "another --architecture."
        )
    specs = [LayerSpec("stem", STEM_CHANNELS, 2 if imagenet else 1, _stem)]
    pairs = [("stem.", "layers.stem.")]
    stages = _stages()
    shapes = zip(stages.depths, stages.widths, stages.group_widths)
    for stage, (num_blocks, channels, group_width) in enumerate(shapes, start=1):
        build = partial(_block, channels=channels, group_width=group_width)
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
        key_map=KeyMap(tuple(pairs)),
    )
