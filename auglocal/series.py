"""A series: runs that differ in their seed only, and what came out of them.

summary.json   configuration, seeds, each run's test accuracy, their mean and standard deviation
seed-N/        the run folder of seed N
"""

from __future__ import annotations

import contextlib
import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from auglocal.config import TrainConfig, typed_values
from auglocal.errors import InputError, writing
from auglocal.files import write_whole
from auglocal.runs import SERIES_FILE, RunFolder, create_run, open_run, read_metrics, remove_run

FORMAT_VERSION = 1


@dataclass(frozen=True)
class Series:
    """Where the runs are, what they share, and their seeds."""

    path: Path
    config: TrainConfig
    seeds: tuple[int, ...]

    def run_config(self, seed: int) -> TrainConfig:
        """The configuration of one run."""
        return replace(self.config, seed=seed)

    def run_folder(self, seed: int) -> RunFolder:
        """The folder of one run."""
        return RunFolder(self.path / f"seed-{seed}")


def is_series(path: Path) -> bool:
    """Whether a folder holds a series."""
    return (path / SERIES_FILE).exists()


def check_seeds(seeds: Sequence[int]) -> None:
    """Refuse no seeds, negative ones and such that come twice.

    Raises:
        InputError: saying what is wrong.
    """
    if not seeds or min(seeds) < 0 or len(set(seeds)) < len(seeds):
        given = ",".join(str(seed) for seed in seeds)
        raise InputError(
            f"Seeds are whole numbers from 0 on, each once, not {given!r}; give --seeds 0,1,2, say."
        )


def create_series(
    path: Path, config: TrainConfig, seeds: Sequence[int], *, overwrite: bool
) -> Series:
    """Make a folder for new runs; nothing but its summary is written yet.

    Raises:
        InputError: it holds other runs, and `overwrite` is False; or a single run; or it is no
            folder.
        WorkError: it cannot be written.
    """
    series = Series(path, config, tuple(seeds))
    if path.exists() and not path.is_dir():
        raise InputError(f"{path} is a file; give --out a folder.")
    if RunFolder(path).config.exists():
        raise InputError(f"{path} holds a single run; give another --out for several seeds.")
    old_runs = [RunFolder(folder) for folder in path.glob("seed-*")]
    if not overwrite and (is_series(path) or any(run.config.exists() for run in old_runs)):
        raise InputError(
            f"{path} already holds runs of several seeds; give --resume {path} to go on with them, "
            "--overwrite to start again, or another --out."
        )
    with writing(path):
        path.mkdir(parents=True, exist_ok=True)
        (path / SERIES_FILE).unlink(missing_ok=True)
        for run in old_runs:
            remove_run(run.path)
            with contextlib.suppress(OSError):  # not empty: what we did not write stays
                run.path.rmdir()
    write_summary(series)
    return series


def open_series(path: Path) -> Series:
    """Open the folder of an existing series.

    Raises:
        InputError: its summary is damaged.
    """
    try:
        summary = json.loads((path / SERIES_FILE).read_text())
        if summary["format_version"] > FORMAT_VERSION:
            raise InputError(
                f"{path / SERIES_FILE} has format {summary['format_version']}, newer than this "
                f"version reads ({FORMAT_VERSION}); update auglocal."
            )
        seeds = tuple(int(seed) for seed in summary["seeds"])
        check_seeds(seeds)
        return Series(path, TrainConfig(**typed_values(summary["config"])), seeds)
    except (OSError, ValueError, TypeError, KeyError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"{path / SERIES_FILE} is damaged ({error}); start again with --overwrite."
        ) from error


def start_run(series: Series, seed: int) -> RunFolder:
    """The folder of one run, made if it is not there.

    Raises:
        InputError: it holds a run of another configuration.
    """
    folder = series.run_folder(seed)
    if not folder.config.exists():
        return create_run(folder.path, series.run_config(seed), overwrite=False)
    found = open_run(folder.path)[1].portable()
    for name, value in series.run_config(seed).portable().items():
        if found[name] != value:
            raise InputError(
                f"The run in {folder.path} has {name} {found[name]!r} and its series has "
                f"{value!r}; restore its config.json, or start again with --overwrite."
            )
    return folder


def write_summary(series: Series) -> dict[str, Any]:
    """Sum up what there is so far, and write it to summary.json."""
    summary = summarise(series)
    write_whole(series.path / SERIES_FILE, (json.dumps(summary, indent=2) + "\n").encode())
    return summary


def summarise(series: Series) -> dict[str, Any]:
    """What came out so far, as plain values.

    Returns:
        {"format_version", "seeds", "config" (without the seed), "runs": [{"seed", "run" (its
        folder's name), "epoch", "finished", "test_accuracy" (fraction, None before it is
        finished)}], "test_accuracy": {"runs" (n, finished ones), "mean", "standard_deviation"
        (with n - 1), "reason" (why one of them is None)}}.
    """
    config = asdict(series.config)
    del config["seed"]
    runs = [_run_summary(series, seed) for seed in series.seeds]
    return {
        "format_version": FORMAT_VERSION,
        "seeds": list(series.seeds),
        "config": config,
        "runs": runs,
        "test_accuracy": spread([run["test_accuracy"] for run in runs if run["finished"]]),
    }


def _run_summary(series: Series, seed: int) -> dict[str, Any]:
    folder = series.run_folder(seed)
    lines = read_metrics(folder)
    finished = bool(lines) and lines[-1]["epoch"] == series.config.epochs
    return {
        "seed": seed,
        "run": folder.path.name,
        "epoch": lines[-1]["epoch"] if lines else 0,
        "finished": finished,
        "test_accuracy": lines[-1]["test_accuracy"] if finished else None,
    }


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Mean and sample standard deviation, sqrt(sum (x - mean)^2 / (n - 1)), of n values.

    Returns:
        {"runs": n, "mean", "standard_deviation", "reason"}; what n is too small for is None.
    """
    reason = {0: "no run is finished", 1: "one run has no deviation"}.get(len(values))
    return {
        "runs": len(values),
        "mean": statistics.mean(values) if values else None,
        "standard_deviation": statistics.stdev(values) if len(values) > 1 else None,
        "reason": reason,
    }


def summary_table(summary: dict[str, Any]) -> str:
    """A summary as a table that a person reads."""
    epochs = summary["config"]["epochs"]
    lines = [f"{'seed':>10}  {'epochs':>9}  {'test accuracy':>13}"]
    for run in summary["runs"]:
        value = "unfinished" if run["test_accuracy"] is None else f"{run['test_accuracy']:.4f}"
        progress = f"{run['epoch']}/{epochs}"
        lines.append(f"{run['seed']:>10}  {progress:>9}  {value:>13}")
    overall = summary["test_accuracy"]
    for name, key in (("mean", "mean"), ("deviation", "standard_deviation")):
        value = f"none: {overall['reason']}" if overall[key] is None else f"{overall[key]:.4f}"
        lines.append(f"{name:>10}  {'':>9}  {value:>13}")
    return "\n".join(lines)
