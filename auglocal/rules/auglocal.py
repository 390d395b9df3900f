"""AugLocal: every hidden layer learns from an auxiliary network made of later layers.

Its auxiliary networks may learn from the extra loss of PredSim or InfoPro besides cross-entropy.
Source: Ma, Wu, Si, Tan, ICLR 2024; `auglocal.auxiliary` has the construction.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from auglocal.auxiliary import SELECTIONS, AuxiliaryNetwork, plan_auxiliary, pyramidal_depths
from auglocal.backbones.backbone import Backbone, initialise
from auglocal.batches import UNCHANGED, Normalisation
from auglocal.blocks import cut_into_blocks
from auglocal.errors import InputError
from auglocal.local_loss import LocalClassifier
from auglocal.network import LocalNetwork
from auglocal.rules.infopro import LossWeights, with_reconstruction
from auglocal.rules.predsim import with_similarity

# What is added to the auxiliary networks' cross-entropy, by the name of the local loss.
LOCAL_LOSSES: dict[str, Callable[..., Sequence[LocalClassifier]]] = {
    "cross-entropy": lambda classifiers, *_: classifiers,
    "predsim": lambda classifiers, backbone, blocks, *_: with_similarity(
        classifiers, backbone, blocks
    ),
    "infopro": with_reconstruction,
}


@dataclass(frozen=True)
class AugLocal(LossWeights):
    """A block a layer, up to a tail of layers that train jointly with the classifier.

    The weights inherited are those of the local loss "infopro".

    Attributes:
        auxiliary_depth: d >= 1, layers in the first block's auxiliary network.
        pyramid: c in [0, 1], how fast the depth falls towards the output.
        tail: layers that train with the classifier; None is as the backbone's style has it: d + 1
            as in the paper's CIFAR code, 1 for ImageNet forms.
        modules: K, blocks in all, tail included; None is a block a layer before the tail. Unless
            it is given, the tail fits K: at least ceil(n / K) of n layers with fewer blocks, and
            n - K + 1 with more.
        local_loss: a name in `LOCAL_LOSSES`.
        selection: which later layers are copied: "uniform" as in the paper, the "next" ones, or
            "random" ones.
        selection_seed: decides which layers "random" takes.
    """

    auxiliary_depth: int = 2
    pyramid: float = 0.5
    tail: int | None = None
    modules: int | None = None
    local_loss: str = "cross-entropy"
    selection: str = "uniform"
    selection_seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
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
        if self.selection not in SELECTIONS:
            raise InputError(
                f"There is no selection {self.selection!r}; choose one of {', '.join(SELECTIONS)}."
            )
        if self.tail is not None and self.tail < 1:
            raise InputError(f"The tail must have at least 1 layer, not {self.tail}.")
        if self.local_loss not in LOCAL_LOSSES:
            raise InputError(
                f"There is no local loss {self.local_loss!r}; choose one of "
                f"{', '.join(LOCAL_LOSSES)}."
            )

    def build(self, backbone: Backbone, normalisation: Normalisation = UNCHANGED) -> LocalNetwork:
        """Cut the backbone into blocks and build each hidden block's auxiliary network."""
        blocks = self._cut(len(backbone.layers), backbone.style.tail(self.auxiliary_depth))
        depths = pyramidal_depths(len(blocks), self.auxiliary_depth, self.pyramid)
        auxiliaries: list[LocalClassifier] = []
        for block, depth in zip(blocks, depths):
            spec = plan_auxiliary(
                backbone.specs,
                block[-1],
                depth,
                backbone.style,
                selection=self.selection,
                selection_seed=self.selection_seed,
            )
            auxiliary = AuxiliaryNetwork(spec, backbone.specs, backbone.num_classes, backbone.style)
            initialise(auxiliary)
            auxiliaries.append(auxiliary)
        add_extra_loss = LOCAL_LOSSES[self.local_loss]
        return LocalNetwork(
            backbone, blocks, add_extra_loss(auxiliaries, backbone, blocks, normalisation, self)
        )

    def _cut(self, num_layers: int, usual_tail: int) -> list[range]:
        """Blocks of layers; unless there is one module, a layer at least learns locally."""
        tail = usual_tail if self.tail is None else self.tail
        fits_modules = self.tail is None and self.modules is not None
        if tail >= num_layers and self.modules != 1 and not fits_modules:
            cause = "tail" if self.tail is not None else "auxiliary depth"
            largest = num_layers - (1 if self.tail is not None else 2)
            raise InputError(
                f"With a tail of {tail} layers nothing is left to learn locally in a backbone of "
                f"{num_layers}; give a smaller {cause}, at most {largest}."
            )
        return cut_into_blocks(num_layers, self.modules, usual_tail, self.tail)
