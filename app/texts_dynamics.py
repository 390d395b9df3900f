"""What is known of layers along training, in words and tables."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from analysis.dynamics import DynamicsMap
from app import texts

if TYPE_CHECKING:
    from app.sources.dynamics import Run

COLUMNS = ("run", "measure", "against", "epoch", "layer", "value", "low", "high", "reason")
NEAR = 0.9  # a CKA with its end from which on a layer hardly changes
NO_SNAPSHOTS = (
    "keeps fewer than two snapshots, so its layers cannot be compared along training. Train with "
    "`--snapshot-epochs 0,1,2,4,8`, say; with `--snapshot-dtype fp16` they take half the room."
)


def maps_csv(parts: Mapping[str, DynamicsMap]) -> str:
    """Maps as a table: a line a run, epoch and layer; undefined values stay empty."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(COLUMNS)
    for name, part in parts.items():
        for row, epoch in enumerate(part.trajectory.epochs):
            for column, layer in enumerate(part.layers):
                numbers = [
                    repr(float(values[row, column])) if math.isfinite(values[row, column]) else ""
                    for values in (part.values, part.low, part.high)
                ]
                reason = part.undefined.get((row, column), "")
                writer.writerow(
                    [name, part.measure, part.against or "", epoch, layer, *numbers, reason]
                )
    return stream.getvalue()


def run_line(run: Run) -> str:
    """One line on a run: what it is, how far it came, what it kept; markdown-safe."""
    parts = [f"**{texts.plain(run.name)}**"]
    if run.config.get("architecture"):
        parts.append(texts.plain(run.config["architecture"]))
    planned = run.config.get("epochs")
    if run.lines and isinstance(planned, int):
        done = f"{len(run.lines)} of {planned} epochs"
        parts.append(done if run.is_finished else f"{done}, still training or stopped")
    if run.epochs:
        parts.append(f"snapshots after epochs {', '.join(map(str, run.epochs))}")
    last = run.lines[-1].get("test_accuracy") if run.lines else None
    if isinstance(last, float):
        parts.append(f"test accuracy {texts.percent(last)}")
    return "; ".join(parts)


def ends(runs: Sequence[Run]) -> str:
    """What the end of each run is, where that is not its last epoch; markdown-safe."""
    early = [
        f"the end of {texts.plain(run.name)} is its last snapshot, after epoch {run.epochs[-1]} of "
        f"{run.config['epochs']}"
        for run in runs
        if isinstance(run.config.get("epochs"), int) and run.epochs[-1] < run.config["epochs"]
    ]
    return f"Mind that {' and '.join(early)}." if early else ""


def arrival(
    values: npt.NDArray[np.floating], epochs: Sequence[int], level: float = NEAR
) -> int | None:
    """The epoch from which on a layer's CKA with its end, (E,), stays at or above `level`.

    None where no value of its end is known.
    """
    if not math.isfinite(values[-1]):
        return None
    row = len(values) - 1
    while row > 0 and values[row - 1] >= level:
        row -= 1
    return epochs[row]


def slowest(part: DynamicsMap, name: str, level: float = NEAR) -> str:
    """One sentence on when layers come near their end; markdown-safe."""
    epochs = part.trajectory.epochs
    found = {
        layer: arrival(part.values[:, column], epochs, level)
        for column, layer in enumerate(part.layers)
    }
    arrived = {layer: epoch for layer, epoch in found.items() if epoch is not None}
    if not arrived:
        return ""
    first = min(arrived, key=lambda layer: arrived[layer])
    last = max(arrived, key=lambda layer: arrived[layer])
    start = f"In {texts.plain(name)}, "
    if arrived[first] == arrived[last]:
        return f"{start}all layers stay above a CKA of {level:g} from epoch {arrived[first]} on."
    return (
        f"{start}{texts.plain(first)} stays above a CKA of {level:g} with its end from epoch "
        f"{arrived[first]} on, {texts.plain(last)} only from epoch {arrived[last]} on."
    )
