"""ZIP archives as torch.save writes them: entries stored as they are, one after another.

In: the bytes of a file. Out: the bytes of each entry, by name, without copying. Anything that
PyTorch does not write (compression, encryption, several disks) is refused, so that a small file
cannot unpack to a large one. Source: PKWARE's APPNOTE 6.3.10, sections 4.3.7, 4.3.12 to 4.3.16 and
4.5.3.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

from auglocal.foreign.limits import Limits
from auglocal.foreign.refusal import SAVE_AGAIN, Damage, Refusal, shown

END = struct.Struct("<4s4H2LH")
END_64_LOCATOR = struct.Struct("<4sLQL")
END_64 = struct.Struct("<4sQ2H2L4Q")
CENTRAL = struct.Struct("<4s6H3L5H2L")
LOCAL = struct.Struct("<4s5H3L2H")
MAX_COMMENT = 2**16
ENCRYPTED = 1
UNKNOWN_32 = 2**32 - 1


@dataclass(frozen=True)
class Entry:
    """Where an entry's bytes are.

    Attributes:
        name: with its folders.
        method: of compression, 0 for none.
        size: bytes, as stored.
        checksum: CRC-32 of them.
        header: offset of the entry's own header.
        is_encrypted: whether a password hides it.
    """

    name: str
    method: int
    size: int
    checksum: int
    header: int
    is_encrypted: bool


@dataclass(frozen=True)
class Archive:
    """A ZIP archive's bytes, and its entries by name."""

    content: memoryview
    entries: dict[str, Entry]

    def read(self, name: str) -> memoryview:
        """The bytes of an entry.

        Raises:
            Refusal: there is none, or it is not stored as it is.
        """
        if name not in self.entries:
            raise Damage(f"its part {shown(name)} is missing")
        entry = self.entries[name]
        header = _unpack(LOCAL, self.content, entry.header, b"PK\x03\x04")
        start = entry.header + LOCAL.size + header[9] + header[10]
        if start + entry.size > len(self.content):
            raise Damage(f"its part {shown(name)} is cut short")
        return self.content[start : start + entry.size]

    def is_intact(self, name: str) -> bool:
        """Whether an entry's bytes have the checksum that the archive gives for them."""
        return zlib.crc32(self.read(name)) == self.entries[name].checksum


def open_archive(content: memoryview, limits: Limits) -> Archive:
    """Read the list of entries.

    Raises:
        Refusal: the archive is damaged, too large, or not as PyTorch writes it.
    """
    try:
        entries: dict[str, Entry] = {}
        for entry in _entries(content, limits):
            if entry.name in entries:
                raise Damage(f"two of its parts are named {shown(entry.name)}")
            entries[entry.name] = entry
    except (struct.error, UnicodeDecodeError) as error:
        raise Damage("its list of parts is cut short or malformed") from error
    _check_apart(entries)
    return Archive(content, entries)


def _check_apart(entries: dict[str, Entry]) -> None:
    """Entries that share bytes would be read many times over."""
    end = 0
    for entry in sorted(entries.values(), key=lambda each: each.header):
        if entry.header < end:
            raise Damage("two of its parts overlap")
        end = entry.header + LOCAL.size + entry.size


def check_stored(archive: Archive) -> None:
    """Refuse compressed and encrypted entries.

    Raises:
        Refusal: naming the first.
    """
    for entry in archive.entries.values():
        if entry.is_encrypted or entry.method != 0:
            how = "encrypted" if entry.is_encrypted else "compressed"
            raise Refusal(
                f"holds {shown(entry.name)} {how}, and only stored entries are read",
                f"{SAVE_AGAIN}, which stores them",
            )


def _entries(content: memoryview, limits: Limits) -> Iterator[Entry]:
    """Each entry of the central list."""
    count, length, start = _central_list(content)
    if start + length > len(content):
        raise Damage("its list of parts is beyond its end")
    if length > limits.header_bytes or count > 8 * limits.entries:
        raise Refusal(
            f"is a ZIP archive of {count:,} parts, far more than a checkpoint has",
            f"give the checkpoint of one network with at most {limits.entries:,} tensors",
        )
    position = start
    for _ in range(count):
        fields = _unpack(CENTRAL, content, position, b"PK\x01\x02")
        name_length, extra_length, comment_length = fields[10:13]
        position += CENTRAL.size
        name = bytes(content[position : position + name_length]).decode("utf-8")
        extra = content[position + name_length : position + name_length + extra_length]
        position += name_length + extra_length + comment_length
        yield _entry(name, fields, extra)


def _entry(name: str, fields: tuple[int, ...], extra: memoryview) -> Entry:
    """An entry of the list, its sizes from the 64-bit field where they do not fit 32 bits."""
    compressed, size, header = fields[8], fields[9], fields[16]
    wide = iter(_wide_numbers(extra))
    size = next(wide, size) if size == UNKNOWN_32 else size
    compressed = next(wide, compressed) if compressed == UNKNOWN_32 else compressed
    header = next(wide, header) if header == UNKNOWN_32 else header
    method = fields[4]
    if method == 0 and compressed != size:
        raise Damage(f"its part {shown(name)} has two sizes")
    return Entry(name, method, compressed, fields[7], header, bool(fields[3] & ENCRYPTED))


def _wide_numbers(extra: memoryview) -> list[int]:
    """The 64-bit numbers in an entry's extra field, identifier 1."""
    position = 0
    while position + 4 <= len(extra):
        kind, length = struct.unpack_from("<2H", extra, position)
        if kind == 1:
            chosen = extra[position + 4 : position + 4 + length]
            return [number for (number,) in struct.iter_unpack("<Q", chosen[: length // 8 * 8])]
        position += 4 + length
    return []


def _central_list(content: memoryview) -> tuple[int, int, int]:
    """Number of entries, length and offset of the list, from the archive's end."""
    tail = bytes(content[-(END.size + MAX_COMMENT) :])
    place = tail.rfind(b"PK\x05\x06")
    if place < 0:
        raise Damage("its end is missing")
    fields = END.unpack_from(tail, place)
    end = len(content) - len(tail) + place
    if end >= END_64_LOCATOR.size and _is(content, end - END_64_LOCATOR.size, b"PK\x06\x07"):
        locator = END_64_LOCATOR.unpack_from(content, end - END_64_LOCATOR.size)
        wide = _unpack(END_64, content, locator[2], b"PK\x06\x06")
        return wide[7], wide[8], wide[9]
    return fields[4], fields[5], fields[6]


def _is(content: memoryview, position: int, signature: bytes) -> bool:
    return bytes(content[position : position + 4]) == signature


def _unpack(
    layout: struct.Struct, content: memoryview, position: int, signature: bytes
) -> tuple[int, ...]:
    """The fields of a header, of which the signature is the first."""
    if position + layout.size > len(content) or not _is(content, position, signature):
        raise Damage("its list of parts does not fit its content")
    return layout.unpack_from(content, position)
