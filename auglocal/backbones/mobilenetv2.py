"""MobileNetV2 of torchvision's inverted residuals: a stem and seven stages.

The ImageNet form is torchvision's model. The CIFAR form does not halve in the stem and the second
stage, as is usual for 32x32 images: it divides them by 8, not by 32. The last 1x1 convolution is
part of the head, so that auxiliary networks end with an inverted residual.

Source: Sandler et al. 2018, table 2.
"""

from __future__ import annotations

from functools import partial

from torch import nn
from torchvision.models.efficientnet import MBConvConfig
from torchvision.models.mobilenetv2 import InvertedResidual
from torchvision.ops import Conv2dNormActivation

from auglocal.backbones.backbone import Backbone, LayerSpec
from auglocal.backbones.heads import ConvolutionHead
from auglocal.backbones.key_map import KeyMap
from auglocal.backbones.style import CIFAR_STYLE, IMAGENET_STYLE

STEM_CHANNELS = 32
HEAD_CHANNELS = 1280
DROPOUT = 0.2
# Expansion, channels, blocks and stride of each stage.
STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


def _stem(in_channels: int, stride: int, *, channels: int) -> nn.Module:
    """3x3 convolution, BatchNorm, ReLU6."""
    stem: nn.Module = Conv2dNormActivation(
        in_channels, channels, stride=stride, activation_layer=nn.ReLU6
    )
    return stem


def _block(in_channels: int, stride: int, *, channels: int, expansion: int) -> nn.Module:
    """Inverted residual with `channels` output channels."""
    block: nn.Module = InvertedResidual(in_channels, channels, stride, expansion)
    return block


def mobilenetv2(
    num_classes: int,
    input_size: tuple[int, int, int],
    width: float = 1.0,
    *,
    imagenet: bool,
) -> Backbone:
    """Build a MobileNetV2.

    Args:
        num_classes: K.
        input_size: (C, H, W) of one image.
        width: multiplies the channels, rounded to multiples of 8 as torchvision's `width_mult`;
            those of the head never shrink.
        imagenet: the ImageNet form, else the CIFAR form.
    """
    scale = MBConvConfig.adjust_channels  # torchvision's public rounding to multiples of 8
    channels = scale(STEM_CHANNELS, width)
    specs = [LayerSpec("stem", channels, 2 if imagenet else 1, partial(_stem, channels=channels))]
    for stage, (expansion, published, num_blocks, first_stride) in enumerate(STAGES, start=1):
        channels = scale(published, width)
        for index in range(num_blocks):
            stride = first_stride if index == 0 and (imagenet or stage != 2) else 1
            name = f"stage{stage}_block{index + 1}"
            build = partial(_block, channels=channels, expansion=expansion)
            specs.append(LayerSpec(name, channels, stride, build))
    pairs = [(f"features.{i}.", f"layers.{spec.name}.") for i, spec in enumerate(specs)]
    pairs += [(f"features.{len(specs)}.", "head.conv."), ("classifier.1.", "head.linear.")]
    head_channels = scale(HEAD_CHANNELS, max(1.0, width))
    return Backbone(
        specs,
        ConvolutionHead(channels, head_channels, num_classes, nn.ReLU6, DROPOUT),
        input_size,
        num_classes,
        style=IMAGENET_STYLE if imagenet else CIFAR_STYLE,
        key_map=KeyMap("mobilenet_v2", tuple(pairs)),
    )
