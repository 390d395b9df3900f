"""Image folders: a tree of class folders in, uint8 images and labels by split out."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from auglocal.errors import InputError
from auglocal.splits import Split

IMAGE_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")
# A set is held in memory as uint8; beyond this it would push the user's other work out.
MAX_DATASET_BYTES = 8 * 2**30


@dataclass(frozen=True)
class ImageFolder:
    """What a folder tree holds.

    Attributes:
        classes: K names, sorted.
        splits: "train" and "test"; images are decoded when asked for.
        skipped: files that were left out because they cannot be read.
    """

    classes: tuple[str, ...]
    splits: dict[str, Split]
    skipped: tuple[str, ...]


def read_image_folder(
    root: Path, image_size: int | None, *, skip_corrupt: bool = False
) -> ImageFolder:
    """Find the images of a folder tree train/CLASS/*, test/CLASS/* (or val/CLASS/*).

    Args:
        root: the folder.
        image_size: pixels to resize to (shorter side, then the centre); None needs equal sizes.
        skip_corrupt: decode every image now, and leave out those that cannot be read.

    Raises:
        InputError: the tree is not as described; reading its images may raise it too.
    """
    if not root.is_dir():
        raise InputError(
            f"There is no folder {root}; give imagefolder:PATH of a folder that holds "
            "train/CLASS/* and test/CLASS/*."
        )
    test_folder = root / "test" if (root / "test").is_dir() else root / "val"
    splits, classes_by_split = {}, {}
    skipped: list[str] = []
    for split, path in (("train", root / "train"), ("test", test_folder)):
        classes_by_split[split] = _class_names(path)
        files_by_class = [_image_files(path / name) for name in classes_by_split[split]]
        if skip_corrupt:
            files_by_class = [_readable_files(files, skipped) for files in files_by_class]
        splits[split] = _folder_split(files_by_class, image_size)
    if classes_by_split["train"] != classes_by_split["test"]:
        differing = set(classes_by_split["train"]) ^ set(classes_by_split["test"])
        raise InputError(
            f"The class folders of {root} differ between train and {test_folder.name} "
            f"({', '.join(sorted(differing)[:5])}); make them the same."
        )
    return ImageFolder(classes_by_split["train"], splits, tuple(skipped))


def _class_names(path: Path) -> tuple[str, ...]:
    """Names of the class folders below a split's folder, sorted."""
    if not path.is_dir():
        raise InputError(
            f"There is no folder {path}; an image folder needs train/CLASS/* and test/CLASS/* "
            "(or val/CLASS/*)."
        )
    names = sorted(entry.name for entry in path.iterdir() if entry.is_dir())
    if len(names) < 2:
        raise InputError(
            f"{path} holds {len(names)} class folders, and learning needs at least 2; make one "
            "folder a class."
        )
    return tuple(names)


def _image_files(path: Path) -> list[str]:
    """The images of one class folder, sorted."""
    found = sorted(
        entry.path
        for entry in os.scandir(path)
        if entry.name.lower().endswith(IMAGE_SUFFIXES) and not entry.name.startswith(".")
    )
    if not found:
        raise InputError(
            f"{path} holds no images ({', '.join(IMAGE_SUFFIXES)}); add some or remove the folder."
        )
    return found


def _readable_files(files: Sequence[str], skipped: list[str]) -> list[str]:
    """The files that can be decoded; the others are added to `skipped`."""
    with ThreadPoolExecutor() as pool:
        readable = list(pool.map(_is_readable, files))
    skipped += [file for file, good in zip(files, readable) if not good]
    kept = [file for file, good in zip(files, readable) if good]
    if not kept:
        raise InputError(
            f"None of the {len(files)} images of {Path(files[0]).parent} can be read; replace them "
            "or remove the folder."
        )
    return kept


def _is_readable(file: str) -> bool:
    try:
        _decode(None, file)
    except InputError:
        return False
    return True


def _folder_split(files_by_class: Sequence[Sequence[str]], image_size: int | None) -> Split:
    """The images of one split's classes, decoded when they are asked for."""
    files = [file for found in files_by_class for file in found]
    labels = [label for label, found in enumerate(files_by_class) for _ in found]
    return Split(torch.tensor(labels), partial(_decode_files, files, image_size))


def _decode_files(files: Sequence[str], image_size: int | None, indices: Tensor) -> Tensor:
    """Decode the files at `indices` (M,) to uint8 (M, 3, H, W), all of one size."""
    chosen = [files[index] for index in indices.tolist()]
    first = _decode(image_size, chosen[0])
    needed = len(chosen) * first.size
    if needed > MAX_DATASET_BYTES:
        raise InputError(
            f"{len(chosen):,} images of {first.shape[1]} x {first.shape[0]} pixels need "
            f"{needed / 2**30:.0f} GiB of memory, more than {MAX_DATASET_BYTES / 2**30:.0f}; give "
            "a smaller --image-size."
        )
    pixels = np.empty((len(chosen), *first.shape), dtype=np.uint8)
    with ThreadPoolExecutor() as pool:
        for position, image in enumerate(pool.map(partial(_decode, image_size), chosen)):
            if image.shape != first.shape:
                raise InputError(
                    f"The images differ in size ({chosen[0]} is {first.shape[1]} x "
                    f"{first.shape[0]}, {chosen[position]} is {image.shape[1]} x "
                    f"{image.shape[0]}); give --image-size to resize them."
                )
            pixels[position] = image
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()


def _decode(image_size: int | None, file: str) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """One image as uint8 (H, W, 3)."""
    from PIL import Image, ImageOps

    try:
        with Image.open(file) as stored:
            image = stored.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise InputError(
            f"{file} is not a readable image; replace it, remove it, or give --skip-corrupt to "
            "train without it."
        ) from error
    if image_size is not None and image.size != (image_size, image_size):
        size = (image_size, image_size)
        image = ImageOps.fit(image, size, method=Image.Resampling.BILINEAR)
    return np.asarray(image)
