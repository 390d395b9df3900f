"""Data sets that can be used now."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import streamlit as st

FOLDER_PREFIX = "imagefolder:"


# What tells that a set was downloaded, by auglocal's name; reading the sets takes seconds.
DATASET_FILES = {
    "cifar10": ("CIFAR-10", "cifar-10-batches-py"),
    "cifar100": ("CIFAR-100", "cifar-100-python"),
    "svhn": ("SVHN", "test_32x32.mat"),
    "stl10": ("STL-10", "stl10_binary"),
}


def datasets_on_disk() -> dict[str, str]:
    """Titles by name of the data sets that can be used now."""
    found = {"digits": "scikit-learn digits"}
    for name, (title, file) in DATASET_FILES.items():
        if (Path("data") / file).exists():
            found[name] = title
    return found


def is_missing_folder(dataset: str) -> bool:
    """Whether data is an image folder that is not on this machine."""
    root = Path(dataset.removeprefix(FOLDER_PREFIX)).expanduser()
    return dataset.startswith(FOLDER_PREFIX) and not (root / "train").is_dir()


def folder_prefix(dataset: str) -> str:
    """What names of results on an image folder start with; empty for a named data set."""
    return f"{_folder_fingerprint(dataset)}-" if dataset.startswith(FOLDER_PREFIX) else ""


@st.cache_data(ttl=10, max_entries=16, show_spinner=False)
def _folder_fingerprint(dataset: str) -> str:
    """Changes when images of a folder come, go or change; read anew after ten seconds."""
    root = Path(dataset.removeprefix(FOLDER_PREFIX)).expanduser()
    digest = hashlib.sha256(str(root.absolute()).encode())
    for split in ("train", "test", "val"):
        for folder in sorted(root.glob(f"{split}/*/")):
            for file in sorted(os.scandir(folder), key=lambda entry: entry.name):
                status = file.stat()
                digest.update(f"{folder.name}/{file.name}:{status.st_size}".encode())
                digest.update(str(status.st_mtime_ns).encode())
    return digest.hexdigest()[:16]
