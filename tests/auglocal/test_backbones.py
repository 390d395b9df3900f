"""Backbones: order, shapes, sizes known from the literature, and initialisation."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from auglocal.backbones.backbone import layer_sizes
from auglocal.backbones.registry import BACKBONES, build_backbone, build_meta_backbone
from auglocal.errors import InputError
from auglocal.plan import count_parameters


@pytest.mark.parametrize("architecture", BACKBONES)
def test_a_resnet_has_a_stem_and_a_layer_for_every_two_convolutions(architecture: str) -> None:
    depth = int(architecture.removeprefix("resnet"))
    backbone = build_meta_backbone(architecture)
    assert len(backbone.layer_names) == 1 + (depth - 2) // 2
    assert backbone.layer_names[0] == "stem"
    assert backbone.layer_names[-1] == f"stage3_block{(depth - 2) // 6}"


@pytest.mark.parametrize(
    ("architecture", "total"), [("resnet32", 466_906), ("resnet110", 1_730_714)]
)
def test_parameter_counts_are_the_published_ones(architecture: str, total: int) -> None:
    assert count_parameters(build_meta_backbone(architecture)) == total


def test_layers_run_in_order_and_compose_to_the_logits() -> None:
    backbone = build_backbone("resnet20", num_classes=5).eval()
    images = torch.randn(3, 3, 32, 32)
    outputs = list(backbone.forward_layers(images))
    assert tuple(name for name, _ in outputs) == backbone.layer_names
    assert [tuple(output.shape[1:]) for _, output in outputs[::3]] == [
        (16, 32, 32),
        (16, 32, 32),
        (32, 16, 16),
        (64, 8, 8),
    ]
    torch.testing.assert_close(backbone.head(outputs[-1][1]), backbone(images))


def test_sizes_halve_at_the_second_and_third_stage() -> None:
    assert layer_sizes(build_meta_backbone("resnet20")) == [32] * 4 + [16] * 3 + [8] * 3


def test_convolutions_start_with_the_fan_out_deviation() -> None:
    torch.manual_seed(0)
    convolution = build_backbone("resnet110").layers["stage3_block9"].conv1
    assert isinstance(convolution, nn.Conv2d)
    expected = math.sqrt(2 / (9 * 64))
    assert convolution.weight.std().item() == pytest.approx(expected, rel=0.02)


def test_unknown_architecture_lists_what_there_is() -> None:
    with pytest.raises(InputError, match=r"no architecture 'resnet21'.*resnet20, resnet32"):
        build_backbone("resnet21")
