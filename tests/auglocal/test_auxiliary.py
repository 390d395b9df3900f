"""AugLocal's construction, held to the published code's numbers and to the paper's formulas."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

import pytest
import torch
from torch import nn

from auglocal.auxiliary import (
    AuxiliaryNetwork,
    HiddenLayers,
    deferred_strides,
    growth_strides,
    plan_auxiliary,
    pyramidal_depths,
    select_next,
    select_randomly,
    select_uniformly,
)
from auglocal.backbones.registry import build_backbone, build_meta_backbone
from auglocal.errors import InputError
from auglocal.network import LocalNetwork
from auglocal.plan import make_plan, plan_table
from auglocal.rules.auglocal import AugLocal

FIXTURES = Path(__file__).parent / "fixtures"
CIFAR = json.loads((FIXTURES / "auglocal_construction.json").read_text())["cases"]
IMAGENET = json.loads((FIXTURES / "auglocal_imagenet_construction.json").read_text())["cases"]
GOLDEN = CIFAR | IMAGENET


def published_rule(case: str) -> tuple[str, AugLocal, int]:
    """Architecture, rule and number of classes of a golden case such as "resnet32/d2/pyr0.5"."""
    architecture, depth, pyramid = re.fullmatch(r"(\w+)/d(\d+)/(?:no)?pyr([\d.]*)", case).groups()
    rule = AugLocal(auxiliary_depth=int(depth), pyramid=float(pyramid or 0))
    return (architecture, rule, 10) if case in CIFAR else (f"{architecture}-imagenet", rule, 1000)


@pytest.mark.parametrize("case", GOLDEN)
def test_plan_equals_the_published_construction(case: str) -> None:
    architecture, rule, num_classes = published_rule(case)
    plan = make_plan(architecture, "auglocal", rule, num_classes)
    keys = ("layer", "depth", "selected", "strides", "channels", "parameters")
    expected = [
        dict(zip(keys, [*row[:5], row[6]], strict=True)) for row in GOLDEN[case]["auxiliaries"]
    ]
    assert plan["auxiliaries"] == expected
    assert plan["parameters"] == GOLDEN[case]["parameters"]


@pytest.mark.parametrize("case", GOLDEN)
def test_batchnorm_stands_before_the_classifier_where_published(case: str) -> None:
    architecture, rule, _ = published_rule(case)
    network = rule.build(build_meta_backbone(architecture))
    has_norm = [isinstance(a.norm, nn.BatchNorm1d) for a in network.auxiliaries.values()]
    assert has_norm == [row[5] for row in GOLDEN[case]["auxiliaries"]]


def test_depth_falls_linearly_to_one_with_full_pyramid() -> None:
    assert pyramidal_depths(num_blocks=7, depth=6, pyramid=1.0) == [6, 5, 4, 3, 2, 1]


def test_depth_is_flat_without_pyramid() -> None:
    assert pyramidal_depths(num_blocks=5, depth=3, pyramid=0.0) == [3, 3, 3, 3]


def test_one_hidden_block_has_the_full_depth() -> None:
    assert pyramidal_depths(num_blocks=2, depth=4, pyramid=0.5) == [4]


def test_selection_rounds_half_to_even() -> None:
    # 0 + 5 / 2 * 1 = 2.5, which rounds to 2 and not to 3.
    assert select_uniformly(layer=0, depth=2, num_layers=6) == [2, 5]


def test_selection_near_the_output_takes_all_later_layers() -> None:
    assert select_uniformly(layer=7, depth=5, num_layers=10) == [8, 9]


def test_selection_ends_at_the_last_layer() -> None:
    for layer in range(54):
        for depth in range(1, 10):
            assert select_uniformly(layer, depth, num_layers=55)[-1] == 54


def test_the_next_layers_are_those_that_follow() -> None:
    assert select_next(layer=3, depth=2, num_layers=10) == [4, 5]
    assert select_next(layer=7, depth=5, num_layers=10) == [8, 9]


def test_random_layers_are_later_ones_in_order_and_depend_on_the_seed() -> None:
    drawn = {tuple(select_randomly(2, 3, 12, seed)) for seed in range(50)}
    assert all(list(layers) == sorted(set(layers)) for layers in drawn)
    assert {layer for layers in drawn for layer in layers} == set(range(3, 12))
    assert select_randomly(2, 3, 12, seed=7) == select_randomly(2, 3, 12, seed=7)
    assert select_randomly(9, 5, 12, seed=7) == [10, 11]


def test_each_random_layer_is_as_likely_as_another() -> None:
    # 3 of 9 layers: each in a third of 900 draws, give or take five standard deviations of 14.
    counts = Counter(layer for seed in range(900) for layer in select_randomly(2, 3, 12, seed))
    assert all(abs(count - 300) < 70 for count in counts.values()), counts


@pytest.mark.parametrize(
    ("selection", "first"), [("uniform", (4, 9)), ("next", (1, 2)), ("random", None)]
)
def test_the_selection_decides_which_layers_are_copied(selection, first) -> None:
    rule = AugLocal(auxiliary_depth=2, selection=selection, selection_seed=3)
    network = rule.build(build_meta_backbone("resnet20"))
    expected = first or tuple(select_randomly(0, 2, 10, 3))
    assert network.auxiliaries["stem"].spec.selected == expected


def test_an_unknown_selection_is_refused() -> None:
    with pytest.raises(InputError, match="uniform, next, random"):
        AugLocal(selection="last")


def test_a_jump_of_two_widths_defers_its_second_halving() -> None:
    assert deferred_strides([16, 64, 64, 64]) == [2, 2, 1]


def test_without_deferral_a_copy_halves_exactly_where_the_channels_grow() -> None:
    assert growth_strides([64, 256, 256, 96, 128]) == [2, 1, 1, 2]


def test_hidden_layers_see_the_mean_of_each_of_512_channels() -> None:
    features = torch.randn(4, 512, 3, 5)
    layers = HiddenLayers()
    expected = layers.layers(features.mean(dim=(2, 3)))
    torch.testing.assert_close(layers(features), expected)


def test_an_auxiliary_network_has_weights_of_its_own() -> None:
    backbone = build_backbone("resnet20")
    style = backbone.style
    spec = plan_auxiliary(backbone.specs, layer=0, depth=2, style=style)
    first, second = (AuxiliaryNetwork(spec, backbone.specs, 10, style) for _ in range(2))
    addresses = [
        {parameter.data_ptr() for parameter in module.parameters()}
        for module in (backbone, first, second)
    ]
    assert not addresses[0] & addresses[1]
    assert not addresses[1] & addresses[2]


def test_auxiliary_logits_have_a_row_an_image_and_a_column_a_class() -> None:
    network = AugLocal(auxiliary_depth=3).build(build_backbone("resnet20", num_classes=7))
    images = torch.randn(4, 3, 32, 32)
    names = iter(network.auxiliaries)
    for (_, features), name in zip(network.backbone.forward_layers(images), names):
        assert network.auxiliaries[name].logits(features).shape == (4, 7)


def test_tail_of_every_layer_but_one_leaves_one_hidden_block() -> None:
    network: LocalNetwork = AugLocal(tail=9).build(build_meta_backbone("resnet20"))
    assert network.blocks == ((0,), tuple(range(1, 10)))


def test_plan_table_shows_every_layer_and_the_total() -> None:
    text = plan_table(make_plan("resnet20", "auglocal", AugLocal()))
    assert "stage3_block3" in text
    assert "905,760" in text
    assert text.count("trains with the classifier") == 3
