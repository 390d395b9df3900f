"""What must be the same for a run to go on exactly.

In: a configuration and what resume.pt holds. Out: nothing, a refusal or a warning.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

from auglocal.acceleration import uses_block_threads
from auglocal.concurrency import draws_at_random
from auglocal.config import MAY_CHANGE, TrainConfig
from auglocal.errors import InputError


def describe_run(config: TrainConfig, network: nn.Module) -> dict[str, Any]:
    """What resume.pt records besides the state, as plain values."""
    return {"config": config.portable(), "threads": computing_threads(config, network)}


def computing_threads(config: TrainConfig, network: nn.Module) -> int:
    """Threads that compute one operation: the order of its sums depends on them."""
    at_once = uses_block_threads(config) and not draws_at_random(network)
    return 1 if at_once else torch.get_num_threads()


def check_same_run(config: TrainConfig, saved: Mapping[str, Any]) -> None:
    """Refuse a state that another configuration left.

    A state from before configurations were recorded passes; a field that it does not know was at
    its default then.

    Args:
        config: the run's, from config.json.
        saved: from resume.pt.

    Raises:
        InputError: naming the first field that differs.
    """
    recorded = saved.get("config")
    if not isinstance(recorded, dict):
        return
    for name, value in config.portable().items():
        if name not in MAY_CHANGE and name in recorded and recorded[name] != value:
            raise InputError(
                f"The saved state does not fit the run's configuration: {name} is "
                f"{recorded[name]!r} in resume.pt and {value!r} in config.json; restore the one "
                "or the other, or start again with --overwrite."
            )


def thread_warnings(
    config: TrainConfig, network: nn.Module, saved: Mapping[str, Any]
) -> Iterator[str]:
    """A sentence if the saved run computed with another number of threads than this one will."""
    before, now = saved.get("threads"), computing_threads(config, network)
    if before is not None and before != now:
        yield (
            f"Warning: this run computed with {before} threads so far and goes on with {now}; its "
            f"weights will not be bit for bit those of an unbroken run (set OMP_NUM_THREADS="
            f"{before} for that)."
        )
