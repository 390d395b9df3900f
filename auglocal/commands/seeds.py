"""`python -m auglocal train --seeds`: one run after another, and what came out of all of them."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path

from auglocal.commands.progress import train_with_progress
from auglocal.commands.shared import (
    DONE,
    INTERRUPTED,
    check_start,
    chosen_config,
    report_skipped,
    resumed_config,
)
from auglocal.config import TrainConfig
from auglocal.errors import InputError
from auglocal.material import Material, prepare_material
from auglocal.series import (
    Series,
    check_seeds,
    create_series,
    open_series,
    start_run,
    summarise,
    summary_table,
    write_summary,
)


def check_new_seeds(options: argparse.Namespace) -> None:
    """Refuse seeds that name no runs, and --seed beside --seeds."""
    check_seeds(options.seeds)
    if hasattr(options, "seed"):
        raise InputError("--seeds names every run's seed; leave --seed out.")


def train_seeds(options: argparse.Namespace, config: TrainConfig, out: Path) -> int:
    """Train a run for each of `options.seeds`, in `out`."""
    material = prepare_material(config, download=options.download)
    check_start(config, material)
    series = create_series(out, config, options.seeds, overwrite=options.overwrite)
    return _train_series(series, material, options)


def resume_seeds(options: argparse.Namespace) -> int:
    """Go on with the runs in `options.resume` that are not finished."""
    series = _resumed_series(options)
    material = prepare_material(series.config, download=options.download)
    return _train_series(series, material, options)


def _train_series(series: Series, material: Material, options: argparse.Namespace) -> int:
    """One run after another; those that are finished already change nothing."""
    report_skipped(material.dataset)
    finished = True
    for position, seed in enumerate(series.seeds, start=1):
        folder = start_run(series, seed)
        print(f"seed {seed}, run {position} of {len(series.seeds)}", file=sys.stderr)
        finished = train_with_progress(
            series.run_config(seed), material, folder, tensorboard=options.tensorboard
        )
        write_summary(series)
        if not finished:
            break
    return _say_outcome(series, finished, options)


def _resumed_series(options: argparse.Namespace) -> Series:
    """The series to go on with; refuses options that would make it another."""
    series = open_series(options.resume)
    if options.seeds not in (None, series.seeds):
        stored = ",".join(str(seed) for seed in series.seeds)
        raise InputError(
            f"The runs in {options.resume} have the seeds {stored}; leave --seeds out, or start "
            "new runs."
        )
    if hasattr(options, "seed"):
        raise InputError(
            f"{options.resume} holds the runs of several seeds; leave --seed out, or give --resume "
            f"{options.resume / 'seed-N'} for one of them."
        )
    given = {name: value for name, value in chosen_config(options).items() if name != "seed"}
    return replace(series, config=resumed_config(options.resume, series.config, given))


def _say_outcome(series: Series, finished: bool, options: argparse.Namespace) -> int:
    """Print what came out of all runs, and how to go on."""
    summary = summarise(series)
    if options.json:
        print(json.dumps({"out": str(series.path), "finished": finished, **summary}))
    else:
        print(summary_table(summary))
    if finished:
        return DONE
    print(
        f"Stopped with everything saved; go on with: python -m auglocal train --resume "
        f"{series.path}",
        file=sys.stderr,
    )
    return INTERRUPTED
