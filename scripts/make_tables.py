"""Write the tables of README.md and checkpoints/README.md from the shipped files.

    python scripts/make_tables.py            # writes
    python scripts/make_tables.py --check    # says what is out of date; status 1 if anything is

A table stands between `<!-- table NAME -->` and `<!-- end -->`. Accuracies, local ones too, come
from the checkpoints themselves, costs from checkpoints/costs.json (`benchmarks/rules.py`),
ablations from checkpoints/ablations.json (`benchmarks/ablations.py`).
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from analysis.rule_styles import rule_title
from analysis.study import load_study
from auglocal.backbones.registry import build_meta_backbone
from auglocal.checkpoint import CheckpointMetadata, load_checkpoint
from auglocal.files import file_sha256
from auglocal.statistics import wilson_interval

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "checkpoints"
DOCUMENTS = (ROOT / "README.md", FOLDER / "README.md")
MARK = re.compile(r"(<!-- table ([a-z-]+) -->\n).*?(<!-- end -->)", re.DOTALL)
BACKBONES = {"resnet20": "ResNet-20", "resnet32": "ResNet-32"}
STUDIED = "cifar10-jpeg-resnet32-"  # the networks that the large study compares
# Percent on CIFAR-10, clean images, 400 epochs, 16 modules, the best epoch on the test images.
PUBLISHED = {"BP": 93.63, "DGL": 85.92, "InfoPro": 87.07}


@dataclass(frozen=True)
class Shipped:
    """A shipped checkpoint."""

    name: str
    sha256: str
    metadata: CheckpointMetadata

    @property
    def way(self) -> str:
        """Its rule, and the depth of AugLocal's auxiliary networks."""
        title = rule_title(self.metadata.rule)
        depth = self.metadata.rule_options.get("auxiliary_depth")
        return title if self.metadata.rule != "auglocal" else f"{title}, d = {depth}"

    @property
    def accuracy(self) -> float:
        """Of the backbone on the test images."""
        return float(self.measured["value"])

    @property
    def measured(self) -> dict[str, Any]:
        """What its accuracy was measured on."""
        if self.metadata.accuracy is None:
            raise ValueError(f"{self.name} holds no accuracy; train it to its end.")
        return self.metadata.accuracy

    @property
    def interval(self) -> str:
        """The 95% interval of the accuracy over test images."""
        samples = self.measured["samples"]
        low, high = wilson_interval(round(self.accuracy * samples), samples)
        return f"{low:.4f} to {high:.4f}"


@cache
def shipped() -> tuple[Shipped, ...]:
    """All shipped checkpoints: digits first, then by backbone, BP first."""
    found = [
        Shipped(path.stem, file_sha256(path), load_checkpoint(path).metadata)
        for path in FOLDER.glob("*.safetensors")
    ]
    return tuple(sorted(found, key=_place))


def _place(item: Shipped) -> tuple[bool, str, bool, str, str, int]:
    data = item.metadata
    return (
        "digits" not in data.dataset,
        data.architecture,
        data.rule != "bp",
        data.rule,
        item.way,
        data.seed,
    )


def lines(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    table = [header, ["---"] * len(header), *rows]
    return "".join(f"| {' | '.join(row)} |\n" for row in table)


def files_table() -> str:
    """Every checkpoint with its accuracy."""
    header = ("checkpoint", "backbone", "rule", "seed", "data", "epochs", "test accuracy")
    rows = [
        (
            f"`{item.name}`",
            BACKBONES[item.metadata.architecture],
            item.way,
            str(item.metadata.seed),
            item.metadata.dataset,
            str(item.metadata.epoch),
            f"{item.accuracy:.4f} ({item.interval})",
        )
        for item in shipped()
    ]
    return lines(header, rows)


def checksums() -> str:
    """SHA-256 of every checkpoint."""
    return "".join(f"- `{item.name}.safetensors` {item.sha256}\n" for item in shipped())


def study_commands() -> str:
    """What made every study, and makes it again."""
    studies = [load_study(path) for path in sorted(FOLDER.glob("*.study.json"))]
    return "\n" + "".join(f"    {study.provenance.command}\n" for study in studies) + "\n"


def studied() -> dict[str, list[Shipped]]:
    """The networks of the large study by way, seeds together, best first after BP."""
    ways: dict[str, list[Shipped]] = {}
    for item in shipped():
        if item.name.startswith(STUDIED):
            ways.setdefault(item.way, []).append(item)
    means = {way: statistics.mean(item.accuracy for item in items) for way, items in ways.items()}
    return {way: ways[way] for way in sorted(ways, key=lambda way: (way != "BP", -means[way]))}


def rules_table() -> str:
    """Mean accuracy of each rule, its gap to BP, and what was published."""
    header = ("rule", "seeds", "test accuracy", "deviation", "gap to BP", "published (see below)")
    ways = studied()
    best = statistics.mean(item.accuracy for item in ways["BP"])
    rows = []
    for way, items in ways.items():
        values = [item.accuracy for item in items]
        mean = statistics.mean(values)
        rows.append(
            (
                way,
                str(len(values)),
                f"{mean:.4f}" + (f" ({items[0].interval})" if len(values) == 1 else ""),
                f"{statistics.stdev(values):.4f}" if len(values) > 1 else "",
                "" if way == "BP" else f"{100 * (best - mean):.1f} points",
                f"{PUBLISHED[way]:.2f}%" if way in PUBLISHED else "",
            )
        )
    return lines(header, rows)


def layers_table() -> str:
    """Accuracy of each auxiliary network on the test images; the last line is the backbone's."""
    columns = {
        way: items[0].metadata.local_accuracies or {}
        for way, items in studied().items()
        if way != "BP"
    }
    (architecture,) = {item.metadata.architecture for items in studied().values() for item in items}
    layers = build_meta_backbone(architecture).layer_names
    rows = [
        (name, *(f"{column[name]:.3f}" if name in column else "" for column in columns.values()))
        for name in layers
        if any(name in column for column in columns.values())
    ]
    last = ("backbone", *(f"{items[0].accuracy:.3f}" for items in list(studied().values())[1:]))
    return lines(("layer", *columns), [*rows, last])


def costs_table() -> str:
    """Time, operations and live tensors of a training step, as ratios to BP's."""
    costs = json.loads((FOLDER / "costs.json").read_text())["rules"]
    bp = costs[0]
    rows = [
        (
            row["rule"],
            *(f"{row['seconds'][name] / bp['seconds'][name]:.2f}" for name in ("fp32", "bf16")),
            f"{row['operations'] / bp['operations']:.2f}",
            f"{row['live_tensor_bytes'] / bp['live_tensor_bytes']:.3f}",
        )
        for row in costs
    ]
    return lines(("rule", "step, fp32", "step, bf16", "operations", "live tensors"), rows)


def ablations_table() -> str:
    """Short runs that differ in one choice each."""
    header = ("way", "seeds", "test accuracy", "deviation", "operations / BP's", "memory / BP's")
    rows = [
        (
            row["way"],
            str(len(row["accuracies"])),
            f"{row['mean']:.4f}",
            "" if row["deviation"] is None else f"{row['deviation']:.4f}",
            f"{row['operations']:.2f}",
            f"{row['memory']:.2f}",
        )
        for row in json.loads((FOLDER / "ablations.json").read_text())
    ]
    return lines(header, rows)


TABLES: dict[str, Callable[[], str]] = {
    "files": files_table,
    "checksums": checksums,
    "studies": study_commands,
    "rules": rules_table,
    "layers": layers_table,
    "costs": costs_table,
    "ablations": ablations_table,
}


def renewed(text: str) -> str:
    """A document with every table made anew.

    Raises:
        ValueError: it asks for a table that there is not.
    """

    def fill(match: re.Match[str]) -> str:
        if match[2] not in TABLES:
            raise ValueError(f"there is no table {match[2]!r}; choose one of {', '.join(TABLES)}")
        return f"{match[1]}{TABLES[match[2]]()}{match[3]}"

    return MARK.sub(fill, text)


def main() -> int:
    """Write the tables, or check them; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing")
    options = parser.parse_args()
    stale = []
    for path in DOCUMENTS:
        before = path.read_text()
        after = renewed(before)
        if before != after:
            stale.append(path)
            if not options.check:
                path.write_text(after)
    for path in stale:
        print(f"{path.relative_to(ROOT)}: {'out of date' if options.check else 'written'}")
    if not stale:
        print("All tables say what the files say.")
    return 1 if options.check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
