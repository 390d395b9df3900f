"""Where the weights are in an object that was saved: which dictionaries of it are state dicts.

In: what a pickle was read into. Out: the state dicts in it by name ("state_dict", "ema.model"), the
likeliest first.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from auglocal.foreign.limits import Limits
from auglocal.foreign.tensors import Unsupported, View
from auglocal.foreign.values import NumpyArray, Opaque

# Names that people give to the weights, the likeliest first; those of a running average (EMA) come
# after them.
LIKELY = (
    "state_dict model_state_dict model net network model_state module params weights backbone "
    "encoder"
).split()
AVERAGES = ("ema", "averaged", "shadow", "swa")
# What holds tensors of its own that are no weights: the states of optimizers and their like.
NO_WEIGHTS = ("optim", "schedul", "scaler", "amp", "callback", "loops", "rng", "hparams", "metric")
CONTAINERS = (dict, list, tuple)
MAX_SEQUENCE = 16  # places of a list or tuple that may hold a state dict
MAX_CONTAINERS = 10_000
MAX_OFFERED = 20


@dataclass(frozen=True)
class State:
    """One dictionary of tensors.

    Attributes:
        name: the keys that lead to it, joined by dots; "" for the whole object.
        tensors: by key.
        others: entries of it that are no tensors.
    """

    name: str
    tensors: dict[Any, View | NumpyArray | Unsupported]
    others: dict[Any, Any]


def find_states(value: Any, limits: Limits) -> tuple[list[State], bool]:
    """State dicts in an object, the likeliest first; and whether some of it lies too deep.

    A dictionary is a state dict if at least half of it are tensors. Of those inside one another the
    one with more tensors counts.
    """
    found: list[State] = []
    too_deep = False
    for path, content, is_too_deep in _dictionaries(value, limits):
        too_deep = too_deep or is_too_deep
        tensors = {
            key: each
            for key, each in content.items()
            if isinstance(each, (View, NumpyArray, Unsupported))
        }
        if tensors and 2 * len(tensors) >= len(content) and not is_too_deep:
            others = {key: each for key, each in content.items() if key not in tensors}
            found.append(State(".".join(path), tensors, others))
    lesser = _lesser(found)
    kept = [state for state in found if state.name not in lesser]
    order = {state.name: index for index, state in enumerate(kept)}
    return sorted(kept, key=lambda state: (*_rank(state), order[state.name])), too_deep


def _dictionaries(
    value: Any, limits: Limits
) -> Iterator[tuple[tuple[str, ...], dict[Any, Any], bool]]:
    """Every dictionary reached through named entries: path, content, whether it lies too deep."""
    waiting: list[tuple[tuple[str, ...], Any]] = []
    if isinstance(value, CONTAINERS):
        waiting.append(((), value))
    seen: set[int] = set()
    while waiting and len(seen) < MAX_CONTAINERS:
        path, content = waiting.pop()
        if id(content) in seen:
            continue
        seen.add(id(content))
        if isinstance(content, dict):
            if "param_groups" in content and "state" in content:  # of an optimizer
                continue
            yield path, content, len(path) > limits.depth
        if len(path) <= limits.depth:
            entries = [(key, each) for key, each in _entries(content) if _may_lead(key, limits)]
            waiting.extend(((*path, key), each) for key, each in reversed(entries))


def _entries(content: Any) -> list[tuple[Any, Any]]:
    """What a container holds that may be a container."""
    if isinstance(content, dict):
        pairs = list(content.items())
    else:
        pairs = [(str(index), each) for index, each in enumerate(content[:MAX_SEQUENCE])]
    return [(key, each) for key, each in pairs if isinstance(each, CONTAINERS)]


def _may_lead(key: Any, limits: Limits) -> bool:
    """Whether an entry of this name may hold weights."""
    if not isinstance(key, str) or not 0 < len(key) <= limits.key_characters:
        return False
    return not key.lower().startswith(NO_WEIGHTS)


def _lesser(found: list[State]) -> set[str]:
    """Names of those with another one, inside or around them, that has more tensors."""
    sizes = {state.name: len(state.tensors) for state in found}
    lesser = set()
    for name in sizes:
        parts = name.split(".") if name else []
        for length in range(len(parts)):
            outer = ".".join(parts[:length])
            if outer in sizes and sizes[outer] != sizes[name]:
                lesser.add(min(outer, name, key=lambda each: sizes[each]))
    return lesser


def _rank(state: State) -> tuple[bool, int, int]:
    """How likely it is what is wanted: averages last, then by the name, then by size."""
    parts = state.name.lower().split(".")
    is_average = any(part.startswith(AVERAGES) or part.endswith("_ema") for part in parts)
    likely = min((LIKELY.index(part) for part in parts if part in LIKELY), default=len(LIKELY))
    return is_average, likely, -len(state.tensors)


def complete_states(states: list[State]) -> list[State]:
    """Those that may be of the same network as the first: at least half as many tensors."""
    complete = [state for state in states if 2 * len(state.tensors) >= len(states[0].tensors)]
    return complete[:MAX_OFFERED]


def is_module(value: Any) -> bool:
    """Whether an object is, or holds at its first level, a module pickled with its class."""
    held = value.values() if isinstance(value, dict) else [value]
    return any(
        isinstance(each, Opaque)
        and isinstance(each.state, dict)
        and {"_parameters", "_modules"} <= each.state.keys()
        for each in held
    )
