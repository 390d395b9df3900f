"""What NumPy's names mean in a pickle: its numbers as plain ones, its arrays as views of bytes."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from auglocal.foreign.tensors import BIT_TYPES, Storage, View
from auglocal.foreign.values import NumpyArray, NumpyType, Opaque, raw

if TYPE_CHECKING:
    from auglocal.foreign.names import Meanings

NUMPY_TYPES = {
    "f2": "float16",
    "f4": "float32",
    "f8": "float64",
    "i1": "int8",
    "i2": "int16",
    "i4": "int32",
    "i8": "int64",
    "u1": "uint8",
    "u2": "uint16",
    "u4": "uint32",
    "u8": "uint64",
    "b1": "bool",
}


def _numpy_type(meanings: Meanings, arguments: tuple[Any, ...]) -> NumpyType:
    code = arguments[0]
    if not isinstance(code, str) or len(code) > 8:
        raise TypeError("no dtype")
    return NumpyType(code)


def set_type(target: NumpyType, state: Any) -> None:
    """State: version, byte order, and what only structured types have."""
    target.order = ">" if state[1] == ">" else "<"


def _numpy_scalar(meanings: Meanings, arguments: tuple[Any, ...]) -> Any:
    """One number as a plain one."""
    kind, content = arguments
    view = _array(meanings, kind, content, (), False)
    if view.dtype not in NUMPY_TYPES.values():
        return Opaque("numpy scalar")
    numbers = np.frombuffer(view.storage.content(), np.dtype(f"<{kind.code}"), count=1)
    return numbers[0].item()


def _empty_array(meanings: Meanings, arguments: tuple[Any, ...]) -> NumpyArray:
    return NumpyArray()


def set_array(meanings: Meanings, target: NumpyArray, state: Any) -> None:
    """State: version, shape, dtype, whether in Fortran's order, bytes."""
    _, shape, kind, is_fortran, content = state
    target.view = _array(meanings, kind, content, shape, bool(is_fortran))


def _buffer_array(meanings: Meanings, arguments: tuple[Any, ...]) -> NumpyArray:
    """Protocol 5: bytes, dtype, shape, order."""
    content, kind, shape, order = arguments
    return NumpyArray(_array(meanings, kind, content, shape, order == "F"))


def _array(meanings: Meanings, kind: Any, content: Any, shape: Any, is_fortran: bool) -> View:
    """An array as a view of its bytes."""
    if not isinstance(kind, NumpyType) or not isinstance(shape, (tuple, list)) or len(shape) > 32:
        raise TypeError("no array")
    dtype = NUMPY_TYPES.get(kind.code) if kind.order == "<" else None
    if dtype is None or not all(type(each) is int for each in shape):
        return View(Storage("object", 0, lambda: memoryview(b"")), 0, shape, shape, "object")
    data = raw(meanings.budget, content)
    size = int(kind.code[1:])
    storage = Storage(dtype, len(data) // BIT_TYPES[size].itemsize, lambda: data)
    order = shape if is_fortran else shape[::-1]
    steps = [math.prod(order[:index]) for index in range(len(order))]
    return View(storage, 0, tuple(shape), steps if is_fortran else steps[::-1], dtype)


CALLS: dict[str, Callable[[Meanings, tuple[Any, ...]], Any]] = {
    "numpy.dtype": _numpy_type,
    "numpy.core.multiarray.scalar": _numpy_scalar,
    "numpy.core.multiarray._reconstruct": _empty_array,
    "numpy.core.numeric._frombuffer": _buffer_array,
}
