"""The command line: python -m analysis COMMAND; see `make_parser` for the commands."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence

from analysis.commands.convert import add_convert
from analysis.commands.dynamics import add_dynamics
from analysis.commands.inspect import add_inspect
from analysis.commands.measure import add_measures
from analysis.commands.predict import add_predict
from analysis.commands.redo import add_redo
from analysis.commands.report import add_report
from analysis.commands.shared import (
    DONE,
    FAILED,
    INTERRUPTED,
    PROGRAM,
    WRONG_INPUT,
    Parser,
    failure,
)
from analysis.errors import Cancelled, InputError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status: 0 done, 1 failed while working, 2 wrong input."""
    options = make_parser().parse_args(arguments)
    command: Callable[[argparse.Namespace], int | None] = options.command
    try:
        status = command(options) or DONE
        sys.stdout.flush()
        return status
    except BrokenPipeError:  # `head` or a pager has closed the pipe: forget what is left to print
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except InputError as error:
        return _complain(str(error), WRONG_INPUT)
    except (KeyboardInterrupt, Cancelled):
        return _complain("interrupted; nothing was written.", INTERRUPTED)
    except (RuntimeError, MemoryError, OSError) as error:
        return _complain(failure(error), FAILED)


def make_parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    parser = Parser(prog=PROGRAM, description="Compare the layers of trained networks.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for add_command in (
        add_inspect,
        add_predict,
        add_convert,
        add_measures,
        add_dynamics,
        add_redo,
        add_report,
    ):
        add_command(commands)
    return parser


def _complain(sentence: str, status: int) -> int:
    print(f"{PROGRAM}: {sentence}", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
