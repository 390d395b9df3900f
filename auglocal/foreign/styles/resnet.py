"""ResNets: torchvision's names and those of the many codes that come from them.

All have `conv1`, `bn1` and `layerS.B.convI`, `bnI`; they differ in the classifier (`fc` or
`linear`) and in the shortcut (`downsample`, `shortcut`, or one without weights). Three stages are
a CIFAR ResNet, four one of ResNet-18 to 152.
"""

from __future__ import annotations

import re
from functools import partial

from auglocal.foreign.styles.local_learning import translate_auxiliaries
from auglocal.foreign.styles.translation import (
    Shapes,
    Translation,
    layer_name,
    pattern,
    rename,
)

BLOCK_PART = pattern(r"(?:(conv|bn)([1-3])|(downsample|shortcut)\.([01]))\.([a-z_]+)")
STEM_PART = pattern(r"(conv|bn)1\.([a-z_]+)")
LAYER = pattern(r"layer([1-4])\.([0-9]{1,3})\.(.+)")
CLASSIFIER = pattern(r"(fc|linear|classifier)\.(weight|bias)")


def translate(shapes: Shapes) -> Translation | None:
    """Read a state dict with the names of a ResNet; None where it has others."""
    if "conv1.weight" not in shapes or "layer1.0.conv1.weight" not in shapes:
        return None
    is_small = not any(name.startswith("layer4.") for name in shapes)
    auxiliary, own = translate_auxiliaries(shapes, partial(block_key, is_small=is_small))
    keys, left_out = rename(
        own,
        [
            (STEM_PART, partial(_stem_key, is_small=is_small)),
            (LAYER, partial(_layer_key, is_small=is_small)),
            (CLASSIFIER, lambda match: f"head.linear.{match[2]}"),
        ],
    )
    known = {*own, *(name for parts in auxiliary.values() for name in parts.values())}
    left_out += tuple(name for name in shapes if name not in known)
    return Translation(_variant(own, auxiliary, is_small=is_small), keys, auxiliary, left_out)


def block_key(rest: str, *, is_small: bool) -> str | None:
    """Our name within a residual block, for theirs."""
    match = BLOCK_PART.fullmatch(rest)
    if match is None:
        return None
    kind, number, shortcut, index, leaf = match.groups()
    if shortcut:
        return f"{'shortcut' if is_small else 'downsample'}.{index}.{leaf}"
    return f"{'norm' if is_small and kind == 'bn' else kind}{number}.{leaf}"


def _stem_key(match: re.Match[str], *, is_small: bool) -> str:
    kind, leaf = match.groups()
    if is_small:
        return f"layers.stem.{'norm' if kind == 'bn' else kind}.{leaf}"
    return f"layers.stem.{kind}1.{leaf}"


def _layer_key(match: re.Match[str], *, is_small: bool) -> str | None:
    part = block_key(match[3], is_small=is_small)
    name = layer_name(int(match[1]), int(match[2]) + 1)
    return None if part is None else f"layers.{name}.{part}"


def _variant(names: Shapes, auxiliary: dict[str, dict[str, str]], *, is_small: bool) -> str:
    """Whose names these are, in words."""
    if auxiliary:
        return "AugLocal authors"
    has_linear = "linear.weight" in names
    if not is_small:
        return "kuangliu/pytorch-cifar" if has_linear else "torchvision"
    if not any(".shortcut." in name or ".downsample." in name for name in names):
        return "option A (identity padding)"
    if has_linear:
        return "option B (projection), names of akamaster/pytorch_resnet_cifar10"
    return "chenyaofo"
