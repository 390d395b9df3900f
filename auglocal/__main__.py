"""The command line: python -m auglocal train|evaluate|plan|memory|bench|recipes."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence

from auglocal.commands.bench import add_bench
from auglocal.commands.evaluate import add_evaluate
from auglocal.commands.memory import add_memory
from auglocal.commands.plan import add_plan
from auglocal.commands.recipes import add_recipes
from auglocal.commands.shared import Parser, run_command
from auglocal.commands.train import add_train

PROGRAM = "auglocal"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status: 0 done, 1 failed while working, 2 wrong input."""
    options = make_parser().parse_args(arguments)
    command: Callable[[argparse.Namespace], int] = options.command
    return run_command(lambda: command(options), PROGRAM)


def make_parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    parser = Parser(prog=PROGRAM, description="Train networks by local learning, and measure them.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for add_command in (add_train, add_evaluate, add_plan, add_memory, add_bench, add_recipes):
        add_command(commands)
    return parser


if __name__ == "__main__":
    sys.exit(main())
