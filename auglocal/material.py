"""What a run learns from: a configuration in, batches on the device and their normalisation out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from auglocal.batches import (
    BatchedSplit,
    EvaluatedSplit,
    Normalisation,
    RandomResizedCrop,
    ResidentSplit,
    channel_statistics,
    normalise,
    num_batches,
)
from auglocal.config import TrainConfig
from auglocal.data import Dataset, load_dataset
from auglocal.device import choose_device
from auglocal.errors import InputError
from auglocal.image_folder import MAX_DATASET_BYTES, FileSplit
from auglocal.randomness import generator_at
from auglocal.splits import SPLIT_SEED, Split
from auglocal.streaming import DecodingWorkers, StreamedSplit

# Of a folder that is too large for memory, mean and deviation are measured on so many images.
MAX_MEASURED_IMAGES = 10_000


@dataclass(frozen=True)
class Material:
    """What a run learns from and is evaluated on, and how its images are normalised."""

    dataset: Dataset
    training: BatchedSplit
    evaluated: Mapping[str, EvaluatedSplit]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    device: torch.device

    @property
    def num_classes(self) -> int:
        """K."""
        return len(self.dataset.classes)

    @property
    def input_size(self) -> tuple[int, int, int]:
        """(C, H, W) of one image."""
        return self.training.image_shape

    @property
    def normalisation(self) -> Normalisation:
        """How its images are normalised."""
        return Normalisation(self.mean, self.std)

    def normalise(self, pixels: Tensor) -> Tensor:
        """Images uint8 (N, C, H, W) -> normalised float32 of the same shape."""
        return normalise(pixels, self.mean, self.std)

    def steps_per_epoch(self, batch_size: int) -> int:
        """Batches in one pass over the training images."""
        return num_batches(len(self.training), batch_size)


def prepare_material(config: TrainConfig, *, download: bool) -> Material:
    """Load the data onto the device, or get ready to stream it there.

    Args:
        config: names data and device.
        download: fetch the data set if it is not there.

    Raises:
        InputError: the device or the data is not there, or the data cannot be learned from.
        WorkError: a download failed, or a worker died.
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
        augmentation=config.augmentation,
    )
    crops = config.augment and isinstance(dataset.augmentation, RandomResizedCrop)
    splits = place_splits(
        dataset, device, stream=config.stream, num_workers=config.workers, crops=crops
    )
    training = splits.pop("train")
    if num_batches(len(training), config.batch_size) == 0:
        raise InputError(f"{dataset.title} has too few training images to learn from.")
    if splits["test"].image_shape != training.image_shape:
        raise InputError(
            f"Training and test images of {dataset.title} differ in size; give --image-size."
        )
    mean, std = dataset.mean, dataset.std
    if mean is None or std is None:
        mean, std = channel_statistics(_measured_images(dataset, training, crops))
    return Material(dataset, training, splits, mean, std, device)


def place_splits(
    dataset: Dataset,
    device: torch.device,
    *,
    stream: bool | None,
    num_workers: int | None,
    crops: bool = False,
) -> dict[str, BatchedSplit]:
    """All splits of a data set as batches on a device.

    Args:
        dataset: whose splits are read.
        device: where the batches are to be.
        stream: decode image files while they are used; None does so where they do not fit.
        num_workers: processes that decode; None is `default_workers`.
        crops: training cuts from the images as they are stored, which is always streamed.

    Raises:
        InputError: the images cannot be read, or not as asked.
    """
    files = {name: split for name, split in dataset.splits.items() if isinstance(split, FileSplit)}
    if stream and not files:
        raise InputError(f"{dataset.title} is always held in memory; leave --stream out.")
    if crops and stream is False:
        raise InputError(
            "The augmentation random-resized-crop decodes its images while it trains; leave "
            "--no-stream out, or give --augmentation crop-and-flip."
        )
    if crops or stream or (stream is None and not _fit(files, device)):
        return _streamed_splits(files, device, num_workers)
    return {
        name: ResidentSplit(split.images.to(device), split.labels.to(device))
        for name, split in dataset.splits.items()
    }


def _fit(files: Mapping[str, FileSplit], device: torch.device) -> bool:
    """Whether all images may be held in memory at once; half of a GPU's is left to the network."""
    if any(_is_large(split) for split in files.values()):
        return False
    needed = sum(split.read.decoded_bytes() for split in files.values())
    return device.type != "cuda" or needed <= torch.cuda.mem_get_info(device)[0] // 2


def _streamed_splits(
    files: Mapping[str, FileSplit], device: torch.device, num_workers: int | None
) -> dict[str, BatchedSplit]:
    for split in files.values():
        split.read.check_sizes()
    readers = {name: split.read for name, split in files.items()}
    workers = DecodingWorkers(readers, num_workers, device)
    return {
        name: StreamedSplit(name, split.labels.to(device), split.read.image_shape(), workers)
        for name, split in files.items()
    }


def _measured_images(dataset: Dataset, split: BatchedSplit, crops: bool) -> Iterator[Tensor]:
    """Batches of the training images that mean and deviation are measured on.

    All of them where they could be held in memory, whether they are or not: both give the same run.
    """
    stored = dataset.splits["train"]
    batches = split.batches(1024)
    if isinstance(split, StreamedSplit) and (crops or _is_large(stored)):
        generator = generator_at(SPLIT_SEED, "statistics")
        chosen = torch.randperm(len(split), generator=generator)[:MAX_MEASURED_IMAGES]
        batches = split.chosen_batches(chosen.sort().values, 1024)
    for images, _ in batches:
        yield images


def _is_large(split: Split) -> bool:
    """Whether image files are too many for memory, on whatever device."""
    return isinstance(split, FileSplit) and split.read.decoded_bytes() > MAX_DATASET_BYTES
