"""EfficientNet-B0 of torchvision's MBConv blocks: a stem and seven stages.

The ImageNet form is torchvision's model. The CIFAR form does not halve in the stem: it divides a
32x32 image by 16, not by 32. The last 1x1 convolution is part of the head, so that auxiliary
networks end with an MBConv. Blocks drop out whole in training (stochastic depth), the more often
the deeper they are; a copy does so as often as the block that it copies.

Weights that come from the first code compute otherwise where nobody sees it: convolutions of stride
2 pad more after an image than before it, and BatchNorm has another epsilon.

Source: Tan, Le 2019, table 1.
"""

from __future__ import annotations

from functools import partial

from torch import Tensor, nn
from torch.nn import functional
from torchvision.models.efficientnet import MBConv, MBConvConfig
from torchvision.ops import Conv2dNormActivation

from auglocal.backbones.backbone import Backbone, LayerSpec
from auglocal.backbones.heads import ConvolutionHead
from auglocal.backbones.key_map import KeyMap
from auglocal.backbones.style import CIFAR_STYLE, IMAGENET_STYLE

STEM_CHANNELS = 32
HEAD_EXPANSION = 4
DROPOUT = 0.2
FIRST_CODE_EPSILON = 1e-3
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


class SameConvolution(nn.Conv2d):
    """A convolution of stride s that pads just enough for ceil(H / s), less before than after."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 (PyTorch's name)
        """Convolution of features (N, C, H, W)."""
        padding: list[int] = []
        for axis in (1, 0):  # functional.pad wants the last axis first
            size, kernel, stride = input.shape[2 + axis], self.kernel_size[axis], self.stride[axis]
            missing = max(0, (-(-size // stride) - 1) * stride + kernel - size)
            padding += [missing // 2, missing - missing // 2]
        return super().forward(functional.pad(input, padding))


def _as_first_code(module: nn.Module) -> nn.Module:
    """Make a layer or a head compute as the authors' TensorFlow code does, in place."""
    for parent in module.modules():
        if isinstance(parent, nn.BatchNorm2d):
            parent.eps = FIRST_CODE_EPSILON
        for name, part in parent.named_children():
            if isinstance(part, nn.Conv2d) and part.stride[0] == 2:
                same = SameConvolution(
                    part.in_channels,
                    part.out_channels,
                    (part.kernel_size[0], part.kernel_size[1]),
                    stride=2,
                    groups=part.groups,
                    bias=False,
                )
                setattr(parent, name, same)
    return module


def _stem(
    in_channels: int, stride: int, *, channels: int, is_first_code: bool = False
) -> nn.Module:
    """3x3 convolution, BatchNorm, SiLU."""
    stem: nn.Module = Conv2dNormActivation(
        in_channels, channels, stride=stride, activation_layer=nn.SiLU
    )
    return _as_first_code(stem) if is_first_code else stem


def _block(
    in_channels: int,
    stride: int,
    *,
    channels: int,
    expansion: int,
    kernel_size: int,
    drop_probability: float,
    is_first_code: bool = False,
) -> nn.Module:
    """MBConv with `channels` output channels."""
    config = MBConvConfig(expansion, kernel_size, stride, in_channels, channels, num_layers=1)
    block: nn.Module = MBConv(config, drop_probability, nn.BatchNorm2d)
    return _as_first_code(block) if is_first_code else block


def efficientnet_b0(
    num_classes: int,
    input_size: tuple[int, int, int],
    width: float = 1.0,
    *,
    imagenet: bool,
    is_first_code: bool = False,
) -> Backbone:
    """Build an EfficientNet-B0.

    Args:
        num_classes: K.
        input_size: (C, H, W) of one image.
        width: multiplies the channels, rounded to multiples of 8 as torchvision's `width_mult`.
        imagenet: the ImageNet form, else the CIFAR form.
        is_first_code: it computes as the authors' first code.
    """
    channels = MBConvConfig.adjust_channels(STEM_CHANNELS, width)
    stem = partial(_stem, channels=channels, is_first_code=is_first_code)
    specs = [LayerSpec("stem", channels, 2 if imagenet else 1, stem)]
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
                is_first_code=is_first_code,
            )
            name = f"stage{stage}_block{index + 1}"
            specs.append(LayerSpec(name, channels, first_stride if index == 0 else 1, build))
            pairs.append((f"features.{stage}.{index}.", f"layers.{name}."))
    pairs += [(f"features.{len(STAGES) + 1}.", "head.conv."), ("classifier.1.", "head.linear.")]
    head: nn.Module = ConvolutionHead(
        channels, HEAD_EXPANSION * channels, num_classes, nn.SiLU, DROPOUT
    )
    return Backbone(
        specs,
        _as_first_code(head) if is_first_code else head,
        input_size,
        num_classes,
        style=IMAGENET_STYLE if imagenet else CIFAR_STYLE,
        key_map=KeyMap("efficientnet_b0", tuple(pairs)),
    )
