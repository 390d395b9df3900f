"""What training does to images: order, augmentation and normalisation, in batches on the device.

In: uint8 images of a whole split. Out: batches, each draw fixed by (seed, epoch, step).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

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
class Normalisation:
    """How pixel values in [0, 1] become a network's input: (value - mean) / std by channel."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


UNCHANGED = Normalisation(mean=(0.0,), std=(1.0,))


def augment(images: Tensor, augmentation: Augmentation, generator: torch.Generator) -> Tensor:
    """Shift and mirror each image by its own draw.

    Args:
        images: uint8, (N, C, H, W), on any device.
        augmentation: what may be done.
        generator: on the CPU; N draws each of row shift, column shift and mirroring.

    Returns:
        uint8, (N, C, H, W), on the device of `images`.
    """
    num_images, _, height, width = images.shape
    reach = 2 * augmentation.padding + 1
    shifts = torch.randint(reach, (2, num_images, 1), generator=generator) - augmentation.padding
    rows = torch.arange(height) + shifts[0]
    columns = torch.arange(width) + shifts[1]
    if augmentation.flip:
        mirrored = torch.rand(num_images, 1, generator=generator) < 0.5
        columns = torch.where(mirrored, columns.flip(1), columns)
    inside = _inside(rows, height)[:, :, None] & _inside(columns, width)[:, None, :]
    rows, columns = _reflect(rows, height), _reflect(columns, width)
    index = (rows[:, :, None] * width + columns[:, None, :]).reshape(num_images, 1, -1)
    moved = images.flatten(2).gather(2, index.to(images.device).expand(-1, images.shape[1], -1))
    moved = moved.view_as(images)
    return moved if augmentation.border == "reflect" else moved * inside[:, None].to(moved.device)


def _inside(positions: Tensor, length: int) -> Tensor:
    return (positions >= 0) & (positions < length)


def _reflect(positions: Tensor, length: int) -> Tensor:
    """Positions folded back at 0 and length - 1, as reflection padding does."""
    return (length - 1) - ((length - 1) - positions.abs()).abs()


def normalise(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """(pixel / 255 - mean) / std by channel: uint8 (N, C, H, W) -> float32 of the same shape."""
    shape = (1, -1, 1, 1)
    offset = torch.tensor(mean, device=images.device).view(shape)
    scale = torch.tensor(std, device=images.device).view(shape)
    return (images.float() / 255 - offset) / scale


def training_batches(
    images: Tensor,
    labels: Tensor,
    batch_size: int,
    *,
    seed: int,
    epoch: int,
    first_step: int,
    augmentation: Augmentation | None,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the batches of an epoch from `first_step` on; order and draws follow from the place.

    Args:
        images: uint8, (N, C, H, W).
        labels: int64, (N,), on the same device.
        batch_size: images a batch; the last may be smaller, see `num_batches`.
        seed: of the run.
        epoch: from 0; with the seed it decides the order, and with the step the augmentation.
        first_step: batches to leave out at the start.
        augmentation: None leaves the images as they are.

    Yields:
        (images uint8, labels) of one batch.
    """
    order = torch.randperm(len(images), generator=generator_at(seed, "order", epoch))
    for step in range(first_step, num_batches(len(images), batch_size)):
        chosen = order[step * batch_size : (step + 1) * batch_size].to(images.device)
        batch = images[chosen]
        if augmentation is not None:
            batch = augment(batch, augmentation, generator_at(seed, "augment", epoch, step))
        yield batch, labels[chosen]


def num_batches(num_images: int, batch_size: int) -> int:
    """Batches in an epoch; a last batch of one image is left out: BatchNorm cannot use it."""
    full, rest = divmod(num_images, batch_size)
    return full + (rest > 1)


def channel_statistics(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of pixel values in [0, 1] by channel, to four decimals.

    Args:
        images: uint8, (N, C, H, W).
    """
    count = images.numel() // images.shape[1]
    total = torch.zeros(images.shape[1], dtype=torch.float64)
    squares = torch.zeros_like(total)
    for start in range(0, len(images), 1024):
        values = images[start : start + 1024].double().cpu() / 255
        total += values.sum(dim=(0, 2, 3))
        squares += values.square().sum(dim=(0, 2, 3))
    mean = total / count
    std = (squares / count - mean.square()).clamp(min=1e-8).sqrt()
    return tuple(round(v, 4) for v in mean.tolist()), tuple(round(v, 4) for v in std.tolist())
