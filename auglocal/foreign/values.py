"""What a pickle is read into, beside plain values; and the count of what all of it may take."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from auglocal.foreign.limits import Limits
from auglocal.foreign.refusal import Refusal
from auglocal.foreign.tensors import Unsupported, View

MAX_KEY = 1024  # characters of a dictionary's key; longer ones make comparisons slow
MAX_KEY_PARTS = 8


@dataclass(frozen=True, slots=True)
class Name:
    """Code as a pickle names it; never imported."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@dataclass(eq=False, slots=True)
class Opaque:
    """An instance of a class that is not read: the class's name, and the state it was to get."""

    name: str
    state: Any = None


@dataclass(eq=False)
class NumpyType:
    """A NumPy dtype: its code, "f4" say, and its byte order."""

    code: str
    order: str = "<"


@dataclass(eq=False)
class NumpyArray:
    """A NumPy array, empty until its state is set."""

    view: View | None = None


@dataclass
class Budget:
    """What all pickles of one file may still take, and the classes met that are not read."""

    steps: int
    text_bytes: int
    opaque: dict[str, None] = field(default_factory=dict)

    @classmethod
    def of(cls, limits: Limits) -> Budget:
        """The whole of what the limits allow."""
        return cls(limits.steps, limits.text_bytes)

    def charge(self, steps: int) -> None:
        """Count instructions or copied elements."""
        self.steps -= steps
        if self.steps < 0:
            raise _too_much("entries and objects")

    def charge_text(self, length: int) -> None:
        """Count bytes of text, or copied bytes."""
        self.text_bytes -= length
        if self.text_bytes < 0:
            raise _too_much("text")


def checked_key(key: Any) -> Any:
    """A dictionary's key or a set's member whose hash and comparison are cheap.

    A tuple's hash is computed anew each time, through all that is inside, so only flat ones pass.
    """
    if type(key) is tuple and len(key) <= MAX_KEY_PARTS:
        for part in key:
            if type(part) is tuple:
                raise TypeError("nested key")
            checked_key(part)
        return key
    if isinstance(key, (str, bytes)) and len(key) <= MAX_KEY:
        return key
    if type(key) is int and abs(key) < 2**64:
        return key
    if isinstance(key, (float, bool, Name, Opaque, View, Unsupported)) or key is None:
        return key
    raise TypeError("no key")


def raw(budget: Budget, content: Any) -> memoryview:
    """Bytes, also those that a Python 2 pickle holds as text."""
    if isinstance(content, str):
        budget.charge_text(len(content))
        content = content.encode("latin-1")
    if not isinstance(content, (bytes, memoryview)):
        raise TypeError("no bytes")
    return memoryview(content)


def _too_much(what: str) -> Refusal:
    return Refusal(
        f"holds far more {what} than a state dict",
        "save the weights alone with torch.save(model.state_dict(), PATH)",
    )
