"""What training does to images: order, augmentation and normalisation, in batches on the device.

In: uint8 images of a whole split. Out: batches, each draw fixed by (seed, epoch, step). Images that
stay on disk are the subject of `auglocal.streaming`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from auglocal.randomness import generator_at


@dataclass(frozen=True)
class Augmentation:
    """Random shifts by up to `padding` pixels (borders "reflect" or "zero"), and mirror images."""

    padding: int
    border: str
    flip: bool


@dataclass(frozen=True)
class RandomResizedCrop:
    """A random part of each image as it is stored, resized to the network's input; and mirroring.

    Its area is a share of the image's drawn from `scale`, its width / height is drawn from `ratio`.
    Source: the usual ImageNet recipe, with torchvision's default ranges.
    """

    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: bool = True


@dataclass(frozen=True)
class Normalisation:
    """How pixel values in [0, 1] become a network's input: (value - mean) / std by channel."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


EVERY = slice(None)
UNCHANGED = Normalisation(mean=(0.0,), std=(1.0,))


def augment(
    images: Tensor,
    augmentation: Augmentation,
    generator: torch.Generator,
    share: slice = EVERY,
    batch: int | None = None,
) -> Tensor:
    """Shift and mirror each image by its own draw.

    Args:
        images: uint8, (N, C, H, W), on any device.
        augmentation: what may be done.
        generator: on the CPU; draws for each image of the batch of row shift, column shift and
            mirroring.
        share: which images of their batch these are.
        batch: images of their batch; None is N.

    Returns:
        uint8, (N, C, H, W), on the device of `images`.
    """
    height, width = images.shape[2:]
    num_images = len(images) if batch is None else batch
    reach = 2 * augmentation.padding + 1
    shifts = torch.randint(reach, (2, num_images, 1), generator=generator) - augmentation.padding
    rows = torch.arange(height) + shifts[0][share]
    columns = torch.arange(width) + shifts[1][share]
    if augmentation.flip:
        mirrored = (torch.rand(num_images, 1, generator=generator) < 0.5)[share]
        columns = torch.where(mirrored, columns.flip(1), columns)
    source_rows, source_columns = _reflect(rows, height), _reflect(columns, width)
    index = (source_rows[:, :, None] * width + source_columns[:, None, :]).flatten(1).unsqueeze(1)
    moved = images.flatten(2).gather(2, index.to(images.device).expand(-1, images.shape[1], -1))
    moved = moved.view_as(images)
    if augmentation.border == "reflect":
        return moved
    inside = _inside(rows, height)[:, :, None] & _inside(columns, width)[:, None, :]
    return moved * inside[:, None].to(moved.device)


def _inside(positions: Tensor, length: int) -> Tensor:
    return (positions >= 0) & (positions < length)


def _reflect(positions: Tensor, length: int) -> Tensor:
    """Positions folded back at 0 and length - 1, as reflection padding does."""
    return (length - 1) - ((length - 1) - positions.abs()).abs()


def normalise(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """(pixel / 255 - mean) / std by channel: uint8 (N, C, H, W) -> float32 of the same shape."""
    shape = (1, -1, 1, 1)
    # As pixel * scale + offset, in place: a third of the time of the formula as it stands.
    scale = torch.tensor([1 / (255 * deviation) for deviation in std], device=images.device)
    offset = torch.tensor([-m / deviation for m, deviation in zip(mean, std)], device=images.device)
    return images.float().mul_(scale.view(shape)).add_(offset.view(shape))


class EvaluatedSplit(Protocol):
    """A split that evaluation reads batch by batch, wherever its images lie."""

    @property
    def labels(self) -> Tensor:
        """All labels, int64, (N,), on the device."""

    def __len__(self) -> int:
        """N."""

    def batches(self, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield all images in order, as evaluation sees them: (images uint8, labels) by batch."""


class BatchedSplit(EvaluatedSplit, Protocol):
    """A split that training reads too."""

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one image of a batch."""

    def training_batches(
        self,
        batch_size: int,
        *,
        seed: int,
        epoch: int,
        first_step: int,
        augmentation: Augmentation | RandomResizedCrop | None,
        shares: Mapping[int, slice] | None = None,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield an epoch's batches from `first_step` on; order and draws follow from the place.

        Args:
            batch_size: images a batch; the last may be smaller, see `num_batches`.
            seed: of the run.
            epoch: from 0; with the seed it decides the order, and with the step or the image the
                augmentation.
            first_step: batches to leave out at the start.
            augmentation: None leaves the images as evaluation sees them.
            shares: by step, which images of its batch to make; None is all of each.

        Yields:
            (images uint8 (N, C, H, W), labels int64 (N,)) of one batch, on the device.
        """


@dataclass(frozen=True)
class ResidentSplit:
    """A `BatchedSplit` that is on the device as a whole: images uint8 (N, C, H, W), labels (N,)."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one image."""
        channels, height, width = self.images.shape[1:]
        return channels, height, width

    def training_batches(
        self,
        batch_size: int,
        *,
        seed: int,
        epoch: int,
        first_step: int,
        augmentation: Augmentation | RandomResizedCrop | None,
        shares: Mapping[int, slice] | None = None,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """As `BatchedSplit.training_batches`."""
        assert not isinstance(augmentation, RandomResizedCrop), "its images stay on disk"
        for step, indices in epoch_order(len(self), batch_size, seed, epoch, first_step):
            share = EVERY if shares is None else shares[step]
            chosen = indices[share].to(self.images.device)
            batch = self.images.index_select(0, chosen)  # copies whole images; indexing does not
            if augmentation is not None:
                generator = generator_at(seed, "augment", epoch, step)
                batch = augment(batch, augmentation, generator, share, len(indices))
            yield batch, self.labels[chosen]

    def batches(self, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """As `BatchedSplit.batches`."""
        yield from zip(torch.split(self.images, batch_size), torch.split(self.labels, batch_size))


def epoch_order(
    num_images: int, batch_size: int, seed: int, epoch: int, first_step: int
) -> Iterator[tuple[int, Tensor]]:
    """Yield (step, indices int64 (batch,)) of an epoch's batches from `first_step` on."""
    order = torch.randperm(num_images, generator=generator_at(seed, "order", epoch))
    for step in range(first_step, num_batches(num_images, batch_size)):
        yield step, order[step * batch_size : (step + 1) * batch_size]


def num_batches(num_images: int, batch_size: int) -> int:
    """Batches in an epoch; a last batch of one image is left out: BatchNorm cannot use it."""
    full, rest = divmod(num_images, batch_size)
    return full + (rest > 1)


def channel_statistics(batches: Iterable[Tensor]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of pixel values in [0, 1] by channel, to four decimals.

    Args:
        batches: at least one; uint8, (N, C, H, W).
    """
    sums, count = torch.zeros(2, 1, dtype=torch.float64), 0
    for images in batches:
        values = images.double().cpu() / 255
        moments = values.sum(dim=(0, 2, 3)), values.square().sum(dim=(0, 2, 3))
        sums = sums + torch.stack(moments)
        count += images.numel() // images.shape[1]
    mean, square = sums / count
    std = (square - mean.square()).clamp(min=1e-8).sqrt()
    return tuple(round(v, 4) for v in mean.tolist()), tuple(round(v, 4) for v in std.tolist())
