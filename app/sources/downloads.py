"""Downloads of named data sets, as jobs: on a click, with progress, checked, and never half.

Files come from where torchvision says and have the checksums that it knows.
"""

from __future__ import annotations

import hashlib
import shutil
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from analysis.errors import Cancelled
from app import jobs
from app.sources import computing, datasets
from auglocal.errors import WorkError

CHUNK = 2**20  # bytes; a wish to stop is heeded after each
TIMEOUT = 30  # seconds without a byte after which the connection counts as lost
CLASSES = {"cifar10": "CIFAR10", "cifar100": "CIFAR100", "svhn": "SVHN", "stl10": "STL10"}
SPLITS = ("train", "test")


def key(name: str) -> str:
    """The key of the job that downloads a data set."""
    return f"download-{name}"


def start(name: str) -> jobs.Job:
    """Download a data set in a job.

    Args:
        name: of `datasets.DOWNLOADABLE`.

    Raises:
        jobs.BusyError, OSError: as `jobs.Registry.start`.
    """
    title = f"Downloading {datasets.DOWNLOADABLE[name].title}"
    return computing.registry().start(key(name), title, _work(name), Path())


def _work(name: str) -> jobs.Work:
    """The work of a job: every file of a set, then the set itself."""

    def work(report: Any, cancelled: Callable[[], bool]) -> None:
        datasets.DATA.mkdir(parents=True, exist_ok=True)
        for url, file, md5 in _files(name):
            fetch(url, datasets.DATA / file, md5, report, cancelled)
        report("Unpacking", 0, 0)
        _unpack(name)

    return work


def _files(name: str) -> list[tuple[str, str, str]]:
    """(address, file name, MD5) of the files of a set, as torchvision knows them."""
    from torchvision import datasets as torchvision_datasets

    kind: Any = getattr(torchvision_datasets, CLASSES[name])
    if name == "svhn":
        return [tuple(kind.split_list[split]) for split in SPLITS]
    return [(kind.url, kind.filename, kind.tgz_md5)]


def _unpack(name: str) -> None:
    """Let auglocal unpack and read what was downloaded; fetches nothing where it is whole."""
    from auglocal.data import load_dataset

    load_dataset(name, folder=datasets.DATA, download=True)


def fetch(
    url: str,
    path: Path,
    md5: str,
    report: Callable[[str, int, int], None],
    cancelled: Callable[[], bool],
) -> None:
    """Download a file, whole or not at all; one that is here and right is left as it is.

    Args:
        url: address.
        path: the file to write.
        md5: its checksum, hexadecimal.
        report: called with the megabytes done and all megabytes.
        cancelled: asked after every megabyte.

    Raises:
        Cancelled: `cancelled` said so; nothing is left behind.
        auglocal.errors.WorkError: it does not arrive, is not what it should be, or does not fit
            on the disk.
    """
    if path.exists() and _md5(path) == md5:
        return
    part = path.with_name(f"{path.name}.part")
    try:
        _receive(url, part, report, cancelled)
        if _md5(part) != md5:
            raise WorkError(
                f"What {_host(url)} sent for {path.name} is not the file that it should be; try "
                "again later, or put the file there by hand."
            )
        part.replace(path)
    except OSError as error:
        reason = getattr(error, "reason", None) or error.strerror or error
        raise WorkError(
            f"{path.name} could not be downloaded from {_host(url)} ({reason}); try again, or put "
            f"the file into {path.parent} by hand."
        ) from error
    finally:
        part.unlink(missing_ok=True)


def _receive(
    url: str,
    part: Path,
    report: Callable[[str, int, int], None],
    cancelled: Callable[[], bool],
) -> None:
    """Write what an address sends."""
    with urllib.request.urlopen(url, timeout=TIMEOUT) as answer, part.open("wb") as file:
        total = int(answer.headers.get("Content-Length") or 0)
        if total > shutil.disk_usage(part.parent).free:
            raise WorkError(
                f"The disk has too little room for {total / 10**6:,.0f} MB in {part.parent}; free "
                "some, and try again."
            )
        done = 0
        while chunk := answer.read(CHUNK):
            if cancelled():
                raise Cancelled("The download was cancelled; nothing was kept.")
            file.write(chunk)
            done += len(chunk)
            report("Downloading, MB", round(done / 10**6), round(total / 10**6))


def _md5(path: Path) -> str:
    """The checksum that torchvision's lists have."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def _host(url: str) -> str:
    """The name of the server in an address."""
    return urlsplit(url).netloc
