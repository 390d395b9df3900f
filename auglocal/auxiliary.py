"""AugLocal's auxiliary networks: which later layers, how many, and the network built of them.

In: a backbone's layer specifications and the index of a hidden layer. Out: the auxiliary network
that trains this layer, made of fresh copies of layers selected uniformly from those after it.

Source: Ma, Wu, Si, Tan, "Scaling Supervised Local Learning with Augmented Auxiliary Networks",
ICLR 2024, section 3, and the details of its CIFAR code (rounding half to even, deferred strides).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from auglocal.backbones.backbone import LayerSpec
from auglocal.local_loss import LocalClassifier


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


def plan_auxiliary(specs: Sequence[LayerSpec], layer: int, depth: int) -> AuxiliarySpec:
    """Say what the auxiliary network of hidden layer `layer` is made of."""
    selected = select_uniformly(layer, depth, len(specs))
    widths = [specs[layer].channels, *(specs[index].channels for index in selected)]
    return AuxiliarySpec(
        layer=layer,
        depth=depth,
        selected=tuple(selected),
        strides=tuple(deferred_strides(widths)),
        channels=tuple(itertools.pairwise(widths)),
    )


class AuxiliaryNetwork(LocalClassifier):
    """Copies of later layers, then global average pool and a linear classifier.

    A BatchNorm1d stands before the classifier only when the depth asked for is at most 1.

    Args:
        spec: what it is made of.
        specs: the backbone's layers.
        num_classes: K.
    """

    def __init__(self, spec: AuxiliarySpec, specs: Sequence[LayerSpec], num_classes: int) -> None:
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
        width = spec.channels[-1][1]
        self.norm = nn.BatchNorm1d(width) if spec.depth <= 1 else nn.Identity()
        self.linear = nn.Linear(width, num_classes)

    def logits(self, features: Tensor) -> Tensor:
        """Logits (N, K) of a hidden layer's output (N, C, H, W)."""
        pooled = self.layers(features).mean(dim=(2, 3))
        logits: Tensor = self.linear(self.norm(pooled))
        return logits
