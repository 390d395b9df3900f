"""Evaluation spread over ranks: a split's batches in, shares of them and the sums of counts out.

A batch is as it would be in one process, and so are its answers.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from auglocal.batches import EvaluatedSplit
from auglocal.evaluation import Accuracy
from auglocal.parallel.team import Team
from auglocal.streaming import StreamedSplit


@dataclass(frozen=True)
class SharedSplit:
    """Every so many-th batch of a split; none where there are more ranks than batches.

    Attributes:
        whole: the split.
        index, count: which of how many shares.
        on_batch: called for each batch.
        batch_size: of `batches`.
    """

    whole: EvaluatedSplit
    index: int
    count: int
    on_batch: Callable[[], None] = lambda: None
    batch_size: int = 500

    @property
    def labels(self) -> Tensor:
        """Labels of this share, int64, (M,)."""
        return self.whole.labels[self._chosen().to(self.whole.labels.device)]

    def __len__(self) -> int:
        return len(self._chosen())

    def _chosen(self) -> Tensor:
        """Indices of its images."""
        batches = torch.split(torch.arange(len(self.whole)), self.batch_size)
        return torch.cat([*batches[self.index :: self.count], torch.zeros(0, dtype=torch.int64)])

    def batches(self, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """As `EvaluatedSplit.batches`, of this share."""
        assert batch_size == self.batch_size, "the shares were cut for another batch size"
        for batch in self._read():
            self.on_batch()
            yield batch

    def _read(self) -> Iterator[tuple[Tensor, Tensor]]:
        if not isinstance(self.whole, StreamedSplit):
            batches = self.whole.batches(self.batch_size)
            return itertools.islice(batches, self.index, None, self.count)
        chosen = self._chosen()
        # Its workers decode what is chosen alone; of nothing they could make no batch.
        return self.whole.chosen_batches(chosen, self.batch_size) if len(chosen) else iter(())


def add_up(team: Team, own: Accuracy) -> Accuracy:
    """The accuracy on all ranks' images; every rank calls it.

    Args:
        team: who the others are.
        own: of this rank's share, which may be empty.
    """
    counts = torch.tensor([own.correct, own.samples])
    team.add(counts)
    return Accuracy(*counts.tolist())
