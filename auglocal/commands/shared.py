"""What the commands of this project share: options, one-sentence errors, exit statuses."""

from __future__ import annotations

import argparse
import json
import os
import sys
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, NoReturn, get_args, get_type_hints

import torch

from auglocal.auxiliary import SELECTIONS
from auglocal.backbones.registry import BACKBONES, build_meta_backbone
from auglocal.config import MAY_CHANGE, TrainConfig
from auglocal.data import SOURCES, Dataset
from auglocal.errors import InputError, WorkError
from auglocal.material import Material
from auglocal.pretrained import read_pretrained
from auglocal.recipe import read_recipe
from auglocal.rules.auglocal import LOCAL_LOSSES
from auglocal.rules.registry import RULES
from auglocal.runs import RunFolder, read_metrics

DONE, FAILED, WRONG_INPUT, INTERRUPTED = 0, 1, 2, 130
CHOICES = {
    "architecture": tuple(BACKBONES),
    "rule": tuple(RULES),
    "local_loss": tuple(LOCAL_LOSSES),
    "selection": tuple(SELECTIONS),
    "dataset": (*SOURCES, "imagefolder:PATH"),
}


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one sentence."""

    def error(self, message: str) -> NoReturn:
        """Say what is wrong with the arguments and where help is, then exit with status 2."""
        print(f"{self.prog}: {message}; see {self.prog} --help.", file=sys.stderr)
        raise SystemExit(WRONG_INPUT)


def run_command(command: Callable[[], int], program: str) -> int:
    """Run a command and turn the errors that users meet into one sentence and an exit status."""
    try:
        status = command()
        sys.stdout.flush()
        return status
    except BrokenPipeError:  # `head` or a pager has closed the pipe: forget what is left to print
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except InputError as error:
        print(f"{program}: {error}", file=sys.stderr)
        return WRONG_INPUT
    except WorkError as error:
        print(f"{program}: {error}", file=sys.stderr)
        return FAILED
    except torch.OutOfMemoryError:
        print(
            f"{program}: The GPU ran out of memory; start again with a smaller --batch-size "
            "(python -m auglocal memory says what a run needs and what fits).",
            file=sys.stderr,
        )
        return FAILED
    except KeyboardInterrupt:
        print(f"{program}: interrupted.", file=sys.stderr)
        return INTERRUPTED


def add_config_options(
    parser: argparse.ArgumentParser,
    names: Sequence[str],
    *,
    help_by_name: Mapping[str, str] | None = None,
) -> None:
    """Options made of TrainConfig's fields; those not given stay out of the parsed result.

    `help_by_name` replaces the help, default included, of fields that a command reads otherwise.
    """
    own_help = help_by_name or {}
    types_by_name = get_type_hints(TrainConfig)
    for item in fields(TrainConfig):
        if item.name not in names:
            continue
        kind = types_by_name[item.name]
        if isinstance(kind, types.UnionType):
            kind = next(part for part in get_args(kind) if part is not types.NoneType)
        text = item.metadata["doc"]
        if item.name in CHOICES:
            text += f": {', '.join(CHOICES[item.name])}"
        if item.default not in (None, ()):
            text += f" (default: {item.default})"
        settings: dict[str, Any] = {"action": argparse.BooleanOptionalAction}
        if kind == tuple[int, ...]:
            settings = {"type": whole_numbers, "metavar": "INT,INT,..."}
        elif kind is not bool:
            settings = {"type": kind, "metavar": kind.__name__.upper()}
        flag = f"--{item.name.replace('_', '-')}"
        help_text = own_help.get(item.name, text).replace("%", "%%")
        parser.add_argument(flag, default=argparse.SUPPRESS, help=help_text, **settings)


def given_config(options: argparse.Namespace) -> dict[str, Any]:
    """The configuration fields that were given on the command line."""
    names = [item.name for item in fields(TrainConfig)]
    return {name: getattr(options, name) for name in names if hasattr(options, name)}


def chosen_config(options: argparse.Namespace) -> dict[str, Any]:
    """The fields of --recipe, where there is one, and over them those of the command line."""
    recipe = {} if options.recipe is None else read_recipe(options.recipe).values
    return {**recipe, **given_config(options)}


def resumed_config(path: Path, config: TrainConfig, given: dict[str, Any]) -> TrainConfig:
    """The configuration to go on with; refuses options that would make it another run."""
    for name, value in given.items():
        if name not in MAY_CHANGE and value != getattr(config, name):
            raise InputError(
                f"The run in {path} has {name} {getattr(config, name)}, not {value}; leave the "
                "option out, or start a new run."
            )
    return replace(config, **{name: given[name] for name in MAY_CHANGE if name in given})


def whole_numbers(text: str) -> tuple[int, ...]:
    """Numbers of an option such as 0,1,4."""
    try:
        return tuple(int(part) for part in text.split(",") if part.strip())
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"expected whole numbers with commas between them, such as 0,1,4, not {text!r}"
        ) from None


def report_skipped(dataset: Dataset) -> None:
    """Say on stderr how many images were left out."""
    if dataset.skipped:
        print(
            f"Skipped corrupt images: {len(dataset.skipped)} ({dataset.skipped[0]} first).",
            file=sys.stderr,
        )


def check_start(config: TrainConfig, material: Material) -> None:
    """Refuse images or weights that do not fit the backbone before a folder is made."""
    backbone = build_meta_backbone(
        config.architecture, material.num_classes, material.input_size, config.width
    )
    if config.pretrained is None:
        return
    with torch.device("meta"):
        auxiliaries = config.make_rule().build(backbone).auxiliaries
    pretrained = read_pretrained(backbone, config.architecture, config.pretrained, auxiliaries)
    print(f"auglocal train: {pretrained.sentence(material.num_classes)}", file=sys.stderr)


def default_out(config: TrainConfig, options: argparse.Namespace) -> Path:
    """The folder that `--out` names, or the usual one."""
    if options.out is not None:
        return Path(options.out)
    data = Path(config.dataset.partition(":")[2] or config.dataset).name
    seeds = f"seed{config.seed}" if options.seeds is None else "seeds"
    return Path("runs") / f"{data}-{config.architecture}-{config.rule}-{seeds}"


def say_outcome(folder: RunFolder, finished: bool, options: argparse.Namespace) -> int:
    """Print what came out of a training run, and how to go on."""
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
