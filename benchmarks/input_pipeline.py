"""Images a second of the input pipelines, one thread, against the usual ones, in one process.

    python benchmarks/input_pipeline.py

In memory: order, augmentation and normalisation of CIFAR-10's shapes; beside it torchvision's v2
transforms on tensors and its usual pipeline on PIL images, both image by image as a data set does.
Streamed: JPEG files decoded, cropped at random to 224 x 224 pixels and batched, by workers. The
variants take turns, so that what else the machine does falls on all of them; the best round counts.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torchvision import transforms
from torchvision.transforms import v2

from auglocal.batches import (
    Augmentation,
    BatchedSplit,
    RandomResizedCrop,
    ResidentSplit,
    normalise,
)
from auglocal.data import CIFAR_MEAN, CIFAR_STD, load_dataset
from auglocal.material import place_splits

AUGMENTATION = Augmentation(padding=4, border="reflect", flip=True)


def make_split(num_images: int) -> ResidentSplit:
    """Random images of CIFAR-10's shape."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (num_images, 3, 32, 32), dtype=torch.uint8, generator=generator)
    return ResidentSplit(images, torch.zeros(num_images, dtype=torch.int64))


def run_resident(split: ResidentSplit, batch_size: int) -> int:
    """An epoch as training reads it; returns the number of images."""
    count = 0
    batches = split.training_batches(
        batch_size, seed=0, epoch=0, first_step=0, augmentation=AUGMENTATION
    )
    for images, _ in batches:
        count += len(normalise(images, CIFAR_MEAN, CIFAR_STD))
    return count


def run_tensors(split: ResidentSplit, batch_size: int, num_images: int) -> int:
    """Torchvision's v2 transforms, a tensor at a time."""
    transform = v2.Compose(
        [
            v2.RandomCrop(32, padding=4, padding_mode="reflect"),
            v2.RandomHorizontalFlip(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(CIFAR_MEAN, CIFAR_STD),
        ]
    )
    order = torch.randperm(num_images).tolist()
    for start in range(0, num_images, batch_size):
        torch.stack([transform(split.images[i]) for i in order[start : start + batch_size]])
    return num_images


def run_pil(pictures: list[Image.Image], batch_size: int) -> int:
    """The usual pipeline of CIFAR-10 examples, a PIL image at a time."""
    transform = transforms.Compose(
        [
            transforms.RandomCrop(32, padding=4, padding_mode="reflect"),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(CIFAR_MEAN, CIFAR_STD),
        ]
    )
    order = torch.randperm(len(pictures)).tolist()
    for start in range(0, len(pictures), batch_size):
        torch.stack([transform(pictures[i]) for i in order[start : start + batch_size]])
    return len(pictures)


def write_photos(root: Path, num_images: int) -> None:
    """JPEG files of 500 x 375 pixels and about 100 kB, as ImageNet's are on average."""
    generator = np.random.default_rng(0)
    for split, count in (("train", num_images), ("test", 2)):
        for index in range(count):
            file = root / split / f"class{index % 2}" / f"{index}.jpg"
            file.parent.mkdir(parents=True, exist_ok=True)
            coarse = generator.integers(0, 256, (94, 125, 3), dtype=np.uint8)
            picture = Image.fromarray(coarse).resize((500, 375), Image.Resampling.BICUBIC)
            picture.save(file, quality=90)


def run_streamed(split: BatchedSplit) -> int:
    """An epoch as training reads it; returns the number of images."""
    batches = split.training_batches(
        64, seed=0, epoch=0, first_step=0, augmentation=RandomResizedCrop()
    )
    return sum(len(images) for images, _ in batches)


def streamed_rates(num_images: int, workers: list[int], rounds: int) -> dict[str, float]:
    """Images a second by number of workers, once they have started."""
    with tempfile.TemporaryDirectory() as folder:
        write_photos(Path(folder), num_images)
        dataset = load_dataset(f"imagefolder:{folder}", image_size=224)
        runs: dict[str, Callable[[], int]] = {}
        for num_workers in workers:
            splits = place_splits(
                dataset, torch.device("cpu"), stream=True, num_workers=num_workers
            )

            runs[f"streamed, {num_workers} workers"] = partial(run_streamed, splits["train"])
        return best_rates(runs, rounds)


def best_rates(runs: dict[str, Callable[[], int]], rounds: int) -> dict[str, float]:
    """Images a second of each run's best round; the first round warms up."""
    best: dict[str, float] = {}
    for round_index in range(rounds + 1):
        for name, run in runs.items():
            started = time.perf_counter()
            rate = run() / (time.perf_counter() - started)
            if round_index > 0:
                best[name] = max(best.get(name, 0), rate)
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=20_000, help="in memory")
    parser.add_argument("--files", type=int, default=256, help="streamed; 0 leaves them out")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    split = make_split(options.images)
    pictures = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in split.images[:1024]]
    print(f"one thread, torch {torch.__version__}")
    print(f"{'batch':>5}  {'pipeline':<28} {'images/s':>9}  {'in memory / this':>16}")
    for batch_size in (128, 1024):
        rates = best_rates(
            {
                "in memory": partial(run_resident, split, batch_size),
                "torchvision v2 on tensors": partial(run_tensors, split, batch_size, 1024),
                "torchvision on PIL images": partial(run_pil, pictures, batch_size),
            },
            options.rounds,
        )
        for name, rate in rates.items():
            ratio = rates["in memory"] / rate
            print(f"{batch_size:>5}  {name:<28} {rate:>9,.0f}  {ratio:>16.1f}")
    if options.files:
        rates = streamed_rates(options.files, options.workers, options.rounds)
        for name, rate in rates.items():
            per_worker = rate / max(1, int(name.split()[1]))
            print(f"{64:>5}  {name:<28} {rate:>9,.0f}  {per_worker:>8,.0f} a worker")


if __name__ == "__main__":
    main()
