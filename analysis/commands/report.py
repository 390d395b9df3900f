"""`python -m analysis report STUDY --out report.html`: one self-contained page of a study."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from analysis.commands.shared import check_out
from analysis.study import load_study

PAGE_SUFFIX = ".html"


def add_report(commands: Any) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        "report",
        help="a study as one web page that needs no network",
        description="Write a study as one self-contained page: figures, tables, provenance, and "
        "the command that redoes it.",
    )
    parser.set_defaults(command=run_report)
    parser.add_argument("study", type=Path, help="file that `study` wrote")
    parser.add_argument("--out", type=Path, required=True, help=f"file to write, *{PAGE_SUFFIX}")


def run_report(options: argparse.Namespace) -> None:
    """Read the study, write the page, and name it."""
    check_out(options.out, PAGE_SUFFIX)
    study = load_study(options.study)
    from analysis.report import write_report  # plotly: not for --help

    write_report(study, options.out)
    print(f"report  {options.out}")
