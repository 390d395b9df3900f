"""Who does what: ranks on a grid of layers and data, and each rank's part of each batch.

In: what `--parallel` says. Out: a rank's place on the grid, and which images of which step it
trains on. Nothing here computes or communicates.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise

from auglocal.batches import num_batches
from auglocal.errors import InputError

SMALLEST_PART = 2  # images, for BatchNorm


@dataclass(frozen=True)
class Layout:
    """A grid of ranks.

    Attributes:
        layers: ranks that the blocks are shared out among.
        data: ranks that train the same blocks, each on its share of a batch.
    """

    layers: int = 1
    data: int = 1

    @property
    def size(self) -> int:
        """Ranks in all."""
        return self.layers * self.data

    def place(self, rank: int) -> tuple[int, int]:
        """(layer index, data index) of a rank; ranks that send to each other are neighbours."""
        return rank % self.layers, rank // self.layers

    def rank_at(self, layer_index: int, data_index: int) -> int:
        """The rank at a place."""
        return data_index * self.layers + layer_index

    def __str__(self) -> str:
        return f"layers={self.layers},data={self.data}"


def parse_layout(text: str) -> Layout:
    """Read `layers=4`, `data=2` or `layers=4,data=2`.

    Raises:
        InputError: it says something else.
    """
    counts: dict[str, int] = {}
    for item in text.split(","):
        name, _, number = item.strip().partition("=")
        if name not in ("layers", "data") or name in counts or not number.isdecimal():
            raise _bad_layout(text)
        counts[name] = int(number)
    if min(counts.values()) < 1:
        raise _bad_layout(text)
    return Layout(**counts)


def _bad_layout(text: str) -> InputError:
    return InputError(
        f"--parallel takes layers=4, data=2 or layers=4,data=2 with other numbers from 1 on, not "
        f"{text!r}; give one of these."
    )


def check_ranks(layout: Layout, num_processes: int) -> None:
    """Refuse a grid that the processes do not fill.

    Raises:
        InputError: there are more or fewer.
    """
    if layout.size != num_processes:
        raise InputError(
            f"--parallel {layout} needs {layout.size} processes, and torchrun started "
            f"{num_processes}; give --nproc-per-node {layout.size} (on one machine), or another "
            "--parallel."
        )


def check_batch(layout: Layout, batch_size: int) -> None:
    """Refuse batches that are too small to share.

    Raises:
        InputError: a rank's share would be a single image.
    """
    if batch_size < SMALLEST_PART * layout.data:
        raise InputError(
            f"A batch of {batch_size} images is too small for {layout.data} ranks, since BatchNorm "
            f"needs {SMALLEST_PART} images on each; give --batch-size "
            f"{SMALLEST_PART * layout.data} or more."
        )


@dataclass(frozen=True)
class Part:
    """Images of a batch that a rank takes through its blocks at once.

    Attributes:
        step: of the epoch.
        batch: images of the whole batch, on all ranks.
        start, stop: which of them.
        copies: ranks that train on these same images.
        first, last: whether it begins or ends the rank's work on this step.
    """

    step: int
    batch: int
    start: int
    stop: int
    copies: int
    first: bool
    last: bool

    @property
    def num_images(self) -> int:
        """N of this part."""
        return self.stop - self.start

    @property
    def weight(self) -> float:
        """Share of its mean loss in the batch's; of all parts on all ranks they add up to 1."""
        return self.num_images / self.batch / self.copies


def plan_epoch(
    num_images: int,
    batch_size: int,
    *,
    first_step: int = 0,
    num_shares: int = 1,
    share_index: int = 0,
    accumulate: int = 1,
) -> Iterator[Part]:
    """Yield a rank's parts of an epoch's batches, in order.

    The shares of a batch differ by one image at most, and together are the batch that one process
    would train on. A batch that is too small to share, the last of an epoch, goes to every rank.

    Args:
        num_images: of the training split.
        batch_size: images a step, on all ranks.
        first_step: batches to leave out at the start.
        num_shares: ranks that share a batch.
        share_index: which of them.
        accumulate: parts of a share; as many as leave each two images.
    """
    for step in range(first_step, num_batches(num_images, batch_size)):
        size = min(batch_size, num_images - step * batch_size)
        shared = size >= SMALLEST_PART * num_shares
        edges = cut_evenly(0, size, num_shares) if shared else [0, size]
        index = share_index if shared else 0
        num_parts = count_parts(size // num_shares if shared else size, accumulate)
        cuts = cut_evenly(edges[index], edges[index + 1], num_parts)
        for place, (start, stop) in enumerate(pairwise(cuts)):
            yield Part(
                step,
                size,
                start,
                stop,
                copies=1 if shared else num_shares,
                first=place == 0,
                last=place == num_parts - 1,
            )


def count_parts(num_images: int, accumulate: int) -> int:
    """Parts that so many images are cut into: those asked for, if each gets two images."""
    return max(1, min(accumulate, num_images // SMALLEST_PART))


def cut_evenly(start: int, stop: int, num_pieces: int) -> list[int]:
    """Edges of pieces whose lengths differ by at most one."""
    length = stop - start
    return [start + length * index // num_pieces for index in range(num_pieces + 1)]


def shares_by_step(parts: Iterable[Part]) -> dict[int, slice]:
    """By step, which images of its batch a rank trains on."""
    shares: dict[int, slice] = {}
    for part in parts:
        start = part.start if part.first else shares[part.step].start
        shares[part.step] = slice(start, part.stop)
    return shares
