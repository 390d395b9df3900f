"""Our own names, as in our checkpoints and as in the state dict of a whole `LocalNetwork`."""

from __future__ import annotations

from auglocal.foreign.styles.translation import Shapes, Translation, pattern

STEM = "layers.stem."
BACKBONE = pattern(r"(?:backbone\.)?((?:layers|head)\..+)")
FIRST_LAYER = pattern(r"(?:backbone\.)?layers\.(?:stem|stage1_conv1)\..+")
AUXILIARY = pattern(r"(?:auxiliary|auxiliaries)\.([a-z0-9_]+)\.(.+)")


def translate(shapes: Shapes) -> Translation | None:
    """Read a state dict with our keys; None where it has others."""
    if not any(FIRST_LAYER.fullmatch(name) for name in shapes):
        return None
    keys: dict[str, str] = {}
    auxiliary: dict[str, dict[str, str]] = {}
    left_out = []
    for name in shapes:
        if match := AUXILIARY.fullmatch(name):
            auxiliary.setdefault(match[1], {})[match[2]] = name
        elif match := BACKBONE.fullmatch(name):
            keys[match[1]] = name
        else:
            left_out.append(name)
    return Translation("ours", keys, auxiliary, tuple(left_out))
