"""How AugLocal builds auxiliary networks for a backbone: its CIFAR and ImageNet codes differ.

Each form of a backbone names its style here, so that nothing else asks which form it is.
"""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class AuxiliaryStyle:
    """What the AugLocal authors do in one of their codes.

    Attributes:
        defers_strides: a copy halves H and W once for each doubling of the channels, and leaves to
            later copies what it cannot do at once; otherwise exactly where the channels grow.
        norm_before_classifier: a BatchNorm1d stands there when the depth asked for is at most 1.
        head: what stands before the classifier, a name in `auglocal.auxiliary.REDUCTIONS`.
        tail_has_depth: with auxiliary networks of depth d, the last d + 1 layers train jointly
            with the classifier; otherwise the last layer alone.
    """

    defers_strides: bool
    norm_before_classifier: bool
    head: str
    tail_has_depth: bool

    def tail(self, depth: int) -> int:
        """Layers that train with the classifier, for auxiliary networks of this depth."""
        return depth + 1 if self.tail_has_depth else 1


CIFAR_STYLE = AuxiliaryStyle(
    defers_strides=True, norm_before_classifier=True, head="pooled", tail_has_depth=True
)
IMAGENET_STYLE = AuxiliaryStyle(
    defers_strides=False, norm_before_classifier=False, head="pooled", tail_has_depth=False
)
IMAGENET_VGG_STYLE = replace(IMAGENET_STYLE, head="hidden")
