"""Costs by layer, against what real steps on the CPU hold and compute."""

from __future__ import annotations

import time

import pytest

from auglocal.config import TrainConfig
from auglocal.layer_costs import count_layer_costs
from auglocal.memory import Subject, measure_step
from auglocal.plan import make_plan

WAYS = (
    {"rule": "bp"},
    {"rule": "auglocal", "auxiliary_depth": 3},
    {"rule": "auglocal", "modules": 4, "local_loss": "infopro"},
    {"rule": "dgl"},
    {"rule": "predsim"},
    {"rule": "infopro"},
    {"rule": "linear", "modules": 3},
)


@pytest.mark.parametrize("options", WAYS, ids=lambda options: "-".join(map(str, options.values())))
def test_layers_add_up_to_what_a_real_step_holds_and_computes(options):
    config = TrainConfig(architecture="resnet20", width=0.25, **options)
    costs = count_layer_costs("resnet20", config.make_rule(), 6, width=0.25)
    step = measure_step(Subject(config))
    assert costs.saved == step.saved_tensors(6)
    assert costs.flops == step.flops(6)


def test_parameters_are_those_of_the_plan():
    rule = TrainConfig(architecture="resnet32", auxiliary_depth=3).make_rule()
    costs = count_layer_costs("resnet32", rule, 4, 100)
    plan = make_plan("resnet32", "auglocal", rule, 100)
    assert [cost.parameters for cost in costs.auxiliaries] == [
        row["parameters"] for row in plan["auxiliaries"]
    ]
    total = sum(cost.parameters for cost in (*costs.layers, *costs.auxiliaries, costs.head))
    assert total == plan["parameters"]["total"]
    assert [list(block) for block in costs.blocks] == plan["blocks"]


def test_bp_pays_more_for_the_same_layer_because_the_gradient_goes_on():
    local = TrainConfig(architecture="resnet20").make_rule()
    bp = TrainConfig(architecture="resnet20", rule="bp").make_rule()
    ours, theirs = (count_layer_costs("resnet20", rule, 4) for rule in (local, bp))
    # the stem needs no gradient for the images under either rule
    assert ours.layers[0].flops == theirs.layers[0].flops
    # stage1_block1: one product with 16 x 16 x 3 x 3 weights at each of 32 x 32 pixels less
    product = 2 * 4 * 16 * 16 * 9 * 32 * 32
    assert theirs.layers[1].flops - ours.layers[1].flops == product


def test_a_deep_network_is_counted_at_the_published_ratio_without_allocating_a_batch():
    rule = TrainConfig(architecture="resnet110", auxiliary_depth=3).make_rule()
    bp = TrainConfig(architecture="resnet110", rule="bp").make_rule()
    started = time.process_time()
    ours, theirs = (count_layer_costs("resnet110", way, 1024) for way in (rule, bp))
    assert time.process_time() - started < 10
    assert ours.saved / theirs.saved == pytest.approx(0.084, abs=0.001)
    assert ours.flops / theirs.flops == pytest.approx(2.98, abs=0.005)


def test_one_image_is_no_batch():
    with pytest.raises(ValueError, match="at least 2, not 1"):
        count_layer_costs("resnet20", TrainConfig().make_rule(), 1)
