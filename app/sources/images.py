"""The images that a study or a picture is about, drawn again from their data set."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import streamlit as st

from analysis.errors import InputError
from analysis.study import StudyQuestion
from app.sources import datasets

if TYPE_CHECKING:
    from analysis.features import ImageSample

CHANGED = (
    "The images on this machine are not those that were read: the data changed since, or are "
    "another version. Run it again on the data as they are here."
)


@dataclass(frozen=True, eq=False)
class Images:
    """Images in the order in which models read them.

    `sample` is what models read; `pixels` (N, H, W, C) uint8 are the same for pages.
    """

    sample: ImageSample
    pixels: npt.NDArray[np.uint8]

    @property
    def labels(self) -> npt.NDArray[np.int64]:
        """(N,) indices into the classes."""
        return self.sample.labels

    @property
    def classes(self) -> tuple[str, ...]:
        """K names."""
        return self.sample.classes

    @property
    def indices(self) -> npt.NDArray[np.int64]:
        """(N,), which images of the split these are."""
        return self.sample.indices


def draw(
    dataset: str,
    split: str,
    samples: int,
    seed: int,
    *,
    image_size: int | None = None,
    balanced: bool = False,
) -> Images:
    """Draw images of a data set on this machine; the same question draws the same images.

    Raises:
        InputError: the data are not here, or do not hold so many images.
    """
    if datasets.is_missing_folder(dataset):
        raise InputError(
            f"The images are not here: there is no folder "
            f"{dataset.removeprefix(datasets.FOLDER_PREFIX)} with train/CLASS/* and test/CLASS/*. "
            "Bring it here, or choose other data above."
        )
    prefix = datasets.folder_prefix(dataset)
    if not prefix and dataset not in datasets.datasets_on_disk():
        raise InputError(
            f"The images are not here: {dataset} was not downloaded to this machine. Download it, "
            "or choose other data above."
        )
    return _drawn(prefix, dataset, split, samples, seed, image_size, balanced)


def of_study(question: StudyQuestion, dataset: str) -> Images:
    """Draw the images that a study is about.

    Args:
        question: of the study.
        dataset: its data as they are called on this machine.

    Raises:
        InputError: the data are not here, or hold other images now.
    """
    images = draw(
        dataset,
        question.split,
        question.samples,
        question.seed,
        image_size=question.image_size,
        balanced=question.balanced,
    )
    if images.sample.sha256 != question.images_sha256:
        raise InputError(CHANGED)
    return images


@st.cache_resource(max_entries=4, show_spinner=False)
def _drawn(
    prefix: str,
    dataset: str,
    split: str,
    samples: int,
    seed: int,
    image_size: int | None,
    balanced: bool,
) -> Images:
    """Read the images; cached by all that decides which, and by a folder's contents."""
    from analysis.features import sample_images

    sample = sample_images(dataset, split, samples, seed, image_size=image_size, balanced=balanced)
    return Images(sample, sample.images.numpy().transpose(0, 2, 3, 1))
