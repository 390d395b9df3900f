"""Training: a configuration and a folder in, a run folder with a checkpoint out.

Every draw derives from (seed, epoch, step), and everything that carries over from step to step is
in resume.pt; so a run that was killed and resumed ends as the run that was not.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from auglocal.acceleration import Stepper, plain_modules
from auglocal.checkpoint import (
    CheckpointMetadata,
    package_versions,
    save_backbone,
    save_checkpoint,
)
from auglocal.config import TrainConfig
from auglocal.errors import writing
from auglocal.evaluation import Accuracy, evaluate, evaluate_blocks
from auglocal.material import Material
from auglocal.network import OUTPUT_BLOCK
from auglocal.pretrained import load_pretrained
from auglocal.randomness import derive_seed
from auglocal.resumption import check_same_run, describe_run, thread_warnings
from auglocal.rules.registry import build_network
from auglocal.runs import (
    RunFolder,
    append_metrics,
    cut_metrics,
    load_state,
    remove_leftovers,
    save_state,
)
from auglocal.schedule import SCHEDULES
from auglocal.step import (
    State,
    check_losses,
    make_state,
    memory_format,
    pack_state,
    unpack_state,
)

# Reading a loss off an accelerator waits for it; NaN is looked for this often, and at epoch ends.
STEPS_BETWEEN_CHECKS = 20


@dataclass(frozen=True)
class StepReport:
    """Where a run is, for a progress bar.

    Attributes:
        epoch, epochs: epoch in progress from 1, and how many there are.
        step, steps: steps done of the whole run, and how many there are.
        loss, accuracy: of the last block, over the epoch so far; None when not read this time.
        images_per_second: over the epoch so far.
    """

    epoch: int
    epochs: int
    step: int
    steps: int
    loss: float | None
    accuracy: float | None
    images_per_second: float


@dataclass
class Listener:
    """What the caller wants to hear, and whether it wants to stop."""

    on_step: Callable[[StepReport], None] = field(default=lambda report: None)
    on_epoch: Callable[[dict[str, Any]], None] = field(default=lambda metrics: None)
    should_stop: Callable[[], bool] = field(default=lambda: False)
    on_warning: Callable[[str], None] = field(default=lambda text: print(text, file=sys.stderr))


def train(config: TrainConfig, material: Material, folder: RunFolder, listener: Listener) -> bool:
    """Train until the last epoch, going on from the folder's resume.pt if there is one.

    Args:
        config: what to do.
        material: what to learn from, see `prepare_material`.
        folder: a run folder whose config.json says the same.
        listener: hears of steps and epochs; may ask to stop after a batch.

    Returns:
        True when the run is complete, False when it was stopped; both leave everything saved.

    Raises:
        InputError: the saved state does not fit.
        WorkError: a loss became NaN or infinite, or a file could not be written; what was saved
            before stays.
    """
    saved = load_state(folder)
    if saved is not None:
        check_same_run(config, saved)
    state = prepare_state(config, material, saved)
    if saved is not None and state.losses.device.type == "cpu":
        for warning in thread_warnings(config, state.network, saved):
            listener.on_warning(warning)
    remove_leftovers(folder.path)
    cut_metrics(folder, state.epoch)
    if state.epoch == 0 and state.step == 0:
        if 0 in config.snapshot_epochs:
            save_snapshot(
                config, material, state, folder, measure_accuracies(config, material, state)
            )
        save_run_state(folder, config, state)
    steps_per_epoch = material.steps_per_epoch(config.batch_size)
    stepper = Stepper(config, state, listener.on_warning)
    with contextlib.closing(stepper):
        while state.epoch < config.epochs:
            finished = run_epoch(config, material, state, listener, steps_per_epoch, stepper)
            if not finished:
                save_run_state(folder, config, state)
                return False
            with plain_modules():
                metrics = close_epoch(config, material, state, folder, steps_per_epoch)
            listener.on_epoch(metrics)
    return True


def prepare_state(config: TrainConfig, material: Material, saved: dict[str, Any] | None) -> State:
    """A fresh network and optimizer, or those that were saved."""
    network = build_network(
        config.architecture,
        config.make_rule(),
        material.num_classes,
        material.input_size,
        config.seed,
        width=config.width,
        normalisation=material.normalisation,
    )
    if saved is None and config.pretrained is not None:
        load_pretrained(
            network.backbone, config.architecture, config.pretrained, network.auxiliaries
        )
    state = make_state(config, network, material.device)
    if saved is not None:
        unpack_state(state, saved)
    return state


def run_epoch(
    config: TrainConfig,
    material: Material,
    state: State,
    listener: Listener,
    steps_per_epoch: int,
    stepper: Stepper,
) -> bool:
    """Train to the end of the epoch in progress; False when the listener asked to stop."""
    schedule = SCHEDULES[config.schedule]
    batches = material.training.training_batches(
        config.batch_size,
        seed=config.seed,
        epoch=state.epoch,
        first_step=state.step,
        augmentation=material.dataset.augmentation if config.augment else None,
    )
    state.network.train()
    started = time.perf_counter()
    for pixels, labels in batches:
        if listener.should_stop():
            check_losses(state)
            return False
        step = state.epoch * steps_per_epoch + state.step
        rate = schedule(step, steps_per_epoch, config.epochs, config.learning_rate)
        # Dropout and the like draw from the global generator.
        torch.manual_seed(derive_seed(config.seed, "step", state.epoch, state.step))
        images = material.normalise(pixels).to(
            memory_format=memory_format(config, state.losses.device)
        )
        stepper.step(images, labels, rate)
        state.seconds += time.perf_counter() - started
        check = state.step % STEPS_BETWEEN_CHECKS == 0
        if check:
            check_losses(state)
        listener.on_step(_step_report(config, state, steps_per_epoch, read=check))
        started = time.perf_counter()  # what comes next, waiting for a batch, is part of a step
    check_losses(state)
    return True


def _step_report(
    config: TrainConfig, state: State, steps_per_epoch: int, *, read: bool
) -> StepReport:
    return StepReport(
        epoch=state.epoch + 1,
        epochs=config.epochs,
        step=state.epoch * steps_per_epoch + state.step,
        steps=config.epochs * steps_per_epoch,
        loss=float(state.losses[-1]) / state.images if read else None,
        accuracy=float(state.correct[-1]) / state.images if read else None,
        images_per_second=state.images / max(state.seconds, 1e-9),
    )


def close_epoch(
    config: TrainConfig,
    material: Material,
    state: State,
    folder: RunFolder,
    steps_per_epoch: int,
    *,
    measure: Measure | None = None,
    extra: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Evaluate, write the epoch's files, and commit them by writing resume.pt last.

    Args:
        config: of the run.
        material: what it learns from.
        state: goes on to the next epoch.
        folder: where the files go.
        steps_per_epoch: batches of an epoch.
        measure: how to evaluate; None is `measure_accuracies`.
        extra: what else the epoch's line in metrics.jsonl shall say.
    """
    metrics = {**_epoch_metrics(config, state, steps_per_epoch), **(extra or {})}
    state.epoch += 1
    state.reset_sums()
    accuracies = (measure or measure_accuracies)(config, material, state)
    for split, accuracy in accuracies.items():
        metrics[f"{split}_accuracy"] = accuracy.backbone.value
        if accuracy.local is not None:
            metrics[f"{split}_local_accuracies"] = accuracy.local
    append_metrics(folder, metrics)
    metadata = describe_network(config, material, state.epoch, accuracies)
    save_checkpoint(folder.checkpoint, state.network, metadata)
    if "validation" in accuracies:
        value = accuracies["validation"].backbone.value
        if state.best is None or value > state.best:
            state.best = value
            save_checkpoint(folder.best, state.network, metadata)
    if state.epoch in config.snapshot_epochs:
        save_snapshot(config, material, state, folder, accuracies)
    save_run_state(folder, config, state)
    return metrics


@dataclass(frozen=True)
class SplitAccuracy:
    """On one split: the backbone's accuracy, and every block's in [0, 1] where measured."""

    backbone: Accuracy
    local: dict[str, float] | None = None


Measure = Callable[[TrainConfig, Material, State], dict[str, SplitAccuracy]]


def measure_accuracies(
    config: TrainConfig, material: Material, state: State
) -> dict[str, SplitAccuracy]:
    """Accuracies by split: of the backbone, and of every block at snapshots and at the end."""
    every_block = tests_every_block(config, state)
    return as_split_accuracies(count_answers(config, material, state), every_block=every_block)


def tests_every_block(config: TrainConfig, state: State) -> bool:
    """Whether the auxiliary networks are tested too, as they are at snapshots and at the end."""
    return state.epoch in (*config.snapshot_epochs, config.epochs)


def count_answers(
    config: TrainConfig, material: Material, state: State
) -> dict[str, dict[str, Accuracy]]:
    """Right answers by split and block; of the backbone alone where that is all to be tested."""
    counted = {}
    for name in ("validation", "test"):
        if name not in material.evaluated:
            continue
        images = (material.evaluated[name], material.mean, material.std)
        if tests_every_block(config, state):
            counted[name] = evaluate_blocks(state.network, *images)
        else:
            counted[name] = {OUTPUT_BLOCK: evaluate(state.network.backbone, *images)}
    return counted


def as_split_accuracies(
    counted: Mapping[str, Mapping[str, Accuracy]], *, every_block: bool
) -> dict[str, SplitAccuracy]:
    """Counts by split and block as fractions."""
    measured = {}
    for split, by_block in counted.items():
        local = {block: accuracy.value for block, accuracy in by_block.items()}
        measured[split] = SplitAccuracy(by_block[OUTPUT_BLOCK], local if every_block else None)
    return measured


def save_snapshot(
    config: TrainConfig,
    material: Material,
    state: State,
    folder: RunFolder,
    accuracies: dict[str, SplitAccuracy],
) -> None:
    """Keep the backbone as it is after `state.epoch` epochs."""
    path = folder.snapshot(state.epoch)
    with writing(path.parent):
        path.parent.mkdir(exist_ok=True)
    metadata = describe_network(config, material, state.epoch, accuracies)
    save_backbone(
        path, state.network.backbone, replace(metadata, weights_dtype=config.snapshot_dtype)
    )


def save_run_state(folder: RunFolder, config: TrainConfig, state: State) -> None:
    """Commit what was done so far."""
    save_state(folder, {**pack_state(state), **describe_run(config, state.network)})


def _epoch_metrics(
    config: TrainConfig,
    state: State,
    steps_per_epoch: int,
) -> dict[str, Any]:
    """The training part of the epoch's line in metrics.jsonl, by block and as a whole."""
    names = state.network.block_names
    last_step = (state.epoch + 1) * steps_per_epoch - 1
    rate = SCHEDULES[config.schedule](
        last_step, steps_per_epoch, config.epochs, config.learning_rate
    )
    return {
        "epoch": state.epoch + 1,
        "losses": dict(zip(names, (state.losses / state.images).tolist())),
        "accuracies": dict(zip(names, (state.correct / state.images).tolist())),
        "learning_rate": rate,
        "seconds": round(state.seconds, 3),
        "images_per_second": round(state.images / max(state.seconds, 1e-9), 1),
        "peak_memory": peak_memory(state.losses.device),
    }


def peak_memory(device: torch.device) -> int | None:
    """Most bytes in use so far: allocated on a CUDA device, resident in the process elsewhere.

    None where the system does not say.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "win32":
        return None
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def describe_network(
    config: TrainConfig, material: Material, epoch: int, accuracies: dict[str, SplitAccuracy]
) -> CheckpointMetadata:
    """What a checkpoint of this run says about itself."""
    test = accuracies["test"].backbone
    dataset = material.dataset
    return CheckpointMetadata(
        architecture=config.architecture,
        num_classes=material.num_classes,
        input_size=material.input_size,
        mean=material.mean,
        std=material.std,
        classes=dataset.classes,
        dataset=dataset.title,
        rule=config.rule,
        rule_options=config.rule_options(),
        epoch=epoch,
        accuracy={"value": test.value, "split": "test", "samples": test.samples},
        resize=dataset.resize,
        interpolation=dataset.interpolation,
        seed=config.seed,
        config=config.portable(),
        versions=package_versions(),
        width=config.width,
        local_accuracies=accuracies["test"].local,
    )
