"""BP: end-to-end backpropagation, the case of a single block and no auxiliary network."""

from __future__ import annotations

from dataclasses import dataclass

from auglocal.backbones.backbone import Backbone
from auglocal.batches import UNCHANGED, Normalisation
from auglocal.network import LocalNetwork


@dataclass(frozen=True)
class BP:
    """End-to-end backpropagation; it has no options."""

    def build(self, backbone: Backbone, normalisation: Normalisation = UNCHANGED) -> LocalNetwork:
        """Make one block of all layers."""
        return LocalNetwork(backbone, [range(len(backbone.layers))], [])
