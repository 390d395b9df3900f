"""What a run learns from: a configuration in, images on the device and their normalisation out."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from auglocal.batches import Normalisation, channel_statistics, normalise, num_batches
from auglocal.config import TrainConfig
from auglocal.data import Dataset, load_dataset
from auglocal.device import choose_device
from auglocal.errors import InputError
from auglocal.splits import Split


@dataclass(frozen=True)
class DeviceSplit:
    """A split on the device: images uint8 (N, C, H, W) and labels int64 (N,)."""

    images: Tensor
    labels: Tensor


@dataclass(frozen=True)
class Material:
    """What a run learns from, and how its images are normalised."""

    dataset: Dataset
    splits: dict[str, DeviceSplit]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def num_classes(self) -> int:
        """K."""
        return len(self.dataset.classes)

    @property
    def input_size(self) -> tuple[int, int, int]:
        """(C, H, W) of one image."""
        channels, height, width = self.splits["train"].images.shape[1:]
        return channels, height, width

    @property
    def normalisation(self) -> Normalisation:
        """How its images are normalised."""
        return Normalisation(self.mean, self.std)

    def normalise(self, pixels: Tensor) -> Tensor:
        """Images uint8 (N, C, H, W) -> normalised float32 of the same shape."""
        return normalise(pixels, self.mean, self.std)

    def steps_per_epoch(self, batch_size: int) -> int:
        """Batches in one pass over the training images."""
        return num_batches(len(self.splits["train"].images), batch_size)


def prepare_material(config: TrainConfig, *, download: bool) -> Material:
    """Load the data onto the device.

    Args:
        config: names data and device.
        download: fetch the data set if it is not there.

    Raises:
        InputError: the device or the data is not there, or the data cannot be learned from.
        WorkError: a download failed.
    """
    device = choose_device(config.device)
    dataset = load_dataset(
        config.dataset,
        folder=config.data_folder,
        download=download,
        image_size=config.image_size,
        title=config.dataset_title,
        validation_samples=config.validation_samples,
        skip_corrupt=config.skip_corrupt,
    )
    splits = {name: _to_device(split, device) for name, split in dataset.splits.items()}
    images = splits["train"].images
    if num_batches(len(images), config.batch_size) == 0:
        raise InputError(f"{dataset.title} has too few training images to learn from.")
    if splits["test"].images.shape[1:] != images.shape[1:]:
        raise InputError(
            f"Training and test images of {dataset.title} differ in size; give --image-size."
        )
    mean, std = dataset.mean, dataset.std
    if mean is None or std is None:
        mean, std = channel_statistics(images)
    return Material(dataset, splits, mean, std)


def _to_device(split: Split, device: torch.device) -> DeviceSplit:
    return DeviceSplit(split.images.to(device), split.labels.to(device))
