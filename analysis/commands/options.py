"""Options that several commands share, and the request that they make."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from analysis.choices import Choices
from analysis.request import (
    DEFAULT_BATCH_SIZE,
    DEFAULT_NEIGHBOURS,
    DEFAULT_SHUFFLES,
    ESTIMATORS,
    KERNELS,
    PRECISIONS,
)

FLATTENED = "none"
UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30}


def add_file_options(parser: argparse.ArgumentParser) -> None:
    """How to read a file that this project did not write."""
    add = parser.add_argument
    add(
        "--architecture",
        metavar="NAME",
        help="of those that fit the file (default: the likeliest; `inspect` lists the others)",
    )
    add("--state", metavar="NAME", help="the weights to take where a file holds several")
    add_limit_option(parser)


def add_limit_option(parser: argparse.ArgumentParser) -> None:
    """How much a file may take."""
    parser.add_argument(
        "--max-bytes",
        type=num_bytes,
        default=4 * 2**30,
        metavar="BYTES",
        help="refuse larger files, and tensors of more (default: 4G)",
    )


def file_choices(options: argparse.Namespace) -> Choices:
    """What the options say about a file; commands that open several say nothing of each."""
    return Choices(
        state=getattr(options, "state", None), architecture=getattr(options, "architecture", None)
    )


def add_image_options(parser: argparse.ArgumentParser) -> None:
    """Which images, on what device."""
    add = parser.add_argument
    add("--dataset", help="digits, cifar10, ..., imagefolder:PATH (default: the checkpoints' own)")
    add("--split", default="test", help="test, validation or train (default: test)")
    add("--samples", type=int, metavar="N", help="random images of it (default: 1000, or all)")
    add("--seed", type=int, default=0, help="decides which images (default: 0)")
    add("--balanced", action="store_true", help="as many images of each class")
    add(
        "--batch-size",
        type=int,
        default=DEFAULT_BATCH_SIZE,
        metavar="N",
        help=f"most images a batch (default: {DEFAULT_BATCH_SIZE}); CKA takes smaller ones where "
        "that would make fewer than 8: intervals come from the differences between batches",
    )
    add("--data-folder", "--data", default="data", metavar="FOLDER", help="of downloaded data sets")
    add("--download", action="store_true", help="fetch the data set if need be")
    add("--image-size", type=int, metavar="PIXELS", help="resize the images of a folder")
    add("--dataset-title", metavar="TEXT", help="what to call the data of a folder")
    add("--device", default="auto", help="auto, cpu, cuda or mps (default: auto)")
    add_limit_option(parser)
    add("--json", action="store_true", help="print one JSON document")


def add_cka_options(parser: argparse.ArgumentParser) -> None:
    """How CKA is estimated."""
    add = parser.add_argument
    add("--kernel", default="linear", help=f"{' or '.join(KERNELS)} (default: linear)")
    add(
        "--bandwidth",
        type=float,
        default=0.8,
        metavar="X",
        help="of the RBF kernel, as a fraction of the median distance (default: 0.8)",
    )
    add(
        "--estimator",
        default="unbiased",
        help=f"{', '.join(ESTIMATORS)}: unbiased goes by minibatches, the others take the whole "
        "set at once (default: unbiased)",
    )
    add(
        "--pooling",
        type=cells,
        metavar="S",
        help="compare features pooled to S x S (default: flattened)",
    )
    add("--precision", default="fp32", help=f"of CKA: {' or '.join(PRECISIONS)} (default: fp32)")
    add(
        "--num-shuffles",
        type=int,
        default=DEFAULT_SHUFFLES,
        metavar="N",
        help=f"of one model's images, for CKA's null level (default: {DEFAULT_SHUFFLES})",
    )
    add(
        "--memory",
        type=num_bytes,
        metavar="BYTES",
        help="most that a full-set estimator may take, such as 500M or 8G (default: 4G)",
    )
    add("--grams", type=Path, metavar="FOLDER", help="keep Gram matrices here between runs")


def add_name_option(parser: argparse.ArgumentParser) -> None:
    """What to call the checkpoints."""
    parser.add_argument(
        "--name",
        action="append",
        dest="names",
        metavar="TEXT",
        help="of a checkpoint, once for each in their order, then for the ceiling (default: their "
        "files' names)",
    )


def add_reference_options(parser: argparse.ArgumentParser) -> None:
    """What the networks are held against."""
    parser.add_argument(
        "--ceiling",
        type=Path,
        metavar="CHECKPOINT",
        help="a network that should be alike, such as a second seed of A's rule",
    )
    parser.add_argument(
        "--floor",
        type=int,
        nargs="?",
        const=0,
        metavar="SEED",
        help="hold against an untrained network of A's architecture, made from a seed (default: 0)",
    )


def add_feature_options(parser: argparse.ArgumentParser) -> None:
    """What probes, geometry and the measures beside CKA read."""
    parser.add_argument(
        "--probe-pooling",
        type=cells,
        default=1,
        metavar="S",
        help=f"read features pooled to S x S, or {FLATTENED}: flattened (default: 1)",
    )


def add_probe_options(parser: argparse.ArgumentParser) -> None:
    """How probes are fitted."""
    add = parser.add_argument
    add(
        "--train-samples",
        type=int,
        metavar="N",
        help="random training images that probes learn from (default: 5000, or all)",
    )
    add(
        "--penalty",
        type=float,
        default=1.0,
        help="weight of the probes' squared norm, 1 / C in scikit-learn (default: 1)",
    )
    add(
        "--penalties",
        type=numbers,
        default=(),
        metavar="X,X,...",
        help="choose among these layer by layer, on a fifth of the training images",
    )
    add(
        "--num-neighbours",
        type=int,
        default=DEFAULT_NEIGHBOURS,
        metavar="K",
        help=f"of the nearest-neighbour probe, 0 leaves it out (default: {DEFAULT_NEIGHBOURS})",
    )


def add_similarity_options(parser: argparse.ArgumentParser) -> None:
    """Intervals of the measures beside CKA."""
    parser.add_argument(
        "--groups",
        type=int,
        default=0,
        metavar="N",
        help="parts of the images for the jackknife of the measures beside CKA, 10 or more; takes "
        "N times as long (default: 0, no intervals)",
    )


def add_geometry_options(parser: argparse.ArgumentParser) -> None:
    """Intervals of geometry."""
    parser.add_argument(
        "--geometry-groups",
        type=int,
        default=16,
        metavar="N",
        help="parts of the images for the jackknife of geometry (default: 16)",
    )


OPTION_NAMES = (
    "split",
    "samples",
    "seed",
    "balanced",
    "batch_size",
    "image_size",
    "dataset_title",
    "download",
    "kernel",
    "bandwidth",
    "estimator",
    "pooling",
    "precision",
    "num_shuffles",
    "memory",
    "grams",
    "probe_pooling",
    "train_samples",
    "penalty",
    "penalties",
    "num_neighbours",
    "groups",
    "geometry_groups",
)


def request_options(options: argparse.Namespace) -> dict[str, Any]:
    """What was given, as fields of a `StudyRequest`."""
    given = {name: getattr(options, name) for name in OPTION_NAMES if hasattr(options, name)}
    return {**given, "folder": options.data_folder}


def cells(text: str) -> int | None:
    """The s of s x s, or None for flattened features."""
    if text == FLATTENED:
        return None
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"expected a number of cells such as 2, or {FLATTENED}, not {text!r}"
        ) from None


def numbers(text: str) -> tuple[float, ...]:
    """Numbers of an option such as 0.1,1,10."""
    try:
        return tuple(float(part) for part in text.split(",") if part.strip())
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"expected numbers with commas between them, such as 0.1,1,10, not {text!r}"
        ) from None


def names(text: str) -> tuple[str, ...]:
    """Names of an option such as cka,probe."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


def num_bytes(text: str) -> int:
    """Bytes of a text such as 500M, 8G or 1000000."""
    digits = text.upper().removesuffix("B").removesuffix("I")
    unit = digits[-1:] if digits[-1:] in UNITS else ""
    try:
        return int(float(digits.removesuffix(unit)) * UNITS[unit])
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"expected bytes such as 500M or 8G, not {text!r}"
        ) from None
