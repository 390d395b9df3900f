"""Where to compute."""

from __future__ import annotations

import torch

from auglocal.errors import InputError


def choose_device(name: str) -> torch.device:
    """The device called `name`; "auto" takes CUDA, then Apple's MPS, then the CPU.

    Raises:
        InputError: this machine or this build of PyTorch does not have it.
    """
    available = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if name == "auto":
        return torch.device(next(kind for kind, there in available.items() if there))
    if name not in available:
        raise InputError(f"There is no device {name!r}; choose one of auto, cpu, cuda, mps.")
    if not available[name]:
        raise InputError(
            f"This machine offers PyTorch {torch.__version__} no {name}; give --device cpu."
        )
    return torch.device(name)
