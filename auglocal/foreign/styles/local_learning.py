"""The auxiliary networks of the AugLocal and InfoPro authors' files, in our names.

Theirs are `aux_classifier_S_B.head.I...` (block B, from 0, of stage S; 0_0 is the stem), lists of
modules whose positions count pools and activations too, and `decoder_S_B.decoder.I...` beside them
for InfoPro and PredSim.
"""

from __future__ import annotations

from collections.abc import Callable

from auglocal.foreign.styles.translation import Shapes, layer_name, pattern

HEAD = pattern(r"aux_classifier_([0-4])_([0-9]{1,3})\.head\.([0-9]{1,2})\.(.+)")
DECODER = pattern(r"(?:aux_)?decoder_([0-4])_([0-9]{1,3})\.decoder\.([0-9])\.(.+)")
# What we call the parts of each form of auxiliary network, by the kinds of its parts.
FORMS: dict[tuple[str, ...], tuple[str, ...]] = {
    (*("convolution", "norm") * 3, *("linear", "norm") * 2, "linear"): (
        *(f"convolutions.{index}" for index in (0, 1, 3, 4, 6, 7)),
        *(f"hidden.{index}" for index in (0, 1, 3, 4)),
        "linear",
    ),
    ("convolution", "norm", "linear", "linear"): ("layers.0", "layers.1", "hidden", "linear"),
    ("linear",): ("linear",),
}
Parts = dict[int, dict[str, str]]


def translate_auxiliaries(
    shapes: Shapes, block_key: Callable[[str], str | None]
) -> tuple[dict[str, dict[str, str]], dict[str, tuple[int, ...]]]:
    """Read the auxiliary networks of a state dict.

    Args:
        shapes: of all its tensors.
        block_key: our name within a copied block, for theirs.

    Returns:
        by our name of a layer, the file's key by our key within the network that trains it; and
        the shapes of all that is not part of any auxiliary network. Networks of a form that we do
        not know are in neither.
    """
    heads: dict[str, Parts] = {}
    decoders: dict[str, Parts] = {}
    others = {}
    for name, shape in shapes.items():
        for regular, found in ((HEAD, heads), (DECODER, decoders)):
            if match := regular.fullmatch(name):
                layer = _layer(int(match[1]), int(match[2]))
                found.setdefault(layer, {}).setdefault(int(match[3]), {})[match[4]] = name
                break
        else:
            others[name] = shape
    auxiliary = {}
    for layer, parts in heads.items():
        keys = _classifier_keys(parts, shapes, block_key)
        if keys is not None and layer in decoders:
            keys = {f"classifier.{key}": name for key, name in keys.items()}
            keys |= _decoder_keys(decoders[layer])
        if keys is not None:
            auxiliary[layer] = keys
    return auxiliary, others


def _layer(stage: int, block: int) -> str:
    return layer_name(stage, block + 1) if stage else "stem"


def _classifier_keys(
    parts: Parts, shapes: Shapes, block_key: Callable[[str], str | None]
) -> dict[str, str] | None:
    """The file's key by our key; None for a form that we do not know."""
    positions = sorted(parts)
    kinds = tuple(_kind(parts[position], shapes) for position in positions)
    num_copies = kinds.count("block")
    if num_copies:
        tail = kinds[num_copies:]
        if tail not in (("linear",), ("norm", "linear")):
            return None
        ours: tuple[str, ...] = (*(f"layers.{i}" for i in range(num_copies)), *tail)
    elif kinds in FORMS:
        ours = FORMS[kinds]
    else:
        return None
    keys = {}
    for position, kind, name in zip(positions, kinds, ours):
        for rest, key in parts[position].items():
            part = block_key(rest) if kind == "block" else rest
            if part is None:
                return None
            keys[f"{name}.{part}"] = key
    return keys


def _kind(part: dict[str, str], shapes: Shapes) -> str:
    """What a part is, by its names and the shape of its weights."""
    if "conv1.weight" in part:
        return "block"
    dimensions = len(shapes[part["weight"]]) if "weight" in part else 0
    return {1: "norm", 2: "linear", 4: "convolution"}.get(dimensions, "unknown")


def _decoder_keys(parts: Parts) -> dict[str, str]:
    """InfoPro's decoder is two convolutions and a norm, PredSim's one convolution."""
    if set(parts) == {0}:
        return {f"extra.conv.{rest}": key for rest, key in parts[0].items()}
    return {
        f"extra.decoder.{position}.{rest}": key
        for position, part in parts.items()
        for rest, key in part.items()
    }
