"""Frozen results as plain JSON values, and back by the types that their fields declare.

In: dataclasses of numbers, texts, tuples, dictionaries and numpy arrays. Out: the same arrays bit
for bit; NaN is null. What does not fit its type is refused with the name of the field.
"""

from __future__ import annotations

import types
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, TypeVar, Union, cast, get_args, get_origin, get_type_hints

import numpy as np

Record = dict[str, Any]
INFINITE = "inf"
Value = TypeVar("Value")


def plain(value: Any) -> Any:
    """Turn a result into JSON values.

    Args:
        value: a dataclass instance, or what its fields may hold.

    Returns:
        dictionaries, lists, numbers, texts and None; matrices are nested lists, NaN is None.
    """
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, np.ndarray):
        return _plain_array(value)
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, float) and np.isinf(value):
        return INFINITE if value > 0 else f"-{INFINITE}"  # JSON has no infinity
    return None if isinstance(value, float) and np.isnan(value) else value


def _plain_array(array: Any) -> Any:
    if not np.issubdtype(array.dtype, np.floating):
        return array.tolist()
    values = array.astype(object)
    values[np.isnan(array)] = None
    return values.tolist()


def parse(kind: type[Value], record: Any) -> Value:
    """Build a dataclass from JSON values; a field that is missing takes its default.

    Args:
        kind: the dataclass.
        record: what `plain` gave, perhaps by an older version with fewer fields.

    Raises:
        KeyError: a field without a default is missing.
        TypeError: a value is of another type than its field; the message names the field.
        ValueError: a number is too large, or an array is ragged.
    """
    return cast(Value, _parse(kind, record))


def _parse(kind: Any, value: Any) -> Any:
    """Pass a value of a declared kind."""
    if is_dataclass(kind):
        return _parse_fields(kind, checked(value, dict))
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        own = next(argument for argument in arguments if argument is not types.NoneType)
        return None if value is None else _parse(own, value)
    if origin is tuple:
        return _parse_tuple(arguments, checked(value, list))
    if origin is dict:
        return {key: _parse(arguments[1], item) for key, item in checked(value, dict).items()}
    if origin is np.ndarray:
        return _parse_array(arguments[1], checked(value, list))
    return value if kind is Any else checked(value, kind)


def _parse_tuple(arguments: tuple[Any, ...], values: list[Any]) -> tuple[Any, ...]:
    """Pass a list of equals, or of as many as are declared."""
    if arguments[-1] is Ellipsis:
        return tuple(_parse(arguments[0], item) for item in values)
    if len(values) != len(arguments):
        raise TypeError(f"a list of {len(values)} instead of {len(arguments)}")
    return tuple(_parse(kind, item) for kind, item in zip(arguments, values, strict=True))


def _parse_fields(kind: Any, record: Record) -> Any:
    """Build a dataclass, naming the field that is wrong."""
    hints = get_type_hints(kind)
    values = {}
    for field in fields(kind):
        hint = hints[field.name]
        if field.name in record:
            values[field.name] = _parse_named(field.name, hint, record[field.name])
        elif types.NoneType in get_args(hint):
            values[field.name] = None if field.default is MISSING else field.default
        elif field.default is MISSING and field.default_factory is MISSING:
            raise KeyError(field.name)
    return kind(**values)


def _parse_named(name: str, hint: Any, value: Any) -> Any:
    try:
        return _parse(hint, value)
    except (TypeError, ValueError, OverflowError) as error:
        if isinstance(error, _NamedTypeError | _NamedValueError):
            raise
        named = _NamedTypeError if isinstance(error, TypeError) else _NamedValueError
        raise named(f"{name} is {error}") from error


class _NamedTypeError(TypeError):
    """Says which field is of the wrong type."""


class _NamedValueError(ValueError):
    """Says which field has a wrong value."""


def _parse_array(dtype: Any, values: list[Any]) -> Any:
    """Build a float64, int64 or bool array; null becomes NaN in the first."""
    scalar = get_args(dtype)[0]
    scalar = get_origin(scalar) or scalar
    try:
        array = np.array(values, dtype=np.float64 if issubclass(scalar, np.floating) else None)
    except ValueError as error:
        raise ValueError("no table of numbers with rows of one length") from error
    if issubclass(scalar, np.floating):
        if np.isinf(array).any():
            raise ValueError("wrong: it holds a number that is too large")
        return array
    if array.size == 0:
        return array.astype(np.int64)
    if array.dtype != np.bool_ and array.dtype != np.int64:
        raise TypeError(f"an array of {array.dtype} instead of whole numbers")
    return array


def checked(value: Any, kind: type[Value]) -> Value:
    """Pass a value of a kind; a whole number is a float too, a truth value is no number."""
    if kind is float and value in (INFINITE, f"-{INFINITE}"):
        return cast(Value, float(cast(str, value)))
    if kind is float and type(value) is int:
        return cast(Value, float(value))
    if type(value) is not kind:
        raise TypeError(f"a {type(value).__name__} instead of a {kind.__name__}")
    return value
