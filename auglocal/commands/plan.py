"""`python -m auglocal plan`: how a rule cuts a backbone into blocks, before anything is trained."""

from __future__ import annotations

import argparse
import json
from typing import Any

from auglocal.commands.shared import DONE, add_config_options, given_config
from auglocal.config import TrainConfig
from auglocal.errors import InputError
from auglocal.plan import make_plan, plan_table


def add_plan(commands: Any) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        "plan",
        help="blocks and auxiliary networks of a rule, before training",
        description="Show how a rule cuts a backbone into blocks, and what each learns from.",
    )
    parser.set_defaults(command=run_plan)
    names = ["architecture", "width", "rule", "auxiliary_depth", "pyramid", "selection"]
    add_config_options(parser, [*names, "selection_seed", "tail", "modules", "local_loss"])
    parser.add_argument("--num-classes", type=int, default=10, help="classes (default: 10)")
    parser.add_argument("--image-size", dest="size", type=int, default=32, help="pixels (32)")
    parser.add_argument("--json", action="store_true", help="print one JSON document")


def run_plan(options: argparse.Namespace) -> int:
    """Print a plan."""
    if options.num_classes < 2 or options.size < 8:
        raise InputError("A plan needs at least 2 classes and images of 8 pixels.")
    config = TrainConfig(**given_config(options))
    input_size = (3, options.size, options.size)
    plan = make_plan(
        config.architecture,
        config.rule,
        config.make_rule(),
        options.num_classes,
        input_size,
        config.width,
    )
    print(json.dumps(plan) if options.json else plan_table(plan))
    return DONE
