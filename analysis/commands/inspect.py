"""`python -m analysis inspect FILE`: what a checkpoint is."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any


def add_inspect(commands: Any) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        "inspect",
        help="what a checkpoint is: architecture, layers, rule, data",
        description="Open a checkpoint, without running any code of it, and say what it is.",
    )
    parser.set_defaults(command=run_inspect)
    parser.add_argument("checkpoint", type=Path, metavar="FILE")
    parser.add_argument("--json", action="store_true", help="print one JSON document")


def run_inspect(options: argparse.Namespace) -> None:
    """Print what the file is."""
    from analysis.models import num_parameters, open_model  # torch: not for --help

    model = open_model(options.checkpoint, auxiliaries=True)
    metadata = model.metadata
    document = {
        "architecture": metadata.architecture,
        "num_classes": metadata.num_classes,
        "input_size": list(metadata.input_size),
        "parameters": num_parameters(model),
        "layers": list(model.layer_names),
        "auxiliary_networks": list(model.auxiliary_layers),
        "rule": metadata.rule,
        "rule_options": metadata.rule_options,
        "dataset": metadata.dataset,
        "accuracy": metadata.accuracy,
        "epoch": metadata.epoch,
        "seed": metadata.seed,
        "sha256": model.sha256,
    }
    if options.json:
        print(json.dumps(document))
        return
    for name, value in document.items():
        text = _text(value)
        print(f"{name.replace('_', ' '):<20} {text}")


def _text(value: Any) -> str:
    """A value as a person reads it."""
    if isinstance(value, dict):
        value = [f"{name.replace('_', ' ')} {part}" for name, part in value.items()]
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return "unknown" if value is None else str(value)
