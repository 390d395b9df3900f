"""What a hidden block learns from: a classifier with a loss, and perhaps a second loss.

In: a block's output, the images and the labels. Out: the block's loss and the classifier's logits.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional


class LocalClassifier(nn.Module):
    """Base of the modules that train hidden blocks; one that only classifies writes `logits`."""

    def logits(self, features: Tensor) -> Tensor:
        """Logits (N, K) of a hidden block's output (N, C, H, W)."""
        raise NotImplementedError

    def forward(self, features: Tensor, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Cross-entropy, computed in float32, and the logits.

        Args:
            features: a hidden block's output, float, (N, C, H, W).
            images: normalised, float, (N, image channels, image H, image W); not needed here.
            labels: int64, (N,).

        Returns:
            loss, float32 scalar >= 0, and logits, float32, (N, K).
        """
        logits = self.logits(features).float()
        return functional.cross_entropy(logits, labels), logits


class CombinedLoss(LocalClassifier):
    """classifier_weight * the classifier's loss + extra_weight * the extra loss.

    Args:
        classifier: gives the logits and the first loss.
        extra: `extra(features, images, labels)` gives the second loss, a float32 scalar.
        classifier_weight: of the first loss, >= 0.
        extra_weight: of the second loss, >= 0.
    """

    def __init__(
        self,
        classifier: LocalClassifier,
        extra: nn.Module,
        classifier_weight: float,
        extra_weight: float,
    ) -> None:
        super().__init__()
        self.classifier = classifier
        self.extra = extra
        self.classifier_weight = classifier_weight
        self.extra_weight = extra_weight

    def logits(self, features: Tensor) -> Tensor:
        """Logits (N, K) of the classifier."""
        return self.classifier.logits(features)

    def forward(self, features: Tensor, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The weighted sum of both losses, and the classifier's logits; see `LocalClassifier`."""
        loss, logits = self.classifier(features, images, labels)
        extra_loss = self.extra(features, images, labels)
        return self.classifier_weight * loss + self.extra_weight * extra_loss, logits
