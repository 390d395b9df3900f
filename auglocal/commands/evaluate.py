"""`python -m auglocal evaluate`: the accuracy of a checkpoint's backbone, with its interval."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from auglocal.batches import BatchedSplit
from auglocal.checkpoint import Checkpoint, CheckpointMetadata, check_file, load_checkpoint
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
        description="Measure a checkpoint's accuracy; auxiliary networks do not run.",
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
    """Measure a checkpoint's accuracy on a split, and print it."""
    checkpoint = _load(options.checkpoint)
    config = _make_config(checkpoint.metadata, options)
    device = choose_device(config.device)
    dataset = load_dataset(
        config.dataset,
        folder=config.data_folder,
        download=options.download,
        image_size=config.image_size or checkpoint.metadata.input_size[1],
        title=config.dataset_title,
        validation_samples=config.validation_samples,
        skip_corrupt=config.skip_corrupt,
    )
    report_skipped(dataset)
    _require_split(checkpoint.metadata, dataset, options)
    dataset = replace(dataset, splits={options.split: dataset.splits[options.split]})
    splits = place_splits(dataset, device, stream=config.stream, num_workers=config.workers)
    split = splits[options.split]
    _require_size(checkpoint.metadata, dataset, split, options)
    with tqdm(total=len(split), unit="image", file=sys.stderr, leave=False) as bar:
        accuracy = evaluate(
            checkpoint.build_backbone().to(device),
            split,
            checkpoint.metadata.mean,
            checkpoint.metadata.std,
            batch_size=options.batch_size,
            report=bar.update,
        )
    _print_accuracy(accuracy, dataset, options)
    return DONE


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
