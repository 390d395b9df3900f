"""Accuracy of a backbone, for which auxiliary networks do not run, and of every block."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from auglocal.backbones.backbone import Backbone
from auglocal.batches import EvaluatedSplit, normalise
from auglocal.local_loss import LocalClassifier
from auglocal.network import OUTPUT_BLOCK, LocalNetwork
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
    split: EvaluatedSplit,
    mean: Sequence[float],
    std: Sequence[float],
    *,
    batch_size: int = 500,
    report: Callable[[int], None] = lambda num_images: None,
) -> Accuracy:
    """Classify images with the backbone in evaluation mode; its mode is restored afterwards.

    Args:
        backbone: what is measured.
        split: images and labels, on the backbone's device.
        mean: of pixel values in [0, 1], by channel.
        std: likewise.
        batch_size: images at a time.
        report: called with the number of images of each batch done.
    """
    was_training = backbone.training
    backbone.eval()
    correct = torch.zeros((), dtype=torch.int64, device=split.labels.device)
    with torch.inference_mode():
        for images, labels in split.batches(batch_size):
            logits = backbone(normalise(images, mean, std))
            correct += (logits.argmax(dim=1) == labels).sum()
            report(len(images))
    backbone.train(was_training)
    return Accuracy(int(correct), len(split))


def evaluate_blocks(
    network: LocalNetwork,
    split: EvaluatedSplit,
    mean: Sequence[float],
    std: Sequence[float],
    *,
    batch_size: int = 500,
) -> dict[str, Accuracy]:
    """Classify images with every auxiliary network and with the backbone, in one pass.

    Args: as `evaluate`, of a whole network.

    Returns:
        Accuracies by block name, input to output; the last block's is the backbone's.
    """
    was_training = network.training
    network.eval()
    correct = {
        name: torch.zeros((), dtype=torch.int64, device=split.labels.device)
        for name in network.block_names
    }
    with torch.inference_mode():
        for images, labels in split.batches(batch_size):
            for name, logits in _block_logits(network, normalise(images, mean, std)):
                correct[name] += (logits.argmax(dim=1) == labels).sum()
    network.train(was_training)
    return {name: Accuracy(int(count), len(split)) for name, count in correct.items()}


def _block_logits(network: LocalNetwork, images: Tensor) -> Iterator[tuple[str, Tensor]]:
    """(block name, logits (N, K)) of normalised images (N, C, H, W), input to output."""
    features = images
    for layer_name, features in network.backbone.forward_layers(images):
        if layer_name in network.auxiliaries:
            classifier = cast(LocalClassifier, network.auxiliaries[layer_name])
            yield layer_name, classifier.logits(features)
    yield OUTPUT_BLOCK, network.backbone.head(features)
