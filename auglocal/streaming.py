"""Splits whose images stay on disk: worker processes decode them as training asks for them.

In: the files of each split. Out: the batches that `auglocal.batches` makes of images in memory, or
random crops of the stored images. Every draw follows from (seed, epoch, step or image), so that the
number of workers changes nothing.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from auglocal.batches import EVERY, Augmentation, RandomResizedCrop, augment, epoch_order
from auglocal.errors import InputError, WorkError
from auglocal.image_folder import FileReader, to_tensor
from auglocal.randomness import derive_seed, generator_at

MAX_WORKERS = 8
# Images that a worker decodes at a time, and how many such parts it is ahead: 8 workers then hold
# 1,024 images, 150 MB at 224 x 224, and none works for long on what nobody wants any more.
IMAGES_A_PART = 32
PARTS_AHEAD = 4
# That a worker lives on after SIGTERM, while the main process ends its batch and saves.
SECONDS_TO_STOP = 5
# Forked workers share the file names with the run, start at once, and notice when it is killed.
START_METHOD = "fork" if sys.platform == "linux" else None


@dataclass(frozen=True)
class CropDraw:
    """Random crops: how, to which (height, width), and where the draws come from."""

    crop: RandomResizedCrop
    size: tuple[int, int]
    seed: int
    epoch: int


@dataclass(frozen=True)
class Part:
    """Images that one worker decodes: of which split, which ones, and how (None: unchanged)."""

    split: str
    indices: tuple[int, ...]
    draw: CropDraw | None


class Decoder(Dataset[Tensor | Exception]):
    """What a worker does: a `Part` in, its images uint8 (M, 3, H, W) out."""

    def __init__(self, readers: Mapping[str, FileReader]) -> None:
        self.readers = dict(readers)

    def __getitem__(self, part: Part) -> Tensor | Exception:
        """Decode; what is wrong with a file is returned, since raising would add a traceback."""
        reader = self.readers[part.split]
        try:
            return torch.stack([_decode(reader, index, part.draw) for index in part.indices])
        except (InputError, MemoryError) as error:
            return error


def _decode(reader: FileReader, index: int, draw: CropDraw | None) -> Tensor:
    """One image, uint8 (3, H, W)."""
    image = reader.image(index)
    if draw is not None:
        return random_crop(to_tensor(np.array(image)), index, draw)
    return to_tensor(reader.view(image)).contiguous()


def random_crop(image: Tensor, index: int, draw: CropDraw) -> Tensor:
    """A random part of an image, resized and perhaps mirrored; drawn by (seed, epoch, image).

    Args:
        image: uint8, (3, H, W), as stored.
        index: of the image in its split.
        draw: what may be drawn.

    Returns:
        uint8, (3, *draw.size).
    """
    from torchvision.transforms import v2

    crop = draw.crop
    transform = v2.Compose(
        [
            v2.RandomResizedCrop(draw.size, scale=crop.scale, ratio=crop.ratio, antialias=True),
            v2.RandomHorizontalFlip(0.5 if crop.flip else 0.0),
        ]
    )
    # torchvision draws from the CPU's global generator, which is given back as it was.
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(derive_seed(draw.seed, "crop", draw.epoch, index))
        cropped: Tensor = transform(image)
    return cropped.contiguous()


class DecodingWorkers:
    """Processes that decode the images of all splits, ahead of who reads them; started when needed.

    They live as long as this object.
    """

    def __init__(
        self, readers: Mapping[str, FileReader], num_workers: int | None, device: torch.device
    ) -> None:
        self.num_workers = default_workers() if num_workers is None else num_workers
        self._decoder = Decoder(readers)
        self._pin_memory = device.type == "cuda"
        self._parts = _Parts()
        self._loader: DataLoader[Tensor | Exception] | None = None
        self._num_streams = 0

    def decode(self, parts: Iterable[Part]) -> Iterator[Tensor]:
        """Yield the images of each part, in order; one such stream can be read at a time.

        Raises:
            InputError: a file cannot be read.
            WorkError: a worker died.
        """
        self._num_streams += 1
        stream = self._num_streams
        self._parts.wanted = parts
        decoded = self._start()
        while True:
            assert stream == self._num_streams, "another stream began before this one ended"
            try:
                images = next(decoded, None)
            except (RuntimeError, OSError, EOFError) as error:
                self._loader = None  # ends the other workers
                if self.num_workers == 0 or "Caught" in str(error):  # raised by what they do
                    raise
                raise self._death() from error
            if images is None:
                return
            if isinstance(images, MemoryError) and self.num_workers > 0:
                raise self._death() from images
            if isinstance(images, Exception):
                raise images
            yield images

    def _start(self) -> Iterator[Tensor | Exception]:
        """Begin to decode `_parts`, with the workers that there are or with new ones."""
        with _own_signals(), warnings.catch_warnings():
            # Who asks for more workers than there are cores knows why.
            warnings.filterwarnings("ignore", "This DataLoader will create")
            # Workers only decode; what other threads of the run held when they forked is not used.
            warnings.filterwarnings("ignore", "This process .* is multi-threaded")
            if self._loader is None:
                self._loader = self._make_loader()
            return iter(self._loader)

    def _make_loader(self) -> DataLoader[Tensor | Exception]:
        at_work = self.num_workers > 0
        return DataLoader(
            self._decoder,
            batch_size=None,
            sampler=self._parts,
            num_workers=self.num_workers,
            prefetch_factor=PARTS_AHEAD if at_work else None,
            persistent_workers=at_work,
            pin_memory=self._pin_memory,
            multiprocessing_context=START_METHOD if at_work else None,
            worker_init_fn=_outlive_stop_requests,
            generator=torch.Generator(),  # its own, or it would draw from the run's
        )

    def _death(self) -> WorkError:
        """What to say when a worker died."""
        return WorkError(
            "A worker process that decodes images died (killed, or out of memory); try again with "
            f"fewer --workers than {self.num_workers}, or 0 for none (a training run goes on from "
            "its last epoch with --resume)."
        )


class _Parts:
    """The parts that the loader's workers are to decode next."""

    wanted: Iterable[Part] = ()

    def __iter__(self) -> Iterator[Part]:
        return iter(self.wanted)


@contextmanager
def _own_signals() -> Iterator[None]:
    """Keep the handler of SIGCHLD.

    PyTorch's would raise a dead worker's error wherever the main process happens to be, while it
    writes a file say; without it, the error is raised where the next part is asked for.
    """
    if not hasattr(signal, "SIGCHLD") or threading.current_thread() != threading.main_thread():
        yield
        return
    handler = signal.getsignal(signal.SIGCHLD)
    try:
        yield
    finally:
        if handler is not None:  # None: not set from Python
            signal.signal(signal.SIGCHLD, handler)


def _outlive_stop_requests(worker_index: int) -> None:
    """Leave it to the main process when to end, which is soon: a terminal signals its workers too.

    The main process sends SIGTERM itself to workers that hang, so that one is put off only.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "alarm"):  # whose own action is to end the process
        signal.signal(signal.SIGTERM, _stop_soon)


def _stop_soon(number: int, frame: object) -> None:
    signal.alarm(SECONDS_TO_STOP)


def default_workers() -> int:
    """One a core that this process may use, at most `MAX_WORKERS`; torchrun's ranks share cores."""
    cores = os.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    num_ranks = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return max(1, min(cores // num_ranks, MAX_WORKERS))


@dataclass(frozen=True)
class StreamedSplit:
    """A `BatchedSplit` whose images are decoded as they are asked for.

    Attributes:
        name: of the split, which `workers` know it by.
        labels: int64, (N,), on the device.
        image_shape: (C, H, W) of one image of a batch.
        workers: decode the images.
    """

    name: str
    labels: Tensor
    image_shape: tuple[int, int, int]
    workers: DecodingWorkers = field(repr=False)

    def __len__(self) -> int:
        return len(self.labels)

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
        """As `BatchedSplit.training_batches`; of images in memory, the same batches."""
        draw = None
        if isinstance(augmentation, RandomResizedCrop):
            _, height, width = self.image_shape
            draw = CropDraw(augmentation, (height, width), seed, epoch)
        order = list(epoch_order(len(self), batch_size, seed, epoch, first_step))
        cuts = [EVERY if shares is None else shares[step] for step, _ in order]
        chosen = [indices[share] for (_, indices), share in zip(order, cuts)]
        batches = self._read(chosen, draw)
        for (step, indices), share, (images, labels) in zip(order, cuts, batches, strict=True):
            if isinstance(augmentation, Augmentation):
                generator = generator_at(seed, "augment", epoch, step)
                images = augment(images, augmentation, generator, share, len(indices))
            yield images, labels

    def batches(self, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """As `BatchedSplit.batches`."""
        return self.chosen_batches(torch.arange(len(self)), batch_size)

    def chosen_batches(self, indices: Tensor, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield (images uint8, labels) at `indices` (M,) in order, as evaluation sees them."""
        return self._read(torch.split(indices, batch_size), None)

    def _read(
        self, batches: Iterable[Tensor], draw: CropDraw | None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield (images, labels) on the device for the indices (batch,) of each batch."""
        parts_by_batch = [torch.split(indices, IMAGES_A_PART) for indices in batches]
        decoded = self.workers.decode(_make_parts(self.name, parts_by_batch, draw))
        device = self.labels.device
        for parts in parts_by_batch:
            images = [next(decoded).to(device, non_blocking=True) for _ in parts]
            yield torch.cat(images), self.labels[torch.cat(parts).to(device)]


def _make_parts(
    split: str, indices_by_batch: Iterable[Iterable[Tensor]], draw: CropDraw | None
) -> Iterator[Part]:
    """Yield what the workers are asked for; no method, or the workers would hold their user."""
    for batch in indices_by_batch:
        for indices in batch:
            yield Part(split, tuple(indices.tolist()), draw)
