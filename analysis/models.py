"""A checkpoint file in, a read-only model out: named, ordered layers and their preprocessing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from analysis.errors import InputError
from auglocal.backbones.backbone import Backbone
from auglocal.batches import normalise
from auglocal.checkpoint import CheckpointMetadata, load_checkpoint
from auglocal.data import FOLDER_PREFIX, SOURCES
from auglocal.device import choose_device
from auglocal.errors import InputError as AuglocalInputError

# File and folder names that every run has, so that they name no run.
COMMON_NAMES = ("checkpoint", "best", "snapshots")


@dataclass(frozen=True, eq=False)
class Model:
    """A trained network, ready to be read and not to be changed.

    `name` is short and for people, `path` as it was given, `backbone` in evaluation mode, without
    gradients, on `device`.
    """

    name: str
    path: Path
    sha256: str
    metadata: CheckpointMetadata
    backbone: Backbone
    device: torch.device

    @property
    def layer_names(self) -> tuple[str, ...]:
        """Names of the layers, from input to output."""
        return self.backbone.layer_names

    def preprocess(self, images: Tensor) -> Tensor:
        """Normalise as in training.

        Args:
            images: uint8, (N, C, H, W), on any device.

        Returns:
            float32, (N, C, H, W), on the model's device.
        """
        return normalise(images.to(self.device), self.metadata.mean, self.metadata.std)

    def dataset_name(self) -> str | None:
        """Name the data set this model was trained on, where it can be loaded by name."""
        name = self.metadata.config.get("dataset")
        return name if isinstance(name, str) and name in SOURCES else None


def open_model(path: Path | str, device: str = "cpu") -> Model:
    """Open a checkpoint for reading; no code of the file runs.

    Args:
        path: a `*.safetensors` file written by `auglocal train`.
        device: "auto", "cpu", "cuda" or "mps".

    Returns:
        the model, on the device.

    Raises:
        InputError: the file is missing, damaged or no checkpoint, or the device is not there.
    """
    path = Path(path)
    with translated_errors():
        where = choose_device(device)
        checkpoint = load_checkpoint(path)
        backbone = checkpoint.build_backbone()
    backbone = backbone.requires_grad_(False).eval().to(where)
    # Channels-last runs in three quarters of the time here, Grams included.
    backbone = backbone.to(memory_format=torch.channels_last)
    return Model(
        name=short_name(path),
        path=path,
        sha256=checkpoint.sha256,
        metadata=checkpoint.metadata,
        backbone=backbone,
        device=where,
    )


def short_name(path: Path) -> str:
    """Name a checkpoint after its file, and after its run where every run has such a file.

    "shipped/bp.safetensors" is "bp", "runs/bp/checkpoint.safetensors" is "bp",
    "runs/bp/best.safetensors" is "bp-best", "runs/bp/snapshots/epoch-3.safetensors" "bp-epoch-3".
    """
    folders = [folder for folder in path.resolve().parts[:-1] if folder not in COMMON_NAMES]
    in_run = path.stem in COMMON_NAMES or path.resolve().parent.name in COMMON_NAMES
    if not in_run or not folders:
        return path.stem
    return folders[-1] if path.stem == "checkpoint" else f"{folders[-1]}-{path.stem}"


def unique_names(names: Sequence[str]) -> tuple[str, ...]:
    """Add "-2", "-3" and so on to names that came before."""
    unique: list[str] = []
    for name in names:
        candidate, count = name, 1
        while candidate in unique:
            count += 1
            candidate = f"{name}-{count}"
        unique.append(candidate)
    return tuple(unique)


def common_dataset(models: Sequence[Model]) -> str:
    """Name the data set that all models were trained on.

    Raises:
        InputError: they differ, or it cannot be loaded by name.
    """
    names = {model.dataset_name() for model in models}
    name = next(iter(names)) if len(names) == 1 else None
    if name is None:
        known = ", ".join((*SOURCES, f"{FOLDER_PREFIX}PATH"))
        titles = sorted({model.metadata.dataset for model in models})
        raise InputError(
            f"The checkpoints do not name one data set that can be loaded (they were trained on "
            f"{' and '.join(titles)}); give --dataset one of {known}."
        )
    return name


def describe_device(device: torch.device) -> str:
    """Name a device as people do."""
    if device.type == "cuda":
        return f"cuda ({torch.cuda.get_device_name(device)})"
    return device.type


@contextmanager
def translated_errors() -> Iterator[None]:
    """Turn auglocal's complaints about input into ours, so that the rest need not know it."""
    try:
        yield
    except AuglocalInputError as error:
        raise InputError(str(error)) from error
