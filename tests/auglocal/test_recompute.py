"""Recomputation changes what is held, and nothing that comes out."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from auglocal.backbones.backbone import Backbone, LayerSpec
from auglocal.backbones.style import CIFAR_STYLE
from auglocal.counters import SavedTensors
from auglocal.network import LocalNetwork
from auglocal.recompute import recompute
from auglocal.rules.linear import LinearClassifier
from auglocal.rules.registry import RULES, build_network

SIZE = (3, 16, 16)
STEPS = 3


class Drawing(nn.Module):
    """Dropout, a cumulative BatchNorm, and stochastic depth: all that a replay can get wrong."""

    def __init__(self, in_channels: int, stride: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, 8, 3, stride=stride, padding=1)
        self.norm = nn.BatchNorm2d(8, momentum=None)
        self.dropout = nn.Dropout2d(0.3)

    def forward(self, features: Tensor) -> Tensor:
        output = self.dropout(self.norm(self.conv(features)).relu())
        return output * torch.bernoulli(torch.full((len(features), 1, 1, 1), 0.7))


class DrawingClassifier(LinearClassifier):
    """An auxiliary network that draws too, between the two runs of its block."""

    def logits(self, features: Tensor) -> Tensor:
        return super().logits(nn.functional.dropout(features, 0.5))


def drawing_network() -> LocalNetwork:
    torch.manual_seed(0)
    specs = [LayerSpec(f"layer{i}", 8, 1, Drawing) for i in range(5)]
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(), nn.Linear(8, 4))
    backbone = Backbone(specs, head, SIZE, 4, style=CIFAR_STYLE)
    auxiliaries = [DrawingClassifier(8, 4) for _ in range(2)]
    return LocalNetwork(backbone, [[0], [1, 2], [3, 4]], auxiliaries)


def train_some_steps(
    network: LocalNetwork, recompute_blocks: bool, precision: torch.dtype
) -> dict[str, Tensor]:
    """Weights, buffers and last gradients after some steps, and where the generator ended."""
    network.train()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    generator = torch.Generator().manual_seed(1)
    torch.manual_seed(2)
    for _ in range(STEPS):
        images = torch.randn(6, *SIZE, generator=generator)
        optimizer.zero_grad()
        for _, loss, _ in network.local_losses(
            images, torch.arange(6) % 4, precision, recompute_blocks=recompute_blocks
        ):
            loss.backward()
        optimizer.step()
    gradients = {f"{key}.grad": value.grad for key, value in network.named_parameters()}
    return {**network.state_dict(), **gradients, "generator": torch.get_rng_state()}


def assert_equal(plain: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert plain.keys() == other.keys()
    assert [key for key in plain if not torch.equal(plain[key], other[key])] == []


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("rule", ["bp", "auglocal", "predsim", "infopro"])
def test_gradients_weights_and_buffers_are_bit_for_bit_those_of_one_run(
    rule: str, precision: torch.dtype
) -> None:
    results = []
    for recompute_blocks in (False, True):
        network = build_network("resnet20", RULES[rule](), 4, SIZE, seed=0)
        results.append(train_some_steps(network, recompute_blocks, precision))
    assert_equal(*results)
    assert results[1]["backbone.layers.stem.norm.num_batches_tracked"] == STEPS


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16], ids=str)
def test_blocks_that_draw_draw_the_same_again(precision: torch.dtype) -> None:
    results = [train_some_steps(drawing_network(), again, precision) for again in (False, True)]
    assert_equal(*results)
    assert results[1]["backbone.layers.layer4.norm.num_batches_tracked"] == STEPS


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_device_replays_its_own_draws() -> None:
    dropout = nn.Sequential(nn.Linear(64, 64), nn.Dropout()).cuda()
    inputs = torch.ones(32, 64, device="cuda", requires_grad=True)
    outputs = recompute(dropout, inputs)
    torch.rand(10, device="cuda")
    (gradient,) = torch.autograd.grad(outputs.sum(), inputs)
    expected = (outputs != 0).float() @ dropout[0].weight * 2
    torch.testing.assert_close(gradient, expected)


def test_a_gradient_flows_through_to_an_input_that_asks_for_one() -> None:
    torch.manual_seed(0)
    layers = [nn.Sequential(nn.Linear(5, 5), nn.Tanh()) for _ in range(3)]
    inputs = torch.randn(4, 5, requires_grad=True)
    plain = inputs
    again = inputs
    for layer in layers:
        plain, again = layer(plain), recompute(layer, again)
    wanted = [inputs, *(parameter for layer in layers for parameter in layer.parameters())]
    for ours, expected in zip(
        torch.autograd.grad(again.square().sum(), wanted),
        torch.autograd.grad(plain.square().sum(), wanted),
    ):
        assert torch.equal(ours, expected)


def test_frozen_weights_get_no_gradient() -> None:
    layer = nn.Sequential(nn.Linear(5, 5), nn.Linear(5, 5))
    layer[0].weight.requires_grad_(False)
    recompute(layer, torch.ones(2, 5)).sum().backward()
    assert [parameter.grad is None for parameter in layer.parameters()] == [True, *[False] * 3]


def test_only_the_input_is_saved_until_backward() -> None:
    layers = nn.Sequential(*(nn.Sequential(nn.Linear(8, 8), nn.Tanh()) for _ in range(6)))
    saved = SavedTensors(layers)
    with saved.watch():
        output = recompute(layers, torch.ones(4, 8))
    assert saved.peak == 4 * 8 * 4
    with saved.watch():
        output.sum().backward()
    # The input of each Linear and the output of the last Tanh, all at a time.
    assert saved.peak == 7 * 4 * 8 * 4
    assert saved.timeline[-1] == 0
    assert any(later < before for before, later in pairwise(saved.timeline))


def test_an_autocast_that_stays_on_keeps_no_cast_without_a_gradient() -> None:
    layer = nn.Linear(8, 8)
    with torch.autocast("cpu", torch.bfloat16):
        recompute(layer, torch.ones(4, 8)).float().sum().backward()
    assert layer.weight.grad is not None
    torch.testing.assert_close(layer.weight.grad, torch.full((8, 8), 4.0))
