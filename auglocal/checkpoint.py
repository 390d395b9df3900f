"""The checkpoint file: weights as safetensors, and in its header a JSON text about them.

In: a trained network and what is known about it. Out: a file that opens without running code, and
back again. Backbone keys ("layers.NAME...", "head...") are the same whatever rule trained the
network; auxiliary networks sit under "auxiliary.BLOCK..." and may be left out.
"""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
from safetensors import SafetensorError, safe_open
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from auglocal.backbones.backbone import Backbone
from auglocal.backbones.registry import (
    BACKBONES,
    MAX_WIDTH,
    build_backbone,
    build_meta_backbone,
    find_builder,
)
from auglocal.config import WEIGHT_TYPES
from auglocal.errors import InputError, WorkError
from auglocal.files import write_whole
from auglocal.network import LocalNetwork

FORMAT = "auglocal-checkpoint"
FORMAT_VERSION = 1
METADATA_KEY = "auglocal"
AUXILIARY_PREFIX = "auxiliary."
# What BatchNorm keeps beside its weights: few values, small ones among them.
BUFFERS = ("running_mean", "running_var", "num_batches_tracked")
# Architectures that are analysed and not trained here: the library's name, then its own name.
PUBLISHED_PREFIXES = ("torchvision:", "timm:")
# Bounds on what a file may claim, so that opening one cannot exhaust the machine.
MAX_FILE_BYTES = 4 * 2**30
MAX_CLASSES = 100_000
MAX_PIXELS = 2048
MAX_CHANNELS = 16
FLOAT_TYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@dataclass(frozen=True)
class CheckpointMetadata:
    """What a checkpoint says about itself.

    Attributes:
        architecture: name of the backbone.
        num_classes: K.
        input_size: (C, H, W) of one image.
        mean, std: normalisation of pixel values in [0, 1], by channel.
        classes: K names, in the order of the logits.
        dataset: what people call the data it was trained on.
        rule, rule_options: what trained it.
        epoch: epochs completed.
        accuracy: {"value" in [0, 1], "split", "samples"} of the backbone, None if not measured.
        resize, interpolation: what was done to the stored images, None for nothing.
        seed: of the run.
        config: the whole run configuration, without paths.
        versions: of the packages that trained it.
        width: multiplier of the backbone's channels; 1 where an older file does not say.
        local_accuracies: by block, in [0, 1], of its auxiliary network (of the backbone for the
            last block) on the split of `accuracy`; None if not measured.
        weights_dtype: of the trained values as stored, a name in `WEIGHT_TYPES`; the accuracies
            were measured before rounding to it.
    """

    architecture: str
    num_classes: int
    input_size: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    classes: tuple[str, ...]
    dataset: str
    rule: str
    rule_options: dict[str, Any]
    epoch: int
    accuracy: dict[str, Any] | None
    resize: int | None
    interpolation: str | None
    seed: int
    config: dict[str, Any]
    versions: dict[str, str]
    width: float = 1.0
    local_accuracies: dict[str, float] | None = None
    weights_dtype: str = "fp32"

    def to_json(self) -> str:
        """One JSON text with sorted keys, so that equal content has an equal checksum."""
        values = {"format": FORMAT, "format_version": FORMAT_VERSION, **asdict(self)}
        return json.dumps(values, sort_keys=True)


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint in memory: metadata, tensors by key, and the file's SHA-256."""

    metadata: CheckpointMetadata
    backbone: dict[str, Tensor]
    auxiliary: dict[str, Tensor]
    sha256: str

    def build_backbone(self) -> Backbone:
        """The backbone with these weights, in float32, in evaluation mode."""
        backbone = build_backbone(
            self.metadata.architecture,
            self.metadata.num_classes,
            self.metadata.input_size,
            self.metadata.width,
        )
        backbone.load_state_dict(self.backbone)
        return backbone.eval()


def package_versions() -> dict[str, str]:
    """Versions that a reader needs to redo a run."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "numpy": np.__version__,
    }


def save_checkpoint(path: Path, network: LocalNetwork, metadata: CheckpointMetadata) -> None:
    """Write a checkpoint with its auxiliary networks, whole or not at all.

    Raises:
        WorkError: the file cannot be written.
    """
    auxiliary = network.auxiliaries.state_dict(prefix=AUXILIARY_PREFIX)
    _write_tensors(path, {**network.backbone.state_dict(), **auxiliary}, metadata)


def save_backbone(path: Path, backbone: Backbone, metadata: CheckpointMetadata) -> None:
    """Write a checkpoint of a backbone alone, its trained values as `metadata.weights_dtype` says.

    Raises:
        WorkError: the file cannot be written, or a value is too large for the type.
    """
    _write_tensors(path, _rounded(backbone.state_dict(), metadata.weights_dtype), metadata)


def round_weights(checkpoint: Checkpoint, weights_dtype: str) -> Checkpoint:
    """A checkpoint with its trained values in another type, those of auxiliary networks too.

    Args:
        checkpoint: any; its SHA-256 stays that of its file.
        weights_dtype: a name in `WEIGHT_TYPES`.

    Raises:
        WorkError: a value is too large for the type.
    """
    return replace(
        checkpoint,
        metadata=replace(checkpoint.metadata, weights_dtype=weights_dtype),
        backbone=_rounded(checkpoint.backbone, weights_dtype),
        auxiliary=_rounded(checkpoint.auxiliary, weights_dtype),
    )


def drop_auxiliary(checkpoint: Checkpoint) -> Checkpoint:
    """A checkpoint of the backbone alone; what was measured of its auxiliary networks stays."""
    return replace(checkpoint, auxiliary={})


def _rounded(tensors: Mapping[str, Tensor], weights_dtype: str) -> dict[str, Tensor]:
    """Trained values in another type; buffers stay, as half precision would lose small variances.

    Raises:
        WorkError: a value is too large for the type.
    """
    dtype = WEIGHT_TYPES[weights_dtype]
    rounded = {}
    for name, tensor in tensors.items():
        stays = tensor.dtype not in FLOAT_TYPES or name.rpartition(".")[2] in BUFFERS
        rounded[name] = tensor if stays else tensor.detach().to(dtype)
        if not stays and dtype != torch.float32 and not bool(torch.isfinite(rounded[name]).all()):
            raise WorkError(
                f"The weights {name!r} are too large for {weights_dtype}; choose bf16 or fp32 "
                "(--snapshot-dtype in training, --weights-dtype in conversion)."
            )
    return rounded


def write_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint as it is in memory, whole or not at all.

    Raises:
        WorkError: the file cannot be written.
    """
    _write_tensors(path, {**checkpoint.backbone, **checkpoint.auxiliary}, checkpoint.metadata)


def _write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: CheckpointMetadata) -> None:
    """Write tensors under their keys, and the metadata in the header."""
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_whole(path, save_tensors(plain, metadata={METADATA_KEY: metadata.to_json()}))


def load_checkpoint(path: Path | str) -> Checkpoint:
    """Open a checkpoint and check all of it; no code of the file runs.

    Raises:
        InputError: it is missing, damaged, not a checkpoint of this project, or does not hold
            what it says.
    """
    path = Path(path)
    metadata = read_metadata(path)
    if is_published(metadata):
        raise InputError(
            f"{path.name} holds a {metadata.architecture}, which can be analysed but not trained "
            f"here; give a file of {', '.join(BACKBONES)}."
        )
    try:
        content = path.read_bytes()
        tensors = load_tensors(content)
    except (OSError, SafetensorError, ValueError, RuntimeError) as error:
        raise _damaged(path) from error
    auxiliary = {key: value for key, value in tensors.items() if key.startswith(AUXILIARY_PREFIX)}
    backbone = {key: value for key, value in tensors.items() if key not in auxiliary}
    _check_backbone(path, metadata, backbone)
    check_finite(path, tensors)
    return Checkpoint(metadata, backbone, auxiliary, hashlib.sha256(content).hexdigest())


def is_published(metadata: CheckpointMetadata) -> bool:
    """True for an architecture of a library that is analysed and not trained here."""
    return metadata.architecture.startswith(PUBLISHED_PREFIXES)


def read_metadata(path: Path | str) -> CheckpointMetadata:
    """Read what a checkpoint says about itself, from its header alone.

    Raises:
        InputError: it is missing, damaged or not a checkpoint of this project.
    """
    path = Path(path)
    check_file(path)
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
    except (OSError, SafetensorError, ValueError) as error:
        raise _damaged(path) from error
    if METADATA_KEY not in header:
        raise InputError(
            f"{path.name} is a safetensors file but not an AugLocal checkpoint (its header does "
            "not say which network it holds); give a file that `auglocal train` wrote."
        )
    return _parse_metadata(path, header[METADATA_KEY])


def check_file(path: Path, max_bytes: int = MAX_FILE_BYTES) -> None:
    """Refuse what cannot be a file of weights, before anything reads it.

    Args:
        path: of any file.
        max_bytes: larger files are refused.

    Raises:
        InputError: it is a folder, missing or too large.
    """
    if path.is_dir():
        raise InputError(f"{path} is a folder; give the checkpoint.safetensors file in it.")
    if not path.is_file():
        raise InputError(f"There is no file {path}; check the path.")
    if path.stat().st_size > max_bytes:
        raise InputError(
            f"{path.name} has {path.stat().st_size:,} bytes, more than the {max_bytes:,} that a "
            "checkpoint may have; give another file, or a larger --max-bytes."
        )


def _damaged(path: Path) -> InputError:
    return InputError(
        f"{path.name} is damaged or not a safetensors file; give a checkpoint that "
        "`auglocal train` wrote, or copy it again."
    )


def _parse_metadata(path: Path, text: str) -> CheckpointMetadata:
    """Metadata from the header's JSON text, every value checked."""
    try:
        values = json.loads(text, parse_constant=_refuse_constant)
        version = values["format_version"]
        if values["format"] != FORMAT or not isinstance(version, int):
            raise ValueError("not this format")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise _bad_metadata(path, "format") from error
    if version > FORMAT_VERSION:
        raise InputError(
            f"{path.name} has checkpoint format {version}, newer than this version reads "
            f"({FORMAT_VERSION}); update auglocal."
        )
    for name, default in OPTIONAL_METADATA.items():
        values.setdefault(name, default)
    for name, is_valid in METADATA_CHECKS.items():
        if name not in values or not is_valid(values[name]):
            raise _bad_metadata(path, name)
    is_known = values["architecture"].startswith(PUBLISHED_PREFIXES)
    if not is_known and values["num_classes"] == 0:  # a published one may have no classifier
        raise _bad_metadata(path, "num_classes")
    if not is_known and find_builder(values["architecture"]) is None:
        raise InputError(
            f"{path.name} holds an architecture that this version does not know; choose a file of "
            f"{', '.join(BACKBONES)}."
        )
    chosen = {field.name: values[field.name] for field in fields(CheckpointMetadata)}
    for name in ("input_size", "mean", "std", "classes"):
        chosen[name] = tuple(chosen[name])
    metadata = CheckpointMetadata(**chosen)
    if len(metadata.classes) != metadata.num_classes:
        raise _bad_metadata(path, "classes")
    if not len(metadata.mean) == len(metadata.std) == metadata.input_size[0]:
        raise _bad_metadata(path, "mean")
    return metadata


def _refuse_constant(name: str) -> None:
    """Refuse NaN and infinity, which are no JSON."""
    raise ValueError(f"{name} is not JSON")


def _bad_metadata(path: Path, name: str) -> InputError:
    return InputError(
        f"{path.name} has no valid {name!r} in its header, so it was not opened; give a checkpoint "
        "that `auglocal train` wrote."
    )


def _is_count(value: object, largest: int = 2**63) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= largest


def _is_text(value: object) -> bool:
    return isinstance(value, str) and len(value) <= 256


def _is_number(value: object, low: float = -1e6, high: float = 1e6) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and low <= value <= high


def _is_list(value: object, is_valid: Callable[[Any], bool]) -> bool:
    if not isinstance(value, list) or len(value) > MAX_CLASSES:
        return False
    return all(is_valid(item) for item in value)


def _is_accuracy(value: object) -> bool:
    """None, or a fraction with the split and the number of samples it was measured on."""
    if not isinstance(value, dict):
        return value is None
    return (
        set(value) == {"value", "split", "samples"}
        and _is_number(value["value"], 0, 1)
        and _is_text(value["split"])
        and _is_count(value["samples"])
    )


def _is_size(value: object) -> bool:
    """(C, H, W) within what an image can be."""
    if not isinstance(value, list) or len(value) != 3:
        return False
    largest = (MAX_CHANNELS, MAX_PIXELS, MAX_PIXELS)
    return all(_is_count(item, most) and item > 0 for item, most in zip(value, largest))


def _is_local_accuracies(value: object) -> bool:
    """None, or a fraction for each block's name."""
    if not isinstance(value, dict):
        return value is None
    return all(_is_text(name) and _is_number(item, 0, 1) for name, item in value.items())


# What files from before these keys mean.
OPTIONAL_METADATA = {"width": 1.0, "local_accuracies": None, "weights_dtype": "fp32"}
METADATA_CHECKS: Mapping[str, Callable[[Any], bool]] = {
    "architecture": _is_text,
    "num_classes": lambda value: _is_count(value, MAX_CLASSES),
    "input_size": _is_size,
    "mean": lambda value: _is_list(value, _is_number),
    "std": lambda value: _is_list(value, lambda item: _is_number(item) and item > 0),
    "classes": lambda value: _is_list(value, _is_text),
    "dataset": _is_text,
    "rule": _is_text,
    "rule_options": lambda value: isinstance(value, dict),
    "epoch": _is_count,
    "accuracy": _is_accuracy,
    "resize": lambda value: value is None or _is_count(value),
    "interpolation": lambda value: value is None or _is_text(value),
    "seed": _is_count,
    "config": lambda value: isinstance(value, dict),
    "versions": lambda value: isinstance(value, dict),
    "width": lambda value: _is_number(value, 0, MAX_WIDTH) and value > 0,
    "local_accuracies": _is_local_accuracies,
    "weights_dtype": lambda value: _is_text(value) and value in WEIGHT_TYPES,
}


def _check_backbone(
    path: Path, metadata: CheckpointMetadata, tensors: Mapping[str, Tensor]
) -> None:
    """Refuse tensors that are not those of the architecture, before any of it is built."""
    expected = build_meta_backbone(
        metadata.architecture, metadata.num_classes, metadata.input_size, metadata.width
    ).state_dict()
    missing = sorted(expected.keys() - tensors.keys())
    unexpected = sorted(tensors.keys() - expected.keys())
    mismatched = [
        key
        for key in sorted(expected.keys() & tensors.keys())
        if tensors[key].shape != expected[key].shape
        or (tensors[key].dtype in FLOAT_TYPES) != (expected[key].dtype in FLOAT_TYPES)
    ]
    architecture = metadata.architecture
    for verb, keys, trouble in (
        ("lacks", missing, ""),
        ("holds", unexpected, f" that a {architecture} does not have"),
        ("holds", mismatched, " of another shape or type"),
    ):
        if keys:
            tensors_found = f"{len(keys)} tensor{'s' if len(keys) > 1 else ''}"
            raise InputError(
                f"{path.name} says that it is a {architecture} but {verb} {tensors_found}{trouble} "
                f"({keys[0][:80]!r} first), so it was not opened; give a checkpoint that "
                "`auglocal train` wrote."
            )


def check_finite(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Refuse weights that are not numbers: whatever is computed from them would be undefined.

    Raises:
        InputError: naming the first such tensor.
    """
    for key, tensor in tensors.items():
        if tensor.dtype in FLOAT_TYPES and not bool(torch.isfinite(tensor).all()):
            raise InputError(
                f"{path.name} has NaN or infinity in {key[:80]!r}, so it was not opened; give a "
                "checkpoint from before the training diverged."
            )
