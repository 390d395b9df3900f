"""PredSim: similarity matrices by hand and by correlation, and how far features are pooled."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from auglocal.rules.predsim import (
    PooledClassifier,
    SimilarityLoss,
    adjusted_cosine_matrix,
    pooled_size,
)

NO_IMAGES = torch.zeros(1)


def features_with_deviations(deviations: list[list[float]]) -> Tensor:
    """Features (N, C, 4, 4) whose channels deviate so much over the pixels: +s and -s by turns."""
    signs = torch.tensor([1.0, -1.0]).repeat(8).view(4, 4)
    return torch.tensor(deviations)[:, :, None, None] * signs


def identity_loss(channels: int, num_classes: int) -> SimilarityLoss:
    """A similarity loss whose convolution passes features on."""
    loss = SimilarityLoss(channels, num_classes)
    nn.init.dirac_(loss.conv.weight)
    return loss


def test_the_matrix_is_the_correlation_of_rows() -> None:
    vectors = torch.randn(6, 9, generator=torch.Generator().manual_seed(0))
    expected = torch.from_numpy(np.corrcoef(vectors.double().numpy())).float()
    torch.testing.assert_close(adjusted_cosine_matrix(vectors), expected)


@pytest.mark.parametrize("num_classes", [2, 3, 10])
def test_labels_of_two_classes_have_minus_one_over_k_minus_one(num_classes: int) -> None:
    expected = torch.full((num_classes, num_classes), -1 / (num_classes - 1)).fill_diagonal_(1)
    torch.testing.assert_close(adjusted_cosine_matrix(torch.eye(num_classes)), expected)


def test_features_that_are_as_alike_as_their_labels_cost_nothing() -> None:
    labels = torch.tensor([0, 1, 2, 1])
    features = features_with_deviations(torch.eye(3)[labels].tolist())
    loss = identity_loss(3, num_classes=3)(features, NO_IMAGES, labels)
    assert loss.item() == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(
    ("labels", "num_classes", "expected"),
    [
        ([0, 0], 2, 0.5),  # the matrix should be all ones: two of four entries are off by 1
        ([0, 1], 2, 0.5),  # off the diagonal it should be -1
        ([0, 1], 3, 0.125),  # off the diagonal it should be -1/2
    ],
)
def test_orthogonal_features_by_hand(labels: list[int], num_classes: int, expected: float) -> None:
    # Less their means: (1, 1, -1, -1) and (1, -1, 1, -1).
    features = features_with_deviations([[2, 2, 0, 0], [2, 0, 2, 0]])
    loss = identity_loss(4, num_classes)(features, NO_IMAGES, torch.tensor(labels))
    assert loss.item() == pytest.approx(expected)


def test_features_that_do_not_vary_have_a_loss_and_gradients_that_are_numbers() -> None:
    features = torch.ones(4, 3, 4, 4, requires_grad=True)
    loss = identity_loss(3, num_classes=2)
    value = loss(features[..., :1, :1], NO_IMAGES, torch.tensor([0, 1, 0, 1]))
    value.backward()
    assert torch.isfinite(value)
    assert all(torch.isfinite(tensor.grad).all() for tensor in (features, loss.conv.weight))


def test_the_loss_is_float32_under_autocast() -> None:
    features = torch.randn(4, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    loss, labels = SimilarityLoss(3, num_classes=2), torch.tensor([0, 1, 0, 1])
    with torch.autocast("cpu", torch.bfloat16):
        value = loss(features, NO_IMAGES, labels)
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(loss(features, NO_IMAGES, labels).item(), rel=0.05)


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((16, 32, 32), (4, 8)),
        ((32, 16, 16), (4, 4)),
        ((64, 8, 8), (2, 4)),
        ((8, 8, 8), (8, 8)),
        ((3, 27, 27), (7, 14)),
        ((600, 4, 4), (1, 1)),
    ],
)
def test_features_are_pooled_to_512(shape: tuple[int, int, int], expected: tuple[int, int]) -> None:
    assert pooled_size(*shape) == expected
    classifier = PooledClassifier(shape, num_classes=4)
    assert classifier.logits(torch.randn(2, *shape)).shape == (2, 4)
