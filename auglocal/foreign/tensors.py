"""Tensors as bytes with a type and a shape: checked, copied out of a file, tested for NaN.

In: a storage (bytes in a file) and a view of it (offset, sizes, strides), as the file claims them.
Out: tensors that own their memory. NumPy only, so that the child process starts without PyTorch.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from auglocal.foreign.limits import Limits
from auglocal.foreign.refusal import SAVE_AGAIN, Damage, Refusal, shown

if TYPE_CHECKING:
    from torch import Tensor

# Bytes of an element by the type's name in safetensors, in the order in which that library writes
# tensors (its Dtype enumeration, from the last to the first).
ITEM_BYTES = {
    "U64": 8,
    "I64": 8,
    "F64": 8,
    "F32": 4,
    "U32": 4,
    "I32": 4,
    "BF16": 2,
    "F16": 2,
    "U16": 2,
    "I16": 2,
    "I8": 1,
    "U8": 1,
    "BOOL": 1,
}
TORCH_NAMES = {
    "U64": "uint64",
    "I64": "int64",
    "F64": "float64",
    "F32": "float32",
    "U32": "uint32",
    "I32": "int32",
    "BF16": "bfloat16",
    "F16": "float16",
    "U16": "uint16",
    "I16": "int16",
    "I8": "int8",
    "U8": "uint8",
    "BOOL": "bool",
}
DTYPES = {name: dtype for dtype, name in TORCH_NAMES.items()}
BIT_TYPES: dict[int, np.dtype[Any]] = {size: np.dtype(f"<u{size}") for size in (1, 2, 4, 8)}
# The bits of the exponent: all set in NaN and infinity, and in nothing else (IEEE 754; bfloat16 is
# the upper half of a float32).
EXPONENTS = {"F64": 0x7FF << 52, "F32": 0xFF << 23, "BF16": 0xFF << 7, "F16": 0x1F << 10}
CHUNK = 2**22  # elements tested at a time, so that the test takes little memory


@dataclass(frozen=True, eq=False)
class RawTensor:
    """One tensor in memory of its own.

    Attributes:
        dtype: a name in `ITEM_BYTES`.
        shape: sizes, all at least 1; () for a single number.
        data: (bytes,) uint8, elements in row-major order, little-endian.
    """

    dtype: str
    shape: tuple[int, ...]
    data: np.ndarray[Any, np.dtype[np.uint8]]

    def to_torch(self) -> Tensor:
        """The same memory as a PyTorch tensor."""
        import torch

        dtype: torch.dtype = getattr(torch, TORCH_NAMES[self.dtype])
        return torch.from_numpy(self.data).view(dtype).reshape(self.shape)

    def is_finite(self) -> bool:
        """Whether it holds neither NaN nor infinity."""
        if self.dtype not in EXPONENTS:
            return True
        bits = self.data.view(BIT_TYPES[ITEM_BYTES[self.dtype]])
        exponent = bits.dtype.type(EXPONENTS[self.dtype])
        return not any(
            bool(((bits[start : start + CHUNK] & exponent) == exponent).any())
            for start in range(0, bits.size, CHUNK)
        )


@dataclass(frozen=True, eq=False, slots=True)
class Storage:
    """A run of elements in a file, as a pickle claims it.

    Attributes:
        dtype: PyTorch's name of the type, "float32" say; perhaps one that is refused.
        num_elements: what the pickle says.
        content: gives its bytes; raises Refusal where the file does not hold them.
    """

    dtype: str
    num_elements: int
    content: Callable[[], memoryview]


@dataclass(frozen=True, eq=False, slots=True)
class View:
    """A tensor as a pickle claims it, nothing checked yet: all values are whatever stood there."""

    storage: Storage
    offset: Any
    shape: Any
    stride: Any
    dtype: str


@dataclass(frozen=True, eq=False)
class Unsupported:
    """A tensor of a kind that is not read, such as a sparse one."""

    kind: str


def read_view(key: str, view: View, limits: Limits) -> RawTensor:
    """Copy one tensor out of its storage.

    Raises:
        Refusal: its claims do not fit together, exceed the limits, or the file lacks its bytes.
    """
    dtype = supported_dtype(key, view.dtype)
    shape = checked_shape(key, view.shape, limits)
    offset, stride = _checked_layout(key, view, shape)
    size = ITEM_BYTES[dtype]
    content = view.storage.content()
    items = np.frombuffer(content, BIT_TYPES[size], count=len(content) // size)
    if _last(offset, shape, stride) >= items.size:
        raise Damage(f"the tensor {shown(key)} reaches beyond its storage")
    strided = np.lib.stride_tricks.as_strided(
        items[offset:], shape, [size * each for each in stride], writeable=False
    )
    return raw_tensor(dtype, shape, strided)


def raw_tensor(dtype: str, shape: tuple[int, ...], values: np.ndarray[Any, Any]) -> RawTensor:
    """A tensor in memory of its own from values of the same size as its type's."""
    copied = np.array(values, order="C", copy=True).reshape(-1).view(np.uint8)
    if dtype == "BOOL":  # any other byte than 0 and 1 is undefined behaviour in PyTorch
        np.minimum(copied, 1, out=copied)
    return RawTensor(dtype, shape, copied)


def supported_dtype(key: str, torch_name: str) -> str:
    """A type's name in safetensors, from its name in PyTorch.

    Raises:
        Refusal: it is none of those that are read.
    """
    if torch_name not in DTYPES:
        raise unsupported_dtype(key, torch_name)
    return DTYPES[torch_name]


def unsupported_dtype(key: str, name: str) -> Refusal:
    """The refusal of complex numbers, 8-bit floats, quantised values and the like."""
    return Refusal(
        f"holds {shown(key)} as {shown(name)}, and only float16, bfloat16, float32, float64, "
        "integers and bool are read",
        "convert the model with model.float(), and save its state_dict() again",
    )


def checked_shape(key: str, shape: Any, limits: Limits) -> tuple[int, ...]:
    """A shape as a tuple of sizes.

    Raises:
        Refusal: it is not a shape, is empty, or exceeds the limits.
    """
    if not isinstance(shape, (tuple, list)) or not all(_is_count(each) for each in shape):
        raise Damage(f"the tensor {shown(key)} has no valid shape")
    if len(shape) > limits.dimensions:
        raise Refusal(
            f"holds {shown(key)} with {len(shape)} dimensions, and at most {limits.dimensions} "
            "are read",
            "give the checkpoint of an image classifier",
        )
    if 0 in shape:
        raise Refusal(
            f"holds {shown(key)} of the shape {list(shape)}, which has no elements",
            f"remove this entry, and {SAVE_AGAIN}",
        )
    if math.prod(shape) > limits.elements:
        raise Refusal(
            f"holds {shown(key)} with {_count(math.prod(shape))} elements, and at most "
            f"{limits.elements:,} are read",
            "give a smaller model",
        )
    return tuple(shape)


def _checked_layout(key: str, view: View, shape: tuple[int, ...]) -> tuple[int, tuple[int, ...]]:
    """Offset and strides, in elements, that stay within what the storage claims to hold."""
    stride, offset = view.stride, view.offset
    if (
        not isinstance(stride, (tuple, list))
        or len(stride) != len(shape)
        or not all(_is_count(each) for each in (*stride, offset, view.storage.num_elements))
    ):
        raise Damage(f"the tensor {shown(key)} has no valid strides")
    if math.prod(shape) > view.storage.num_elements:
        raise Refusal(
            f"holds {shown(key)}, whose elements x size exceed its storage "
            f"({_count(math.prod(shape))} elements, {_count(view.storage.num_elements)} stored)",
            "save it again with every tensor.contiguous()",
        )
    if _last(offset, shape, tuple(stride)) >= view.storage.num_elements:
        raise Damage(f"the tensor {shown(key)} reaches beyond its storage")
    return offset, tuple(stride)


def _last(offset: int, shape: tuple[int, ...], stride: tuple[int, ...]) -> int:
    """Index in the storage of a tensor's last element."""
    return offset + sum((size - 1) * step for size, step in zip(shape, stride))


def _is_count(value: Any) -> bool:
    """Whether a value is a whole number that fits a tensor's size, offset or stride."""
    return type(value) is int and 0 <= value < 2**63


def _count(number: int) -> str:
    """A number from outside: in full, or that it is beyond all bounds."""
    return f"{number:,}" if number < 10**15 else "over 10^15"
