"""Rules by name, and the options that they refuse."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from auglocal.backbones.registry import build_meta_backbone
from auglocal.errors import InputError
from auglocal.rules.auglocal import AugLocal
from auglocal.rules.registry import make_rule


def test_a_rule_reads_its_own_options_only() -> None:
    options = SimpleNamespace(auxiliary_depth=3, pyramid=0.25, tail=None, epochs=5)
    assert make_rule("auglocal", options) == AugLocal(3, 0.25, None)


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
    ],
)
def test_a_tail_of_all_layers_is_refused(rule: AugLocal, message: str) -> None:
    with pytest.raises(InputError, match=message):
        rule.build(build_meta_backbone("resnet20"))


@pytest.mark.parametrize("rule", [AugLocal(auxiliary_depth=8), AugLocal(tail=9)])
def test_the_largest_advised_values_work(rule: AugLocal) -> None:
    assert len(rule.build(build_meta_backbone("resnet20")).blocks) == 2
