"""A series of seeds: its summary against NumPy's, its resumption, and what it refuses."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from auglocal.__main__ import main
from auglocal.config import TrainConfig
from auglocal.errors import InputError
from auglocal.files import file_sha256
from auglocal.runs import RunFolder, create_run, read_metrics
from auglocal.series import check_seeds, create_series, open_series, spread, summarise

TINY = ["--rule", "bp", "--width", "0.25", "--epochs", "1", "--batch-size", "12", "--device", "cpu"]


@pytest.fixture
def data(image_folder: Path) -> list[str]:
    return ["--dataset", f"imagefolder:{image_folder}", *TINY]


@pytest.fixture(scope="module")
def trained(image_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A series of three finished runs."""
    path = tmp_path_factory.mktemp("series") / "runs"
    options = ["--dataset", f"imagefolder:{image_folder}", *TINY, "--out", str(path)]
    assert main(["train", *options, "--seeds", "0,1,5"]) == 0
    return path


def sentence(capsys: pytest.CaptureFixture[str]) -> str:
    """What was said on stderr: one line, no traceback."""
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1, lines
    return lines[0]


def test_the_summary_is_numpys_mean_and_sample_deviation_of_the_runs(trained: Path) -> None:
    summary = json.loads((trained / "summary.json").read_text())
    values = [
        read_metrics(RunFolder(trained / f"seed-{seed}"))[-1]["test_accuracy"] for seed in (0, 1, 5)
    ]
    assert [run["test_accuracy"] for run in summary["runs"]] == values
    assert [run["seed"] for run in summary["runs"]] == [0, 1, 5]
    assert all(run["finished"] for run in summary["runs"])
    overall = summary["test_accuracy"]
    assert overall["mean"] == pytest.approx(np.mean(values))
    assert overall["standard_deviation"] == pytest.approx(np.std(values, ddof=1))
    assert (overall["runs"], overall["reason"]) == (3, None)


def test_spread_is_numpys_with_n_minus_1() -> None:
    values = [0.91, 0.935, 0.92, 0.9]
    assert spread(values)["mean"] == pytest.approx(np.mean(values))
    assert spread(values)["standard_deviation"] == pytest.approx(np.std(values, ddof=1))


def test_what_n_is_too_small_for_is_none_with_the_reason() -> None:
    assert spread([0.5]) == {
        "runs": 1,
        "mean": 0.5,
        "standard_deviation": None,
        "reason": "one run has no deviation",
    }
    assert spread([]) == {
        "runs": 0,
        "mean": None,
        "standard_deviation": None,
        "reason": "no run is finished",
    }


def test_each_run_is_the_run_of_that_seed_alone(
    trained: Path, data: list[str], tmp_path: Path
) -> None:
    assert main(["train", *data, "--seed", "5", "--out", str(tmp_path / "alone")]) == 0
    name = "checkpoint.safetensors"
    assert file_sha256(tmp_path / "alone" / name) == file_sha256(trained / "seed-5" / name)


def test_resuming_makes_what_is_missing_and_changes_nothing_else(
    trained: Path, data: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "runs"
    shutil.copytree(trained, path)
    shutil.rmtree(path / "seed-1")
    kept = path / "seed-0" / "resume.pt"
    before = file_sha256(kept)
    command = ["train", *data, "--seeds", "0,1,5", "--resume", str(path), "--json"]
    assert main(command) == 0
    assert file_sha256(kept) == before
    name = "seed-1/checkpoint.safetensors"
    assert file_sha256(path / name) == file_sha256(trained / name)
    outcome = json.loads(capsys.readouterr().out)
    summary = json.loads((trained / "summary.json").read_text())
    assert outcome == {"out": str(path), "finished": True, **summary}


def test_a_table_of_the_runs_is_printed(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--resume", str(trained)]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == ["seed", "epochs", "test", "accuracy"]
    assert [line[:2] for line in lines[1:4]] == [["0", "1/1"], ["1", "1/1"], ["5", "1/1"]]
    assert [line[0] for line in lines[4:]] == ["mean", "deviation"]


def test_an_unfinished_run_has_no_part_in_the_mean(trained: Path, tmp_path: Path) -> None:
    shutil.copytree(trained, tmp_path / "runs")
    (tmp_path / "runs" / "seed-5" / "metrics.jsonl").write_text("")
    summary = summarise(open_series(tmp_path / "runs"))
    assert summary["runs"][2]["test_accuracy"] is None
    assert not summary["runs"][2]["finished"]
    assert summary["test_accuracy"]["runs"] == 2


def test_overwriting_removes_the_old_runs_and_nothing_else(trained: Path, tmp_path: Path) -> None:
    path = tmp_path / "runs"
    shutil.copytree(trained, path)
    (path / "seed-1" / "notes.txt").write_text("mine")
    create_series(path, TrainConfig(), (7,), overwrite=True)
    assert sorted(str(file.relative_to(path)) for file in path.rglob("*")) == [
        "seed-1",
        "seed-1/notes.txt",
        "summary.json",
    ]
    assert open_series(path).seeds == (7,)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--resume", "{series}", "--seeds", "0,1"], "have the seeds 0,1,5; leave --seeds out"),
        (["--resume", "{series}", "--seed", "5"], "leave --seed out, or give --resume .*seed-N"),
        (["--resume", "{series}", "--epochs", "9"], "has epochs 1, not 9"),
        (
            ["--resume", "{series}/seed-0", "--seeds", "0"],
            "holds no runs of several seeds; leave --seeds",
        ),
        (["--out", "{series}", "--seeds", "0"], "already holds runs of several seeds; give --res"),
        (["--out", "{series}"], "holds the runs of several seeds; give --resume"),
        (["--out", "{series}/seed-0", "--seeds", "0"], "holds a single run; give"),
        (["--out", "/dev/null", "--seeds", "0"], "/dev/null is a file; give --out a folder"),
        (["--seeds", "0,0"], "Seeds are whole numbers from 0 on, each once, not '0,0'"),
        (["--seeds", ""], "Seeds are whole numbers"),
        (["--seeds", "0,x"], "--seeds: expected whole numbers with commas .* not '0,x'"),
        (["--seeds", "0,1", "--seed", "3"], "names every run's seed; leave --seed out"),
    ],
)
def test_what_makes_no_series_is_one_sentence(
    options: list[str],
    message: str,
    trained: Path,
    data: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    options = [option.format(series=trained) for option in options]
    before = (trained / "summary.json").read_text()
    try:
        status = main(["train", *([] if "--resume" in options else data), *options])
    except SystemExit as end:
        status = int(str(end.code))
    assert status == 2
    assert re.search(message, sentence(capsys))
    assert (trained / "summary.json").read_text() == before


def test_negative_seeds_are_refused() -> None:
    with pytest.raises(InputError, match="not '-1,2'; give --seeds 0,1,2"):
        check_seeds((-1, 2))


def test_a_run_that_is_not_the_series_own_is_refused(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "runs"
    shutil.copytree(trained, path)
    config = open_series(path).run_config(1)
    create_run(path / "seed-1", TrainConfig(dataset=config.dataset), overwrite=True)
    assert main(["train", "--resume", str(path)]) == 2
    assert "seed-1 has width 1.0 and its series has 0.25" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", r"summary\.json is damaged .*; start again with --overwrite"),
        ("[]", r"summary\.json is damaged"),
        ('{"format_version": 1}', r"summary\.json is damaged"),
        ('{"format_version": 1, "seeds": [0], "config": {"a": 1}}', "no option 'a'"),
        ('{"format_version": 2}', "has format 2, newer than this version reads .*update auglocal"),
    ],
)
def test_a_damaged_summary_is_refused(content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "summary.json").write_text(content)
    with pytest.raises(InputError, match=message):
        open_series(tmp_path)
