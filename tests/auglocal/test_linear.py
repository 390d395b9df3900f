"""The linear rule: its classifier in closed form, and how much it has to learn."""

from __future__ import annotations

import torch

from auglocal.plan import make_plan
from auglocal.rules.linear import Linear, LinearClassifier


def test_logits_are_linear_in_the_mean_over_pixels() -> None:
    classifier = LinearClassifier(3, num_classes=2)
    features = torch.randn(4, 3, 5, 5)
    expected = features.mean(dim=(2, 3)) @ classifier.linear.weight.T + classifier.linear.bias
    torch.testing.assert_close(classifier.logits(features), expected)


def test_a_hidden_layer_has_a_weight_a_channel_and_class_and_a_bias_a_class() -> None:
    plan = make_plan("resnet32", "linear", Linear())
    channels = [layer["channels"] for layer in plan["layers"]]
    assert len(plan["blocks"]) == 16
    assert [row["parameters"] for row in plan["auxiliaries"]] == [
        10 * width + 10 for width in channels[:-1]
    ]
