"""Every good and bad file of the tables: how each is made, and what must come of it.

Bad files come with words that their sentence must hold. A file that wants code to be run would make
the file SENTINEL in its folder. Made with PyTorch, pickle, zipfile, or byte by byte.
"""

from __future__ import annotations

import argparse
import datetime
import enum
import gzip
import io
import json
import lzma
import os
import pathlib
import pickle
import pickletools
import struct
import subprocess
import tarfile
import warnings
import zipfile
from collections import OrderedDict, defaultdict
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

SENTINEL = "ran"
Make = Callable[[Path], bytes]


def state(seed: int = 0) -> dict[str, Tensor]:
    """A small state dict: weights, a counter, a tensor that shares memory with another."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(4, 3, 3, 3, generator=generator)
    return OrderedDict(
        {
            "conv.weight": weight,
            "conv.bias": torch.randn(4, generator=generator),
            "norm.num_batches_tracked": torch.tensor(7),
            "head.weight": torch.randn(8, 4, generator=generator).t(),
            "tied.weight": weight,
        }
    )


# Ways to write an object


def in_zip(value: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def in_legacy(value: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer, _use_new_zipfile_serialization=False)
    return buffer.getvalue()


def pickled(value: Any, protocol: int = 2) -> bytes:
    return pickle.dumps(value, protocol)


def zip_with(entries: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def zip_around(program: bytes, storages: dict[str, bytes] | None = None, **more: bytes) -> bytes:
    """An archive of torch.save around a pickle made by hand."""
    entries = {"archive/data.pkl": program, "archive/byteorder": b"little", "archive/version": b"3"}
    entries |= {f"archive/data/{key}": content for key, content in (storages or {}).items()}
    entries |= {f"archive/{key}": content for key, content in more.items()}
    return zip_with(entries)


def legacy_around(program: bytes) -> bytes:
    """A legacy file around a pickle made by hand, without storages."""
    magic, version = pickled(0x1950A86A20F9469CFC6C), pickled(1001)
    system = pickled({"protocol_version": 1001, "little_endian": True, "type_sizes": {}})
    return magic + version + system + program + pickled([])


def safetensors_with(header: Any, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def span(start: int, end: int, shape: list[int], dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


# Pickles made by hand. A tensor is `torch._utils._rebuild_tensor_v2` of a storage, an offset,
# sizes, strides, and three values of no interest.


def number(value: int) -> bytes:
    return pickle.LONG1 + bytes([9]) + value.to_bytes(9, "little", signed=True)


def numbers(values: tuple[int, ...]) -> bytes:
    return pickle.MARK + b"".join(number(value) for value in values) + pickle.TUPLE


def text(value: str) -> bytes:
    encoded = value.encode("utf-8", "surrogatepass")
    return pickle.BINUNICODE + struct.pack("<I", len(encoded)) + encoded


def name(module: str, attribute: str) -> bytes:
    return pickle.GLOBAL + f"{module}\n{attribute}\n".encode()


def storage(num_elements: int, key: str = "0", kind: str = "FloatStorage") -> bytes:
    parts = text("storage") + name("torch", kind) + text(key) + text("cpu") + number(num_elements)
    return pickle.MARK + parts + pickle.TUPLE + pickle.BINPERSID


def tensor(
    num_elements: int,
    offset: int,
    shape: tuple[int, ...],
    stride: tuple[int, ...],
    key: str = "0",
    kind: str = "FloatStorage",
) -> bytes:
    arguments = storage(num_elements, key, kind) + number(offset) + numbers(shape) + numbers(stride)
    return (
        name("torch._utils", "_rebuild_tensor_v2")
        + pickle.MARK
        + arguments
        + (pickle.NEWFALSE + pickle.EMPTY_DICT + pickle.TUPLE + pickle.REDUCE)
    )


def program(*entries: tuple[bytes, bytes]) -> bytes:
    """A pickle of a dictionary."""
    items = b"".join(key + value for key, value in entries)
    return pickle.PROTO + b"\x02}" + pickle.MARK + items + pickle.SETITEMS + pickle.STOP


def forged(*arguments: Any, stored: int = 16, **options: Any) -> bytes:
    """A ZIP file of one tensor with claims of one's own, over `stored` bytes."""
    entry = (text("weight"), tensor(*arguments, **options))
    return zip_around(program(entry), {"0": bytes(stored)})


# What wants code to be run


class Runs:
    """Pickles as a call."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


def touching(folder: Path) -> Runs:
    return Runs(os.system, f"touch '{folder / SENTINEL}'")


def touching_state(folder: Path) -> dict[str, Any]:
    return {"state_dict": state(), "extra": touching(folder)}


class Settings:
    """A user's class, as stands beside weights."""

    def __init__(self) -> None:
        self.rate = 0.1


class Shade(enum.Enum):
    """Pickles as a call of a class of the user's."""

    DARK = 1


def touching_line(folder: Path, *, module: str = "os", attribute: str = "system") -> bytes:
    """Protocol 0, by the old instruction INST."""
    command = f"touch {folder / SENTINEL}"
    return f"(S'{command}'\ni{module}\n{attribute}\n.".encode()


def eval_by_new_object(folder: Path) -> bytes:
    command = f"open({str(folder / SENTINEL)!r}, 'w')"
    return (
        b"\x80\x02"
        + name("builtins", "eval")
        + text(command)
        + (pickle.TUPLE1 + pickle.NEWOBJ + pickle.STOP)
    )


def dotted(folder: Path) -> bytes:
    """Protocol 4 reaches os through a module that is harmless itself."""
    call = text("collections.abc") + text("sys.modules.os.system") + pickle.STACK_GLOBAL
    command = text(f"touch {folder / SENTINEL}")
    return b"\x80\x04" + call + command + pickle.TUPLE1 + pickle.REDUCE + pickle.STOP


def unpickled_twice(folder: Path) -> bytes:
    return pickled(Runs(pickle.loads, pickled(touching(folder))))


# Bombs


def laughs(kind: bytes = pickle.EMPTY_LIST, levels: int = 64) -> bytes:
    """Containers that hold the one before ten times: 10^64 in all, if anybody counts."""
    level = b"".join(
        kind
        + pickle.MARK
        + (pickle.BINGET + bytes([index])) * 10
        + pickle.APPENDS
        + (pickle.BINPUT + bytes([index + 1]))
        for index in range(levels)
    )
    return b"\x80\x02" + pickle.EMPTY_LIST + pickle.BINPUT + b"\x00" + level + pickle.STOP


def laughing_key() -> bytes:
    """A tuple of tuples as a key, whose hash takes 2^100 steps."""
    doubled = (pickle.BINPUT + b"\x00" + pickle.BINGET + b"\x00" + pickle.TUPLE2) * 100
    return b"\x80\x02}" + pickle.EMPTY_TUPLE + doubled + pickle.NONE + pickle.SETITEM + pickle.STOP


def repeated_copies() -> bytes:
    """A list of 50,000 turned into a set 50,000 times."""
    values = pickle.EMPTY_LIST + pickle.MARK + b"K\x01" * 50_000 + pickle.APPENDS
    once = (
        name("builtins", "set")
        + pickle.BINGET
        + b"\x00"
        + (pickle.TUPLE1 + pickle.REDUCE + pickle.POP)
    )
    return b"\x80\x02" + values + pickle.BINPUT + b"\x00" + once * 50_000 + pickle.STOP


def compared_keys() -> bytes:
    """A long key set again and again by an equal text that is another object."""
    long = text("k" * 1_000_000)
    first = b"\x80\x02}" + long + pickle.BINPUT + b"\x00" + pickle.NONE + pickle.SETITEM
    again = long + pickle.BINPUT + b"\x01" + pickle.NONE + pickle.SETITEM
    many = (pickle.BINGET + b"\x01" + pickle.NONE + pickle.SETITEM) * 100_000
    return first + again + many + pickle.STOP


def laughter(levels: int = 64) -> list[Any]:
    """A list that holds ten times the same list, which holds ten times the same list."""
    value: list[Any] = ["ha"]
    for _ in range(levels):
        value = [value] * 10
    return value


def old_module() -> bytes:
    """PyTorch before 1.6 wrote a module's source beside it."""
    parts = text("module") + name("__main__", "Net") + text("net.py") + text("class Net: ...")
    identifier = pickle.MARK + parts + pickle.TUPLE + pickle.BINPERSID
    return legacy_around(b"\x80\x02" + identifier + b")\x81}b.")


def deep(levels: int) -> Any:
    """A state dict inside dictionaries inside one another."""
    value: Any = state()
    for _ in range(levels):
        value = {"inner": value}
    return value


def nested_program(levels: int) -> bytes:
    """Dictionaries inside one another, deeper than Python can call itself."""
    begin = (pickle.EMPTY_DICT + text("inner")) * levels
    return b"\x80\x02" + begin + pickle.NONE + pickle.SETITEM * levels + pickle.STOP


def endless(levels: int = 3) -> bytes:
    """A dictionary that holds itself."""
    entry = text("self") + pickle.BINGET + b"\x00" + pickle.SETITEM
    return b"\x80\x02}" + pickle.BINPUT + b"\x00" + entry * levels + pickle.STOP


# Damage


def changed(content: bytes, old: bytes, new: bytes) -> bytes:
    """Bytes with one place replaced, which must be there."""
    assert old in content
    return content.replace(old, new, 1)


def encrypted_zip() -> bytes:
    content = bytearray(in_zip(state()))
    place = content.index(b"PK\x01\x02")
    content[place + 8] |= 1
    return bytes(content)


def duplicate_entries() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for _ in range(2):
            archive.writestr("archive/data.pkl", pickled(1))
    return buffer.getvalue()


def moved_entry() -> bytes:
    """The list of entries points outside the file."""
    content = bytearray(in_zip(state()))
    place = content.index(b"PK\x01\x02")
    content[place + 42 : place + 46] = b"\xf0\xff\xff\x7f"
    return bytes(content)


def overlapping_entries() -> bytes:
    """Many entries of the list point to the same bytes, each to be read in full."""
    content = in_zip({"a": torch.zeros(1000), "b": torch.zeros(1000)})
    first, second = (content.rindex(b"archive/data/" + each) - 4 for each in (b"0", b"1"))
    place = content[first : first + 4]
    return content[:second] + place + content[second + 4 :]


def many_tensors() -> bytes:
    storages = {"0": bytes(16)}
    one = tensor(4, 0, (4,), (1,))
    return zip_around(program(*((text(f"k{i}"), one) for i in range(5_001))), storages)


def flood_of_tensors() -> bytes:
    one = (
        name("torch._utils", "_rebuild_tensor_v2")
        + pickle.MARK
        + pickle.BINGET
        + b"\x00"
        + (b"K\x00" + b"K\x01\x85" + b"K\x01\x85" + b"\x89}" + pickle.TUPLE + pickle.REDUCE)
    )
    entries = b"".join(text(f"k{index}") + one for index in range(200_000))
    items = b"}" + pickle.MARK + entries + pickle.SETITEMS
    return zip_around(
        b"\x80\x02" + storage(4) + pickle.BINPUT + b"\x00" + items + pickle.STOP, {"0": bytes(16)}
    )


def shared_beyond_limit() -> bytes:
    """Tensors that share 64 MiB and together claim 1.25 GiB; the file says 64 MiB and lacks it."""
    one = tensor(2**24, 0, (2**24,), (1,))
    return zip_around(program(*((text(f"k{i}"), one) for i in range(20))), {"0": bytes(64)})


def tar_of(names: list[str]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for each in names:
            archive.addfile(tarfile.TarInfo(each), io.BytesIO())
    return buffer.getvalue()


def npz() -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, weight=np.zeros(3))
    return buffer.getvalue()


def npy() -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.zeros(3))
    return buffer.getvalue()


def script() -> bytes:
    return zip_with(
        {
            "net/data.pkl": b"\x80\x02}.",
            "net/constants.pkl": b"\x80\x02).",
            "net/code/__torch__.py": b"def forward(self): pass",
        }
    )


def sparse() -> Tensor:
    return torch.eye(4).to_sparse()


def two_names() -> bytes:
    one = json.dumps(span(0, 4, [1]))
    return safetensors_with(f'{{"a":{one},"a":{one}}}'.encode(), bytes(4))


def with_long_key() -> dict[str, Tensor]:
    return {"k" * 257: torch.zeros(2)}


def always(content: bytes) -> Make:
    return lambda folder: content


# Name of a file: how it is made, and words of the sentence.
BAD: dict[str, tuple[Make, str]] = {
    # Code
    "command-zip.pt": (lambda f: in_zip(touching(f)), "contains code \\('posix.system'\\)"),
    "command-legacy.pth": (lambda f: in_legacy(touching(f)), "contains code \\('posix.system'\\)"),
    "command-raw.pkl": (lambda f: pickled(touching(f)), "contains code \\('posix.system'\\)"),
    "command-raw-0.pkl": (lambda f: pickled(touching(f), 0), "contains code"),
    "command-raw-4.pkl": (lambda f: pickled(touching(f), 4), "contains code"),
    "command-raw-5.pkl": (lambda f: pickled(touching(f), 5), "contains code"),
    "command-beside-zip.pt": (lambda f: in_zip(touching_state(f)), "contains code"),
    "command-beside-legacy.pt": (lambda f: in_legacy(touching_state(f)), "contains code"),
    "command-inst.pkl": (touching_line, "contains code \\('os.system'\\)"),
    "command-nt.pkl": (partial(touching_line, module="nt"), "contains code \\('nt.system'\\)"),
    "command-in-legacy.pt": (
        lambda f: legacy_around(touching_line(f)),
        "contains code \\('os.system'\\)",
    ),
    "subprocess.pt": (
        lambda f: in_zip(Runs(subprocess.Popen, ["touch", str(f / SENTINEL)])),
        "contains code \\('(subprocess|commands).Popen'\\)",
    ),
    "eval.pt": (
        lambda f: in_zip(Runs(eval, f"open({str(f / SENTINEL)!r}, 'w')")),
        "contains code \\('builtins.eval'\\)",
    ),
    "eval-by-new-object.pkl": (eval_by_new_object, "contains code \\('builtins.eval'\\)"),
    "dotted.pkl": (dotted, "contains code \\('collections.abc.sys.modules.os.system'\\)"),
    "unpickled-twice.pkl": (unpickled_twice, "contains code \\('_?pickle.loads'\\)"),
    "torch-load.pkl": (
        lambda f: pickled(Runs(torch.load, "inner.pt")),
        "contains code \\('torch.serialization.load'\\)",
    ),
    "hub.pkl": (lambda f: pickled(Runs(torch.hub.load, "a/b", "c")), "contains code"),
    "getattr.pkl": (lambda f: pickled(Runs(getattr, "a", "b")), "contains code"),
    "partial.pkl": (
        lambda f: pickled(Runs(partial, os.system, "touch x")),
        "contains code \\('posix.system'\\)",
    ),
    "numpy-gadget.pkl": (
        always(
            b"\x80\x02"
            + name("numpy.testing._private.utils", "runstring")
            + text("import os")
            + (b"}" + pickle.TUPLE2 + pickle.REDUCE + pickle.STOP)
        ),
        "contains code \\('numpy.testing._private.utils.runstring'\\)",
    ),
    "uncalled.pt": (
        lambda f: in_zip({"state_dict": state(), "hook": os.system}),
        "contains code \\('posix.system'\\)",
    ),
    "enum-of-user.pt": (
        lambda f: in_zip({"state_dict": state(), "shade": Shade.DARK}),
        "contains code \\('.*corpus.Shade'\\)",
    ),
    "only-objects.pt": (lambda f: in_zip({"net": Settings()}), "contains code \\('.*Settings'\\)"),
    # Not the weights alone
    "module-zip.pt": (lambda f: in_zip(nn.Linear(2, 2)), "whole pickled module.*instead"),
    "module-legacy.pt": (lambda f: in_legacy(nn.Linear(2, 2)), "whole pickled module.*instead"),
    "module-wrapped.pt": (
        lambda f: in_zip({"model": nn.Sequential(nn.Linear(2, 2)), "epoch": 3}),
        "whole pickled module.*instead",
    ),
    "module-old.pt": (lambda f: old_module(), "whole pickled module.*instead"),
    "script.pt": (always(script()), "TorchScript.*model.state_dict\\(\\) instead"),
    "only-numbers.pt": (lambda f: in_zip({"epoch": 3}), "holds no state dict"),
    "one-tensor.pt": (lambda f: in_zip(torch.zeros(3)), "holds no state dict|single tensor"),
    "optimizer.pt": (
        lambda f: in_zip(torch.optim.SGD(nn.Linear(2, 2).parameters(), 0.1).state_dict()),
        "holds no state dict",
    ),
    "list-of-tensors.pt": (lambda f: in_zip([torch.zeros(2)]), "holds no state dict"),
    "integer-keys.pt": (lambda f: in_zip({0: torch.zeros(2)}), "without a proper name"),
    "metadata-key.pt": (
        lambda f: in_zip({"__metadata__": torch.zeros(2)}),
        "without a proper name",
    ),
    "long-key.pt": (lambda f: in_zip(with_long_key()), "257 characters"),
    "surrogate-key.pt": (
        always(zip_around(program((text("a\ud800"), tensor(4, 0, (4,), (1,)))), {"0": bytes(16)})),
        "is not text",
    ),
    # Bombs
    "laughs.pkl": (always(laughs()), "holds no state dict"),
    "laughs-key.pkl": (always(laughing_key()), "is damaged"),
    "copies.pkl": (always(repeated_copies()), "far more entries and objects"),
    "compared-keys.pkl": (always(compared_keys()), "is damaged"),
    "endless.pkl": (always(endless()), "holds no state dict"),
    "deep-150.pt": (lambda f: in_zip(deep(150)), "deeper than 8 levels"),
    "deep-100000.pkl": (always(nested_program(100_000)), "deeper than 8 levels|no state dict"),
    "marks.pkl": (always(b"\x80\x02" + pickle.MARK * 3_000_000), "nested too deeply"),
    "memo.pkl": (
        always(b"\x80\x02N" + pickle.LONG_BINPUT + b"\xff" * 4 + b"."),
        "no state dict",
    ),
    "huge-integer.pkl": (
        always(b"\x80\x02" + pickle.LONG4 + struct.pack("<i", 10**6) + b"\x01" * 10**6 + b"."),
        "integer of absurd length",
    ),
    "huge-text.pkl": (
        always(b"\x80\x04" + pickle.BINUNICODE8 + struct.pack("<Q", 2**62) + b"abc."),
        "far more text|damaged",
    ),
    "huge-bytes.pkl": (
        always(b"\x80\x05" + pickle.BYTEARRAY8 + struct.pack("<Q", 2**62) + b"abc."),
        "damaged",
    ),
    "buffers.pkl": (always(b"\x80\x05\x97."), "is damaged"),
    "extension.pkl": (always(b"\x80\x02\x82\x01."), "is damaged"),
    "digits.pkl": (always(b"L" + b"9" * 100_000 + b"L\n."), "text file"),
    "deflated.pt": (
        always(
            zip_with(
                {"archive/data.pkl": pickled({}), "archive/data/0": bytes(10**6)},
                zipfile.ZIP_DEFLATED,
            )
        ),
        "compressed, and only stored entries",
    ),
    "entries-5001.pt": (always(many_tensors()), "holds 5,001 tensors, and at most 5,000"),
    "entries-200000.pt": (
        always(flood_of_tensors()),
        "far more entries|holds 200,000 tensors",
    ),
    "many-parts.pt": (
        always(zip_with({f"archive/{index}": b"" for index in range(40_001)})),
        "ZIP archive of 40,001 parts",
    ),
    "shared-1280-MiB.pt": (always(shared_beyond_limit()), "1,088 MiB of tensors.*1,024 MiB"),
    # Claims about tensors
    "stride-0.pt": (
        lambda f: in_zip({"w": torch.zeros(1).expand(10**5, 10**5)}),
        "10,000,000,000 elements, and at most 268,435,456",
    ),
    "stride-0-small.pt": (
        lambda f: in_zip({"w": torch.zeros(1).expand(1000)}),
        "elements x size exceed its storage",
    ),
    "stride-0-legacy.pt": (
        lambda f: in_legacy({"w": torch.zeros(1).expand(1000)}),
        "elements x size exceed its storage",
    ),
    "negative-offset.pt": (always(forged(4, -1, (2,), (1,))), "no valid strides"),
    "negative-stride.pt": (always(forged(4, 3, (2,), (-1,))), "no valid strides"),
    "negative-size.pt": (always(forged(4, 0, (-2,), (1,))), "no valid shape"),
    "offset-beyond.pt": (always(forged(4, 3, (2,), (1,))), "reaches beyond its storage"),
    "stride-beyond.pt": (always(forged(4, 0, (2,), (4,))), "reaches beyond its storage"),
    "overflow.pt": (always(forged(4, 2**62, (2,), (2**62,))), "reaches beyond its storage"),
    "sizes-overflow.pt": (always(forged(4, 0, (2**33, 2**33), (1, 1))), "over 10\\^15 elements"),
    "strides-missing.pt": (always(forged(4, 0, (2, 2), (1,))), "no valid strides"),
    "dimensions-6.pt": (lambda f: in_zip({"w": torch.zeros([1] * 6)}), "6 dimensions"),
    "no-elements.pt": (lambda f: in_zip({"w": torch.zeros(0, 3)}), "which has no elements"),
    "short-storage.pt": (always(forged(8, 0, (8,), (1,))), "storages is shorter than it says"),
    "negative-storage.pt": (always(forged(-8, 0, (1,), (1,))), "in no known way"),
    "missing-storage.pt": (
        always(forged(4, 0, (4,), (1,), key="7")),
        "part 'archive/data/7' is missing",
    ),
    "unknown-storage.pt": (
        always(forged(4, 0, (4,), (1,), kind="CodeStorage")),
        "storage of no known type",
    ),
    "path-as-key.pt": (
        always(forged(4, 0, (4,), (1,), key="../../etc/passwd")),
        "part 'archive/data/../../etc/passwd' is missing",
    ),
    "sparse.pt": (lambda f: in_zip({"w": sparse()}), "'w' as a sparse tensor"),
    "sparse-csr.pt": (
        lambda f: in_zip({"w": torch.sparse_csr_tensor([0, 1], [0], [1.0], (1, 1))}),
        "'w' as a sparse tensor",
    ),
    "meta.pt": (lambda f: in_zip({"w": torch.zeros(2, device="meta")}), "meta"),
    "complex.pt": (lambda f: in_zip({"w": torch.zeros(2, dtype=torch.complex64)}), "complex64"),
    "float8.pt": (lambda f: in_zip({"w": torch.zeros(2).to(torch.float8_e4m3fn)}), "float8"),
    "quantised.pt": (
        lambda f: in_zip({"w": torch.quantize_per_tensor(torch.zeros(2), 1.0, 0, torch.qint8)}),
        "quantised tensor",
    ),
    "objects.pkl": (lambda f: pickled({"w": np.array([None, 1], dtype=object)}), "'object'"),
    # Damage
    "empty.pt": (always(b""), "is empty"),
    "zeros.pt": (always(bytes(5000)), "nothing but zeros"),
    "truncated-zip.pt": (lambda f: in_zip(state())[:-100], "is damaged \\(its end is missing\\)"),
    "truncated-legacy.pt": (lambda f: in_legacy(state())[:-100], "storages are cut short"),
    "truncated-pickle.pt": (lambda f: in_legacy(state())[:300], "is damaged"),
    "moved-entry.pt": (lambda f: moved_entry(), "is damaged"),
    "encrypted.pt": (lambda f: encrypted_zip(), "encrypted, and only stored"),
    "two-entries.pt": (
        lambda f: duplicate_entries(),
        "two of its parts are named 'archive/data.pkl'",
    ),
    "overlapping-entries.pt": (lambda f: overlapping_entries(), "two of its parts overlap"),
    "no-pickle.pt": (
        always(zip_with({"archive/version": b"3", "archive/data/0": b"0000"})),
        "part 'data.pkl' is missing",
    ),
    "big-endian.pt": (lambda f: big_endian_zip(), "big-endian"),
    "byte-order.pt": (lambda f: unknown_order_zip(), "byte order is unknown"),
    "big-endian-legacy.pt": (
        lambda f: changed(in_legacy(state()), b"little_endianq\x02\x88", b"little_endianq\x02\x89"),
        "big-endian",
    ),
    "legacy-version.pt": (
        lambda f: changed(in_legacy(state()), b"M\xe9\x03.", b"M\xe8\x03."),
        "format version",
    ),
    # Safetensors
    "header-huge.safetensors": (
        always(struct.pack("<Q", 10**9) + b"{" + bytes(100)),
        "header of 1,000,000,000 bytes",
    ),
    "header-cut.safetensors": (always(struct.pack("<Q", 500) + b"{}"), "header is cut short"),
    "header-text.safetensors": (always(safetensors_with(b"{nonsense")), "not valid JSON"),
    "header-deep.safetensors": (
        always(safetensors_with(b'{"a":' + b"[" * 100_000)),
        "not valid JSON",
    ),
    "header-digits.safetensors": (
        always(safetensors_with(b'{"a":' + b"9" * 10_000 + b"}")),
        "not valid JSON",
    ),
    "header-bytes.safetensors": (always(safetensors_with(b'{"\xff":1}')), "not valid JSON"),
    "header-number.safetensors": (always(safetensors_with({"a": 3})), "in no known way"),
    "metadata.safetensors": (
        always(safetensors_with({"__metadata__": {"a": 3}})),
        "metadata are not texts",
    ),
    "two-names.safetensors": (always(two_names()), "same name twice"),
    "overlap.safetensors": (
        always(safetensors_with({"a": span(0, 8, [2]), "b": span(4, 12, [2])}, bytes(12))),
        "overlap or leave gaps",
    ),
    "gap.safetensors": (
        always(safetensors_with({"a": span(0, 4, [1]), "b": span(8, 12, [1])}, bytes(12))),
        "overlap or leave gaps",
    ),
    "cut.safetensors": (
        lambda f: save_tensors({k: v.contiguous().clone() for k, v in state().items()})[:-4],
        "its header describes",
    ),
    "longer.safetensors": (
        always(safetensors_with({"a": span(0, 4, [1])}, bytes(8))),
        "8 bytes of tensors, and its header describes 4",
    ),
    "offsets.safetensors": (
        always(safetensors_with({"a": span(0, 4, [2])}, bytes(4))),
        "does not fit its shape",
    ),
    "overflow.safetensors": (
        always(safetensors_with({"a": span(0, 2**64, [2**62])}, bytes(4))),
        "elements, and at most",
    ),
    "negative.safetensors": (
        always(safetensors_with({"a": span(0, 4, [-1])}, bytes(4))),
        "no valid shape",
    ),
    "fraction.safetensors": (
        always(safetensors_with({"a": {**span(0, 4, []), "shape": [1.0]}}, bytes(4))),
        "no valid shape",
    ),
    "no-elements.safetensors": (
        always(safetensors_with({"a": span(0, 0, [0, 2**40])})),
        "which has no elements",
    ),
    "float8.safetensors": (
        always(safetensors_with({"a": span(0, 4, [4], "F8_E4M3")}, bytes(4))),
        "'F8_E4M3'",
    ),
    "complex.safetensors": (
        always(safetensors_with({"a": span(0, 8, [1], "C64")}, bytes(8))),
        "'C64'",
    ),
    "no-tensors.safetensors": (always(safetensors_with({})), "holds no tensors"),
    "entries-5001.safetensors": (
        always(
            safetensors_with({f"k{i}": span(i, i + 1, [1], "U8") for i in range(5001)}, bytes(5001))
        ),
        "holds 5,001 tensors",
    ),
    "long-key.safetensors": (lambda f: save_tensors(with_long_key()), "257 characters"),
    # Something else
    "page.pth": (always(b"\n<!DOCTYPE html><html><body>Sign in</body></html>"), "web page"),
    "notes.pth": (always("Weights are on the drive, ask Zoë.\n".encode()), "is a text file"),
    "config.bin": (always(b'{"architectures": ["ResNet"]}'), "text file \\(JSON\\)"),
    "pointer.bin": (
        always(b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n"),
        "git-LFS pointer.*git lfs pull",
    ),
    "photos.zip": (always(zip_with({"a/model.pth": b"x"})), "no checkpoint.*'a/model.pth'"),
    "empty.zip": (always(zip_with({})), "empty ZIP archive"),
    "arrays.npz": (lambda f: npz(), "NumPy archive"),
    "array.npy": (lambda f: npy(), "NumPy array"),
    "model.keras": (always(zip_with({"model.weights.h5": b"", "config.json": b""})), "Keras"),
    "model.h5": (always(b"\x89HDF\r\n\x1a\n" + bytes(100)), "HDF5"),
    "model.onnx": (always(b"\x08\x07\x12\x07pytorch\x1a\x052.1.0" + bytes(50)), "ONNX"),
    "model.gguf": (always(b"GGUF\x03\x00\x00\x00" + bytes(50)), "GGUF"),
    "model.tflite": (always(b"\x1c\x00\x00\x00TFL3" + bytes(50)), "TensorFlow Lite"),
    "model.pth.gz": (lambda f: gzip.compress(in_zip(state())), "gzip archive.*unpack"),
    "model.pth.xz": (lambda f: lzma.compress(in_zip(state())), "xz archive.*unpack"),
    "model.tar": (lambda f: tar_of(["a/model.pth"]), "tar archive of files; unpack|tar archive"),
    "oldest.pth.tar": (lambda f: tar_of(["sys_info", "pickle"]), "before version 0.1.10"),
    "photo.pth": (always(b"\x89PNG\r\n\x1a\n" + bytes(50)), "image \\(PNG\\)"),
    "photo-2.pth": (always(b"\xff\xd8\xff\xe0" + bytes(50)), "image \\(JPEG\\)"),
    "paper.pth": (always(b"%PDF-1.7\n"), "PDF document"),
    "program.pth": (always(b"\x7fELF" + bytes(50)), "is a program"),
    "noise.pth": (always(bytes(range(3, 256)) * 9), "is not a checkpoint, or is damaged"),
}


def made(name: str, folder: Path) -> bytes:
    """The bytes of a file of either table; what PyTorch and zipfile warn of is meant here."""
    make = BAD[name][0] if name in BAD else GOOD[name][0]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return make(folder)


def big_endian_zip() -> bytes:
    return zip_with({"archive/data.pkl": pickled({}), "archive/byteorder": b"big"})


def unknown_order_zip() -> bytes:
    return zip_with({"archive/data.pkl": pickled({}), "archive/byteorder": b"middle"})


def whole_checkpoint() -> dict[str, Any]:
    """What training scripts save beside the weights, of every kind that can be read."""
    network = nn.Linear(2, 2)
    optimizer = torch.optim.Adam(network.parameters())
    network(torch.zeros(1, 2)).sum().backward()
    optimizer.step()
    return {
        "epoch": np.int64(7),
        "arch": "resnet20",
        "accuracy": np.float64(0.5),
        "best": torch.tensor(76.25),
        "args": argparse.Namespace(rate=0.1, data=pathlib.PurePosixPath("/data"), steps=(1, 2)),
        "model": state(),
        "model_ema": state(1),
        "optimizer": optimizer.state_dict(),
        "settings": Settings(),
        "counts": defaultdict(int, {"a": 1}),
        "names": {"b", "c", "a", 3},
        "when": datetime.date(2024, 5, 17),
        "random": np.random.default_rng(0),
        "device": torch.device("cuda", 1),
        "type": torch.float16,
        "size": torch.Size([3, 32]),
    }


def nan_state() -> dict[str, Tensor]:
    values = state()
    values["conv.bias"] = torch.tensor([0.0, float("nan"), 1.0, float("inf")])
    return values


def parameters() -> Any:
    """A state dict of parameters rather than tensors, and one behind a subclass."""
    return {key: nn.Parameter(each, requires_grad=False) for key, each in state().items()}


# Name of a file: how it is made, and what it is in and wrapped in. All hold `state()`.
GOOD: dict[str, tuple[Make, str, str | None]] = {
    "bare.pt": (lambda f: in_zip(state()), "zip", None),
    "bare.th": (lambda f: in_legacy(state()), "legacy", None),
    "wrapped.pth.tar": (lambda f: in_legacy({"state_dict": state()}), "legacy", "state_dict"),
    "whole.ckpt": (lambda f: in_zip(whole_checkpoint()), "zip", "model"),
    "whole.pth": (lambda f: in_legacy(whole_checkpoint()), "legacy", "model"),
    "parameters.bin": (lambda f: in_zip(parameters()), "zip", None),
    "nested.pt": (lambda f: in_zip({"model": {"net": state()}}), "zip", "model.net"),
    "deep-8.pt": (lambda f: in_zip(deep(8)), "zip", ".".join(["inner"] * 8)),
    "tuple.pt": (lambda f: in_zip((state(), 3)), "zip", "0"),
    "raw-2.pkl": (lambda f: pickled(state(), 2), "pickle", None),
    "raw-3.pkl": (lambda f: pickled(state(), 3), "pickle", None),
    "raw-4.pkl": (lambda f: pickled(state(), 4), "pickle", None),
    "raw-5.pkl": (lambda f: pickled(state(), 5), "pickle", None),
    "arrays-2.pkl": (lambda f: pickled(arrays(), 2), "pickle", None),
    "arrays-4.pkl": (lambda f: pickled(arrays(), 4), "pickle", None),
    "arrays-5.pkl": (lambda f: pickled(arrays(), 5), "pickle", None),
    "optimized.pkl": (lambda f: pickletools.optimize(pickled(arrays(), 4)), "pickle", None),
    "plain.safetensors": (
        lambda f: save_tensors({k: v.contiguous().clone() for k, v in state().items()}),
        "safetensors",
        None,
    ),
    "misnamed.pt": (
        lambda f: save_tensors({k: v.contiguous().clone() for k, v in state().items()}),
        "safetensors",
        None,
    ),
    "[link](javascript:x).pt": (lambda f: in_zip(state()), "zip", None),
}


def arrays() -> dict[str, Any]:
    """The state dict as NumPy arrays, one of them in Fortran's order."""
    return {key: value.numpy() for key, value in state().items()}
