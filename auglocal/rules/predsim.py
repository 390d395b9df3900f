"""PredSim: images of one class shall look alike to a hidden block, and be told apart linearly.

Source: Nokland, Eidnes, "Training Neural Networks with Local Error Signals", ICML 2019.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from auglocal.backbones.backbone import Backbone, initialise, layer_shapes
from auglocal.batches import UNCHANGED, Normalisation
from auglocal.blocks import cut_into_blocks
from auglocal.local_loss import CombinedLoss, LocalClassifier
from auglocal.network import LocalNetwork

CLASSIFIER_WEIGHT = 0.01
SIMILARITY_WEIGHT = 0.99
MAX_FEATURES = 512


def pooled_size(channels: int, height: int, width: int) -> tuple[int, int]:
    """Halve height, then width, then height ... until C * H * W <= 512 (or one pixel is left)."""
    while channels * height * width > MAX_FEATURES and (height, width) != (1, 1):
        if height >= width:
            height = math.ceil(height / 2)
        else:
            width = math.ceil(width / 2)
    return height, width


class PooledClassifier(LocalClassifier):
    """Average pool to at most 512 features, and Linear.

    Args:
        shape: (C, H, W) of the block's output.
        num_classes: K.
    """

    def __init__(self, shape: tuple[int, int, int], num_classes: int) -> None:
        super().__init__()
        self.size = pooled_size(*shape)
        self.linear = nn.Linear(shape[0] * math.prod(self.size), num_classes)

    def logits(self, features: Tensor) -> Tensor:
        """Logits (N, K) of a hidden block's output (N, C, H, W)."""
        pooled = functional.adaptive_avg_pool2d(features, self.size)
        logits: Tensor = self.linear(pooled.flatten(1))
        return logits


def adjusted_cosine_matrix(vectors: Tensor) -> Tensor:
    """S_ij = <v_i - mean(v_i), v_j - mean(v_j)> / (|v_i - mean(v_i)| |v_j - mean(v_j)|).

    The mean is that of the vector's own D entries. A constant vector is similar to none: 0.

    Args:
        vectors: float32, (N, D).

    Returns:
        float32, (N, N), in [-1, 1].
    """
    directions = functional.normalize(vectors - vectors.mean(dim=1, keepdim=True), dim=1)
    return directions @ directions.T


class SimilarityLoss(nn.Module):
    """mean_ij (S_ij(s) - S_ij(y))^2 for the adjusted-cosine matrix S of features and of labels.

    s (N, C) is the standard deviation over the pixels of each channel of a 3x3 convolution (without
    bias) of the features; y (N, K) are the one-hot labels, so that S_ij(y) is 1 within a class and
    -1 / (K - 1) between classes.

    Args:
        channels: C of the block's output.
        num_classes: K.
    """

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.conv = nn.Conv2d(channels, channels, 3, padding=1, bias=False)

    def forward(self, features: Tensor, images: Tensor, labels: Tensor) -> Tensor:
        """Loss (float32 scalar in [0, 4], lower is more alike); see `LocalClassifier.forward`."""
        outputs = self.conv(features).float()
        # Autocast would multiply the matrices in bfloat16.
        with torch.autocast(features.device.type, enabled=False):
            similarities = adjusted_cosine_matrix(outputs.std(dim=(2, 3), correction=0))
            one_hot = functional.one_hot(labels, self.num_classes).float()
            return functional.mse_loss(similarities, adjusted_cosine_matrix(one_hot))


def with_similarity(
    classifiers: Sequence[LocalClassifier], backbone: Backbone, blocks: Sequence[Sequence[int]]
) -> list[CombinedLoss]:
    """0.01 of each hidden block's classifier's loss and 0.99 of a fresh `SimilarityLoss`.

    Args:
        classifiers: of the hidden blocks, input to output.
        backbone: whose blocks they are.
        blocks: layer indices of each block; the last is not hidden.
    """
    combined = []
    for classifier, block in zip(classifiers, blocks):
        loss = SimilarityLoss(backbone.specs[block[-1]].channels, backbone.num_classes)
        initialise(loss)
        combined.append(CombinedLoss(classifier, loss, CLASSIFIER_WEIGHT, SIMILARITY_WEIGHT))
    return combined


@dataclass(frozen=True)
class PredSim:
    """A pooled linear classifier and a similarity loss a block; the last layer has neither.

    Attributes:
        modules: K, blocks in all; None is a block a layer.
    """

    modules: int | None = None

    def build(self, backbone: Backbone, normalisation: Normalisation = UNCHANGED) -> LocalNetwork:
        """Cut the backbone into blocks and give each hidden block a classifier and a loss."""
        blocks = cut_into_blocks(len(backbone.layers), self.modules, smallest_tail=1)
        shapes = layer_shapes(backbone)
        classifiers = [
            PooledClassifier(shapes[block[-1]], backbone.num_classes) for block in blocks[:-1]
        ]
        return LocalNetwork(backbone, blocks, with_similarity(classifiers, backbone, blocks))
