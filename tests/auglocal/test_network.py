"""Gradient isolation, and BP as the case of a single block."""

from __future__ import annotations

import weakref

import pytest
import torch
from torch import nn
from torch.nn import functional

from auglocal.backbones.registry import build_backbone
from auglocal.network import LocalNetwork
from auglocal.rules.auglocal import AugLocal
from auglocal.rules.bp import BP
from auglocal.rules.dgl import DGL
from auglocal.rules.infopro import InfoPro
from auglocal.rules.linear import Linear
from auglocal.rules.predsim import PredSim
from auglocal.rules.registry import Rule, build_network

SMALL = (3, 16, 16)


def make_batch(num_images: int = 6, num_classes: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(num_images, *SMALL, generator=generator)
    return images, torch.arange(num_images) % num_classes


def moved(module: nn.Module) -> set[str]:
    """Names of the parameters that hold a gradient other than zero."""
    return {
        name
        for name, parameter in module.named_parameters()
        if parameter.grad is not None and bool(parameter.grad.any())
    }


@pytest.mark.parametrize(
    "rule",
    [
        AugLocal(auxiliary_depth=2),
        AugLocal(auxiliary_depth=2, local_loss="predsim", modules=4),
        AugLocal(auxiliary_depth=2, local_loss="infopro"),
        DGL(),
        DGL(modules=3),
        PredSim(),
        InfoPro(),
        Linear(),
    ],
    ids=str,
)
def test_a_local_loss_reaches_its_own_block_and_auxiliary_and_nothing_else(rule: Rule) -> None:
    network = build_network("resnet20", rule, 4, SMALL, seed=0)
    names = network.backbone.layer_names
    for block_index, (block_name, loss, _) in enumerate(network.local_losses(*make_batch())):
        network.zero_grad(set_to_none=True)
        loss.backward()
        own = tuple(f"backbone.layers.{names[index]}." for index in network.blocks[block_index])
        own += (f"auxiliaries.{block_name}.",)
        if block_name == "head":
            own += ("backbone.head.",)
        reached = moved(network)
        assert {prefix for prefix in own for name in reached if name.startswith(prefix)} >= set(
            own[: len(network.blocks[block_index])]
        )
        assert all(name.startswith(own) for name in reached)
        assert len(reached) > len(own)


def test_bp_gradients_equal_plain_autograd() -> None:
    images, labels = make_batch()
    network = build_network("resnet20", BP(), 4, SMALL, seed=0)
    plain = build_network("resnet20", BP(), 4, SMALL, seed=0).backbone
    ((block_name, loss, _),) = network.local_losses(images, labels)
    loss.backward()
    functional.cross_entropy(plain(images), labels).backward()
    assert block_name == "head"
    for ours, theirs in zip(network.backbone.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=0, atol=0)


@pytest.mark.parametrize(
    "rule",
    [
        AugLocal(auxiliary_depth=20, modules=1),
        AugLocal(modules=1, local_loss="infopro"),
        DGL(modules=1),
        PredSim(modules=1),
        InfoPro(modules=1),
        Linear(modules=1),
    ],
    ids=str,
)
def test_one_module_gives_the_gradients_of_bp(rule: Rule) -> None:
    networks = [build_network("resnet20", each, 4, SMALL, seed=0) for each in (rule, BP())]
    for network in networks:
        ((_, loss, _),) = network.local_losses(*make_batch())
        loss.backward()
    for ours, bps in zip(*(network.parameters() for network in networks), strict=True):
        torch.testing.assert_close(ours.grad, bps.grad, rtol=0, atol=0)


@pytest.mark.parametrize("rule_type", [AugLocal, DGL, PredSim, InfoPro, Linear])
@pytest.mark.parametrize("num_modules", [2, 3, 5])
def test_modules_are_the_blocks_that_learn_by_themselves(
    rule_type: type[Rule], num_modules: int
) -> None:
    network = build_network("resnet20", rule_type(modules=num_modules), 4, SMALL, seed=0)
    names = [name for name, _, _ in network.local_losses(*make_batch())]
    assert len(names) == num_modules
    assert names[-1] == "head"


def test_a_hidden_blocks_gradient_is_that_of_block_and_auxiliary_alone() -> None:
    images, labels = make_batch()
    network = build_network("resnet20", AugLocal(auxiliary_depth=1), 4, SMALL, seed=0)
    for _, loss, _ in network.local_losses(images, labels):
        loss.backward()
    ours = network.backbone.layers["stage1_block1"].conv1.weight.grad.clone()
    network.zero_grad()
    stem_output = network.backbone.layers["stem"](images).detach()
    output = network.backbone.layers["stage1_block1"](stem_output)
    logits = network.auxiliaries["stage1_block1"].logits(output)
    functional.cross_entropy(logits, labels).backward()
    expected = network.backbone.layers["stage1_block1"].conv1.weight.grad
    torch.testing.assert_close(ours, expected, rtol=0, atol=0)


def test_blocks_are_named_by_their_last_layer_and_the_last_by_the_head() -> None:
    backbone = build_backbone("resnet20")
    auxiliary = nn.Identity()
    network = LocalNetwork(backbone, [[0, 1], range(2, 10)], [auxiliary])
    assert network.block_names == ("stage1_block1", "head")


def test_a_blocks_graph_is_gone_before_the_next_block_runs() -> None:
    network = build_network("resnet20", AugLocal(), 4, SMALL, seed=0)
    losses = network.local_losses(*make_batch())
    _, loss, _ = next(losses)
    loss.backward()
    graph = weakref.ref(loss)
    del loss
    next(losses)
    assert graph() is None


def test_autocast_does_not_leak_into_the_caller() -> None:
    network = build_network("resnet20", AugLocal(), 4, SMALL, seed=0)
    for _, loss, logits in network.local_losses(*make_batch(), torch.bfloat16):
        assert not torch.is_autocast_enabled("cpu")
        assert loss.dtype == logits.dtype == torch.float32
        loss.backward()


def test_rules_start_from_the_same_backbone() -> None:
    first = build_network("resnet20", BP(), 4, SMALL, seed=3).backbone.state_dict()
    second = build_network("resnet20", AugLocal(), 4, SMALL, seed=3).backbone.state_dict()
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_blocks_must_hold_every_layer_once() -> None:
    with pytest.raises(ValueError, match="every layer once, in order"):
        LocalNetwork(build_backbone("resnet20"), [[0], [2]], [nn.Identity()])


def test_every_hidden_block_needs_an_auxiliary() -> None:
    with pytest.raises(ValueError, match="expected 1 auxiliaries, got 0"):
        LocalNetwork(build_backbone("resnet20"), [[0], range(1, 10)], [])
