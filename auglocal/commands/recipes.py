"""`python -m auglocal recipes`: the configurations that are shipped by name."""

from __future__ import annotations

import argparse
import json
from typing import Any

from auglocal.commands.shared import DONE
from auglocal.recipe import shipped_recipes


def add_recipes(commands: Any) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        "recipes",
        help="named configurations for train --recipe",
        description="List the shipped recipes, for `train --recipe NAME`.",
    )
    parser.set_defaults(command=run_recipes)
    parser.add_argument("--json", action="store_true", help="print one JSON document")


def run_recipes(options: argparse.Namespace) -> int:
    """Print the recipes, one line each."""
    recipes = shipped_recipes()
    if options.json:
        print(json.dumps({recipe.name: recipe.values for recipe in recipes}))
        return DONE
    width = max(len(recipe.name) for recipe in recipes)
    for recipe in recipes:
        print(f"{recipe.name:<{width}}  {recipe.description}")
    return DONE
