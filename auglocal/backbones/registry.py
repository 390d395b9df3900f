"""Backbones by name: an architecture's name in, a fresh backbone out.

A name is the literature's in small letters, "resnet18" say, and means the form for small images
(CIFAR, SVHN, STL-10); with "-imagenet" after it, torchvision's model. ResNet-20 to 110 are made for
CIFAR and have no other form. Besides the architectures listed there are those of other people's
files: CIFAR ResNets of any depth 6n + 2, and variants that a word at the name's end tells apart.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial

import torch

from auglocal.backbones.backbone import Backbone, initialise
from auglocal.backbones.efficientnet import efficientnet_b0
from auglocal.backbones.mobilenetv2 import mobilenetv2
from auglocal.backbones.regnet import regnetx_400mf
from auglocal.backbones.resnet import resnet
from auglocal.backbones.resnet_cifar import resnet_cifar
from auglocal.backbones.vgg import vgg
from auglocal.errors import InputError

BackboneBuilder = Callable[[int, tuple[int, int, int], float], Backbone]

# No backbone of the literature is wider; a file that claims more is not opened.
MAX_WIDTH = 64

IMAGENET = "-imagenet"


def _both_forms(name: str, builder: Callable[..., Backbone]) -> dict[str, BackboneBuilder]:
    """The CIFAR form and the ImageNet form of an architecture, by name."""
    return {
        name: partial(builder, imagenet=False),
        name + IMAGENET: partial(builder, imagenet=True),
    }


BACKBONES: dict[str, BackboneBuilder] = {
    "resnet20": partial(resnet_cifar, 20),
    "resnet32": partial(resnet_cifar, 32),
    "resnet44": partial(resnet_cifar, 44),
    "resnet56": partial(resnet_cifar, 56),
    "resnet110": partial(resnet_cifar, 110),
    **_both_forms("resnet18", partial(resnet, 18)),
    **_both_forms("resnet34", partial(resnet, 34)),
    **_both_forms("resnet50", partial(resnet, 50)),
    **_both_forms("resnet101", partial(resnet, 101)),
    **_both_forms("resnet152", partial(resnet, 152)),
    **_both_forms("vgg11", partial(vgg, 11)),
    **_both_forms("vgg13", partial(vgg, 13)),
    **_both_forms("vgg16", partial(vgg, 16)),
    **_both_forms("vgg19", partial(vgg, 19)),
    **_both_forms("mobilenetv2", mobilenetv2),
    **_both_forms("efficientnet-b0", efficientnet_b0),
    **_both_forms("regnetx-400mf", regnetx_400mf),
}

# Variants of one architecture differ in the last word of the name. What they are for:
# -projection: a CIFAR ResNet whose plain name is taken (ResNet-50 and 152 mean torchvision's);
# -option-a: shortcuts without weights, zeros on both sides of the channels, as most files have it;
# -option-a-end: the same, zeros after the channels;
# -pooled: a 3x3 stem followed by a max pool; -unpooled: a 7x7 stem followed by none;
# -v1: bottlenecks that halve in their first convolution, as first published;
# -tf: an EfficientNet that pads and normalises as its authors' TensorFlow code does;
# -hidden: a VGG for small images with two hidden layers before the classifier.
PROJECTION, OPTION_A, OPTION_A_END = "-projection", "-option-a", "-option-a-end"
POOLED, UNPOOLED, V1, HIDDEN, FIRST_CODE = "-pooled", "-unpooled", "-v1", "-hidden", "-tf"
SHORTCUT_BY_ENDING = {
    "": "projection",
    PROJECTION: "projection",
    OPTION_A: "zeros on both sides",
    OPTION_A_END: "zeros after",
}
VARIANTS: dict[str, BackboneBuilder] = {
    **{
        f"resnet{depth}{POOLED}": partial(resnet, depth, imagenet=False, pooled=True)
        for depth in (18, 34, 50, 101, 152)
    },
    **{
        f"resnet{depth}{IMAGENET}{UNPOOLED}": partial(resnet, depth, imagenet=True, pooled=False)
        for depth in (18, 34, 50, 101, 152)
    },
    **{
        f"resnet{depth}{form}{V1}": partial(
            resnet, depth, imagenet=form == IMAGENET, halves_first=True
        )
        for depth in (50, 101, 152)
        for form in ("", IMAGENET)
    },
    f"efficientnet-b0{IMAGENET}{FIRST_CODE}": partial(
        efficientnet_b0, imagenet=True, is_first_code=True
    ),
    **{
        f"vgg{depth}{HIDDEN}": partial(vgg, depth, imagenet=False, hidden=True)
        for depth in (11, 13, 16, 19)
    },
}
# ResNet-1202 is the deepest in the literature; a file that claims more is not opened.
MAX_CIFAR_DEPTH = 1202
CIFAR_RESNET = re.compile(f"resnet([1-9][0-9]{{0,3}})({'|'.join(SHORTCUT_BY_ENDING)})")


def find_builder(architecture: str) -> BackboneBuilder | None:
    """What builds an architecture: one of `BACKBONES`, a variant, or a CIFAR ResNet of any depth.

    Returns:
        None where there is no such architecture.
    """
    listed = BACKBONES.get(architecture) or VARIANTS.get(architecture)
    match = CIFAR_RESNET.fullmatch(architecture)
    if listed is not None or match is None:
        return listed
    depth = int(match[1])
    if depth > MAX_CIFAR_DEPTH or depth < 8 or depth % 6 != 2:
        return None
    return partial(resnet_cifar, depth, shortcut=SHORTCUT_BY_ENDING[match[2]])


def build_backbone(
    architecture: str,
    num_classes: int = 10,
    input_size: tuple[int, int, int] = (3, 32, 32),
    width: float = 1.0,
) -> Backbone:
    """Build a freshly initialised backbone, drawing from PyTorch's global generator.

    Args:
        architecture: a name in `BACKBONES`, or another that `find_builder` knows.
        num_classes: K.
        input_size: (C, H, W) of one image.
        width: multiplies the channels of every layer, above 0 and at most 64.

    Raises:
        InputError: there is no such architecture (the message lists what there is) or width, or
            the architecture does not take this width or such small images.
    """
    builder = find_builder(architecture)
    if builder is None:
        raise InputError(
            f"There is no architecture {architecture!r}; choose one of {', '.join(BACKBONES)}."
        )
    if not 0 < width <= MAX_WIDTH:
        raise InputError(
            f"The width must be above 0 and at most {MAX_WIDTH}, not {width:g}; give --width 1, "
            "say."
        )
    backbone = builder(num_classes, input_size, width)
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
