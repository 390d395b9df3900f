"""What the commands of this project share: options, one-sentence errors, exit statuses."""

from __future__ import annotations

import argparse
import sys
import types
from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Any, NoReturn, get_args, get_type_hints

from auglocal.backbones.registry import BACKBONES
from auglocal.config import TrainConfig
from auglocal.data import SOURCES
from auglocal.errors import InputError, WorkError
from auglocal.rules.auglocal import LOCAL_LOSSES
from auglocal.rules.registry import RULES

DONE, FAILED, WRONG_INPUT, INTERRUPTED = 0, 1, 2, 130
CHOICES = {
    "architecture": tuple(BACKBONES),
    "rule": tuple(RULES),
    "local_loss": tuple(LOCAL_LOSSES),
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
        return command()
    except InputError as error:
        print(f"{program}: {error}", file=sys.stderr)
        return WRONG_INPUT
    except WorkError as error:
        print(f"{program}: {error}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        print(f"{program}: interrupted.", file=sys.stderr)
        return INTERRUPTED


def add_config_options(parser: argparse.ArgumentParser, names: Sequence[str]) -> None:
    """Options made of TrainConfig's fields; those not given stay out of the parsed result."""
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
        if item.default is not None:
            text += f" (default: {item.default})"
        settings: dict[str, Any] = {"action": argparse.BooleanOptionalAction}
        if kind is not bool:
            settings = {"type": kind, "metavar": kind.__name__.upper()}
        flag = f"--{item.name.replace('_', '-')}"
        help_text = text.replace("%", "%%")
        parser.add_argument(flag, default=argparse.SUPPRESS, help=help_text, **settings)


def given_config(options: argparse.Namespace) -> dict[str, Any]:
    """The configuration fields that were given on the command line."""
    names = [item.name for item in fields(TrainConfig)]
    return {name: getattr(options, name) for name in names if hasattr(options, name)}
