"""Training under a progress bar, as the commands do it."""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from tqdm import tqdm

from auglocal.config import TrainConfig
from auglocal.material import Material
from auglocal.runs import RunFolder
from auglocal.tensorboard_log import tensorboard_log
from auglocal.training import Listener, StepReport, train


def train_with_progress(
    config: TrainConfig, material: Material, folder: RunFolder, *, tensorboard: bool
) -> bool:
    """Train under a progress bar; Ctrl-C (or SIGTERM) stops after the batch in progress."""
    with (
        stop_requests(again=_interrupt) as requests,
        progress_listener(config, folder, requests, tensorboard=tensorboard) as listener,
    ):
        return train(config, material, folder, listener)


def _interrupt() -> None:
    raise KeyboardInterrupt


@contextlib.contextmanager
def stop_requests(again: Callable[[], None]) -> Iterator[list[int]]:
    """Collect Ctrl-C and SIGTERM meanwhile, instead of ending at once.

    Args:
        again: called at every request after the first.

    Yields:
        The numbers of the signals so far.
    """
    requests: list[int] = []

    def request_stop(number: int, frame: object) -> None:
        if requests:
            again()
        requests.append(number)

    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number in handlers:
        signal.signal(number, request_stop)
    try:
        yield requests
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def progress_listener(
    config: TrainConfig, folder: RunFolder, requests: Sequence[int], *, tensorboard: bool
) -> Iterator[Listener]:
    """A listener that shows a progress bar, and stops when `requests` is not empty."""
    with contextlib.ExitStack() as stack:
        log = stack.enter_context(tensorboard_log(folder)) if tensorboard else _log_nothing
        # Any delay keeps the bar away until the first step: a saved state may yet be refused.
        bar = stack.enter_context(
            tqdm(unit="step", dynamic_ncols=True, file=sys.stderr, delay=1e-3)
        )
        yield Listener(
            on_step=lambda report: _show_step(bar, report),
            on_epoch=lambda metrics: _show_epoch(bar, config, metrics, log),
            should_stop=lambda: bool(requests),
            on_warning=lambda text: bar.write(text, file=sys.stderr),
        )


def _log_nothing() -> None:
    """Stand in for TensorBoard's log."""


def _show_step(bar: Any, report: StepReport) -> None:
    """Move the bar; the time left is the bar's own estimate."""
    if bar.total != report.steps:
        bar.total = report.steps
        bar.initial = bar.n = report.step - 1
    bar.set_description(f"epoch {report.epoch}/{report.epochs}", refresh=False)
    if report.loss is not None:
        bar.set_postfix_str(
            f"loss {report.loss:.3f}, accuracy {report.accuracy:.1%}, "
            f"{report.images_per_second:,.0f} images/s",
            refresh=False,
        )
    bar.update(report.step - bar.n)


def _show_epoch(
    bar: Any, config: TrainConfig, metrics: dict[str, Any], log: Callable[[], None]
) -> None:
    """One line a finished epoch."""
    bar.write(_epoch_line(config, metrics), file=sys.stderr)
    log()


def _epoch_line(config: TrainConfig, metrics: dict[str, Any]) -> str:
    shown = [f"epoch {metrics['epoch']:>3}/{config.epochs}"]
    shown.append(f"loss {list(metrics['losses'].values())[-1]:.4f}")
    shown.append(f"training {list(metrics['accuracies'].values())[-1]:.1%}")
    for split in ("validation", "test"):
        if f"{split}_accuracy" in metrics:
            shown.append(f"{split} {metrics[f'{split}_accuracy']:.1%}")
    shown.append(f"{metrics['images_per_second']:,.0f} images/s")
    return "  ".join(shown)
