"""Which learning rule built the auxiliary networks of a state dict, told from their shapes.

In: a backbone without weights and, by layer, the names within its auxiliary network. Out: the rule
and options whose networks have exactly these tensors, and in a sentence what shows it.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from auglocal.auxiliary import plan_auxiliary, pyramidal_depths
from auglocal.backbones.backbone import Backbone
from auglocal.blocks import cut_into_blocks
from auglocal.checkpoint import AUXILIARY_PREFIX
from auglocal.errors import InputError
from auglocal.foreign.styles.translation import Shapes, pattern
from auglocal.rules.auglocal import AugLocal
from auglocal.rules.dgl import DGL
from auglocal.rules.infopro import InfoPro
from auglocal.rules.linear import Linear
from auglocal.rules.predsim import PredSim
from auglocal.rules.registry import Rule

NO_AUXILIARY = "no auxiliary networks, which does not mean BP: the rule is yours to say"
COPY = pattern(r"(?:classifier\.)?layers\.([0-9]{1,3})\.(?:[a-z0-9_]+\.)+[a-z_]+")
# The paper's coefficient, none, the steepest, then the others.
PYRAMIDS = (0.5, 0.0, 1.0, *(step / 20 for step in range(1, 20) if step != 10))
# Rules whose networks follow from the layer alone, by name.
PLAIN_RULES: dict[str, Callable[..., Rule]] = {
    "dgl": DGL,
    "predsim": PredSim,
    "infopro": InfoPro,
    "linear": Linear,
}
HEAD_NORM = pattern(r"(?:classifier\.)?norm\.running_mean")
EXTRA_NAMES = {"extra.decoder.": "infopro", "extra.conv.": "predsim"}
# What tells the rule of networks that are no copies of layers.
MARKS = {"convolutions.": "dgl", "hidden.": "infopro"}
WORDS = {"infopro": "InfoPro", "predsim": "PredSim", "dgl": "DGL", "linear": "linear classifiers"}


@dataclass(frozen=True)
class RuleEvidence:
    """A rule, as far as a file shows it.

    Attributes:
        rule, rule_options: as a checkpoint's metadata has them; None and {} where none is shown.
        sentence: what shows it.
        keys: the file's key by our key of each auxiliary tensor.
        left_out: the file's keys of auxiliary networks that no rule builds.
        warnings: sentences.
    """

    rule: str | None
    rule_options: dict[str, Any]
    sentence: str
    keys: dict[str, str]
    left_out: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


def find_rule(
    backbone: Backbone, auxiliary: Mapping[str, Mapping[str, str]], shapes: Shapes
) -> RuleEvidence:
    """Find the rule that builds these auxiliary networks on this backbone.

    Args:
        backbone: on the "meta" device.
        auxiliary: by layer, the file's key by our key within the auxiliary network.
        shapes: of the file's tensors, by the file's keys.
    """
    if not auxiliary:
        return RuleEvidence(None, {}, NO_AUXILIARY, {})
    keys = {
        f"{AUXILIARY_PREFIX}{layer}.{ours}": theirs
        for layer, part in auxiliary.items()
        for ours, theirs in part.items()
    }
    found = {ours: shapes[theirs] for ours, theirs in keys.items()}
    what = _describe(auxiliary)
    for name, rule in _rules(backbone, auxiliary):
        expected = _expected_shapes(backbone, rule)
        missing = expected.keys() - found.keys()
        if all(key.endswith("num_batches_tracked") for key in missing) and found == {
            key: shape for key, shape in expected.items() if key not in missing
        }:
            return RuleEvidence(name, asdict(rule), what, keys)
    warning = (
        "The auxiliary networks are left out: no rule of this project builds them on this backbone "
        "with these shapes."
    )
    return RuleEvidence(None, {}, what, {}, tuple(keys.values()), (warning,))


def _expected_shapes(backbone: Backbone, rule: Rule) -> dict[str, tuple[int, ...]]:
    """Shapes of the auxiliary networks that a rule builds; empty where it cannot."""
    try:
        with torch.device("meta"):
            network = rule.build(backbone)
    except InputError:
        return {}
    state = network.auxiliaries.state_dict(prefix=AUXILIARY_PREFIX)
    return {key: tuple(tensor.shape) for key, tensor in state.items()}


def _rules(
    backbone: Backbone, auxiliary: Mapping[str, Mapping[str, str]]
) -> Iterator[tuple[str, Rule]]:
    """Rules that may have built networks with these names, and cut the backbone at these layers."""
    names = {name for part in auxiliary.values() for name in part}
    num_layers, positions = len(backbone.specs), _positions(backbone, auxiliary)
    if any(COPY.fullmatch(name) for name in names):
        yield from _auglocal_rules(backbone, auxiliary, positions, names)
        return
    marks = [rule for mark, rule in MARKS.items() if any(mark in name for name in names)]
    rule_names = marks[:1] or ["predsim", "linear"]
    for modules in (None, len(positions) + 1):
        try:
            blocks = cut_into_blocks(num_layers, modules, smallest_tail=1)
        except InputError:
            continue
        if [block[-1] for block in blocks[:-1]] == positions:
            yield from ((name, PLAIN_RULES[name](modules=modules)) for name in rule_names)


def _positions(backbone: Backbone, auxiliary: Mapping[str, object]) -> list[int]:
    """Indices of the layers that have an auxiliary network."""
    return [index for index, name in enumerate(backbone.layer_names) if name in auxiliary]


def _auglocal_rules(
    backbone: Backbone,
    auxiliary: Mapping[str, Mapping[str, str]],
    positions: Sequence[int],
    names: set[str],
) -> Iterator[tuple[str, Rule]]:
    """AugLocal with the options whose networks have so many copies of layers."""
    if not positions:
        return
    networks = [auxiliary[backbone.layer_names[position]] for position in positions]
    seen = [
        (_count_copies(names), any(HEAD_NORM.fullmatch(name) for name in names))
        for names in networks
    ]
    depth = seen[0][0]
    extra = next((loss for mark, loss in EXTRA_NAMES.items() if _has(names, mark)), "cross-entropy")
    for tail, modules in _cuts(backbone, positions, depth):
        pyramid = _find_pyramid(backbone, positions, seen)
        if pyramid is not None:
            yield "auglocal", AugLocal(depth, pyramid, tail, modules, extra)


def _cuts(
    backbone: Backbone, positions: Sequence[int], depth: int
) -> Iterator[tuple[int | None, int | None]]:
    """Tail and modules that make blocks end at these layers, the paper's first."""
    num_layers, usual_tail = len(backbone.specs), backbone.style.tail(depth)
    tails = (None, num_layers - 1 - positions[-1])
    for tail, modules in itertools.product(tails, (None, len(positions) + 1)):
        try:
            blocks = cut_into_blocks(num_layers, modules, usual_tail, tail)
        except InputError:
            continue
        if [block[-1] for block in blocks[:-1]] == list(positions):
            yield tail, modules


def _find_pyramid(
    backbone: Backbone, positions: Sequence[int], seen: Sequence[tuple[int, bool]]
) -> float | None:
    """The coefficient with which networks have so many copies, and a norm or none; or None."""
    for pyramid in PYRAMIDS:
        depths = pyramidal_depths(len(positions) + 1, seen[0][0], pyramid)
        if all(
            _predict(backbone, position, depth) == pair
            for position, depth, pair in zip(positions, depths, seen)
        ):
            return pyramid
    return None


def _predict(backbone: Backbone, position: int, depth: int) -> tuple[int, bool]:
    """How many copies of layers an auxiliary network has, and whether a norm is in its head."""
    plan = plan_auxiliary(backbone.specs, position, depth, backbone.style)
    return len(plan.selected), backbone.style.norm_before_classifier and depth <= 1


def _has(names: set[str], mark: str) -> bool:
    return any(name.startswith(mark) for name in names)


def _count_copies(names: Mapping[str, str]) -> int:
    """Copies of layers in an auxiliary network."""
    return len({match[1] for name in names if (match := COPY.fullmatch(name))})


def _describe(auxiliary: Mapping[str, Mapping[str, str]]) -> str:
    """What the auxiliary networks are, in words."""
    copies = sorted({_count_copies(names) for names in auxiliary.values()})
    names = {name for part in auxiliary.values() for name in part}
    count = f"{len(auxiliary)} auxiliary network{'s' if len(auxiliary) > 1 else ''}"
    if copies[-1]:
        between = f"{copies[0]} to {copies[-1]}" if copies[0] != copies[-1] else f"{copies[0]}"
        text = f"{count} of {between} copied layer{'s' if copies[-1] > 1 else ''}: AugLocal"
    else:
        mark = next((rule for part, rule in MARKS.items() if any(part in n for n in names)), None)
        text = f"{count} without copied layers: {WORDS[mark] if mark else 'a linear classifier'}"
    for start, loss in EXTRA_NAMES.items():
        if _has(names, start):
            text += f"; decoders of {WORDS[loss]}"
    return text
