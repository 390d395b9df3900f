"""What a key style gives back: our name for each of a file's tensors, and which style it is."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

Shapes = Mapping[str, tuple[int, ...]]
# A pattern that a whole key must match, and our key for a match; None where it has none.
Rule = tuple[re.Pattern[str], Callable[[re.Match[str]], str | None]]


@dataclass(frozen=True)
class Translation:
    """A state dict read in one key style.

    Attributes:
        variant: the style in words.
        keys: the file's key by our key of the backbone's tensor.
        auxiliary: by the name of a layer, what trains it: the file's key by our key within it.
        left_out: keys that belong to neither.
        is_imagenet_only: files of this style are of ImageNet forms, whatever their classes.
        warnings: sentences about what keys and shapes cannot say.
    """

    variant: str
    keys: dict[str, str]
    auxiliary: dict[str, dict[str, str]] = field(default_factory=dict)
    left_out: tuple[str, ...] = ()
    is_imagenet_only: bool = False
    warnings: tuple[str, ...] = ()


def pattern(text: str) -> re.Pattern[str]:
    """A pattern of ASCII digits and words."""
    return re.compile(text, re.ASCII)


def rename(names: Iterable[str], rules: Sequence[Rule]) -> tuple[dict[str, str], tuple[str, ...]]:
    """Translate names by the first rule that fits each.

    Returns:
        the name by our key, and the names that no rule fits or whose place is taken.
    """
    keys: dict[str, str] = {}
    left_out = []
    for name in names:
        ours = _apply(name, rules)
        if ours is None or ours in keys:
            left_out.append(name)
        else:
            keys[ours] = name
    return keys, tuple(left_out)


def _apply(name: str, rules: Sequence[Rule]) -> str | None:
    for regular, translate in rules:
        match = regular.fullmatch(name)
        if match is not None:
            return translate(match)
    return None


def layer_name(stage: int, block: int) -> str:
    """Our name of a block, both numbers from 1."""
    return f"stage{stage}_block{block}"
