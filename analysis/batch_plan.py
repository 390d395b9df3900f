"""How N images are cut into batches, and whether their order allows it."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np

SMALLEST_BATCH = 4  # the unbiased estimator divides by N - 3
# Student's t at 16 batches covers 0.93 to 0.95, z at 4 batches 0.79 to 0.88; 8 are the least.
ENOUGH_BATCHES = 8
# Neighbours of equal class, in standard deviations above what a random order has.
SORTED_DEVIATIONS = 6.0


@dataclass(frozen=True)
class BatchPlan:
    """How `samples` images are cut: `slices` in order, and one sentence on it, `note`.

    `batch_size` is the longest batch taken; `asked` is what was asked for.
    """

    samples: int
    asked: int
    batch_size: int
    slices: tuple[slice, ...]
    note: str

    @property
    def batch_sizes(self) -> tuple[int, ...]:
        """Number of images of each batch."""
        return tuple(batch.stop - batch.start for batch in self.slices)


def batch_slices(samples: int, batch_size: int, *, smallest: int = SMALLEST_BATCH) -> list[slice]:
    """Cut N images into ceil(N / batch_size) runs of nearly equal length.

    Args:
        samples: number of images, N.
        batch_size: longest run allowed.
        smallest: shortest run allowed.

    Returns:
        slices that cover 0 to N in order; their lengths differ by one at most.

    Raises:
        ValueError: N or batch_size is below 1, or a run would be shorter than `smallest`.
    """
    if samples < 1 or batch_size < 1:
        raise ValueError(
            f"samples and batch size must be at least 1, but they are {samples} and {batch_size}"
        )
    count = math.ceil(samples / batch_size)
    if samples // count < smallest:
        raise ValueError(
            f"CKA needs at least {smallest} images in every batch, but {samples} images in batches "
            f"of at most {batch_size} leave {samples // count} in one: "
            "take more samples or another batch size"
        )
    return _cut(samples, count)


def batch_plan(samples: int, batch_size: int, *, enough_batches: int = ENOUGH_BATCHES) -> BatchPlan:
    """Cut N images into batches of nearly equal length, 8 or more of them where that can be.

    Intervals come from the scatter over batches, so batches shrink where the size asked for would
    give fewer than 8, down to 4 images a batch. A ragged last batch is spread over all.

    Args:
        samples: number of images, N.
        batch_size: most images a batch.
        enough_batches: number of batches to reach.

    Returns:
        the slices and a sentence that tells the size taken and what became of the last batch.

    Raises:
        ValueError: N or batch_size is below 1, or N images cannot fill batches of 4.
    """
    batch_slices(samples, batch_size)  # refuses what cannot be cut
    count = max(math.ceil(samples / batch_size), min(enough_batches, samples // SMALLEST_BATCH))
    slices = tuple(_cut(samples, count))
    return BatchPlan(samples, batch_size, _longest(slices), slices, _note(slices, batch_size))


def _cut(samples: int, count: int) -> list[slice]:
    """Cut 0 to N into runs whose lengths differ by one at most."""
    edges = [samples * index // count for index in range(count + 1)]
    return [slice(start, stop) for start, stop in itertools.pairwise(edges)]


def _longest(slices: tuple[slice, ...]) -> int:
    return max(int(batch.stop - batch.start) for batch in slices)


def _note(slices: tuple[slice, ...], asked: int) -> str:
    """Tell how the images were cut, and why not as asked."""
    samples, count, longest = slices[-1].stop, len(slices), _longest(slices)
    shortest = min(batch.stop - batch.start for batch in slices)
    size = str(longest) if shortest == longest else f"{shortest} or {longest}"
    note = f"{samples:,} images in {count} {'batch' if count == 1 else 'batches'} of {size}"
    if count > math.ceil(samples / asked):
        note += f", smaller than the {asked} asked for, so that intervals rest on {count} batches"
    elif samples > asked and samples % asked:
        note += f"; the last {samples % asked} were spread over all, not left as a short batch"
    return note


def looks_sorted(labels: Any) -> bool:
    """Tell whether labels come in runs of a class, as no random order has them.

    Minibatches of class-sorted images hold few classes, and CKA over them differs from that over
    the whole set (by 0.19 in one trial, by 0.006 after shuffling).

    Args:
        labels: (N,) class of each image, in the order that batches are cut from.

    Returns:
        True where neighbours agree more often than in 1e9 random orders; False where there is
        one class only.

    Raises:
        ValueError: labels are not one-dimensional.
    """
    array = np.asarray(labels)
    if array.ndim != 1:
        raise ValueError(f"labels must have the shape (N,), but they have {array.shape}")
    counts = np.unique(array, return_counts=True)[1].astype(np.float64)
    size = len(array)
    if size < 2 or len(counts) < 2:
        return False
    chance = float((counts * (counts - 1)).sum()) / (size * (size - 1))
    expected = (size - 1) * chance
    deviation = math.sqrt((size - 1) * chance * (1 - chance))
    agreeing = int((array[1:] == array[:-1]).sum())
    return agreeing > expected + SORTED_DEVIATIONS * max(deviation, 0.5)
