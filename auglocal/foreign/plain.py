"""What stands beside the weights, as plain values: an epoch, an accuracy, the arguments of a run.

In: the object that was saved. Out: texts, numbers, lists and dictionaries, few and short enough for
a page and for JSON, whatever the file holds.
"""

from __future__ import annotations

from typing import Any

from auglocal.foreign.limits import Limits
from auglocal.foreign.names_of_containers import NAMESPACE
from auglocal.foreign.refusal import Refusal
from auglocal.foreign.states import State
from auglocal.foreign.tensors import RawTensor, View, read_view
from auglocal.foreign.values import NumpyArray, Opaque

MAX_PLAIN = 2_000
MAX_TEXT = 500
MAX_NAME = 80


def beside(value: Any, taken: list[State], limits: Limits) -> dict[str, Any]:
    """Plain values beside the weights, cut to a size that a page can show.

    Args:
        value: the object that was saved.
        taken: its state dicts, which are left out.
        limits: for the depth.

    Returns:
        What can be written as JSON: texts, numbers, lists and dictionaries of them.
    """
    if not isinstance(value, dict):
        return {}
    roots = {state.name.split(".")[0] for state in taken}
    entries = {
        key: each
        for key, each in value.items()
        if key not in roots and not (isinstance(key, str) and key.lower().startswith("optim"))
    }
    plain = _Plain(limits).read(entries, 0)
    return plain if isinstance(plain, dict) else {}


class _Plain:
    """Turns values into plain ones; counts them, since the same one may stand in many places."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.left = MAX_PLAIN

    def read(self, value: Any, depth: int) -> Any:
        """A value as plain ones; None for what is none or lies too deep."""
        self.left -= 1
        if isinstance(value, (View, NumpyArray)):
            return self._number(value)
        if isinstance(value, Opaque):
            value = value.state if value.name == NAMESPACE else None
        if isinstance(value, (dict, list, tuple, set, frozenset)):
            return self._container(value, depth) if depth < self.limits.depth else None
        return _scalar(value)

    def _container(self, value: Any, depth: int) -> Any:
        """A dictionary or list, without what is empty when read."""
        if isinstance(value, dict):
            read: dict[str, Any] = {}
            for key, each in value.items():
                if self.left <= 0:
                    break
                plain = self.read(each, depth + 1)
                if plain is not None and isinstance(key, (str, int)):
                    read[_text(str(key)[:MAX_NAME])] = plain
            return read or None
        chosen = []
        for each in _ordered(value) if isinstance(value, (set, frozenset)) else value:
            if self.left <= 0:
                break
            chosen.append(self.read(each, depth + 1))
        return chosen if any(each is not None for each in chosen) else None

    def _number(self, value: View | NumpyArray) -> Any:
        """A tensor of one element as a number."""
        view = value.view if isinstance(value, NumpyArray) else value
        if view is None or view.dtype == "bfloat16" or view.shape not in ((), [], (1,), [1]):
            return None
        try:
            return _scalar(_item(read_view("", view, self.limits)))
        except Refusal:
            return None


def _ordered(members: set[Any] | frozenset[Any]) -> list[Any]:
    """Texts and numbers of a set in an order that is the same in every process."""
    if len(members) > MAX_PLAIN:
        return []
    kept = [each for each in members if isinstance(each, (str, int, float))]
    return sorted(kept, key=lambda each: (type(each).__name__, str(each)))


def _item(tensor: RawTensor) -> Any:
    """The one element."""
    kind = "f" if tensor.dtype.startswith("F") else "u" if tensor.dtype.startswith("U") else "i"
    if tensor.dtype == "BOOL":
        return bool(tensor.data[0])
    return tensor.data.view(f"<{kind}{len(tensor.data)}")[0].item()


def _scalar(value: Any) -> Any:
    """A text or number that JSON can hold; None for anything else."""
    if isinstance(value, str):
        return _text(value[:MAX_TEXT])
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return str(value)
    if isinstance(value, int) and abs(value) >= 2**63:
        return hex(value)[:MAX_NAME]
    return value if isinstance(value, (bool, int, float)) else None


def _text(text: str) -> str:
    """A text that can be encoded."""
    return text.encode("utf-8", "replace").decode("utf-8")
