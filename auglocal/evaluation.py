"""Accuracy of a backbone; auxiliary networks do not run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from auglocal.backbones.backbone import Backbone
from auglocal.batches import normalise
from auglocal.statistics import wilson_interval


@dataclass(frozen=True)
class Accuracy:
    """Correct answers among samples."""

    correct: int
    samples: int

    @property
    def value(self) -> float:
        """Fraction correct, in [0, 1]."""
        return self.correct / self.samples

    @property
    def interval(self) -> tuple[float, float]:
        """95% Wilson interval of `value`."""
        return wilson_interval(self.correct, self.samples)


def evaluate(
    backbone: Backbone,
    images: Tensor,
    labels: Tensor,
    mean: Sequence[float],
    std: Sequence[float],
    *,
    batch_size: int = 500,
    report: Callable[[int], None] = lambda num_images: None,
) -> Accuracy:
    """Classify images with the backbone in evaluation mode; its mode is restored afterwards.

    Args:
        backbone: what is measured.
        images: uint8, (N, C, H, W), on the backbone's device.
        labels: int64, (N,), there too.
        mean: of pixel values in [0, 1], by channel.
        std: likewise.
        batch_size: images at a time.
        report: called with the number of images of each batch done.
    """
    was_training = backbone.training
    backbone.eval()
    correct = torch.zeros((), dtype=torch.int64, device=images.device)
    with torch.inference_mode():
        for start in range(0, len(images), batch_size):
            batch = images[start : start + batch_size]
            logits = backbone(normalise(batch, mean, std))
            correct += (logits.argmax(dim=1) == labels[start : start + batch_size]).sum()
            report(len(batch))
    backbone.train(was_training)
    return Accuracy(int(correct), len(images))
