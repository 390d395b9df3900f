"""A backbone is an ordered list of named layers and a head; everything else is built on that.

In: layer specifications (what each layer is, and how to make a fresh one of another input width
and stride) and a head. Out: a module that runs its layers in order.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from auglocal.backbones.key_map import KeyMap
from auglocal.backbones.style import AuxiliaryStyle


@dataclass(frozen=True)
class LayerSpec:
    """One layer of a backbone, and the recipe for a fresh copy of it.

    Attributes:
        name: unique within the backbone, without dots.
        channels: C, output channels.
        stride: factor by which the layer divides H and W.
        build: (in_channels, stride) -> a fresh layer with `channels` output channels and weights
            of its own. Auxiliary networks are made of such copies.
    """

    name: str
    channels: int
    stride: int
    build: Callable[[int, int], nn.Module]


class Backbone(nn.Module):
    """Named layers in order, then a head that turns the last layer's output into logits.

    Args:
        specs: the layers, input to output.
        head: module from the last layer's output to logits (N, K).
        input_size: (C, H, W) of one image.
        num_classes: K.
        style: how AugLocal builds its auxiliary networks.
        key_map: torchvision's names of its tensors; None where torchvision has no such model.
    """

    def __init__(
        self,
        specs: Sequence[LayerSpec],
        head: nn.Module,
        input_size: tuple[int, int, int],
        num_classes: int,
        *,
        style: AuxiliaryStyle,
        key_map: KeyMap | None = None,
    ) -> None:
        super().__init__()
        self.specs = tuple(specs)
        self.input_size = input_size
        self.num_classes = num_classes
        self.style = style
        self.key_map = key_map
        in_channels = [input_size[0], *(spec.channels for spec in specs)]
        self.layers = nn.ModuleDict(
            {spec.name: spec.build(width, spec.stride) for spec, width in zip(specs, in_channels)}
        )
        self.head = head

    @property
    def layer_names(self) -> tuple[str, ...]:
        """Names of the layers, input to output; the head is not among them."""
        return tuple(spec.name for spec in self.specs)

    def forward_layers(self, images: Tensor) -> Iterator[tuple[str, Tensor]]:
        """Yield (layer name, output (N, C, H, W)) for each layer in order; images (N, C, H, W)."""
        features = images
        for name, layer in self.layers.items():
            features = layer(features)
            yield name, features

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, K) of normalised images (N, C, H, W)."""
        features = images
        for layer in self.layers.values():
            features = layer(features)
        logits: Tensor = self.head(features)
        return logits


def initialise(module: nn.Module) -> None:
    """Set convolutions to He's normal initialisation by fan-out and BatchNorm to 1 and 0, in place.

    std = sqrt(2 / (k * k * out_channels)), also where a convolution has groups; biases of
    convolutions start at 0; linear layers keep PyTorch's default.

    Source: He et al. 2015, eq. 14; both AugLocal codes, for auxiliary networks too. torchvision
    starts the convolutions of all its families here in the same way (`kaiming_normal_`, fan-out),
    and the linear layers of some of them (VGG, MobileNetV2, EfficientNet, RegNet) narrower.
    """
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            fan_out = math.prod(part.kernel_size) * part.out_channels
            nn.init.normal_(part.weight, std=math.sqrt(2 / fan_out))
            if part.bias is not None:
                nn.init.zeros_(part.bias)
        elif isinstance(part, (nn.BatchNorm1d, nn.BatchNorm2d)):
            nn.init.ones_(part.weight)
            nn.init.zeros_(part.bias)


def layer_shapes(backbone: Backbone) -> list[tuple[int, int, int]]:
    """(C, H, W) of every layer's output, found by running fresh layers on no data ("meta" device).

    The backbone itself is left as it is.
    """
    shapes = []
    with torch.device("meta"):
        features = torch.empty(1, *backbone.input_size)
        for spec in backbone.specs:
            layer = spec.build(features.shape[1], spec.stride).eval()
            features = layer(features)
            channels, height, width = features.shape[1:]
            shapes.append((channels, height, width))
    return shapes
