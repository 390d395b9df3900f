"""Safetensors files, read and written: a JSON header, then the tensors one after another.

Reading checks everything that the format promises and the library's own reader lets pass or would
meet too late (sizes, names, duplicates, empty tensors). Writing gives, byte for byte, what the
safetensors library writes, so that a copy of its file is that file. NumPy only.
Source: the format's description in github.com/huggingface/safetensors, README.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from auglocal.foreign.limits import Limits
from auglocal.foreign.refusal import Damage, Refusal, shown
from auglocal.foreign.tensors import (
    BIT_TYPES,
    ITEM_BYTES,
    RawTensor,
    checked_shape,
    raw_tensor,
    unsupported_dtype,
)

METADATA = "__metadata__"
LENGTH_BYTES = 8


def looks_like_safetensors(content: memoryview) -> bool:
    """Whether bytes begin as such a file does: a length, and a header that fits, in braces."""
    length = int.from_bytes(content[:LENGTH_BYTES], "little")
    return bytes(content[8:9]) == b"{" and length < 2**40


def read_safetensors(
    content: memoryview, limits: Limits
) -> tuple[dict[str, RawTensor], dict[str, str]]:
    """Tensors by key, in the header's order, and the header's metadata.

    Raises:
        Refusal: the file is damaged, or exceeds the limits.
    """
    header, data = _split(content, limits)
    metadata = header.pop(METADATA, {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise Damage("its metadata are not texts by name")
    check_count(len(header), limits)
    spans = {key: _span(key, value, limits) for key, value in header.items()}
    _check_cover([span[2:] for span in spans.values()], len(data))
    tensors = {}
    for key, (dtype, shape, start, end) in spans.items():
        values = np.frombuffer(data[start:end], BIT_TYPES[ITEM_BYTES[dtype]])
        tensors[key] = raw_tensor(dtype, shape, values)
    return tensors, metadata


def check_count(num_tensors: int, limits: Limits) -> None:
    """Refuse a state dict of too many tensors, or of none.

    Raises:
        Refusal: saying how many.
    """
    if num_tensors == 0:
        raise Refusal("holds no tensors", "give a file with a model's state_dict()")
    if num_tensors > limits.entries:
        raise Refusal(
            f"holds {num_tensors:,} tensors, and at most {limits.entries:,} are read",
            "give the checkpoint of one network, without its optimizer",
        )


def check_bytes(num_bytes: int, limits: Limits) -> None:
    """Refuse tensors that together are too large.

    Raises:
        Refusal: saying how large.
    """
    if num_bytes > limits.tensor_bytes:
        raise Refusal(
            f"holds {num_bytes / 2**20:,.0f} MiB of tensors, and at most "
            f"{limits.tensor_bytes / 2**20:,.0f} MiB are read",
            "give a smaller model, or open it from the command line with a larger --max-bytes",
        )


def _split(content: memoryview, limits: Limits) -> tuple[dict[str, Any], memoryview]:
    """The header as a dictionary, and the bytes after it."""
    length = int.from_bytes(content[:LENGTH_BYTES], "little")
    if length > limits.header_bytes:
        raise Refusal(
            f"has a safetensors header of {length:,} bytes, and at most "
            f"{limits.header_bytes:,} are read",
            "copy or download it again, or give the checkpoint of one network",
        )
    if LENGTH_BYTES + length > len(content):
        raise Damage("its header is cut short")
    try:
        text = str(content[LENGTH_BYTES : LENGTH_BYTES + length], "utf-8")
        header = json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise Damage("its header is not valid JSON") from error
    if not isinstance(header, dict):
        raise Damage("its header is not a JSON object")
    return header, content[LENGTH_BYTES + length :]


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object whose names differ."""
    values = dict(pairs)
    if len(values) < len(pairs):
        raise Damage("its header gives the same name twice")
    return values


def _no_constant(name: str) -> float:
    raise ValueError(name)


def _span(key: str, value: Any, limits: Limits) -> tuple[str, tuple[int, ...], int, int]:
    """Type, shape and place of one tensor, as the header claims them."""
    if not isinstance(value, dict) or set(value) != {"dtype", "shape", "data_offsets"}:
        raise Damage(f"its header describes {shown(key)} in no known way")
    dtype, offsets = value["dtype"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in ITEM_BYTES:
        raise unsupported_dtype(key, dtype)
    shape = checked_shape(key, value["shape"], limits)
    if (
        not isinstance(offsets, list)
        or len(offsets) != 2
        or not all(type(each) is int and 0 <= each < 2**63 for each in offsets)
        or offsets[1] - offsets[0] != math.prod(shape) * ITEM_BYTES[dtype]
    ):
        raise Damage(f"the place of {shown(key)} does not fit its shape")
    return dtype, shape, offsets[0], offsets[1]


def _check_cover(places: list[tuple[int, int]], length: int) -> None:
    """Tensors must lie one after another, without overlap or gap, up to the end."""
    position = 0
    for start, end in sorted(places):
        if start != position:
            raise Damage("its tensors overlap or leave gaps")
        position = end
    if position != length:
        raise Damage(f"it has {length:,} bytes of tensors, and its header describes {position:,}")


def write_safetensors(
    tensors: Mapping[str, RawTensor], metadata: Mapping[str, str]
) -> Iterator[bytes | memoryview]:
    """The bytes of a file, in pieces.

    Tensors come by type, the widest first, then by key; the header is padded with spaces to 8
    bytes; both as the safetensors library does it.

    Args:
        tensors: by key.
        metadata: texts by name.
    """
    ranks = {dtype: rank for rank, dtype in enumerate(ITEM_BYTES)}
    order = sorted(tensors, key=lambda key: (ranks[tensors[key].dtype], key.encode()))
    header: dict[str, Any] = {METADATA: dict(sorted(metadata.items()))} if metadata else {}
    position = 0
    for key in order:
        tensor = tensors[key]
        end = position + len(tensor.data)
        header[key] = {
            "dtype": tensor.dtype,
            "shape": list(tensor.shape),
            "data_offsets": [position, end],
        }
        position = end
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % LENGTH_BYTES)
    yield len(text).to_bytes(LENGTH_BYTES, "little") + text
    for key in order:
        yield tensors[key].data.data
