"""The run folder: what a training run leaves on disk, and how it is read back.

config.json              the configuration
metrics.jsonl            a line an epoch
checkpoint.safetensors   the network after the last epoch
best.safetensors         the network of the best validation accuracy, where images are held out
snapshots/epoch-*        the backbone after the epochs that were asked for
tensorboard/             the same numbers as metrics.jsonl for TensorBoard, where asked for
resume.pt                all that going on needs; it is written last, and so commits an epoch
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from auglocal.config import TrainConfig, config_from_json
from auglocal.errors import InputError, writing
from auglocal.files import write_whole

OWN_FILES = (
    "config.json",
    "metrics.jsonl",
    "checkpoint.safetensors",
    "best.safetensors",
    "resume.pt",
)
# What is in folders of its own.
OWN_PATTERNS = ("snapshots/epoch-*.safetensors", "tensorboard/events.out.tfevents.*")
SERIES_FILE = "summary.json"


@dataclass(frozen=True)
class RunFolder:
    """Paths of a run's files."""

    path: Path

    @property
    def config(self) -> Path:
        """The configuration."""
        return self.path / "config.json"

    @property
    def metrics(self) -> Path:
        """A JSON line an epoch."""
        return self.path / "metrics.jsonl"

    @property
    def checkpoint(self) -> Path:
        """The network after the last epoch."""
        return self.path / "checkpoint.safetensors"

    @property
    def best(self) -> Path:
        """The network of the best validation accuracy."""
        return self.path / "best.safetensors"

    def snapshot(self, epoch: int) -> Path:
        """The backbone after an epoch; 0 is the untrained one."""
        return self.path / "snapshots" / f"epoch-{epoch:04d}.safetensors"

    @property
    def tensorboard(self) -> Path:
        """What TensorBoard reads."""
        return self.path / "tensorboard"

    @property
    def resume(self) -> Path:
        """All that going on needs."""
        return self.path / "resume.pt"


def create_run(path: Path, config: TrainConfig, *, overwrite: bool) -> RunFolder:
    """Make a folder for a new run.

    Raises:
        InputError: it already holds a run, and `overwrite` is False; or it is no folder.
        WorkError: it cannot be written.
    """
    folder = RunFolder(path)
    if path.exists() and not path.is_dir():
        raise InputError(f"{path} is a file; give --out a folder.")
    if folder.config.exists() and not overwrite:
        raise InputError(
            f"{path} already holds a run; give --resume {path} to go on with it, --overwrite to "
            "start again, or another --out."
        )
    if (path / SERIES_FILE).exists():
        raise InputError(
            f"{path} holds the runs of several seeds; give --resume {path} to go on with them, or "
            "another --out."
        )
    with writing(path):
        path.mkdir(parents=True, exist_ok=True)
        remove_run(path)
    write_whole(folder.config, config.to_json().encode())
    return folder


def remove_run(path: Path) -> None:
    """Delete a run's own files from its folder, and what a crash left half written."""
    remove_leftovers(path)
    # The commit point goes first: half an old run must never look like a new one.
    for name in reversed(OWN_FILES):
        (path / name).unlink(missing_ok=True)
    for pattern in OWN_PATTERNS:
        for file in path.glob(pattern):
            file.unlink(missing_ok=True)


def remove_leftovers(path: Path) -> None:
    """Delete the temporary files that a killed process left in a run folder."""
    for name in (*OWN_FILES, "snapshots/epoch-*.safetensors"):
        folder, _, file_name = name.rpartition("/")
        for file in (path / folder).glob(f".{file_name}.*"):
            file.unlink(missing_ok=True)


def open_run(path: Path, **changes: Any) -> tuple[RunFolder, TrainConfig]:
    """Open an existing run's folder, with some fields of its configuration changed.

    Raises:
        InputError: it holds no run, or its configuration is damaged.
    """
    folder = RunFolder(path)
    try:
        text = folder.config.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"{path} holds no run (it has no readable config.json); give the folder that --out "
            "named."
        ) from error
    return folder, config_from_json(text, **changes)


def read_metrics(folder: RunFolder) -> list[dict[str, Any]]:
    """The epochs recorded so far; a last line cut short by a crash is left out."""
    if not folder.metrics.exists():
        return []
    lines = []
    for line in folder.metrics.read_text().splitlines():
        try:
            lines.append(json.loads(line))
        except ValueError:
            break
    return lines


def append_metrics(folder: RunFolder, line: Mapping[str, Any]) -> None:
    """Record an epoch."""
    with writing(folder.metrics), folder.metrics.open("a") as file:
        file.write(json.dumps(line) + "\n")


def cut_metrics(folder: RunFolder, epoch: int) -> None:
    """Drop records after `epoch`, which resuming will make again."""
    kept = [line for line in read_metrics(folder) if line["epoch"] <= epoch]
    text = "".join(json.dumps(line) + "\n" for line in kept)
    write_whole(folder.metrics, text.encode())


def save_state(folder: RunFolder, state: Mapping[str, Any]) -> None:
    """Write tensors and plain values to resume.pt: from here on the run can go on."""
    import torch

    buffer = io.BytesIO()
    torch.save(dict(state), buffer)
    write_whole(folder.resume, buffer.getvalue())


def load_state(folder: RunFolder) -> dict[str, Any] | None:
    """Read resume.pt without running code from it; None if the run never got that far.

    Raises:
        InputError: the file is damaged.
    """
    import torch

    if not folder.resume.exists():
        return None
    try:
        state: dict[str, Any] = torch.load(folder.resume, map_location="cpu", weights_only=True)
    except Exception as error:  # PyTorch's reader meets damage with errors of a dozen kinds
        raise InputError(
            f"{folder.resume} is damaged; start again with --overwrite, or restore the file."
        ) from error
    return state
