"""DGL: the shapes inside its classifier."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from auglocal.rules.dgl import DGLClassifier


@pytest.mark.parametrize(
    ("size", "pooled"), [((32, 32), (8, 8)), ((9, 6), (3, 2)), ((2, 2), (1, 1))]
)
def test_convolutions_see_a_quarter_of_the_size_rounded_up(
    size: tuple[int, int], pooled: tuple[int, int]
) -> None:
    classifier = DGLClassifier(6, num_classes=5)
    seen: list[tuple[int, ...]] = []

    def note(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        seen.append(tuple(inputs[0].shape))

    classifier.convolutions.register_forward_hook(note)
    classifier.hidden.register_forward_hook(note)
    assert classifier.logits(torch.randn(3, 6, *size)).shape == (3, 5)
    assert seen == [(3, 6, *pooled), (3, 24)]


def test_only_the_last_linear_has_a_bias_of_its_own() -> None:
    classifier = DGLClassifier(4, num_classes=3)
    with_bias = {
        name
        for name, part in classifier.named_modules()
        if isinstance(part, (nn.Conv2d, nn.Linear)) and part.bias is not None
    }
    assert with_bias == {"linear"}
