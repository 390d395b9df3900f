"""TensorBoard: the numbers of metrics.jsonl, each epoch once; a sentence where it is missing."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from auglocal.__main__ import main
from auglocal.config import TrainConfig
from auglocal.errors import InputError
from auglocal.runs import RunFolder, append_metrics, create_run, read_metrics
from auglocal.tensorboard_log import require_tensorboard, scalars, tensorboard_log

LINE = {
    "epoch": 1,
    "losses": {"stem": 2.0, "head": 1.5},
    "test_accuracy": 0.25,
    "peak_memory": None,
}


class RecordingWriter:
    """Stands for PyTorch's SummaryWriter."""

    written: list[tuple[str, float, int]] = []  # noqa: RUF012

    def __init__(self, log_dir: str) -> None:
        self.folder = Path(log_dir)
        self.folder.mkdir(exist_ok=True)
        (self.folder / "events.out.tfevents.new").touch()

    def add_scalar(self, tag: str, value: float, global_step: int) -> None:
        self.written.append((tag, value, global_step))

    def flush(self) -> None:
        pass

    def close(self) -> None:
        pass


def test_each_number_has_its_tag_and_blocks_have_one_each() -> None:
    expected = {"losses/stem": 2.0, "losses/head": 1.5, "test_accuracy": 0.25}
    assert dict(scalars(LINE)) == expected


def test_every_epoch_is_logged_once_also_those_from_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("auglocal.tensorboard_log.require_tensorboard", lambda: RecordingWriter)
    monkeypatch.setattr(RecordingWriter, "written", [])
    folder = create_run(tmp_path / "run", TrainConfig(), overwrite=False)
    append_metrics(folder, LINE)
    folder.tensorboard.mkdir()
    (folder.tensorboard / "events.out.tfevents.old").touch()
    with tensorboard_log(folder) as log_new_epochs:
        append_metrics(folder, {**LINE, "epoch": 2})
        log_new_epochs()
        append_metrics(folder, {**LINE, "epoch": 3})
    steps = [step for tag, _, step in RecordingWriter.written if tag == "losses/stem"]
    assert steps == [1, 2, 3]
    assert [path.suffix for path in folder.tensorboard.iterdir()] == [".new"]


def test_without_tensorboard_a_sentence_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(InputError, match="not installed; pip install tensorboard, or leave out"):
        require_tensorboard()
    assert main(["train", "--tensorboard", "--out", str(tmp_path / "run")]) == 2
    assert "pip install tensorboard" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.filterwarnings("default")  # TensorBoard's own
def test_a_run_is_read_back_from_its_event_files(image_folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    out = tmp_path / "run"
    command = ["train", "--dataset", f"imagefolder:{image_folder}", "--rule", "bp"]
    command += ["--width", "0.25", "--epochs", "2", "--batch-size", "12", "--device", "cpu"]
    assert main([*command, "--tensorboard", "--out", str(out)]) == 0
    events = EventAccumulator(str(out / "tensorboard"))
    events.Reload()
    lines = read_metrics(RunFolder(out))
    for tag in ("test_accuracy", "losses/head", "test_local_accuracies/head"):
        name, _, block = tag.partition("/")
        recorded = [line[name] for line in lines if name in line]
        expected = [value[block] if block else value for value in recorded]
        assert [event.value for event in events.Scalars(tag)] == pytest.approx(expected)
    assert json.loads((out / "config.json").read_text())["epochs"] == 2
