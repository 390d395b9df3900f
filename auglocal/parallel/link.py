"""What passes from a rank to the next: a block's output, the labels, and the images where needed.

Nothing comes back: no gradient crosses blocks. Sends and receives go on while both ranks compute.
A sender runs ahead by `MAX_IN_FLIGHT` messages at most: then it waits until the oldest has arrived
(back-pressure); a receiver asks for one message while it works on the one before.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

import torch
import torch.distributed as distributed
from torch import Tensor

MAX_IN_FLIGHT = 2
GO_ON, STOP = 0, 1
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.int64)
# A kind as numbers: (D,) dtype, dimensions, then for each of at most 4 shape and stride.
MAX_DIMENSIONS = 4
KIND_LENGTH = 2 + 2 * MAX_DIMENSIONS
MAX_TENSORS = 3

Waiting = Callable[[], AbstractContextManager[None]]


class Kind:
    """Type, shape and layout of one tensor of each message; its first dimension may vary.

    The layout matters: convolutions of another memory layout sum in another order.

    Args:
        dtype: of the values.
        shape: (N, ...) of some message.
        stride: of the same; that of a dense tensor does not depend on N.
    """

    def __init__(self, dtype: torch.dtype, shape: tuple[int, ...], stride: tuple[int, ...]) -> None:
        self.dtype, self.shape, self.stride = dtype, shape, stride

    @classmethod
    def of(cls, tensor: Tensor) -> Kind:
        """The kind of a tensor, or of its dense copy."""
        dense = _dense(tensor)
        return cls(dense.dtype, tuple(dense.shape), dense.stride())

    def numbers(self) -> list[int]:
        """The kind as whole numbers."""
        padding = [0] * (MAX_DIMENSIONS - len(self.shape))
        head = [DTYPES.index(self.dtype), len(self.shape)]
        return [*head, *self.shape, *padding, *self.stride, *padding]

    @classmethod
    def from_numbers(cls, numbers: list[int]) -> Kind:
        """Read `numbers` back."""
        dimensions = numbers[1]
        shape = numbers[2 : 2 + dimensions]
        stride = numbers[2 + MAX_DIMENSIONS :][:dimensions]
        return cls(DTYPES[numbers[0]], tuple(shape), tuple(stride))

    def empty(self, num_images: int, device: torch.device) -> Tensor:
        """Room for such a tensor of N images."""
        shape = (num_images, *self.shape[1:])
        return torch.empty_strided(shape, self.stride, dtype=self.dtype, device=device)

    def fit(self, tensor: Tensor) -> Tensor:
        """The same values in this kind's layout."""
        if tensor.stride() == self.stride and tensor.dtype == self.dtype:
            return tensor
        return self.empty(len(tensor), tensor.device).copy_(tensor)


class Outgoing:
    """The way to the next rank.

    Args:
        peer: its rank.
        waiting: entered while this rank waits for it.

    Attributes:
        num_bytes: sent so far.
    """

    def __init__(self, peer: int, waiting: Waiting) -> None:
        self._peer, self._waiting = peer, waiting
        self._kinds: list[Kind] | None = None
        self._in_flight: deque[list[tuple[distributed.Work, Tensor]]] = deque()
        self.num_bytes = 0

    def send(self, tensors: Sequence[Tensor]) -> None:
        """Start to send one message; the tensors must not change any more.

        Args:
            tensors: (N, ...) each; of the same number and kind in every message.
        """
        if len(self._in_flight) == MAX_IN_FLIGHT:
            self._settle_oldest()
        messages = [torch.tensor([GO_ON])]
        if self._kinds is None:
            self._kinds = [Kind.of(tensor) for tensor in tensors]
            messages.append(_kinds_message(self._kinds))
        messages += [kind.fit(tensor) for kind, tensor in zip(self._kinds, tensors, strict=True)]
        self._start(messages)

    def send_stop(self, num_images: int, device: torch.device) -> None:
        """Say that the message of N images that would come now does not, nor any other.

        The receiver may have asked for it already, so something of its size is sent.
        """
        kinds = self._kinds or []
        empty = [kind.empty(num_images, device).zero_() for kind in kinds]
        self._start([torch.tensor([STOP]), *empty])
        self.flush()

    def flush(self) -> None:
        """Wait until everything has arrived."""
        while self._in_flight:
            self._settle_oldest()

    def _start(self, messages: list[Tensor]) -> None:
        works = []
        for message in messages:
            content = _as_bytes(message)
            self.num_bytes += len(content)
            work = distributed.isend(content, self._peer)
            assert work is not None
            works.append((work, content))
        self._in_flight.append(works)

    def _settle_oldest(self) -> None:
        with self._waiting():
            for work, _ in self._in_flight.popleft():
                work.wait()


class Incoming:
    """The way from the rank before.

    Args:
        peer: its rank.
        device: where the tensors are to be.
        waiting: entered while this rank waits for it.
    """

    def __init__(self, peer: int, device: torch.device, waiting: Waiting) -> None:
        self._peer, self._device, self._waiting = peer, device, waiting
        self._kinds: list[Kind] | None = None
        self._control = torch.tensor([GO_ON])
        self._expected: list[tuple[distributed.Work, Tensor]] = []
        self._tensors: list[Tensor] = []

    def ask(self, num_images: int) -> None:
        """Start to receive the next message, of N images."""
        self._expect(self._control)
        if self._kinds is not None:
            self._ask_tensors(num_images)

    def take(self, num_images: int) -> list[Tensor] | None:
        """Wait for the message that was asked for.

        Args:
            num_images: N, as asked.

        Returns:
            Its tensors, (N, ...) each; None if there is none, nor any other.
        """
        self._settle()
        if self._control.item() == STOP:
            return None
        if self._kinds is None:
            numbers = torch.zeros(MAX_TENSORS * KIND_LENGTH, dtype=torch.int64)
            self._expect(numbers)
            self._settle()
            self._kinds = _read_kinds(numbers)
            self._ask_tensors(num_images)
            self._settle()
        return self._tensors

    def _ask_tensors(self, num_images: int) -> None:
        assert self._kinds is not None
        self._tensors = [kind.empty(num_images, self._device) for kind in self._kinds]
        for tensor in self._tensors:
            self._expect(tensor)

    def _expect(self, tensor: Tensor) -> None:
        content = _as_bytes(tensor)
        work = distributed.irecv(content, self._peer)
        assert work is not None
        self._expected.append((work, content))

    def _settle(self) -> None:
        with self._waiting():
            for work, _ in self._expected:
                work.wait()
        self._expected = []


def _kinds_message(kinds: Sequence[Kind]) -> Tensor:
    """Kinds as one tensor of fixed length; a kind of no dimensions is none."""
    numbers = [number for kind in kinds for number in kind.numbers()]
    missing = MAX_TENSORS * KIND_LENGTH - len(numbers)
    return torch.tensor(numbers + [0] * missing)


def _read_kinds(message: Tensor) -> list[Kind]:
    rows = message.view(MAX_TENSORS, KIND_LENGTH).tolist()
    return [Kind.from_numbers(row) for row in rows if row[1] > 0]


def _dense(tensor: Tensor) -> Tensor:
    """The tensor, or a copy without gaps."""
    if tensor.dim() == 4 and tensor.is_contiguous(memory_format=torch.channels_last):
        return tensor
    return tensor.contiguous()


def _as_bytes(tensor: Tensor) -> Tensor:
    """The memory of a dense tensor, uint8 (M,), in the order in which it lies there."""
    return tensor.as_strided((tensor.numel(),), (1,)).view(torch.uint8)
