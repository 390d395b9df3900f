"""The clean copy of a file from outside: only tensors, and a text about where they came from.

In: what `read_file` gave. Out: the pieces of a safetensors file. Equal content gives equal bytes,
and a checkpoint of ours is copied byte for byte.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from auglocal.foreign.reader import FileContent
from auglocal.foreign.refusal import SHOWN_CHARACTERS
from auglocal.foreign.safetensors_file import write_safetensors

OWN_KEY = "auglocal"  # auglocal.checkpoint.METADATA_KEY, which imports PyTorch
ORIGIN_KEY = "origin"
MAX_HEADER_ENTRIES = 50
MAX_HEADER_TEXT = 2_000


def clean_copy(content: FileContent) -> Iterator[bytes | memoryview]:
    """The bytes of the clean copy, in pieces."""
    return write_safetensors(content.tensors, _metadata(content))


def read_origin(header: dict[str, str]) -> dict[str, Any] | None:
    """What a clean copy says about the file it was made from; None where it is no such copy.

    Args:
        header: metadata of a safetensors file.

    Returns:
        The attributes of a `FileContent` but its tensors. They came from outside: show them as
        text.
    """
    try:
        origin = json.loads(header[ORIGIN_KEY])
    except (KeyError, ValueError, RecursionError):
        return None
    if not isinstance(origin, dict) or origin.keys() != _origin(FileContent({}, "", "")).keys():
        return None
    return origin


def _metadata(content: FileContent) -> dict[str, str]:
    """What is kept as it is in files of ours and in copies of copies; the origin of others."""
    if OWN_KEY in content.header:
        return {OWN_KEY: content.header[OWN_KEY]}
    if content.header.keys() == {ORIGIN_KEY} and read_origin(content.header) is not None:
        return dict(content.header)
    return {ORIGIN_KEY: json.dumps(_origin(content), sort_keys=True)}


def _origin(content: FileContent) -> dict[str, Any]:
    """All that is known of the file, but its tensors and its name."""
    header = list(content.header.items())[:MAX_HEADER_ENTRIES]
    return {
        "container": content.container,
        "sha256": content.sha256,
        "wrapped_in": content.wrapped_in,
        "header": {key[:SHOWN_CHARACTERS]: text[:MAX_HEADER_TEXT] for key, text in header},
        "beside": content.beside,
        "other_states": list(content.other_states),
        "not_finite": list(content.not_finite),
        "warnings": list(content.warnings),
    }
