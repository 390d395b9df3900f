"""InfoPro: the reconstruction loss in closed form, and how its weights go over the blocks."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from auglocal.backbones.registry import build_meta_backbone
from auglocal.batches import UNCHANGED, Normalisation, normalise
from auglocal.errors import InputError
from auglocal.rules.auglocal import AugLocal
from auglocal.rules.infopro import InfoPro, InfoProClassifier, LossWeights, ReconstructionLoss

NO_LABELS = torch.zeros(1)
CIFAR = Normalisation(mean=(0.4914, 0.4822, 0.4465), std=(0.247, 0.2435, 0.2616))


def constant_loss(value: float, normalisation: Normalisation = CIFAR) -> ReconstructionLoss:
    """A reconstruction loss whose decoder says `value` everywhere."""
    loss = ReconstructionLoss(8, 3, normalisation)
    with torch.no_grad():
        loss.decoder[-1].weight.zero_()
        loss.decoder[-1].bias.fill_(math.log(value / (1 - value)))
    return loss


def make_features() -> torch.Tensor:
    return torch.randn(2, 8, 5, 5, generator=torch.Generator().manual_seed(0))


def test_a_reconstruction_of_one_half_costs_the_logarithm_of_two() -> None:
    images = torch.rand(2, 3, 10, 10)
    loss = constant_loss(0.5, UNCHANGED)(make_features(), images, NO_LABELS)
    assert loss.item() == pytest.approx(math.log(2))


@pytest.mark.parametrize("reconstruction", [0.1, 0.8])
def test_the_target_is_the_image_before_normalisation(reconstruction: float) -> None:
    pixels = torch.full((2, 3, 10, 10), 51, dtype=torch.uint8)  # 51 / 255 = 0.2
    images = normalise(pixels, CIFAR.mean, CIFAR.std)
    loss = constant_loss(reconstruction)(make_features(), images, NO_LABELS)
    expected = -0.2 * math.log(reconstruction) - 0.8 * math.log(1 - reconstruction)
    assert loss.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(("pixel", "expected"), [(-1.0, -math.log(0.25)), (2.0, -math.log(0.75))])
def test_pixels_beyond_black_and_white_count_as_black_and_white(
    pixel: float, expected: float
) -> None:
    images = torch.full((2, 3, 10, 10), pixel)
    loss = constant_loss(0.75, UNCHANGED)(make_features(), images, NO_LABELS)
    assert loss.item() == pytest.approx(expected)


def test_the_best_reconstruction_is_the_image_itself() -> None:
    images = normalise(torch.full((2, 3, 10, 10), 51, dtype=torch.uint8), CIFAR.mean, CIFAR.std)
    losses = {
        value: constant_loss(value)(make_features(), images, NO_LABELS).item()
        for value in (0.1, 0.15, 0.2, 0.25, 0.3)
    }
    assert min(losses, key=lambda value: losses[value]) == 0.2


def test_the_normalisation_stays_out_of_the_weights() -> None:
    keys = ReconstructionLoss(8, 3, CIFAR).state_dict().keys()
    assert all(key.startswith("decoder.") for key in keys)


def test_the_loss_is_float32_under_autocast() -> None:
    loss, images = ReconstructionLoss(8, 3, CIFAR), torch.randn(2, 3, 10, 10)
    with torch.autocast("cpu", torch.bfloat16):
        assert loss(make_features(), images, NO_LABELS).dtype == torch.float32


@pytest.mark.parametrize(
    ("architecture", "first", "last"),
    [
        ("resnet32", (5, 0.05), (0.2, 0.5)),
        ("resnet110", (5, 0), (0.5, 1)),
        ("resnet20", (5, 0.05), (0.2, 0.5)),
        ("resnet56", (5, 0.05), (0.2, 0.5)),
    ],
)
@pytest.mark.parametrize("rule", [InfoPro(), AugLocal(local_loss="infopro")])
def test_weights_go_from_the_published_first_to_the_published_last(
    rule: InfoPro | AugLocal,
    architecture: str,
    first: tuple[float, float],
    last: tuple[float, float],
) -> None:
    network = rule.build(build_meta_backbone(architecture))
    pairs = [(a.extra_weight, a.classifier_weight) for a in network.auxiliaries.values()]
    assert (pairs[0], pairs[-1]) == (first, last)
    for values in zip(*pairs):
        steps = [after - before for before, after in itertools.pairwise(values)]
        assert steps == pytest.approx([(values[-1] - values[0]) / (len(values) - 1)] * len(steps))


def test_weights_that_are_given_replace_the_published_ones() -> None:
    weights = LossWeights(reconstruction_first=1.0, cross_entropy_last=0.0)
    reconstruction, cross_entropy = zip(*weights.weights_by_block(num_layers=16, num_hidden=3))
    assert reconstruction == pytest.approx((1, 0.6, 0.2))
    assert cross_entropy == pytest.approx((0.05, 0.025, 0))


def test_a_single_hidden_block_has_the_first_weights() -> None:
    assert LossWeights().weights_by_block(16, 1) == [(5, 0.05)]
    assert LossWeights().weights_by_block(16, 0) == []


@pytest.mark.parametrize("value", [-1.0, math.nan, math.inf])
@pytest.mark.parametrize("rule_type", [InfoPro, AugLocal])
def test_weights_out_of_range_are_refused(
    rule_type: type[InfoPro] | type[AugLocal], value: float
) -> None:
    message = f"weight reconstruction last must be at least 0, not {value:g}; give --recon"
    with pytest.raises(InputError, match=message):
        rule_type(reconstruction_last=value)


@pytest.mark.parametrize(
    ("channels", "size"), [(16, (4, 4)), (32, (4, 4)), (48, (4, 4)), (64, (8, 8))]
)
def test_the_classifier_halves_the_size_where_it_widens(
    channels: int, size: tuple[int, int]
) -> None:
    classifier = InfoProClassifier(channels, last_channels=64, num_classes=3)
    features = torch.randn(2, channels, 8, 8)
    assert classifier.layers(features).shape == (2, min(2 * channels, 64), *size)
    assert classifier.logits(features).shape == (2, 3)
