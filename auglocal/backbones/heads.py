"""Heads that several families share: the last layer's output in, logits out.

The classifier proper is named `linear` in every head, so that it can be told from the rest.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn
from torchvision.ops import Conv2dNormActivation


class PooledHead(nn.Module):
    """Global average pool and a linear classifier: (N, C, H, W) -> logits (N, K)."""

    def __init__(self, in_channels: int, num_classes: int) -> None:
        super().__init__()
        self.linear = nn.Linear(in_channels, num_classes)

    def forward(self, features: Tensor) -> Tensor:
        """Logits of features."""
        logits: Tensor = self.linear(features.mean(dim=(2, 3)))
        return logits


class ConvolutionHead(nn.Module):
    """1x1 convolution, BatchNorm, activation, pool, dropout, Linear: (N, C, H, W) -> (N, K).

    Args:
        in_channels: C.
        channels: of the convolution.
        num_classes: K.
        activation: makes the activation.
        dropout: share of the pooled features that is dropped in training.
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        num_classes: int,
        activation: Callable[..., nn.Module],
        dropout: float,
    ) -> None:
        super().__init__()
        self.conv = Conv2dNormActivation(
            in_channels, channels, kernel_size=1, activation_layer=activation
        )
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(channels, num_classes)

    def forward(self, features: Tensor) -> Tensor:
        """Logits of features."""
        logits: Tensor = self.linear(self.dropout(self.conv(features).mean(dim=(2, 3))))
        return logits
