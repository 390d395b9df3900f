"""Centred Grams kept on disk by content, so that networks once read are compared at once.

In: a key of all that a layer's Grams depend on, and the Grams of its batches. Out: the same Grams,
rounded to 16 bits: each entry by less than 2e-5 of the largest, CKA by about 1e-6. (Half precision,
of the same size, rounds as well only where no entry is large.) Files are written whole or not at
all, and a file that is damaged is as good as none.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import struct
import tempfile
import time
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from analysis.gram import packed, unpacked_size

FloatArray = npt.NDArray[np.floating[Any]]

MAGIC = b"auglocal-gram-1\n"
CHECK = struct.Struct("<I")  # CRC-32 of all that follows
COUNT = struct.Struct("<I")  # number of batches
BATCH = struct.Struct("<Id")  # number of images, value of the largest 16-bit number
LARGEST = 2**15 - 1
DEFAULT_BYTES = 2 * 2**30
SUFFIX = ".gram"
ABANDONED_SECONDS = 3600.0  # after which a half-written file has no writer


def gram_key(
    *,
    checkpoint: str,
    images: str,
    layer: str,
    batch_sizes: Sequence[int],
    kernel: str = "linear",
    bandwidth: float | None = None,
    pooling: int | None = None,
    precision: str = "fp32",
) -> str:
    """Name the Grams of one layer by all that they depend on.

    Args:
        checkpoint: sha256 of the weights and how they are read.
        images: sha256 of the images, in order.
        layer: its name.
        batch_sizes: number of images of every batch, in order.
        kernel: "linear" or "rbf".
        bandwidth: of the RBF kernel; the linear kernel has none.
        pooling: s of features pooled to s x s; None for flattened ones.
        precision: "fp32" or "bf16".

    Returns:
        64 hexadecimal digits.
    """
    content = {
        "checkpoint": checkpoint,
        "images": images,
        "layer": layer,
        "batch_sizes": [int(size) for size in batch_sizes],
        "kernel": kernel,
        "bandwidth": None if kernel == "linear" or bandwidth is None else float(bandwidth),
        "pooling": pooling,
        "precision": precision,
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


class GramStore:
    """Grams in a folder, up to a number of bytes; those that lay unused longest go first.

    Several processes may use one folder.

    Args:
        folder: made where missing.
        max_bytes: of all files together.
    """

    def __init__(self, folder: Path | str, *, max_bytes: int = DEFAULT_BYTES) -> None:
        self.folder = Path(folder)
        self.max_bytes = max_bytes

    def get(self, key: str) -> list[FloatArray] | None:
        """Find the Grams of a layer.

        Args:
            key: from `gram_key`.

        Returns:
            of every batch the entries above the diagonal, (N (N - 1) / 2,) fp32 (float64 where they
            are too large or small for it), as `CKAAccumulator.update` takes them; None where
            nothing is kept or the file is damaged.
        """
        path = self._path(key)
        try:
            content = path.read_bytes()
        except OSError:
            return None
        grams = _decoded(content)
        with contextlib.suppress(OSError):
            if grams is None:
                path.unlink()
            else:
                os.utime(path)
        return grams

    def put(self, key: str, grams: Sequence[FloatArray]) -> bool:
        """Keep the Grams of a layer.

        Args:
            key: from `gram_key`.
            grams: of every batch (N, N) from `centred_gram`, or packed.

        Returns:
            whether they are kept: not if they alone exceed what the store may hold, or the disk
            does not take them.
        """
        content = _encoded(grams)
        if len(content) > self.max_bytes:
            return False
        path = self._path(key)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._make_room(len(content))
            _write_whole(path, content)
        except OSError:
            return False
        return True

    def size(self) -> int:
        """Count the bytes of all that is kept."""
        return sum(size for _time, size, _path in self._entries())

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}{SUFFIX}"

    def _entries(self) -> list[tuple[float, int, str]]:
        """List (last use, bytes, path) of the entries; half-written ones of dead writers go."""
        entries = []
        with contextlib.suppress(FileNotFoundError), os.scandir(self.folder) as found:
            for file in found:
                with contextlib.suppress(FileNotFoundError):
                    facts = file.stat()
                    if file.name.endswith(SUFFIX):
                        entries.append((facts.st_mtime, facts.st_size, file.path))
                    elif time.time() - facts.st_mtime > ABANDONED_SECONDS and _is_temporary(file):
                        Path(file.path).unlink()
        return entries

    def _make_room(self, needed: int) -> None:
        """Remove what was not used for longest, until `needed` bytes fit."""
        entries = sorted(self._entries())
        total = sum(size for _time, size, _path in entries)
        for _time, size, path in entries:
            if total + needed <= self.max_bytes:
                return
            Path(path).unlink(missing_ok=True)
            total -= size


def _is_temporary(file: os.DirEntry[str]) -> bool:
    return file.name.startswith(".writing-")


def _write_whole(path: Path, content: bytes) -> None:
    """Write a file under another name, then give it its own."""
    handle, temporary = tempfile.mkstemp(prefix=".writing-", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _encoded(grams: Sequence[FloatArray]) -> bytes:
    """Write Grams as sizes, scales and 16-bit numbers."""
    rows = [packed(matrix) for matrix in grams]
    heads, bodies = [], []
    for row in rows:
        largest = float(np.abs(row).max())
        heads.append(BATCH.pack(unpacked_size(len(row)), largest))
        if math.isfinite(largest) and largest > 0:
            steps = np.rint(row * (LARGEST / largest))
            bodies.append(steps.astype("<i2").tobytes())
        else:
            bodies.append(np.ones(len(row), "<i2").tobytes())  # times the scale: 0, inf or NaN
    payload = b"".join([COUNT.pack(len(rows)), *heads, *bodies])
    return MAGIC + CHECK.pack(zlib.crc32(payload)) + payload


def _decoded(content: bytes) -> list[FloatArray] | None:
    """Read what `_encoded` wrote; None where a byte is wrong or missing."""
    start = len(MAGIC) + CHECK.size
    if len(content) < start or not content.startswith(MAGIC):
        return None
    if zlib.crc32(memoryview(content)[start:]) != CHECK.unpack_from(content, len(MAGIC))[0]:
        return None
    count = COUNT.unpack_from(content, start)[0]
    start += COUNT.size
    heads = [BATCH.unpack_from(content, start + index * BATCH.size) for index in range(count)]
    start += count * BATCH.size
    grams = []
    for size, largest in heads:
        entries = size * (size - 1) // 2
        steps = np.frombuffer(content, "<i2", entries, start)
        start += 2 * entries
        grams.append(_scaled(steps, largest))
    return grams


def _scaled(steps: npt.NDArray[np.int16], largest: float) -> FloatArray:
    """Turn 16-bit numbers back into Gram entries."""
    if not math.isfinite(largest):
        return np.full(len(steps), largest, np.float32)
    limits = np.finfo(np.float32)
    fits = largest == 0 or float(limits.tiny) * LARGEST < largest < float(limits.max) / 2
    kind = np.float32 if fits else np.float64
    return np.multiply(steps, kind(largest / LARGEST), dtype=kind)
