"""`python -m auglocal bench --parallel`: throughput against ranks, beside the ideal from FLOPs."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from typing import Any

import torch

from auglocal.commands.shared import DONE
from auglocal.errors import InputError
from auglocal.memory import Subject
from auglocal.parallel.bench import (
    entries_to_time,
    ideal_row,
    throughput_rows,
    time_all_cores,
    time_entries,
)
from auglocal.parallel.layout import Layout, check_batch
from auglocal.parallel.team import joined, num_processes

STEPS_PER_ROUND = 8
TIMEOUT = 300.0


def add_parallel_bench(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument(
        "--parallel",
        action="store_true",
        help="time ranks that share out blocks or batches, a core or GPU each, and nothing else",
    )
    parser.add_argument(
        "--ranks", type=int, help="with --parallel: so many at most (one a core or GPU, at most 8)"
    )
    parser.add_argument(
        "--count-only",
        action="store_true",
        help="with --parallel: say what counted operations promise of so many ranks; time nothing",
    )


def bench_ranks(subject: Subject, options: argparse.Namespace) -> int:
    """Time every layout, and print them; starts the ranks by torchrun where it has not been."""
    if options.count_only:
        return _count(subject, options)
    if "RANK" not in os.environ:
        return _start_ranks(options)
    num_ranks = num_processes()
    layout = Layout(layers=num_ranks)
    check_batch(Layout(data=num_ranks), subject.config.batch_size)
    with joined(layout, TIMEOUT, subject.config.device) as team:
        report = _say if team.is_first else (lambda text: None)
        timed = time_entries(
            entries_to_time(subject, num_ranks),
            team,
            num_rounds=options.rounds,
            steps_per_round=STEPS_PER_ROUND,
            report=report,
        )
        cores = os.cpu_count() or 1
        whole = None
        if team.is_first and team.device_kind == "cpu":
            whole = time_all_cores(subject, torch.device("cpu"), cores, options.rounds)
    if timed:
        document = {
            "architecture": subject.config.architecture,
            "rule": subject.config.rule,
            "batch_size": subject.config.batch_size,
            "device": team.device_kind,
            "threads": torch.get_num_threads(),
            "cores": cores,
            "steps_per_round": STEPS_PER_ROUND,
            "rows": throughput_rows(timed, STEPS_PER_ROUND),
            "one_process_all_cores": whole,
        }
        print(json.dumps(document) if options.json else parallel_table(document))
    return DONE


def _say(text: str) -> None:
    print(f"timing {text}", file=sys.stderr)


def _count(subject: Subject, options: argparse.Namespace) -> int:
    """Print what counted operations promise; BP in one process is told once."""
    entries = entries_to_time(subject, options.ranks or 8)
    rows = [ideal_row(entry, STEPS_PER_ROUND) for entry in entries]
    document = {
        "architecture": subject.config.architecture,
        "rule": subject.config.rule,
        "steps_per_round": STEPS_PER_ROUND,
        "rows": rows,
    }
    print(json.dumps(document) if options.json else ideal_table(document))
    return DONE


def ideal_table(document: dict[str, Any]) -> str:
    """What operations promise, as a table that a person reads."""
    lines = [
        f"{document['architecture']} under {document['rule']}: steps a second by counted "
        "operations, as ratios",
        "",
        f"{'rule':<9}  {'layout':<16}  {'to one rank':>11}  {'to BP on one':>12}",
    ]
    bp = next((row["ideal"] for row in document["rows"] if row["rule"] == "bp"), 1.0)
    lines += [
        f"{row['rule']:<9}  {row['layout']:<16}  {row['ideal']:>11.2f}  {row['ideal'] / bp:>12.2f}"
        for row in document["rows"]
    ]
    return "\n".join(lines)


def _start_ranks(options: argparse.Namespace) -> int:
    """Run this same command under torchrun."""
    gpus = torch.cuda.device_count() if getattr(options, "device", "auto") != "cpu" else 0
    num_ranks = options.ranks or min(8, gpus or os.cpu_count() or 1)
    if num_ranks < 2:
        raise InputError(
            "One rank has nobody to share with; give --ranks 2 or more, on as many cores or GPUs."
        )
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    torchrun += ["--nproc-per-node", str(num_ranks), "-m", "auglocal", *sys.argv[1:]]
    threads = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
    return subprocess.run(torchrun, check=False, env={**os.environ, **threads}).returncode


def parallel_table(document: dict[str, Any]) -> str:
    """The throughputs as a table that a person reads."""
    lines = [
        f"{document['architecture']} under {document['rule']}, batch {document['batch_size']}, "
        f"{document['device']}, {document['threads']} threads a rank",
        "",
        f"{'rule':<9}  {'layout':<16}  {'images/s':>9}  {'speed-up':>8}  {'ideal':>6}  "
        f"{'of round':>8}  {'MiB sent a step':>15}",
    ]
    lines += [
        f"{row['rule']:<9}  {row['layout']:<16}  {row['images_per_second']:>9,.1f}  "
        f"{row['speed_up']:>8.2f}  {row['ideal']:>6.2f}  {row['ideal_of_round']:>8.2f}  "
        f"{row['bytes_per_step'] / 2**20:>15.2f}"
        for row in document["rows"]
    ]
    lines += [
        "",
        "ideal: by FLOPs, if sending cost nothing; of round: at least that in a round of "
        f"{document['steps_per_round']} steps,",
        "as timed, which fill the pipeline and let it run dry; sent: by the rank that sends most.",
    ]
    whole = document["one_process_all_cores"]
    if whole is not None:
        ratio = whole / document["rows"][0]["images_per_second"]
        lines.append(
            f"One process with {document['cores']} threads: {whole:,.1f} images/s ({ratio:.2f})."
        )
    return "\n".join(lines)
