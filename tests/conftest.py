"""What the tests of all packages share."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

# A worker a core; threads of their own would only wait for each other. Before torch is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def image_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of 16x16 images that differ in brightness: 48 for training, 16 for testing."""
    root = tmp_path_factory.mktemp("shades")
    generator = np.random.default_rng(0)
    for split, count in (("train", 24), ("test", 8)):
        for name, offset in (("dark", 40), ("light", 180)):
            folder = root / split / name
            folder.mkdir(parents=True)
            for index in range(count):
                pixels = offset + generator.integers(0, 40, (16, 16, 3))
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{index:02d}.png")
    return root
