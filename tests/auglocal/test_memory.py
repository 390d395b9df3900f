"""What is counted at three small batches, against direct counts; and the shares of BP promised."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch

from auglocal.config import TrainConfig
from auglocal.memory import (
    StepCost,
    Subject,
    best_num_segments,
    count_saved_tensors,
    extrapolate,
    measure_allocated,
    measure_step,
    measure_variants,
)
from auglocal.plan import make_plan

SMALL = (3, 16, 16)


@functools.cache
def cost_of_bp(architecture: str) -> StepCost:
    """In fp32."""
    return measure_step(Subject(TrainConfig(architecture=architecture, rule="bp")))


def ratio(cost: StepCost, architecture: str) -> float:
    """Saved tensors against those of BP in fp32, at batch 1024."""
    return cost.saved_tensors(1024) / cost_of_bp(architecture).saved_tensors(1024)


def test_three_values_give_a_polynomial_of_degree_two_back() -> None:
    def polynomial(batch_size: int) -> list[int]:
        return [5 * batch_size**2 - 3 * batch_size + 7, batch_size * (batch_size - 1) // 2]

    values = np.array([polynomial(batch_size) for batch_size in (2, 3, 4)])
    for batch_size in (1, 2, 4, 9, 1024):
        assert extrapolate(values, batch_size).tolist() == polynomial(batch_size)


@pytest.mark.parametrize(
    "options",
    [
        {"rule": "bp"},
        {"rule": "auglocal", "precision": "bf16"},
        {"rule": "auglocal", "recompute": True},
        {"rule": "dgl"},
        {"rule": "predsim"},
        {"rule": "infopro", "recompute": True, "precision": "bf16"},
        {"rule": "linear"},
    ],
    ids=str,
)
def test_small_batches_foretell_what_a_larger_one_saves(options: dict[str, object]) -> None:
    subject = Subject(TrainConfig(**options), 4, SMALL)
    cost = measure_step(subject)
    for batch_size in (2, 13):
        assert cost.saved_tensors(batch_size) == count_saved_tensors(subject, batch_size)


@pytest.mark.parametrize(
    ("options", "low", "high"),
    [
        ({}, 0.22, 0.232),
        ({"recompute": True}, 0, 0.16),
        ({"precision": "bf16"}, 0, 0.232 / 2),
        ({"precision": "bf16", "recompute": True}, 0, 0.16 / 2),
    ],
    ids=str,
)
def test_resnet32_saves_the_promised_share_of_bp(
    options: dict[str, object], low: float, high: float
) -> None:
    config = TrainConfig(architecture="resnet32", auxiliary_depth=2, **options)
    assert low <= ratio(measure_step(Subject(config)), "resnet32") <= high


@pytest.mark.slow
@pytest.mark.parametrize(("precision", "high"), [("fp32", 0.072), ("bf16", 0.072 / 2)])
def test_resnet110_saves_the_promised_share_of_bp(precision: str, high: float) -> None:
    config = TrainConfig(
        architecture="resnet110", auxiliary_depth=3, precision=precision, recompute=True
    )
    assert ratio(measure_step(Subject(config)), "resnet110") <= high


def test_the_rival_is_as_good_as_published_measurements_say() -> None:
    bp = Subject(TrainConfig(architecture="resnet32", rule="bp"))
    cost = measure_step(Subject(bp.config, num_segments=best_num_segments(bp)))
    assert ratio(cost, "resnet32") <= 0.29
    # A forward is a third of a step, and runs twice but for the head.
    assert cost.flops(8) / cost_of_bp("resnet32").flops(8) == pytest.approx(4 / 3, rel=0.01)


def test_a_checkpointed_network_gives_the_gradients_of_bp() -> None:
    gradients = []
    for num_segments in (None, 4):
        subject = Subject(TrainConfig(rule="bp"), 4, SMALL, num_segments)
        state = subject.make_state(torch.device("cpu"))
        images, labels = torch.ones(4, *SMALL), torch.arange(4)
        ((_, loss, _),) = state.network.local_losses(images, labels)
        loss.backward()
        gradients.append([parameter.grad for parameter in state.network.parameters()])
    for plain, checkpointed in zip(*gradients, strict=True):
        assert torch.equal(plain, checkpointed)


def test_fixed_costs_are_those_of_the_parameters() -> None:
    config = TrainConfig()
    plan = make_plan(config.architecture, config.rule, config.make_rule())
    parameter_bytes = 4 * plan["parameters"]["total"]
    cost = measure_step(Subject(config))
    assert cost.gradients == cost.optimizer_state == parameter_bytes
    assert parameter_bytes < cost.parameters < 1.05 * parameter_bytes  # and buffers
    assert measure_step(Subject(TrainConfig(momentum=0.0))).optimizer_state == 0


def test_a_step_per_block_holds_the_gradients_of_one_block() -> None:
    config = TrainConfig(step_per_block=True)
    network = Subject(config).make_state(torch.device("cpu")).network
    layers = list(network.backbone.layers.values())
    sizes = [
        [layers[index] for index in block]
        + [network.auxiliaries[name] if name != "head" else network.backbone.head]
        for name, block in zip(network.block_names, network.blocks)
    ]
    largest = max(
        sum(parameter.nbytes for part in parts for parameter in part.parameters())
        for parts in sizes
    )
    assert measure_step(Subject(config)).gradients == largest


def test_the_largest_batch_fits_and_the_next_does_not() -> None:
    cost = measure_step(Subject(TrainConfig(rule="predsim"), 4, SMALL))
    for budget in (cost.total(2), 10_000_000, 2**30):
        largest = cost.largest_batch(budget)
        assert cost.total(largest) <= budget < cost.total(largest + 1)
    assert cost.largest_batch(cost.total(2) - 1) == 0


def test_the_largest_batch_of_a_known_cost() -> None:
    cost = StepCost(np.array([[200], [300], [400]]), np.array([0, 0, 0]), 30, 20, 10)
    assert cost.largest_batch(60 + 12_345) == 123


def test_variants_are_bp_its_rival_and_the_rule_with_each_option() -> None:
    said: list[str] = []
    variants = list(measure_variants(Subject(TrainConfig(modules=3), 4, SMALL), said.append))
    assert len(variants) == 12
    assert len({(variant.name, variant.subject.config.precision) for variant in variants}) == 12
    totals = {
        (v.subject.config.precision, v.name): v.cost.total(256)
        for v in variants
        if v.subject.config.rule == "auglocal"
    }
    for precision in ("fp32", "bf16"):
        plain, per_block, again, both = (
            total for (of, _), total in totals.items() if of == precision
        )
        assert plain > per_block > both
        assert plain > again > both
    assert len(said) == 10 + len(variants)
    assert len(list(measure_variants(Subject(TrainConfig(rule="bp"), 4, SMALL)))) == 4


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_device_allocates_at_least_what_is_saved() -> None:
    subject = Subject(TrainConfig(recompute=True))
    allocated = measure_allocated(subject, 256, torch.device("cuda"))
    assert allocated is not None
    assert allocated > measure_step(subject).saved_tensors(256)
