"""Counters of what a training step holds and computes, for tensors on the CPU.

Each watches steps that somebody else runs: no device's allocator has a say in what they count.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry


class SavedTensors:
    """Bytes that autograd keeps for backward, over time.

    A storage counts once however many tensors view it, from when it is first saved until the last
    node that saved it lets go. Weights and buffers do not count: they stay anyway.

    Args:
        module: whose weights and buffers they are.

    Attributes:
        timeline: bytes after each change, beginning with 0; the last is 0 when all was freed.
    """

    def __init__(self, module: nn.Module) -> None:
        own = [*module.parameters(), *module.buffers()]
        self._own = {tensor.untyped_storage().data_ptr() for tensor in own}
        self._num_holders: dict[int, int] = {}
        self.timeline = [0]

    @property
    def peak(self) -> int:
        """Most bytes at a time."""
        return max(self.timeline)

    def watch(self) -> torch.autograd.graph.saved_tensors_hooks:
        """A context in which what is saved counts."""
        return torch.autograd.graph.saved_tensors_hooks(self._keep, lambda kept: kept.tensor)

    def _keep(self, tensor: Tensor) -> _Kept:
        storage = tensor.untyped_storage()
        key = storage.data_ptr()
        # Detached: a node that kept its own output would keep itself.
        kept = _Kept(tensor.detach())
        if key not in self._own:
            self._num_holders[key] = self._num_holders.get(key, 0) + 1
            if self._num_holders[key] == 1:
                self.timeline.append(self.timeline[-1] + storage.nbytes())
            weakref.finalize(kept, self._let_go, key, storage.nbytes())
        return kept

    def _let_go(self, key: int, num_bytes: int) -> None:
        self._num_holders[key] -= 1
        if self._num_holders[key] == 0:
            del self._num_holders[key]  # the next storage may lie where this one lay
            self.timeline.append(self.timeline[-1] - num_bytes)


class _Kept:
    """A saved tensor; plain lists and tensors cannot say when they go."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


class LiveGradients:
    """Bytes of weight gradients that exist at a time.

    Args:
        parameters: the weights; each must be given one gradient at most before it is freed.

    Attributes:
        peak: most bytes at a time.
    """

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        self.peak = self._live = 0
        for parameter in parameters:
            parameter.register_post_accumulate_grad_hook(self._arrive)  # type: ignore[no-untyped-call]

    def _arrive(self, parameter: Tensor) -> None:
        assert parameter.grad is not None
        self._live += parameter.grad.nbytes
        self.peak = max(self.peak, self._live)
        weakref.finalize(parameter.grad, self._leave, parameter.grad.nbytes)

    def _leave(self, num_bytes: int) -> None:
        self._live -= num_bytes


class FlopCounter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Floating-point operations inside its context, a multiplication and an addition being two.

    The formulas are those of torch's FlopCounterMode, which also attributes them to modules, and
    takes four times as long.

    Attributes:
        total: operations so far.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.total = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Compute, and count what there is a formula for."""
        output = func(*args, **(kwargs or {}))
        formula = flop_registry.get(func.overloadpacket)
        if formula is not None:
            self.total += formula(*args, **(kwargs or {}), out_val=output)
        return output


def num_bytes(tensors: Iterable[Tensor]) -> int:
    """Bytes of tensors that share no storage."""
    return sum(tensor.nbytes for tensor in tensors)
