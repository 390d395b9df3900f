"""Runs in, words, tables and plain figures out, for the page that trains."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from analysis.figures import rule_title
from app import texts
from app.sources import training
from app.sources.training import Progress, Run

INFOPRO_WEIGHTS = (
    "reconstruction_first",
    "reconstruction_last",
    "cross_entropy_first",
    "cross_entropy_last",
)
# Fields of TrainConfig as the form groups them; the first ones of each are always in sight.
GROUPS: dict[str, tuple[str, ...]] = {
    "Data": (
        "image_size",
        "dataset_title",
        "validation_samples",
        "augment",
        "augmentation",
        "skip_corrupt",
        "data_folder",
    ),
    "Network": ("width", "pretrained"),
    "Rule": (
        "tail",
        "modules",
        "local_loss",
        "selection",
        "selection_seed",
        *INFOPRO_WEIGHTS,
    ),
    "Schedule": (
        "schedule",
        "momentum",
        "weight_decay",
        "accumulate",
        "snapshot_epochs",
        "snapshot_dtype",
    ),
    "Machine": (
        "precision",
        "channels_last",
        "recompute",
        "step_per_block",
        "block_threads",
        "sync_batch_norm",
        "compile",
        "cuda_graph",
        "stream",
        "workers",
        "device",
    ),
}
IN_SIGHT = (
    "dataset",
    "architecture",
    "rule",
    "auxiliary_depth",
    "pyramid",
    "epochs",
    "batch_size",
    "learning_rate",
    "seed",
)
STATE_WORDS = {
    training.RUNNING: "running",
    training.STOPPING: "stopping after this step",
    training.FINISHED: "finished",
    training.STOPPED: "stopped, can go on",
    training.FAILED: "failed",
    training.INTERRUPTED: "interrupted, can go on",
}


def field_title(name: str) -> str:
    """The name of a field of `TrainConfig` as a label."""
    words = name.replace("_", " ")
    return words[0].upper() + words[1:]


def run_line(run: Run) -> str:
    """A run's state and what it trains; markdown-safe."""
    data = texts.plain(str(run.values.get("dataset", "")))
    what = f"{rule_title(str(run.values.get('rule', '')))}, {run.values.get('architecture', '')}"
    return f"**{STATE_WORDS[run.state].capitalize()}**: {texts.plain(what)} on {data}"


def run_rows(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Runs as a table, one line each."""
    return [
        {
            "Name": run.name,
            "State": STATE_WORDS[run.state],
            "Rule": rule_title(str(run.values.get("rule", ""))),
            "Architecture": run.values.get("architecture", ""),
            "Data": run.values.get("dataset", ""),
            "Epochs": f"{run.epoch} of {run.epochs}",
            "Test accuracy": "" if run.test_accuracy is None else texts.percent(run.test_accuracy),
            "Started": moment(run.started),
        }
        for run in runs
    ]


def moment(text: str) -> str:
    """A date and time as this machine's user reads it."""
    try:
        return datetime.fromisoformat(text).astimezone().strftime("%Y-%m-%d %H:%M")
    except ValueError:
        return ""


def last_value(lines: Sequence[Mapping[str, Any]], name: str) -> Any:
    """A value of the last epoch, None before there is one."""
    return lines[-1].get(name) if lines else None


def memory(num_bytes: int | None) -> str:
    """Peak memory as people read it."""
    return "not known" if num_bytes is None else f"{num_bytes / 2**20:,.0f} MiB"


@dataclass(frozen=True)
class Forecast:
    """What a dry run said, in words."""

    steps: str
    images: str
    parameters: str
    time: str


def forecast(outcome: Mapping[str, Any]) -> Forecast:
    """Words for what `auglocal train --dry-run --json` prints."""
    return Forecast(
        steps=f"{outcome['steps']:,}",
        images=f"{outcome['training_images']:,}",
        parameters=f"{outcome['parameters']['total']:,}",
        time=long_duration(outcome["estimated_seconds"]),
    )


def long_duration(seconds: float) -> str:
    """Seconds as people say them, up to days."""
    if seconds < 5400:
        return texts.duration(seconds)
    hours = seconds / 3600
    return f"{hours:.1f} h" if hours < 48 else f"{hours / 24:.1f} days"


def progress_text(progress: Progress) -> str:
    """Where a run is, in a line."""
    text = f"Step {progress.step:,} of {progress.steps:,}"
    return f"{text}, about {progress.left} left" if progress.left else text


def metrics_csv(lines: Sequence[Mapping[str, Any]]) -> str:
    """The epochs as CSV; losses and accuracies by block in columns of their own."""
    rows = [_flat(line) for line in lines]
    names = list(dict.fromkeys(name for row in rows for name in row))
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue()


def _flat(line: Mapping[str, Any]) -> dict[str, Any]:
    """An epoch's line with a name for every number."""
    row: dict[str, Any] = {}
    for name, value in line.items():
        if isinstance(value, Mapping):
            row.update({f"{name}.{block}": part for block, part in value.items()})
        else:
            row[name] = value
    return row
