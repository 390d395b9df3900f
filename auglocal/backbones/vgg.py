"""VGG-11, 13, 16 and 19 with BatchNorm: a layer is a convolution and the pool after it, if any.

The ImageNet form is torchvision's model (`vgg13_bn` and so on). The CIFAR form has the same layers
and the usual small head: global average pool and one linear classifier; or, for files of others, a
head with two hidden layers as wide as the last stage.

Source: Simonyan, Zisserman 2015, table 1, columns A, B, D and E, with BatchNorm as torchvision.
"""

from __future__ import annotations

from collections import OrderedDict
from functools import partial

from torch import Tensor, nn
from torchvision.models.vgg import cfgs

from auglocal.backbones.backbone import Backbone, LayerSpec
from auglocal.backbones.heads import PooledHead
from auglocal.backbones.key_map import KeyMap
from auglocal.backbones.style import CIFAR_STYLE, IMAGENET_VGG_STYLE
from auglocal.errors import InputError

COLUMN_BY_DEPTH = {11: "A", 13: "B", 16: "D", 19: "E"}
FIRST_CHANNELS = 64
HEAD_SIZE = 7
HEAD_WIDTH = 4096
SMALLEST_IMAGE = 32  # five pools


def _convolution(in_channels: int, stride: int, *, channels: int) -> nn.Module:
    """3x3 convolution with bias, BatchNorm, ReLU, and a 2x2 max pool where the stride is 2."""
    parts: list[tuple[str, nn.Module]] = [
        ("conv", nn.Conv2d(in_channels, channels, 3, padding=1)),
        ("norm", nn.BatchNorm2d(channels)),
        ("relu", nn.ReLU(inplace=True)),
    ]
    if stride == 2:
        parts.append(("pool", nn.MaxPool2d(2)))
    return nn.Sequential(OrderedDict(parts))


class VGGHead(nn.Module):
    """Pool to 7x7, two hidden Linear of 4096 with ReLU and dropout, Linear: -> logits (N, K)."""

    def __init__(self, in_channels: int, num_classes: int) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(HEAD_SIZE)
        self.hidden = nn.Sequential(
            nn.Linear(in_channels * HEAD_SIZE**2, HEAD_WIDTH),
            nn.ReLU(inplace=True),
            nn.Dropout(0.5),
            nn.Linear(HEAD_WIDTH, HEAD_WIDTH),
            nn.ReLU(inplace=True),
            nn.Dropout(0.5),
        )
        self.linear = nn.Linear(HEAD_WIDTH, num_classes)

    def forward(self, features: Tensor) -> Tensor:
        """Logits of features (N, C, H, W)."""
        logits: Tensor = self.linear(self.hidden(self.pool(features).flatten(1)))
        return logits


class HiddenHead(nn.Module):
    """Pool to one pixel, two hidden Linear of C with ReLU and dropout, Linear: -> logits (N, K)."""

    def __init__(self, in_channels: int, num_classes: int) -> None:
        super().__init__()
        self.hidden = nn.Sequential(
            nn.Linear(in_channels, in_channels),
            nn.ReLU(inplace=True),
            nn.Dropout(0.5),
            nn.Linear(in_channels, in_channels),
            nn.ReLU(inplace=True),
            nn.Dropout(0.5),
        )
        self.linear = nn.Linear(in_channels, num_classes)

    def forward(self, features: Tensor) -> Tensor:
        """Logits of features (N, C, H, W)."""
        logits: Tensor = self.linear(self.hidden(features.mean(dim=(2, 3))))
        return logits


def stage_widths(depth: int) -> list[list[int]]:
    """Channels of the convolutions of each stage; in the table a stage ends with a pool ("M")."""
    stages: list[list[int]] = [[]]
    for entry in cfgs[COLUMN_BY_DEPTH[depth]][:-1]:
        if isinstance(entry, int):
            stages[-1].append(entry)
        else:
            stages.append([])
    return stages


def vgg(
    depth: int,
    num_classes: int,
    input_size: tuple[int, int, int],
    width: float = 1.0,
    *,
    imagenet: bool,
    hidden: bool = False,
) -> Backbone:
    """Build a VGG with BatchNorm.

    Args:
        depth: 11, 13, 16 or 19.
        num_classes: K.
        input_size: (C, H, W) of one image, H and W at least 32.
        width: the first layer has round(64 * width) channels, at least 1. Later stages multiply
            them exactly; the two hidden layers of the ImageNet head stay 4096 wide.
        imagenet: the ImageNet form, else the CIFAR form.
        hidden: the CIFAR form's head has hidden layers.

    Raises:
        InputError: the images are too small for five pools.
    """
    if min(input_size[1:]) < SMALLEST_IMAGE:
        raise InputError(
            f"A VGG halves an image five times and needs {SMALLEST_IMAGE} pixels, not "
            f"{min(input_size[1:])}; choose another --architecture, or larger images."
        )
    first = max(1, round(FIRST_CHANNELS * width))
    specs: list[LayerSpec] = []
    pairs: list[tuple[str, str]] = []
    position = 0  # in torchvision's `features`, where the ReLUs and pools are counted too
    for stage, widths in enumerate(stage_widths(depth), start=1):
        for index, published in enumerate(widths, start=1):
            name = f"stage{stage}_conv{index}"
            channels = first * (published // FIRST_CHANNELS)
            stride = 2 if index == len(widths) else 1
            build = partial(_convolution, channels=channels)
            specs.append(LayerSpec(name, channels, stride, build))
            pairs.append((f"features.{position}.", f"layers.{name}.conv."))
            pairs.append((f"features.{position + 1}.", f"layers.{name}.norm."))
            position += 3
        position += 1
    if imagenet:
        pairs += [("classifier.6.", "head.linear."), ("classifier.", "head.hidden.")]
    head = VGGHead if imagenet else HiddenHead if hidden else PooledHead
    return Backbone(
        specs,
        head(channels, num_classes),
        input_size,
        num_classes,
        style=IMAGENET_VGG_STYLE if imagenet else CIFAR_STYLE,
        key_map=KeyMap(f"vgg{depth}_bn", tuple(pairs)),
    )
