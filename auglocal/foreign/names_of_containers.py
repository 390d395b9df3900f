"""What the names of containers and other plain values mean in a pickle."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from auglocal.foreign.values import Name, Opaque, checked_key, raw

if TYPE_CHECKING:
    from auglocal.foreign.names import Meanings

NAMESPACE = "argparse.Namespace"


def _dictionary(meanings: Meanings, arguments: tuple[Any, ...]) -> dict[Any, Any]:
    """OrderedDict and its like: empty, or of pairs."""
    pairs = arguments[0] if arguments else []
    if isinstance(pairs, dict):
        meanings.budget.charge(len(pairs))
        return dict(pairs)
    if not isinstance(pairs, (list, tuple)):
        raise TypeError("no pairs")
    meanings.budget.charge(len(pairs))
    return {checked_key(key): value for key, value in pairs}


def _default_dictionary(meanings: Meanings, arguments: tuple[Any, ...]) -> dict[Any, Any]:
    """Made with a factory, which is left out."""
    return _dictionary(meanings, arguments[1:])


def _set(meanings: Meanings, arguments: tuple[Any, ...]) -> set[Any]:
    values = arguments[0] if arguments else []
    if not isinstance(values, (list, tuple)):
        raise TypeError("no list")
    meanings.budget.charge(len(values))
    return {checked_key(value) for value in values}


def _sequence(meanings: Meanings, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    """A list, tuple or torch.Size."""
    values = arguments[0] if arguments else ()
    if not isinstance(values, (list, tuple)):
        raise TypeError("no list")
    meanings.budget.charge(len(values))
    return tuple(values)


def _encoded(meanings: Meanings, arguments: tuple[Any, ...]) -> bytes:
    """Bytes as protocol 2 writes them: a text to be encoded."""
    text, encoding = arguments if len(arguments) == 2 else (*arguments, "utf-8")
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1", "utf-8", "ascii"):
        raise TypeError("no text")
    meanings.budget.charge_text(len(text))
    return text.encode(encoding)


def _bytes(meanings: Meanings, arguments: tuple[Any, ...]) -> bytes:
    """bytes() or bytearray(), empty, of bytes, or of a text and its encoding."""
    if not arguments:
        return b""
    if isinstance(arguments[0], str):
        return _encoded(meanings, arguments)
    content = raw(meanings.budget, arguments[0])
    meanings.budget.charge_text(len(content))
    return bytes(content)


def _joined(meanings: Meanings, arguments: tuple[Any, ...], separator: str) -> str:
    """Texts and numbers as one text."""
    if not all(isinstance(each, str) or type(each) is int for each in arguments):
        raise TypeError("no texts")
    meanings.budget.charge_text(sum(len(each) for each in arguments if isinstance(each, str)))
    return separator.join(str(each) for each in arguments)


def _path(meanings: Meanings, arguments: tuple[Any, ...]) -> str:
    """A path as text; one from the root has it as its first part."""
    joined = _joined(meanings, arguments, "/")
    return joined[1:] if joined.startswith("//") else joined


def _device(meanings: Meanings, arguments: tuple[Any, ...]) -> str:
    """A device, its kind and index, as text; a memory layout likewise."""
    return _joined(meanings, arguments, ":")


def _attributes(meanings: Meanings, arguments: tuple[Any, ...]) -> Opaque:
    """A Namespace, whose state is read as a dictionary."""
    return meanings.opaque(NAMESPACE)


def _reconstructed(meanings: Meanings, arguments: tuple[Any, ...]) -> Any:
    """An instance of a class: the class comes first."""
    named = arguments[0]
    if type(named) is not Name:
        raise TypeError("no class")
    return meanings.call(named, (), is_new=True)


def _partial(meanings: Meanings, arguments: tuple[Any, ...]) -> Opaque:
    """A function with arguments, called later: stays inert."""
    return meanings.opaque("functools.partial")


CALLS: dict[str, Callable[[Meanings, tuple[Any, ...]], Any]] = {
    "collections.OrderedDict": _dictionary,
    "collections.Counter": _dictionary,
    "collections.defaultdict": _default_dictionary,
    "builtins.dict": _dictionary,
    "builtins.set": _set,
    "builtins.frozenset": _set,
    "builtins.list": _sequence,
    "builtins.tuple": _sequence,
    "builtins.bytes": _bytes,
    "builtins.bytearray": _bytes,
    "_codecs.encode": _encoded,
    "copyreg._reconstructor": _reconstructed,
    "copyreg.__newobj__": _reconstructed,
    "functools.partial": _partial,
    "argparse.Namespace": _attributes,
    "types.SimpleNamespace": _attributes,
    **{
        f"pathlib.{kind}{name}": _path
        for kind in ("", "Pure")
        for name in ("Path", "PosixPath", "WindowsPath")
    },
    "torch.Size": _sequence,
    "torch.device": _device,
    "torch.serialization._get_layout": _device,
}
