"""A state dict's keys and shapes in; which backbone it is, whose names these are, and its rule out.

Nothing is computed from the tensors' values, and nothing is allocated: what an architecture would
hold is built on the "meta" device.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol

import torch

from auglocal.backbones.backbone import Backbone
from auglocal.backbones.registry import MAX_WIDTH, find_builder
from auglocal.checkpoint import MAX_CHANNELS, MAX_CLASSES
from auglocal.errors import InputError
from auglocal.foreign.candidates import (
    SMALL,
    SMALL_IMAGE_CLASSES,
    Candidate,
    find_candidates,
    named_candidates,
)
from auglocal.foreign.prefixes import other_copies, strip_prefixes
from auglocal.foreign.rule_evidence import RuleEvidence, find_rule
from auglocal.foreign.styles import inverted, ours, regnet, resnet, vgg
from auglocal.foreign.styles.translation import Shapes, Translation

TRANSLATORS: tuple[Callable[[Shapes], Translation | None], ...] = (
    ours.translate,
    resnet.translate,
    vgg.translate,
    inverted.translate,
    regnet.translate,
)
COUNTER = ".num_batches_tracked"
NUM_NAMED = 3
LONGEST_NAME = 80
ADVICE = "build the network in Python and give it to analysis.modules.from_module"


class Unrecognised(InputError):  # noqa: N818
    """The tensors are those of no network that this project builds."""


class TensorLike(Protocol):
    """What is asked of a tensor."""

    @property
    def shape(self) -> Sequence[int]:
        """Length of each axis."""
        ...

    @property
    def dtype(self) -> object:
        """Type of its values."""
        ...


@dataclass(frozen=True)
class Alternative:
    """Another architecture that the same tensors fit, and what would make it this one."""

    architecture: str
    why: str


@dataclass(frozen=True)
class Recognition:
    """What the keys and shapes of a state dict say.

    Attributes:
        architecture: a name that `build_backbone` takes.
        family: in words.
        variant: the key style, in words.
        why: what makes it this architecture rather than an alternative.
        width, num_classes: as `build_backbone` takes them.
        input_size: (C, H, W); C is that of the first convolution, H and W are the usual ones.
        keys: the file's key by our key of the backbone's tensor; counters of batches may lack.
        auxiliary_keys: the file's key by our key ("auxiliary.LAYER...") of an auxiliary network's.
        rule: as `RULES` calls it; None where the file shows none.
        rule_options: as a checkpoint has them.
        rule_evidence: what shows the rule, or that nothing does.
        local_blocks: names of the layers with auxiliary networks, input to output.
        prefixes_stripped: outermost first.
        left_out: the file's keys that are part of neither.
        alternatives: other architectures of the same tensors, likeliest first.
        warnings: sentences about what keys and shapes cannot say.
    """

    architecture: str
    family: str
    variant: str
    why: str
    width: float
    num_classes: int
    input_size: tuple[int, int, int]
    keys: dict[str, str]
    auxiliary_keys: dict[str, str]
    rule: str | None
    rule_options: dict[str, Any]
    rule_evidence: str
    local_blocks: tuple[str, ...]
    prefixes_stripped: tuple[str, ...]
    left_out: tuple[str, ...]
    alternatives: tuple[Alternative, ...]
    warnings: tuple[str, ...]


def recognise(
    tensors: Mapping[str, TensorLike],
    *,
    architecture: str | None = None,
    copy: str | None = None,
) -> Recognition:
    """Tell the backbone of a state dict from its keys and shapes.

    Args:
        tensors: by key; only their shapes are read.
        architecture: take this one among those that fit; None takes the likeliest.
        copy: take the weights under this prefix ("ema_model." say), where there are several copies.

    Returns:
        what it is. Every tensor of the backbone has its place and shape, except for counters of
        batches, which old files lack.

    Raises:
        Unrecognised: it is no network that this project builds, or not the architecture asked for;
            the message names the nearest and the first keys that do not fit.
    """
    names, stripped = strip_prefixes(tensors, copy)
    shapes = {name: tuple(tensors[key].shape) for key, name in names.items()}
    originals = {name: key for key, name in names.items()}
    translation = _translate(shapes)
    if translation is None:
        raise _unknown(shapes)
    found = {key: shapes[name] for key, name in translation.keys.items()}
    candidates = find_candidates(found, is_imagenet_only=translation.is_imagenet_only)
    chosen = _choose(candidates, architecture)
    backbone = _check(chosen, found, translation, _integers(tensors, originals, translation))
    evidence = find_rule(backbone, translation.auxiliary, shapes)
    others = tuple(key for key in tensors if key not in names)
    unused = (originals[name] for name in (*translation.left_out, *evidence.left_out))
    return Recognition(
        architecture=chosen.architecture,
        family=chosen.family,
        variant=translation.variant,
        why=chosen.why,
        width=chosen.width,
        num_classes=chosen.num_classes,
        input_size=chosen.input_size,
        keys={key: originals[name] for key, name in translation.keys.items()},
        auxiliary_keys={key: originals[name] for key, name in evidence.keys.items()},
        rule=evidence.rule,
        rule_options=evidence.rule_options,
        rule_evidence=_rule_evidence(translation, evidence),
        local_blocks=_local_blocks(backbone, translation, evidence),
        prefixes_stripped=stripped,
        left_out=(*others, *unused),
        alternatives=_alternatives(candidates, chosen),
        warnings=(
            *(_copy_warning(prefix) for prefix in other_copies(tensors, stripped)),
            *translation.warnings,
            *evidence.warnings,
            *_size_warning(chosen),
            *_stray_warning(translation.left_out),
        ),
    )


def _integers(
    tensors: Mapping[str, TensorLike], originals: Mapping[str, str], translation: Translation
) -> list[str]:
    """Names of weights that hold whole numbers."""
    return [
        name
        for key, name in translation.keys.items()
        if not key.endswith(COUNTER) and not _is_floating(tensors[originals[name]])
    ]


def _is_floating(tensor: TensorLike) -> bool:
    """Whether values are fractions; a type that is not PyTorch's is trusted to be checked."""
    return not isinstance(tensor.dtype, torch.dtype) or tensor.dtype.is_floating_point


def _local_blocks(
    backbone: Backbone, translation: Translation, evidence: RuleEvidence
) -> tuple[str, ...]:
    """Layers whose auxiliary networks were taken, input to output."""
    names = translation.auxiliary if evidence.keys else {}
    return tuple(name for name in backbone.layer_names if name in names)


def _alternatives(candidates: Sequence[Candidate], chosen: Candidate) -> tuple[Alternative, ...]:
    """All candidates but the chosen one."""
    return tuple(
        Alternative(other.architecture, other.why) for other in candidates if other is not chosen
    )


def _copy_warning(prefix: str) -> str:
    return (
        f"Another copy of the weights stands under {prefix!r} (an average of them, perhaps) and "
        "was not taken; it can be chosen."
    )


def _stray_warning(left_out: Sequence[str]) -> tuple[str, ...]:
    """A sentence where tensors without a module stand beside the network."""
    strays = [_quote(name) for name in left_out if not name.startswith(HARMLESS)]
    if not strays:
        return ()
    return (
        f"{_trouble('Left out:', strays)}; if the network computes with such tensors (the mean and "
        "std of images, say), it computes otherwise here.",
    )


def _size_warning(chosen: Candidate) -> tuple[str, ...]:
    """A sentence where the classes are not those of the images that are usual for the form."""
    size = chosen.input_size[1]
    if (size == SMALL) == (chosen.num_classes in SMALL_IMAGE_CLASSES):
        return ()
    return (
        f"The file does not say how large its images are; {size}x{size} is usual for this form.",
    )


def _rule_evidence(translation: Translation, evidence: RuleEvidence) -> str:
    """What shows the rule; networks of an unknown form are no proof of none."""
    if not translation.auxiliary and any(n.startswith(AUXILIARY) for n in translation.left_out):
        return "auxiliary networks of a form that this project does not build"
    return evidence.sentence


def _translate(shapes: Shapes) -> Translation | None:
    """The reading that gives most tensors a place; None where no key style fits."""
    readings = [reading for translate in TRANSLATORS if (reading := translate(shapes)) is not None]
    return max(readings, key=lambda reading: len(reading.keys), default=None)


def _choose(candidates: Sequence[Candidate], architecture: str | None) -> Candidate:
    """The likeliest candidate, or the one that is asked for."""
    if architecture is None:
        return candidates[0]
    for candidate in candidates:
        if candidate.architecture == architecture:
            return candidate
    known = ", ".join(candidate.architecture for candidate in candidates)
    raise Unrecognised(
        f"The tensors are not those of {architecture[:LONGEST_NAME]!r}; choose one of {known}."
    )


# ------------------------------------------------------------------------- whether it fits


def outline(candidate: Candidate) -> Backbone | None:
    """The backbone of a candidate without weights; None where there is no such backbone."""
    builder = find_builder(candidate.architecture)
    is_possible = (
        0 < candidate.width <= MAX_WIDTH
        and candidate.num_classes <= MAX_CLASSES
        and candidate.input_size[0] <= MAX_CHANNELS
    )
    if builder is None or not is_possible:
        return None
    with torch.device("meta"):
        return builder(candidate.num_classes, candidate.input_size, candidate.width)


def _check(
    candidate: Candidate, found: Shapes, translation: Translation, integers: Sequence[str]
) -> Backbone:
    """The candidate's backbone, if every tensor fits it.

    Args:
        candidate: what it may be.
        found: shapes by our keys.
        translation: how the file was read.
        integers: the file's keys of weights that hold whole numbers.

    Raises:
        Unrecognised: naming the first that do not.
    """
    backbone = outline(candidate)
    if backbone is None:
        raise Unrecognised(
            f"The tensors are nearest to {candidate.architecture} of width {candidate.width:g} "
            f"with {candidate.num_classes} classes for {candidate.input_size[0]}-channel images, "
            f"which is beyond what this project builds; {ADVICE}."
        )
    expected = {key: tuple(tensor.shape) for key, tensor in backbone.state_dict().items()}
    missing = [key for key in expected if key not in found and not key.endswith(COUNTER)]
    unexpected = [translation.keys[key] for key in found if key not in expected]
    unexpected += _network_keys(translation.left_out)
    mismatched = [
        f"{_quote(translation.keys[key])} has {list(shape)} instead of {list(expected[key])}"
        for key, shape in found.items()
        if key in expected and not _same_shape(key, shape, expected[key])
    ]
    troubles = [
        _trouble("lacks (in our names)", [_quote(key) for key in missing]),
        _trouble("holds besides", [_quote(key) for key in unexpected]),
        _trouble("differs in shape:", mismatched),
        _trouble("has whole numbers for weights in", [_quote(key) for key in integers]),
    ]
    if any(troubles):
        raise Unrecognised(
            f"The network is nearest to {candidate.architecture} (keys of "
            f"{translation.variant}) but {'; '.join(filter(None, troubles))}. To open it, {ADVICE}."
        )
    return backbone


# Beside a backbone these are no part of its forward pass.
AUXILIARY = ("aux_classifier_", "decoder_", "aux_decoder_", "auxiliary.", "auxiliaries.")
HARMLESS = (*AUXILIARY, "criterion", "loss")


def _network_keys(names: Sequence[str]) -> list[str]:
    """Keys that no style has a place for, and that may be part of the network."""
    return [name for name in names if "." in name and not name.startswith(HARMLESS)]


def _same_shape(key: str, shape: Sequence[int], expected: Sequence[int]) -> bool:
    """Whether a tensor fits, be it a Linear of the head that is written as a convolution."""
    if key.startswith("head.") and len(expected) == 2 and len(shape) == 4:
        return shape[0] == expected[0] and shape[1] * shape[2] * shape[3] == expected[1]
    return tuple(shape) == tuple(expected)


def _trouble(verb: str, items: Sequence[str]) -> str:
    """How many there are and the first few; nothing where there are none."""
    if not items:
        return ""
    more = f" and {len(items) - NUM_NAMED} more" if len(items) > NUM_NAMED else ""
    return f"{verb} {', '.join(items[:NUM_NAMED])}{more}"


def _quote(name: str) -> str:
    return repr(name[:LONGEST_NAME])


# ------------------------------------------------------------------------- unknown names


@lru_cache(maxsize=1)
def _shapes_by_architecture() -> dict[str, Counter[tuple[int, ...]]]:
    """How often each shape occurs in each architecture of width 1 and 10 classes."""
    counters = {}
    for name in named_candidates():
        backbone = outline(Candidate(name, "", "", 1.0, 10, (3, SMALL, SMALL)))
        assert backbone is not None
        counters[name] = Counter(tuple(tensor.shape) for tensor in backbone.state_dict().values())
    return counters


def _unknown(shapes: Shapes) -> Unrecognised:
    """What to say of a network whose names no style has."""
    if not shapes:
        return Unrecognised(f"There are no tensors in it; {ADVICE}.")
    seen = Counter(shapes.values())
    common = {
        name: sum((seen & counter).values()) for name, counter in _shapes_by_architecture().items()
    }
    totals = {name: counter.total() for name, counter in _shapes_by_architecture().items()}
    nearest = max(common, key=lambda name: common[name] / max(totals[name], len(shapes)))
    first = ", ".join(_quote(name) for name in list(shapes)[:NUM_NAMED])
    return Unrecognised(
        f"No backbone of this project has such names: {first} have no place in any. By the shapes "
        f"it is nearest to {nearest} ({common[nearest]} of {len(shapes)} tensors have a shape "
        f"found there); to open it, {ADVICE}."
    )
