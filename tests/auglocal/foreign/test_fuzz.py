"""Mutated and random files: each opens, or is refused in one sentence; nothing else ever happens.

2,000 mutations are read in this process and 50 through the child; AUGLOCAL_FUZZ=100000 reads so
many. A failure names its number, which makes the same file again: `mutated(NUMBER)`.
"""

from __future__ import annotations

import functools
import io
import json
import os
import pickle
import pickletools
import random
import struct
import tempfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from auglocal.errors import InputError
from auglocal.foreign.child import read_in_child
from auglocal.foreign.limits import UPLOAD
from auglocal.foreign.machine import INSTRUCTIONS
from auglocal.foreign.names import CALLS
from auglocal.foreign.reader import FileContent, read_file
from auglocal.foreign.tensors import ITEM_BYTES
from tests.auglocal.foreign import corpus
from tests.auglocal.foreign.test_reader import THIRD_PARTY, check_sentence

NUM_MUTATIONS = int(os.environ.get("AUGLOCAL_FUZZ", "2000"))
IS_LONG = NUM_MUTATIONS > 2000
SEARCH = settings(
    max_examples=max(300, NUM_MUTATIONS // 10),
    deadline=None,
    derandomize=not IS_LONG,
    database=None,
    suppress_health_check=list(HealthCheck),
)
NUM_IN_CHILD = max(50, NUM_MUTATIONS // 100)
SECONDS = 8.0
NUMBERS = (0, 1, 2, 127, 255, 2**15, 2**31 - 1, 2**31, 2**32 - 1, 2**62, 2**63 - 1, 2**64 - 1)
SEEDS_OF_BAD = ("laughs.pkl", "forged", "command-raw.pkl", "overlap.safetensors", "two-names")


@functools.cache
def seeds() -> tuple[bytes, ...]:
    """Small files of every form, good and bad, and the third party's where it is here."""
    with tempfile.TemporaryDirectory() as folder:
        files = [corpus.made(name, Path(folder)) for name in corpus.GOOD]
        bad = [name for name in corpus.BAD if name.startswith(SEEDS_OF_BAD)]
        files += [corpus.made(name, Path(folder)) for name in bad]
    files += [corpus.forged(4, 0, (2, 2), (2, 1)), corpus.in_zip(corpus.nan_state())]
    if THIRD_PARTY.exists():
        files.append(THIRD_PARTY.read_bytes())
    return tuple(files)


# Mutations of bytes


def flip(content: bytearray, chance: random.Random) -> None:
    for _ in range(chance.choice((1, 1, 2, 8))):
        content[position(content, chance)] ^= 1 << chance.randrange(8)


def overwrite(content: bytearray, chance: random.Random) -> None:
    size = chance.choice((1, 2, 4, 8))
    value = chance.choice(NUMBERS) % 256**size
    place = position(content, chance)
    content[place : place + size] = value.to_bytes(size, chance.choice(("little", "big")))


def delete(content: bytearray, chance: random.Random) -> None:
    place = position(content, chance)
    del content[place : place + chance.choice((1, 2, 16, 256))]


def repeat(content: bytearray, chance: random.Random) -> None:
    place = position(content, chance)
    length = chance.choice((1, 4, 64))
    content[place:place] = content[place : place + length] * chance.choice((1, 3, 50))


def cut(content: bytearray, chance: random.Random) -> None:
    del content[position(content, chance) :]


def splice(content: bytearray, chance: random.Random) -> None:
    other = chance.choice(seeds())
    content[position(content, chance) :] = other[position(bytearray(other), chance) :]


def position(content: bytearray, chance: random.Random) -> int:
    """A place in a file; mostly where its structure is, at its ends."""
    end = max(len(content), 1)
    near = min(end, 3000)
    return chance.choice((chance.randrange(end), chance.randrange(near), end - 1 - near // 2))


BYTE_MUTATIONS: tuple[Callable[[bytearray, random.Random], None], ...] = (
    flip,
    flip,
    overwrite,
    delete,
    repeat,
    cut,
    splice,
)


# Mutations of structure


def instructions(content: bytes) -> list[bytes]:
    """A pickle, cut into its instructions."""
    starts = [place for _, _, place in pickletools.genops(content)]
    return [content[begin:end] for begin, end in zip(starts, [*starts[1:], None])]


def change_instructions(content: bytes, chance: random.Random) -> bytes:
    """A pickle with instructions dropped, doubled, exchanged, or replaced by others."""
    each = instructions(content)
    for _ in range(chance.choice((1, 1, 1, 3))):
        place, other = chance.randrange(len(each)), chance.randrange(len(each))
        action = chance.randrange(6)
        if action == 0 and len(each) > 1:
            del each[place]
        elif action == 1:
            each.insert(place, each[other])
        elif action == 2:
            each[place], each[other] = each[other], each[place]
        elif action == 3:
            each[place] = corpus.number(chance.choice((-1, *NUMBERS)))
        elif action == 4:
            each[place] = bytes([chance.choice(list(INSTRUCTIONS))]) + each[place][1:]
        else:
            each[place] = corpus.name(*chance.choice(list(CALLS)).rsplit(".", 1))
    return b"".join(each)


def changed_zip(content: bytes, chance: random.Random) -> bytes:
    """An archive of torch.save with its pickle changed by instructions, or its parts exchanged."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    if chance.random() < 0.8:
        main = next(name for name in parts if name.endswith("data.pkl"))
        parts[main] = change_instructions(parts[main], chance)
    else:
        one, other = (chance.choice(list(parts)) for _ in range(2))
        parts[one], parts[other] = parts[other], parts[one]
    return corpus.zip_with(parts)


def changed_legacy(content: bytes, chance: random.Random) -> bytes:
    """A legacy file with one of its five pickles changed by instructions."""
    stream = io.BytesIO(content)
    pickles = []
    for _ in range(5):
        begin = stream.tell()
        for _ in pickletools.genops(stream):
            pass
        pickles.append(content[begin : stream.tell()])
    place = chance.choice((0, 1, 2, 3, 3, 3, 3, 4))
    pickles[place] = change_instructions(pickles[place], chance)
    return b"".join(pickles) + content[stream.tell() :]


def changed_header(content: bytes, chance: random.Random) -> bytes:
    """A safetensors file with one value of its header replaced."""
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    entry = header[chance.choice([key for key in header if key != "__metadata__"])]
    values = (*NUMBERS, -1, 1.5, None, True, "F8_E4M3", "BOOL", [], [0], [2**40], [1] * 7, {})
    field = chance.choice(list(entry))
    if isinstance(entry[field], list) and entry[field] and chance.random() < 0.6:
        entry[field][chance.randrange(len(entry[field]))] = chance.choice(values)
    else:
        entry[field] = chance.choice(values)
    return corpus.safetensors_with(header, content[8 + length :])


def change_structure(content: bytes, chance: random.Random) -> bytes:
    """A file that is still well-formed on the outside, and changed inside."""
    if content[:2] == b"PK":
        return changed_zip(content, chance)
    if content[8:9] == b"{":
        return changed_header(content, chance)
    if content[:16] == corpus.in_legacy(1)[:16]:
        return changed_legacy(content, chance)
    return change_instructions(content, chance)


def mutated(index: int) -> bytes:
    """The file of this number: half of them changed in structure, half in their bytes."""
    chance = random.Random(index)
    content = chance.choice(seeds())
    if chance.random() < 0.5:
        return change_structure(content, chance)
    changing = bytearray(content)
    for _ in range(chance.choice((1, 1, 1, 3))):
        if changing:
            chance.choice(BYTE_MUTATIONS)(changing, chance)
    return bytes(changing)


def check_opened(content: FileContent) -> None:
    """What was opened keeps to the limits and to its own claims."""
    assert 0 < len(content.tensors) <= UPLOAD.entries
    assert sum(len(each.data) for each in content.tensors.values()) <= UPLOAD.tensor_bytes
    for key, tensor in content.tensors.items():
        assert len(key) <= UPLOAD.key_characters
        size = ITEM_BYTES[tensor.dtype]
        for each in tensor.shape:
            size *= each
        assert size == len(tensor.data) > 0
        assert tuple(tensor.to_torch().shape) == tensor.shape
    json.dumps([content.beside, content.header, content.warnings, content.other_states])


def outcome(path: Path, content: bytes, read: Callable[[Path], object]) -> str:
    """ "opened" or "refused"; anything else fails the test."""
    path.write_bytes(content)
    begin = time.process_time()
    try:
        opened = read(path)
    except InputError as error:
        check_sentence(str(error), path.name)
        result = "refused"
    else:
        if isinstance(opened, FileContent):
            check_opened(opened)
        result = "opened"
    assert time.process_time() - begin < SECONDS
    return result


def test_mutations_of_files_open_or_are_refused_in_a_sentence(tmp_path: Path) -> None:
    path = tmp_path / "mutated.pt"
    counts = {"opened": 0, "refused": 0}
    for index in range(NUM_MUTATIONS):
        try:
            counts[outcome(path, mutated(index), lambda file: read_file(file, UPLOAD))] += 1
        except Exception as error:
            pytest.fail(f"mutated({index}): {error!r}")
    assert os.listdir(tmp_path) == ["mutated.pt"], "something ran"
    assert min(counts.values()) > NUM_MUTATIONS / 20, "both outcomes are tried"


@pytest.mark.slow
def test_mutations_come_through_the_child(tmp_path: Path) -> None:
    path, library = tmp_path / "mutated.pt", tmp_path / "library"
    counts = {"opened": 0, "refused": 0}
    for index in range(NUM_IN_CHILD):
        try:
            counts[
                outcome(path, mutated(index), lambda file: read_in_child(file, library, UPLOAD))
            ] += 1
        except Exception as error:
            pytest.fail(f"mutated({index}): {error!r}")
    assert sorted(os.listdir(tmp_path)) == ["library", "mutated.pt"], "something ran"
    assert all(name.endswith(".safetensors") for name in os.listdir(library))
    assert min(counts.values()) > 0


SHORT = st.text(max_size=5).filter(lambda text: "\n" not in text)
OPERANDS = st.one_of(
    st.just(b""),
    st.binary(max_size=9),
    st.integers(0, 255).map(lambda value: bytes([value])),
    st.sampled_from(NUMBERS).map(lambda value: struct.pack("<Q", value)),
)
INSTRUCTION = st.one_of(
    st.tuples(st.sampled_from(list(INSTRUCTIONS)), OPERANDS).map(lambda e: bytes([e[0]]) + e[1]),
    st.sampled_from(list(INSTRUCTIONS)).map(lambda code: bytes([code])),
    st.sampled_from(list(CALLS)).map(lambda name: corpus.name(*name.rsplit(".", 1))),
    SHORT.map(corpus.text),
    st.sampled_from((-1, *NUMBERS)).map(corpus.number),
    st.integers(0, 5).map(lambda index: pickle.BINPUT + bytes([index])),
    st.integers(0, 5).map(lambda index: pickle.BINGET + bytes([index])),
    st.sampled_from(["4", "0"]).map(lambda key: corpus.storage(4, key)),
    st.just(corpus.tensor(4, 0, (2, 2), (2, 1))),
    st.just(pickle.EMPTY_TUPLE + pickle.REDUCE),
    st.just(pickle.TUPLE1 + pickle.REDUCE),
)


@SEARCH
@given(st.lists(INSTRUCTION, max_size=40).map(b"".join), st.booleans())
@example(b"\x80\x02" + pickle.EMPTY_DICT, True)
def test_any_sequence_of_instructions_is_read_or_refused(program: bytes, in_zip: bool) -> None:
    ended = b"\x80\x02" + program + pickle.STOP
    content = corpus.zip_around(ended, {"0": bytes(16)}) if in_zip else ended
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "random.pt"
        outcome(path, content, lambda file: read_file(file, UPLOAD))
        assert os.listdir(folder) == ["random.pt"]


@SEARCH
@given(st.binary(max_size=200), st.sampled_from([b"", b"PK\x03\x04", b"\x80\x02", b"\x80\x05("]))
def test_any_bytes_are_refused_in_a_sentence(content: bytes, begin: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "random.pt"
        outcome(path, begin + content, lambda file: read_file(file, UPLOAD))


JSON = st.recursive(
    st.none() | st.booleans() | st.sampled_from(NUMBERS) | st.floats() | SHORT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(SHORT, inner, max_size=3),
    max_leaves=8,
)
CLAIM = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from([*ITEM_BYTES, "F8_E4M3", "C64"]) | JSON,
        "shape": st.lists(st.integers(0, 3), max_size=6) | JSON,
        "data_offsets": st.lists(st.sampled_from([0, 4, 8, 12, 2**62]), max_size=3) | JSON,
    }
)


@SEARCH
@given(st.dictionaries(SHORT, CLAIM | JSON, max_size=4), st.sampled_from([0, 4, 8, 12]))
def test_any_header_is_read_or_refused(header: dict[str, object], length: int) -> None:
    content = corpus.safetensors_with(header, bytes(length))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "random.safetensors"
        outcome(path, content, lambda file: read_file(file, UPLOAD))


def test_every_instruction_of_pickle_is_known_or_refused_on_purpose() -> None:
    refused = {"EXT1", "EXT2", "EXT4", "PERSID", "NEXT_BUFFER", "READONLY_BUFFER", "STOP"}
    known = {each.name for each in pickletools.opcodes if ord(each.code) in INSTRUCTIONS}
    assert known == {each.name for each in pickletools.opcodes} - refused
