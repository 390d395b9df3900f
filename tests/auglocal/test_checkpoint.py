"""The checkpoint file: what goes in comes out, and anything else is refused in a sentence."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from auglocal.checkpoint import (
    CheckpointMetadata,
    load_checkpoint,
    package_versions,
    read_metadata,
    save_backbone,
    save_checkpoint,
)
from auglocal.errors import InputError, WorkError
from auglocal.files import file_sha256
from auglocal.rules.auglocal import AugLocal
from auglocal.rules.bp import BP
from auglocal.rules.registry import build_network

SIZE = (3, 16, 16)
METADATA = CheckpointMetadata(
    architecture="resnet20",
    num_classes=2,
    input_size=SIZE,
    mean=(0.5, 0.5, 0.5),
    std=(0.25, 0.25, 0.25),
    classes=("dark", "light"),
    dataset="Shades",
    rule="auglocal",
    rule_options={"auxiliary_depth": 2, "pyramid": 0.5, "tail": None},
    epoch=3,
    accuracy={"value": 0.875, "split": "test", "samples": 16},
    resize=None,
    interpolation=None,
    seed=0,
    config={"epochs": 3},
    versions=package_versions(),
)


@pytest.fixture
def checkpoint_path(tmp_path: Path) -> Path:
    path = tmp_path / "net.safetensors"
    save_checkpoint(path, build_network("resnet20", AugLocal(), 2, SIZE, seed=0), METADATA)
    return path


def test_weights_and_metadata_come_back_bit_for_bit(checkpoint_path: Path) -> None:
    network = build_network("resnet20", AugLocal(), 2, SIZE, seed=0)
    checkpoint = load_checkpoint(checkpoint_path)
    assert checkpoint.metadata == METADATA
    assert read_metadata(checkpoint_path) == METADATA
    assert checkpoint.sha256 == file_sha256(checkpoint_path)
    rebuilt = checkpoint.build_backbone().state_dict()
    for key, tensor in network.backbone.state_dict().items():
        assert torch.equal(rebuilt[key], tensor)
    for key, tensor in network.auxiliaries.state_dict().items():
        assert torch.equal(checkpoint.auxiliary[f"auxiliary.{key}"], tensor)


def test_equal_content_has_an_equal_checksum(checkpoint_path: Path, tmp_path: Path) -> None:
    again = tmp_path / "again.safetensors"
    save_checkpoint(again, build_network("resnet20", AugLocal(), 2, SIZE, seed=0), METADATA)
    assert file_sha256(again) == file_sha256(checkpoint_path)


def test_backbone_keys_are_the_same_whatever_the_rule(
    checkpoint_path: Path, tmp_path: Path
) -> None:
    path = tmp_path / "bp.safetensors"
    save_checkpoint(path, build_network("resnet20", BP(), 2, SIZE, seed=0), METADATA)
    assert load_checkpoint(path).backbone.keys() == load_checkpoint(checkpoint_path).backbone.keys()
    assert load_checkpoint(path).auxiliary == {}


def test_nothing_but_safetensors_and_one_json_text_is_in_the_file(checkpoint_path: Path) -> None:
    content = checkpoint_path.read_bytes()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    assert list(header["__metadata__"]) == ["auglocal"]
    text = header["__metadata__"]["auglocal"]
    assert json.dumps(json.loads(text), sort_keys=True) == text
    assert json.loads(text)["format"] == "auglocal-checkpoint"


def test_writing_to_a_full_disk_leaves_the_old_file(
    checkpoint_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = checkpoint_path.read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("auglocal.files.os.fsync", full)
    network = build_network("resnet20", BP(), 2, SIZE, seed=1)
    with pytest.raises(WorkError, match="no space left on device; free some space, then continue"):
        save_checkpoint(checkpoint_path, network, METADATA)
    assert checkpoint_path.read_bytes() == before
    assert list(checkpoint_path.parent.iterdir()) == [checkpoint_path]


def rewrite(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the metadata of a checkpoint by hand."""
    values = {"format": "auglocal-checkpoint", **json.loads(METADATA.to_json())}
    change(values)
    save_file(load_file(path), path, metadata={"auglocal": json.dumps(values)})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "damaged or not a safetensors file"),
        (b"<html>not found</html>", "damaged or not a safetensors file"),
        (pickle.dumps({"weight": [1.0]}), "damaged or not a safetensors file"),
        (b"\xff" * 64, "damaged or not a safetensors file"),
        (b"version https://git-lfs.github.com/spec/v1\n", "damaged or not a safetensors file"),
    ],
)
def test_other_files_are_refused(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "other.safetensors"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message):
        load_checkpoint(path)


def test_a_file_cut_short_is_refused(checkpoint_path: Path) -> None:
    content = checkpoint_path.read_bytes()
    for length in (4, 100, len(content) // 2, len(content) - 1):
        checkpoint_path.write_bytes(content[:length])
        with pytest.raises(InputError, match="damaged"):
            load_checkpoint(checkpoint_path)


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="There is no file .*check the path"):
        load_checkpoint(tmp_path / "nowhere.safetensors")
    with pytest.raises(InputError, match="is a folder; give the checkpoint"):
        load_checkpoint(tmp_path)


def test_weights_without_our_metadata_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "plain.safetensors"
    save_file({"weight": torch.zeros(2)}, path)
    with pytest.raises(InputError, match="not an AugLocal checkpoint"):
        load_checkpoint(path)


def test_a_wider_network_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "wide.safetensors"
    network = build_network("resnet20", BP(), 2, SIZE, seed=0, width=1.5)
    save_checkpoint(path, network, replace(METADATA, width=1.5))
    backbone = load_checkpoint(path).build_backbone()
    assert backbone.specs[0].channels == 24
    images = torch.randn(2, *SIZE)
    assert torch.equal(backbone(images), network.backbone.eval()(images))


def test_a_file_from_before_width_has_width_one(checkpoint_path: Path) -> None:
    rewrite(checkpoint_path, lambda values: values.pop("width"))
    assert load_checkpoint(checkpoint_path).metadata == METADATA


def test_a_file_from_before_local_accuracies_and_weight_types_still_opens(
    checkpoint_path: Path,
) -> None:
    rewrite(checkpoint_path, lambda values: (values.pop("local_accuracies"), values))
    rewrite(checkpoint_path, lambda values: (values.pop("weights_dtype"), values))
    metadata = load_checkpoint(checkpoint_path).metadata
    assert (metadata.local_accuracies, metadata.weights_dtype) == (None, "fp32")


def test_local_accuracies_come_back(tmp_path: Path) -> None:
    path = tmp_path / "net.safetensors"
    metadata = replace(METADATA, local_accuracies={"stem": 0.5, "head": 0.875})
    save_checkpoint(path, build_network("resnet20", BP(), 2, SIZE, seed=0), metadata)
    assert load_checkpoint(path).metadata == metadata


@pytest.mark.parametrize(
    ("name", "dtype", "bits"), [("bf16", torch.bfloat16, 8), ("fp16", torch.float16, 11)]
)
def test_a_backbone_alone_takes_half_the_bytes_and_opens_in_float32(
    name: str, dtype: torch.dtype, bits: int, tmp_path: Path
) -> None:
    network = build_network("resnet20", AugLocal(), 2, SIZE, seed=0)
    paths = {kind: tmp_path / f"{kind}.safetensors" for kind in ("fp32", name)}
    for kind, path in paths.items():
        save_backbone(path, network.backbone, replace(METADATA, weights_dtype=kind))
    assert paths[name].stat().st_size < 0.55 * paths["fp32"].stat().st_size
    checkpoint = load_checkpoint(paths[name])
    assert checkpoint.metadata.weights_dtype == name
    assert checkpoint.auxiliary == {}
    assert checkpoint.backbone["head.linear.weight"].dtype == dtype
    variances = [key for key in checkpoint.backbone if key.endswith("running_var")]
    assert {checkpoint.backbone[key].dtype for key in variances} == {torch.float32}
    original = dict(network.backbone.named_parameters())
    for key, tensor in checkpoint.build_backbone().named_parameters():
        assert tensor.dtype == torch.float32
        # Rounding to `bits` significant bits errs by 2^-bits of the value; fp16 has a floor.
        torch.testing.assert_close(tensor, original[key], rtol=2.0**-bits, atol=1e-7)
    exact = load_checkpoint(paths["fp32"]).build_backbone()
    assert all(torch.equal(value, original[key]) for key, value in exact.named_parameters())


def test_weights_too_large_for_half_precision_are_refused(tmp_path: Path) -> None:
    backbone = build_network("resnet20", BP(), 2, SIZE, seed=0).backbone
    with torch.no_grad():
        backbone.head.linear.bias.fill_(1e6)
    with pytest.raises(WorkError, match=r"head\.linear\.bias' are too large for fp16; choose bf16"):
        save_backbone(tmp_path / "net", backbone, replace(METADATA, weights_dtype="fp16"))
    assert not (tmp_path / "net").exists()


def test_a_width_that_the_tensors_do_not_have_is_refused(checkpoint_path: Path) -> None:
    rewrite(checkpoint_path, lambda values: values.update(width=2))
    with pytest.raises(InputError, match=r"is a resnet20 but holds \d+ tensors of another shape"):
        load_checkpoint(checkpoint_path)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("width", 0),
        ("width", 65),
        ("width", "wide"),
        ("width", None),
        ("architecture", 5),
        ("num_classes", -1),
        ("num_classes", 10**9),
        ("num_classes", True),
        ("input_size", [3, 10**9, 10**9]),
        ("input_size", [3, 32]),
        ("mean", ["a", "b", "c"]),
        ("mean", [0.5]),
        ("std", [0, 1, 1]),
        ("classes", ["one"]),
        ("classes", [["a"], ["b"]]),
        ("dataset", "x" * 10_000),
        ("rule_options", []),
        ("rule_options", {"pyramid": float("nan")}),
        ("config", {"learning_rate": float("inf")}),
        ("epoch", "three"),
        ("accuracy", {"value": 7, "split": "test", "samples": 1}),
        ("accuracy", 0.9),
        ("local_accuracies", []),
        ("local_accuracies", {"stem": 1.5}),
        ("local_accuracies", {"stem": None}),
        ("weights_dtype", "fp8"),
        ("weights_dtype", []),
        ("seed", 1.5),
        ("format", "something-else"),
        ("format_version", "new"),
    ],
)
def test_metadata_that_makes_no_sense_is_refused(
    checkpoint_path: Path, name: str, value: object
) -> None:
    rewrite(checkpoint_path, lambda values: values.update({name: value}))
    with pytest.raises(InputError, match=r"^net\.safetensors has no valid '\w+' in its header"):
        load_checkpoint(checkpoint_path)


def test_missing_metadata_are_named(checkpoint_path: Path) -> None:
    rewrite(checkpoint_path, lambda values: values.pop("std"))
    with pytest.raises(InputError, match="no valid 'std'"):
        load_checkpoint(checkpoint_path)


def test_deeply_nested_metadata_are_refused(checkpoint_path: Path) -> None:
    text = "[" * 100_000 + "]" * 100_000
    save_file(load_file(checkpoint_path), checkpoint_path, metadata={"auglocal": text})
    with pytest.raises(InputError, match="no valid 'format'"):
        load_checkpoint(checkpoint_path)


def test_a_newer_format_says_to_update(checkpoint_path: Path) -> None:
    rewrite(checkpoint_path, lambda values: values.update(format_version=2))
    with pytest.raises(InputError, match="checkpoint format 2, newer .*update auglocal"):
        load_checkpoint(checkpoint_path)


def test_an_unknown_architecture_lists_what_there_is(checkpoint_path: Path) -> None:
    rewrite(checkpoint_path, lambda values: values.update(architecture="vit"))
    with pytest.raises(InputError, match="does not know; choose a file of resnet20"):
        load_checkpoint(checkpoint_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda tensors: tensors.pop("head.linear.bias"),
            r"lacks 1 tensor \('head\.linear\.bias' first\)",
        ),
        (
            lambda tensors: tensors.update(extra=torch.zeros(1)),
            r"holds 1 tensor that a resnet20 does not have \('extra' first\)",
        ),
        (
            lambda tensors: tensors.update({"head.linear.bias": torch.zeros(5)}),
            "holds 1 tensor of another shape or type",
        ),
        (
            lambda tensors: tensors.update({"head.linear.bias": torch.zeros(2, dtype=torch.int32)}),
            "holds 1 tensor of another shape or type",
        ),
        (
            lambda tensors: tensors.update({"head.linear.bias": torch.tensor([1.0, torch.nan])}),
            r"NaN or infinity in 'head\.linear\.bias'",
        ),
    ],
)
def test_tensors_that_are_not_the_architectures_are_refused(
    checkpoint_path: Path, change: Callable[[dict[str, torch.Tensor]], object], message: str
) -> None:
    tensors = load_file(checkpoint_path)
    change(tensors)
    save_file(tensors, checkpoint_path, metadata={"auglocal": METADATA.to_json()})
    with pytest.raises(InputError, match=message):
        load_checkpoint(checkpoint_path)
