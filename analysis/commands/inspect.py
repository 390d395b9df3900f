"""`python -m analysis inspect FILE`: what a checkpoint file of any origin is."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from analysis.commands.options import add_file_options, file_choices

DEFAULT_EVIDENCE = 500


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
    parser.add_argument(
        "--dataset", help="digits, cifar10, ..., imagefolder:PATH: try preprocessing on its images"
    )
    parser.add_argument("--split", default="train", help="whose images to try (default: train)")
    parser.add_argument(
        "--samples",
        type=int,
        default=DEFAULT_EVIDENCE,
        metavar="N",
        help=f"images to try (default: {DEFAULT_EVIDENCE})",
    )
    parser.add_argument("--seed", type=int, default=0, help="decides which images (default: 0)")
    parser.add_argument("--data-folder", default="data", metavar="FOLDER", help="of data sets")
    parser.add_argument("--image-size", type=int, metavar="PIXELS", help="resize a folder's images")
    parser.add_argument("--json", action="store_true", help="print one JSON document")


def run_inspect(options: argparse.Namespace) -> None:
    """Print what the file is."""
    from analysis.inspection import inspection  # torch: not for --help

    choices = file_choices(options)
    document = inspection(options.checkpoint, choices, options.max_bytes)
    if options.dataset is not None:
        document["preprocessing"] = _evidence(options)
    if options.json:
        print(json.dumps(document, allow_nan=False))
        return
    for name, value in document.items():
        if name != "preprocessing" and value not in ([], {}, None):
            print(f"{name.replace('_', ' '):<20} {_text(value)}")
    for trial in document.get("preprocessing", {}).get("trials", ()):
        print(
            f"{trial['name']:<20} accuracy {trial['accuracy']:.3f} "
            f"({trial['low']:.3f} to {trial['high']:.3f}), cross-entropy "
            f"{trial['cross_entropy']:.3f}"
        )
    if options.dataset is not None:
        print(f"{'preprocessing':<20} {document['preprocessing']['sentence']}")


def _evidence(options: argparse.Namespace) -> dict[str, Any]:
    """Try preprocessing on labelled images."""
    from analysis.features import sample_images
    from analysis.models import open_model
    from analysis.preprocessing import evidence_record, try_preprocessing

    choices = file_choices(options)
    model = open_model(options.checkpoint, max_bytes=options.max_bytes, choices=choices)
    sample = sample_images(
        options.dataset,
        options.split,
        None if options.samples <= 0 else options.samples,
        options.seed,
        folder=options.data_folder,
        image_size=options.image_size,
    )
    print(f"Trying on {len(sample.labels):,} images.", file=sys.stderr)
    return evidence_record(try_preprocessing(model, sample))


def _text(value: Any) -> str:
    """A value as a person reads it."""
    if isinstance(value, dict):
        value = [f"{name.replace('_', ' ')} {part}" for name, part in value.items()]
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return str(value)
