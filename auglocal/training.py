"""Training: a configuration and a folder in, a run folder with a checkpoint out.

Every draw derives from (seed, epoch, step), and everything that carries over from step to step is
in resume.pt; so a run that was killed and resumed ends as the run that was not.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from auglocal.batches import (
    Normalisation,
    channel_statistics,
    normalise,
    num_batches,
    training_batches,
)
from auglocal.checkpoint import (
    CheckpointMetadata,
    package_versions,
    save_backbone,
    save_checkpoint,
)
from auglocal.config import TrainConfig
from auglocal.data import Dataset, load_dataset
from auglocal.device import choose_device
from auglocal.errors import InputError, WorkError, writing
from auglocal.evaluation import Accuracy, evaluate, evaluate_blocks
from auglocal.network import OUTPUT_BLOCK, LocalNetwork
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
from auglocal.splits import Split

# Reading a loss off an accelerator waits for it; NaN is looked for this often, and at epoch ends.
STEPS_BETWEEN_CHECKS = 20
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class DeviceSplit:
    """A split on the device: images uint8 (N, C, H, W) and labels int64 (N,)."""

    images: Tensor
    labels: Tensor


@dataclass(frozen=True)
class Material:
    """What a run learns from, and how its images are normalised."""

    dataset: Dataset
    splits: dict[str, DeviceSplit]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def num_classes(self) -> int:
        """K."""
        return len(self.dataset.classes)

    @property
    def input_size(self) -> tuple[int, int, int]:
        """(C, H, W) of one image."""
        channels, height, width = self.splits["train"].images.shape[1:]
        return channels, height, width

    @property
    def normalisation(self) -> Normalisation:
        """How its images are normalised."""
        return Normalisation(self.mean, self.std)

    def normalise(self, pixels: Tensor) -> Tensor:
        """Images uint8 (N, C, H, W) -> normalised float32 of the same shape."""
        return normalise(pixels, self.mean, self.std)

    def steps_per_epoch(self, batch_size: int) -> int:
        """Batches in one pass over the training images."""
        return num_batches(len(self.splits["train"].images), batch_size)


@dataclass
class State:
    """What carries over from step to step.

    Attributes:
        epoch: epochs completed.
        step: steps done of the epoch in progress.
        losses, correct: (B,) sums over the epoch's images, by block, on the device.
        images: images seen in the epoch.
        seconds: time spent in the epoch's steps.
        best: highest validation accuracy so far.
    """

    network: LocalNetwork
    optimizer: torch.optim.Optimizer
    losses: Tensor
    correct: Tensor
    epoch: int = 0
    step: int = 0
    images: int = 0
    seconds: float = 0.0
    best: float | None = None

    def reset_sums(self) -> None:
        """Begin an epoch's sums."""
        self.losses.zero_()
        self.correct.zero_()
        self.step, self.images, self.seconds = 0, 0, 0.0


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
        for warning in thread_warnings(saved):
            listener.on_warning(warning)
    remove_leftovers(folder.path)
    cut_metrics(folder, state.epoch)
    if state.epoch == 0 and state.step == 0:
        if 0 in config.snapshot_epochs:
            save_snapshot(config, material, state, folder, measure(config, material, state))
        save_run_state(folder, config, state)
    steps_per_epoch = material.steps_per_epoch(config.batch_size)
    while state.epoch < config.epochs:
        finished = run_epoch(config, material, state, listener, steps_per_epoch)
        if not finished:
            save_run_state(folder, config, state)
            return False
        metrics = close_epoch(config, material, state, folder, steps_per_epoch)
        listener.on_epoch(metrics)
    return True


def prepare_material(config: TrainConfig, *, download: bool) -> Material:
    """Load the data onto the device.

    Args:
        config: names data and device.
        download: fetch the data set if it is not there.

    Raises:
        InputError: the device or the data is not there, or the data cannot be learned from.
        WorkError: a download failed.
    """
    device = choose_device(config.device)
    dataset = load_dataset(
        config.dataset,
        folder=config.data_folder,
        download=download,
        image_size=config.image_size,
        title=config.dataset_title,
        validation_samples=config.validation_samples,
        skip_corrupt=config.skip_corrupt,
    )
    splits = {name: _to_device(split, device) for name, split in dataset.splits.items()}
    images = splits["train"].images
    if num_batches(len(images), config.batch_size) == 0:
        raise InputError(f"{dataset.title} has too few training images to learn from.")
    if splits["test"].images.shape[1:] != images.shape[1:]:
        raise InputError(
            f"Training and test images of {dataset.title} differ in size; give --image-size."
        )
    mean, std = dataset.mean, dataset.std
    if mean is None or std is None:
        mean, std = channel_statistics(images)
    return Material(dataset, splits, mean, std)


def _to_device(split: Split, device: torch.device) -> DeviceSplit:
    return DeviceSplit(split.images.to(device), split.labels.to(device))


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
        load_pretrained(network.backbone, config.architecture, config.pretrained)
    state = make_state(config, network, material.splits["train"].images.device)
    if saved is not None:
        unpack_state(state, saved)
    return state


def make_state(config: TrainConfig, network: LocalNetwork, device: torch.device) -> State:
    """A network on its device, with a fresh optimizer."""
    network = network.to(device).to(memory_format=memory_format(config))
    optimizer = torch.optim.SGD(
        network.parameters(),
        lr=config.learning_rate,
        momentum=config.momentum,
        weight_decay=config.weight_decay,
        nesterov=config.momentum > 0,
    )
    losses = torch.zeros(len(network.blocks), device=device)
    return State(network, optimizer, losses, torch.zeros_like(losses))


def memory_format(config: TrainConfig) -> torch.memory_format:
    """Layout of images and weights."""
    return torch.channels_last if config.channels_last else torch.contiguous_format


def pack_state(state: State) -> dict[str, Any]:
    """Tensors and plain values that `unpack_state` reads back."""
    return {
        "epoch": state.epoch,
        "step": state.step,
        "images": state.images,
        "seconds": state.seconds,
        "best": state.best,
        "losses": state.losses,
        "correct": state.correct,
        "network": state.network.state_dict(),
        "optimizer": state.optimizer.state_dict(),
    }


def unpack_state(state: State, saved: dict[str, Any]) -> None:
    """Put back what `pack_state` gave.

    Raises:
        InputError: it belongs to another network.
    """
    try:
        state.network.load_state_dict(saved["network"])
        state.optimizer.load_state_dict(saved["optimizer"])
        state.losses.copy_(saved["losses"])
        state.correct.copy_(saved["correct"])
        for name in ("epoch", "step", "images", "seconds", "best"):
            setattr(state, name, saved[name])
    except (KeyError, RuntimeError, ValueError, TypeError) as error:
        raise InputError(
            "The saved state does not fit the run's configuration; restore its config.json, or "
            "start again with --overwrite."
        ) from error


def run_epoch(
    config: TrainConfig,
    material: Material,
    state: State,
    listener: Listener,
    steps_per_epoch: int,
) -> bool:
    """Train to the end of the epoch in progress; False when the listener asked to stop."""
    train_split = material.splits["train"]
    schedule = SCHEDULES[config.schedule]
    batches = training_batches(
        train_split.images,
        train_split.labels,
        config.batch_size,
        seed=config.seed,
        epoch=state.epoch,
        first_step=state.step,
        augmentation=material.dataset.augmentation if config.augment else None,
    )
    state.network.train()
    for pixels, labels in batches:
        if listener.should_stop():
            check_losses(state)
            return False
        started = time.perf_counter()
        step = state.epoch * steps_per_epoch + state.step
        rate = schedule(step, steps_per_epoch, config.epochs, config.learning_rate)
        # Dropout and the like draw from the global generator.
        torch.manual_seed(derive_seed(config.seed, "step", state.epoch, state.step))
        images = material.normalise(pixels).to(memory_format=memory_format(config))
        train_step(state, images, labels, rate, **step_options(config))
        state.seconds += time.perf_counter() - started
        check = state.step % STEPS_BETWEEN_CHECKS == 0
        if check:
            check_losses(state)
        listener.on_step(_step_report(config, state, steps_per_epoch, read=check))
    check_losses(state)
    return True


def train_step(
    state: State,
    images: Tensor,
    labels: Tensor,
    rate: float,
    precision: torch.dtype = torch.float32,
    *,
    recompute: bool = False,
    step_per_block: bool = False,
) -> None:
    """One batch: every block's loss backward at once, then a step of the optimizer.

    Args:
        state: its network, optimizer and sums change.
        images: normalised, float, (N, C, H, W).
        labels: int64, (N,).
        rate: learning rate of this step.
        precision: of the forward passes, see `LocalNetwork.local_losses`.
        recompute: as `recompute_blocks` there.
        step_per_block: step a block's weights right after its backward. No block's weights are in
            another's loss, so the result is that of one step at the end.
    """
    for group in state.optimizer.param_groups:
        group["lr"] = rate
    state.optimizer.zero_grad(set_to_none=True)
    losses, correct = [], []
    for _, loss, logits in state.network.local_losses(
        images, labels, precision, recompute_blocks=recompute
    ):
        loss.backward()  # type: ignore[no-untyped-call]
        if step_per_block:
            _apply_gradients(state.optimizer)
        losses.append(loss.detach())
        correct.append((logits.argmax(dim=1) == labels).sum())
    _apply_gradients(state.optimizer)
    state.losses += torch.stack(losses) * len(labels)
    state.correct += torch.stack(correct)
    state.images += len(labels)
    state.step += 1


def _apply_gradients(optimizer: torch.optim.Optimizer) -> None:
    """Step the parameters that have a gradient, and free it; the others stay as they are."""
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def step_options(config: TrainConfig) -> dict[str, Any]:
    """How a run takes its steps: the options of `train_step`."""
    return {
        "precision": PRECISIONS[config.precision],
        "recompute": config.recompute,
        "step_per_block": config.step_per_block,
    }


def check_losses(state: State) -> None:
    """Stop a run whose loss is no number; the first such block is where it began.

    Raises:
        WorkError: naming the block.
    """
    finite = torch.isfinite(state.losses).tolist()
    if all(finite):
        return
    name = state.network.block_names[finite.index(False)]
    raise WorkError(
        f"The loss of block {name} became NaN or infinite in epoch {state.epoch + 1}, step "
        f"{state.step}; start again with a smaller --learning-rate (the last good state is kept)."
    )


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
) -> dict[str, Any]:
    """Evaluate, write the epoch's files, and commit them by writing resume.pt last."""
    metrics = _epoch_metrics(config, state, steps_per_epoch)
    state.epoch += 1
    state.reset_sums()
    accuracies = measure(config, material, state)
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


def measure(config: TrainConfig, material: Material, state: State) -> dict[str, SplitAccuracy]:
    """Accuracies by split: of the backbone, and of every block at snapshots and at the end."""
    every_block = state.epoch in (*config.snapshot_epochs, config.epochs)
    measured: dict[str, SplitAccuracy] = {}
    for name in ("validation", "test"):
        if name not in material.splits:
            continue
        split = material.splits[name]
        images = (split.images, split.labels, material.mean, material.std)
        if every_block:
            by_block = evaluate_blocks(state.network, *images)
            local = {block: accuracy.value for block, accuracy in by_block.items()}
            measured[name] = SplitAccuracy(by_block[OUTPUT_BLOCK], local)
        else:
            measured[name] = SplitAccuracy(evaluate(state.network.backbone, *images))
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
    save_state(folder, {**pack_state(state), **describe_run(config)})


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
