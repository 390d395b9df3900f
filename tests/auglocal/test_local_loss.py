"""Local losses: cross-entropy of any classifier, and its weighted sum with an extra loss."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from auglocal.auxiliary import AuxiliaryNetwork, plan_auxiliary
from auglocal.backbones.registry import build_backbone
from auglocal.local_loss import CombinedLoss, LocalClassifier


class Given(LocalClassifier):
    """Takes features for logits."""

    def logits(self, features: Tensor) -> Tensor:
        return features


class Constant(nn.Module):
    """An extra loss of 3 for whoever has features, images and labels."""

    def forward(self, features: Tensor, images: Tensor, labels: Tensor) -> Tensor:
        return torch.tensor(3.0) + 0 * (features.sum() + images.sum() + labels.sum())


LABELS = torch.tensor([0, 2])


def test_equal_logits_cost_the_logarithm_of_the_number_of_classes() -> None:
    loss, logits = Given()(torch.zeros(2, 5), torch.zeros(2, 3, 4, 4), LABELS)
    assert loss.item() == pytest.approx(math.log(5))
    assert logits.shape == (2, 5)


def test_the_loss_of_bfloat16_logits_is_float32() -> None:
    loss, logits = Given()(torch.zeros(2, 5, dtype=torch.bfloat16), torch.zeros(2, 3, 4, 4), LABELS)
    assert loss.dtype == logits.dtype == torch.float32


def test_a_combined_loss_is_the_weighted_sum() -> None:
    combined = CombinedLoss(Given(), Constant(), classifier_weight=0.25, extra_weight=0.5)
    features = torch.zeros(2, 5)
    loss, logits = combined(features, torch.zeros(2, 3, 4, 4), LABELS)
    assert loss.item() == pytest.approx(0.25 * math.log(5) + 0.5 * 3)
    assert torch.equal(logits, combined.logits(features))


def test_a_classifier_without_logits_is_none() -> None:
    with pytest.raises(NotImplementedError):
        LocalClassifier().logits(torch.zeros(1))


def test_an_auxiliary_networks_keys_are_those_of_shipped_checkpoints() -> None:
    backbone = build_backbone("resnet20")
    spec = plan_auxiliary(backbone.specs, layer=0, depth=1, style=backbone.style)
    keys = AuxiliaryNetwork(spec, backbone.specs, 10, backbone.style).state_dict().keys()
    assert {key.split(".")[0] for key in keys} == {"layers", "norm", "linear"}
    assert {"layers.0.conv1.weight", "norm.weight", "linear.bias"} <= keys
