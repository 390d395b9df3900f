"""Files from outside: good ones open to equal tensors, bad ones to one sentence; nothing runs."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import pickle
import re
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from auglocal.errors import InputError
from auglocal.foreign.limits import MIB, UPLOAD, command_line_limits
from auglocal.foreign.reader import FileContent, read_file
from tests.auglocal.foreign import corpus

THIRD_PARTY = Path(__file__).parents[3] / "../shared/data/third-party-resnet20-cifar10.th"
SECONDS = 8.0
MEMORY = 400 * MIB


def check_sentence(sentence: str, name: str) -> None:
    """One sentence about this file, in our words alone."""
    assert sentence.startswith(name)
    assert sentence.endswith(".")
    assert "; " in sentence, "it says what to do"
    assert not re.search(r"\.\s+[A-Z]|\n|weights_only|Traceback|Error\b", sentence), sentence
    assert len(sentence) < 500


def write(folder: Path, name: str, content: bytes) -> Path:
    path = folder / name
    path.write_bytes(content)
    return path


def assert_equal_states(content: FileContent, expected: dict[str, torch.Tensor]) -> None:
    read = content.state_dict()
    assert list(read) == list(expected)
    for key, tensor in expected.items():
        assert read[key].dtype == tensor.dtype
        assert read[key].shape == tensor.shape
        assert torch.equal(read[key], tensor)
        assert read[key].is_contiguous()


def resident(kind: str) -> int:
    """Bytes of memory that this process has (VmRSS) or had at most (VmHWM); 0 but on Linux."""
    status = Path("/proc/self/status")
    text = status.read_text() if status.exists() else ""
    found = re.search(rf"{kind}:\s+(\d+) kB", text)
    return 1024 * int(found.group(1)) if found else 0


def forget_peak() -> int:
    """Begin a new measurement of the most memory; bytes of memory now."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return resident("VmRSS")


@pytest.mark.parametrize("name", corpus.BAD)
def test_bad_file_is_refused_in_a_sentence(name: str, tmp_path: Path) -> None:
    words = corpus.BAD[name][1]
    path = write(tmp_path, name, corpus.made(name, tmp_path))
    held = forget_peak()
    begin = time.process_time()
    with pytest.raises(InputError, match=words) as caught:
        read_file(path, UPLOAD)
    seconds = time.process_time() - begin
    taken = resident("VmHWM") - held
    check_sentence(str(caught.value), name)
    assert os.listdir(tmp_path) == [name], "something ran"
    assert seconds < SECONDS
    assert taken < MEMORY


@pytest.mark.parametrize("name", corpus.GOOD)
def test_good_file_opens_to_equal_tensors(name: str, tmp_path: Path) -> None:
    _, container, wrapped_in = corpus.GOOD[name]
    path = write(tmp_path, name, corpus.made(name, tmp_path))
    content = read_file(path, UPLOAD)
    read = content.state_dict()
    assert read.keys() == corpus.state().keys()
    for key, tensor in corpus.state().items():
        assert read[key].dtype == tensor.dtype
        assert torch.equal(read[key], tensor)
    assert (content.container, content.wrapped_in) == (container, wrapped_in)
    assert content.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert content.not_finite == ()


def test_the_corpus_has_at_least_sixty_bad_files() -> None:
    assert len(corpus.BAD) >= 60


def test_code_would_have_run_elsewhere(tmp_path: Path) -> None:
    pickle.loads(corpus.pickled(corpus.touching(tmp_path)))
    assert os.listdir(tmp_path) == [corpus.SENTINEL]


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
def test_plain_values_of_every_protocol_are_pickles_values(protocol: int, tmp_path: Path) -> None:
    values = {
        "whole": [0, 1, -1, 255, 256, 65536, -(2**31), 2**40, 2**62],
        "parts": [0.5, -1e300],
        "text": ["", "plain", "Zürich"],
        "truth": [True, False],
        "inner": {"a": {"b": [1, [2]]}},
    }
    path = write(tmp_path, "a.pkl", pickle.dumps({"net": {}, **values}, protocol))
    with pytest.raises(InputError, match="no state dict|is not a checkpoint|text file"):
        read_file(path, UPLOAD)
    if protocol >= 2:
        content = pickle.dumps({"net": corpus.state(), **values}, protocol)
        assert read_file(write(tmp_path, "b.pkl", content), UPLOAD).beside == values


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64", "bool", "uint8"])
@pytest.mark.parametrize("write_object", [corpus.in_zip, corpus.in_legacy])
def test_every_type_comes_back(dtype: str, write_object: corpus.Make, tmp_path: Path) -> None:
    values = (torch.arange(12).reshape(3, 4) % 5).to(getattr(torch, dtype))
    state = {"a": values, "b": values.t(), "c": values[1:, ::2], "d": values[1, 1]}
    content = read_file(write(tmp_path, "a.pt", write_object(state)), UPLOAD)  # type: ignore[arg-type]
    assert_equal_states(content, state)


def test_unsigned_integers_come_back(tmp_path: Path) -> None:
    state = {"a": torch.arange(5).to(torch.uint16), "b": torch.arange(5).to(torch.uint32)}
    content = read_file(write(tmp_path, "a.pt", corpus.in_zip(state)), UPLOAD)
    assert_equal_states(content, state)


def test_tensors_that_share_memory_are_copied_apart(tmp_path: Path) -> None:
    read = read_file(write(tmp_path, "a.pt", corpus.in_zip(corpus.state())), UPLOAD).state_dict()
    read["tied.weight"].zero_()
    assert torch.equal(read["conv.weight"], corpus.state()["conv.weight"])


def test_what_stands_beside_the_weights_is_read_plainly(tmp_path: Path) -> None:
    content = read_file(write(tmp_path, "a.pt", corpus.in_zip(corpus.whole_checkpoint())), UPLOAD)
    assert content.beside == {
        "epoch": 7,
        "arch": "resnet20",
        "accuracy": 0.5,
        "best": 76.25,
        "args": {"rate": 0.1, "data": "/data", "steps": [1, 2]},
        "counts": {"a": 1},
        "names": [3, "a", "b", "c"],
        "device": "cuda:1",
        "size": [3, 32],
    }
    assert json.loads(json.dumps(content.beside)) == content.beside
    (warning,) = content.warnings
    assert "corpus.Settings'" in warning
    assert "datetime.date" in warning


def test_endless_laughter_beside_the_weights_is_cut(tmp_path: Path) -> None:
    values = {
        "model": corpus.state(),
        "joke": corpus.laughter(),
        "sets": [set(range(10_000))] * 100,
    }
    path = write(tmp_path, "a.pt", corpus.in_zip(values))
    begin = time.process_time()
    content = read_file(path, UPLOAD)
    assert time.process_time() - begin < 2
    assert_equal_states(content, corpus.state())
    assert len(json.dumps(content.beside)) < 10**6


def test_texts_beside_the_weights_are_cut_and_can_be_encoded(tmp_path: Path) -> None:
    texts = {"long": "x" * 10_000, "half": "a\ud800b", "k" * 1000: 1, "big": 2**100, "not": 1e400}
    path = write(tmp_path, "a.pt", corpus.in_zip({"model": corpus.state(), **texts}))
    beside = read_file(path, UPLOAD).beside
    assert beside == {
        "long": "x" * 500,
        "half": "a?b",
        "k" * 80: 1,
        "big": "0x1" + "0" * 25,
        "not": "inf",
    }
    json.dumps(beside, ensure_ascii=False, allow_nan=False).encode()


def test_the_larger_of_two_dictionaries_inside_one_another_counts(tmp_path: Path) -> None:
    inside = {"state_dict": corpus.state(), "best": torch.tensor(76.25)}
    assert read_file(write(tmp_path, "a.pt", corpus.in_zip(inside)), UPLOAD).wrapped_in == (
        "state_dict"
    )
    around = {**corpus.state(), "layer._extra_state": {"scale": torch.ones(1)}}
    content = read_file(write(tmp_path, "b.pt", corpus.in_zip(around)), UPLOAD)
    assert_equal_states(content, corpus.state())
    assert (content.wrapped_in, content.other_states) == (None, ())


def test_an_average_is_offered_and_can_be_chosen(tmp_path: Path) -> None:
    path = write(tmp_path, "a.pt", corpus.in_zip(corpus.whole_checkpoint()))
    assert read_file(path, UPLOAD).other_states == ("model_ema",)
    chosen = read_file(path, UPLOAD, state="model_ema")
    assert_equal_states(chosen, corpus.state(1))
    assert (chosen.wrapped_in, chosen.other_states) == ("model_ema", ("model",))
    with pytest.raises(InputError, match="no state dict named 'teacher'.* 'model', 'model_ema'"):
        read_file(path, UPLOAD, state="teacher")


def test_a_state_cannot_be_chosen_in_safetensors(tmp_path: Path) -> None:
    path = write(tmp_path, "a.safetensors", corpus.made("plain.safetensors", tmp_path))
    with pytest.raises(InputError, match="no state dict named 'ema'.*leave the choice out"):
        read_file(path, UPLOAD, state="ema")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_nan_and_infinity_are_named(dtype: torch.dtype, value: float, tmp_path: Path) -> None:
    largest = torch.finfo(dtype).max
    state = {
        "bad": torch.tensor([0, value], dtype=dtype),
        "good": torch.tensor([largest, -largest], dtype=dtype),
    }
    content = read_file(write(tmp_path, "a.pt", corpus.in_zip(state)), UPLOAD)
    assert content.not_finite == ("bad",)
    assert any("NaN or infinity in 'bad'" in warning for warning in content.warnings)


def test_a_flipped_byte_in_a_tensor_is_noticed(tmp_path: Path) -> None:
    content = bytearray(corpus.in_zip({"weight": torch.full((64,), 3.0)}))
    content[content.index(b"\x00\x00\x40\x40" * 8)] ^= 1
    warnings = read_file(write(tmp_path, "a.pt", bytes(content)), UPLOAD).warnings
    assert "checksums of 1 stored tensors do not fit" in warnings[0]


def test_entries_that_are_no_tensors_are_left_out_and_named(tmp_path: Path) -> None:
    state = {**corpus.state(), "layer._extra_state": None}
    wrapped = read_file(write(tmp_path, "a.pt", corpus.in_zip({"model": state})), UPLOAD)
    assert_equal_states(wrapped, corpus.state())
    assert "'layer._extra_state'" in wrapped.warnings[0]


def test_names_from_outside_are_cut_and_quoted(tmp_path: Path) -> None:
    name = "![x](http://evil)\n" + "k" * 200
    path = write(tmp_path, "a.pt", corpus.in_zip({name: torch.zeros(0)}))
    with pytest.raises(InputError) as caught:
        read_file(path, UPLOAD)
    check_sentence(str(caught.value), "a.pt")
    assert "k" * 80 not in str(caught.value)
    assert repr(name[:80]) in str(caught.value)


def test_a_file_name_of_several_lines_is_shown_on_one(tmp_path: Path) -> None:
    path = write(tmp_path, "a\nb" + "c" * 200, b"")
    with pytest.raises(InputError, match=r"^a\?bc{74}\.\.\. is empty"):
        read_file(path, UPLOAD)


def test_limits_of_a_file(tmp_path: Path) -> None:
    path = write(tmp_path, "a.pt", corpus.in_zip(corpus.state()))
    with pytest.raises(InputError, match="0 MB large, and at most 0 MB"):
        read_file(path, replace(UPLOAD, file_bytes=1000))
    with pytest.raises(InputError, match="MiB of tensors.*--max-bytes"):
        read_file(path, replace(UPLOAD, tensor_bytes=1000))
    with pytest.raises(InputError, match="5 tensors, and at most 4"):
        read_file(path, replace(UPLOAD, entries=4))
    with pytest.raises(InputError, match="'conv.weight' with 108 elements, and at most 100"):
        read_file(path, replace(UPLOAD, elements=100))
    with pytest.raises(InputError, match="far more text"):
        read_file(path, replace(UPLOAD, text_bytes=50))
    with pytest.raises(InputError, match="far more entries"):
        read_file(path, replace(UPLOAD, steps=100))


def test_a_sparse_file_beyond_the_limit_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    with path.open("wb") as file:
        file.truncate(UPLOAD.file_bytes + 1)
    with pytest.raises(InputError, match="512 MB large|at most 512 MB"):
        read_file(path, UPLOAD)


def test_the_command_line_admits_more() -> None:
    limits = command_line_limits()
    assert limits.file_bytes == limits.tensor_bytes == 4 * 2**30
    assert limits.entries > UPLOAD.entries


def test_what_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is a folder; give a checkpoint file in it"):
        read_file(tmp_path, UPLOAD)
    with pytest.raises(InputError, match="There is no file nothing.pt; check the path"):
        read_file(tmp_path / "nothing.pt", UPLOAD)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match="pipe is not a regular file"):
        read_file(tmp_path / "pipe", UPLOAD)


@pytest.mark.skipif(not THIRD_PARTY.exists(), reason="the shared data are not here")
def test_the_third_party_file_opens() -> None:
    content = read_file(THIRD_PARTY, UPLOAD)
    expected = torch.load(THIRD_PARTY, map_location="cpu", weights_only=True)
    assert_equal_states(content, expected["state_dict"])
    assert (content.container, content.wrapped_in) == ("legacy", "state_dict")
    assert content.beside == {"best_prec1": expected["best_prec1"]}
    assert content.warnings == ()
