"""Families that torchvision publishes: equal to its models, in every form and under every rule."""

from __future__ import annotations

import contextlib
import math

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.efficientnet import EfficientNet, MBConvConfig
from torchvision.models.regnet import BlockParams, RegNet

from auglocal.backbones.backbone import layer_shapes
from auglocal.backbones.registry import (
    BACKBONES,
    IMAGENET,
    build_backbone,
    build_meta_backbone,
)
from auglocal.errors import InputError
from auglocal.plan import count_parameters
from auglocal.pretrained import load_torchvision_state
from auglocal.rules.registry import RULES, build_network

TORCHVISION = {
    **{f"resnet{depth}": f"resnet{depth}" for depth in (18, 34, 50, 101, 152)},
    **{f"vgg{depth}": f"vgg{depth}_bn" for depth in (11, 13, 16, 19)},
    "mobilenetv2": "mobilenet_v2",
    "efficientnet-b0": "efficientnet_b0",
    "regnetx-400mf": "regnet_x_400mf",
}
# H = W of the last layer for a 32x32 image.
LAST_SIZE = dict.fromkeys(TORCHVISION, 4) | {"efficientnet-b0": 2}
LAST_SIZE |= dict.fromkeys(("vgg11", "vgg13", "vgg16", "vgg19"), 1)


def torchvision_model(name: str, num_classes: int, **options: float) -> nn.Module:
    """torchvision's model for one of our names; without weights where it can be."""
    # Its RegNet computes its stages with tensors whose values it reads.
    context = contextlib.nullcontext() if "regnet" in name else torch.device("meta")
    with context:
        return torchvision.models.get_model(
            TORCHVISION[name], weights=None, num_classes=num_classes, **options
        )


def random_state(model: nn.Module) -> dict[str, Tensor]:
    """Weights and BatchNorm statistics, all different from where a model starts."""
    generator = torch.Generator().manual_seed(0)
    state = {}
    for key, tensor in model.state_dict().items():
        if not tensor.is_floating_point():
            state[key] = torch.zeros(tensor.shape, dtype=tensor.dtype)
            continue
        values = torch.empty(tensor.shape).uniform_(-1, 1, generator=generator)
        if key.endswith("running_var"):
            values = values.mul_(0.5).add_(1)
        elif tensor.ndim > 1:
            values *= math.sqrt(6 / tensor[0].numel())
        state[key] = values
    return state


@pytest.mark.parametrize("name", TORCHVISION)
def test_the_imagenet_form_computes_what_torchvisions_model_computes(name: str) -> None:
    reference = torchvision_model(name, num_classes=7).eval()
    state = random_state(reference)
    reference.load_state_dict(state, assign=True)
    backbone = build_meta_backbone(name + IMAGENET, num_classes=7, input_size=(3, 64, 64)).eval()
    assert backbone.key_map.model == TORCHVISION[name]
    renamed = {backbone.key_map.from_torchvision(key): value for key, value in state.items()}
    backbone.load_state_dict(renamed, assign=True)
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = reference(images)
        assert expected.std() > 0
        torch.testing.assert_close(backbone(images), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", TORCHVISION)
def test_keys_go_to_torchvisions_and_back(name: str) -> None:
    key_map = build_meta_backbone(name + IMAGENET).key_map
    ours = build_meta_backbone(name + IMAGENET).state_dict()
    theirs = [key_map.to_torchvision(key) for key in ours]
    assert [key_map.from_torchvision(key) for key in theirs] == list(ours)
    assert sorted(theirs) == sorted(torchvision_model(name, 10).state_dict())
    with pytest.raises(KeyError):
        key_map.from_torchvision("aux.weight")


@pytest.mark.parametrize(("name", "width"), [("mobilenetv2", 0.5), ("mobilenetv2", 1.4)])
def test_width_is_torchvisions_where_it_has_one(name: str, width: float) -> None:
    ours = build_meta_backbone(name + IMAGENET, width=width)
    assert count_parameters(ours) == count_parameters(torchvision_model(name, 10, width_mult=width))


@pytest.mark.parametrize("name", TORCHVISION)
def test_a_wider_backbone_has_wider_layers_everywhere(name: str) -> None:
    plain, wide = (build_meta_backbone(name, width=width).specs for width in (1, 2))
    assert [2 * spec.channels for spec in plain] == [spec.channels for spec in wide]


def test_a_regnet_of_another_width_is_torchvisions_of_these_stages() -> None:
    # 0.7 times 32, 64, 160 and 400 channels are 22.4, 44.8, 112 and 280: in groups of 16, half up.
    widths = [16, 48, 112, 288]
    parameters = BlockParams([1, 2, 7, 12], widths, [16] * 4, [1.0] * 4, [2] * 4)
    reference = RegNet(parameters, num_classes=7, stem_width=24).eval()
    state = random_state(reference)
    reference.load_state_dict(state)
    backbone = build_backbone("regnetx-400mf-imagenet", 7, width=0.7).eval()
    assert load_torchvision_state(backbone, state)
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(backbone(images), reference(images), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("width", [0.25, 0.5, 2])
def test_an_efficientnet_of_another_width_is_torchvisions_of_that_width(width: float) -> None:
    stages = [
        MBConvConfig(1, 3, 1, 32, 16, 1, width),
        MBConvConfig(6, 3, 2, 16, 24, 2, width),
        MBConvConfig(6, 5, 2, 24, 40, 2, width),
        MBConvConfig(6, 3, 2, 40, 80, 3, width),
        MBConvConfig(6, 5, 1, 80, 112, 3, width),
        MBConvConfig(6, 5, 2, 112, 192, 4, width),
        MBConvConfig(6, 3, 1, 192, 320, 1, width),
    ]
    with torch.device("meta"):
        reference = EfficientNet(stages, dropout=0.2, num_classes=7)
    ours = build_meta_backbone("efficientnet-b0-imagenet", 7, width=width)
    shapes = {ours.key_map.to_torchvision(k): v.shape for k, v in ours.state_dict().items()}
    assert shapes == {key: value.shape for key, value in reference.state_dict().items()}


@pytest.mark.parametrize("architecture", BACKBONES)
@pytest.mark.parametrize("width", [1e-6, 0.1, 0.3])
def test_any_width_can_be_built(architecture: str, width: float) -> None:
    full = build_meta_backbone(architecture).specs
    for spec, wide in zip(build_meta_backbone(architecture, width=width).specs, full, strict=True):
        assert (spec.name, spec.stride) == (wide.name, wide.stride)
        assert 1 <= spec.channels <= max(16, wide.channels / 2)


@pytest.mark.parametrize("form", ["", IMAGENET])
def test_a_vgg_refuses_images_too_small_for_its_pools(form: str) -> None:
    with pytest.raises(InputError, match="needs 32 pixels, not 31; choose another --architecture"):
        build_meta_backbone("vgg11" + form, input_size=(3, 64, 31))


@pytest.mark.parametrize("architecture", BACKBONES)
def test_a_layer_divides_height_and_width_by_its_stride(architecture: str) -> None:
    backbone = build_meta_backbone(architecture, input_size=(1, 64, 96))
    height, width = 64, 96
    for spec, shape in zip(backbone.specs, layer_shapes(backbone), strict=True):
        height, width = height // spec.stride, width // spec.stride
        assert shape == (spec.channels, height, width), spec.name


@pytest.mark.parametrize("name", TORCHVISION)
def test_the_cifar_form_keeps_small_images_large_enough(name: str) -> None:
    shapes = layer_shapes(build_meta_backbone(name))
    assert shapes[0][1:] == ((16, 16) if name == "vgg11" else (32, 32))
    assert shapes[-1][1:] == (LAST_SIZE[name], LAST_SIZE[name])
    imagenet = layer_shapes(build_meta_backbone(name + IMAGENET, input_size=(3, 224, 224)))
    assert [shape[0] for shape in imagenet] == [shape[0] for shape in shapes]
    assert imagenet[-1][1:] == (7, 7)


@pytest.mark.parametrize("architecture", ["resnet20", *TORCHVISION])
def test_a_copy_takes_any_width_and_stride(architecture: str) -> None:
    specs = build_meta_backbone(architecture).specs[1:]
    first_of_stage = {spec.name.split("_")[0]: spec for spec in reversed(specs)}
    with torch.device("meta"):
        for spec in first_of_stage.values():
            for in_channels, stride in ((8, 1), (64, 2)):
                features = spec.build(in_channels, stride)(torch.empty(2, in_channels, 8, 6))
                assert features.shape == (2, spec.channels, 8 // stride, 6 // stride)


@pytest.mark.parametrize("architecture", ["resnet20", *list(BACKBONES)[5:]])
def test_every_rule_gives_each_block_a_row_of_logits_an_image(architecture: str) -> None:
    with torch.device("meta"):
        backbone = build_backbone(architecture, num_classes=7)
        features = dict(backbone.forward_layers(torch.empty(2, 3, 32, 32)))
        assert tuple(features) == backbone.layer_names
        assert backbone.head(features[backbone.layer_names[-1]]).shape == (2, 7)
        for rule_type in RULES.values():
            network = rule_type().build(backbone)
            for name, auxiliary in list(network.auxiliaries.items())[::5]:
                assert auxiliary.logits(features[name]).shape == (2, 7)


@pytest.mark.parametrize("name", ["resnet18", "vgg11", *list(TORCHVISION)[-3:]])
def test_two_steps_move_every_weight(name: str) -> None:
    rule = RULES["auglocal"](modules=4)
    network = build_network(name, rule, 5, (3, 32, 32), seed=0)
    before = [parameter.detach().clone() for parameter in network.backbone.parameters()]
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9)
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(4, 3, 32, 32, generator=generator)
    labels = torch.tensor([0, 1, 2, 3])
    torch.manual_seed(0)
    for _ in range(2):
        optimizer.zero_grad()
        for _, loss, _ in network.local_losses(images, labels):
            assert torch.isfinite(loss)
            loss.backward()
        optimizer.step()
    names = [key for key, _ in network.backbone.named_parameters()]
    still = [
        key
        for key, old, new in zip(names, before, network.backbone.parameters())
        if torch.equal(old, new)
    ]
    assert not still


def test_the_tail_is_one_layer_in_imagenet_forms_and_as_deep_as_the_networks_in_others() -> None:
    rule = RULES["auglocal"](auxiliary_depth=3)
    assert rule.build(build_meta_backbone("resnet34")).blocks[-1] == (13, 14, 15, 16)
    assert rule.build(build_meta_backbone("resnet34-imagenet")).blocks[-1] == (16,)


def test_a_state_of_the_same_shapes_fits_the_cifar_form_too() -> None:
    state = random_state(torchvision_model("mobilenetv2", 10))
    backbone = build_backbone("mobilenetv2", num_classes=10)
    assert load_torchvision_state(backbone, state)
    assert torch.equal(backbone.layers["stem"][0].weight, state["features.0.0.weight"])
