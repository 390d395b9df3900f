"""The files of torch.save, in all its forms, and raw pickles.

In: the bytes of a file. Out: the object that was saved, its tensors still as views of storages in
the file, nothing of it run. Source: torch/serialization.py of PyTorch 2.10 (`_save`,
`_legacy_save`, `_legacy_load`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from auglocal.foreign.limits import Limits
from auglocal.foreign.machine import Machine
from auglocal.foreign.names import Meanings
from auglocal.foreign.names_of_tensors import storage_type
from auglocal.foreign.refusal import Damage, Refusal
from auglocal.foreign.tensors import DTYPES, ITEM_BYTES, Storage
from auglocal.foreign.values import Budget
from auglocal.foreign.zip_file import Archive, check_stored, open_archive

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
LEGACY_PROTOCOL = 1001
# Bytes of an element by PyTorch's name of the type, also of those that are refused later.
STORED_BYTES = {
    **{name: ITEM_BYTES[dtype] for name, dtype in DTYPES.items()},
    "bytes": 1,
    "complex64": 8,
    "complex128": 16,
    "qint8": 1,
    "quint8": 1,
    "qint32": 4,
    "quint4x2": 1,
    "quint2x4": 1,
}
SCRIPT_ADVICE = (
    "open it in Python with torch.jit.load, and save model.state_dict() instead with torch.save"
)


@dataclass
class Saved:
    """What a file holds.

    Attributes:
        value: the object that was saved.
        container: "zip", "legacy" or "pickle".
        opaque: names of the classes whose instances were not read.
        broken: parts of a ZIP archive whose checksum is wrong, of those read so far.
    """

    value: Any
    container: str
    opaque: tuple[str, ...]
    broken: dict[str, None] = field(default_factory=dict)


def read_zip(content: memoryview, limits: Limits, describe: Callable[[Archive], Refusal]) -> Saved:
    """The object in a ZIP archive of torch.save.

    Args:
        content: the file's bytes.
        limits: for its lists and pickles.
        describe: the refusal of an archive that is none of torch.save's.

    Raises:
        Refusal: it is damaged, is something else, or contains code.
    """
    archive = open_archive(content, limits)
    names = [name for name in archive.entries if name.rsplit("/", 1)[-1] == "data.pkl"]
    if not names:
        raise describe(archive)
    main = min(names, key=lambda name: (name.count("/"), name))
    prefix = main.removesuffix("data.pkl")
    if prefix + "constants.pkl" in archive.entries or any(
        name.startswith(prefix + "code/") for name in archive.entries
    ):
        raise Refusal("is a TorchScript archive (code with its weights)", SCRIPT_ADVICE)
    check_stored(archive)
    _check_byte_order(archive, prefix)
    budget, broken = Budget.of(limits), dict[str, None]()
    meanings = Meanings(budget, _zip_storages(archive, prefix, broken), _no_nesting)
    value = Machine(archive.read(main), meanings).load()
    return Saved(value, "zip", tuple(budget.opaque), broken)


def read_pickles(content: memoryview, limits: Limits) -> Saved:
    """The object in a file of torch.save's older form, or in a bare pickle.

    Raises:
        Refusal: it is damaged or contains code.
    """
    budget = Budget.of(limits)
    storages = _LegacyStorages(content, budget)
    machine = Machine(content, Meanings(budget, storages.refer, _nesting(budget)))
    value = machine.load()
    if type(value) is not int or value != LEGACY_MAGIC:
        return Saved(value, "pickle", tuple(budget.opaque))
    return Saved(_read_legacy(machine, storages), "legacy", tuple(budget.opaque))


def _read_legacy(machine: Machine, storages: _LegacyStorages) -> Any:
    """What follows the magic number: version, system, object, list of storages, storages."""
    version, system, value, keys = (machine.load() for _ in range(4))
    if version != LEGACY_PROTOCOL:
        raise Damage("its format version is not PyTorch's")
    if isinstance(system, dict) and system.get("little_endian") is False:
        raise _big_endian()
    storages.locate(keys, machine.position)
    return value


def _check_byte_order(archive: Archive, prefix: str) -> None:
    """Only little-endian values are read; older files, which do not say, are."""
    if prefix + "byteorder" not in archive.entries:
        return
    order = bytes(archive.read(prefix + "byteorder")[:16])
    if order == b"big":
        raise _big_endian()
    if order != b"little":
        raise Damage("its byte order is unknown")


def _big_endian() -> Refusal:
    return Refusal(
        "holds big-endian numbers, and only little-endian ones are read",
        "load it on the machine that wrote it, and save model.state_dict() as safetensors",
    )


def _zip_storages(
    archive: Archive, prefix: str, broken: dict[str, None]
) -> Callable[[Any], Storage]:
    """What a reference to a storage means in a ZIP archive: the entry data/KEY."""
    checked: set[str] = set()

    def read(key: str, length: int) -> memoryview:
        name = f"{prefix}data/{key}"
        content = archive.read(name)
        if len(content) < length:
            raise Damage("one of its storages is shorter than it says")
        if name not in checked and not archive.is_intact(name):
            broken[name] = None
        checked.add(name)
        return content[:length]

    def refer(identifier: Any) -> Storage:
        dtype, key, num_elements, _ = _reference(identifier)
        length = num_elements * STORED_BYTES[dtype]
        return Storage(dtype, num_elements, lambda: read(key, length))

    return refer


class _LegacyStorages:
    """The storages behind a legacy pickle: referred to first, located when all is read."""

    def __init__(self, content: memoryview, budget: Budget) -> None:
        self.content = content
        self.budget = budget
        self.claims: dict[str, tuple[str, int]] = {}
        self.found: dict[str, memoryview] = {}

    def refer(self, identifier: Any) -> Storage:
        """A storage, or a part of one (key, offset and number of elements)."""
        dtype, key, num_elements, part = _reference(identifier)
        if self.claims.setdefault(key, (dtype, num_elements))[1] != num_elements:
            raise Damage("it gives a storage two sizes")
        start, count = 0, num_elements
        if part is not None:
            _, start, count = part
            if not _is_length(start) or not _is_length(count) or start + count > num_elements:
                raise Damage("a part of a storage reaches beyond it")
        size = STORED_BYTES[dtype]
        return Storage(dtype, count, lambda: self._read(key)[start * size : (start + count) * size])

    def _read(self, key: str) -> memoryview:
        if key not in self.found:
            raise Damage("one of its storages is missing")
        return self.found[key]

    def locate(self, keys: Any, position: int) -> None:
        """Find each storage: its number of elements in 8 bytes, then the elements."""
        if type(keys) is not list:
            raise Damage("its list of storages is malformed")
        self.budget.charge(len(keys))
        for key in keys:
            if type(key) is not str or key not in self.claims:
                raise Damage("its list of storages does not fit its content")
            dtype, num_elements = self.claims[key]
            count = int.from_bytes(self.content[position : position + 8], "little")
            end = position + 8 + count * STORED_BYTES[dtype]
            if count != num_elements or end > len(self.content):
                raise Damage("its storages are cut short or of another size than it says")
            self.found[key] = self.content[position + 8 : end]
            position = end


def _reference(identifier: Any) -> tuple[str, str, int, Any]:
    """Type, key, number of elements, and part of a reference to a storage."""
    if type(identifier) is not tuple or not identifier:
        raise Damage("it refers to a storage in no known way")
    if identifier[0] == "module":
        raise whole_module()
    if len(identifier) not in (5, 6) or identifier[0] != "storage":
        raise Damage("it refers to a storage in no known way")
    _, named, key, _, num_elements, *part = identifier
    key = str(key) if type(key) is int and 0 <= key < 2**63 else key
    if type(key) is not str or len(key) > 64 or not _is_length(num_elements):
        raise Damage("it refers to a storage in no known way")
    if part and part[0] is not None and (type(part[0]) is not tuple or len(part[0]) != 3):
        raise Damage("it refers to a part of a storage in no known way")
    return storage_type(named), key, num_elements, part[0] if part else None


def _is_length(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**63


def _nesting(budget: Budget) -> Callable[[memoryview], Storage]:
    """What a storage pickled outside torch.save means: it is a legacy file of its own."""

    def read(content: memoryview) -> Storage:
        storages = _LegacyStorages(content, budget)
        machine = Machine(content, Meanings(budget, storages.refer, _no_nesting))
        if machine.load() != LEGACY_MAGIC:
            raise Damage("a storage inside it is malformed")
        value = _read_legacy(machine, storages)
        if not isinstance(value, Storage):
            raise Damage("a storage inside it is malformed")
        return value

    return read


def _no_nesting(content: memoryview) -> Storage:
    raise Damage("it holds storages inside one another")


def whole_module() -> Refusal:
    """The refusal of a model that was pickled with its classes."""
    return Refusal(
        "holds a whole pickled module, which only the code that defines it can open",
        "load it where that code is, and save model.state_dict() instead with torch.save",
    )
