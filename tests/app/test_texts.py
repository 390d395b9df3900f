"""Sentences and labels."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace

from analysis.rule_styles import network_titles
from app import texts, texts_overview
from tests.analysis.full_study import make_geometry


def seen(study):
    return [sentence.replace("\\", "") for sentence in texts_overview.seen_in(study)]


def with_dimensions(study, half_way, margin=0.3):
    """The study with participation ratios: those of the layer half-way are given."""
    layers = study.probes[0].layers
    at = (len(layers) - 1) // 2
    results = []
    for name, value in zip(study.models, half_way, strict=True):
        result = make_geometry(name, layers, seed=0)
        for part, shift in ((result.low, -margin), (result.values, 0), (result.high, margin)):
            part["participation_ratio"][at] = value + shift
        results.append(result)
    return replace(study, geometry=tuple(results))


def test_sentences_name_extremes_of_equal_depth_and_probes_with_intervals(make_study):
    study = make_study(undefined="stage3_block3")
    study.cka.values[12, 2] = study.cka.values[2, 12] = 0.4
    assert seen(study) == [
        "At equal depth the two networks are most alike at stem (CKA 0.900, 95% 0.880 to 0.920) "
        "and least alike at stage1_block2 (CKA 0.400, 95% 0.880 to 0.920).",
        "Half-way, at stage2_block1, a linear probe is right on 66.0% (64.0% to 68.0%) of the "
        "images from BP and on 76.0% (74.0% to 78.0%) from AugLocal, intervals that do not "
        "overlap.",
    ]


def test_of_several_networks_sentences_name_the_most_and_the_least(make_study):
    study = make_study(
        ("a" * 64, "b" * 64, "c" * 64),
        names=("bp-net", "auglocal-net", "dgl-net"),
        rules=("bp", "auglocal", "dgl"),
        starts=(0.5, 0.6, 0.3),
    )
    study.cka.values[4, 24] = study.cka.values[24, 4] = 0.4
    assert seen(with_dimensions(study, (5.0, 6.2, 5.1))) == [
        "Half-way, at stage2_block1, AugLocal is most like BP (CKA 0.900, 95% 0.880 to 0.920) and "
        "DGL least (CKA 0.400, 95% 0.880 to 0.920).",
        "Half-way, a probe is right most often on AugLocal, 76.0% (74.0% to 78.0%) of the images, "
        "then on BP, 66.0% (64.0% to 68.0%), and least often on DGL, 46.0% (44.0% to 48.0%); the "
        "first two intervals do not overlap.",
        "Half-way, features spread over most directions in AugLocal, 6.2 (participation ratio, "
        "95% 5.9 to 6.5), then in DGL, 5.1 (4.8 to 5.4), and over fewest in BP, 5.0 (4.7 to 5.3); "
        "the first two intervals do not overlap.",
    ]


def test_of_many_networks_sentences_name_the_first_one_too_and_the_runner_up(make_study):
    names = ("bp-net", "one", "two", "three")
    study = make_study(
        tuple(letter * 64 for letter in "abcd"),
        names=names,
        rules=("bp", "auglocal", "dgl", "linear"),
        starts=(0.5, 0.6, 0.59, 0.3),
    )
    for name, value in zip(names[1:], (0.8, 0.7, 0.6), strict=True):
        at = 10 * names.index(name) + 4
        study.cka.values[4, at] = study.cka.values[at, 4] = value
    alike, probes = seen(study)
    assert alike.startswith("Half-way, at stage2_block1, AugLocal is most like BP (CKA 0.800,")
    assert "), then DGL (CKA 0.700, 95% 0.880 to 0.920), and Linear least (CKA 0.600," in alike
    assert probes == (
        "Half-way, a probe is right most often on AugLocal, 76.0% (74.0% to 78.0%) of the images, "
        "then on DGL, 75.0% (73.0% to 77.0%), and least often on Linear, 46.0% (44.0% to 48.0%); "
        "BP has 66.0% (64.0% to 68.0%); the first two intervals overlap."
    )


def test_of_two_networks_their_references_are_named(make_study):
    study = make_study(
        ("a" * 64, "b" * 64, "c" * 64),
        names=("bp-net", "auglocal-net", "again"),
        rules=("bp", "auglocal", "bp"),
        starts=(0.5, 0.6, 0.5),
    )
    first, second, third = study.question.checkpoints
    entries = (first, second, replace(third, role="ceiling"))
    alike, _ = seen(replace(study, question=replace(study.question, checkpoints=entries)))
    assert alike.endswith(
        ". Half-way, at stage2_block1, they have CKA 0.900, 95% 0.880 to 0.920, beside BP, other "
        "seed (CKA 0.900, 95% 0.880 to 0.920)."
    )


def test_sentences_say_so_when_intervals_overlap(make_study):
    _, probes, dimension = seen(with_dimensions(make_study(starts=(0.5, 0.53)), (5.5, 5.0)))
    assert probes.endswith(", intervals that overlap.")
    assert dimension == (
        "Half-way, the features of BP spread over more directions, 5.5 (participation ratio, 95% "
        "5.2 to 5.8), and those of AugLocal over fewer, 5.0 (4.7 to 5.3), intervals that overlap."
    )


def test_sentences_claim_nothing_of_intervals_that_are_not_there(make_study):
    *_, dimension = seen(with_dimensions(make_study(), (7.0, 5.0), margin=math.nan))
    assert dimension == (
        "Half-way, the features of BP spread over more directions, 7.0 (participation ratio), and "
        "those of AugLocal over fewer, 5.0."
    )


def test_sentences_leave_out_what_is_undefined(make_study):
    study = make_study()
    study.cka.values[:] = math.nan
    (probes,) = seen(study)
    assert probes.startswith("Half-way, at stage2")
    assert seen(replace(study, probes=())) == ["No value of this study is defined."]


def test_two_checkpoints_of_one_rule_go_by_their_names(make_study):
    twice = make_study(rules=("bp", "bp")).question.checkpoints
    assert list(network_titles(twice).values()) == ["bp-net", "auglocal-net"]
    assert list(network_titles(make_study().question.checkpoints).values()) == ["BP", "AugLocal"]


def test_networks_of_one_rule_are_told_apart_by_what_differs(make_study):
    first, second = make_study(rules=("auglocal", "auglocal")).question.checkpoints
    first = replace(first, rule_options={"auxiliary_depth": 1, "pyramid": 0.5})
    second = replace(second, rule_options={"auxiliary_depth": 3, "pyramid": 0.5})
    again = replace(second, name="again", seed=7)
    floor = replace(first, name="floor", role="floor")
    assert list(network_titles([first, second, floor]).values()) == [
        "AugLocal, d = 1",
        "AugLocal, d = 3",
        "untrained",
    ]
    assert network_titles([second, again])["again"] == "AugLocal, seed 7"


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


def test_networks_that_read_other_sizes_are_told(make_study):
    study = make_study()
    assert texts.sizes_note(study) == ""
    entries = [
        replace(entry, preprocessing={"input_size": [3, size, size]})
        for entry, size in zip(study.question.checkpoints, (224, 32), strict=True)
    ]
    question = replace(study.question, checkpoints=tuple(entries))
    told = texts.sizes_note(replace(study, question=question))
    assert told.endswith("bp-net 224 x 224, auglocal-net 32 x 32 pixels.")
