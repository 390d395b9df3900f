"""EfficientNet-B0 of torchvision's MBConv blocks: a stem and seven stages.

The ImageNet form is torchvision's model. The CIFAR form does not halve in the stem: it divides a
32x32 image by 16, not by 32. The last 1x1 convolution is part of the head, so that auxiliary
networks end with an MBConv. Blocks drop out whole in training (stochastic depth), the more often
the deeper they are; a copy does so as often as the block that it copies.

Source: Tan, Le 2019, table 1.
"""

from __future__ import annotations

from functools import partial

from torch import nn
from torchvision.models.efficientnet import MBConv, MBConvConfig
from torchvision.ops import Conv2dNormActivation

from auglocal.backbones.backbone import Backbone, LayerSpec
from auglocal.backbones.heads import ConvolutionHead
from auglocal.backbones.key_map import KeyMap
from auglocal.backbones.style import CIFAR_STYLE, IMAGENET_STYLE

STEM_CHANNELS = 32
HEAD_EXPANSION = 4
DROPOUT = 0.2
STOCHASTIC_DEPTH = 0.2  # of a block after the last
# Expansion, kernel size, stride, channels and blocks of each stage.
STAGES = (
    (1, 3, 1, 16, 1),
    (6, 3, 2, 24, 2),
    (6, 5, 2, 40, 2),
    (6, 3, 2, 80, 3),
    (6, 5, 1, 112, 3),
    (6, 5, 2, 192, 4),
    (6, 3, 1, 320, 1),
)


def _stem(in_channels: int, stride: int, *, channels: int) -> nn.Module:
    """3x3 convolution, BatchNorm, SiLU."""
    stem: nn.Module = Conv2dNormActivation(
        in_channels, channels, stride=stride, activation_layer=nn.SiLU
    )
    return stem


def _block(
    in_channels: int,
    stride: int,
    *,
    channels: int,
    expansion: int,
    kernel_size: int,
    drop_probability: float,
) -> nn.Module:
    """MBConv with `channels` output channels."""
    config = MBConvConfig(expansion, kernel_size, stride, in_channels, channels, num_layers=1)
    block: nn.Module = MBConv(config, drop_probability, nn.BatchNorm2d)
    return block


def efficientnet_b0(
    num_classes: int,
    input_size: tuple[int, int, int],
    width: float = 1.0,
    *,
    imagenet: bool,
) -> Backbone:
    """Build an EfficientNet-B0.

    Args:
        num_classes: K.
        input_size: (C, H, W) of one image.
        width: multiplies the channels, rounded to multiples of 8 as torchvision's `width_mult`.
        imagenet: the ImageNet form, else the CIFAR form.
    """
    channels = MBConvConfig.adjust_channels(STEM_CHANNELS, width)
    specs = [LayerSpec("stem", channels, 2 if imagenet else 1, partial(_stem, channels=channels))]
    pairs = [("features.0.", "layers.stem.")]
    total_blocks = sum(num_blocks for *_, num_blocks in STAGES)
    for stage, (expansion, kernel_size, first_stride, published, num_blocks) in enumerate(
        STAGES, 1
    ):
        channels = MBConvConfig.adjust_channels(published, width)
        for index in range(num_blocks):
            build = partial(
                _block,
                channels=channels,
                expansion=expansion,
                kernel_size=kernel_size,
                drop_probability=STOCHASTIC_DEPTH * (len(specs) - 1) / total_blocks,
            )
            name = f"stage{stage}_block{index + 1}"
            specs.append(LayerSpec(name, channels, first_stride if index == 0 else 1, build))
            pairs.append((f"features.{stage}.{index}.", f"layers.{name}."))
    pairs += [(f"features.{len(STAGES) + 1}.", "head.conv."), ("classifier.1.", "head.linear.")]
    return Backbone(
        specs,
        ConvolutionHead(channels, HEAD_EXPANSION * channels, num_classes, nn.SiLU, DROPOUT),
        input_size,
        num_classes,
        style=IMAGENET_STYLE if imagenet else CIFAR_STYLE,
        key_map=KeyMap("efficientnet_b0", tuple(pairs)),
    )
