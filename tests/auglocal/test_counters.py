"""The counters, against counts made by hand and against torch's own."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from auglocal.counters import FlopCounter, LiveGradients, SavedTensors, num_bytes
from auglocal.rules.predsim import PredSim
from auglocal.rules.registry import build_network

FLOAT = 4


def test_a_linear_layer_saves_its_input_and_a_relu_its_output() -> None:
    network = nn.Sequential(nn.Linear(7, 5), nn.ReLU(), nn.Linear(5, 3))
    saved = SavedTensors(network)
    with saved.watch():
        loss = network(torch.ones(11, 7)).sum()
    # The ReLU's output is the second layer's input: one storage, one count.
    assert saved.peak == saved.timeline[-1] == 11 * (7 + 5) * FLOAT
    loss.backward()
    assert saved.timeline[-1] == 0


def test_a_convolution_with_batchnorm_saves_both_inputs_and_the_batchs_statistics() -> None:
    network = nn.Sequential(nn.Conv2d(3, 6, 3, bias=False), nn.BatchNorm2d(6))
    saved = SavedTensors(network)
    with saved.watch():
        loss = network(torch.randn(2, 3, 10, 10)).sum()
    mean_and_deviation = 2 * 6
    assert saved.peak == (2 * 3 * 10 * 10 + 2 * 6 * 8 * 8 + mean_and_deviation) * FLOAT
    del loss
    assert saved.timeline[-1] == 0


def test_backward_lets_go_while_it_runs() -> None:
    network = nn.Sequential(*(nn.Sequential(nn.Linear(4, 4), nn.Tanh()) for _ in range(5)))
    saved = SavedTensors(network)
    with saved.watch():
        network(torch.ones(2, 4)).sum().backward()
    one = 2 * 4 * FLOAT
    rise = [one * i for i in range(7)]
    assert saved.timeline == [*rise, *reversed(rise[:-1])]


def test_views_of_one_storage_count_as_one() -> None:
    values = torch.ones(10, requires_grad=True)
    saved = SavedTensors(nn.Identity())
    with saved.watch():
        doubled = values * 2
        kept = doubled[:5].square().sum() + doubled[5:].square().sum()
    assert saved.peak == 10 * FLOAT
    del kept


def test_gradients_count_from_arrival_until_they_are_freed() -> None:
    layers = [nn.Linear(4, 4, bias=False) for _ in range(3)]
    live = LiveGradients(parameter for layer in layers for parameter in layer.parameters())
    for layer in layers[:2]:
        layer(torch.ones(1, 4)).sum().backward()
    assert live.peak == 2 * 16 * FLOAT
    for layer in layers:
        layer.zero_grad(set_to_none=True)
    layers[2](torch.ones(1, 4)).sum().backward()
    assert live.peak == 2 * 16 * FLOAT


def test_a_matrix_product_is_two_operations_a_term() -> None:
    with FlopCounter() as counter:
        torch.ones(3, 5) @ torch.ones(5, 7)
    assert counter.total == 2 * 3 * 5 * 7


@pytest.mark.filterwarnings("ignore")
def test_operations_are_those_that_torchs_counter_finds() -> None:
    totals = []
    for make_counter in (FlopCounter, lambda: FlopCounterMode(display=False)):
        network = build_network("resnet20", PredSim(), 4, (3, 16, 16), seed=0)
        counter = make_counter()
        with counter:
            for _, loss, _ in network.local_losses(torch.ones(4, 3, 16, 16), torch.arange(4)):
                loss.backward()
        totals.append(getattr(counter, "total", None) or counter.get_total_flops())
    assert totals[0] == totals[1]


def test_bytes_of_tensors_add_up() -> None:
    assert num_bytes([torch.ones(3), torch.ones(2, dtype=torch.bfloat16)]) == 3 * 4 + 2 * 2
