"""The bench: ratios by a clock that is known, every way once, and one JSON document."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest
import torch

from auglocal import bench
from auglocal.__main__ import main
from auglocal.bench import Timing, Way, flops_ratio, speed_rows, time_steps, ways_to_train
from auglocal.config import TrainConfig
from auglocal.memory import Subject

CPU = torch.device("cpu")
SIZE = (3, 16, 16)
OPTIONS = "--architecture resnet20 --width 0.25 --batch-size 4 --rounds 1 --image-size 16".split()


def names(ways: list[Way]) -> list[tuple[str, str, bool]]:
    return [(way.name, way.config.precision, way.config.channels_last) for way in ways]


def four(name: str) -> list[tuple[str, str, bool]]:
    return [(name, precision, last) for precision in ("fp32", "bf16") for last in (True, False)]


def test_the_ways_are_every_precision_and_layout_of_both_rules(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    ways = ways_to_train(TrainConfig(rule="dgl", precision="bf16", channels_last=False), CPU)
    assert names(ways) == [*four("bp"), *four("dgl")]
    assert all(way.config.rule == way.name for way in ways)
    assert names(ways_to_train(TrainConfig(rule="bp"), CPU)) == four("bp")


def test_several_cores_may_take_a_block_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    ways = ways_to_train(TrainConfig(), CPU)
    threaded = [way for way in ways if way.config.block_threads > 1]
    name = "auglocal --block-threads 3"
    assert names(threaded) == [(name, "fp32", True), (name, "bf16", True)]
    assert all(way.config.block_threads == 3 for way in threaded)


def test_a_gpu_may_replay_a_graph() -> None:
    ways = ways_to_train(TrainConfig(), torch.device("cuda"))
    recorded = [way for way in ways if way.config.cuda_graph]
    assert {way.name for way in recorded} == {"bp --cuda-graph", "auglocal --cuda-graph"}
    assert len(recorded) == 4


def test_compiled_ways_come_where_they_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    ways = ways_to_train(TrainConfig(compile=True), CPU)
    compiled = [way for way in ways if way.config.compile]
    assert names(compiled) == [
        (f"{rule} --compile", precision, True)
        for rule in ("bp", "auglocal")
        for precision in ("fp32", "bf16")
    ]


def test_memory_options_are_the_rules_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = TrainConfig(recompute=True, step_per_block=True, modules=4)
    for way in ways_to_train(asked, CPU):
        expected = (False, False, None) if way.config.rule == "bp" else (True, True, 4)
        options = way.config.recompute, way.config.step_per_block, way.config.modules
        assert options == expected


def test_ratios_are_those_of_the_fastest_rounds() -> None:
    bp = TrainConfig(rule="bp")
    rule = TrainConfig(rule="auglocal", precision="bf16", channels_last=False)
    timings = [
        Timing(Way("bp", bp), (5.0, 4.0, 7.0)),
        Timing(Way("bp", replace(bp, channels_last=False)), (2.0, 3.0)),
        Timing(Way("bp", replace(bp, precision="bf16")), (1.0,)),
        Timing(Way("bp --cuda-graph", bp), (0.5,)),
        Timing(Way("auglocal", rule), (6.0, 8.0)),
        Timing(Way("auglocal", replace(rule, channels_last=True)), (6.0,)),
    ]
    rows = speed_rows(timings, batch_size=12)
    assert [row["seconds"] for row in rows] == [4.0, 2.0, 1.0, 0.5, 6.0, 6.0]
    assert [row["ratio"] for row in rows] == [1.0, 1.0, 0.25, 0.125, 3.0, 1.5]
    assert [row["ratio_to_fastest"] for row in rows] == [2.0, 1.0, 0.5, 0.25, 3.0, 3.0]
    assert [row["images_per_second"] for row in rows] == [3.0, 6.0, 12.0, 24.0, 2.0, 2.0]
    assert rows[4]["layout"] == "contiguous"
    assert rows[4]["seconds_by_round"] == [6.0, 8.0]


class Clock:
    """A clock that a stand-in for a step moves."""

    def __init__(self) -> None:
        self.now = 100.0

    def perf_counter(self) -> float:
        return self.now


def test_a_step_is_timed_in_every_round_but_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, order = Clock(), []
    seconds = {"bp": 0.25, "auglocal": 0.5}

    class TimedStepper:
        def __init__(self, config: TrainConfig, *_: Any) -> None:
            self.config, self.num_steps = config, 0

        def step(self, *_: Any) -> None:
            order.append(self.config.rule)
            # The step that warms up takes long; every later one takes a little longer.
            clock.now += seconds[self.config.rule] + (self.num_steps / 8 if self.num_steps else 99)
            self.num_steps += 1

        def close(self) -> None:
            order.append("closed")

    monkeypatch.setattr(bench, "time", clock)
    monkeypatch.setattr(bench, "Stepper", TimedStepper)
    ways = [Way(rule, TrainConfig(rule=rule, batch_size=2)) for rule in ("bp", "auglocal")]
    reports: list[str] = []
    timings = time_steps(
        ways, Subject(ways[0].config, 4, SIZE), CPU, num_rounds=2, report=reports.append
    )
    assert [timing.seconds for timing in timings] == [(0.375, 0.5), (0.625, 0.75)]
    assert order == [*["bp", "auglocal"] * 3, "closed", "closed"]
    assert len(reports) == 6


def test_the_ratio_of_operations_is_that_of_the_two_alone() -> None:
    assert flops_ratio(Subject(TrainConfig(rule="bp"), 4, SIZE)) == 1
    assert flops_ratio(Subject(TrainConfig(modules=1), 4, SIZE)) == 1
    plain = Subject(TrainConfig(width=0.25), 4, SIZE)
    again = replace(plain, config=replace(plain.config, recompute=True))
    # BP's step is three forwards, but for the stem, whose input needs no gradient; all but the
    # head runs once more.
    assert 0.32 < flops_ratio(again) - flops_ratio(plain) < 0.36


def test_the_command_prints_one_document_with_every_way() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "auglocal", "bench", *OPTIONS, "--width", "1", "--json"],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": "2", "CUDA_VISIBLE_DEVICES": ""},
    )
    document = json.loads(done.stdout)
    assert len(done.stdout.splitlines()) == 1
    rows = document["rows"]
    assert len(rows) == 10
    assert [row["name"] for row in rows if "--" in row["name"]] == [
        "auglocal --block-threads 2"
    ] * 2
    by_way = {(row["name"], row["precision"], row["layout"]): row for row in rows}
    assert len(by_way) == len(rows)
    for row in rows:
        bp = by_way["bp", "fp32", row["layout"]]["seconds"]
        fastest = min(by_way["bp", "fp32", layout]["seconds"] for layout in LAYOUTS)
        assert row["ratio"] == pytest.approx(row["seconds"] / bp)
        assert row["ratio_to_fastest"] == pytest.approx(row["seconds"] / fastest)
        assert row["images_per_second"] == pytest.approx(4 / row["seconds"])
        assert row["seconds"] == min(row["seconds_by_round"])
        assert len(row["seconds_by_round"]) == 1
    best = max(row["images_per_second"] for row in rows if row["rule"] == "auglocal")
    evaluation = document["evaluation_images_per_second"]
    assert document["evaluation_ratio"] == pytest.approx(evaluation / best)
    assert document["pipeline_images_per_second"] > 0
    assert document["flops_ratio"] > 1
    assert (document["threads"], document["batch_size"], document["image_size"]) == (2, 4, 16)


LAYOUTS = ("channels-last", "contiguous")


def test_bp_alone_is_a_table_of_four(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", *OPTIONS, "--rule", "bp", "--device", "cpu"]) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = [line for line in lines if line.startswith("bp ")]
    assert len(rows) == 4
    assert lines[0].startswith("resnet20 under bp, batch 4, cpu")
    assert "training FLOPs 1.00 of BP's" in lines[0]
    ratios = [line.split()[-2:] for line in rows if "fp32" in line]
    assert [ratio for ratio, _ in ratios] == ["1.00", "1.00"]
    assert "1.00" in {to_fastest for _, to_fastest in ratios}
    assert lines[-1].startswith("Fastest here: bp --precision ")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rounds", "0"], "at least 2 classes, images of 8 pixels and 1 round"),
        (["--num-classes", "1"], "give other --num-classes, --image-size or --rounds"),
        (["--image-size", "4"], "A bench needs at least"),
        (["--batch-size", "1"], "The batch size must be at least 2, not 1"),
        (["--architecture", "resnet21"], "There is no architecture 'resnet21'"),
        (["--rounds", "few"], "invalid int value: 'few'"),
    ],
    ids=str,
)
def test_what_cannot_be_timed_is_refused_in_one_sentence(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        status = main(["bench", *arguments])
    except SystemExit as exit_:
        status = exit_.code
    assert status == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.strip().splitlines()
    assert message in line
