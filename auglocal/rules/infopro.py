"""InfoPro: a hidden block shall keep what the image holds, and serve to classify it.

Source: Wang, Ni, Song, Yang, Huang, "Revisiting Locally Supervised Learning: an Alternative to
End-to-end Training", ICLR 2021, its cross-entropy form, with the weights of the AugLocal authors.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor, nn
from torch.nn import functional

from auglocal.backbones.backbone import Backbone, initialise
from auglocal.batches import UNCHANGED, Normalisation
from auglocal.blocks import cut_into_blocks
from auglocal.errors import InputError
from auglocal.local_loss import CombinedLoss, LocalClassifier
from auglocal.network import LocalNetwork

HIDDEN_WIDTH = 128
DECODER_CHANNELS = 12


# Weights by number of layers: ResNet-32 has 16, ResNet-110 has 55. They were published for these
# two on CIFAR alone. Any other backbone takes those of the nearer one by ratio, which nobody tuned
# for it: up to 29 layers (ResNet-56 has 28) those of ResNet-32.
PUBLISHED_WEIGHTS = {
    16: {
        "reconstruction_first": 5.0,
        "reconstruction_last": 0.2,
        "cross_entropy_first": 0.05,
        "cross_entropy_last": 0.5,
    },
    55: {
        "reconstruction_first": 5.0,
        "reconstruction_last": 0.5,
        "cross_entropy_first": 0.0,
        "cross_entropy_last": 1.0,
    },
}


@dataclass(frozen=True, kw_only=True)
class LossWeights:
    """Weights of both losses at the first and the last hidden block.

    None is as published for ResNet-32, or from 30 layers on for ResNet-110; there are no published
    weights of other backbones.

    Attributes:
        reconstruction_first: of the reconstruction loss, >= 0.
        reconstruction_last: likewise.
        cross_entropy_first: of the classifier's loss, >= 0.
        cross_entropy_last: likewise.
    """

    reconstruction_first: float | None = None
    reconstruction_last: float | None = None
    cross_entropy_first: float | None = None
    cross_entropy_last: float | None = None

    def __post_init__(self) -> None:
        for name, value in self._given_weights().items():
            if not 0 <= value < math.inf:
                words, flag = name.replace("_", " "), name.replace("_", "-")
                raise InputError(
                    f"The weight {words} must be at least 0, not {value:g}; give --{flag} 1, say."
                )

    def _given_weights(self) -> dict[str, float]:
        """Those that are not None, by name."""
        values = {item.name: getattr(self, item.name) for item in fields(LossWeights)}
        return {name: value for name, value in values.items() if value is not None}

    def weights_by_block(self, num_layers: int, num_hidden: int) -> list[tuple[float, float]]:
        """Go linearly from the first to the last weights: first + (last - first) i / (B - 1).

        Args:
            num_layers: of the backbone, which decides the published weights.
            num_hidden: B, hidden blocks; a single one has the first weights.

        Returns:
            (reconstruction, cross-entropy) of each hidden block i = 0 .. B - 1.
        """
        nearest = min(PUBLISHED_WEIGHTS, key=lambda count: abs(math.log(count / num_layers)))
        chosen = PUBLISHED_WEIGHTS[nearest] | self._given_weights()
        reconstruction, cross_entropy = (
            _interpolate(chosen[f"{loss}_first"], chosen[f"{loss}_last"], num_hidden)
            for loss in ("reconstruction", "cross_entropy")
        )
        return list(zip(reconstruction, cross_entropy))


def _interpolate(first: float, last: float, count: int) -> list[float]:
    """Evenly spaced values, both ends exact."""
    shares = [i / max(1, count - 1) for i in range(count)]
    return [first * (1 - share) + last * share for share in shares]


class InfoProClassifier(LocalClassifier):
    """3x3 convolution, BatchNorm, ReLU, global average pool, Linear 128, ReLU, Linear.

    The convolution (without bias) doubles the channels and halves the size, unless the block is as
    wide as the backbone's last layer: then it keeps both.

    Args:
        channels: C of the block's output.
        last_channels: C of the backbone's last layer.
        num_classes: K.
    """

    def __init__(self, channels: int, last_channels: int, num_classes: int) -> None:
        super().__init__()
        width = min(2 * channels, last_channels)
        stride = 2 if width > channels else 1
        self.layers = nn.Sequential(
            nn.Conv2d(channels, width, 3, stride=stride, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
        )
        self.hidden = nn.Linear(width, HIDDEN_WIDTH)
        self.linear = nn.Linear(HIDDEN_WIDTH, num_classes)

    def logits(self, features: Tensor) -> Tensor:
        """Logits (N, K) of a hidden block's output (N, C, H, W)."""
        pooled = self.layers(features).mean(dim=(2, 3))
        logits: Tensor = self.linear(functional.relu(self.hidden(pooled)))
        return logits


class ReconstructionLoss(nn.Module):
    """Binary cross-entropy of each pixel value p in [0, 1] and its reconstruction q from features.

    mean over values of -p log q - (1 - p) log(1 - q)

    q: features resized to the image (bilinear, corners aligned), 3x3 convolution to 12 channels,
    BatchNorm, ReLU, 3x3 convolution to the image's channels, sigmoid. p: the image before
    normalisation, clamped, since rounding leaves it as low as -3e-8.

    Args:
        channels: C of the block's output.
        image_channels: of the images.
        normalisation: of the images.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, channels: int, image_channels: int, normalisation: Normalisation) -> None:
        super().__init__()
        self.decoder = nn.Sequential(
            nn.Conv2d(channels, DECODER_CHANNELS, 3, padding=1),
            nn.BatchNorm2d(DECODER_CHANNELS),
            nn.ReLU(inplace=True),
            nn.Conv2d(DECODER_CHANNELS, image_channels, 3, padding=1),
        )
        # Buffers follow the module to its device; a checkpoint's metadata holds these values.
        for name in ("mean", "std"):
            values = torch.tensor(getattr(normalisation, name)).view(1, -1, 1, 1)
            self.register_buffer(name, values, persistent=False)

    def forward(self, features: Tensor, images: Tensor, labels: Tensor) -> Tensor:
        """Loss (float32 scalar >= 0, lower is better); see `LocalClassifier.forward`."""
        size = images.shape[2:]
        resized = functional.interpolate(features, size, mode="bilinear", align_corners=True)
        logits = self.decoder(resized).float()
        pixels = (images * self.std + self.mean).clamp(0, 1)
        # The sigmoid is part of the loss: so it is exact far from 0, and autocast allows it.
        return functional.binary_cross_entropy_with_logits(logits, pixels)


def with_reconstruction(
    classifiers: Sequence[LocalClassifier],
    backbone: Backbone,
    blocks: Sequence[Sequence[int]],
    normalisation: Normalisation,
    weights: LossWeights,
) -> list[CombinedLoss]:
    """Each hidden block's classifier with a fresh `ReconstructionLoss`, weighted by block.

    Args:
        classifiers: of the hidden blocks, input to output.
        backbone: whose blocks they are.
        blocks: layer indices of each block; the last is not hidden.
        normalisation: of the images.
        weights: at the first and the last hidden block.
    """
    combined = []
    weight_pairs = weights.weights_by_block(len(backbone.specs), len(classifiers))
    for classifier, block, pair in zip(classifiers, blocks, weight_pairs):
        channels = backbone.specs[block[-1]].channels
        loss = ReconstructionLoss(channels, backbone.input_size[0], normalisation)
        initialise(loss)
        reconstruction, cross_entropy = pair
        combined.append(CombinedLoss(classifier, loss, cross_entropy, reconstruction))
    return combined


@dataclass(frozen=True)
class InfoPro(LossWeights):
    """A classifier and a reconstruction a block; the last layer has neither.

    Attributes:
        modules: K, blocks in all; None is a block a layer.
    """

    modules: int | None = None

    def build(self, backbone: Backbone, normalisation: Normalisation = UNCHANGED) -> LocalNetwork:
        """Cut the backbone into blocks and give each hidden block a classifier and a loss."""
        blocks = cut_into_blocks(len(backbone.layers), self.modules, smallest_tail=1)
        last_channels = backbone.specs[-1].channels
        classifiers = []
        for block in blocks[:-1]:
            channels = backbone.specs[block[-1]].channels
            classifier = InfoProClassifier(channels, last_channels, backbone.num_classes)
            initialise(classifier)
            classifiers.append(classifier)
        auxiliaries = with_reconstruction(classifiers, backbone, blocks, normalisation, self)
        return LocalNetwork(backbone, blocks, auxiliaries)
