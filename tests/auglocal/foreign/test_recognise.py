"""Every key style in the wild: recognised from keys and shapes, and equal in what it computes."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
import torchvision
from torch import Tensor, nn

from analysis.features import auxiliary_logits
from analysis.models import open_model
from auglocal.backbones.registry import build_meta_backbone
from auglocal.checkpoint import load_checkpoint, write_checkpoint
from auglocal.foreign.conversion import to_checkpoint
from auglocal.foreign.recognise import Recognition, recognise
from auglocal.pretrained import load_pretrained
from auglocal.rules.registry import RULES, build_network
from tests.auglocal.foreign.wild.residual import ResidualNetwork
from tests.auglocal.foreign.wild.straight import (
    ChenyaofoVGG,
    KuangliuVGG,
    TimmMobile,
    TimmRegNet,
    TimmVGG,
    TorchvisionVGG,
    WholeLayerVGG,
)
from tests.auglocal.foreign.wild.weights import fill, random_images

THIRD_PARTY = Path("/work/shared/data/third-party-resnet20-cifar10.th")
ZEROS = {"shortcut": "zeros", "classifier": "linear"}
KUANGLIU = {"shortcut": "shortcut", "classifier": "linear"}
FC = {"shortcut": "downsample", "classifier": "fc"}
IMAGENET_STEM = {"stem": (7, 2, True)}


def torchvision_model(name: str, **options: object) -> nn.Module:
    # Its RegNet computes its stages with tensors whose values it reads.
    with contextlib.nullcontext() if "regnet" in name else torch.device("meta"):
        return torchvision.models.get_model(name, weights=None, **options)


def small_image_mobilenet(width: float) -> nn.Module:
    """MobileNetV2 whose stem and second stage do not halve, as chenyaofo/pytorch-cifar-models."""
    stages = [[1, 16, 1, 1], [6, 24, 2, 1], [6, 32, 3, 2], [6, 64, 4, 2]]
    stages += [[6, 96, 3, 1], [6, 160, 3, 2], [6, 320, 1, 1]]
    network = torchvision_model(
        "mobilenet_v2", num_classes=100, width_mult=width, inverted_residual_setting=stages
    )
    network.features[0][0].stride = (1, 1)
    return network


# What people save, the size of the images it takes, and what it is.
NETWORKS: dict[str, tuple[Callable[[], nn.Module], int, tuple[str, str, float, int]]] = {
    "akamaster": (
        partial(ResidualNetwork, (3, 3, 3), 16, **ZEROS),
        32,
        ("resnet20-option-a", "option A (identity padding)", 1, 10),
    ),
    "akamaster, deeper, narrower, grey": (
        partial(ResidualNetwork, (4, 4, 4), 4, num_channels=1, num_classes=7, **ZEROS),
        28,
        ("resnet26-option-a", "option A (identity padding)", 0.25, 7),
    ),
    "chenyaofo": (
        partial(ResidualNetwork, (3, 3, 3), 16, num_classes=100, **FC),
        32,
        ("resnet20", "chenyaofo", 1, 100),
    ),
    "chenyaofo, as deep as torchvision's": (
        partial(ResidualNetwork, (8, 8, 8), 4, **FC),
        32,
        ("resnet50-projection", "chenyaofo", 0.25, 10),
    ),
    "projections under option A's names": (
        partial(ResidualNetwork, (5, 5, 5), 8, **KUANGLIU),
        32,
        ("resnet32", "option B (projection), names of akamaster/pytorch_resnet_cifar10", 0.5, 10),
    ),
    "kuangliu 18": (
        partial(ResidualNetwork, (2, 2, 2, 2), 16, **KUANGLIU),
        32,
        ("resnet18", "kuangliu/pytorch-cifar", 0.25, 10),
    ),
    "kuangliu 34": (
        partial(ResidualNetwork, (3, 4, 6, 3), 8, **KUANGLIU),
        32,
        ("resnet34", "kuangliu/pytorch-cifar", 0.125, 10),
    ),
    "kuangliu 50": (
        partial(ResidualNetwork, (3, 4, 6, 3), 8, bottleneck=True, **KUANGLIU),
        32,
        ("resnet50", "kuangliu/pytorch-cifar", 0.125, 10),
    ),
    "the AugLocal authors' ResNet-34": (
        partial(ResidualNetwork, (3, 4, 6, 3), 8, num_classes=1000, **FC, **IMAGENET_STEM),
        64,
        ("resnet34-imagenet", "torchvision", 0.125, 1000),
    ),
    "kuangliu VGG": (
        partial(KuangliuVGG, 13, 8, 10),
        32,
        ("vgg13", "kuangliu/pytorch-cifar", 0.125, 10),
    ),
    "chenyaofo VGG": (
        partial(ChenyaofoVGG, 16, 8, 100),
        32,
        ("vgg16-hidden", "chenyaofo", 0.125, 100),
    ),
    "VGG with dropout before its hidden layers": (
        partial(ChenyaofoVGG, 11, 8, 10, dropout_first=True),
        32,
        ("vgg11-hidden", "chenyaofo", 0.125, 10),
    ),
    "the AugLocal authors' VGG": (
        partial(WholeLayerVGG, 13, 1, 20),
        64,
        ("vgg13-imagenet", "AugLocal authors", 1 / 64, 20),
    ),
    "torchvision VGG": (
        partial(TorchvisionVGG, 11, 1, 1000),
        96,
        ("vgg11-imagenet", "torchvision", 1 / 64, 1000),
    ),
    "chenyaofo MobileNetV2": (
        partial(small_image_mobilenet, 0.5),
        32,
        ("mobilenetv2", "torchvision", 0.5, 100),
    ),
    "timm VGG": (partial(TimmVGG, 11, 1, 20), 224, ("vgg11-imagenet", "timm", 1 / 64, 20)),
    "timm MobileNetV2": (
        partial(TimmMobile, 10, efficient=False),
        64,
        ("mobilenetv2-imagenet", "timm", 1, 10),
    ),
    "timm EfficientNet": (
        partial(TimmMobile, 12, efficient=True, num_channels=1),
        64,
        ("efficientnet-b0-imagenet", "timm", 1, 12),
    ),
    "timm RegNet": (partial(TimmRegNet, 5), 64, ("regnetx-400mf-imagenet", "timm", 0.96, 5)),
    "torchvision ResNet-18": (
        partial(torchvision_model, "resnet18"),
        64,
        ("resnet18-imagenet", "torchvision", 1, 1000),
    ),
    "torchvision ResNet-50, narrow": (
        partial(ResidualNetwork, (3, 4, 6, 3), 8, bottleneck=True, **FC, **IMAGENET_STEM),
        64,
        ("resnet50-imagenet", "torchvision", 0.125, 10),
    ),
    "torchvision MobileNetV2": (
        partial(torchvision_model, "mobilenet_v2", width_mult=0.35),
        64,
        ("mobilenetv2-imagenet", "torchvision", 0.35, 1000),
    ),
    "torchvision EfficientNet": (
        partial(torchvision_model, "efficientnet_b0"),
        64,
        ("efficientnet-b0-imagenet", "torchvision", 1, 1000),
    ),
    "torchvision RegNet": (
        partial(torchvision_model, "regnet_x_400mf"),
        64,
        ("regnetx-400mf-imagenet", "torchvision", 1, 1000),
    ),
    **{
        f"ours: {name}": (
            partial(build_meta_backbone, name, 10, (3, 32, 32), 0.25),
            32,
            (name, "ours", 0.25, 10),
        )
        for name in ("resnet32", "resnet18", "vgg11", "mobilenetv2", "efficientnet-b0")
    },
    "ours: regnetx-400mf": (
        partial(build_meta_backbone, "regnetx-400mf", 10),
        32,
        ("regnetx-400mf", "ours", 1, 10),
    ),
}


def convert(state: dict[str, Tensor], recognition: Recognition) -> nn.Module:
    channels = recognition.input_size[0]
    flat = (0.5,) * channels
    return to_checkpoint(state, recognition, mean=flat, std=flat).build_backbone()


def assert_equal_logits(ours: nn.Module, theirs: nn.Module, images: Tensor) -> None:
    with torch.no_grad():
        expected = theirs(images)
        assert expected.std() > 0.01
        scale = float(expected.abs().max())
        torch.testing.assert_close(ours(images) / scale, expected / scale, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_is_recognised_and_computes_the_same(name: str) -> None:
    build, size, expected = NETWORKS[name]
    reference = build()
    state = fill(reference)
    found = recognise(state)
    assert (found.architecture, found.variant, found.width, found.num_classes) == expected
    assert found.prefixes_stripped == found.left_out == ()
    assert found.rule is None
    assert "does not mean BP" in found.rule_evidence
    images = random_images(2, found.input_size[0], size)
    assert_equal_logits(convert(state, found), reference, images)


@pytest.mark.parametrize("name", NETWORKS)
def test_our_weights_under_their_names_compute_the_same_there(name: str) -> None:
    build, size, _ = NETWORKS[name]
    reference = build()
    found = recognise(reference.state_dict())
    ours = build_meta_backbone(found.architecture, found.num_classes, found.input_size, found.width)
    weights = fill(ours, seed=3)
    shapes = {key: tensor.shape for key, tensor in reference.state_dict().items()}
    theirs = {file: weights[key].reshape(shapes[file]) for key, file in found.keys.items()}
    reference.load_state_dict(theirs, assign=True)
    images = random_images(2, found.input_size[0], size)
    assert_equal_logits(ours, reference.eval(), images)


TIMM = {
    "resnet18": "resnet18-imagenet",
    "mobilenetv2_050": "mobilenetv2-imagenet",
    "efficientnet_b0": "efficientnet-b0-imagenet",
    "regnetx_004": "regnetx-400mf-imagenet",
    "regnetx_004_tv": "regnetx-400mf-imagenet",
}


@pytest.mark.parametrize("name", TIMM)
def test_a_network_of_timm_itself_computes_the_same(name: str) -> None:
    timm = pytest.importorskip("timm")
    reference = timm.create_model(name, pretrained=False, num_classes=6)
    state = fill(reference)
    found = recognise(state)
    assert found.architecture == TIMM[name]
    assert_equal_logits(convert(state, found), reference, random_images(2, 3, 64))


def test_a_tensorflow_network_of_timm_is_an_alternative_that_computes_the_same() -> None:
    timm = pytest.importorskip("timm")
    reference = timm.create_model("tf_efficientnet_b0", pretrained=False, num_classes=6)
    state = fill(reference)
    name = recognise(state).alternatives[0].architecture
    assert name == "efficientnet-b0-imagenet-tf"
    found = recognise(state, architecture=name)
    images = random_images(2, 3, 64)
    with torch.no_grad():
        plain = convert(state, recognise(state))(images)
        assert not torch.allclose(plain, reference(images), rtol=1e-3, atol=1e-3)
    # Sizes that leave no pixel, one and several over at strides of 2.
    for size in (64, 75, 50):
        assert_equal_logits(convert(state, found), reference, random_images(2, 3, size))


# ------------------------------------------------------------------------- the real file


def test_the_third_partys_checkpoint_is_an_option_a_resnet20() -> None:
    if not THIRD_PARTY.exists():
        pytest.skip("the third party's file is not here")
    loaded = torch.load(THIRD_PARTY, map_location="cpu", weights_only=True)
    state = loaded["state_dict"]
    found = recognise(state)
    assert (found.architecture, found.num_classes) == ("resnet20-option-a", 10)
    assert found.prefixes_stripped == ("module.",)
    reference = ResidualNetwork((3, 3, 3), 16, **ZEROS).eval()
    missing = reference.load_state_dict(
        {key.removeprefix("module."): tensor for key, tensor in state.items()}, strict=False
    )
    assert not missing.unexpected_keys
    assert all(key.endswith("num_batches_tracked") for key in missing.missing_keys)
    assert_equal_logits(convert(state, found), reference, random_images(8, 3, 32))
    assert [other.architecture for other in found.alternatives] == ["resnet20-option-a-end"]


# ------------------------------------------------------------------------- several that fit


@pytest.mark.parametrize(
    ("build", "chosen"),
    [
        (
            partial(ResidualNetwork, (3, 3, 3), 8, shortcut="zeros after", classifier="linear"),
            "resnet20-option-a-end",
        ),
        (
            partial(ResidualNetwork, (2, 2, 2, 2), 8, stem=(3, 1, True), **FC),
            "resnet18-pooled",
        ),
        (
            partial(ResidualNetwork, (2, 2, 2, 2), 8, stem=(7, 2, False), **FC),
            "resnet18-imagenet-unpooled",
        ),
        (
            partial(ResidualNetwork, (3, 4, 6, 3), 8, bottleneck=True, v1=True, **KUANGLIU),
            "resnet50-v1",
        ),
        (
            partial(
                ResidualNetwork, (3, 4, 6, 3), 8, bottleneck=True, v1=True, **FC, **IMAGENET_STEM
            ),
            "resnet50-imagenet-v1",
        ),
        (
            partial(torchvision_model, "mobilenet_v2", num_classes=10),
            "mobilenetv2-imagenet",
        ),
    ],
)
def test_an_alternative_that_the_user_chooses_computes_the_same(
    build: Callable[[], nn.Module], chosen: str
) -> None:
    reference = build()
    state = fill(reference)
    likeliest = recognise(state)
    assert likeliest.architecture != chosen
    assert chosen in [other.architecture for other in likeliest.alternatives]
    assert all(other.why for other in likeliest.alternatives)
    found = recognise(state, architecture=chosen)
    assert found.architecture == chosen
    assert likeliest.architecture in [other.architecture for other in found.alternatives]
    images = random_images(2, 3, 64)
    assert_equal_logits(convert(state, found), reference, images)
    with torch.no_grad():
        assert not torch.allclose(convert(state, likeliest)(images), reference(images), atol=1e-3)


def test_the_number_of_classes_tells_the_likelier_form() -> None:
    for num_classes, first in ((10, "mobilenetv2"), (1000, "mobilenetv2-imagenet")):
        state = torchvision_model("mobilenet_v2", num_classes=num_classes).state_dict()
        assert recognise(state).architecture == first


# ------------------------------------------------------------------------- a checkpoint of ours


@pytest.mark.parametrize(
    "name", ["akamaster", "chenyaofo VGG", "timm RegNet", "chenyaofo, as deep as torchvision's"]
)
def test_a_conversion_is_an_ordinary_checkpoint(name: str, tmp_path: Path) -> None:
    build, size, expected = NETWORKS[name]
    reference = build()
    state = fill(reference)
    found = recognise(state)
    path = tmp_path / "theirs.safetensors"
    checkpoint = to_checkpoint(
        state,
        found,
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
        dataset="CIFAR-10",
        rule="bp",
        image_size=(size, size),
    )
    write_checkpoint(path, checkpoint)
    model = open_model(path, auxiliaries=True)
    assert model.metadata.architecture == expected[0]
    assert model.metadata.classes == tuple(str(index) for index in range(found.num_classes))
    images = random_images(2, 3, size)
    assert_equal_logits(model.backbone, reference, images)
    fresh = build_network(
        expected[0], RULES["bp"](), found.num_classes, (3, size, size), 0, width=found.width
    ).backbone
    assert load_pretrained(fresh, expected[0], path)
    assert_equal_logits(fresh.eval(), reference, images)


def test_half_precision_doubles_and_missing_counters_are_read() -> None:
    reference = ResidualNetwork((3, 3, 3), 4, **ZEROS)
    state = fill(reference)
    for dtype in (torch.float64, torch.bfloat16):
        stored = {
            key: tensor.to(dtype)
            for key, tensor in state.items()
            if not key.endswith("num_batches_tracked")
        }
        backbone = convert(stored, recognise(stored))
        assert {tensor.dtype for tensor in backbone.parameters()} == {torch.float32}
        tensor = state["layer3.2.conv2.weight"].to(dtype).float()
        ours = backbone.state_dict()
        assert torch.equal(ours["layers.stage3_block3.conv2.weight"], tensor)
        assert int(ours["layers.stem.norm.num_batches_tracked"]) == 0


def test_a_whole_local_network_of_ours_opens_with_its_rule(tmp_path: Path) -> None:
    for name, options in {
        "auglocal": {"auxiliary_depth": 2, "modules": 4},
        "predsim": {"modules": 3},
        "dgl": {},
        "linear": {},
    }.items():
        rule = RULES[name](**options)
        network = build_network("resnet20", rule, 10, (3, 32, 32), 0, width=0.5)
        state = fill(network)
        found = recognise(state)
        assert (found.architecture, found.variant, found.rule) == ("resnet20", "ours", name)
        assert found.local_blocks == network.block_names[:-1]
        path = tmp_path / f"{name}.safetensors"
        checkpoint = to_checkpoint(state, found, mean=(0.5,) * 3, std=(0.5,) * 3)
        write_checkpoint(path, checkpoint)
        assert load_checkpoint(path).metadata.rule == name
        model = open_model(path, auxiliaries=True)
        images = random_images(2, 3, 32)
        features = dict(network.backbone.forward_layers(images))
        for layer in found.local_blocks:
            logits = auxiliary_logits(model, layer, features[layer])
            torch.testing.assert_close(logits, network.auxiliaries[layer].logits(features[layer]))
