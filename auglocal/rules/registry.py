"""Learning rules by name: a name and its options in, the rule out.

A rule is a frozen dataclass: its fields are its options, and `build(backbone, normalisation)` makes
the `LocalNetwork` that it trains.
"""

from __future__ import annotations

from dataclasses import fields
from typing import Any, ClassVar, Protocol

import torch

from auglocal.backbones.backbone import Backbone
from auglocal.backbones.registry import build_backbone
from auglocal.batches import UNCHANGED, Normalisation
from auglocal.errors import InputError
from auglocal.network import LocalNetwork
from auglocal.rules.auglocal import AugLocal
from auglocal.rules.bp import BP
from auglocal.rules.dgl import DGL
from auglocal.rules.infopro import InfoPro
from auglocal.rules.linear import Linear
from auglocal.rules.predsim import PredSim


class Rule(Protocol):
    """What a learning rule must offer."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    def build(self, backbone: Backbone, normalisation: Normalisation = UNCHANGED) -> LocalNetwork:
        """Cut `backbone` into blocks and give each hidden block something to learn from.

        Args:
            backbone: becomes part of the network.
            normalisation: of the images, for a loss that asks for their pixel values.
        """
        ...


RULES: dict[str, type[Rule]] = {
    "bp": BP,
    "auglocal": AugLocal,
    "dgl": DGL,
    "predsim": PredSim,
    "infopro": InfoPro,
    "linear": Linear,
}


def make_rule(name: str, options: object) -> Rule:
    """Make the rule called `name`, reading its options from attributes of `options`.

    Raises:
        InputError: there is no such rule, or an option is out of range.
    """
    if name not in RULES:
        raise InputError(f"There is no rule {name!r}; choose one of {', '.join(RULES)}.")
    rule_type = RULES[name]
    chosen = {field.name: getattr(options, field.name) for field in fields(rule_type)}
    return rule_type(**chosen)


def build_network(
    architecture: str,
    rule: Rule,
    num_classes: int,
    input_size: tuple[int, int, int],
    seed: int,
    *,
    width: float = 1.0,
    normalisation: Normalisation = UNCHANGED,
) -> LocalNetwork:
    """Build a fresh network on the CPU; equal seeds give equal backbones whatever the rule.

    The backbone is drawn before the auxiliary networks, so that rules start from the same weights.

    Args:
        architecture: name of the backbone.
        rule: how it is trained.
        num_classes: K.
        input_size: (C, H, W) of one image.
        seed: of all draws.
        width: multiplies the backbone's channels.
        normalisation: of the images it will see.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        backbone = build_backbone(architecture, num_classes, input_size, width)
        return rule.build(backbone, normalisation)
