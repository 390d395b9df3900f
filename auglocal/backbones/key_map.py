"""Names of a backbone and its tensors in torchvision, and back.

In: a model's name and pairs of prefixes, which a family lists while it builds its layers. Out:
keys.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class KeyMap:
    """Prefixes of torchvision's keys beside ours; what follows a prefix is the same in both.

    Attributes:
        model: what torchvision calls the architecture, "vgg13_bn" say.
        pairs: (torchvision's prefix, ours), each with its last dot; the first that fits counts.
    """

    model: str
    pairs: tuple[tuple[str, str], ...]

    def from_torchvision(self, key: str) -> str:
        """Our key for one of torchvision's.

        Raises:
            KeyError: there is none.
        """
        return _replace_prefix(key, self.pairs)

    def to_torchvision(self, key: str) -> str:
        """Torchvision's key for one of ours.

        Raises:
            KeyError: there is none.
        """
        return _replace_prefix(key, ((ours, theirs) for theirs, ours in self.pairs))


def _replace_prefix(key: str, pairs: Iterable[tuple[str, str]]) -> str:
    for old, new in pairs:
        if key.startswith(old):
            return new + key.removeprefix(old)
    raise KeyError(key)
