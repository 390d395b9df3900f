"""`python -m auglocal evaluate`: the accuracy of a checkpoint's backbone, with its interval."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from auglocal.batches import BatchedSplit, EvaluatedSplit
from auglocal.checkpoint import Checkpoint, CheckpointMetadata, check_file, load_checkpoint
from auglocal.commands.parallel import DEFAULT_TIMEOUT, first_rank_speaks
from auglocal.commands.shared import (
    CHOICES,
    DONE,
    add_config_options,
    given_config,
    report_skipped,
)
from auglocal.config import TrainConfig
from auglocal.data import SOURCES, Dataset, load_dataset
from auglocal.device import choose_device
from auglocal.errors import InputError
from auglocal.evaluation import Accuracy, evaluate
from auglocal.material import place_splits
from auglocal.parallel.evaluation import SharedSplit, add_up
from auglocal.parallel.layout import Layout
from auglocal.parallel.team import joined, num_processes
from auglocal.pretrained import is_checkpoint

# Where the options of a training run mean something else here, or have another default.
HELP = {
    "dataset": f"data to measure on: {', '.join(CHOICES['dataset'])} (default: the data that the "
    "checkpoint was trained on)",
    "image_size": "resize the images of a folder to this many pixels (default: the checkpoint's)",
    "stream": "decode image files while measuring; otherwise they are held in memory if they fit",
    "validation_samples": "training images held out as the validation split (digits 100, others 0)",
}


def add_evaluate(commands: Any) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        "evaluate",
        help="accuracy of a checkpoint's backbone, with a 95%% interval",
        description="Measure a checkpoint's accuracy; auxiliary networks do not run. The processes "
        "that torchrun starts share out the images.",
    )
    parser.set_defaults(command=run_evaluate)
    parser.add_argument("checkpoint", type=Path, help="a .safetensors file")
    parser.add_argument("--split", default="test", help="train, validation or test (default: test)")
    names = ["dataset", "image_size", "dataset_title", "validation_samples", "skip_corrupt"]
    names += ["data_folder", "device", "stream", "workers"]
    add_config_options(parser, names, help_by_name=HELP)
    parser.add_argument(
        "--batch-size", type=int, default=500, help="images at a time (default: 500)"
    )
    parser.add_argument("--download", action="store_true", help="fetch the data set if need be")
    parser.add_argument("--json", action="store_true", help="print one JSON document")


def run_evaluate(options: argparse.Namespace) -> int:
    """Measure a checkpoint's accuracy on a split, and print it; under torchrun, on rank 0."""
    if num_processes() > 1:
        return _evaluate_in_team(options)
    subject = _prepare(options, choose_device(getattr(options, "device", "auto")))
    report_skipped(subject.dataset)
    accuracy = _measure(subject, subject.split, options, show=True)
    _print_accuracy(accuracy, subject.dataset, options)
    return DONE


def _evaluate_in_team(options: argparse.Namespace) -> int:
    """The same as one rank of several, each of which reads some of the batches."""
    layout = Layout(data=num_processes())
    device = getattr(options, "device", "auto")
    with first_rank_speaks():
        if device != "auto":
            choose_device(device)
    with joined(layout, DEFAULT_TIMEOUT, device) as team:
        subject = team.local_first(lambda: _prepare(options, torch.device(team.device_kind)))
        if team.is_first:
            report_skipped(subject.dataset)
        share = SharedSplit(
            subject.split, team.rank, layout.size, team.watch.progress, options.batch_size
        )
        accuracy = add_up(team, _measure(subject, share, options, show=team.is_first))
    if team.is_first:
        _print_accuracy(accuracy, subject.dataset, options)
    return DONE


@dataclass(frozen=True)
class Subject:
    """A checkpoint, and the split of a data set that it is measured on; on a device."""

    checkpoint: Checkpoint
    dataset: Dataset
    split: EvaluatedSplit
    device: torch.device


def _prepare(options: argparse.Namespace, device: torch.device) -> Subject:
    """Read what the options name, and see that it goes together."""
    checkpoint = _load(options.checkpoint)
    config = _make_config(checkpoint.metadata, options)
    dataset = load_dataset(
        config.dataset,
        folder=config.data_folder,
        download=options.download,
        image_size=config.image_size or checkpoint.metadata.input_size[1],
        title=config.dataset_title,
        validation_samples=config.validation_samples,
        skip_corrupt=config.skip_corrupt,
    )
    _require_split(checkpoint.metadata, dataset, options)
    dataset = replace(dataset, splits={options.split: dataset.splits[options.split]})
    splits = place_splits(dataset, device, stream=config.stream, num_workers=config.workers)
    split = splits[options.split]
    _require_size(checkpoint.metadata, dataset, split, options)
    return Subject(checkpoint, dataset, split, device)


def _measure(
    subject: Subject, split: EvaluatedSplit, options: argparse.Namespace, *, show: bool
) -> Accuracy:
    """Answers on a split or a share of it, under a progress bar where it is to be shown."""
    metadata = subject.checkpoint.metadata
    with tqdm(
        total=len(split), unit="image", file=sys.stderr, leave=False, disable=not show
    ) as bar:
        return evaluate(
            subject.checkpoint.build_backbone().to(subject.device),
            split,
            metadata.mean,
            metadata.std,
            batch_size=options.batch_size,
            report=bar.update,
        )


def _load(path: Path) -> Checkpoint:
    """A checkpoint of ours; other files do not say how their images were normalised."""
    check_file(path)
    if not is_checkpoint(path):
        raise InputError(
            f"{path.name} was not written by this project, and does not say how its images were "
            "normalised; make a checkpoint of it with `python -m analysis convert FILE --out "
            "NEW.safetensors`, and evaluate that."
        )
    return load_checkpoint(path)


def _make_config(metadata: CheckpointMetadata, options: argparse.Namespace) -> TrainConfig:
    """The options given; the data set is the one trained on where it can be loaded by name."""
    if options.batch_size < 1:
        raise InputError(f"The batch size must be at least 1, not {options.batch_size}.")
    given = given_config(options)
    given.setdefault("dataset", metadata.config.get("dataset"))
    if "dataset" not in given_config(options) and given["dataset"] not in SOURCES:
        raise InputError(
            f"{options.checkpoint.name} was trained on {metadata.dataset}, which is not known by "
            "name here; give --dataset, imagefolder:PATH say."
        )
    return TrainConfig(**given)


def _require_split(
    metadata: CheckpointMetadata, dataset: Dataset, options: argparse.Namespace
) -> None:
    """Refuse a split that is not there, or whose classes the network was not made for."""
    if options.split not in dataset.splits:
        raise InputError(
            f"{dataset.title} has no split {options.split!r}; choose one of "
            f"{', '.join(dataset.splits)}."
        )
    if dataset.classes != metadata.classes:
        raise InputError(
            f"{options.checkpoint.name} tells {metadata.num_classes} classes apart "
            f"({', '.join(metadata.classes[:3])}, ...) and {dataset.title} has others "
            f"({', '.join(dataset.classes[:3])}, ...); give --dataset the data it was trained for."
        )


def _require_size(
    metadata: CheckpointMetadata,
    dataset: Dataset,
    split: BatchedSplit,
    options: argparse.Namespace,
) -> None:
    """Refuse images that the network was not made for."""
    if split.image_shape != metadata.input_size:
        raise InputError(
            f"{options.checkpoint.name} takes images of {metadata.input_size} and {dataset.title} "
            f"has {split.image_shape}; give another --dataset or an --image-size."
        )


def _print_accuracy(accuracy: Accuracy, dataset: Dataset, options: argparse.Namespace) -> None:
    low, high = accuracy.interval
    if options.json:
        values = {"accuracy": accuracy.value, "low": low, "high": high}
        print(json.dumps({**values, "samples": accuracy.samples, "split": options.split}))
        return
    print(
        f"{accuracy.value:.4f} accuracy on {accuracy.samples:,} images of {dataset.title} "
        f"({options.split}), 95% interval {low:.4f} to {high:.4f}"
    )
