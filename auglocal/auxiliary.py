"""AugLocal's auxiliary networks: which later layers, how many, and the network built of them.

In: a backbone's layer specifications and the index of a hidden layer. Out: the auxiliary network
that trains this layer, made of fresh copies of layers selected from those after it: uniformly, as
the paper does, or in one of the ways that show what uniform selection is good for.

Source: Ma, Wu, Si, Tan, "Scaling Supervised Local Learning with Augmented Auxiliary Networks",
ICLR 2024, section 3, and the details of its CIFAR and ImageNet codes (rounding half to even,
strides, heads), between which the backbone's `AuxiliaryStyle` chooses.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from auglocal.backbones.backbone import LayerSpec
from auglocal.backbones.style import AuxiliaryStyle
from auglocal.local_loss import LocalClassifier
from auglocal.randomness import generator_at

HIDDEN_WIDTH = 512
NUM_HIDDEN = 2

# Which later layers to copy: (layer, depth, layers of the backbone, seed) -> indices in order.
Selection = Callable[[int, int, int, int], list[int]]


@dataclass(frozen=True)
class AuxiliarySpec:
    """What an auxiliary network is made of.

    Attributes:
        layer: index of the hidden layer that it trains.
        depth: number of later layers asked for.
        selected: indices of the layers copied, in order; fewer than `depth` near the output.
        strides: of each copy.
        channels: (in, out) of each copy.
    """

    layer: int
    depth: int
    selected: tuple[int, ...]
    strides: tuple[int, ...]
    channels: tuple[tuple[int, int], ...]


def pyramidal_depths(num_blocks: int, depth: int, pyramid: float) -> list[int]:
    """Depth of the auxiliary network of each hidden block, shallower towards the output.

    depth_i = max(1, round(d (1 - i c / (B - 2)) + i c / (B - 2))), i = 0 .. B - 2

    Args:
        num_blocks: B, blocks in all; the last has no auxiliary network. With B = 2 the depth is d.
        depth: d, at the first block.
        pyramid: c in [0, 1]; 0 keeps d everywhere, 1 reaches a depth of 1 at the last hidden block.

    Returns:
        B - 1 depths.

    Source: the paper's pyramidal depth, section 3.3; rounding is half to even.
    """
    depths = []
    for i in range(num_blocks - 1):
        descent = i * pyramid / (num_blocks - 2) if num_blocks > 2 else 0.0
        depths.append(max(1, round(depth * (1 - descent) + descent)))
    return depths


def select_uniformly(layer: int, depth: int, num_layers: int) -> list[int]:
    """Indices of `depth` layers after `layer`, evenly spaced, the last layer always among them.

    round(l + (n - 1 - l) / m * i), i = 1 .. m, rounded half to even; all later layers if there are
    at most m of them.

    Source: the paper's uniform selection, section 3.2.
    """
    num_later = num_layers - 1 - layer
    if depth >= num_later:
        return list(range(layer + 1, num_layers))
    return [round(layer + num_later / depth * i) for i in range(1, depth + 1)]


def select_next(layer: int, depth: int, num_layers: int) -> list[int]:
    """Indices of the `depth` layers that follow `layer`, or of all there are."""
    return list(range(layer + 1, min(layer + 1 + depth, num_layers)))


def select_randomly(layer: int, depth: int, num_layers: int, seed: int) -> list[int]:
    """Indices of `depth` layers after `layer`, in order, each set of them equally likely.

    Equal arguments give equal layers; all later layers if there are at most `depth` of them.
    """
    num_later = num_layers - 1 - layer
    generator = generator_at(seed, "selection", layer)
    drawn = torch.randperm(num_later, generator=generator, device=generator.device)
    return sorted(layer + 1 + position for position in drawn[:depth].tolist())


SELECTIONS: dict[str, Selection] = {
    "uniform": lambda layer, depth, num_layers, _: select_uniformly(layer, depth, num_layers),
    "next": lambda layer, depth, num_layers, _: select_next(layer, depth, num_layers),
    "random": select_randomly,
}


def deferred_strides(widths: Sequence[int]) -> list[int]:
    """Stride of each copy: 2 wherever the width has doubled once more than was yet halved in size.

    A copy halves once at most, so that a jump of 16 -> 64 channels leaves its second halving to
    the next copy.

    Args:
        widths: channels of the hidden layer, then of each copy.

    Returns:
        One stride (1 or 2) for each copy.
    """
    strides, owed = [], 0
    for previous, width in itertools.pairwise(widths):
        owed += int(math.log2(max(1, width // previous)))
        strides.append(2 if owed > 0 else 1)
        owed -= strides[-1] - 1
    return strides


def growth_strides(widths: Sequence[int]) -> list[int]:
    """Stride of each copy: 2 exactly where the channels grow.

    Args:
        widths: channels of the hidden layer, then of each copy.

    Returns:
        One stride (1 or 2) for each copy.
    """
    return [2 if width > previous else 1 for previous, width in itertools.pairwise(widths)]


def plan_auxiliary(
    specs: Sequence[LayerSpec],
    layer: int,
    depth: int,
    style: AuxiliaryStyle,
    *,
    selection: str = "uniform",
    selection_seed: int = 0,
) -> AuxiliarySpec:
    """Say what the auxiliary network of hidden layer `layer` is made of.

    Args:
        specs: the backbone's layers.
        layer: index of the hidden layer.
        depth: later layers to copy.
        style: the backbone's.
        selection: a name in `SELECTIONS`.
        selection_seed: decides which layers "random" takes.
    """
    selected = SELECTIONS[selection](layer, depth, len(specs), selection_seed)
    widths = [specs[layer].channels, *(specs[index].channels for index in selected)]
    strides = deferred_strides(widths) if style.defers_strides else growth_strides(widths)
    return AuxiliarySpec(
        layer=layer,
        depth=depth,
        selected=tuple(selected),
        strides=tuple(strides),
        channels=tuple(itertools.pairwise(widths)),
    )


class GlobalAveragePool(nn.Module):
    """Mean over the pixels: (N, C, H, W) -> (N, C)."""

    def forward(self, features: Tensor) -> Tensor:
        """One vector an image."""
        return features.mean(dim=(2, 3))


class HiddenLayers(nn.Module):
    """Flatten, pool to 512 values, two (Linear, BatchNorm, ReLU): (N, C, H, W) -> (N, 512).

    The pool averages over runs of the flattened values; with 512 channels a run is a channel.
    """

    def __init__(self) -> None:
        super().__init__()
        parts: list[nn.Module] = []
        for _ in range(NUM_HIDDEN):
            linear = nn.Linear(HIDDEN_WIDTH, HIDDEN_WIDTH)
            parts += [linear, nn.BatchNorm1d(HIDDEN_WIDTH), nn.ReLU(inplace=True)]
        self.layers = nn.Sequential(*parts)

    def forward(self, features: Tensor) -> Tensor:
        """One vector an image."""
        pooled = functional.adaptive_avg_pool1d(features.flatten(1), HIDDEN_WIDTH)
        vectors: Tensor = self.layers(pooled)
        return vectors


# What stands between the copies and the classifier: channels -> (module, features it gives).
REDUCTIONS: dict[str, Callable[[int], tuple[nn.Module, int]]] = {
    "pooled": lambda channels: (GlobalAveragePool(), channels),
    "hidden": lambda channels: (HiddenLayers(), HIDDEN_WIDTH),
}


class AuxiliaryNetwork(LocalClassifier):
    """Copies of later layers, then what the style puts before the classifier, then the classifier.

    Args:
        spec: what it is made of.
        specs: the backbone's layers.
        num_classes: K.
        style: the backbone's.
    """

    def __init__(
        self,
        spec: AuxiliarySpec,
        specs: Sequence[LayerSpec],
        num_classes: int,
        style: AuxiliaryStyle,
    ) -> None:
        super().__init__()
        self.spec = spec
        self.layers = nn.Sequential(
            *(
                specs[index].build(in_channels, stride)
                for index, stride, (in_channels, _) in zip(
                    spec.selected, spec.strides, spec.channels
                )
            )
        )
        self.reduction, width = REDUCTIONS[style.head](spec.channels[-1][1])
        has_norm = style.norm_before_classifier and spec.depth <= 1
        self.norm = nn.BatchNorm1d(width) if has_norm else nn.Identity()
        self.linear = nn.Linear(width, num_classes)

    def logits(self, features: Tensor) -> Tensor:
        """Logits (N, K) of a hidden layer's output (N, C, H, W)."""
        vectors = self.reduction(self.layers(features))
        logits: Tensor = self.linear(self.norm(vectors))
        return logits
