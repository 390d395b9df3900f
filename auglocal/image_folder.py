"""Image folders: a tree of class folders in, the files, uint8 images and labels by split out."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from auglocal.errors import InputError
from auglocal.splits import Split

if TYPE_CHECKING:
    from PIL import Image

UNNAMED_CLASS = "no class"  # of images that lie in no class folder
Pixels = np.ndarray[Any, np.dtype[np.uint8]]
IMAGE_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")
# A set is held in memory as uint8; beyond this it would push the user's other work out.
MAX_DATASET_BYTES = 8 * 2**30


@dataclass(frozen=True)
class Fit:
    """An image resized (shorter side) and cut to `size` x `size` pixels; None: as it is stored."""

    size: int | None

    def __call__(self, image: Image.Image) -> Pixels:
        """An RGB image -> uint8 (H, W, 3)."""
        from PIL import Image, ImageOps

        if self.size is not None and image.size != (self.size, self.size):
            size = (self.size, self.size)
            image = ImageOps.fit(image, size, method=Image.Resampling.BILINEAR)
        return np.array(image)


@dataclass(frozen=True)
class ResizeAndCrop:
    """An image whose shorter side is resized to `resize`, and of that the central `size` pixels."""

    resize: int
    size: int

    def __call__(self, image: Image.Image) -> Pixels:
        """An RGB image -> uint8 (size, size, 3)."""
        from torchvision.transforms.v2 import functional

        stored = to_tensor(np.array(image))
        pixels = functional.resize(stored, [self.resize], antialias=True)
        cropped: Tensor = functional.center_crop(pixels, [self.size])
        return cropped.permute(1, 2, 0).numpy()


@dataclass(frozen=True)
class FileReader:
    """Decodes image files.

    Attributes:
        paths: (N,), bytes of one length, so that worker processes share them as one array.
        view: what evaluation sees of an image.
    """

    paths: np.ndarray[Any, np.dtype[np.bytes_]]
    view: Fit | ResizeAndCrop

    def file(self, index: int) -> str:
        """The path of one file."""
        return os.fsdecode(bytes(self.paths[index]))

    def image(self, index: int) -> Image.Image:
        """One image as it is stored, in RGB.

        Raises:
            InputError: naming a file that cannot be read.
        """
        return _open_image(self.file(index))

    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W) as evaluation sees the first image, without decoding it."""
        if self.view.size is not None:
            return 3, self.view.size, self.view.size
        width, height = _stored_size(self.file(0))
        return 3, height, width

    def decoded_bytes(self) -> int:
        """Memory that all images take, if all have the size of the first."""
        channels, height, width = self.image_shape()
        return len(self.paths) * channels * height * width

    def check_sizes(self) -> None:
        """Refuse images that evaluation would see in different sizes; reads the files' heads only.

        Raises:
            InputError: naming two of them, or a file that cannot be read.
        """
        if self.view.size is not None:
            return
        files = [self.file(index) for index in range(len(self.paths))]
        with ThreadPoolExecutor() as pool:
            sizes = pool.map(_stored_size, files)
            first = next(sizes)
            for file, size in zip(files[1:], sizes):
                _require_equal_sizes((files[0], file), (first, size))

    def __call__(self, indices: Tensor) -> Tensor:
        """Decode the files at `indices` (M,) to uint8 (M, 3, H, W), all of one size.

        Raises:
            InputError: a file cannot be read, the sizes differ, or it is too much for memory.
        """
        chosen = indices.tolist()
        first = self.view(self.image(chosen[0]))
        height, width, _ = first.shape
        _require_memory(len(chosen), first)
        pixels = np.empty((len(chosen), *first.shape), dtype=np.uint8)
        with ThreadPoolExecutor() as pool:
            for position, image in enumerate(pool.map(self._see, chosen)):
                files = self.file(chosen[0]), self.file(chosen[position])
                _require_equal_sizes(files, ((width, height), (image.shape[1], image.shape[0])))
                pixels[position] = image
        return torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()

    def _see(self, index: int) -> Pixels:
        """One image as evaluation sees it, uint8 (H, W, 3)."""
        return self.view(self.image(index))


@dataclass(frozen=True)
class FileSplit(Split):
    """A split whose images are files."""

    read: FileReader

    def subset(self, indices: Tensor) -> FileSplit:
        """The split made of the files at `indices`."""
        reader = FileReader(self.read.paths[indices.numpy()], self.read.view)
        return FileSplit(self.labels[indices], reader)


@dataclass(frozen=True)
class ImageFolder:
    """What a folder tree holds.

    Attributes:
        classes: K names, sorted.
        splits: "train" and "test"; images are decoded when asked for.
        skipped: files that were left out because they cannot be read.
    """

    classes: tuple[str, ...]
    splits: dict[str, FileSplit]
    skipped: tuple[str, ...]


def read_image_folder(
    root: Path, view: Fit | ResizeAndCrop, *, skip_corrupt: bool = False, unsplit: bool = False
) -> ImageFolder:
    """Find the images of a folder tree train/CLASS/*, test/CLASS/* (or val/CLASS/*).

    Args:
        root: the folder.
        view: what evaluation sees of an image; `Fit(None)` needs equal sizes.
        skip_corrupt: decode every image now, and leave out those that cannot be read.
        unsplit: take CLASS/*, or images without classes, too; all of them are the test split.

    Raises:
        InputError: the tree is not as described; reading its images may raise it too.
    """
    if not root.is_dir():
        raise InputError(
            f"There is no folder {root}; give imagefolder:PATH of a folder that holds "
            "train/CLASS/* and test/CLASS/*."
        )
    if unsplit and not (root / "train").is_dir():
        return _unsplit_folder(root, view)
    test_folder = root / "test" if (root / "test").is_dir() else root / "val"
    splits, classes_by_split = {}, {}
    skipped: list[str] = []
    for split, path in (("train", root / "train"), ("test", test_folder)):
        classes_by_split[split] = _class_names(path)
        files_by_class = [_image_files(path / name) for name in classes_by_split[split]]
        if skip_corrupt:
            files_by_class = [_readable_files(files, skipped) for files in files_by_class]
        splits[split] = _folder_split(files_by_class, view)
    if classes_by_split["train"] != classes_by_split["test"]:
        differing = set(classes_by_split["train"]) ^ set(classes_by_split["test"])
        raise InputError(
            f"The class folders of {root} differ between train and {test_folder.name} "
            f"({', '.join(sorted(differing)[:5])}); make them the same."
        )
    return ImageFolder(classes_by_split["train"], splits, tuple(skipped))


def _unsplit_folder(root: Path, view: Fit | ResizeAndCrop) -> ImageFolder:
    """The images of a folder without splits, as one test split; of one class if there is none."""
    found = {
        entry.name: files
        for entry in sorted(root.iterdir())
        if entry.is_dir() and (files := _images_in(entry))
    } or {UNNAMED_CLASS: _images_in(root)}
    if not any(found.values()):
        raise InputError(
            f"{root} holds neither train/CLASS/* and test/CLASS/*, nor CLASS/*, nor images "
            f"({', '.join(IMAGE_SUFFIXES)}); lay it out so, or name another folder."
        )
    split = _folder_split(list(found.values()), view)
    return ImageFolder(tuple(found), {"test": split}, ())


def to_tensor(pixels: Pixels) -> Tensor:
    """uint8 (H, W, 3) -> (3, H, W) in the same memory, channels last: torchvision's fastest."""
    return torch.from_numpy(pixels).permute(2, 0, 1)


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
    """The images of one class folder, sorted; there must be some."""
    found = _images_in(path)
    if not found:
        raise InputError(
            f"{path} holds no images ({', '.join(IMAGE_SUFFIXES)}); add some or remove the folder."
        )
    return found


def _images_in(path: Path) -> list[str]:
    """The images right in a folder, sorted."""
    return sorted(
        entry.path
        for entry in os.scandir(path)
        if entry.name.lower().endswith(IMAGE_SUFFIXES) and not entry.name.startswith(".")
    )


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
        _open_image(file)
    except InputError:
        return False
    return True


def _folder_split(files_by_class: Sequence[Sequence[str]], view: Fit | ResizeAndCrop) -> FileSplit:
    """The images of one split's classes, decoded when they are asked for."""
    paths = np.array([os.fsencode(file) for found in files_by_class for file in found])
    labels = [label for label, found in enumerate(files_by_class) for _ in found]
    return FileSplit(torch.tensor(labels), FileReader(paths, view))


def _require_memory(num_images: int, image: Pixels) -> None:
    """Refuse more images than are held in memory."""
    needed = num_images * image.size
    if needed > MAX_DATASET_BYTES:
        raise InputError(
            f"{num_images:,} images of {image.shape[1]} x {image.shape[0]} pixels need "
            f"{needed / 2**30:.0f} GiB of memory, more than {MAX_DATASET_BYTES / 2**30:.0f}; give "
            "a smaller --image-size, or train and evaluate with --stream."
        )


def _require_equal_sizes(
    files: tuple[str, str], sizes: tuple[tuple[int, int], tuple[int, int]]
) -> None:
    """Refuse two images whose (width, height) differ."""
    if sizes[0] != sizes[1]:
        (first_width, first_height), (width, height) = sizes
        raise InputError(
            f"The images differ in size ({files[0]} is {first_width} x {first_height}, {files[1]} "
            f"is {width} x {height}); give --image-size to resize them."
        )


def _open_image(file: str) -> Image.Image:
    """One image in RGB."""
    from PIL import Image

    with _naming(file), Image.open(file) as stored:
        return stored.convert("RGB")


def _stored_size(file: str) -> tuple[int, int]:
    """(width, height) of one image, from its head."""
    from PIL import Image

    with _naming(file), Image.open(file) as stored:
        return stored.size


@contextmanager
def _naming(file: str) -> Iterator[None]:
    """Turn a failure to read an image into a sentence that names the file."""
    from PIL import Image

    try:
        yield
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise InputError(
            f"{file} is not a readable image; replace it, remove it, or give --skip-corrupt to "
            "train without it."
        ) from error
