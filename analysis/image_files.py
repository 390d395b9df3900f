"""Image files in, a batch of images as a network takes them out; no file is trusted.

Files are read by Pillow alone, a whole picture at a time, and only of a size that a photograph has.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from analysis.errors import InputError

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
LARGEST_FILE = 64 * 2**20  # bytes
MOST_PIXELS = 50_000_000
MODES = {1: "L", 3: "RGB"}


def find_images(paths: Sequence[Path | str]) -> list[Path]:
    """List the image files among files and folders; those of a folder by name, at any depth.

    Raises:
        InputError: a path is not there, or holds no image.
    """
    found: list[Path] = []
    for path in map(Path, paths):
        if path.is_dir():
            inside = sorted(
                file
                for file in path.rglob("*")
                if file.suffix.lower() in SUFFIXES and file.is_file()
            )
            if not inside:
                raise InputError(
                    f"There is no image in {path}; give image files ({', '.join(SUFFIXES)}) or a "
                    "folder of them."
                )
            found += inside
        elif path.is_file():
            found.append(path)
        else:
            raise InputError(f"There is no file {path}; check the path.")
    return found


def read_image(path: Path, input_size: tuple[int, int, int]) -> Tensor:
    """Read one image as a network of this input takes it.

    Turned as its camera says, in grey or in colours, its shorter side scaled to the network's
    (bilinear, antialiased), the middle cut out; an image of the right size stays as it is.

    Args:
        path: an image file.
        input_size: (C, H, W), C 1 or 3.

    Returns:
        uint8, (C, H, W).

    Raises:
        InputError: it is no image, is damaged or too large, or the network takes other channels.
    """
    channels, height, width = input_size
    if channels not in MODES:
        raise InputError(
            f"The network takes images of {channels} channels, which no image file has; read them "
            "from Python."
        )
    if path.stat().st_size > LARGEST_FILE:
        raise InputError(f"{path.name} is larger than {LARGEST_FILE // 2**20} MB; give a smaller.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = _open(path, MODES[channels])
    except InputError:
        raise
    except UnidentifiedImageError as error:
        raise InputError(
            f"{path.name} is no image that can be read; give one of {', '.join(SUFFIXES)}."
        ) from error
    except Exception as error:  # Pillow meets damage with errors of a dozen kinds
        raise InputError(f"{path.name} is a damaged image; give another copy of it.") from error
    if image.size != (width, height):
        image = ImageOps.fit(image, (width, height), Image.Resampling.BILINEAR)
    pixels = np.array(image)
    return torch.from_numpy(pixels.reshape(height, width, channels)).permute(2, 0, 1).contiguous()


def _open(path: Path, mode: str) -> Image.Image:
    """Decode a file of pixels within the limits."""
    with Image.open(path, formats=FORMATS) as file:
        if file.width * file.height > MOST_PIXELS:
            raise InputError(
                f"{path.name} has {file.width} x {file.height} pixels, more than "
                f"{MOST_PIXELS:,}; give a smaller image."
            )
        return ImageOps.exif_transpose(file).convert(mode)
