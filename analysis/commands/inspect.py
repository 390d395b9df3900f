"""`python -m analysis inspect FILE`: what a checkpoint file of any origin is."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analysis.commands.options import add_file_options, file_choices
from analysis.errors import InputError

if TYPE_CHECKING:
    from analysis.features import ImageSample

DEFAULT_EVIDENCE = 500
# Of the document, what has a place of its own or would be long.
NOT_LISTED = ("preprocessing",)


def add_inspect(commands: Any) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        "inspect",
        help="what a checkpoint file is: architecture, layers, rule, preprocessing",
        description="Read a checkpoint of any origin, without running any code of it, and say what "
        "it is. With --dataset, find out from labelled images how its images were normalised.",
    )
    parser.set_defaults(command=run_inspect)
    parser.add_argument("checkpoint", type=Path, metavar="FILE")
    add_file_options(parser)
    add_evidence_options(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON document")


def add_evidence_options(parser: argparse.ArgumentParser) -> None:
    """Which labelled images tell how a network's images were normalised."""
    add = parser.add_argument
    add("--dataset", help="digits, cifar10, ..., imagefolder:PATH: try preprocessing on its images")
    add("--split", default="train", help="whose images to try (default: train)")
    add(
        "--samples",
        type=int,
        default=DEFAULT_EVIDENCE,
        metavar="N",
        help=f"images to try (default: {DEFAULT_EVIDENCE})",
    )
    add("--seed", type=int, default=0, help="decides which images (default: 0)")
    add("--data-folder", default="data", metavar="FOLDER", help="of data sets")
    add(
        "--image-size",
        type=int,
        metavar="PIXELS",
        help="side of the network's images, where the file leaves it open; a folder's are resized",
    )


def run_inspect(options: argparse.Namespace) -> None:
    """Print what the file is."""
    from analysis.inspection import describe_file, open_examined  # torch: not for --help
    from analysis.preprocessing import evidence_record, try_preprocessing

    choices = file_choices(options)
    if options.image_size is not None:
        choices = replace(choices, image_size=(options.image_size, options.image_size))
    examined, model = open_examined(options.checkpoint, choices, options.max_bytes)
    document = describe_file(examined, model)
    if options.dataset is not None:
        evidence = try_preprocessing(model, read_sample(options))
        document["preprocessing"] = evidence_record(evidence)
    if options.json:
        print(json.dumps(document, allow_nan=False))
    else:
        print_document(document)


def read_sample(options: argparse.Namespace) -> ImageSample:
    """Read the labelled images that the options name."""
    from analysis.features import sample_images

    if options.samples < 1:
        raise InputError(f"--samples must be at least 1, not {options.samples}; give another.")
    sample = sample_images(
        options.dataset,
        options.split,
        options.samples,
        options.seed,
        folder=options.data_folder,
        image_size=options.image_size,
    )
    print(f"Trying on {len(sample.labels):,} images.", file=sys.stderr)
    return sample


def print_document(document: dict[str, Any]) -> None:
    """Print a line for each thing that is known of a file, and the evidence."""
    for name, value in document.items():
        if name not in NOT_LISTED and value not in ([], {}, None):
            print(f"{name.replace('_', ' '):<20} {_text(value)}")
    evidence = document.get("preprocessing")
    if evidence is None:
        return
    for trial in evidence["trials"]:
        print(
            f"{trial['name']:<20} accuracy {trial['accuracy']:.3f} "
            f"({trial['low']:.3f} to {trial['high']:.3f}), cross-entropy "
            f"{trial['cross_entropy']:.3f}"
        )
    print(f"{'preprocessing':<20} {_text(evidence['sentence'])}")


def _text(value: Any) -> str:
    """A value as a person reads it; what would steer the terminal is shown as "?"."""
    if isinstance(value, dict):
        value = [f"{name.replace('_', ' ')} {part}" for name, part in value.items()]
    if isinstance(value, list):
        value = ", ".join(map(str, value))
    return "".join(each if each.isprintable() else "?" for each in str(value))
