"""A pass over images spread over the processes that torchrun started: `torchrun -m analysis ...`.

Each rank reads its share of the batches, rank 0 puts the parts together and answers. Merging is
exact: every batch is read whole by one rank, so the numbers are those of a single process.
"""

from __future__ import annotations

import os
from datetime import timedelta

from analysis.errors import WorkError
from analysis.reading import Reading, Share, merged

TIMEOUT = timedelta(minutes=30)


def share_of_this_process() -> Share:
    """Which batches this process reads, by what torchrun put into the environment."""
    return Share(int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1")))


def gathered(reading: Reading, share: Share) -> Reading | None:
    """Put the parts of all processes together.

    Args:
        reading: this process's part.
        share: which part it is.

    Returns:
        the whole on rank 0, None on the others.

    Raises:
        WorkError: another process did not come.
    """
    if share.count == 1:
        return reading
    import torch.distributed as distributed

    try:
        if not distributed.is_initialized():
            distributed.init_process_group("gloo", timeout=TIMEOUT)
        parts: list[Reading] | None = [reading] * share.count if share.index == 0 else None
        distributed.gather_object(reading, parts)
    except RuntimeError as error:
        raise WorkError(
            f"Another process of this analysis did not answer ({str(error).splitlines()[0]}); "
            "look for its message, and start again."
        ) from error
    return None if parts is None else merged(parts)


def leave() -> None:
    """Take leave of the other processes, where there are any."""
    if share_of_this_process().count > 1:
        import torch.distributed as distributed

        if distributed.is_initialized():
            distributed.destroy_process_group()
