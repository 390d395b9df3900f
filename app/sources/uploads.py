"""Uploaded images: a zip in, an image folder in the library out; nothing in it is trusted."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import stat
import tempfile
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from analysis.errors import InputError
from app.sources import datasets
from auglocal.errors import writing
from auglocal.files import write_whole

MOST_ENTRIES = 20_000
MOST_BYTES = 2**30  # unpacked
MOST_IMAGE_BYTES = 64 * 2**20
MOST_PIXELS = 64 * 10**6
MOST_SETS = 20
DEEPEST = 4  # NAME/train/CLASS/image
LONGEST_NAME = 100
FORMATS = ("BMP", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
ARCHIVES = (".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".7z", ".rar", ".zst")
SPLITS = ("train", "test", "val")
LAYOUTS = "train/CLASS/* and test/CLASS/*, CLASS/*, or images only"


def keep_images(name: str, file: io.BytesIO) -> str:
    """Check a zip of images and keep them, unpacked, in a folder named by its checksum.

    Args:
        name: the file's name where it came from.
        file: its bytes; images in class folders with or without train/ and test/, or images
            alone, perhaps in one folder around all.

    Returns:
        what the data set is called: "imagefolder:PATH".

    Raises:
        ValueError: not such a zip, or something in it is refused; one sentence.
        auglocal.errors.WorkError: the images cannot be written.
    """
    digest = hashlib.file_digest(file, "sha256").hexdigest()[:16]
    file.seek(0)
    folder = datasets.images_folder()
    target = folder / digest
    dataset = f"{datasets.FOLDER_PREFIX}{target}"
    if dataset in datasets.uploaded_images():
        return dataset
    if len(datasets.uploaded_images()) >= MOST_SETS:
        raise InputError(f"There are already {MOST_SETS} uploaded sets of images; delete one.")
    try:
        with zipfile.ZipFile(file) as archive:
            places = _places(_checked(archive.infolist()))
            _unpack(archive, places, target)
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, EOFError) as error:
        raise InputError(
            "The file is not a zip that can be read; make it again, with images and nothing else."
        ) from error
    title = PurePosixPath(name.replace("\\", "/")).stem[:80] or "Uploaded images"
    note = {"title": title, "images": len(places)}
    write_whole(target.with_suffix(".json"), json.dumps(note).encode())
    return dataset


def delete_images(dataset: str) -> None:
    """Delete uploaded images; other folders are never touched."""
    path = datasets.folder_of(dataset)
    if dataset in datasets.uploaded_images() and path.parent == datasets.images_folder():
        path.with_suffix(".json").unlink(missing_ok=True)
        shutil.rmtree(path, ignore_errors=True)


def _checked(entries: Sequence[zipfile.ZipInfo]) -> list[zipfile.ZipInfo]:
    """The images among the entries; refuses a zip with anything that could do harm."""
    if len(entries) > MOST_ENTRIES:
        raise InputError(
            f"The zip has {len(entries):,} entries, and at most {MOST_ENTRIES:,} are taken; make "
            "smaller ones."
        )
    total = sum(entry.file_size for entry in entries)
    if total > MOST_BYTES:
        raise InputError(
            f"The zip holds {total / 2**20:,.0f} MiB unpacked, and at most "
            f"{MOST_BYTES // 2**20:,} are taken; leave some images out or make them smaller."
        )
    for entry in entries:
        _check_entry(entry)
    images = [entry for entry in entries if _is_image(entry)]
    if not images:
        raise InputError(
            f"The zip holds no images ({', '.join(datasets.IMAGE_SUFFIXES)}); lay it out as "
            f"{LAYOUTS}."
        )
    return images


def _check_entry(entry: zipfile.ZipInfo) -> None:
    """Refuse one entry, naming it."""
    name, path = entry.orig_filename, PurePosixPath(entry.orig_filename)
    kind = stat.S_IFMT(entry.external_attr >> 16)
    reasons = {
        "leads out of the zip": path.is_absolute() or ".." in path.parts or "\\" in name,
        "has a name that no file should have": not name.isprintable()
        or ":" in name
        or any(len(part) > LONGEST_NAME for part in path.parts),
        "is a link or a device": kind not in (0, stat.S_IFREG, stat.S_IFDIR),
        "is encrypted": bool(entry.flag_bits & 1),
        "is another archive": path.suffix.lower() in ARCHIVES,
        f"is larger than {MOST_IMAGE_BYTES // 2**20} MiB": entry.file_size > MOST_IMAGE_BYTES,
        f"lies deeper than {DEEPEST - 1} folders": len(path.parts) > DEEPEST,
    }
    for reason, applies in reasons.items():
        if applies:
            raise InputError(f"{name[:80]!r} in the zip {reason}; take it out and make it again.")


def _is_image(entry: zipfile.ZipInfo) -> bool:
    """Whether an entry is an image; what file managers add beside them is left out."""
    path = PurePosixPath(entry.filename)
    hidden = any(part.startswith((".", "__MACOSX")) for part in path.parts)
    return not entry.is_dir() and not hidden and path.suffix.lower() in datasets.IMAGE_SUFFIXES


def _places(images: Sequence[zipfile.ZipInfo]) -> dict[str, PurePosixPath]:
    """Where each image goes: SPLIT/CLASS, CLASS or nowhere below the folder, by its name."""
    paths = {entry.filename: PurePosixPath(entry.filename) for entry in images}
    parents = {name: path.parent.parts for name, path in paths.items()}
    while all(parents.values()) and len({parts[0] for parts in parents.values()}) == 1:
        parents = {name: parts[1:] for name, parts in parents.items()}
    depths = {len(parts) for parts in parents.values()}
    splits = {parts[0] for parts in parents.values() if len(parts) == 2}
    has_splits = depths == {2} and "train" in splits and splits <= set(SPLITS) and len(splits) > 1
    if not has_splits and depths not in ({0}, {1}):
        raise InputError(f"The folders in the zip are laid out otherwise; make it {LAYOUTS}.")
    return {name: PurePosixPath(*parts) for name, parts in parents.items()}


def _unpack(archive: zipfile.ZipFile, places: dict[str, PurePosixPath], target: Path) -> None:
    """Write the images, all or none, under numbers for names."""
    with writing(target.parent):
        target.parent.mkdir(parents=True, exist_ok=True)
        working = Path(tempfile.mkdtemp(dir=target.parent, prefix=".unpacking."))
    try:
        for index, (name, place) in enumerate(places.items()):
            content = archive.read(name)
            _check_image(name, content)
            path = working / place / f"{index:05d}{PurePosixPath(name).suffix.lower()}"
            with writing(path):
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
        with writing(target):
            shutil.rmtree(target, ignore_errors=True)
            working.replace(target)
    finally:
        shutil.rmtree(working, ignore_errors=True)


def _check_image(name: str, content: bytes) -> None:
    """Refuse what is no image, or one too large to decode."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            width, height = image.size
            image.verify()
    except Exception as error:  # each decoder has its own
        raise InputError(
            f"{name[:80]!r} in the zip is not a readable image; take it out and make it again."
        ) from error
    if width * height > MOST_PIXELS:
        raise InputError(
            f"{name[:80]!r} in the zip has {width:,} x {height:,} pixels, more than "
            f"{MOST_PIXELS // 10**6} million; make it smaller."
        )
