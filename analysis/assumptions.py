"""What a user says about a network in, what is taken for granted where nothing is said out."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from analysis.choices import BGR, RGB, Choices
from analysis.errors import InputError
from analysis.preprocessing import GREY_PRESETS, PRESETS, Preprocessing, presets

if TYPE_CHECKING:
    from torch import Tensor

# The presets of the images for which networks of this height and width are mostly trained.
USUAL_SMALL, USUAL_LARGE = PRESETS[0], PRESETS[3]
LARGE = 128  # pixels
# What a checkpoint's header may say, so that what is written can be read again.
LARGEST_NUMBER = 1e6
LONGEST_TEXT = 256
MOST_PIXELS = 2048


def usual_preprocessing(input_size: tuple[int, int, int]) -> Preprocessing:
    """Give what is usual for images of this size (C, H, W), where a file does not say."""
    channels = input_size[0]
    if channels == 1:
        return GREY_PRESETS[0]
    if channels != len(USUAL_SMALL.mean):
        return presets(channels)[0]
    return USUAL_LARGE if input_size[1] >= LARGE else USUAL_SMALL


def normalisation(
    choices: Choices, usual: Preprocessing
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Give the mean and the deviation that the user gave, or the usual ones."""
    return choices.mean or usual.mean, choices.std or usual.std


def class_names(choices: Choices, num_classes: int) -> tuple[str, ...]:
    """Give the names of the K outputs that the user gave, or "0", "1" and so on.

    Raises:
        InputError: there are not K.
    """
    names = choices.classes or tuple(str(index) for index in range(num_classes))
    if len(names) != num_classes:
        raise InputError(
            f"The network has {num_classes} classes, not {len(names)}; give {num_classes} names, "
            "or none."
        )
    return names


def assumed(choices: Choices) -> list[str]:
    """Name what the user did not say: of "preprocessing" and "classes"."""
    said = {
        "preprocessing": choices.mean is not None and choices.std is not None,
        "classes": choices.classes is not None,
    }
    return [name for name, is_said in said.items() if not is_said]


def check_choices(choices: Choices, channels: int) -> None:
    """Refuse what a checkpoint cannot say.

    Args:
        choices: what the user says.
        channels: of the network's images.

    Raises:
        InputError: naming what is wrong, and what it may be.
    """
    for numbers, least in ((choices.mean, -LARGEST_NUMBER), (choices.std, 0.0)):
        if numbers is not None and not _are_numbers(numbers, channels, least):
            raise InputError(
                f"The mean and std of images with {channels} channels are {channels} numbers each, "
                f"std above 0, not {', '.join(f'{number:g}' for number in numbers)}; give both so."
            )
    texts = (*(choices.classes or ()), choices.dataset or "", choices.rule or "")
    if any(len(text) > LONGEST_TEXT for text in texts):
        raise InputError(
            f"The names of classes, data and rule have at most {LONGEST_TEXT} characters; give "
            "shorter ones."
        )
    if choices.image_size is not None and not all(0 < n <= MOST_PIXELS for n in choices.image_size):
        raise InputError(
            f"Images are 1 to {MOST_PIXELS} pixels high and wide, not "
            f"{' x '.join(map(str, choices.image_size))}; give another --image-size."
        )
    if choices.channel_order not in (RGB, BGR) or (choices.channel_order == BGR and channels != 3):
        raise InputError(
            f"The order of {channels} channels cannot be {choices.channel_order}; it is {RGB}, or "
            f"{BGR} of a network that reads 3 channels."
        )


def _are_numbers(numbers: tuple[float, ...], count: int, least: float) -> bool:
    """Whether there are so many numbers, all above `least`."""
    return len(numbers) == count and all(
        math.isfinite(number) and least < number <= LARGEST_NUMBER for number in numbers
    )


def red_first(tensors: Mapping[str, Tensor], key: str | None = None) -> dict[str, Tensor]:
    """Turn the weights of a network that reads blue first into one that reads red first.

    Args:
        tensors: its state dict.
        key: of the convolution (out, 3, height, width) that reads the images; None looks for it.

    Returns:
        the same tensors but for that one; the network's outputs are those of the original for
        images with red and blue exchanged.

    Raises:
        InputError: more than one convolution could be the one that reads the images, or none.
    """
    if key is None:
        first = [name for name, value in tensors.items() if value.ndim == 4 and value.shape[1] == 3]
        if len(first) != 1:
            raise InputError(
                f"{len(first)} convolutions of this network read three channels, so that which of "
                "them reads the images is unknown; exchange red and blue in your images instead."
            )
        (key,) = first
    return {name: value.flip(1) if name == key else value for name, value in tensors.items()}
