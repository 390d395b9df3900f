"""Data sets: a name in, uint8 images and labels by split out; and what training does to a batch.

Images stay uint8 until a batch is made of them (`auglocal.batches`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from auglocal.batches import Augmentation, RandomResizedCrop
from auglocal.errors import InputError, WorkError
from auglocal.image_folder import FileSplit, Fit, ResizeAndCrop, read_image_folder
from auglocal.splits import Split, other_indices, stratified_choice

FOLDER_PREFIX = "imagefolder:"


@dataclass(frozen=True)
class Dataset:
    """A data set as this project sees it.

    Attributes:
        name: as asked for.
        title: what people call it.
        classes: K names, in the order of the labels.
        splits: "train" and "test", and "validation" where images are held out.
        augmentation: what training does to its images.
        mean, std: of pixel values in [0, 1], by channel; None: to be measured on "train".
        resize, interpolation: what evaluation does to the stored images: their shorter side is
            resized to this, and the network's input is cut out of the centre.
        skipped: files that were left out because they cannot be read.
    """

    name: str
    title: str
    classes: tuple[str, ...]
    splits: Mapping[str, Split]
    augmentation: Augmentation | RandomResizedCrop
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    resize: int | None = None
    interpolation: str | None = None
    skipped: tuple[str, ...] = ()


@dataclass(frozen=True)
class Source:
    """How a named data set is found, and how its images are treated."""

    title: str
    read: Callable[[Path, bool], dict[str, Split]]
    classes: tuple[str, ...]
    augmentation: Augmentation
    mean: tuple[float, ...]
    std: tuple[float, ...]
    validation_samples: int = 0
    resize: int | None = None
    interpolation: str | None = None


@dataclass(frozen=True)
class FolderSource:
    """A named data set in an image folder of that name, and how its images are treated.

    The network's input is `image_size` pixels if nothing else is asked for; evaluation cuts it out
    of the centre of an image whose shorter side is `margin` times as long.
    """

    title: str
    num_classes: int
    image_size: int
    margin: float
    augmentation: RandomResizedCrop
    mean: tuple[float, ...]
    std: tuple[float, ...]


def load_dataset(
    name: str,
    *,
    folder: Path | str = "data",
    download: bool = False,
    image_size: int | None = None,
    title: str | None = None,
    validation_samples: int | None = None,
    skip_corrupt: bool = False,
    augmentation: str = "data-set",
    unsplit: bool = False,
) -> Dataset:
    """Find a data set and split it; images are read from disk when they are asked for.

    Args:
        name: a name in `SOURCES`, or "imagefolder:PATH" for a tree train/CLASS/*, test/CLASS/*
            (or val/CLASS/*).
        folder: where downloaded sets lie, and imagenet/.
        download: fetch a set that is not there; nothing is fetched unasked.
        image_size: pixels; resize a folder's images (shorter side, then the centre).
        title: what to call a folder's data; the folder's name if None.
        validation_samples: training images held out, the same ones in every run; None is the
            set's own number.
        skip_corrupt: leave out images of a folder that cannot be read.
        augmentation: a name in `AUGMENTATIONS`.
        unsplit: take a folder without train/ and test/ too, as a test split; not for training.

    Raises:
        InputError: no such set, or it is not there, or the augmentation does not suit it; the
            message says what to do.
        WorkError: a download failed.
    """
    check_dataset_name(name)
    source = SOURCES.get(name)
    if source is None:
        dataset = _folder_dataset(name, image_size, title, skip_corrupt, unsplit)
    elif isinstance(source, FolderSource):
        dataset = _named_folder_dataset(name, source, Path(folder), image_size, skip_corrupt)
    else:
        dataset = _stored_dataset(name, source, Path(folder), download)
    if validation_samples is None:
        validation_samples = source.validation_samples if isinstance(source, Source) else 0
    return _hold_out(_augmented(dataset, augmentation), validation_samples)


def _stored_dataset(name: str, source: Source, folder: Path, download: bool) -> Dataset:
    """A named data set whose images are arrays."""
    return Dataset(
        name=name,
        title=source.title,
        classes=source.classes,
        splits=source.read(folder, download),
        augmentation=source.augmentation,
        mean=source.mean,
        std=source.std,
        resize=source.resize,
        interpolation=source.interpolation,
    )


def _folder_dataset(
    name: str, image_size: int | None, title: str | None, skip_corrupt: bool, unsplit: bool
) -> Dataset:
    """The data set of an image folder; its normalisation is measured when it is trained on."""
    root = Path(name.removeprefix(FOLDER_PREFIX)).expanduser()
    found = read_image_folder(root, Fit(image_size), skip_corrupt=skip_corrupt, unsplit=unsplit)
    return Dataset(
        name=name,
        title=title or root.name,
        classes=found.classes,
        splits=found.splits,
        augmentation=CIFAR_AUGMENTATION,
        mean=None,
        std=None,
        resize=image_size,
        interpolation="bilinear" if image_size else None,
        skipped=found.skipped,
    )


def _named_folder_dataset(
    name: str, source: FolderSource, folder: Path, image_size: int | None, skip_corrupt: bool
) -> Dataset:
    """A named data set that lies in a folder of its name."""
    root = folder / name
    if not root.is_dir():
        raise InputError(
            f"{source.title} is not in the folder {str(root)!r}, and it is never downloaded; lay "
            f"it out there as train/CLASS/* and val/CLASS/* with {source.num_classes:,} class "
            f"folders, or give --data-folder for the folder that holds {name}/."
        )
    size = image_size or source.image_size
    view = ResizeAndCrop(round(size * source.margin), size)
    found = read_image_folder(root, view, skip_corrupt=skip_corrupt)
    if len(found.classes) != source.num_classes:
        raise InputError(
            f"{root} holds {len(found.classes):,} class folders, and {source.title} has "
            f"{source.num_classes:,}; complete it, or give --dataset imagefolder:{root} for a part."
        )
    return Dataset(
        name=name,
        title=source.title,
        classes=found.classes,
        splits=found.splits,
        augmentation=source.augmentation,
        mean=source.mean,
        std=source.std,
        resize=view.resize,
        interpolation="bilinear",
        skipped=found.skipped,
    )


def _augmented(dataset: Dataset, name: str) -> Dataset:
    """The data set with the augmentation of that name."""
    augmentation = AUGMENTATIONS[name] or dataset.augmentation
    of_files = all(isinstance(split, FileSplit) for split in dataset.splits.values())
    if isinstance(augmentation, RandomResizedCrop) and not of_files:
        raise InputError(
            f"The augmentation random-resized-crop cuts from image files, and {dataset.title} has "
            "none; give --augmentation crop-and-flip."
        )
    return replace(dataset, augmentation=augmentation)


def check_dataset_name(name: str) -> None:
    """Refuse a name that cannot be a data set, listing what there is."""
    if name not in SOURCES and not name.startswith(FOLDER_PREFIX):
        known = ", ".join(SOURCES)
        raise InputError(f"There is no data set {name!r}; choose one of {known}, imagefolder:PATH.")


def _hold_out(dataset: Dataset, num_held_out: int) -> Dataset:
    """Move some training images to a validation split."""
    if num_held_out == 0:
        return dataset
    train = dataset.splits["train"]
    if num_held_out >= len(train):
        raise InputError(
            f"Cannot hold out {num_held_out:,} of {len(train):,} training images of "
            f"{dataset.title}; give a smaller --validation-samples."
        )
    held_out = stratified_choice(train.labels, num_held_out)
    kept = other_indices(held_out, len(train))
    splits = {
        **dataset.splits,
        "train": train.subset(kept),
        "validation": train.subset(held_out),
    }
    return replace(dataset, splits=splits)


def _array_split(images: Any, labels: Any) -> Split:
    """A split over images in memory."""
    pixels = torch.as_tensor(images)
    return Split(torch.as_tensor(labels).long(), lambda indices: pixels[indices])


def _read_digits(folder: Path, download: bool) -> dict[str, Split]:
    """scikit-learn's 1,797 digits, 8x8, enlarged to 3x32x32; 1,000 of them are the test split."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    small = torch.from_numpy(digits.images).float().unsqueeze(1) * (255 / 16)
    large = functional.interpolate(small, size=32, mode="bilinear", align_corners=False)
    whole = _array_split(large.round().to(torch.uint8).repeat(1, 3, 1, 1), digits.target)
    test = stratified_choice(whole.labels, 1000)
    return {"train": whole.subset(other_indices(test, len(whole))), "test": whole.subset(test)}


def _read_torchvision(class_name: str, size: str, folder: Path, download: bool) -> dict[str, Split]:
    """CIFAR-10, CIFAR-100, SVHN or STL-10 as torchvision stores them."""
    splits = {}
    for split in ("train", "test"):
        stored = _open_torchvision(class_name, size, split, folder, download)
        images = np.asarray(stored.data)
        if class_name.startswith("CIFAR"):
            images = np.ascontiguousarray(images.transpose(0, 3, 1, 2))
        labels = stored.targets if class_name.startswith("CIFAR") else stored.labels
        splits[split] = _array_split(images, labels)
    return splits


def _open_torchvision(class_name: str, size: str, split: str, folder: Path, download: bool) -> Any:
    """Torchvision's data set; says what to do where it is not there or does not arrive."""
    from torchvision import datasets

    choice: dict[str, Any] = {"split": split}
    if class_name.startswith("CIFAR"):
        choice = {"train": split == "train"}
    try:
        return getattr(datasets, class_name)(str(folder), download=download, **choice)
    except (RuntimeError, OSError) as error:
        if download:
            raise WorkError(
                f"Downloading {class_name} failed ({_first_line(error)}); try again, or put the "
                f"files into {folder} by hand."
            ) from error
        raise InputError(
            f"{class_name} is not in the folder {str(folder)!r}; give --download to fetch it "
            f"({size}), or --data-folder for the folder that holds it."
        ) from error


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")


DIGIT_NAMES = tuple("0123456789")
CIFAR10_NAMES = tuple("airplane automobile bird cat deer dog frog horse ship truck".split())
STL10_NAMES = tuple("airplane bird car cat deer dog horse monkey ship truck".split())
CIFAR100_TEXT = """
apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus
butterfly camel can castle caterpillar cattle chair chimpanzee clock cloud cockroach couch
crab crocodile cup dinosaur dolphin elephant flatfish forest fox girl hamster house kangaroo
keyboard lamp lawn_mower leopard lion lizard lobster man maple_tree motorcycle mountain
mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree plain
plate poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk
skyscraper snail snake spider squirrel streetcar sunflower sweet_pepper table tank telephone
television tiger tractor train trout tulip turtle wardrobe whale willow_tree wolf woman worm
"""
CIFAR100_NAMES = tuple(CIFAR100_TEXT.split())

# Normalisation and augmentation as in the AugLocal recipes; 127.5 / 255 for SVHN and STL-10.
HALF = (0.5, 0.5, 0.5)
CIFAR_MEAN = (125.3 / 255, 123.0 / 255, 113.9 / 255)
CIFAR_STD = (63.0 / 255, 62.1 / 255, 66.7 / 255)
CIFAR_AUGMENTATION = Augmentation(padding=4, border="reflect", flip=True)
DIGIT_AUGMENTATION = Augmentation(padding=2, border="zero", flip=False)

# What a configuration may ask for; None is the data set's own.
AUGMENTATIONS: dict[str, Augmentation | RandomResizedCrop | None] = {
    "data-set": None,
    "crop-and-flip": CIFAR_AUGMENTATION,
    "random-resized-crop": RandomResizedCrop(),
}

SOURCES: dict[str, Source | FolderSource] = {
    "digits": Source(
        title="scikit-learn digits",
        read=_read_digits,
        classes=DIGIT_NAMES,
        augmentation=DIGIT_AUGMENTATION,
        mean=HALF,
        std=HALF,
        validation_samples=100,
        resize=32,
        interpolation="bilinear",
    ),
    "cifar10": Source(
        title="CIFAR-10",
        read=partial(_read_torchvision, "CIFAR10", "170 MB"),
        classes=CIFAR10_NAMES,
        augmentation=CIFAR_AUGMENTATION,
        mean=CIFAR_MEAN,
        std=CIFAR_STD,
    ),
    "cifar100": Source(
        title="CIFAR-100",
        read=partial(_read_torchvision, "CIFAR100", "169 MB"),
        classes=CIFAR100_NAMES,
        augmentation=CIFAR_AUGMENTATION,
        mean=CIFAR_MEAN,
        std=CIFAR_STD,
    ),
    "svhn": Source(
        title="SVHN",
        read=partial(_read_torchvision, "SVHN", "246 MB"),
        classes=DIGIT_NAMES,
        augmentation=DIGIT_AUGMENTATION,
        mean=HALF,
        std=HALF,
    ),
    "stl10": Source(
        title="STL-10",
        read=partial(_read_torchvision, "STL10", "2.6 GB"),
        classes=STL10_NAMES,
        augmentation=CIFAR_AUGMENTATION,
        mean=HALF,
        std=HALF,
    ),
    "imagenet": FolderSource(
        title="ImageNet",
        num_classes=1000,
        image_size=224,
        margin=256 / 224,
        augmentation=RandomResizedCrop(),
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
    ),
}
