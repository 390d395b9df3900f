"""Data sets that can be used now, and those that a download would add."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePath

import streamlit as st

from app.sources import folders

FOLDER_PREFIX = "imagefolder:"
UPLOADED_PREFIX = "images:"  # in addresses, before the checksum of an uploaded zip
DATA = Path("data")  # where downloaded sets lie, as on the command line
IMAGE_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")


@dataclass(frozen=True)
class Downloadable:
    """A data set by auglocal's name: what people call it, its size, and what tells it is here."""

    title: str
    size: str
    marker: str


# Reading the sets takes seconds; the marker tells at once.
DOWNLOADABLE = {
    "cifar10": Downloadable("CIFAR-10", "170 MB", "cifar-10-batches-py"),
    "cifar100": Downloadable("CIFAR-100", "169 MB", "cifar-100-python"),
    "svhn": Downloadable("SVHN", "246 MB", "test_32x32.mat"),
    "stl10": Downloadable("STL-10", "2.6 GB", "stl10_binary"),
}
SPLITS = {"digits": ("test", "validation", "train")}
# Folders that the project's own checkpoints were trained on.
FOLDERS = {"cifar10-jpeg": "CIFAR-10 (JPEG)"}
# Images by split of the sets by name; reading them to count takes seconds.
SIZES = {
    "digits": {"test": 1000, "validation": 100, "train": 697},
    "cifar10": {"test": 10_000, "train": 50_000},
    "cifar100": {"test": 10_000, "train": 50_000},
    "svhn": {"test": 26_032, "train": 73_257},
    "stl10": {"test": 8_000, "train": 5_000},
}


def datasets_on_disk() -> dict[str, str]:
    """Titles by name of the data sets that can be used now."""
    return named_data() | uploaded_images()


def named_data() -> dict[str, str]:
    """Titles by name of those that have a name of their own: no images of the user's."""
    found = {"digits": "scikit-learn digits"}
    for name, entry in DOWNLOADABLE.items():
        if (DATA / entry.marker).exists():
            found[name] = entry.title
    for name, title in FOLDERS.items():
        if (DATA / name).is_dir():
            found[f"{FOLDER_PREFIX}{DATA / name}"] = title
    return found


def written(dataset: str) -> str:
    """Data as they stand in an address: uploaded images without the folder they are kept in."""
    if dataset in uploaded_images():
        return f"{UPLOADED_PREFIX}{folder_of(dataset).name}"
    return dataset


def read_written(text: str) -> str:
    """What `written` gave, as this machine calls it."""
    if not text.startswith(UPLOADED_PREFIX):
        return text
    return f"{FOLDER_PREFIX}{images_folder() / PurePath(text.removeprefix(UPLOADED_PREFIX)).name}"


def title_of(dataset: str) -> str | None:
    """What to call a folder's images; None for a set that has its own title."""
    if not dataset.startswith(FOLDER_PREFIX):
        return None
    return datasets_on_disk().get(dataset) or folder_of(dataset).resolve().name or None


def split_size(dataset: str, split: str) -> int | None:
    """How many images a split holds; None where that is not known."""
    if not dataset.startswith(FOLDER_PREFIX):
        return SIZES.get(dataset, {}).get(split)
    if is_missing_folder(dataset):
        return None
    return _count_images(dataset, split, folder_prefix(dataset))


@st.cache_data(max_entries=32, show_spinner=False)
def _count_images(dataset: str, split: str, prefix: str) -> int | None:
    """Count the files of a split; cached until the folder changes."""
    root = folder_of(dataset)
    names = {"test": ("test", "val")}.get(split, (split,))
    # A folder without splits is all test split; of test/ and val/ the first one there is read.
    splits = [root / name for name in names if (root / name).is_dir()]
    inside = splits[0] if (root / "train").is_dir() and splits else root
    found = [folder for folder in _image_folders(root) if folder.is_relative_to(inside)]
    return sum(_num_images(folder) for folder in found) or None


def _num_images(folder: Path) -> int:
    """How many images lie right in a folder."""
    with os.scandir(folder) as entries:
        return sum(entry.name.lower().endswith(IMAGE_SUFFIXES) for entry in entries)


def images_folder() -> Path:
    """Where uploaded images are kept, a folder each."""
    return folders.library_folder() / "images"


def uploaded_images() -> dict[str, str]:
    """Titles by name of the images that were uploaded."""
    found = {}
    for path in sorted(images_folder().glob("*.json")):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            title = str(json.loads(path.read_text(encoding="utf-8"))["title"])
            if path.with_suffix("").is_dir():
                found[f"{FOLDER_PREFIX}{path.with_suffix('')}"] = title
    return found


def splits_of(dataset: str) -> tuple[str, ...]:
    """The splits of a data set; the usual one first."""
    if not dataset.startswith(FOLDER_PREFIX):
        return SPLITS.get(dataset, ("test", "train"))
    has_train = (folder_of(dataset) / "train").is_dir()
    return ("test", "train") if has_train or is_missing_folder(dataset) else ("test",)


def folder_of(dataset: str) -> Path:
    """The folder of an image folder's name."""
    return Path(dataset.removeprefix(FOLDER_PREFIX)).expanduser()


def is_missing_folder(dataset: str) -> bool:
    """Whether data is an image folder that is not on this machine, or holds no images."""
    if not dataset.startswith(FOLDER_PREFIX):
        return False
    try:
        return next(_image_folders(folder_of(dataset)), None) is None
    except OSError:
        return True


def folder_prefix(dataset: str) -> str:
    """What names of results on an image folder start with; empty for a named data set."""
    return f"{_folder_fingerprint(dataset)}-" if dataset.startswith(FOLDER_PREFIX) else ""


@st.cache_data(ttl=10, max_entries=16, show_spinner=False)
def _folder_fingerprint(dataset: str) -> str:
    """Changes when images of a folder come, go, get another name, or change in place.

    What came, went or was renamed is seen after ten seconds, as it changes its folder's time or
    count. A file written over in place changes neither: it is seen when all files are looked at
    again, after five minutes. One that keeps its name, size and time is never seen.
    """
    root = folder_of(dataset)
    stamps = []
    for folder in _image_folders(root):
        with os.scandir(folder) as entries:
            stamps.append((str(folder), folder.stat().st_mtime_ns, sum(1 for _ in entries)))
    return _files_fingerprint(str(root.absolute()), tuple(stamps))


@st.cache_data(ttl=300, max_entries=16, show_spinner=False)
def _files_fingerprint(root: str, stamps: tuple[tuple[str, int, int], ...]) -> str:
    """Hash names, sizes and times of all files; seconds for 100,000 of them."""
    digest = hashlib.sha256(root.encode())
    for folder, _, _ in stamps:
        with os.scandir(folder) as entries:
            files = sorted(entries, key=lambda entry: entry.name)
        digest.update(folder.encode())
        for file in files:
            status = file.stat()
            digest.update(f"/{file.name}:{status.st_size}:{status.st_mtime_ns}".encode())
    return digest.hexdigest()[:16]


def _image_folders(root: Path) -> Iterator[Path]:
    """The folders that hold a data set's images: of splits and classes, of classes, or the root.

    As `auglocal.image_folder` finds them.
    """
    if (root / "train").is_dir():
        for split in ("train", "test", "val"):
            yield from sorted(root.glob(f"{split}/*/"))
        return
    classes = [folder for folder in sorted(root.glob("*/")) if _has_images(folder)]
    yield from classes or ([root] if _has_images(root) else [])


def _has_images(folder: Path) -> bool:
    """Whether some image lies right in a folder."""
    if not folder.is_dir():
        return False
    with os.scandir(folder) as entries:
        return any(entry.name.lower().endswith(IMAGE_SUFFIXES) for entry in entries)
