"""Architectures of other people's files: built by name, trained by every rule."""

from __future__ import annotations

import pytest
import torch

from auglocal.backbones.backbone import layer_shapes
from auglocal.backbones.registry import (
    BACKBONES,
    VARIANTS,
    build_backbone,
    build_meta_backbone,
    find_builder,
)
from auglocal.config import TrainConfig
from auglocal.errors import InputError
from auglocal.plan import count_parameters
from auglocal.rules.registry import RULES

DEEP = {"resnet34", "resnet101", "resnet152", "vgg16", "vgg19"}


def test_a_variant_differs_from_its_plain_form_and_has_its_layers() -> None:
    assert not BACKBONES.keys() & VARIANTS.keys()
    for name in (each for each in VARIANTS if not set(each.split("-")) & DEEP):
        plain = name.rsplit("-", 1)[0]
        ours, theirs = (build_meta_backbone(each, input_size=(3, 64, 64)) for each in (name, plain))
        assert ours.layer_names == theirs.layer_names
        assert [spec.channels for spec in ours.specs] == [spec.channels for spec in theirs.specs]
        same_weights = count_parameters(ours) == count_parameters(theirs)
        assert same_weights != name.endswith("-hidden")


def test_pools_change_the_size_of_every_layer() -> None:
    for name, factor in (("resnet18-pooled", 2), ("resnet18-imagenet-unpooled", 2)):
        backbone = build_meta_backbone(name, input_size=(3, 64, 96))
        shapes = layer_shapes(backbone)
        assert shapes[0] == (64, 64 // factor, 96 // factor)
        assert shapes[-1] == (512, 64 // factor // 8, 96 // factor // 8)


@pytest.mark.parametrize("depth", [8, 14, 26, 50, 164, 1202])
@pytest.mark.parametrize("ending", ["-option-a", "-option-a-end", "-projection"])
def test_cifar_resnets_have_any_depth_6n_plus_2(depth: int, ending: str) -> None:
    builder = find_builder(f"resnet{depth}{ending}")
    assert builder is not None
    if depth < 100:
        with torch.device("meta"):
            backbone = builder(10, (3, 32, 32), 1.0)
        # A convolution for the stem, two for each block, and the classifier.
        assert 2 + 2 * (len(backbone.specs) - 1) == depth
        projections = 0
        if ending == "-projection":
            projections = 16 * 32 + 32 * 64 + 2 * (32 + 64)
        n = (depth - 2) // 6
        blocks = 2 * n * 9 * (16**2 + 32**2 + 64**2) - 9 * (16 * 32 + 32 * 64)
        norms = 2 * 16 + 4 * n * (16 + 32 + 64)
        assert count_parameters(backbone) == 27 * 16 + blocks + norms + projections + 650


def test_plain_names_keep_their_meaning() -> None:
    assert find_builder("resnet50") is BACKBONES["resnet50"]
    assert find_builder("resnet26") is not None
    assert len(build_meta_backbone("resnet50-projection").specs) == 25


@pytest.mark.parametrize(
    "name",
    [
        "resnet2",
        "resnet21",
        "resnet1208",
        "resnet020",
        "resnet20-option-b",
        "resnet\u06620",
        "vgg12",
        "",
    ],
)
def test_other_names_are_refused_with_those_that_are_listed(name: str) -> None:
    assert find_builder(name) is None
    with pytest.raises(InputError, match="There is no architecture .* choose one of resnet20, "):
        build_backbone(name)


@pytest.mark.parametrize("name", ["resnet14-option-a", "resnet14-option-a-end", "vgg11-hidden"])
def test_every_rule_trains_a_variant(name: str) -> None:
    images, labels = torch.randn(4, 3, 32, 32), torch.tensor([0, 1, 2, 3])
    for rule in RULES:
        options = {} if rule == "bp" else {"modules": 4}
        network = RULES[rule](**options).build(build_backbone(name, 5, width=0.25))
        for _, loss, logits in network.local_losses(images, labels):
            assert logits.shape == (4, 5)
            loss.backward()
        assert all(parameter.grad is not None for parameter in network.backbone.parameters())


def test_a_run_may_name_a_variant() -> None:
    assert TrainConfig(architecture="resnet14-option-a").architecture == "resnet14-option-a"
