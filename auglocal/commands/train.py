"""`python -m auglocal train`: train a network, or go on training it, under a progress bar."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import time
from dataclasses import fields
from pathlib import Path
from typing import Any

from auglocal.acceleration import Stepper
from auglocal.commands.parallel import (
    add_parallel_options,
    refuse_idle_ranks,
    train_in_parallel,
)
from auglocal.commands.progress import train_with_progress
from auglocal.commands.seeds import check_new_seeds, resume_seeds, train_seeds
from auglocal.commands.shared import (
    DONE,
    add_config_options,
    check_start,
    chosen_config,
    default_out,
    report_skipped,
    resumed_config,
    say_outcome,
    whole_numbers,
)
from auglocal.config import TrainConfig
from auglocal.errors import InputError
from auglocal.material import Material, prepare_material
from auglocal.plan import make_plan
from auglocal.runs import RunFolder, create_run, open_run
from auglocal.series import is_series
from auglocal.step import memory_format
from auglocal.tensorboard_log import require_tensorboard
from auglocal.training import prepare_state


def add_train(commands: Any) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        "train",
        help="train a network and write a checkpoint",
        description="Train a network. With no options: AugLocal ResNet-20 on digits, two minutes.",
    )
    parser.set_defaults(command=run_train)
    parser.add_argument(
        "--recipe", metavar="NAME", help="start from a recipe (see `recipes`) or a .toml file"
    )
    parser.add_argument(
        "--seeds", type=whole_numbers, metavar="INT,INT,...", help="a run for each of these seeds"
    )
    add_config_options(parser, [item.name for item in fields(TrainConfig)])
    parser.add_argument("--out", type=Path, help="run folder (runs/DATASET-ARCHITECTURE-RULE-SEED)")
    parser.add_argument("--resume", type=Path, metavar="FOLDER", help="go on with this run")
    parser.add_argument("--overwrite", action="store_true", help="replace the run in --out")
    parser.add_argument("--download", action="store_true", help="fetch the data set if need be")
    parser.add_argument(
        "--dry-run", action="store_true", help="say what would be done and how long it would take"
    )
    parser.add_argument(
        "--tensorboard", action="store_true", help="log to the run folder's tensorboard/ too"
    )
    parser.add_argument("--json", action="store_true", help="print the outcome as JSON")
    add_parallel_options(parser)


def run_train(options: argparse.Namespace) -> int:
    """Train, or go on training; everything is saved when it ends, however it ends."""
    if options.tensorboard:
        require_tensorboard()
    if options.parallel is not None:
        return train_in_parallel(options)
    refuse_idle_ranks()
    if options.resume is not None:
        return _resume(options)
    if options.seeds is not None:
        check_new_seeds(options)
    config = TrainConfig(**chosen_config(options))
    out = default_out(config, options)
    if options.seeds is not None and not options.dry_run:
        return train_seeds(options, config, out)
    material = prepare_material(config, download=options.download)
    report_skipped(material.dataset)
    check_start(config, material)
    if options.dry_run:
        return _dry_run(config, material, options)
    folder = create_run(out, config, overwrite=options.overwrite)
    return _train(config, material, folder, options)


def _resume(options: argparse.Namespace) -> int:
    """Go on with a run, or with those of several seeds."""
    if options.out is not None or options.overwrite or options.dry_run:
        raise InputError("--resume stands alone; leave out --out, --overwrite and --dry-run.")
    if is_series(options.resume):
        return resume_seeds(options)
    if options.seeds is not None:
        raise InputError(f"{options.resume} holds no runs of several seeds; leave --seeds out.")
    folder, config = open_run(options.resume)
    config = resumed_config(options.resume, config, chosen_config(options))
    material = prepare_material(config, download=options.download)
    report_skipped(material.dataset)
    return _train(config, material, folder, options)


def _train(
    config: TrainConfig, material: Material, folder: RunFolder, options: argparse.Namespace
) -> int:
    finished = train_with_progress(config, material, folder, tensorboard=options.tensorboard)
    return say_outcome(folder, finished, options)


def _dry_run(config: TrainConfig, material: Material, options: argparse.Namespace) -> int:
    """Say what a run would do, and time three steps of it; nothing is written."""
    num_runs = 1 if options.seeds is None else len(options.seeds)
    steps = material.steps_per_epoch(config.batch_size) * config.epochs * num_runs
    plan = make_plan(
        config.architecture,
        config.rule,
        config.make_rule(),
        material.num_classes,
        material.input_size,
        config.width,
    )
    seconds = _seconds_per_step(config, material) * steps
    outcome = {
        "config": config.portable(),
        "out": str(default_out(config, options)),
        "training_images": len(material.training),
        "runs": num_runs,
        "steps": steps,
        "parameters": plan["parameters"],
        "blocks": len(plan["blocks"]),
        "estimated_seconds": round(seconds, 1),
    }
    if options.json:
        print(json.dumps(outcome))
        return DONE
    for name, value in {**outcome, **outcome["config"]}.items():
        if not isinstance(value, dict):
            print(f"{name.replace('_', ' '):<20} {value}")
    print(f"{'parameters':<20} {plan['parameters']['total']:,} with auxiliary networks")
    return DONE


def _seconds_per_step(config: TrainConfig, material: Material) -> float:
    """Seconds of one training step: the best of three, after one to warm up."""
    state = prepare_state(config, material, None)
    pixels, labels = next(material.training.batches(config.batch_size))
    images = material.normalise(pixels).to(memory_format=memory_format(config, material.device))
    seconds = []
    with contextlib.closing(Stepper(config, state, _warn)) as stepper:
        for _ in range(4):
            started = time.perf_counter()
            stepper.step(images, labels, 0.0)
            state.losses.tolist()  # waits for an accelerator
            seconds.append(time.perf_counter() - started)
    return min(seconds[1:])


def _warn(text: str) -> None:
    print(text, file=sys.stderr)
