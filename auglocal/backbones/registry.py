"""Backbones by name: an architecture's name in, a fresh backbone out."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

from auglocal.backbones.backbone import Backbone, initialise
from auglocal.backbones.resnet_cifar import resnet_cifar
from auglocal.errors import InputError

BackboneBuilder = Callable[[int, tuple[int, int, int], float], Backbone]

# No backbone of the literature is wider; a file that claims more is not opened.
MAX_WIDTH = 64

BACKBONES: dict[str, BackboneBuilder] = {
    "resnet20": partial(resnet_cifar, 20),
    "resnet32": partial(resnet_cifar, 32),
    "resnet44": partial(resnet_cifar, 44),
    "resnet56": partial(resnet_cifar, 56),
    "resnet110": partial(resnet_cifar, 110),
}


def build_backbone(
    architecture: str,
    num_classes: int = 10,
    input_size: tuple[int, int, int] = (3, 32, 32),
    width: float = 1.0,
) -> Backbone:
    """Build a freshly initialised backbone, drawing from PyTorch's global generator.

    Args:
        architecture: a name in `BACKBONES`.
        num_classes: K.
        input_size: (C, H, W) of one image.
        width: multiplies the channels of every layer, above 0 and at most 64.

    Raises:
        InputError: there is no such architecture (the message lists what there is) or width.
    """
    if architecture not in BACKBONES:
        raise InputError(
            f"There is no architecture {architecture!r}; choose one of {', '.join(BACKBONES)}."
        )
    if not 0 < width <= MAX_WIDTH:
        raise InputError(
            f"The width must be above 0 and at most {MAX_WIDTH}, not {width:g}; give --width 1, "
            "say."
        )
    backbone = BACKBONES[architecture](num_classes, input_size, width)
    initialise(backbone)
    return backbone


def build_meta_backbone(
    architecture: str,
    num_classes: int = 10,
    input_size: tuple[int, int, int] = (3, 32, 32),
    width: float = 1.0,
) -> Backbone:
    """Build a backbone without weights (on the "meta" device), for counting and planning."""
    with torch.device("meta"):
        return build_backbone(architecture, num_classes, input_size, width)
