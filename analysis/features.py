"""A model and images in, the outputs of its layers out, one at a time; and which images."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from analysis.errors import InputError
from analysis.models import Model, translated_errors
from auglocal.data import FOLDER_PREFIX, Dataset, load_dataset

IntArray = npt.NDArray[np.int64]
DEFAULT_SAMPLES = 1000


@dataclass(frozen=True, eq=False)
class ImageSample:
    """Images drawn from one split of a data set, in random order.

    Attributes:
        images: uint8 tensor, (N, C, H, W).
        labels: (N,), index into `classes`.
        classes: K names.
        dataset: the name as asked.
        title: what people call it.
        split: the split's name.
        indices: (N,), which images of the split.
        seed: of the draw.
        sha256: of the pixels and labels, in order.
    """

    images: Tensor
    labels: IntArray
    classes: tuple[str, ...]
    dataset: str
    title: str
    split: str
    indices: IntArray
    seed: int
    sha256: str


def sample_images(
    dataset: str,
    split: str = "test",
    samples: int | None = None,
    seed: int = 0,
    *,
    folder: Path | str = "data",
    image_size: int | None = None,
    title: str | None = None,
    download: bool = False,
    default_samples: int = DEFAULT_SAMPLES,
) -> ImageSample:
    """Draw images of a split, at random, without repetition.

    The order is random too: minibatches of class-sorted images give another CKA.

    Args:
        dataset: a name, or "imagefolder:PATH".
        split: "train", "validation" or "test".
        samples: how many; None takes `default_samples`, or all where there are fewer.
        seed: decides which; the same seed draws the same images.
        folder: where downloaded data sets lie.
        image_size: pixels; resizes the images of a folder.
        title: what to call the data of a folder.
        download: fetch a data set that is not there.
        default_samples: how many if nothing is asked for.

    Returns:
        the images with all that identifies them.

    Raises:
        InputError: no such data set or split, or more images asked for than the split holds.
    """
    with translated_errors():
        loaded = load_dataset(
            dataset, folder=folder, download=download, image_size=image_size, title=title
        )
    size = _split_size(loaded, split)
    samples = min(default_samples, size) if samples is None else samples
    if not 1 <= samples <= size:
        raise InputError(
            f"{samples:,} images of the {split} split of {loaded.title} were asked for, but it "
            f"holds {size:,}; ask for 1 to {size:,}."
        )
    if seed < 0:
        raise InputError(f"The seed must be 0 or more, not {seed}; give another --seed.")
    indices = np.random.default_rng(seed).permutation(size)[:samples].astype(np.int64)
    with translated_errors():
        images = loaded.splits[split].take(torch.from_numpy(indices))
    labels = loaded.splits[split].labels.numpy()[indices]
    return ImageSample(
        images=images,
        labels=labels,
        classes=loaded.classes,
        dataset=dataset,
        title=loaded.title,
        split=split,
        indices=indices,
        seed=seed,
        sha256=hashlib.sha256(images.numpy().tobytes() + labels.tobytes()).hexdigest(),
    )


def _split_size(dataset: Dataset, split: str) -> int:
    """Number of images of a split, which must be there."""
    if split not in dataset.splits:
        raise InputError(
            f"{dataset.title} has no split {split!r}, only {' and '.join(dataset.splits)}; choose "
            "another split or data set."
        )
    return len(dataset.splits[split])


def check_images(model: Model, sample: ImageSample) -> None:
    """Refuse images that a model was not made for.

    Raises:
        InputError: channels, height or width differ.
    """
    expected, given = model.metadata.input_size, tuple(sample.images.shape[1:])
    if given == expected:
        return
    advice = "choose another data set with --dataset"
    if given[0] == expected[0] and sample.dataset.startswith(FOLDER_PREFIX):
        advice = f"give --image-size {expected[1]}"
    raise InputError(
        f"{model.name} takes images of {_size_text(expected)}, but those of {sample.title} are "
        f"{_size_text(given)}; {advice}."
    )


def _size_text(size: tuple[int, ...]) -> str:
    return " x ".join(str(length) for length in size)


def stream_features(model: Model, images: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Run one batch through a model and yield each layer's output as it is computed.

    Use an output before asking for the next: the next layer may work in its memory, and it is
    given up then, so that no more than one layer's features are alive.

    Args:
        model: a model.
        images: uint8, (N, C, H, W).

    Yields:
        (layer name, features (N, ...)), input to output, without an autograd graph.
    """
    outputs = model.backbone.forward_layers(model.preprocess(images))
    while True:
        # Never yield inside the `with`: it would leak into the caller.
        with torch.no_grad():
            output = next(outputs, None)
        if output is None:
            return
        yield output


def classify(model: Model, features: Tensor) -> IntArray:
    """Predict classes by the model's own head.

    Args:
        model: a model.
        features: the last layer's output, (N, ...).

    Returns:
        (N,) indices into the model's classes.
    """
    with torch.no_grad():
        logits = model.backbone.head(features)
    predictions: IntArray = logits.argmax(dim=1).cpu().numpy()
    return predictions
