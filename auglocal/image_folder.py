"""Image folders: a tree of class folders in, uint8 images and labels by split out."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
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


def read_image_folder(
    root: Path, image_size: int | None
) -> tuple[tuple[str, ...], dict[str, Split]]:
    """Find the images of a folder tree train/CLASS/*, test/CLASS/* (or val/CLASS/*).

    Args:
        root: the folder.
        image_size: pixels to resize to (shorter side, then the centre); None needs equal sizes.

    Returns:
        Class names, and the splits "train" and "test"; images are decoded when asked for.

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
    for split, path in (("train", root / "train"), ("test", test_folder)):
        classes_by_split[split] = _class_names(path)
        splits[split] = _folder_split(path, classes_by_split[split], image_size)
    if classes_by_split["train"] != classes_by_split["test"]:
        differing = set(classes_by_split["train"]) ^ set(classes_by_split["test"])
        raise InputError(
            f"The class folders of {root} differ between train and {test_folder.name} "
            f"({', '.join(sorted(differing)[:5])}); make them the same."
        )
    return classes_by_split["train"], splits


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


def _folder_split(path: Path, classes: Sequence[str], image_size: int | None) -> Split:
    """The images of one split's class folders, decoded when they are asked for."""
    files, labels = [], []
    for label, class_name in enumerate(classes):
        found = sorted(
            entry.path
            for entry in os.scandir(path / class_name)
            if entry.name.lower().endswith(IMAGE_SUFFIXES) and not entry.name.startswith(".")
        )
        if not found:
            raise InputError(
                f"{path / class_name} holds no images ({', '.join(IMAGE_SUFFIXES)}); add some or "
                "remove the folder."
            )
        files += found
        labels += [label] * len(found)
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
        raise InputError(f"{file} is not a readable image; replace it or remove it.") from error
    if image_size is not None and image.size != (image_size, image_size):
        size = (image_size, image_size)
        image = ImageOps.fit(image, size, method=Image.Resampling.BILINEAR)
    return np.asarray(image)
