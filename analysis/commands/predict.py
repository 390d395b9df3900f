"""`python -m analysis predict FILE IMAGE...`: what a network sees in image files."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analysis.choices import Choices
from analysis.commands.options import add_file_options, file_choices, numbers
from analysis.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

    from analysis.models import Model

TOP = 5


def add_predict(commands: Any) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        "predict",
        help="the classes and probabilities of image files",
        description="Classify image files by a network's own classifier. Images of another size "
        "are scaled to the network's by their shorter side, and the middle is cut out.",
    )
    parser.set_defaults(command=run_predict)
    parser.add_argument("checkpoint", type=Path, metavar="FILE", help="weights of a network")
    parser.add_argument(
        "images", type=Path, nargs="+", metavar="IMAGE", help="image files, or folders of them"
    )
    add_file_options(parser)
    parser.add_argument(
        "--mean",
        type=numbers,
        metavar="R,G,B",
        help="of pixel values in [0, 1], by channel, or one number for all (default: the file's)",
    )
    parser.add_argument(
        "--std", type=numbers, metavar="R,G,B", help="their deviation (default: the file's)"
    )
    parser.add_argument("--top", type=int, default=TOP, help="classes shown an image (default: 5)")
    parser.add_argument("--json", action="store_true", help="print one JSON document")


def run_predict(options: argparse.Namespace) -> None:
    """Print the classes of every image."""
    from analysis.image_files import find_images  # torch: not for --help

    if options.top < 1:
        raise InputError(f"--top must be at least 1, not {options.top}; give another.")
    document = predict(
        options.checkpoint,
        find_images(options.images),
        mean=options.mean,
        std=options.std,
        top=options.top,
        max_bytes=options.max_bytes,
        choices=file_choices(options),
    )
    if options.json:
        print(json.dumps(document, allow_nan=False))
        return
    for image in document["images"]:
        parts = [f"{entry['class']} {entry['probability']:.1%}" for entry in image["top"]]
        print(f"{image['file']}: {', '.join(parts)}")


def predict(
    checkpoint: Path,
    images: list[Path],
    *,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
    top: int = TOP,
    max_bytes: int = 4 * 2**30,
    choices: Choices | None = None,
) -> dict[str, Any]:
    """Classify image files.

    Args:
        checkpoint: any file that `analysis.models.open_model` opens.
        images: files.
        mean: of pixel values in [0, 1], by channel; None takes the file's.
        std: likewise.
        top: classes listed an image, most probable first.
        max_bytes: larger files are refused.
        choices: what is said of a file that this project did not write.

    Returns:
        {"classes": K names, "images": [{"file", "logits" (K), "probabilities" (K), "top":
        [{"class", "probability"}]}]}.

    Raises:
        InputError: the network or an image cannot be opened, or the numbers do not fit.
    """
    import torch

    from analysis.image_files import read_image
    from analysis.models import open_model
    from analysis.preprocessing import logits_of

    model = open_model(checkpoint, max_bytes=max_bytes, choices=choices)
    if not model.metadata.num_classes:
        raise InputError(
            f"{model.name} has no classifier, so it tells no classes; give a whole network."
        )
    model = _prepared(model, mean, std)
    batch = torch.stack([read_image(path, model.metadata.input_size) for path in images])
    logits = torch.from_numpy(logits_of(model, batch))
    if not bool(torch.isfinite(logits).all()):
        raise InputError(
            f"{model.name} answers with NaN or infinity; give other numbers to --mean and --std, "
            "or another file."
        )
    classes = list(model.metadata.classes) or [str(index) for index in range(logits.shape[1])]
    rows = [_row(path, row, classes, top) for path, row in zip(images, logits, strict=True)]
    return {"classes": classes, "images": rows}


def _prepared(model: Model, mean: tuple[float, ...] | None, std: tuple[float, ...] | None) -> Model:
    """The model with this normalisation; one number is that of every channel."""
    from analysis.preprocessing import with_preprocessing

    if mean is None and std is None:
        return model
    channels = model.metadata.input_size[0]
    mean, std = mean or model.metadata.mean, std or model.metadata.std
    return with_preprocessing(
        model,
        mean * (channels if len(mean) == 1 else 1),
        std * (channels if len(std) == 1 else 1),
    )


def _row(path: Path, logits: Tensor, classes: list[str], top: int) -> dict[str, Any]:
    """What is said of one image, from its logits (K,)."""
    probabilities = logits.double().softmax(dim=0)
    best = probabilities.topk(min(top, len(classes)))
    return {
        "file": str(path),
        "logits": logits.tolist(),
        "probabilities": probabilities.tolist(),
        "top": [
            {"class": classes[index], "probability": probability}
            for probability, index in zip(best.values.tolist(), best.indices.tolist())
        ],
    }
