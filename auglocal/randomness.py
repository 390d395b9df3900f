"""Seeds derived from the place in a run, so that a resumed run draws what it would have drawn."""

from __future__ import annotations

import hashlib

import torch


def derive_seed(seed: int, *place: int | str) -> int:
    """A 63-bit seed that depends on `seed` and on the place, such as ("order", epoch)."""
    text = ":".join(str(part) for part in (seed, *place))
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def generator_at(seed: int, *place: int | str) -> torch.Generator:
    """A CPU generator seeded by `derive_seed`; drawing on the CPU makes every device draw alike."""
    return torch.Generator().manual_seed(derive_seed(seed, *place))
