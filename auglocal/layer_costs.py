"""What each layer and each auxiliary network costs in a training step, without taking the step.

In: a backbone, a rule and a batch size. Out: parameters, floating-point operations and bytes that
autograd saves, by layer. The step runs on tensors that have shapes but no contents, and blocks that
are built alike are run once, so that ResNet-110 takes about a second.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional

from auglocal.backbones.registry import build_backbone
from auglocal.counters import FlopCounter
from auglocal.errors import InputError
from auglocal.network import LocalNetwork
from auglocal.plan import count_parameters
from auglocal.rules.registry import Rule

END = -1  # in place of a layer's place in its block: what comes after the block's last layer


@dataclass(frozen=True)
class Cost:
    """Of one part of a network.

    Attributes:
        parameters: trainable values.
        flops: floating-point operations of its forward and backward pass; a multiplication and an
            addition are two.
        saved: bytes of what autograd keeps for its backward pass, weights and buffers left out.
    """

    parameters: int
    flops: int
    saved: int


@dataclass(frozen=True)
class LayerCosts:
    """Of a training step, in float32.

    Attributes:
        layers: (L,), the backbone's layers.
        auxiliaries: (B - 1,), the auxiliary networks of the hidden blocks, losses included.
        head: the backbone's own classifier and its loss.
        blocks: (B,), layer indices of each block.
    """

    layers: tuple[Cost, ...]
    auxiliaries: tuple[Cost, ...]
    head: Cost
    blocks: tuple[tuple[int, ...], ...]

    @property
    def flops(self) -> int:
        """Of the whole step."""
        return sum(cost.flops for cost in (*self.layers, *self.auxiliaries, self.head))

    @property
    def saved_by_block(self) -> tuple[int, ...]:
        """(B,) bytes that a block holds at once; a block's are freed before the next one runs."""
        ends = (*self.auxiliaries, self.head)
        return tuple(
            end.saved + sum(self.layers[index].saved for index in block)
            for block, end in zip(self.blocks, ends)
        )

    @property
    def saved(self) -> int:
        """Most bytes at a time."""
        return max(self.saved_by_block)


def count_layer_costs(
    architecture: str,
    rule: Rule,
    batch_size: int,
    num_classes: int = 10,
    input_size: tuple[int, int, int] = (3, 32, 32),
    width: float = 1.0,
) -> LayerCosts:
    """Count what a training step of `rule` costs, layer by layer.

    A layer that begins a block needs no gradient for its input, which BP computes everywhere but
    at the first layer: so the same layer takes somewhat fewer operations under local learning.

    Args:
        architecture: name of the backbone.
        rule: how it is trained.
        batch_size: N, at least 2.
        num_classes: K.
        input_size: (C, H, W) of one image.
        width: multiplies the backbone's channels.

    Raises:
        InputError: the backbone or the rule cannot be built like this.
    """
    if batch_size < 2:
        raise InputError(f"The batch size must be at least 2, not {batch_size}.")
    with torch.device("meta"):
        network = rule.build(build_backbone(architecture, num_classes, input_size, width))
    network.train()
    # Fake tensors pass for ones on the CPU, which some losses ask for; meta tensors are quicker to
    # build all of a network with.
    with FakeTensorMode(allow_non_fake_inputs=True):
        images = torch.empty(batch_size, *input_size)
        labels = torch.zeros(batch_size, dtype=torch.long)
        return _count(network, images, labels)


def _count(network: LocalNetwork, images: Tensor, labels: Tensor) -> LayerCosts:
    """Costs of all blocks; those of one description are counted once."""
    layers = list(network.backbone.layers.values())
    ends = [*network.auxiliaries.values(), network.backbone.head]
    known: dict[tuple[object, ...], tuple[list[Cost], torch.Size]] = {}
    costs: list[list[Cost]] = []
    features = images
    for block, end in zip(network.blocks, ends):
        parts = [layers[index] for index in block]
        # Modules print what they are made of; with the shape, that decides the cost.
        key = (tuple(features.shape), *(repr(part) for part in (*parts, end)))
        if key not in known:
            known[key] = _count_block(parts, end, features.detach(), images, labels)
        block_costs, shape = known[key]
        costs.append(block_costs)
        features = torch.empty(shape)
    return LayerCosts(
        layers=tuple(cost for block_costs in costs for cost in block_costs[:-1]),
        auxiliaries=tuple(block_costs[-1] for block_costs in costs[:-1]),
        head=costs[-1][-1],
        blocks=network.blocks,
    )


def _count_block(
    parts: Sequence[nn.Module], end: nn.Module, features: Tensor, images: Tensor, labels: Tensor
) -> tuple[list[Cost], torch.Size]:
    """Costs of a block's layers and of what learns from them, and the shape of its output."""
    for module in (*parts, end):
        module.to_empty(device="cpu")
    with FlopCounter() as counter:
        ledger = _Ledger([*parts, end], counter)
        with torch.autograd.graph.saved_tensors_hooks(ledger.keep, lambda kept: kept):
            for place, part in enumerate(parts):
                ledger.turn_to(place)
                features = part(features)
                # Its gradient arrives just before the layer's own backward pass.
                features.register_hook(  # type: ignore[no-untyped-call]
                    lambda gradient, place=place: ledger.turn_to(place)
                )
            ledger.turn_to(END)
            loss = _loss(end, features, images, labels)
        loss.backward()  # type: ignore[no-untyped-call]
        ledger.turn_to(END)
    costs = [
        Cost(count_parameters(part), ledger.flops[place], ledger.saved[place])
        for place, part in [*enumerate(parts), (END, end)]
    ]
    return costs, features.shape


def _loss(end: nn.Module, features: Tensor, images: Tensor, labels: Tensor) -> Tensor:
    """What a block learns from: its auxiliary network's loss, or that of the backbone's head."""
    output = end(features, images, labels) if hasattr(end, "logits") else end(features)
    if isinstance(output, tuple):
        loss: Tensor = output[0]
        return loss
    return functional.cross_entropy(output, labels)


class _Ledger:
    """Writes operations and saved bytes to whichever part of a block is at work.

    Args:
        modules: of the block; their weights and buffers do not count.
        counter: of all operations.
    """

    def __init__(self, modules: Sequence[nn.Module], counter: FlopCounter) -> None:
        self.flops: Counter[int] = Counter()
        self.saved: Counter[int] = Counter()
        self._counter = counter
        self._owner = END
        self._counted = counter.total
        # Storages without contents have no address; their own objects tell them apart.
        self._seen = {
            tensor.untyped_storage()._cdata
            for module in modules
            for tensor in (*module.parameters(), *module.buffers())
        }

    def turn_to(self, owner: int) -> None:
        """Close the account of the part that was at work, and open another."""
        self.flops[self._owner] += self._counter.total - self._counted
        self._counted, self._owner = self._counter.total, owner

    def keep(self, tensor: Tensor) -> Tensor:
        """Count what is saved for backward, each storage once."""
        storage = tensor.untyped_storage()
        if storage._cdata not in self._seen:
            self._seen.add(storage._cdata)
            self.saved[self._owner] += storage.nbytes()
        return tensor.detach()
