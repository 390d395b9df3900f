"""Every family under every rule: a step with finite losses, and no gradient across blocks."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from auglocal.backbones import vgg
from auglocal.backbones.registry import BACKBONES, IMAGENET, build_backbone
from auglocal.network import LocalNetwork
from auglocal.plan import make_plan, plan_table
from auglocal.rules.auglocal import LOCAL_LOSSES, AugLocal
from auglocal.rules.registry import RULES, build_network

# One of each family and block, in every form that it has.
SMALLEST = ("resnet18", "resnet50", "vgg11", "mobilenetv2", "efficientnet-b0", "regnetx-400mf")
FORMS = ("resnet20", *SMALLEST, *(name + IMAGENET for name in SMALLEST))
# Modules and depth of the first auxiliary network; None is a block a layer before the tail.
CUTS = ((1, 2), (2, 3), (3, 2), (None, 1))


@pytest.fixture(autouse=True)
def small_vgg_head(monkeypatch: pytest.MonkeyPatch) -> None:
    """VGG's hidden layers of 4096 are most of its weights, and no rule touches them."""
    monkeypatch.setattr(vgg, "HEAD_WIDTH", 64)


def own_parameters(network: LocalNetwork, block_index: int) -> set[str]:
    """Names of the parameters of a block and of what trains it."""
    names = network.backbone.layer_names
    own = [f"backbone.layers.{names[index]}." for index in network.blocks[block_index]]
    block_name = network.block_names[block_index]
    own.append("backbone.head." if block_name == "head" else f"auxiliaries.{block_name}.")
    return {name for name, _ in network.named_parameters() if name.startswith(tuple(own))}


def parameters_with_gradients(network: LocalNetwork) -> set[str]:
    return {name for name, value in network.named_parameters() if value.grad is not None}


@pytest.mark.parametrize(("modules", "depth"), CUTS)
@pytest.mark.parametrize("architecture", FORMS)
def test_a_local_loss_is_finite_and_reaches_its_own_block_alone(
    architecture: str, modules: int | None, depth: int
) -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(3, 1, 32, 32, generator=generator)
    labels = torch.tensor([0, 1, 1])
    for local_loss in LOCAL_LOSSES:
        rule = AugLocal(depth, modules=modules, local_loss=local_loss)
        network = build_network(architecture, rule, 2, (1, 32, 32), seed=0, width=0.25)
        assert modules in (None, len(network.blocks))
        reached: set[str] = set()
        for index, (_, loss, logits) in enumerate(network.local_losses(images, labels)):
            assert torch.isfinite(loss)
            assert logits.shape == (3, 2)
            loss.backward()
            now = parameters_with_gradients(network)
            assert now - reached == own_parameters(network, index)
            reached = now
        assert len(reached) == len(list(network.parameters()))


@pytest.mark.parametrize("width", [0.5, 2])
@pytest.mark.parametrize("architecture", FORMS)
def test_auglocal_fits_other_widths(architecture: str, width: float) -> None:
    with torch.device("meta"):
        images, labels = torch.empty(2, 3, 32, 32), torch.empty(2, dtype=torch.long)
        backbone = build_backbone(architecture, 5, width=width)
        network = AugLocal(3, modules=3).build(backbone)
        losses = [loss for _, loss, _ in network.local_losses(images, labels)]
    assert [loss.shape for loss in losses] == [()] * 3


def every_loss(
    rule_name: str, modules: int | None, backbone: torch.nn.Module, features: dict[str, Tensor]
) -> list[Tensor]:
    """Losses of the hidden blocks from the outputs of a backbone's layers."""
    images = features["images"]
    labels = torch.empty(len(images), dtype=torch.long)
    network = RULES[rule_name](modules=modules).build(backbone)
    return [
        auxiliary(features[name], images, labels)[0]
        for name, auxiliary in network.auxiliaries.items()
    ]


@pytest.mark.parametrize(
    ("architecture", "size"),
    [
        *((name, (1, 33, 47)) for name in FORMS if not name.endswith(IMAGENET)),
        *((name, (3, 96, 96)) for name in FORMS if not name.endswith(IMAGENET)),
        *((name, (3, 224, 224)) for name in FORMS if name.endswith(IMAGENET)),
    ],
)
def test_every_rule_takes_grey_odd_and_large_images(
    architecture: str, size: tuple[int, int, int]
) -> None:
    with torch.device("meta"):
        backbone = build_backbone(architecture, 5, size, width=0.25)
        images = torch.empty(2, *size)
        features = {"images": images, **dict(backbone.forward_layers(images))}
        for rule_name in [name for name in RULES if name != "bp"]:
            for modules in (1, 2, 3):
                losses = every_loss(rule_name, modules, backbone, features)
                assert [loss.shape for loss in losses] == [()] * (modules - 1)


@pytest.mark.parametrize(("index", "architecture"), list(enumerate(BACKBONES)))
def test_every_backbone_can_be_planned(index: int, architecture: str) -> None:
    rule_name = list(RULES)[index % len(RULES)]
    plan = make_plan(architecture, rule_name, RULES[rule_name](), width=0.5)
    layers = [layer for block in plan["blocks"] for layer in block]
    assert layers == list(range(len(plan["layers"])))
    assert len(plan["auxiliaries"]) == len(plan["blocks"]) - 1
    assert len(plan_table(plan).splitlines()) == len(layers) + 5
