"""Backbones: order, shapes, sizes known from the literature, and initialisation."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from auglocal.backbones.backbone import layer_shapes
from auglocal.backbones.registry import build_backbone, build_meta_backbone
from auglocal.errors import InputError
from auglocal.plan import count_parameters

CIFAR_ONLY = ("resnet20", "resnet32", "resnet44", "resnet56", "resnet110")


@pytest.mark.parametrize("architecture", CIFAR_ONLY)
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
    shapes = layer_shapes(build_meta_backbone("resnet20"))
    assert shapes == [(16, 32, 32)] * 4 + [(32, 16, 16)] * 3 + [(64, 8, 8)] * 3


def test_shapes_are_those_of_a_run_and_the_backbone_stays_as_it_is() -> None:
    backbone = build_backbone("resnet20", input_size=(1, 9, 12))
    before = {key: tensor.clone() for key, tensor in backbone.state_dict().items()}
    shapes = layer_shapes(backbone)
    for key, tensor in backbone.state_dict().items():
        assert torch.equal(tensor, before[key])
    outputs = backbone.eval().forward_layers(torch.zeros(1, 1, 9, 12))
    assert shapes == [tuple(output.shape[1:]) for _, output in outputs]


def test_convolutions_start_with_the_fan_out_deviation() -> None:
    torch.manual_seed(0)
    convolution = build_backbone("resnet110").layers["stage3_block9"].conv1
    assert isinstance(convolution, nn.Conv2d)
    expected = math.sqrt(2 / (9 * 64))
    assert convolution.weight.std().item() == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize(
    ("width", "channels"),
    [(1, (16, 32, 64)), (0.5, (8, 16, 32)), (10, (160, 320, 640)), (1.3, (21, 42, 84))],
)
def test_width_multiplies_the_first_stage_and_each_later_stage_doubles(
    width: float, channels: tuple[int, ...]
) -> None:
    specs = build_meta_backbone("resnet20", width=width).specs
    assert tuple(spec.channels for spec in specs[1::3]) == channels
    assert specs[0].channels == channels[0]


def test_the_narrowest_backbone_has_one_channel() -> None:
    assert build_meta_backbone("resnet20", width=1e-6).specs[0].channels == 1


@pytest.mark.parametrize("width", [0, -1, 65, math.nan, math.inf])
def test_width_out_of_range_is_refused(width: float) -> None:
    with pytest.raises(InputError, match=f"above 0 and at most 64, not {width:g}; give --width 1"):
        build_meta_backbone("resnet20", width=width)


def test_unknown_architecture_lists_what_there_is() -> None:
    with pytest.raises(InputError, match=r"no architecture 'resnet21'.*resnet20, resnet32"):
        build_backbone("resnet21")
