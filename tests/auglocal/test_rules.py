"""Rules by name, and the options that they refuse."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from auglocal.auxiliary import AuxiliaryNetwork
from auglocal.backbones.registry import build_backbone, build_meta_backbone
from auglocal.config import TrainConfig
from auglocal.errors import InputError
from auglocal.local_loss import CombinedLoss
from auglocal.plan import count_parameters, make_plan, plan_table
from auglocal.rules.auglocal import AugLocal
from auglocal.rules.infopro import ReconstructionLoss
from auglocal.rules.predsim import SimilarityLoss
from auglocal.rules.registry import RULES, make_rule

GOLDEN = json.loads((Path(__file__).parent / "fixtures" / "rule_parameters.json").read_text())


def test_a_rule_reads_its_own_options_only() -> None:
    options = TrainConfig(auxiliary_depth=3, pyramid=0.25, modules=4, epochs=5)
    assert make_rule("auglocal", options) == AugLocal(3, 0.25, None, 4)
    assert make_rule("dgl", SimpleNamespace(modules=3, epochs=5)) == RULES["dgl"](modules=3)


def spread(runs: list[list[int]]) -> list[int]:
    """[value, count] pairs as values."""
    return list(itertools.chain.from_iterable([value] * count for value, count in runs))


@pytest.mark.parametrize("case", GOLDEN["cases"])
def test_parameters_equal_those_of_the_published_code(case: str) -> None:
    architecture, name = case.split("/")
    published = GOLDEN["cases"][case]
    plan = make_plan(architecture, name, RULES[name]())
    assert plan["parameters"]["total"] == published["total"]
    assert len(plan["blocks"]) == published["blocks"]
    auxiliaries = RULES[name]().build(build_meta_backbone(architecture)).auxiliaries.values()
    combined = [auxiliary for auxiliary in auxiliaries if isinstance(auxiliary, CombinedLoss)]
    classifiers = [auxiliary.classifier for auxiliary in combined] or auxiliaries
    assert [count_parameters(part) for part in classifiers] == spread(published["classifiers"])
    assert [count_parameters(a.extra) for a in combined] == spread(published["extra_losses"])


@pytest.mark.parametrize(
    ("local_loss", "extra_type"), [("predsim", SimilarityLoss), ("infopro", ReconstructionLoss)]
)
def test_auglocals_networks_take_the_extra_loss_of_another_rule(
    local_loss: str, extra_type: type
) -> None:
    network = AugLocal(local_loss=local_loss).build(build_meta_backbone("resnet32"))
    other = RULES[local_loss]().build(build_meta_backbone("resnet32"))
    for auxiliary, others in zip(network.auxiliaries.values(), other.auxiliaries.values()):
        assert isinstance(auxiliary.classifier, AuxiliaryNetwork)
        assert isinstance(auxiliary.extra, extra_type)
        assert count_parameters(auxiliary.extra) == count_parameters(others.extra)
    plain = make_plan("resnet32", "auglocal", AugLocal())
    plan = make_plan("resnet32", "auglocal", AugLocal(local_loss=local_loss))
    assert [row["selected"] for row in plan["auxiliaries"]] == [
        row["selected"] for row in plain["auxiliaries"]
    ]
    num_extra = sum(count_parameters(a.extra) for a in network.auxiliaries.values())
    assert plan["parameters"]["total"] == plain["parameters"]["total"] + num_extra


def test_predsim_weighs_cross_entropy_with_a_hundredth() -> None:
    for rule in (RULES["predsim"](), AugLocal(local_loss="predsim")):
        for auxiliary in rule.build(build_meta_backbone("resnet20")).auxiliaries.values():
            assert (auxiliary.classifier_weight, auxiliary.extra_weight) == (0.01, 0.99)


def test_a_blocks_auxiliary_network_copies_layers_after_its_last_layer() -> None:
    network = AugLocal(modules=4).build(build_meta_backbone("resnet32"))
    assert [len(block) for block in network.blocks] == [4, 4, 4, 4]
    specs = [auxiliary.spec for auxiliary in network.auxiliaries.values()]
    assert [spec.layer for spec in specs] == [3, 7, 11]
    assert all(min(spec.selected) > spec.layer for spec in specs)


@pytest.mark.parametrize("num_modules", [1, 2])
@pytest.mark.parametrize("pyramid", [0.0, 1.0])
def test_with_two_modules_at_most_the_depth_is_the_one_asked_for(
    num_modules: int, pyramid: float
) -> None:
    rule = AugLocal(auxiliary_depth=3, pyramid=pyramid, modules=num_modules)
    network = rule.build(build_meta_backbone("resnet32"))
    depths = [auxiliary.spec.depth for auxiliary in network.auxiliaries.values()]
    assert depths == [3] * (num_modules - 1)


def test_the_tail_given_is_kept_with_modules() -> None:
    network = AugLocal(tail=1, modules=16).build(build_meta_backbone("resnet32"))
    assert [len(block) for block in network.blocks] == [1] * 16
    with pytest.raises(InputError, match="13 of 16 are left for 15 modules .* --modules 14"):
        AugLocal(tail=3, modules=16).build(build_meta_backbone("resnet32"))


@pytest.mark.parametrize("depth", [1, 2, 9, 20])
def test_any_number_of_modules_is_trained_whatever_the_depth(depth: int) -> None:
    for num_modules in range(1, 11):
        rule = AugLocal(auxiliary_depth=depth, modules=num_modules)
        network = rule.build(build_meta_backbone("resnet20"))
        assert len(network.blocks) == num_modules
        for auxiliary in network.auxiliaries.values():
            later = range(auxiliary.spec.layer + 1, 10)
            assert set(auxiliary.spec.selected) <= set(later)
            assert len(auxiliary.spec.selected) == min(auxiliary.spec.depth, len(later))


@pytest.mark.parametrize("width", [0.05, 0.3, 0.7, 1.3, 2.6, 3])
@pytest.mark.parametrize("depth", [1, 2, 5])
def test_strides_do_not_depend_on_the_width(width: float, depth: int) -> None:
    rule = AugLocal(auxiliary_depth=depth)
    plans = [make_plan("resnet32", "auglocal", rule, width=each) for each in (1.0, width)]
    strides = [[row["strides"] for row in plan["auxiliaries"]] for plan in plans]
    assert strides[0] == strides[1]


def test_every_rule_fits_a_narrow_backbone_and_small_grey_images() -> None:
    for rule_type in RULES.values():
        plan = make_plan("resnet20", "rule", rule_type(), 3, (1, 8, 8), width=0.3)
        assert plan["layers"][0]["channels"] == 5
        assert plan["layers"][-1]["channels"] == 20


def test_planning_leaves_the_backbone_its_weights() -> None:
    backbone = build_backbone("resnet20")
    RULES["predsim"]().build(backbone)
    assert all(parameter.device.type == "cpu" for parameter in backbone.parameters())


def test_the_plans_table_says_where_nothing_is_copied() -> None:
    assert plan_table(make_plan("resnet20", "dgl", RULES["dgl"]())).count("no copies") == 9


@pytest.mark.parametrize("modules", [2, 4])
def test_bp_refuses_several_modules_and_takes_one(modules: int) -> None:
    with pytest.raises(InputError, match=f"one block, not as {modules}; leave --modules out"):
        TrainConfig(rule="bp", modules=modules)
    assert TrainConfig(rule="bp", modules=1).make_rule() == RULES["bp"]()


def test_unknown_rule_lists_what_there_is() -> None:
    with pytest.raises(InputError, match="no rule 'hebb'; choose one of bp, auglocal"):
        make_rule("hebb", SimpleNamespace())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"auxiliary_depth": 0}, "auxiliary depth must be at least 1, not 0"),
        ({"pyramid": 1.5}, "pyramid coefficient must lie between 0 and 1, not 1.5"),
        ({"pyramid": float("nan")}, "pyramid coefficient must lie between 0 and 1"),
        ({"tail": 0}, "tail must have at least 1 layer"),
        ({"local_loss": "mse"}, "no local loss 'mse'; choose one of cross-entropy, predsim, inf"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, float], message: str) -> None:
    with pytest.raises(InputError, match=message):
        AugLocal(**options)


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (AugLocal(auxiliary_depth=9), "smaller auxiliary depth, at most 8"),
        (AugLocal(tail=10), "smaller tail, at most 9"),
        (AugLocal(tail=10, modules=2), "smaller tail, at most 9"),
    ],
)
def test_a_tail_of_all_layers_is_refused(rule: AugLocal, message: str) -> None:
    with pytest.raises(InputError, match=message):
        rule.build(build_meta_backbone("resnet20"))


@pytest.mark.parametrize("rule", [AugLocal(auxiliary_depth=8), AugLocal(tail=9)])
def test_the_largest_advised_values_work(rule: AugLocal) -> None:
    assert len(rule.build(build_meta_backbone("resnet20")).blocks) == 2
