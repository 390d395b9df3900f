"""`python -m auglocal bench`: how fast this machine trains a backbone by a rule, against BP."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

import torch
from tqdm import tqdm

from auglocal.backbones.registry import build_meta_backbone
from auglocal.bench import (
    flops_ratio,
    speed_rows,
    time_evaluation,
    time_pipeline,
    time_steps,
    ways_to_train,
)
from auglocal.commands.parallel import refuse_idle_ranks
from auglocal.commands.parallel_bench import add_parallel_bench, bench_ranks
from auglocal.commands.shared import DONE, add_config_options, given_config
from auglocal.config import TrainConfig
from auglocal.device import choose_device
from auglocal.errors import InputError
from auglocal.memory import Subject
from auglocal.step import memory_format

CONFIG_OPTIONS = (
    "architecture",
    "width",
    "rule",
    "auxiliary_depth",
    "pyramid",
    "selection",
    "selection_seed",
    "tail",
    "modules",
    "local_loss",
    "batch_size",
    "recompute",
    "step_per_block",
    "compile",
    "device",
)


def add_bench(commands: Any) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        "bench",
        help="time of a training step, of evaluation and of the input pipeline",
        description="Time a rule's training step against BP's, by precision and memory layout, "
        "and the evaluation of the backbone. The ways take turns; the fastest round counts.",
    )
    parser.set_defaults(command=run_bench)
    add_config_options(parser, list(CONFIG_OPTIONS))
    parser.add_argument("--num-classes", type=int, default=10, help="classes (default: 10)")
    parser.add_argument("--image-size", dest="size", type=int, default=32, help="pixels (32)")
    parser.add_argument("--rounds", type=int, default=7, help="steps by each way (default: 7)")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    add_parallel_bench(parser)


def run_bench(options: argparse.Namespace) -> int:
    """Time every way, and print them."""
    if not options.parallel:
        refuse_idle_ranks()
    if options.num_classes < 2 or options.size < 8 or options.rounds < 1:
        raise InputError(
            "A bench needs at least 2 classes, images of 8 pixels and 1 round; give other "
            "--num-classes, --image-size or --rounds."
        )
    config = TrainConfig(**given_config(options))
    device = choose_device(config.device)
    input_size = (3, options.size, options.size)
    # Refuses images that are too small for it before a progress bar is shown.
    build_meta_backbone(config.architecture, options.num_classes, input_size, config.width)
    if options.parallel:
        return bench_ranks(Subject(config, options.num_classes, input_size), options)
    document = _measure(Subject(config, options.num_classes, input_size), device, options.rounds)
    print(json.dumps(document) if options.json else bench_table(document))
    return DONE


def _measure(subject: Subject, device: torch.device, num_rounds: int) -> dict[str, Any]:
    config = subject.config
    ways = ways_to_train(config, device)
    with tqdm(total=len(ways) * (num_rounds + 1), unit="step", file=sys.stderr, leave=False) as bar:

        def report(text: str) -> None:
            bar.set_description(text, refresh=False)
            bar.update()

        def warn(text: str) -> None:
            bar.write(text, file=sys.stderr)

        timings = time_steps(ways, subject, device, num_rounds, report=report, warn=warn)
        rows = speed_rows(timings, config.batch_size)
    evaluation = config.batch_size / time_evaluation(subject, device, num_rounds)
    training = max(row["images_per_second"] for row in rows if row["rule"] == config.rule)
    return {
        "architecture": config.architecture,
        "rule": config.rule,
        "rule_options": config.rule_options(),
        "batch_size": config.batch_size,
        "image_size": subject.input_size[1],
        "device": device.type if device.type != "cuda" else torch.cuda.get_device_name(device),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "layout": str(memory_format(config, device)).removeprefix("torch."),
        "flops_ratio": flops_ratio(subject),
        "rows": rows,
        "evaluation_images_per_second": evaluation,
        "evaluation_ratio": evaluation / training,
        "pipeline_images_per_second": 1 / time_pipeline(config.batch_size, device, num_rounds),
    }


def bench_table(document: dict[str, Any]) -> str:
    """The times as a table that a person reads."""
    rows = document["rows"]
    width = max(len(row["name"]) for row in rows)
    lines = [
        f"{document['architecture']} under {document['rule']}, batch {document['batch_size']}, "
        f"{document['device']}, {document['threads']} threads, PyTorch {document['torch']}; "
        f"training FLOPs {document['flops_ratio']:.2f} of BP's",
        "",
        f"{'':<{width}}  {'':<4}  {'layout':<13}  {'ms a step':>9}  {'images/s':>9}  "
        f"{'of BP':>6}  {'of fastest BP':>13}",
    ]
    lines += [
        f"{row['name']:<{width}}  {row['precision']:<4}  {row['layout']:<13}  "
        f"{row['seconds'] * 1e3:>9.1f}  {row['images_per_second']:>9,.0f}  {row['ratio']:>6.2f}  "
        f"{row['ratio_to_fastest']:>13.2f}"
        for row in rows
    ]
    fastest = min(
        (row for row in rows if row["rule"] == document["rule"]), key=lambda row: row["seconds"]
    )
    return "\n".join(
        [
            *lines,
            "",
            "of BP: to BP in fp32 of the same layout; of fastest BP: to the faster layout.",
            f"Evaluation of the backbone: {document['evaluation_images_per_second']:,.0f} "
            f"images/s, {document['evaluation_ratio']:.1f} times the fastest training step.",
            f"Shuffling, augmenting and normalising 32x32 images: "
            f"{document['pipeline_images_per_second']:,.0f} images/s.",
            f"Fastest here: {fastest['name']} --precision {fastest['precision']} "
            f"--{'' if fastest['layout'] == 'channels-last' else 'no-'}channels-last",
        ]
    )
