"""What can be trained, for forms: fields of `TrainConfig`, names to pick from, shipped recipes.

Out: a `Catalogue`. Asking the trainer for it imports PyTorch, which takes seconds; so the answer is
kept in the library under the contents of the trainer's files, and forms are drawn at once. `warm`
does both in the background once the first page is drawn.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import threading
import time
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, get_args, get_type_hints

import streamlit as st

from app.sources import folders
from auglocal.errors import WorkError
from auglocal.files import write_whole

INTS = "ints"
KINDS: dict[str, Any] = {"bool": bool, "int": int, "float": float, "str": str, INTS: INTS}
PAUSE = 3.0  # seconds between the first page and the import, in which its pictures are drawn


@dataclass(frozen=True)
class Field:
    """A field of `TrainConfig`, for a form.

    `kind` is bool, int, float, str or "ints" (whole numbers with commas between them); `choices`
    are names to pick from, none where anything goes; `smallest` is the least number allowed;
    `rules` are those that know it, empty where it is no rule's own.
    """

    name: str
    doc: str
    default: Any
    kind: Any
    is_optional: bool
    choices: tuple[str, ...]
    smallest: int | None
    rules: tuple[str, ...]


@dataclass(frozen=True)
class Recipe:
    """A shipped recipe: what it is for, and the values that differ from the defaults."""

    description: str
    values: dict[str, Any]


@dataclass(frozen=True)
class Catalogue:
    """Fields and recipes by name."""

    fields: dict[str, Field]
    recipes: dict[str, Recipe]


@st.cache_resource(show_spinner=False)
def catalogue() -> Catalogue:
    """What can be trained; from the library where it was kept, else from the trainer."""
    path = _path()
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        return _parse(json.loads(path.read_text(encoding="utf-8")))
    found = _ask_trainer()
    with contextlib.suppress(OSError, WorkError):
        path.parent.mkdir(parents=True, exist_ok=True)
        for old in path.parent.glob("*.json"):
            old.unlink()
        write_whole(path, json.dumps(_record(found)).encode())
    return found


def warm() -> None:
    """Import what pages need that compute, in the background; once a server."""
    _warm()


@st.cache_resource(show_spinner=False)
def _warm() -> threading.Thread:
    """The thread, started once for all sessions."""
    thread = threading.Thread(target=_import_slowly, daemon=True)
    thread.start()
    return thread


def _import_slowly() -> None:
    """Wait until the first page is drawn, then import."""
    time.sleep(PAUSE)
    catalogue()
    import analysis.run  # noqa: F401
    import auglocal.layer_costs
    import auglocal.plan  # noqa: F401


# ------------------------------------------------------------------------------------ the trainer


def _ask_trainer() -> Catalogue:
    """All fields and recipes, from the trainer itself."""
    from auglocal import config
    from auglocal.commands.shared import CHOICES
    from auglocal.data import AUGMENTATIONS
    from auglocal.recipe import shipped_recipes
    from auglocal.rules.registry import RULES
    from auglocal.schedule import SCHEDULES

    choices = {
        **CHOICES,
        "dataset": tuple(name for name in CHOICES["dataset"] if ":" not in name),
        "augmentation": tuple(AUGMENTATIONS),
        "schedule": tuple(SCHEDULES),
        "precision": config.PRECISION_NAMES,
        "snapshot_dtype": tuple(config.WEIGHT_TYPES),
        "device": config.DEVICE_NAMES,
    }
    kinds = get_type_hints(config.TrainConfig)
    options = {rule: {item.name for item in fields(kind)} for rule, kind in RULES.items()}
    found = {}
    for item in fields(config.TrainConfig):
        parts = get_args(kinds[item.name])
        is_ints = kinds[item.name] == tuple[int, ...]
        found[item.name] = Field(
            name=item.name,
            doc=item.metadata["doc"],
            default=item.default,
            kind=INTS if is_ints else parts[0] if parts else kinds[item.name],
            is_optional=type(None) in parts,
            choices=choices.get(item.name, ()),
            smallest=config.SMALLEST.get(item.name),
            rules=tuple(rule for rule, names in options.items() if item.name in names),
        )
    recipes = {entry.name: Recipe(entry.description, entry.values) for entry in shipped_recipes()}
    return Catalogue(found, recipes)


# --------------------------------------------------------------------------------------- the copy


def _path() -> Path:
    """Where the answer of this version of the trainer is kept."""
    sources = sorted((folders.ROOT / "auglocal").rglob("*.py"))
    sources += sorted((folders.ROOT / "recipes").glob("*.toml"))
    stamps = json.dumps([*map(folders.stamp, sources), folders.stamp(Path(__file__))])
    digest = hashlib.sha256(stamps.encode()).hexdigest()
    return folders.library_folder() / "catalogue" / f"{digest[:16]}.json"


def _record(found: Catalogue) -> dict[str, Any]:
    """A catalogue as plain values; kinds by their names."""
    record = asdict(found)
    for name, field in found.fields.items():
        kind = next(key for key, kind in KINDS.items() if kind is field.kind)
        record["fields"][name]["kind"] = kind
    return record


def _parse(record: dict[str, Any]) -> Catalogue:
    """A catalogue from plain values."""
    found = {name: _parse_field(values) for name, values in record["fields"].items()}
    recipes = {name: Recipe(**values) for name, values in record["recipes"].items()}
    for recipe in recipes.values():
        recipe.values.update(
            {name: _plain(found[name], value) for name, value in recipe.values.items()}
        )
    return Catalogue(found, recipes)


def _parse_field(values: dict[str, Any]) -> Field:
    """A field from plain values."""
    field = Field(**{**values, "kind": KINDS[values["kind"]]})
    return replace(
        field,
        default=_plain(field, field.default),
        choices=tuple(field.choices),
        rules=tuple(field.rules),
    )


def _plain(field: Field, value: Any) -> Any:
    """A value as `TrainConfig` holds it: JSON has no tuples."""
    return tuple(value) if field.kind == INTS else value
