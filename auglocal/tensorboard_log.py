"""TensorBoard: a run's metrics.jsonl in, the same numbers as event files out."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from auglocal.errors import InputError
from auglocal.runs import RunFolder, read_metrics


def require_tensorboard() -> Any:
    """PyTorch's writer of event files, imported when it is needed.

    Raises:
        InputError: TensorBoard is not installed.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise InputError(
            "TensorBoard is not installed; pip install tensorboard, or leave out --tensorboard."
        ) from error
    return SummaryWriter


@contextlib.contextmanager
def tensorboard_log(folder: RunFolder) -> Iterator[Callable[[], None]]:
    """Give a function that logs the epochs recorded since it was last called.

    The event files are made anew from metrics.jsonl, so that those of a run that was killed and
    resumed hold every epoch once.

    Raises:
        InputError: TensorBoard is not installed.
    """
    writer_type = require_tensorboard()
    for file in folder.tensorboard.glob("events.out.tfevents.*"):
        file.unlink()
    writer = writer_type(log_dir=str(folder.tensorboard))
    num_logged = 0

    def log_new_epochs() -> None:
        nonlocal num_logged
        lines = read_metrics(folder)
        for line in lines[num_logged:]:
            for tag, value in scalars(line):
                writer.add_scalar(tag, value, global_step=line["epoch"])
        num_logged = len(lines)
        writer.flush()

    try:
        yield log_new_epochs
        log_new_epochs()
    finally:
        writer.close()


def scalars(line: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """(tag, value) of each number of an epoch's line; a block's is tagged losses/BLOCK, say."""
    for name, value in line.items():
        if isinstance(value, dict):
            for block, item in value.items():
                yield f"{name}/{block}", item
        elif value is not None and name != "epoch":
            yield name, value
