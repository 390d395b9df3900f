"""MobileNetV2 and EfficientNet-B0: torchvision's names and timm's.

Both number the blocks of a stage, except that torchvision counts those of a MobileNetV2 through.
"""

from __future__ import annotations

import re
from functools import partial

from auglocal.backbones.mobilenetv2 import STAGES
from auglocal.foreign.styles.translation import (
    Rule,
    Shapes,
    Translation,
    layer_name,
    pattern,
    rename,
)

CLASSIFIER = pattern(r"classifier(?:\.[01])?\.(weight|bias)")
COUNTED_BLOCK = pattern(r"features\.([1-9][0-9]?)\.(conv\..+)")
STAGED_BLOCK = pattern(r"features\.([1-7])\.([0-9]{1,2})\.(block\..+)")
PAIR = pattern(r"features\.([0-9]{1,2})\.([01]\..+)")
TIMM_BLOCK = pattern(r"blocks\.([0-6])\.([0-9]{1,2})\.([a-z0-9_.]+)\.([a-z_]+)")
TIMM_STEM = pattern(r"(conv_stem|bn1)\.([a-z_]+)")
TIMM_HEAD = pattern(r"(conv_head|bn2)\.([a-z_]+)")
# timm's parts of a block in the order in which they run, and ours; a block that does not expand
# lacks the first two, so that what follows is counted from one less.
MOBILE_PARTS = {
    "conv_pw": "conv.0.0",
    "bn1": "conv.0.1",
    "conv_dw": "conv.1.0",
    "bn2": "conv.1.1",
    "conv_pwl": "conv.2",
    "bn3": "conv.3",
}
MOBILE_PARTS_FIRST = {
    "conv_dw": "conv.0.0",
    "bn1": "conv.0.1",
    "conv_pw": "conv.1",
    "bn2": "conv.2",
}
EFFICIENT_PARTS = {
    "conv_pw": "block.0.0",
    "bn1": "block.0.1",
    "conv_dw": "block.1.0",
    "bn2": "block.1.1",
    "se.conv_reduce": "block.2.fc1",
    "se.conv_expand": "block.2.fc2",
    "conv_pwl": "block.3.0",
    "bn3": "block.3.1",
}
EFFICIENT_PARTS_FIRST = {
    "conv_dw": "block.0.0",
    "bn1": "block.0.1",
    "se.conv_reduce": "block.1.fc1",
    "se.conv_expand": "block.1.fc2",
    "conv_pw": "block.2.0",
    "bn2": "block.2.1",
}


def translate(shapes: Shapes) -> Translation | None:
    """Read a state dict with the names of a MobileNetV2 or an EfficientNet; else None."""
    if "conv_stem.weight" in shapes and "blocks.0.0.conv_dw.weight" in shapes:
        return _translate_timm(shapes)
    if "features.0.0.weight" not in shapes:
        return None
    is_mobile = any(COUNTED_BLOCK.fullmatch(name) for name in shapes)
    blocks: Rule = (COUNTED_BLOCK, _counted_key) if is_mobile else (STAGED_BLOCK, _staged_key)
    last = sum(num_blocks for _, _, num_blocks, _ in STAGES) + 1 if is_mobile else 8
    rules: list[Rule] = [
        blocks,
        (PAIR, partial(_pair_key, last=last)),
        (CLASSIFIER, lambda match: f"head.linear.{match[1]}"),
    ]
    keys, left_out = rename(shapes, rules)
    return Translation("torchvision", keys, left_out=left_out)


def _pair_key(match: re.Match[str], *, last: int) -> str | None:
    """The first and the last convolution, each with its BatchNorm."""
    if int(match[1]) not in (0, last):
        return None
    return f"{'head.conv' if int(match[1]) else 'layers.stem'}.{match[2]}"


def _counted_key(match: re.Match[str]) -> str | None:
    index = int(match[1]) - 1
    for stage, (_, _, num_blocks, _) in enumerate(STAGES, start=1):
        if index < num_blocks:
            return f"layers.{layer_name(stage, index + 1)}.{match[2]}"
        index -= num_blocks
    return None


def _staged_key(match: re.Match[str]) -> str:
    return f"layers.{layer_name(int(match[1]), int(match[2]) + 1)}.{match[3]}"


def _translate_timm(shapes: Shapes) -> Translation:
    """Read timm's names."""
    is_efficient = "blocks.0.0.se.conv_reduce.weight" in shapes
    expanding = {name.rsplit(".", 2)[0] for name in shapes if name.endswith(".conv_pwl.weight")}

    def block_key(match: re.Match[str]) -> str | None:
        stage, block, part, leaf = match.groups()
        expands = f"blocks.{stage}.{block}" in expanding
        if is_efficient:
            parts = EFFICIENT_PARTS if expands else EFFICIENT_PARTS_FIRST
        else:
            parts = MOBILE_PARTS if expands else MOBILE_PARTS_FIRST
        name = layer_name(int(stage) + 1, int(block) + 1)
        return f"layers.{name}.{parts[part]}.{leaf}" if part in parts else None

    rules = [
        (TIMM_BLOCK, block_key),
        (TIMM_STEM, lambda match: f"layers.stem.{int(match[1] == 'bn1')}.{match[2]}"),
        (TIMM_HEAD, lambda match: f"head.conv.{int(match[1] == 'bn2')}.{match[2]}"),
        (CLASSIFIER, lambda match: f"head.linear.{match[1]}"),
    ]
    keys, left_out = rename(shapes, rules)
    return Translation(
        "timm",
        keys,
        left_out=left_out,
        is_imagenet_only=True,
    )
