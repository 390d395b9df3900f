"""Sentences and labels."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace

from app import texts


def test_the_sentence_names_extremes_of_equal_depth_and_probes_with_intervals(make_study):
    study = make_study(undefined="stage3_block3")
    study.cka.values[12, 2] = study.cka.values[2, 12] = 0.4
    sentence = texts.seen_in(study).replace("\\", "")
    assert sentence == (
        "At equal depth the two networks are most alike at stem (CKA 0.900, 95% 0.880 to 0.920) "
        "and least alike at stage1_block2 (CKA 0.400, 95% 0.880 to 0.920); half-way, at "
        "stage2_block1, a linear probe is right on 66.0% (64.0% to 68.0%) of the images from BP "
        "and on 76.0% (74.0% to 78.0%) from AugLocal, intervals that do not overlap."
    )


def test_the_sentence_says_so_when_intervals_overlap(make_study):
    assert texts.seen_in(make_study(starts=(0.5, 0.53))).endswith("intervals that overlap.")


def test_the_sentence_leaves_out_what_is_undefined(make_study):
    study = make_study()
    study.cka.values[:] = math.nan
    assert texts.seen_in(study).startswith("Half-way, at stage2")
    assert "no value" in texts.seen_in(replace(study, probes=())).lower()


def test_two_checkpoints_of_one_rule_go_by_their_names(make_study):
    assert texts.titles(make_study(rules=("bp", "bp"))) == ["bp-net", "auglocal-net"]
    assert texts.titles(make_study()) == ["BP", "AugLocal"]


def test_an_interval_that_is_missing_is_left_out(make_study):
    pair = make_study().cka.pair("bp-net", "auglocal-net")
    pair.low[0, 0] = math.nan
    assert texts.similarity(pair, 0, 0) == "CKA 0.900"
    assert texts.cell_parts(pair, 0, 0)[:2] == ("0.900", "none")


def test_time_left_is_said_in_seconds_then_minutes():
    assert texts.duration(0.2) == "1 s"
    assert texts.duration(45.2) == "45 s"
    assert texts.duration(200) == "3 min"


def test_probe_tables_keep_undefined_values_apart(make_study):
    (probe, _) = make_study(undefined="stem").probes
    assert texts.probe_rows([probe])[0]["Accuracy"].startswith("undefined: its features")
    assert texts.probe_csv([probe]).splitlines()[1].startswith("bp-net,stem,,")


def test_a_configuration_leaves_out_what_has_no_value_and_other_rules_options():
    metadata = SimpleNamespace(
        config={"epochs": 15, "pyramid": 0.5, "image_size": None, "rule": "bp"}, rule_options={}
    )
    assert texts.config_rows(metadata) == [
        {"Option": "epochs", "Value": "15"},
        {"Option": "rule", "Value": "bp"},
    ]
    metadata.rule_options = {"pyramid": 0.5}
    assert {"Option": "pyramid", "Value": "0.5"} in texts.config_rows(metadata)
