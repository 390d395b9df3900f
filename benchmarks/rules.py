"""What a training step of each rule costs against BP's: time, operations, live tensors.

    python benchmarks/rules.py --json checkpoints/costs.json

ResNet-32 on 32 x 32 images, batch 128. Steps of all rules take turns in one process and precision,
the fastest round of each counts; operations and saved tensors are counted, and hold on any machine.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from auglocal.bench import Way, time_steps
from auglocal.config import PRECISION_NAMES, TrainConfig
from auglocal.memory import Subject, measure_step

RULES: dict[str, dict[str, Any]] = {
    "BP": {"rule": "bp"},
    "Linear": {"rule": "linear"},
    "DGL": {"rule": "dgl"},
    "PredSim": {"rule": "predsim"},
    "InfoPro": {"rule": "infopro"},
    "AugLocal, d = 1": {"auxiliary_depth": 1},
    "AugLocal, d = 2": {"auxiliary_depth": 2},
    "AugLocal, d = 3": {"auxiliary_depth": 3},
}


def step_seconds(base: TrainConfig, precision: str, num_rounds: int) -> dict[str, float]:
    """Seconds of the fastest step by rule; one rule after the other in each round."""
    ways = [
        Way(name, replace(base, precision=precision, **changes)) for name, changes in RULES.items()
    ]
    timings = time_steps(ways, Subject(base, 10, (3, 32, 32)), torch.device("cpu"), num_rounds)
    return {timing.way.name: timing.best for timing in timings}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--architecture", default="resnet32")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5, help="steps by each rule (default: 5)")
    parser.add_argument("--json", type=Path, help="keep the numbers in this file too")
    options = parser.parse_args()
    base = TrainConfig(architecture=options.architecture, batch_size=options.batch_size)
    seconds = {name: step_seconds(base, name, options.rounds) for name in PRECISION_NAMES}
    rows = []
    for name, changes in RULES.items():
        cost = measure_step(Subject(replace(base, **changes), 10, (3, 32, 32)))
        rows.append(
            {
                "rule": name,
                "operations": cost.flops(options.batch_size),
                "live_tensor_bytes": cost.saved_tensors(options.batch_size),
                "seconds": {precision: seconds[precision][name] for precision in seconds},
            }
        )
    document = {
        "architecture": options.architecture,
        "batch_size": options.batch_size,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__.partition("+")[0],
        "rules": rows,
    }
    if options.json:
        options.json.write_text(json.dumps(document, indent=1) + "\n")
    print(table(rows))


def table(rows: list[dict[str, Any]]) -> str:
    lines = [
        "| rule | step, fp32 | step, bf16 | operations | live tensors |",
        "| --- | --- | --- | --- | --- |",
    ]
    bp = rows[0]
    for row in rows:
        ratios = [row["seconds"][name] / bp["seconds"][name] for name in PRECISION_NAMES]
        ratios += [row[name] / bp[name] for name in ("operations", "live_tensor_bytes")]
        lines.append(f"| {row['rule']} | {' | '.join(f'{ratio:.2f}' for ratio in ratios)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
