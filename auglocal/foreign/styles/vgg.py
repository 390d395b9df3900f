"""VGGs with BatchNorm: `features.N`, counted with activations and pools, and a head of many names.

A pool between two convolutions shows as a gap in the numbers, so that the stages can be told.
torchvision, kuangliu, chenyaofo and timm have the same features; the AugLocal authors count whole
layers. Heads: one Linear, or two hidden ones before it, which timm writes as convolutions.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence

from auglocal.foreign.styles.translation import Shapes, Translation, pattern, rename

FEATURE = pattern(r"features\.([0-9]{1,2})\.([a-z_]+)")
WHOLE_LAYER = pattern(r"features\.([0-9]{1,2})\.(conv|bn)1\.([a-z_]+)")
SEQUENCE = pattern(r"(?:classifier|fc)\.([0-9])\.(weight|bias)")
SINGLE = pattern(r"(?:classifier|fc|linear|head\.fc)\.(weight|bias)")
TIMM_HIDDEN = pattern(r"pre_logits\.fc([12])\.(weight|bias)")
AUXILIARY = pattern(r"aux_classifier_[0-9]{1,2}\.head\..+")
HIDDEN = ("head.hidden.0", "head.hidden.3", "head.linear")
TIMM_WARNING = (
    "timm pools images of other sizes than 224x224 after the hidden layers, here they are pooled "
    "before them: at other sizes the logits differ."
)
AUXILIARY_WARNING = (
    "The auxiliary networks are left out: theirs pool before a convolution, ours after it."
)


def translate(shapes: Shapes) -> Translation | None:
    """Read a state dict with the names of a VGG; None where it has others."""
    is_authors = "features.0.conv1.weight" in shapes
    if not is_authors and len(shapes.get("features.0.weight", ())) != 4:
        return None
    # A layer is one entry, or a convolution, perhaps a norm, and an activation.
    size = 1 if is_authors else 3 if "features.1.running_mean" in shapes else 2
    suffix = ".conv1.weight" if is_authors else ".weight"
    convolutions = [
        position
        for position in range(100)
        if len(shapes.get(f"features.{position}{suffix}", ())) == 4
    ]
    names = _layer_names(convolutions, size)
    linears = [
        position
        for position in range(10)
        if any(
            len(shapes.get(f"{head}.{position}.weight", ())) == 2 for head in ("classifier", "fc")
        )
    ]
    heads = dict(zip(linears, HIDDEN if len(linears) == len(HIDDEN) else HIDDEN[-1:]))

    def feature_key(match: re.Match[str]) -> str | None:
        position, leaf = int(match[1]), match[2]
        if position in names:
            return f"layers.{names[position]}.conv.{leaf}"
        name = names.get(position - 1)
        return None if name is None else f"layers.{name}.norm.{leaf}"

    def whole_layer_key(match: re.Match[str]) -> str | None:
        name = names.get(int(match[1]))
        part = "conv" if match[2] == "conv" else "norm"
        return None if name is None else f"layers.{name}.{part}.{match[3]}"

    def sequence_key(match: re.Match[str]) -> str | None:
        head = heads.get(int(match[1]))
        return None if head is None else f"{head}.{match[2]}"

    keys, left_out = rename(
        shapes,
        [
            (WHOLE_LAYER, whole_layer_key) if is_authors else (FEATURE, feature_key),
            (SEQUENCE, sequence_key),
            (SINGLE, lambda match: f"head.linear.{match[1]}"),
            (TIMM_HIDDEN, lambda match: f"{HIDDEN[int(match[1]) - 1]}.{match[2]}"),
        ],
    )
    is_timm = "pre_logits.fc1.weight" in shapes
    warnings = [TIMM_WARNING] if is_timm else []
    if any(AUXILIARY.fullmatch(name) for name in left_out):
        warnings.append(AUXILIARY_WARNING)
    variant = _variant(shapes, is_authors=is_authors, is_timm=is_timm)
    return Translation(variant, keys, left_out=left_out, warnings=tuple(warnings))


def _layer_names(positions: Sequence[int], size: int) -> dict[int, str]:
    """Our names of convolutions by their positions; `size` positions to a layer, one to a pool."""
    names: dict[int, str] = {}
    stage, number = 1, 1
    for previous, position in itertools.pairwise([None, *positions]):
        assert position is not None  # only the first of all is None
        if previous is not None:
            is_same = position - previous == size
            stage, number = (stage, number + 1) if is_same else (stage + 1, 1)
        names[position] = f"stage{stage}_conv{number}"
    return names


def _variant(shapes: Shapes, *, is_authors: bool, is_timm: bool) -> str:
    """Whose names these are, in words."""
    if is_authors:
        return "AugLocal authors"
    if is_timm:
        return "timm"
    if "classifier.weight" in shapes or "linear.weight" in shapes:
        return "kuangliu/pytorch-cifar"
    first = shapes.get("classifier.0.weight", shapes.get("classifier.1.weight", (0, 0)))
    return "chenyaofo" if len(first) == 2 and first[0] == first[1] else "torchvision"
