"""Every family under every rule: a step with finite losses, and no gradient across blocks."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from auglocal.backbones import vgg
from auglocal.backbones.registry import BACKBONES, IMAGENET, build_backbone
from auglocal.network import LocalNetwork
from auglocal.plan import make_plan, plan_table
from auglocal.rules.auglocal import LOCAL_LOSSES, AugLocal
from auglocal.rules.registry import RULES, build_network

# One of each family and block, in every form that it has.
SMALLEST = ("resnet18", "resnet50", "vgg11", "mobilenetv2", "efficientnet-b0", "regnetx-400mf")
FORMS = ("resnet20", *SMALLEST, *(name + IMAGENET for name in SMALLEST))
# Modules and depth of the first auxiliary network.
CUTS = ((1, 2), (2, 3), (3, 2), (6, 1))


@pytest.fixture(autouse=True)
def small_vgg_head(monkeypatch: pytest.MonkeyPatch) -> None:
    """VGG's hidden layers of 4096 are most of its weights, and no rule touches them."""
    monkeypatch.setattr(vgg, "HEAD_WIDTH", 64)


def parameters_by_block(network: LocalNetwork) -> list[set[nn.Parameter]]:
    """The parameters of each block and of what trains it."""
    layers = list(network.backbone.layers.values())
    judges = [*network.auxiliaries.values(), network.backbone.head]
    return [
        {value for part in (judge, *(layers[i] for i in block)) for value in part.parameters()}
        for block, judge in zip(network.blocks, judges, strict=True)
    ]


@pytest.mark.parametrize(("modules", "depth"), CUTS)
@pytest.mark.parametrize("architecture", FORMS)
def test_a_local_loss_is_finite_and_reaches_its_own_block_alone(
    architecture: str, modules: int, depth: int
) -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(3, 1, 32, 32, generator=generator)
    labels = torch.tensor([0, 1, 1])
    for local_loss in LOCAL_LOSSES:
        rule = AugLocal(depth, modules=modules, local_loss=local_loss)
        network = build_network(architecture, rule, 2, (1, 32, 32), seed=0, width=0.25)
        parameters = list(network.parameters())
        own_by_block = parameters_by_block(network)
        assert len(own_by_block) == modules
        for own, (_, loss, logits) in zip(
            own_by_block, network.local_losses(images, labels), strict=True
        ):
            assert torch.isfinite(loss)
            assert logits.shape == (3, 2)
            loss.backward()
            assert {value for value in parameters if value.grad is not None} == own
            network.zero_grad()


@pytest.mark.parametrize("architecture", FORMS)
def test_auglocal_fits_other_widths(architecture: str) -> None:
    width = 2 if architecture.endswith(IMAGENET) else 0.5
    with torch.device("meta"):
        network = AugLocal(3, modules=3).build(build_backbone(architecture, 5, width=width))
        features = dict(network.backbone.forward_layers(torch.empty(2, 3, 32, 32)))
        for name, auxiliary in network.auxiliaries.items():
            assert auxiliary.logits(features[name]).shape == (2, 5)


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
    images, labels = torch.rand(2, *size), torch.tensor([0, 1])
    backbone = build_backbone(architecture, 5, size, width=0.25)
    with torch.no_grad():
        features = dict(backbone.forward_layers(images))
        for rule_type in [rule_type for name, rule_type in RULES.items() if name != "bp"]:
            assert not rule_type(modules=1).build(backbone).auxiliaries
            ((name, auxiliary),) = rule_type(modules=2).build(backbone).auxiliaries.items()
            loss, logits = auxiliary(features[name], images, labels)
            assert torch.isfinite(loss)
            assert logits.shape == (2, 5)


@pytest.mark.parametrize(("index", "architecture"), list(enumerate(BACKBONES)))
def test_every_backbone_can_be_planned(index: int, architecture: str) -> None:
    rule_name = list(RULES)[index % len(RULES)]
    rule = RULES[rule_name]() if rule_name == "bp" else RULES[rule_name](modules=5)
    plan = make_plan(architecture, rule_name, rule, width=0.5)
    layers = [layer for block in plan["blocks"] for layer in block]
    assert layers == list(range(len(plan["layers"])))
    assert len(plan["auxiliaries"]) == len(plan["blocks"]) - 1
    assert len(plan_table(plan).splitlines()) == len(layers) + 5
