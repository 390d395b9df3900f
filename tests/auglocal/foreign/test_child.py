"""The child process: a clean copy or one sentence, whatever a file does to it."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save

from auglocal.checkpoint import load_checkpoint, save_checkpoint
from auglocal.errors import InputError, WorkError
from auglocal.files import file_sha256
from auglocal.foreign import child
from auglocal.foreign.child import read_in_child
from auglocal.foreign.clean import clean_copy, read_origin
from auglocal.foreign.limits import MIB, UPLOAD
from auglocal.foreign.reader import read_file
from auglocal.foreign.safetensors_file import write_safetensors
from auglocal.rules.auglocal import AugLocal
from auglocal.rules.registry import build_network
from tests.auglocal.foreign import corpus
from tests.auglocal.foreign.test_reader import check_sentence, write
from tests.auglocal.test_checkpoint import METADATA, SIZE

# Those that try to take time or memory, or to run; the others differ in nothing from reading them
# in this process.
HARMFUL = [
    "command-beside-zip.pt",
    "command-inst.pkl",
    "copies.pkl",
    "deep-100000.pkl",
    "laughs.pkl",
    "laughs-key.pkl",
    "compared-keys.pkl",
    "entries-200000.pt",
    "shared-1280-MiB.pt",
    "stride-0.pt",
    "header-deep.safetensors",
    "empty.pt",
]


@pytest.mark.parametrize("name", HARMFUL)
def test_harmful_file_gets_a_sentence_and_leaves_nothing(name: str, tmp_path: Path) -> None:
    words = corpus.BAD[name][1]
    path = write(tmp_path, name, corpus.made(name, tmp_path))
    with pytest.raises(InputError, match=words) as caught:
        read_in_child(path, tmp_path / "library", UPLOAD)
    check_sentence(str(caught.value), name)
    assert sorted(os.listdir(tmp_path)) == sorted([name, "library"])
    assert os.listdir(tmp_path / "library") == []


@pytest.mark.parametrize("name", ["whole.pth", "whole.ckpt", "raw-4.pkl", "plain.safetensors"])
def test_the_clean_copy_holds_the_same_tensors(name: str, tmp_path: Path) -> None:
    path = write(tmp_path, name, corpus.made(name, tmp_path))
    imported = read_in_child(path, tmp_path / "library", UPLOAD)
    content = read_file(path, UPLOAD)
    copied = load_file(imported.path)
    assert copied.keys() == content.tensors.keys()
    for key, tensor in content.state_dict().items():
        assert torch.equal(copied[key], tensor)
    assert imported.path.name == f"{file_sha256(imported.path)}.safetensors"
    assert imported.clean_sha256 == file_sha256(imported.path)
    assert imported.sha256 == file_sha256(path)
    assert (imported.name, imported.num_tensors, imported.dtype) == (name, len(copied), "F32")
    assert imported.num_bytes == sum(each.nbytes for each in copied.values())
    for field in ("container", "wrapped_in", "header", "beside", "other_states", "warnings"):
        assert getattr(imported, field) == getattr(content, field)


def test_the_origin_is_written_beside_the_tensors(tmp_path: Path) -> None:
    path = write(tmp_path, "my secret name.pt", corpus.in_zip(corpus.whole_checkpoint()))
    imported = read_in_child(path, tmp_path / "library", UPLOAD)
    with safe_open(imported.path, "pt") as file:
        header = file.metadata()
    assert list(header) == ["origin"]
    origin = read_origin(header)
    assert origin is not None
    assert (origin["sha256"], origin["wrapped_in"]) == (imported.sha256, "model")
    assert origin["beside"] == imported.beside
    assert json.dumps(origin, sort_keys=True) == header["origin"]
    assert b"secret" not in imported.path.read_bytes()


def test_equal_files_have_one_copy_and_a_copy_is_its_own_copy(tmp_path: Path) -> None:
    content = corpus.in_zip(corpus.whole_checkpoint())
    library = tmp_path / "library"
    first = read_in_child(write(tmp_path, "a.pt", content), library, UPLOAD)
    second = read_in_child(write(tmp_path, "b.pt", content), library, UPLOAD)
    again = read_in_child(first.path, library, UPLOAD)
    assert first.path == second.path == again.path
    assert os.listdir(library) == [first.path.name]
    assert again.sha256 == first.clean_sha256


@pytest.mark.parametrize("text", ["{}", "nonsense", "[1]", '{"sha256": "0"}', "[" * 50_000])
def test_a_forged_origin_is_not_taken_for_one(text: str, tmp_path: Path) -> None:
    assert read_origin({"origin": text}) is None
    content = save({"a": torch.ones(2)}, metadata={"origin": text})
    copy = b"".join(clean_copy(read_file(write(tmp_path, "a.safetensors", content), UPLOAD)))
    with safe_open(write(tmp_path, "b.safetensors", copy), "pt") as file:
        origin = read_origin(file.metadata())
    assert origin is not None
    assert origin["header"] == {"origin": text[:2000]}


def test_a_checkpoint_of_ours_is_copied_byte_for_byte(tmp_path: Path) -> None:
    path = tmp_path / "net.safetensors"
    save_checkpoint(path, build_network("resnet20", AugLocal(), 2, SIZE, seed=0), METADATA)
    imported = read_in_child(path, tmp_path / "library", UPLOAD)
    assert imported.path.read_bytes() == path.read_bytes()
    assert imported.sha256 == imported.clean_sha256
    checkpoint = load_checkpoint(imported.path)
    assert checkpoint.metadata == METADATA
    assert checkpoint.sha256 == imported.sha256


def test_files_are_written_as_the_safetensors_library_writes_them(tmp_path: Path) -> None:
    names = ("float64", "int64", "float32", "int32", "bfloat16", "float16", "int16", "uint16")
    kinds = (*names, "int8", "uint8", "bool", "uint32", "uint64")
    state = {
        f"{letter}.{kind}": torch.ones(3, 2).to(getattr(torch, kind))
        for letter in ("z", "ä", 'quote"\\\t\x01\x7f')
        for kind in kinds
    }
    written = save(state, metadata={"one": 'text "quoted" ü\n\x1f'})
    path = write(tmp_path, "a.safetensors", written)
    content = read_file(path, UPLOAD)
    assert b"".join(write_safetensors(content.tensors, content.header)) == written


def test_too_much_computing_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path, "a.pkl", corpus.nested_program(400_000))
    slow = replace(UPLOAD, cpu_seconds=0, steps=10**9, text_bytes=10**9)
    with pytest.raises(InputError, match="a.pkl took more than 0 s of computing") as caught:
        read_in_child(path, tmp_path / "library", slow)
    check_sentence(str(caught.value), "a.pkl")
    assert os.listdir(tmp_path / "library") == []


def test_too_much_time_is_stopped(tmp_path: Path) -> None:
    path = write(tmp_path, "a.pt", corpus.in_zip(corpus.state()))
    begin = time.monotonic()
    with pytest.raises(InputError, match=r"took more than 0.01 s to read") as caught:
        read_in_child(path, tmp_path / "library", replace(UPLOAD, wall_seconds=0.01))  # type: ignore[arg-type]
    check_sentence(str(caught.value), "a.pt")
    assert time.monotonic() - begin < 10
    assert os.listdir(tmp_path / "library") == []


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is limited on Linux")
def test_too_much_memory_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # 1 KiB of tensors allowed, and 20 MiB that a limit set wrongly would let through.
    path = write(tmp_path, "a.pt", corpus.in_zip({"a": torch.zeros(5 * 2**20)}))
    code = (
        "import sys, auglocal.foreign.child as child; child.WORKING_BYTES = -(16 * 2**20);"
        "sys.exit(child.main(sys.argv[1]))"
    )
    question = {
        "path": str(path),
        "temporary": str(tmp_path / "copy"),
        "limits": dataclasses.asdict(replace(UPLOAD, tensor_bytes=20 * MIB)),
        "state": None,
    }
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(question)],
        capture_output=True,
        env=child._environment(),
        check=False,
    )
    sentence = json.loads(done.stdout)
    assert done.returncode == child.REFUSED
    assert re.search("more memory than", sentence)
    check_sentence(sentence, "a.pt")


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (-24, "took more than 10 s of computing, or all memory"),
        (-9, "took more than 10 s of computing, or all memory"),
        (-11, "stopped the process that read it \\(status -11\\)"),
        (1, "stopped the process that read it \\(status 1\\)"),
    ],
)
def test_the_death_of_a_child_is_one_sentence(
    status: int, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dead(*arguments: object, **options: object) -> subprocess.CompletedProcess[bytes]:
        return subprocess.CompletedProcess([], status, b"")

    monkeypatch.setattr("auglocal.foreign.child.subprocess.run", dead)
    path = write(tmp_path, "a.pt", corpus.in_zip(corpus.state()))
    with pytest.raises(InputError, match=words) as caught:
        read_in_child(path, tmp_path / "library", UPLOAD)
    check_sentence(str(caught.value), "a.pt")
    assert os.listdir(tmp_path / "library") == []


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    path = write(tmp_path, "a.pt", corpus.in_zip(corpus.state()))
    with pytest.raises(WorkError, match="Could not write .*a.pt"):
        read_in_child(path, path, UPLOAD)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="There is no file nothing.pt; check the path"):
        read_in_child(tmp_path / "nothing.pt", tmp_path / "library", UPLOAD)


def test_the_child_has_no_settings_of_the_users(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "x")
    monkeypatch.setenv("PYTHONSTARTUP", "x")
    monkeypatch.setenv("PYTHONPATH", "/elsewhere")
    environment = child._environment()
    assert {"SECRET", "PYTHONSTARTUP"}.isdisjoint(environment)
    assert environment["PYTHONPATH"] != "/elsewhere"


def test_the_child_never_imports_pytorch() -> None:
    code = "import sys, auglocal.foreign.child; sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], env=child._environment(), check=False)
    assert done.returncode == 0
