"""What the commands of this project share: options, one-sentence errors, exit statuses."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import NoReturn

from auglocal.errors import InputError, WorkError

DONE, FAILED, WRONG_INPUT, INTERRUPTED = 0, 1, 2, 130


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
