"""What each choice in AugLocal's auxiliary networks is worth, from short runs.

    python benchmarks/ablations.py --seeds 0,1,2

trains the recipe `cifar10-jpeg-ablation` once for each way and seed in `runs/ablations` (a run that
is there goes on, a finished one is read) and prints a table: test accuracy after the last epoch,
its deviation over seeds, and the operations and live tensors of a training step against BP's.
`--ways` picks ways by name, `--recipe` another recipe, `--json` also keeps the numbers in a file.
What such a table can show is the order of large differences; it says nothing of long schedules.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from auglocal.config import TrainConfig
from auglocal.layer_costs import count_layer_costs
from auglocal.recipe import read_recipe
from auglocal.runs import RunFolder, read_metrics

SIZE = (3, 32, 32)
# Options that differ from the recipe's, which is AugLocal with d = 2 and c = 0.5. With d = 2 this
# pyramid leaves every depth at 2, so that it is taken apart with d = 3.
WAYS: dict[str, dict[str, Any]] = {
    "d = 2, uniform": {},
    "d = 2, next layers": {"selection": "next"},
    "d = 2, random layers": {"selection": "random"},
    "d = 1": {"auxiliary_depth": 1},
    "d = 3, no pyramid": {"auxiliary_depth": 3, "pyramid": 0.0},
    "d = 3, c = 0.5": {"auxiliary_depth": 3},
    "d = 3, c = 1": {"auxiliary_depth": 3, "pyramid": 1.0},
    "linear heads": {"rule": "linear"},
    "BP": {"rule": "bp"},
}


def parse_ways(text: str) -> list[str]:
    """Names of ways, with a semicolon between them."""
    names = [name.strip() for name in text.split(";")]
    for name in names:
        if name not in WAYS:
            raise argparse.ArgumentTypeError(
                f"there is no way {name!r}; choose of {'; '.join(WAYS)}"
            )
    return names


def way_config(base: TrainConfig, way: str, seed: int) -> TrainConfig:
    """The run of a way and a seed; random layers are drawn anew with each seed."""
    config = replace(base, seed=seed, **WAYS[way])
    return replace(config, selection_seed=seed) if config.selection == "random" else config


def train(config: TrainConfig, recipe: str, folder: Path) -> float:
    """Train a run to its end, or go on with it; its test accuracy."""
    if not (folder / "config.json").exists():
        base = TrainConfig(**read_recipe(recipe).values)
        command = ["--recipe", recipe, *changes(base, config), "--out", str(folder)]
    elif len(read_metrics(RunFolder(folder))) < config.epochs:
        command = ["--resume", str(folder)]
    else:
        return last_accuracy(folder)
    subprocess.run([sys.executable, "-m", "auglocal", "train", *command], check=True)
    return last_accuracy(folder)


def changes(base: TrainConfig, config: TrainConfig) -> list[str]:
    """The options of the command line that make one configuration of another."""
    names = ["rule", "auxiliary_depth", "pyramid", "selection", "selection_seed", "seed"]
    return [
        word
        for name in names
        if getattr(base, name) != getattr(config, name)
        for word in (f"--{name.replace('_', '-')}", str(getattr(config, name)))
    ]


def last_accuracy(folder: Path) -> float:
    return float(read_metrics(RunFolder(folder))[-1]["test_accuracy"])


def describe(base: TrainConfig, way: str, accuracies: dict[int, float]) -> dict[str, Any]:
    """A row of the table."""
    config = way_config(base, way, min(accuracies))
    values = list(accuracies.values())
    costs, bp = (
        count_layer_costs(
            base.architecture, each.make_rule(), base.batch_size, 10, SIZE, base.width
        )
        for each in (config, replace(base, rule="bp"))
    )
    return {
        "way": way,
        "accuracies": accuracies,
        "mean": statistics.mean(values),
        "deviation": statistics.stdev(values) if len(values) > 1 else None,
        "operations": costs.flops / bp.flops,
        "memory": costs.saved / bp.saved,
    }


def table(rows: list[dict[str, Any]]) -> str:
    lines = [
        "| way | seeds | test accuracy | deviation | operations / BP's | live tensors / BP's |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        deviation = "" if row["deviation"] is None else f"{row['deviation']:.4f}"
        lines.append(
            f"| {row['way']} | {len(row['accuracies'])} | {row['mean']:.4f} | {deviation} | "
            f"{row['operations']:.2f} | {row['memory']:.2f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--recipe", default="cifar10-jpeg-ablation", help="default: cifar10-jpeg-ablation"
    )
    parser.add_argument(
        "--ways", type=parse_ways, default=list(WAYS), help=f"default: {'; '.join(WAYS)}"
    )
    parser.add_argument(
        "--seeds",
        type=lambda text: [int(part) for part in text.split(",")],
        default=[0],
        help="default: 0",
    )
    parser.add_argument("--out", type=Path, default=Path("runs/ablations"))
    parser.add_argument("--json", type=Path, help="keep the numbers in this file too")
    options = parser.parse_args()
    base = TrainConfig(**read_recipe(options.recipe).values)
    accuracies: dict[str, dict[int, float]] = {way: {} for way in options.ways}
    for seed in options.seeds:
        for way in options.ways:
            folder = options.out / f"{way.replace(' ', '').replace('=', '')}-seed{seed}"
            config = way_config(base, way, seed)
            accuracies[way][seed] = train(config, options.recipe, folder)
    rows = [describe(base, way, accuracies[way]) for way in options.ways]
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")
    print(table(rows))


if __name__ == "__main__":
    main()
