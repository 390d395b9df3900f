"""The command line as its users meet it: outcomes, exit statuses, one sentence an error."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from auglocal.__main__ import main
from auglocal.checkpoint import load_checkpoint
from auglocal.commands.memory import parse_bytes
from auglocal.files import file_sha256

TINY = ["--epochs", "2", "--batch-size", "12", "--device", "cpu"]


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep what a command writes by default out of the project."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def data(image_folder: Path) -> list[str]:
    return ["--dataset", f"imagefolder:{image_folder}"]


@pytest.fixture(scope="session")
def trained(image_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder of a finished run."""
    path = tmp_path_factory.mktemp("runs") / "run"
    options = ["train", "--dataset", f"imagefolder:{image_folder}", *TINY, "--out", str(path)]
    assert main(options) == 0
    return path


def sentence(capsys: pytest.CaptureFixture[str]) -> str:
    """What was said on stderr: one line, no traceback."""
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("auglocal")
    return lines[0]


def test_training_writes_the_run_folder(trained: Path) -> None:
    names = {path.name for path in trained.iterdir()}
    assert names == {"config.json", "metrics.jsonl", "checkpoint.safetensors", "resume.pt"}


def test_training_prints_one_json_document(
    data: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    assert main(["train", *data, *TINY, "--rule", "bp", "--out", str(out), "--json"]) == 0
    outcome = json.loads(capsys.readouterr().out)
    assert outcome["finished"]
    assert outcome["metrics"]["epoch"] == 2
    assert load_checkpoint(outcome["checkpoint"]).metadata.rule == "bp"


@pytest.mark.parametrize(
    "command",
    [("auglocal", "recipes"), ("analysis", "inspect", "checkpoints/digits-bp.safetensors")],
)
def test_a_reader_who_has_had_enough_is_no_error(command: tuple[str, ...]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "wb") as pipe:
        done = subprocess.run(
            [sys.executable, "-m", *command],
            cwd=Path(__file__).parents[2],
            stdout=pipe,
            stderr=subprocess.PIPE,
            text=True,
            timeout=120,
            check=False,
        )
    assert done.returncode == 1
    assert done.stderr == ""


@pytest.mark.parametrize(
    "options",
    [
        ["--rule", "dgl"],
        ["--rule", "predsim", "--precision", "bf16"],
        ["--rule", "infopro", "--precision", "bf16", "--reconstruction-first", "2"],
        ["--rule", "linear", "--modules", "3"],
        ["--local-loss", "predsim", "--modules", "4"],
        ["--local-loss", "infopro", "--width", "0.7"],
    ],
    ids=" ".join,
)
def test_every_rule_trains(
    options: list[str], data: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["train", *data, *TINY, *options, "--out", str(tmp_path / "run"), "--json"]
    assert main(command) == 0
    outcome = json.loads(capsys.readouterr().out)
    assert outcome["finished"]
    losses = outcome["metrics"]["losses"]
    assert all(loss > 0 for loss in losses.values())
    checkpoint = load_checkpoint(outcome["checkpoint"])
    blocks = {key.split(".")[1] for key in checkpoint.auxiliary}
    assert blocks == losses.keys() - {"head"}
    checkpoint.build_backbone()


def test_a_dry_run_says_what_it_would_do_and_writes_nothing(
    data: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    assert main(["train", *data, *TINY, "--out", str(out), "--dry-run", "--json"]) == 0
    outcome = json.loads(capsys.readouterr().out)
    assert outcome["steps"] == 8
    assert outcome["estimated_seconds"] > 0
    assert outcome["parameters"]["total"] > outcome["parameters"]["backbone"]
    assert not out.exists()
    assert main(["train", *data, *TINY, "--out", str(out), "--dry-run"]) == 0
    assert "training images" in capsys.readouterr().out


def test_a_folder_that_holds_a_run_is_refused_and_left_as_it_was(
    trained: Path, data: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    before = file_sha256(trained / "checkpoint.safetensors")
    assert main(["train", *data, *TINY, "--out", str(trained)]) == 2
    assert "already holds a run; give --resume" in sentence(capsys)
    missing = ["--dataset", "imagefolder:/nowhere", "--overwrite"]
    assert main(["train", *missing, "--out", str(trained)]) == 2
    assert "There is no folder /nowhere" in sentence(capsys)
    assert file_sha256(trained / "checkpoint.safetensors") == before


def test_resuming_with_another_option_names_it(
    trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "--resume", str(trained), "--epochs", "9"]) == 2
    assert "has epochs 2, not 9" in sentence(capsys)
    assert main(["train", "--resume", str(trained), "--out", "elsewhere"]) == 2
    assert "--resume stands alone" in sentence(capsys)


def test_resuming_a_finished_run_changes_nothing(trained: Path) -> None:
    before = {path.name: file_sha256(path) for path in trained.iterdir()}
    assert main(["train", "--resume", str(trained)]) == 0
    assert {path.name: file_sha256(path) for path in trained.iterdir()} == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--architecture", "alexnet"], "no architecture 'alexnet'; choose one of resnet20"),
        (["--rule", "hebb"], "no rule 'hebb'; choose one of bp, auglocal"),
        (["--dataset", "mnist"], "no data set 'mnist'; choose one of digits"),
        (["--dataset", "cifar10", "--data-folder", "/nowhere"], "give --download to fetch it"),
        (["--auxiliary-depth", "12"], "smaller auxiliary depth, at most 8"),
        (["--pyramid", "2"], "pyramid coefficient must lie between 0 and 1"),
        (["--modules", "9", "--tail", "3"], "give --modules 8 or fewer, or a smaller --tail"),
        (["--rule", "dgl", "--modules", "0"], "10 layers has 1 to 10 modules, not 0"),
        (["--local-loss", "mse"], "no local loss 'mse'; choose one of cross-entropy, predsim"),
        (["--width", "0"], "width must be above 0 and at most 64, not 0; give --width 1"),
        (["--snapshot-epochs", "1,x"], "whole numbers with commas between them, such as 0,1,4"),
        (["--snapshot-epochs", "4,2"], "must rise, each once; give --snapshot-epochs 2,4"),
        (["--recipe", "vit"], "no recipe 'vit'; python -m auglocal recipes lists"),
        (["--epochs", "none"], "argument --epochs: invalid int value: 'none'"),
        (["--epoch-count", "3"], "unrecognized arguments: --epoch-count 3"),
        (["--resume", "/nowhere"], "/nowhere holds no run"),
        (["--out", "/proc/run"], "Could not write /proc/run"),
        (["--out", "/dev/null"], "/dev/null is a file; give --out a folder"),
    ],
)
def test_wrong_input_is_one_sentence(
    options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        status = main(["train", *options])
    except SystemExit as end:
        status = end.code
    assert status == (1 if "Could not" in message else 2)
    assert message in sentence(capsys)


def test_a_diverging_run_fails_with_status_1(
    data: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--learning-rate", "1e30", "--out", str(tmp_path / "run")]
    assert main(["train", *data, *TINY, *options]) == 1
    assert "became NaN or infinite" in capsys.readouterr().err.splitlines()[-1]


def test_a_gpu_out_of_memory_says_what_to_do(
    data: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def run_out(*arguments: object, **options: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr("auglocal.acceleration.train_step", run_out)
    assert main(["train", *data, *TINY, "--out", str(tmp_path / "run")]) == 1
    said = capsys.readouterr().err
    assert "smaller --batch-size (python -m auglocal memory says" in said.splitlines()[-1]
    assert "Traceback" not in said


def test_a_corrupt_image_stops_training_unless_it_is_skipped_and_counted(
    image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, out = tmp_path / "tree", tmp_path / "run"
    shutil.copytree(image_folder, root)
    (root / "train" / "dark" / "98.png").write_bytes(b"not an image")
    command = ["train", "--dataset", f"imagefolder:{root}", *TINY, "--epochs", "1"]
    command += ["--width", "0.25", "--rule", "bp"]
    assert main([*command, "--out", str(out)]) == 2
    assert re.search(r"98\.png is not a readable image; .*--skip-corrupt", sentence(capsys))
    assert not out.exists()
    assert main([*command, "--skip-corrupt", "--out", str(out)]) == 0
    assert "Skipped corrupt images: 1 (" in capsys.readouterr().err
    checkpoint = str(out / "checkpoint.safetensors")
    options = ["--dataset", f"imagefolder:{root}", "--skip-corrupt", "--split", "train"]
    assert main(["evaluate", checkpoint, *options]) == 0
    said = capsys.readouterr()
    assert "48 images" in said.out
    assert "Skipped corrupt images: 1 (" in said.err


def test_snapshots_are_asked_for_on_the_command_line_and_removed_by_overwrite(
    data: list[str], tmp_path: Path
) -> None:
    out = tmp_path / "run"
    command = ["train", *data, *TINY, "--rule", "bp", "--width", "0.25", "--out", str(out)]
    assert main([*command, "--snapshot-epochs", "0,2", "--snapshot-dtype", "bf16"]) == 0
    names = sorted(path.name for path in (out / "snapshots").iterdir())
    assert names == ["epoch-0000.safetensors", "epoch-0002.safetensors"]
    assert main(["train", "--resume", str(out), "--snapshot-epochs", "0,2"]) == 0
    assert main([*command, "--overwrite", "--snapshot-epochs", "1"]) == 0
    assert [path.name for path in (out / "snapshots").iterdir()] == ["epoch-0001.safetensors"]


def test_plan_prints_what_was_promised(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--architecture", "resnet110", "--rule", "auglocal", "--auxiliary-depth", "3"]
    assert main(["plan", *options, "--pyramid", "0.5", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    keys = {"architecture", "rule", "layers", "blocks", "auxiliaries", "parameters"}
    assert plan.keys() == keys
    assert plan["layers"][0].keys() == {"index", "name", "channels", "size"}
    assert plan["parameters"] == {"backbone": 1730714, "auxiliary": 7240702, "total": 8971416}
    assert main(["plan"]) == 0
    assert "resnet20 under auglocal" in capsys.readouterr().out


def test_plan_takes_every_rule_modules_and_width(capsys: pytest.CaptureFixture[str]) -> None:
    for rule in ("dgl", "predsim", "infopro", "linear"):
        assert main(["plan", "--rule", rule, "--modules", "4", "--width", "2", "--json"]) == 0
        plan = json.loads(capsys.readouterr().out)
        assert [len(block) for block in plan["blocks"]] == [3, 2, 2, 3]
        assert [row["layer"] for row in plan["auxiliaries"]] == [2, 4, 6]
        assert plan["layers"][0]["channels"] == 32
        assert all(row["selected"] == [] for row in plan["auxiliaries"])


def test_plan_of_bp_is_one_block(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--rule", "bp", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["blocks"] == [list(range(10))]
    assert plan["auxiliaries"] == []


def test_memory_prints_what_was_promised(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--image-size", "16", "--num-classes", "4", "--device", "cpu"]
    options += ["--rule", "linear", "--modules", "3", "--batch-size", "64", "--budget", "64 MiB"]
    assert main(["memory", *options, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    keys = {"architecture", "rule", "rule_options", "batch_size", "budget", "device", "rows"}
    assert document.keys() == keys
    assert document["budget"] == 64 * 2**20
    assert [row["precision"] for row in document["rows"]] == ["fp32"] * 6 + ["bf16"] * 6
    names = {"name", "rule", "precision", "recompute", "step_per_block", "segments"}
    names |= {"saved_tensors", "saved_tensors_ratio", "parameters", "gradients", "total"}
    names |= {"optimizer_state", "total_ratio", "flops", "flops_ratio", "largest_batch"}
    assert all(row.keys() == names | {"max_memory_allocated"} for row in document["rows"])
    first, rival, *others = document["rows"]
    assert first["rule"] == rival["rule"] == "bp"
    assert first["saved_tensors_ratio"] == first["total_ratio"] == first["flops_ratio"] == 1
    assert rival["segments"] > 1
    assert all(row["saved_tensors_ratio"] < 1 for row in others)
    for row in document["rows"]:
        parts = ("saved_tensors", "parameters", "gradients", "optimizer_state")
        assert row["total"] == sum(row[part] for part in parts)
        assert (row["largest_batch"] >= 64) == (row["total"] <= document["budget"])


def test_memory_prints_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--image-size", "16", "--device", "cpu", "--rule", "bp", "--budget", "2MB"]
    assert main(["memory", *options]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "training step of batch 32" in lines[0]
    assert [line.split()[0] for line in lines[3:]] == ["BP"] * 4
    assert all(line.endswith("none") for line in lines[3:])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--budget", "much"], "number of bytes above 0, not 'much'; give --budget 8GiB"),
        (["--budget", "8 parsecs"], "number of bytes above 0, not '8 parsecs'"),
        (["--budget", "0"], "number of bytes above 0, not '0'"),
        (["--num-classes", "1"], "at least 2 classes and images of 8 pixels"),
        (["--batch-size", "1"], "batch size must be at least 2"),
        (["--auxiliary-depth", "9"], "give a smaller auxiliary depth"),
    ],
)
def test_memory_refuses_wrong_input(
    options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["memory", *options]) == 2
    assert message in sentence(capsys)


@pytest.mark.parametrize(
    ("text", "size"),
    [("8GiB", 8 * 2**30), ("1.5 kb", 1500), ("1000000", 1_000_000), ("2TB", 2 * 10**12)],
)
def test_a_budget_is_read_in_bytes(text: str, size: int) -> None:
    assert parse_bytes(text) == size


def test_evaluate_agrees_with_the_accuracy_in_the_checkpoint(
    trained: Path, data: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = trained / "checkpoint.safetensors"
    assert main(["evaluate", str(checkpoint), *data, "--json"]) == 0
    outcome = json.loads(capsys.readouterr().out)
    assert outcome.keys() == {"accuracy", "low", "high", "samples", "split"}
    recorded = load_checkpoint(checkpoint).metadata.accuracy
    assert recorded is not None
    assert (outcome["accuracy"], outcome["samples"]) == (recorded["value"], recorded["samples"])
    assert outcome["low"] <= outcome["accuracy"] <= outcome["high"]
    assert main(["evaluate", str(checkpoint), *data, "--split", "train"]) == 0
    assert "48 images" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--dataset", "digits"], "tells 2 classes apart .* give --dataset"),
        (["--split", "dev"], "no split 'dev'; choose one of"),
    ],
)
def test_evaluate_refuses_what_does_not_fit(
    options: list[str],
    message: str,
    trained: Path,
    data: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["evaluate", str(trained / "checkpoint.safetensors"), *data, *options]) == 2
    assert re.search(message, sentence(capsys))


def test_evaluate_asks_for_data_that_the_checkpoint_cannot_name(
    trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", str(trained / "checkpoint.safetensors")]) == 2
    assert "not known by name here; give --dataset" in sentence(capsys)


def test_evaluate_says_that_its_default_data_are_the_checkpoints_own(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit):
        main(["evaluate", "--help"])
    said = " ".join(capsys.readouterr().out.split())
    assert "(default: the data that the checkpoint was trained on)" in said
    assert "data to train on" not in said
    assert "(default: digits)" not in said


def test_memory_shows_no_progress_before_it_refuses_an_image_size(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["memory", "--architecture", "vgg11", "--image-size", "8"]) == 2
    assert capsys.readouterr().err.startswith("auglocal: A VGG halves an image five times")


def test_evaluate_refuses_a_file_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", "nowhere.safetensors"]) == 2
    assert "There is no file nowhere.safetensors" in sentence(capsys)


def start(options: list[str]) -> subprocess.Popen[str]:
    """The command in a process of its own, on one thread."""
    return subprocess.Popen(
        [sys.executable, "-m", "auglocal", "train", *options],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for_epoch(path: Path, process: subprocess.Popen[str], epochs: int) -> None:
    """Wait until a run has recorded so many epochs."""
    metrics = path / "metrics.jsonl"
    while process.poll() is None:
        if metrics.exists() and metrics.read_text().count("\n") >= epochs:
            return
        time.sleep(0.01)


def test_a_run_killed_at_random_moments_ends_as_one_that_was_not(
    data: list[str], tmp_path: Path
) -> None:
    options = [*data, "--epochs", "10", "--batch-size", "12", "--device", "cpu"]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    process = start([*options, "--out", str(whole)])
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    draw = random.Random(0)
    command = [*options, "--out", str(killed)]
    for epoch in (1, 4, 7):
        process = start(command)
        wait_for_epoch(killed, process, epoch)
        time.sleep(draw.uniform(0, 0.3))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        command = ["--resume", str(killed)]
    assert process.returncode == -signal.SIGKILL
    process = start(command)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    names = ("checkpoint.safetensors",)
    assert [file_sha256(whole / name) for name in names] == [
        file_sha256(killed / name) for name in names
    ]


def test_ctrl_c_stops_after_the_batch_with_everything_saved(
    data: list[str], tmp_path: Path
) -> None:
    path = tmp_path / "run"
    process = start([*data, "--epochs", "500", "--device", "cpu", "--out", str(path)])
    wait_for_epoch(path, process, 1)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert f"go on with: python -m auglocal train --resume {path}" in errors
    assert "Traceback" not in errors
    assert (path / "resume.pt").exists()


def test_training_needs_neither_streamlit_nor_plotly() -> None:
    program = (
        "import sys; import auglocal.__main__; "
        "print([name for name in ('streamlit', 'plotly') if name in sys.modules])"
    )
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"


@pytest.mark.slow
def test_with_no_options_it_trains_auglocal_on_digits_to_95_percent(
    tmp_path: Path,
) -> None:
    assert main(["train"]) == 0
    path = tmp_path / "runs" / "digits-resnet20-auglocal-seed0" / "checkpoint.safetensors"
    metadata = load_checkpoint(path).metadata
    assert metadata.rule == "auglocal"
    assert metadata.accuracy is not None
    assert metadata.accuracy["value"] >= 0.95
