"""`python -m analysis convert FILE --out NEW`: anybody's file as a checkpoint of this project."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analysis.choices import BGR, RGB, Choices
from analysis.commands.inspect import add_evidence_options, print_document, read_sample
from analysis.commands.options import add_file_options, file_choices, names, numbers
from analysis.commands.shared import check_out
from analysis.errors import InputError
from analysis.rule_styles import RULE_TITLES

if TYPE_CHECKING:
    from analysis.examining import Examined
    from analysis.features import ImageSample
    from analysis.preprocessing import Evidence

SUFFIX = ".safetensors"
# Options that say what a file of others leaves open.
ABOUT_OTHERS = (
    *("architecture", "state", "mean", "std", "channel_order", "classes", "classes_from"),
    *("rule", "dataset", "image_size"),
)


def add_convert(commands: Any) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        "convert",
        help="anybody's checkpoint file, written as one of this project",
        description="Read a checkpoint of any origin, without running any code of it, and write it "
        "as a checkpoint of this project, which every command and the app open. With --dataset, "
        "what the file does not say (normalisation, order of channels, classes) is found out from "
        "labelled images of the data that it was trained on.",
    )
    parser.set_defaults(command=run_convert)
    add = parser.add_argument
    add("checkpoint", type=Path, metavar="FILE")
    add("--out", type=Path, required=True, metavar="NEW", help=f"file to write, *{SUFFIX}")
    add("--overwrite", action="store_true", help="replace NEW")
    add("--mean", type=numbers, metavar="R,G,B", help="of pixel values in [0, 1], by channel")
    add("--std", type=numbers, metavar="R,G,B", help="their deviation")
    add(
        "--channel-order",
        choices=(RGB, BGR),
        help=f"{BGR}: the network reads blue first (default: {RGB}, or what --dataset tells)",
    )
    classes = parser.add_mutually_exclusive_group()
    classes.add_argument("--classes", type=names, metavar="A,B,...", help="names of its outputs")
    classes.add_argument(
        "--classes-from", metavar="DATASET", help="its outputs are the classes of this data set"
    )
    add(
        "--rule",
        choices=(*RULE_TITLES, "unknown"),
        help="what trained it (default: what its auxiliary networks show)",
    )
    add(
        "--weights-dtype",
        choices=("fp32", "bf16", "fp16"),
        help="of the trained values in NEW, auxiliary networks too; BatchNorm's "
        "statistics stay. Also for a checkpoint of this project (default: as they are)",
    )
    add(
        "--backbone-only",
        action="store_true",
        help="leave out its auxiliary networks. Also for a checkpoint of this project",
    )
    add_file_options(parser)
    add_evidence_options(parser)
    add("--json", action="store_true", help="print one JSON document")


def run_convert(options: argparse.Namespace) -> None:
    """Write the checkpoint, and print what it is."""
    from analysis.examining import examine, limits_of  # torch: not for --help
    from analysis.inspection import describe_file
    from analysis.models import open_model
    from analysis.opening import Shrinking, adopt_as, is_own, rewrite_own
    from analysis.preprocessing import evidence_record

    _check_paths(options)
    shrink = Shrinking(options.weights_dtype, options.backbone_only)
    own = is_own(options.checkpoint)
    if own:
        _check_own(options)
    with tempfile.TemporaryDirectory(prefix="auglocal-") as folder:
        limits = limits_of(options.max_bytes)
        examined = examine(options.checkpoint, folder, file_choices(options), limits=limits)
    if own:
        evidence = None
        rewrite_own(options.checkpoint, options.out, shrink)
        with tempfile.TemporaryDirectory(prefix="auglocal-") as folder:
            examined = examine(options.out, folder, limits=limits)
    else:
        choices, evidence = _choose(options, examined)
        adopt_as(examined, choices, options.out, shrink)
    model = open_model(options.out, auxiliaries=True, max_bytes=options.max_bytes)
    document = {
        "out": str(options.out),
        "out_sha256": model.sha256,
        "out_bytes": options.out.stat().st_size,
        **describe_file(examined, model, backbone_only=options.backbone_only),
    }
    if evidence is not None:
        document["preprocessing"] = evidence_record(evidence)
    if options.json:
        print(json.dumps(document, allow_nan=False))
        return
    print_document(document)


def _check_paths(options: argparse.Namespace) -> None:
    """Refuse to write over a file."""
    check_out(options.out, SUFFIX)
    if not options.out.exists():
        return
    if options.checkpoint.exists() and options.out.samefile(options.checkpoint):
        raise InputError(f"{options.out} is the file to convert; give another --out.")
    if not options.overwrite:
        raise InputError(f"There is a file {options.out}; give another --out, or --overwrite.")


def _check_own(options: argparse.Namespace) -> None:
    """A checkpoint of ours can only be made smaller."""
    name = options.checkpoint.name
    if options.weights_dtype is None and not options.backbone_only:
        raise InputError(
            f"{name} is a checkpoint of this project already; use it as it is, or make it smaller "
            "with --weights-dtype fp16 or --backbone-only."
        )
    said = [each for each in ABOUT_OTHERS if getattr(options, each) is not None]
    if said:
        raise InputError(
            f"{name} is a checkpoint of this project, which says these things itself; leave out "
            f"--{said[0].replace('_', '-')}."
        )


def _choose(options: argparse.Namespace, examined: Examined) -> tuple[Choices, Evidence | None]:
    """What the options say, and what images tell where they say nothing."""
    from analysis.inspection import find_choices

    choices = _said(options, examined)
    if options.dataset is None:
        return choices, None
    sample = read_sample(options)
    orders = (RGB, BGR) if options.channel_order is None else (options.channel_order,)
    choices, evidence = find_choices(examined, choices, sample, orders)
    if not evidence.tells:
        print("The images do not tell its preprocessing; the usual is assumed.", file=sys.stderr)
        return choices, evidence
    return replace(choices, dataset=_dataset(options, sample)), evidence


def _said(options: argparse.Namespace, examined: Examined) -> Choices:
    """What the options say about the file."""
    if (options.mean is None) != (options.std is None):
        raise InputError("The mean and the std belong together; give both --mean and --std.")
    size = options.image_size
    return replace(
        file_choices(options),
        mean=_by_channel(options.mean, examined),
        std=_by_channel(options.std, examined),
        channel_order=options.channel_order or RGB,
        classes=_class_names(options),
        rule=options.rule,
        image_size=None if size is None else (size, size),
    )


def _by_channel(given: tuple[float, ...] | None, examined: Examined) -> tuple[float, ...] | None:
    """One number is that of every channel."""
    if given is None or len(given) != 1:
        return given
    return given * examined.input_size[0]


def _class_names(options: argparse.Namespace) -> tuple[str, ...] | None:
    """Names as given, or those of a data set in its order."""
    from analysis.features import sample_images

    if options.classes_from is None:
        return options.classes or None
    return sample_images(
        options.classes_from, options.split, samples=1, folder=options.data_folder
    ).classes


def _dataset(options: argparse.Namespace, sample: ImageSample) -> str:
    """The data set by name, where it has one; otherwise by its title."""
    return sample.title if ":" in options.dataset else str(options.dataset)
