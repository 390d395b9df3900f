"""Files of local learning codes: backbone, auxiliary networks and the rule that they show."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from analysis.features import auxiliary_logits
from analysis.models import Model, open_model
from auglocal.backbones.registry import build_meta_backbone
from auglocal.checkpoint import write_checkpoint
from auglocal.foreign.conversion import to_checkpoint
from auglocal.foreign.recognise import recognise
from tests.auglocal.foreign.wild.residual import (
    Decoder,
    Head,
    ResidualNetwork,
    augmented_head,
    conv,
    greedy_head,
    image_decoder,
    information_head,
    pooled,
)
from tests.auglocal.foreign.wild.weights import fill, random_images

FIXTURES = Path(__file__).parents[1] / "fixtures"
FLAT = {"mean": (0.5,) * 3, "std": (0.5,) * 3}
RESNET32 = ((5, 5, 5), 16, "downsample", "fc")


def name_of(stage: int, index: int) -> str:
    return f"stage{stage}_block{index + 1}" if stage else "stem"


def constructions(case: str) -> list[list[Any]]:
    """What the authors' code builds: [layer, depth, copies, strides, channels, norm, count]."""
    file = "auglocal_construction.json"
    if not case.startswith(("resnet32", "resnet110")):
        file = "auglocal_imagenet_construction.json"
    return json.loads((FIXTURES / file).read_text())["cases"][case]["auxiliaries"]


def attach(network: nn.Module, kind: str, position: tuple[int, int], part: nn.Module) -> None:
    setattr(network, f"{kind}_{position[0]}_{position[1]}", part)


def with_heads(
    network: ResidualNetwork,
    size: int,
    make: Callable[[int, int, int], Head],
    decoder: Callable[[int], Decoder] | None = None,
    last: int = 1,
) -> ResidualNetwork:
    """A head for each layer but the `last` ones: make(index, channels, size of its maps)."""
    channels = network.conv1.in_channels
    with torch.no_grad():
        shapes = {
            place: maps.shape
            for place, maps in network.eval().outputs(torch.zeros(1, channels, size, size)).items()
        }
    for index, (position, shape) in enumerate(list(shapes.items())[:-last]):
        attach(network, "aux_classifier", position, make(index, shape[1], shape[2]))
        if decoder is not None:
            attach(network, "decoder", position, decoder(shape[1]))
    return network


def augmented(
    network: ResidualNetwork,
    case: str,
    num_classes: int,
    *,
    divisor: int = 1,
    decoder: Callable[[int], Decoder] | None = None,
    bottleneck: bool = False,
) -> ResidualNetwork:
    """The heads of a case, all channels divided by `divisor`."""
    places = list(network.eval().outputs(torch.zeros(1, 3, 64, 64)))
    for layer, _, _, strides, channels, norm, _ in constructions(case):
        copies = [(out // divisor, stride) for (_, out), stride in zip(channels, strides)]
        num_in = channels[0][0] // divisor
        head = augmented_head(num_in, copies, num_classes, norm=norm, bottleneck=bottleneck)
        attach(network, "aux_classifier", places[layer], head)
        if decoder is not None:
            attach(network, "decoder", places[layer], decoder(num_in))
    return network


def opened(network: ResidualNetwork, tmp_path: Path, **expected: object) -> Model:
    """Save a network as the authors do, recognise it, and open it as a checkpoint of ours."""
    state = {f"module.{key}": tensor for key, tensor in fill(network).items()}
    found = recognise(state)
    seen = {name: getattr(found, name) for name in expected}
    assert seen == expected
    assert found.prefixes_stripped == ("module.",)
    assert found.left_out == ()
    assert found.variant == "AugLocal authors"
    path = tmp_path / "checkpoint.safetensors"
    write_checkpoint(path, to_checkpoint(state, found, **FLAT))
    return open_model(path, auxiliaries=True)


def assert_equal_local_logits(model: Model, network: ResidualNetwork, size: int) -> None:
    images = random_images(2, 3, size)
    with torch.no_grad():
        torch.testing.assert_close(model.backbone(images), network(images), rtol=1e-5, atol=1e-5)
        theirs = network.outputs(images)
        ours = dict(model.backbone.forward_layers(images))
        heads = {
            place: getattr(network, f"aux_classifier_{place[0]}_{place[1]}")
            for place in theirs
            if hasattr(network, f"aux_classifier_{place[0]}_{place[1]}")
        }
        assert model.auxiliary_layers == tuple(name_of(*place) for place in heads)
        for place, head in heads.items():
            name = name_of(*place)
            logits = auxiliary_logits(model, name, ours[name])
            torch.testing.assert_close(logits, head(theirs[place]), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("pyramid", ["pyr0.5", "nopyr"])
def test_auglocal_networks_of_cifar_codes_compute_the_same(
    depth: int, pyramid: str, tmp_path: Path
) -> None:
    case = f"resnet32/d{depth}/{pyramid}"
    network = augmented(ResidualNetwork(*RESNET32), case, 10)
    model = opened(network, tmp_path, architecture="resnet32", rule="auglocal")
    assert_equal_local_logits(model, network, 32)
    options = model.metadata.rule_options
    assert (options["auxiliary_depth"], options["tail"]) == (depth, None)
    # Up to a depth of 2 the pyramid changes nothing.
    assert options["pyramid"] == (0.0 if (depth, pyramid) == (3, "nopyr") else 0.5)


def test_auglocal_networks_of_imagenet_codes_compute_the_same(tmp_path: Path) -> None:
    stem = (7, 2, True)
    plain = ResidualNetwork((3, 4, 6, 3), 8, "downsample", "fc", num_classes=9, stem=stem)
    network = augmented(plain, "resnet34/d2/pyr0.5", 9, divisor=8)
    model = opened(network, tmp_path, architecture="resnet34-imagenet", rule="auglocal")
    assert_equal_local_logits(model, network, 64)


def test_auglocal_networks_of_a_bottleneck_backbone_compute_the_same(tmp_path: Path) -> None:
    stem, options = (7, 2, True), {"bottleneck": True, "num_classes": 9}
    plain = ResidualNetwork((3, 4, 23, 3), 4, "downsample", "fc", stem=stem, **options)
    network = augmented(plain, "resnet101/d1/nopyr", 9, divisor=16, bottleneck=True)
    model = opened(network, tmp_path, architecture="resnet101-imagenet", rule="auglocal")
    assert_equal_local_logits(model, network, 64)


@pytest.mark.parametrize("loss", ["infopro", "predsim"])
def test_decoders_beside_auglocal_networks_name_the_local_loss(loss: str, tmp_path: Path) -> None:
    decoder = image_decoder if loss == "infopro" else (lambda width: Decoder(conv(width, width, 3)))
    plain = ResidualNetwork(*RESNET32)
    network = augmented(plain, "resnet32/d2/pyr0.5", 10, decoder=decoder)
    words = {"infopro": "InfoPro", "predsim": "PredSim"}[loss]
    model = opened(
        network,
        tmp_path,
        rule="auglocal",
        rule_evidence=f"13 auxiliary networks of 2 copied layers: AugLocal; decoders of {words}",
    )
    assert model.metadata.rule_options["local_loss"] == loss
    assert_equal_local_logits(model, network, 32)


def test_infopro_networks_compute_the_same(tmp_path: Path) -> None:
    network = with_heads(
        ResidualNetwork(*RESNET32),
        32,
        lambda index, width, size: information_head(width, 64, 10),
        image_decoder,
    )
    model = opened(network, tmp_path, architecture="resnet32", rule="infopro")
    assert_equal_local_logits(model, network, 32)


def test_infopro_networks_of_few_modules_compute_the_same(tmp_path: Path) -> None:
    network = ResidualNetwork(*RESNET32)
    for position, width in (((1, 2), 16), ((2, 1), 32), ((3, 0), 64)):
        attach(network, "aux_classifier", position, information_head(width, 64, 10))
        attach(network, "decoder", position, image_decoder(width))
    # 16 layers in 4 blocks of 4.
    model = opened(network, tmp_path, rule="infopro")
    assert model.metadata.rule_options["modules"] == 4
    assert_equal_local_logits(model, network, 32)


def test_dgl_networks_compute_the_same(tmp_path: Path) -> None:
    network = with_heads(
        ResidualNetwork(*RESNET32), 32, lambda index, width, size: greedy_head(width, 10, size)
    )
    model = opened(network, tmp_path, architecture="resnet32", rule="dgl")
    assert_equal_local_logits(model, network, 32)


def test_linear_networks_compute_the_same(tmp_path: Path) -> None:
    network = with_heads(
        ResidualNetwork(*RESNET32),
        32,
        lambda index, width, size: Head(*pooled(), nn.Linear(width, 10)),
    )
    model = opened(network, tmp_path, architecture="resnet32", rule="linear")
    assert_equal_local_logits(model, network, 32)


def test_predsim_networks_compute_the_same(tmp_path: Path) -> None:
    # At most 512 features are left of 16x32x32, 32x16x16 and 64x8x8: 4x8, 4x4 and 2x4 pixels.
    sizes = {16: (4, 8), 32: (4, 4), 64: (2, 4)}
    network = with_heads(
        ResidualNetwork(*RESNET32),
        32,
        lambda index, width, size: Head(
            nn.AdaptiveAvgPool2d(sizes[width]), nn.Flatten(), nn.Linear(512, 10)
        ),
        lambda width: Decoder(conv(width, width, 3)),
    )
    model = opened(network, tmp_path, architecture="resnet32", rule="predsim")
    assert_equal_local_logits(model, network, 32)


def test_networks_that_no_rule_builds_are_left_out_and_said(tmp_path: Path) -> None:
    network = ResidualNetwork(*RESNET32)
    attach(network, "aux_classifier", (2, 0), information_head(32, 64, 10))
    attach(network, "aux_classifier", (2, 1), information_head(32, 64, 10))
    state = fill(network)
    found = recognise(state)
    assert found.architecture == "resnet32"
    assert found.rule is None
    assert found.auxiliary_keys == {}
    assert found.local_blocks == ()
    assert {name.split(".")[0] for name in found.left_out} == {
        "aux_classifier_2_0",
        "aux_classifier_2_1",
    }
    assert "no rule of this project builds them" in found.warnings[0]
    assert found.rule_evidence.startswith("2 auxiliary networks without copied layers: InfoPro")
    assert to_checkpoint(state, found, **FLAT).auxiliary == {}


def test_networks_of_an_unknown_form_are_no_proof_of_bp() -> None:
    network = ResidualNetwork(*RESNET32)
    attach(network, "aux_classifier", (1, 0), Head(conv(16, 16, 3), conv(16, 16, 3)))
    found = recognise(network.state_dict())
    assert found.rule is None
    assert found.rule_evidence == "auxiliary networks of a form that this project does not build"


def test_a_rule_of_the_users_own_leaves_the_files_networks_out() -> None:
    network = augmented(ResidualNetwork(*RESNET32), "resnet32/d1/nopyr", 10)
    state = fill(network)
    checkpoint = to_checkpoint(state, recognise(state), rule="dfa", **FLAT)
    assert checkpoint.metadata.rule == "dfa"
    assert checkpoint.auxiliary == {}


def test_the_authors_vgg_opens_without_its_networks() -> None:
    theirs = {
        "conv": "features.{}.conv1",
        "norm": "features.{}.bn1",
        "head.hidden.": "fc.",
        "head.linear.": "fc.6.",
    }
    backbone = build_meta_backbone("vgg13-imagenet", 9, (3, 224, 224))
    positions = [index for index in range(14) if index % 3 != 2]
    state = {}
    for key, tensor in backbone.state_dict().items():
        if key.startswith("layers."):
            _, layer, part, leaf = key.split(".")
            position = positions[list(backbone.layer_names).index(layer)]
            state[f"{theirs[part].format(position)}.{leaf}"] = tensor
        else:
            start = next(each for each in theirs if key.startswith(each))
            state[theirs[start] + key.removeprefix(start)] = tensor
    state["aux_classifier_0.head.1.weight"] = torch.empty(512, 64, 3, 3)
    found = recognise(state)
    assert (found.architecture, found.variant) == ("vgg13-imagenet", "AugLocal authors")
    assert found.left_out == ("aux_classifier_0.head.1.weight",)
    assert "theirs pool before a convolution" in found.warnings[0]
