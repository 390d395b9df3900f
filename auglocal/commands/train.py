"""`python -m auglocal train`: train a network, or go on training it, under a progress bar."""

from __future__ import annotations

import argparse
import json
import signal
import sys
import time
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from auglocal.backbones.registry import build_meta_backbone
from auglocal.commands.shared import DONE, INTERRUPTED, add_config_options, given_config
from auglocal.config import TrainConfig
from auglocal.errors import InputError
from auglocal.plan import make_plan
from auglocal.pretrained import has_classifier, read_pretrained
from auglocal.runs import RunFolder, create_run, open_run, read_metrics
from auglocal.training import (
    Listener,
    Material,
    StepReport,
    prepare_material,
    prepare_state,
    step_options,
    train,
    train_step,
)

# What may differ when a run goes on: where and in how much memory it computes, and where its data
# lies, not what it learns.
RESUMABLE = ("device", "data_folder", "recompute", "step_per_block")


def add_train(commands: Any) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        "train",
        help="train a network and write a checkpoint",
        description="Train a network. With no options: AugLocal ResNet-20 on digits, two minutes.",
    )
    parser.set_defaults(command=run_train)
    add_config_options(parser, [item.name for item in fields(TrainConfig)])
    parser.add_argument("--out", type=Path, help="run folder (runs/DATASET-ARCHITECTURE-RULE-SEED)")
    parser.add_argument("--resume", type=Path, metavar="FOLDER", help="go on with this run")
    parser.add_argument("--overwrite", action="store_true", help="replace the run in --out")
    parser.add_argument("--download", action="store_true", help="fetch the data set if need be")
    parser.add_argument(
        "--dry-run", action="store_true", help="say what would be done and how long it would take"
    )
    parser.add_argument("--json", action="store_true", help="print the outcome as JSON")


def run_train(options: argparse.Namespace) -> int:
    """Train, or go on training; everything is saved when it ends, however it ends."""
    if options.resume is not None:
        folder, config = _resumed_run(options)
        material = prepare_material(config, download=options.download)
    else:
        config = TrainConfig(**given_config(options))
        material = prepare_material(config, download=options.download)
        _check_start(config, material)
        if options.dry_run:
            return _dry_run(config, material, options)
        folder = create_run(_out_folder(config, options), config, overwrite=options.overwrite)
    finished = _train_with_progress(config, material, folder)
    return _say_outcome(folder, finished, options)


def _resumed_run(options: argparse.Namespace) -> tuple[RunFolder, TrainConfig]:
    """The run to go on with; refuses options that would make it another run."""
    if options.out is not None or options.overwrite or options.dry_run:
        raise InputError("--resume stands alone; leave out --out, --overwrite and --dry-run.")
    given = given_config(options)
    folder, config = open_run(options.resume)
    for name, value in given.items():
        if name not in RESUMABLE and value != getattr(config, name):
            raise InputError(
                f"The run in {options.resume} has {name} {getattr(config, name)}, not {value}; "
                "leave the option out, or start a new run."
            )
    return folder, replace(config, **{name: given[name] for name in RESUMABLE if name in given})


def _check_start(config: TrainConfig, material: Material) -> None:
    """Refuse images or weights that do not fit the backbone before a folder is made."""
    backbone = build_meta_backbone(
        config.architecture, material.num_classes, material.input_size, config.width
    )
    if config.pretrained is None:
        return
    if not has_classifier(read_pretrained(backbone, config.architecture, config.pretrained)):
        print(
            f"auglocal train: the classifier starts fresh, since {Path(config.pretrained).name} "
            f"has not {material.num_classes} classes.",
            file=sys.stderr,
        )


def _out_folder(config: TrainConfig, options: argparse.Namespace) -> Path:
    if options.out is not None:
        return Path(options.out)
    data = Path(config.dataset.partition(":")[2] or config.dataset).name
    return Path("runs") / f"{data}-{config.architecture}-{config.rule}-seed{config.seed}"


def _train_with_progress(config: TrainConfig, material: Material, folder: RunFolder) -> bool:
    """Train under a progress bar; Ctrl-C (or SIGTERM) stops after the batch in progress."""
    stop_requests: list[int] = []

    def request_stop(number: int, frame: object) -> None:
        if stop_requests:
            raise KeyboardInterrupt
        stop_requests.append(number)

    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number in handlers:
        signal.signal(number, request_stop)
    try:
        with tqdm(unit="step", dynamic_ncols=True, file=sys.stderr) as bar:
            listener = Listener(
                on_step=lambda report: _show_step(bar, report),
                on_epoch=lambda metrics: bar.write(_epoch_line(config, metrics), file=sys.stderr),
                should_stop=lambda: bool(stop_requests),
            )
            return train(config, material, folder, listener)
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _show_step(bar: Any, report: StepReport) -> None:
    """Move the bar; the time left is the bar's own estimate."""
    if bar.total != report.steps:
        bar.total = report.steps
        bar.initial = bar.n = report.step - 1
    bar.set_description(f"epoch {report.epoch}/{report.epochs}", refresh=False)
    if report.loss is not None:
        bar.set_postfix_str(
            f"loss {report.loss:.3f}, accuracy {report.accuracy:.1%}, "
            f"{report.images_per_second:,.0f} images/s",
            refresh=False,
        )
    bar.update(report.step - bar.n)


def _epoch_line(config: TrainConfig, metrics: dict[str, Any]) -> str:
    """One line a finished epoch."""
    shown = [f"epoch {metrics['epoch']:>3}/{config.epochs}"]
    shown.append(f"loss {list(metrics['losses'].values())[-1]:.4f}")
    shown.append(f"training {list(metrics['accuracies'].values())[-1]:.1%}")
    for split in ("validation", "test"):
        if f"{split}_accuracy" in metrics:
            shown.append(f"{split} {metrics[f'{split}_accuracy']:.1%}")
    shown.append(f"{metrics['images_per_second']:,.0f} images/s")
    return "  ".join(shown)


def _say_outcome(folder: RunFolder, finished: bool, options: argparse.Namespace) -> int:
    """Print what came out, and how to go on."""
    lines = read_metrics(folder)
    outcome = {
        "run": str(folder.path),
        "finished": finished,
        "checkpoint": str(folder.checkpoint) if folder.checkpoint.exists() else None,
        "metrics": lines[-1] if lines else None,
    }
    if options.json:
        print(json.dumps(outcome))
    elif lines:
        print(f"test accuracy {lines[-1]['test_accuracy']:.4f} after epoch {lines[-1]['epoch']}")
        print(f"checkpoint    {folder.checkpoint}")
    if finished:
        return DONE
    print(
        f"Stopped with everything saved; go on with: python -m auglocal train --resume "
        f"{folder.path}",
        file=sys.stderr,
    )
    return INTERRUPTED


def _dry_run(config: TrainConfig, material: Material, options: argparse.Namespace) -> int:
    """Say what a run would do, and time three steps of it; nothing is written."""
    steps = material.steps_per_epoch(config.batch_size)
    plan = make_plan(
        config.architecture,
        config.rule,
        config.make_rule(),
        material.num_classes,
        material.input_size,
        config.width,
    )
    seconds = _seconds_per_step(config, material) * steps * config.epochs
    outcome = {
        "config": config.portable(),
        "out": str(_out_folder(config, options)),
        "training_images": len(material.splits["train"].images),
        "steps": steps * config.epochs,
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
    split = material.splits["train"]
    state = prepare_state(config, material, None)
    pixels, labels = split.images[: config.batch_size], split.labels[: config.batch_size]
    images = material.normalise(pixels)
    seconds = []
    for _ in range(4):
        started = time.perf_counter()
        train_step(state, images, labels, 0.0, **step_options(config))
        state.losses.tolist()  # waits for an accelerator
        seconds.append(time.perf_counter() - started)
    return min(seconds[1:])
