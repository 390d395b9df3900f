"""Recipes: a name or a path in, the configuration fields that a TOML file holds out.

A recipe is a TOML table of TrainConfig's fields, and a line `description`. Those shipped lie in the
folder recipes/ of this repository, or of the installed package.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from auglocal.config import typed_values
from auglocal.errors import InputError

_PACKAGE = Path(__file__).parent
# An installed package carries the recipes inside; in a clone they lie beside it.
RECIPE_FOLDERS = (_PACKAGE / "recipes", _PACKAGE.parent / "recipes")


@dataclass(frozen=True)
class Recipe:
    """A named configuration.

    Attributes:
        name: of its file, without the suffix.
        description: one line.
        values: fields of TrainConfig; those left out are at their defaults.
    """

    name: str
    description: str
    values: dict[str, Any]


def read_recipe(name: str) -> Recipe:
    """Read a recipe.

    Args:
        name: of a shipped recipe, or a path to a file that ends in .toml.

    Raises:
        InputError: there is none, or it is damaged, or holds what is no configuration.
    """
    path = _recipe_path(name)
    try:
        values = tomllib.loads(path.read_text())
        description = values.pop("description", "")
        if not isinstance(description, str):
            raise TypeError(f"description must be a text in quotes, not {description!r}")
        return Recipe(path.stem, description, typed_values(values))
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise InputError(f"Could not read the recipe {path}: {reason}; check the path.") from error
    except (ValueError, TypeError) as error:  # tomllib's and Unicode's errors are ValueErrors
        raise InputError(
            f"The recipe {path} cannot be used: {error}; correct it (python -m auglocal train "
            "--help lists the options)."
        ) from error


def shipped_recipes() -> list[Recipe]:
    """All shipped recipes, by name."""
    return [read_recipe(str(path)) for path in _shipped_paths()]


def _shipped_paths() -> list[Path]:
    return sorted(path for folder in RECIPE_FOLDERS for path in folder.glob("*.toml"))


def _recipe_path(name: str) -> Path:
    """The file of a recipe: a path if it looks like one, otherwise a shipped one."""
    if name.endswith(".toml"):
        return Path(name)
    shipped = {path.stem: path for path in _shipped_paths()}
    if name not in shipped:
        raise InputError(
            f"There is no recipe {name!r}; python -m auglocal recipes lists what there is, or give "
            "the path of a .toml file."
        )
    return shipped[name]
