"""`python -m auglocal memory`: what a training step needs, with each memory option and without."""

from __future__ import annotations

import argparse
import json
import re
import sys
from typing import Any

import torch
from tqdm import tqdm

from auglocal.backbones.registry import build_meta_backbone
from auglocal.commands.shared import DONE, add_config_options, given_config
from auglocal.config import TrainConfig
from auglocal.device import choose_device
from auglocal.errors import InputError
from auglocal.memory import StepCost, Subject, Variant, measure_allocated, measure_variants

UNITS = {
    "": 1,
    "B": 1,
    **{f"{prefix}B": 1000**power for power, prefix in enumerate("KMGT", start=1)},
    **{f"{prefix}IB": 1024**power for power, prefix in enumerate("KMGT", start=1)},
}
BYTES_PER_MIB = 1024**2


def add_memory(commands: Any) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        "memory",
        help="memory and arithmetic of a training step, against BP",
        description="Count what a training step of a rule needs, with each memory option, against "
        "BP and BP with checkpointed activations.",
    )
    parser.set_defaults(command=run_memory)
    names = ["architecture", "width", "rule", "auxiliary_depth", "pyramid", "selection"]
    names += ["selection_seed", "tail", "modules", "local_loss"]
    add_config_options(parser, [*names, "batch_size", "momentum", "device"])
    parser.add_argument("--num-classes", type=int, default=10, help="classes (default: 10)")
    parser.add_argument("--image-size", dest="size", type=int, default=32, help="pixels (32)")
    parser.add_argument(
        "--budget", help="say the largest batch that fits in so many bytes: 8GiB, 500MB, 1000000"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document")


def run_memory(options: argparse.Namespace) -> int:
    """Count every variant, and print them."""
    if options.num_classes < 2 or options.size < 8:
        raise InputError("Memory is counted for at least 2 classes and images of 8 pixels.")
    budget = None if options.budget is None else parse_bytes(options.budget)
    config = TrainConfig(**given_config(options))
    device = choose_device(config.device)
    input_size = (3, options.size, options.size)
    # Refuses images that are too small for it before a progress bar is shown.
    build_meta_backbone(config.architecture, options.num_classes, input_size, config.width)
    subject = Subject(config, options.num_classes, input_size)
    rows: list[dict[str, Any]] = []
    with tqdm(unit="step", file=sys.stderr, leave=False) as bar:

        def report(text: str) -> None:
            bar.set_description(text, refresh=False)
            bar.update()

        reference = None
        for variant in measure_variants(subject, report):
            reference = reference or variant.cost
            rows.append(_make_row(variant, config.batch_size, reference, budget, device))
    document = {
        "architecture": config.architecture,
        "rule": config.rule,
        "rule_options": config.rule_options(),
        "batch_size": config.batch_size,
        "budget": budget,
        "device": device.type,
        "rows": rows,
    }
    print(json.dumps(document) if options.json else memory_table(document))
    return DONE


def parse_bytes(text: str) -> int:
    """Bytes from a text such as 8GiB, 500 MB or 1000000.

    Raises:
        InputError: it is no such text, or less than a byte.
    """
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*([A-Z]*)", text.strip().upper())
    if (
        match is None
        or match[2] not in UNITS
        or (size := int(float(match[1]) * UNITS[match[2]])) < 1
    ):
        raise InputError(
            f"The budget must be a number of bytes above 0, not {text!r}; give --budget 8GiB, say."
        )
    return size


def _make_row(
    variant: Variant,
    batch_size: int,
    reference: StepCost,
    budget: int | None,
    device: torch.device,
) -> dict[str, Any]:
    """A variant's numbers at a batch size; ratios are to `reference`, BP in fp32."""
    cost, config = variant.cost, variant.subject.config
    saved, total, flops = (
        measure(batch_size) for measure in (cost.saved_tensors, cost.total, cost.flops)
    )
    allocated = None
    if device.type == "cuda":
        allocated = measure_allocated(variant.subject, batch_size, device)
    return {
        "name": variant.name,
        "rule": config.rule,
        "precision": config.precision,
        "recompute": config.recompute,
        "step_per_block": config.step_per_block,
        "segments": variant.subject.num_segments,
        "saved_tensors": saved,
        "saved_tensors_ratio": saved / reference.saved_tensors(batch_size),
        "parameters": cost.parameters,
        "gradients": cost.gradients,
        "optimizer_state": cost.optimizer_state,
        "total": total,
        "total_ratio": total / reference.total(batch_size),
        "flops": flops,
        "flops_ratio": flops / reference.flops(batch_size),
        "max_memory_allocated": allocated,
        "largest_batch": None if budget is None else cost.largest_batch(budget),
    }


def memory_table(document: dict[str, Any]) -> str:
    """The counts as a table that a person reads."""
    width = max(len(row["name"]) for row in document["rows"])
    heads = ["saved", "of BP", "weights", "gradients", "optimizer", "total", "of BP", "GFLOP"]
    heads += ["of BP"]
    on_cuda, budget = document["device"] == "cuda", document["budget"]
    heads += ["allocated"] * on_cuda + ["largest batch"] * (budget is not None)
    widths = [max(9, len(head)) for head in heads]
    lines = [
        f"{document['architecture']} under {document['rule']}, a training step of batch "
        f"{document['batch_size']}: MiB at their peak, ratios to BP in fp32",
        "",
        f"{'':<{width}}  {'':<4}  " + "  ".join(f"{h:>{w}}" for h, w in zip(heads, widths)),
    ]
    for row in document["rows"]:
        cells = [
            _mebibytes(row["saved_tensors"]),
            f"{row['saved_tensors_ratio']:.3f}",
            *(_mebibytes(row[name]) for name in ("parameters", "gradients", "optimizer_state")),
            _mebibytes(row["total"]),
            f"{row['total_ratio']:.3f}",
            f"{row['flops'] / 1e9:,.0f}",
            f"{row['flops_ratio']:.2f}",
        ]
        if on_cuda:
            allocated = row["max_memory_allocated"]
            cells.append("too large" if allocated is None else _mebibytes(allocated))
        if budget is not None:
            cells.append(f"{row['largest_batch']:,}" if row["largest_batch"] else "none")
        values = "  ".join(f"{cell:>{w}}" for cell, w in zip(cells, widths))
        lines.append(f"{row['name']:<{width}}  {row['precision']:<4}  {values}")
    return "\n".join(lines)


def _mebibytes(size: int) -> str:
    return f"{size / BYTES_PER_MIB:,.1f}"
