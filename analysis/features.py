"""A model and images in, the outputs of its layers out, one at a time; and which images."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from analysis.balance import class_quotas, remainder_note, usual_samples, within_quotas
from analysis.errors import InputError
from analysis.models import Model, translated_errors
from analysis.module_reader import ModuleReader
from auglocal.backbones.heads import PooledHead
from auglocal.data import FOLDER_PREFIX, Dataset, load_dataset

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.floating[Any]]
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
        balanced: every class has the same number of images, give or take one.
        note: a sentence where it is one more in some classes; else "".
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
    balanced: bool = False
    note: str = ""


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
    balanced: bool = False,
) -> ImageSample:
    """Draw images of a split, at random, without repetition.

    The order is random too: minibatches of class-sorted images give another CKA.

    Args:
        dataset: a name, or "imagefolder:PATH"; a folder of class folders, or of images without
            classes, is all test split.
        split: "train", "validation" or "test".
        samples: how many; None takes `default_samples`, or all where there are fewer.
        seed: decides which; the same seed draws the same images.
        folder: where downloaded data sets lie.
        image_size: pixels; resizes the images of a folder.
        title: what to call the data of a folder.
        download: fetch a data set that is not there.
        default_samples: how many if nothing is asked for.
        balanced: draw the same number of images of every class; where K does not divide
            `samples`, classes drawn by the seed have one more, and the sample's note says so. Of
            `samples` None it takes as many as the smallest class allows, a multiple of K.

    Returns:
        the images with all that identifies them.

    Raises:
        InputError: no such data set or split, or more images asked for than the split holds, or
            than a class does where the draw is balanced.
    """
    with translated_errors():
        loaded = load_dataset(
            dataset,
            folder=folder,
            download=download,
            image_size=image_size,
            title=title,
            unsplit=True,
        )
    size = _split_size(loaded, split)
    all_labels: IntArray = loaded.splits[split].labels.numpy()
    counts = np.bincount(all_labels, minlength=len(loaded.classes))
    if samples is None:
        samples = usual_samples(counts, default_samples) if balanced else min(default_samples, size)
    if not 1 <= samples <= size:
        raise InputError(
            f"{samples:,} images of the {split} split of {loaded.title} were asked for, but it "
            f"holds {size:,}; ask for 1 to {size:,}."
        )
    if seed < 0:
        raise InputError(f"The seed must be 0 or more, not {seed}; give another --seed.")
    generator = np.random.default_rng(seed)
    order = generator.permutation(size)
    note = ""
    if balanced:
        place = f"the {split} split of {loaded.title}"
        quotas = class_quotas(loaded.classes, counts, samples, generator, place)
        order = order[within_quotas(all_labels[order], quotas)]
        note = remainder_note(loaded.classes, quotas)
    indices = order[:samples].astype(np.int64)
    with translated_errors():
        images = loaded.splits[split].take(torch.from_numpy(indices))
    labels = all_labels[indices]
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
        balanced=balanced,
        note=note,
    )


def _split_size(dataset: Dataset, split: str) -> int:
    """Number of images of a split, which must be there."""
    if split not in dataset.splits:
        raise InputError(
            f"{dataset.title} has no split {split!r}, only {' and '.join(dataset.splits)}; choose "
            "another split or data set."
        )
    return len(dataset.splits[split])


def fits(model: Model, sample: ImageSample) -> bool:
    """Whether a model takes images of this size."""
    expected, given = model.metadata.input_size, tuple(sample.images.shape[1:])
    return given == expected or (model.takes_any_size and given[0] == expected[0])


def check_images(model: Model, sample: ImageSample) -> None:
    """Refuse images that a model was not made for.

    Raises:
        InputError: channels, height or width differ.
    """
    if fits(model, sample):
        return
    expected, given = model.metadata.input_size, tuple(sample.images.shape[1:])
    advice = "choose another data set with --dataset"
    if given[0] == expected[0] and sample.dataset.startswith(FOLDER_PREFIX):
        advice = f"give --image-size {expected[1]}"
    raise InputError(
        f"{model.name} takes images of {_size_text(expected)}, but those of {sample.title} are "
        f"{_size_text(given)}; {advice}."
    )


def fitting_images(
    models: Mapping[str, Model], sample: ImageSample, draw: Callable[..., ImageSample]
) -> dict[str, ImageSample]:
    """The same images for each of some models: a folder's are resized where one needs another size.

    Args:
        models: by name. One of them must take the images as they are: else the size is a mistake.
        sample: the images.
        draw: draws them again, of `image_size` pixels.

    Raises:
        InputError: as `check_images`.
    """
    are_fitting = {name: fits(model, sample) for name, model in models.items()}
    is_folder = sample.dataset.startswith(FOLDER_PREFIX)
    by_size: dict[int, ImageSample] = {}
    found = {}
    for name, model in models.items():
        channels, height, width = model.metadata.input_size
        can_be = is_folder and height == width and channels == sample.images.shape[1]
        if are_fitting[name] or not (can_be and any(are_fitting.values())):
            check_images(model, sample)
            found[name] = sample
        else:
            if height not in by_size:
                by_size[height] = draw(image_size=height)
            found[name] = by_size[height]
    return found


def _size_text(size: tuple[int, ...]) -> str:
    return " x ".join(str(length) for length in size)


def stream_features(model: Model, images: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Run one batch through a model and yield each layer's output as it is computed.

    Use an output before asking for the next: the next layer may work in its memory, and it is
    given up then, so that no more than one layer's features are alive. A module of the user's own
    cannot be halted between layers: of that, copies of all layers are held; `visit_features` holds
    none.

    Args:
        model: a model.
        images: uint8, (N, C, H, W).

    Yields:
        (layer name, features (N, C, ...), float32 unless the network is of float64), input to
        output, without an autograd graph.
    """
    if isinstance(model.backbone, ModuleReader):
        yield from _copied_features(model, model.backbone, images)
        return
    outputs = model.backbone.forward_layers(model.preprocess(images))
    while True:
        # Never yield inside the `with`: it would leak into the caller.
        with model.computing():
            output = next(outputs, None)
        if output is None:
            return
        name, features = output
        del output
        yield name, _widened(features)
        del features


def _copied_features(
    model: Model, reader: ModuleReader, images: Tensor
) -> Iterator[tuple[str, Tensor]]:
    """Run the whole network first, and yield copies of what its layers gave."""
    copies: list[tuple[str, Tensor]] = []
    with model.computing():
        reader.visit(
            model.preprocess(images),
            lambda name, features: copies.append((name, _widened(features.clone()))),
        )
    copies.reverse()
    while copies:
        yield copies.pop()


def _widened(features: Tensor) -> Tensor:
    """Give half precision as float32, which every measure takes."""
    return features.float() if features.dtype in (torch.bfloat16, torch.float16) else features


def visit_features(
    model: Model, images: Tensor, visit: Callable[[str, Tensor], None]
) -> Tensor | None:
    """Run one batch through a model, once, and hand over each layer's output as it is computed.

    Args:
        model: a model.
        images: uint8, (N, C, H, W).
        visit: called with a layer's name and its features, (N, D) or (N, C, ...), float32 unless
            the network is of float64, without an autograd graph; input to output. It must copy
            what it keeps, and change nothing: the next layer reads the same memory, and may work
            in it.

    Returns:
        the network's own logits, (N, K), float32; None for a module of the user's own whose output
        is not of this shape.
    """
    if isinstance(model.backbone, ModuleReader):
        with model.computing():
            return model.backbone.visit(
                model.preprocess(images), lambda name, features: visit(name, _widened(features))
            )
    for name, features in stream_features(model, images):
        visit(name, features)
    with model.computing():
        logits: Tensor = model.backbone.head(features)
    return logits.float()


def auxiliary_logits(model: Model, layer_name: str, features: Tensor) -> Tensor | None:
    """Give what a layer's auxiliary network, which trained it, makes of the layer's output.

    Args:
        model: a model opened with `auxiliaries=True`.
        layer_name: of the layer.
        features: the layer's output as streamed, (N, C, H, W).

    Returns:
        (N, K) float32, on the model's device; None where no auxiliary network reads this layer.
    """
    classifier = model.auxiliaries.get(layer_name)
    if classifier is None:
        return None
    with model.computing():
        return classifier.logits(features).float()


def classify(model: Model, features: Tensor) -> IntArray:
    """Predict classes by the model's own head.

    Args:
        model: a model of a checkpoint.
        features: the last layer's output, (N, ...).

    Returns:
        (N,) indices into the model's classes.

    Raises:
        ValueError: the model is a module of the user's own, whose head is not known.
    """
    if isinstance(model.backbone, ModuleReader):
        raise ValueError(
            f"{model.name} is a module of your own, whose head is not known; take the logits that "
            "visit_features returns"
        )
    with model.computing():
        logits = model.backbone.head(features)
    predictions: IntArray = logits.argmax(dim=1).cpu().numpy()
    return predictions


def linear_head(model: Model) -> tuple[FloatArray, FloatArray] | None:
    """Weights (K, D) and bias (K,) of a head that is one linear map of pooled features.

    Returns:
        None where the head is anything else.
    """
    head = getattr(model.backbone, "head", None)
    if not isinstance(head, PooledHead):
        return None
    return head.linear.weight.detach().cpu().numpy(), head.linear.bias.detach().cpu().numpy()
