"""`python -m analysis dynamics RUN...`: the layers of a run's snapshots, epoch by epoch."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from analysis.commands.measure import add_study_options, run_and_save
from analysis.dynamics import DynamicsMap, dynamics_maps
from analysis.errors import InputError
from analysis.study import load_study
from analysis.tables import aligned

NO_SHUFFLES = 0  # a null level for each of so many pairs would cost more than all the rest


def add_dynamics(commands: Any) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        "dynamics",
        help="the same measures along training, of a run's snapshots",
        description="Each layer after each epoch of which a run kept a snapshot, against the run's "
        "own end and the other runs' ends.",
    )
    parser.set_defaults(command=run_dynamics)
    parser.add_argument(
        "runs", type=Path, nargs="+", metavar="RUN", help="run folders with snapshots/"
    )
    add_study_options(parser, measures=("cka", "probe"))
    parser.set_defaults(num_shuffles=NO_SHUFFLES)


def run_dynamics(options: argparse.Namespace) -> int:
    """Find the snapshots, run the study, and print the maps; the exit status."""
    options.checkpoints = [path for run in options.runs for path in snapshots(run)]
    _take_data_from(options.runs[0], options)
    status = run_and_save(options)
    if not options.json and options.out.is_file():
        for part in dynamics_maps(load_study(options.out)):
            print(f"\n{map_table(part)}")
    return status


def _take_data_from(run: Path, options: argparse.Namespace) -> None:
    """Measure on the data that the first run names, where nothing else was asked for."""
    if options.dataset is not None:
        return
    try:
        config = json.loads((run / "config.json").read_text(encoding="utf-8"))
        values = {name: config.get(name) for name in ("dataset", "dataset_title", "image_size")}
    except (OSError, ValueError, AttributeError):
        return  # the checkpoints may name it
    options.dataset = values["dataset"]
    options.dataset_title = options.dataset_title or values["dataset_title"]
    options.image_size = options.image_size or values["image_size"]


def snapshots(run: Path) -> list[Path]:
    """The checkpoints of a run, first epoch to last.

    Raises:
        InputError: the folder is no run, or kept no snapshots.
    """
    if not run.is_dir():
        raise InputError(f"There is no run folder {run}; give one that `auglocal train` wrote.")
    found = sorted(
        (run / "snapshots").glob("epoch-*.safetensors"),
        key=lambda path: int("".join(filter(str.isdigit, path.stem)) or 0),
    )
    if len(found) < 2:
        raise InputError(
            f"{run} kept {len(found)} snapshots, and a development needs 2; train with "
            "--snapshot-epochs 0,1,2,4,8, say."
        )
    return found


def map_table(part: DynamicsMap) -> str:
    """Lay out a map, a row an epoch and a column a layer."""
    rows = [("epoch", *part.layers)]
    for epoch, values in zip(part.trajectory.epochs, part.values, strict=True):
        rows.append((str(epoch), *("-" if np.isnan(v) else f"{v:.3f}" for v in values)))
    return f"{part.title}: {part.trajectory.title}\n{aligned(rows)}"
