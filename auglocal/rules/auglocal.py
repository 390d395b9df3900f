"""AugLocal: every hidden layer learns from an auxiliary network made of later layers.

Source: Ma, Wu, Si, Tan, ICLR 2024; `auglocal.auxiliary` has the construction.
"""

from __future__ import annotations

from dataclasses import dataclass

from auglocal.auxiliary import AuxiliaryNetwork, plan_auxiliary, pyramidal_depths
from auglocal.backbones.backbone import Backbone, initialise
from auglocal.errors import InputError
from auglocal.network import LocalNetwork


@dataclass(frozen=True)
class AugLocal:
    """A block a layer, up to a tail of layers that train jointly with the classifier.

    Attributes:
        auxiliary_depth: d >= 1, layers in the first block's auxiliary network.
        pyramid: c in [0, 1], how fast the depth falls towards the output.
        tail: layers that train with the classifier; None is d + 1, as in the paper's CIFAR code.
    """

    auxiliary_depth: int = 2
    pyramid: float = 0.5
    tail: int | None = None

    def __post_init__(self) -> None:
        if self.auxiliary_depth < 1:
            raise InputError(
                f"The auxiliary depth must be at least 1, not {self.auxiliary_depth}; "
                "give --auxiliary-depth 2, say."
            )
        if not 0 <= self.pyramid <= 1:
            raise InputError(
                f"The pyramid coefficient must lie between 0 and 1, not {self.pyramid:g}; "
                "give --pyramid 0.5, say."
            )
        if self.tail is not None and self.tail < 1:
            raise InputError(f"The tail must have at least 1 layer, not {self.tail}.")

    def build(self, backbone: Backbone) -> LocalNetwork:
        """Cut the backbone into blocks and build each hidden block's auxiliary network."""
        num_layers = len(backbone.layers)
        num_hidden = num_layers - self._tail_length(num_layers)
        depths = pyramidal_depths(num_hidden + 1, self.auxiliary_depth, self.pyramid)
        auxiliaries = []
        for layer, depth in enumerate(depths):
            spec = plan_auxiliary(backbone.specs, layer, depth)
            auxiliary = AuxiliaryNetwork(spec, backbone.specs, backbone.num_classes)
            initialise(auxiliary)
            auxiliaries.append(auxiliary)
        blocks = [[layer] for layer in range(num_hidden)]
        return LocalNetwork(backbone, [*blocks, range(num_hidden, num_layers)], auxiliaries)

    def _tail_length(self, num_layers: int) -> int:
        """Layers in the last block; at least one layer is left to learn locally."""
        tail = self.auxiliary_depth + 1 if self.tail is None else self.tail
        if tail >= num_layers:
            cause = "tail" if self.tail is not None else "auxiliary depth"
            largest = num_layers - (1 if self.tail is not None else 2)
            raise InputError(
                f"With a tail of {tail} layers nothing is left to learn locally in a backbone of "
                f"{num_layers}; give a smaller {cause}, at most {largest}."
            )
        return tail
