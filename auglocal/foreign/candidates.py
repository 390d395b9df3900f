"""Which architectures would have tensors of these names and shapes, the likeliest first.

In: shapes by our keys. Out: candidates, each with the width, classes and images that the shapes
say, and why it comes where it comes. A candidate is a guess: whether it fits in every tensor is for
the caller to see. Where nothing of a family fits exactly, its nearest member comes out.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

from torchvision.models.efficientnet import MBConvConfig
from torchvision.models.resnet import BasicBlock

from auglocal.backbones import efficientnet, mobilenetv2, regnet, resnet, resnet_cifar, vgg
from auglocal.backbones.registry import (
    BACKBONES,
    FIRST_CODE,
    HIDDEN,
    IMAGENET,
    OPTION_A,
    OPTION_A_END,
    POOLED,
    PROJECTION,
    UNPOOLED,
    V1,
)
from auglocal.foreign.styles.translation import Shapes, pattern

SMALL, LARGE = 32, 224
# Classes of the usual sets of small images (CIFAR-10, SVHN, STL-10 and CIFAR-100).
SMALL_IMAGE_CLASSES = (10, 100)
# Multipliers that people use, tried before those that a single layer's channels give.
USUAL_WIDTHS = (1.0, 0.25, 0.35, 0.5, 0.75, 1.1, 1.25, 1.3, 1.4, 1.5, 2.0, 3.0, 4.0)
LAYER = pattern(r"layers\.stage([1-9][0-9]?)_(?:block|conv)([1-9][0-9]{0,3})\..+")
SHOWS_OPTION_A_END = "the same shapes, if the new channels of zeros stand after the others"
SHOWS_POOLED = "the same shapes, if a max pool ends the stem"
SHOWS_UNPOOLED = "the same shapes, if no max pool ends the stem"
SHOWS_V1 = (
    "the same shapes, if bottlenecks halve in their first convolution (v1), not in the second"
)
SHOWS_FIRST_CODE = (
    "the same shapes, if it pads and normalises as the authors' TensorFlow code (timm's tf_...)"
)
SHOWS_SMALL = "the same shapes, if the first layers keep small images whole (the CIFAR form)"
SHOWS_LARGE = "the same shapes, if the first layers halve images as published for ImageNet"


@dataclass(frozen=True)
class Candidate:
    """An architecture that the shapes may be of.

    Attributes:
        architecture: a name that `find_builder` knows, or that of a form that nobody builds.
        family: in words.
        why: what would make it this one.
        width, num_classes, input_size: as `build_backbone` takes them.
    """

    architecture: str
    family: str
    why: str
    width: float
    num_classes: int
    input_size: tuple[int, int, int]


def find_candidates(shapes: Shapes, *, is_imagenet_only: bool = False) -> list[Candidate]:
    """Say which architectures these shapes may be of.

    Args:
        shapes: by our keys, at least one of them a key of a stem or of a first layer.
        is_imagenet_only: the file's key style is of ImageNet forms.

    Returns:
        at least one candidate, the likeliest first.
    """
    stages = count_blocks(shapes)
    if "layers.stem.conv.weight" in shapes:
        return _cifar_resnets(shapes, stages)
    if "layers.stem.conv1.weight" in shapes:
        return _resnets(shapes, stages)
    if "layers.stem.0.weight" not in shapes:
        return _vggs(shapes, stages)
    kinds = {key.split(".")[2] for key in shapes if LAYER.fullmatch(key)}
    if "f" in kinds:
        return _regnets(shapes, is_imagenet_only=is_imagenet_only)
    if "block" in kinds:
        return _efficientnets(shapes, is_imagenet_only=is_imagenet_only)
    return _mobilenets(shapes, is_imagenet_only=is_imagenet_only)


def count_blocks(shapes: Shapes) -> list[int]:
    """Number of layers of each stage, by the highest index that is there."""
    counts: dict[int, int] = {}
    for key in shapes:
        if match := LAYER.fullmatch(key):
            stage = int(match[1])
            counts[stage] = max(counts.get(stage, 0), int(match[2]))
    return [counts.get(stage, 0) for stage in range(1, max(counts, default=0) + 1)]


def _size(shapes: Shapes, key: str, axis: int = 0) -> int:
    """Length of an axis of a tensor; 1 where there is no such tensor, axis or length."""
    shape = shapes.get(key, ())
    return shape[axis] if axis < len(shape) and shape[axis] > 0 else 1


def _candidate(
    shapes: Shapes, first: str, architecture: str, family: str, width: float, size: int
) -> Candidate:
    """A candidate whose images are as deep as the first convolution, `first`, takes them."""
    return Candidate(
        architecture,
        family,
        "",
        width,
        _size(shapes, "head.linear.weight"),
        (_size(shapes, first, 1), size, size),
    )


# ------------------------------------------------------------------------- families


def _cifar_resnets(shapes: Shapes, stages: Sequence[int]) -> list[Candidate]:
    """CIFAR ResNets of depth 6n + 2 for n blocks a stage."""
    first = "layers.stem.conv.weight"
    depth = 6 * max(1, round(sum(stages) / resnet_cifar.NUM_STAGES)) + 2
    width = _size(shapes, first) / resnet_cifar.FIRST_CHANNELS
    name, is_projection = f"resnet{depth}", any(".shortcut." in key for key in shapes)
    if is_projection and depth in resnet.STAGES:
        name += PROJECTION
    if not is_projection:
        name += OPTION_A
    plain = _candidate(shapes, first, name, "CIFAR ResNet", width, SMALL)
    if is_projection:
        return [replace(plain, why="three stages, and shortcuts with weights")]
    end = replace(plain, architecture=f"resnet{depth}{OPTION_A_END}", why=SHOWS_OPTION_A_END)
    return [replace(plain, why="three stages, and shortcuts without weights"), end]


def _resnets(shapes: Shapes, stages: Sequence[int]) -> list[Candidate]:
    """ResNet-18 to 152 in the form that the stem's size tells."""
    first = "layers.stem.conv1.weight"
    is_bottleneck = any(".conv3." in key for key in shapes)

    def distance(depth: int) -> int:
        block, counts = resnet.STAGES[depth]
        pairs = itertools.zip_longest(counts, stages, fillvalue=0)
        other = 1000 if (block is BasicBlock) is is_bottleneck else 0
        return other + sum(abs(ours - theirs) for ours, theirs in pairs)

    depth = min(resnet.STAGES, key=distance)
    is_imagenet = _size(shapes, first, 2) == 7
    name = f"resnet{depth}{IMAGENET if is_imagenet else ''}"
    width = _size(shapes, first) / resnet.FIRST_CHANNELS
    size = LARGE if is_imagenet else SMALL
    plain = _candidate(shapes, first, name, "ResNet", width, size)
    kernel = "7x7" if is_imagenet else "3x3"
    candidates = [replace(plain, why=f"four stages, and a stem of {kernel}")]
    ending, why = (UNPOOLED, SHOWS_UNPOOLED) if is_imagenet else (POOLED, SHOWS_POOLED)
    candidates.append(replace(plain, architecture=name + ending, why=why))
    if is_bottleneck:
        candidates.append(replace(plain, architecture=name + V1, why=SHOWS_V1))
    return candidates


def _vggs(shapes: Shapes, stages: Sequence[int]) -> list[Candidate]:
    """VGG-11 to 19 with the head that is there."""
    first = "layers.stage1_conv1.conv.weight"

    def distance(depth: int) -> int:
        counts = [len(widths) for widths in vgg.stage_widths(depth)]
        pairs = itertools.zip_longest(counts, stages, fillvalue=0)
        return sum(abs(ours - theirs) for ours, theirs in pairs)

    depth = min(vgg.COLUMN_BY_DEPTH, key=distance)
    hidden = shapes.get("head.hidden.0.weight")
    ending = ""
    if hidden is not None:
        ending = HIDDEN if len(hidden) == 2 and hidden[0] == hidden[1] else IMAGENET
    width = _size(shapes, first) / vgg.FIRST_CHANNELS
    size = LARGE if ending == IMAGENET else SMALL
    plain = _candidate(shapes, first, f"vgg{depth}{ending}", "VGG", width, size)
    return [replace(plain, why="five stages of 3x3 convolutions, and this head")]


def _both_forms(
    shapes: Shapes,
    name: str,
    family: str,
    width: float,
    *,
    is_imagenet_only: bool,
) -> list[Candidate]:
    """The CIFAR form and the ImageNet form of one architecture, which have the same shapes."""
    first = "layers.stem.0.weight"
    small = _candidate(shapes, first, name, family, width, SMALL)
    large = _candidate(shapes, first, name + IMAGENET, family, width, LARGE)
    classes = f"{small.num_classes} classes"
    if is_imagenet_only:
        return [replace(large, why="the keys are timm's"), replace(small, why=SHOWS_SMALL)]
    if small.num_classes in SMALL_IMAGE_CLASSES:
        why = f"{classes}, as the usual sets of small images have"
        return [replace(small, why=why), replace(large, why=SHOWS_LARGE)]
    why = f"{classes}, unlike the usual sets of small images"
    return [replace(large, why=why), replace(small, why=SHOWS_SMALL)]


def _mobilenets(shapes: Shapes, *, is_imagenet_only: bool) -> list[Candidate]:
    published = [mobilenetv2.STEM_CHANNELS, *(channels for _, channels, _, _ in mobilenetv2.STAGES)]
    seen = _channels(shapes, ["conv.1", *["conv.2"] * (len(mobilenetv2.STAGES) - 1)])
    width = _fit_width(seen, published, partial(_predict, published))
    return _both_forms(
        shapes, "mobilenetv2", "MobileNetV2", width, is_imagenet_only=is_imagenet_only
    )


def _efficientnets(shapes: Shapes, *, is_imagenet_only: bool) -> list[Candidate]:
    published = [efficientnet.STEM_CHANNELS, *(stage[3] for stage in efficientnet.STAGES)]
    seen = _channels(shapes, ["block.2.0", *["block.3.0"] * (len(efficientnet.STAGES) - 1)])
    width = _fit_width(seen, published, partial(_predict, published))
    forms = _both_forms(
        shapes, "efficientnet-b0", "EfficientNet", width, is_imagenet_only=is_imagenet_only
    )
    large = max(forms, key=lambda form: form.input_size[1])
    tensorflow = replace(large, architecture=large.architecture + FIRST_CODE, why=SHOWS_FIRST_CODE)
    return [forms[0], tensorflow, forms[1]] if is_imagenet_only else [*forms, tensorflow]


def _regnets(shapes: Shapes, *, is_imagenet_only: bool) -> list[Candidate]:
    stages = regnet.stages().widths
    seen = _channels(shapes, ["f.c.0"] * len(stages))
    predict = partial(_predict_regnet, stages)
    width = _fit_width(seen, [regnet.STEM_CHANNELS, *stages], predict)
    return _both_forms(shapes, "regnetx-400mf", "RegNetX", width, is_imagenet_only=is_imagenet_only)


# ------------------------------------------------------------------------- widths


def _channels(shapes: Shapes, outputs: Sequence[str]) -> list[int]:
    """Channels of the stem and of each stage, by the name of the stage's last convolution."""
    return [
        _size(shapes, "layers.stem.0.weight"),
        *(
            _size(shapes, f"layers.stage{stage}_block1.{output}.weight")
            for stage, output in enumerate(outputs, start=1)
        ),
    ]


def _predict(published: Sequence[int], width: float) -> list[int]:
    """Channels of a MobileNetV2 or an EfficientNet at a width."""
    return [MBConvConfig.adjust_channels(channels, width) for channels in published]


def _predict_regnet(stages: Sequence[int], width: float) -> list[int]:
    """Channels of a RegNet at a width."""
    stem = regnet.scale(regnet.STEM_CHANNELS, width, regnet.STEM_MULTIPLE)
    return [stem, *(regnet.scale(channels, width, regnet.GROUP_WIDTH) for channels in stages)]


def _fit_width(
    seen: Sequence[int], published: Sequence[int], predict: Callable[[float], list[int]]
) -> float:
    """The multiplier that gives these channels; where none does, that of the last stage."""
    ratios = [theirs / ours for theirs, ours in zip(seen, published)]
    for width in (*USUAL_WIDTHS, *reversed(ratios)):
        if predict(width) == list(seen):
            return width
    return ratios[-1]


def named_candidates() -> list[str]:
    """Architectures of one form each, for comparing shapes with those of unknown networks."""
    return [name for name in BACKBONES if not name.endswith(IMAGENET)]
