"""`python -m analysis redo STUDY...`: run studies again as they were run; compare the answers."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from analysis.agreement import Agreement, compare_studies
from analysis.commands.measure import run_and_keep
from analysis.commands.shared import DONE, FAILED, PROGRAM, STUDY_SUFFIX
from analysis.errors import InputError
from analysis.study import Study, load_study
from analysis.tables import aligned

START = ["python", "-m", "analysis", "study"]


def add_redo(commands: Any) -> None:
    """Add the command to the parser; it reads a study's command with the parser of `study`."""
    parser = commands.add_parser(
        "redo",
        help="run studies again, and say how far the answers moved",
        description="Run studies again by the command that each one keeps, from the folder where "
        "it ran, and compare: exit status 1 where a value left its interval.",
    )
    parser.set_defaults(command=lambda options: run_redo(options, commands.choices["study"]))
    parser.add_argument("studies", type=Path, nargs="+", metavar="STUDY", help=f"*{STUDY_SUFFIX}")
    parser.add_argument(
        "--out", type=Path, metavar="FOLDER", help="keep the new studies here (default: nowhere)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document")


def run_redo(options: argparse.Namespace, study_parser: argparse.ArgumentParser) -> int:
    """Redo each study, and print how far its answers moved; the exit status."""
    plans = [(path, *_plan(path, study_parser)) for path in options.studies]
    results: dict[str, list[Agreement]] = {}
    with _folder(options.out) as folder:
        for path, study, again in plans:
            again.out = folder / path.name
            if not options.json:
                print(f"{path}: {study.title}", file=sys.stderr)
            repeated = run_and_keep(again)
            if repeated is None or repeated.provenance.stopped is not None:
                raise KeyboardInterrupt
            results[str(path)] = _compared(path, study, repeated)
            if not options.json:
                print(f"{path}\n{_table(results[str(path)])}\n", flush=True)
    if options.json:
        document = {name: [asdict(row) for row in rows] for name, rows in results.items()}
        print(json.dumps(document, allow_nan=False))
    holds = all(row.holds for rows in results.values() for row in rows)
    return DONE if holds else FAILED


def _plan(path: Path, parser: argparse.ArgumentParser) -> tuple[Study, argparse.Namespace]:
    """A study, and the options of the command that it keeps.

    The command is text of a file: it is read as the options of `study`, and never given to a shell.

    Raises:
        InputError: the file is no study, or keeps no command of this program.
    """
    try:
        study = load_study(path)
    except ValueError as error:
        raise InputError(str(error)) from error
    try:
        words = shlex.split(study.provenance.command)
    except ValueError:  # a quotation without its end
        words = []
    if words[: len(START)] != START:
        raise InputError(
            f"{path} does not keep the command that made it, as studies do that `{PROGRAM} study` "
            "writes; run the study anew."
        )
    return study, parser.parse_args(words[len(START) :])


def _compared(path: Path, before: Study, after: Study) -> list[Agreement]:
    try:
        return compare_studies(before, after)
    except ValueError as error:
        raise InputError(f"{path}: {error}") from error


@contextmanager
def _folder(kept: Path | None) -> Iterator[Path]:
    """Where the new studies go."""
    if kept is None:
        with tempfile.TemporaryDirectory() as folder:
            yield Path(folder)
    else:
        kept.mkdir(parents=True, exist_ok=True)
        yield kept


def _table(rows: list[Agreement]) -> str:
    """A line a measure."""
    header = ("measure", "values", "largest difference", "outside", "undefined once")
    lines = [
        (row.measure, f"{row.count:,}", f"{row.largest:.2g}", str(row.outside), str(row.undefined))
        for row in rows
    ]
    return aligned([header, *lines])
