"""RegNetX-400MF: torchvision's names and timm's."""

from __future__ import annotations

import re

from auglocal.foreign.styles.translation import (
    Shapes,
    Translation,
    layer_name,
    pattern,
    rename,
)

BLOCK = pattern(r"trunk_output\.block([1-4])\.block\1-([0-9]{1,2})\.(.+)")
STEM = pattern(r"stem\.([01]\..+)")
CLASSIFIER = pattern(r"(?:fc|head\.fc)\.(weight|bias)")
TIMM_BLOCK = pattern(r"s([1-4])\.b([0-9]{1,2})\.(conv[123]|downsample)\.(conv|bn)\.([a-z_]+)")
TIMM_STEM = pattern(r"stem\.(conv|bn)\.([a-z_]+)")
TIMM_PARTS = {"conv1": "f.a", "conv2": "f.b", "conv3": "f.c", "downsample": "proj"}


def translate(shapes: Shapes) -> Translation | None:
    """Read a state dict with the names of a RegNet; None where it has others."""
    is_timm = "s1.b1.conv1.conv.weight" in shapes
    if not is_timm and "trunk_output.block1.block1-0.f.a.0.weight" not in shapes:
        return None
    rules = [
        (BLOCK, _block_key),
        (STEM, lambda match: f"layers.stem.{match[1]}"),
        (TIMM_BLOCK, _timm_block_key),
        (TIMM_STEM, lambda match: f"layers.stem.{int(match[1] == 'bn')}.{match[2]}"),
        (CLASSIFIER, lambda match: f"head.linear.{match[1]}"),
    ]
    keys, left_out = rename(shapes, rules)
    variant = "timm" if is_timm else "torchvision"
    return Translation(variant, keys, left_out=left_out, is_imagenet_only=is_timm)


def _block_key(match: re.Match[str]) -> str:
    return f"layers.{layer_name(int(match[1]), int(match[2]) + 1)}.{match[3]}"


def _timm_block_key(match: re.Match[str]) -> str:
    stage, block, part, kind, leaf = match.groups()
    name = layer_name(int(stage), int(block))
    return f"layers.{name}.{TIMM_PARTS[part]}.{int(kind == 'bn')}.{leaf}"
