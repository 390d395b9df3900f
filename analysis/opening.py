"""Anybody's checkpoint file in, a model or a clean checkpoint of ours out; no code of it runs.

What a file does not say about its images is assumed (`analysis.assumptions`), marked as such, and
found out from labelled images (`analysis.preprocessing`).
"""

from __future__ import annotations

import hashlib
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load as load_tensors

from analysis.assumptions import (
    assumed,
    check_choices,
    class_names,
    normalisation,
    red_first,
    usual_preprocessing,
)
from analysis.choices import BGR, Choices
from analysis.errors import InputError
from analysis.examining import (
    DEFAULT_MAX_BYTES,
    Examined,
    examine,
    limits_of,
    published_name,
)
from analysis.fingerprints import Published, find_published
from analysis.models import (
    UNKNOWN,
    Model,
    model_of_checkpoint,
    module_metadata,
    short_name,
    translated_errors,
)
from analysis.preprocessing import Preprocessing
from analysis.published import open_published
from auglocal.backbones.registry import build_meta_backbone
from auglocal.checkpoint import (
    METADATA_KEY,
    Checkpoint,
    CheckpointMetadata,
    check_finite,
    drop_auxiliary,
    is_published,
    load_checkpoint,
    read_metadata,
    round_weights,
    write_checkpoint,
)
from auglocal.data import SOURCES
from auglocal.errors import writing
from auglocal.files import file_sha256
from auglocal.foreign.child import Imported
from auglocal.foreign.conversion import to_checkpoint

SOURCE = "opened_from"  # in a checkpoint's config: where it came from
MOST_EPOCHS = 10**6


def is_own(path: Path) -> bool:
    """Tell whether a file says in its header that it is a checkpoint of this project."""
    if not path.is_file():  # a pipe would be waited for
        return False
    try:
        with safe_open(path, framework="pt") as file:
            return METADATA_KEY in (file.metadata() or {})
    except Exception:  # whatever it is, the reader says so in a sentence
        return False


def own_architecture(path: Path) -> str:
    """Give the architecture that a checkpoint of this project says it holds.

    Raises:
        InputError: its header is damaged.
    """
    with translated_errors():
        return read_metadata(path).architecture


# ------------------------------------------------------------------------- a model of it


def open_foreign(
    path: Path,
    device: str = "cpu",
    *,
    auxiliaries: bool = False,
    precision: str = "fp32",
    choices: Choices | None = None,
    max_bytes: int = DEFAULT_MAX_BYTES,
) -> Model:
    """Open a file from outside for reading; see `analysis.models.open_model`.

    Raises:
        InputError: see `examine`.
    """
    choices = choices or Choices()
    with tempfile.TemporaryDirectory(prefix="auglocal-") as folder:
        examined = examine(path, folder, choices, limits=limits_of(max_bytes))
    model = make_model(examined, choices, device, auxiliaries=auxiliaries, precision=precision)
    return replace(model, name=short_name(path), path=path)


def make_model(
    examined: Examined,
    choices: Choices,
    device: str = "cpu",
    *,
    auxiliaries: bool = False,
    precision: str = "fp32",
) -> Model:
    """Make a model of a file that was examined.

    Args:
        examined: the file.
        choices: what the user says about it.
        device: "auto", "cpu", "cuda" or "mps".
        auxiliaries: open its auxiliary networks too, where it has any that are known.
        precision: "fp32" or "bf16", of a backbone that can be trained here.

    Returns:
        the model; its `assumed` says what neither file nor user says.

    Raises:
        InputError: the choices do not fit the network.
    """
    checkpoint = make_checkpoint(examined, choices)
    name = Path(examined.imported.name)
    if not examined.published:
        return model_of_checkpoint(
            checkpoint, name, device, auxiliaries=auxiliaries, precision=precision
        )
    return published_model(checkpoint, name, device, examined.published[0])


def make_checkpoint(examined: Examined, choices: Choices) -> Checkpoint:
    """Make a checkpoint of ours from a file that was examined.

    A network that reads blue first becomes one that reads red first, by turning the weights of its
    first convolution round; its outputs are the same.

    Args:
        examined: the file.
        choices: what the user says about it.

    Returns:
        the checkpoint, with the file's checksum.

    Raises:
        InputError: the choices do not fit the network.
    """
    check_choices(choices, examined.input_size[0])
    make = _own_checkpoint if examined.recognition is not None else _published_checkpoint
    checkpoint = make(examined, choices)
    if choices.channel_order == BGR:
        key = _first_convolution(checkpoint.metadata) if examined.recognition else None
        checkpoint = replace(checkpoint, backbone=red_first(checkpoint.backbone, key))
    return replace(checkpoint, sha256=examined.imported.sha256)


def _own_checkpoint(examined: Examined, choices: Choices) -> Checkpoint:
    """A checkpoint of a backbone that can be trained here."""
    assert examined.recognition is not None
    channels, *size = examined.input_size
    height, width = choices.image_size or size
    mean, std = normalisation(choices, usual_preprocessing((channels, height, width)))
    with translated_errors():
        return to_checkpoint(
            examined.tensors,
            examined.recognition,
            mean=mean,
            std=std,
            classes=class_names(choices, examined.num_classes),
            dataset=_dataset_title(choices),
            rule=choices.rule,
            epoch=_epoch(examined.imported),
            config=_config(examined, choices),
            image_size=choices.image_size,
        )


def _first_convolution(metadata: CheckpointMetadata) -> str:
    """Key of the weights that read the images, of a backbone that can be trained here."""
    backbone = build_meta_backbone(
        metadata.architecture, metadata.num_classes, metadata.input_size, metadata.width
    )
    return next(key for key, tensor in backbone.state_dict().items() if tensor.ndim == 4)


def _published_checkpoint(examined: Examined, choices: Choices) -> Checkpoint:
    """A checkpoint of a published architecture, with its own keys."""
    published = examined.published[0]
    channels, *size = published.input_size
    if published.sized and list(choices.image_size or size) != size:
        raise InputError(
            f"The tensors of {examined.imported.name} depend on the size of its images, which is "
            f"{size[0]}x{size[1]}; leave --image-size out."
        )
    mean, std = normalisation(choices, Preprocessing("", published.mean, published.std))
    metadata = module_metadata(
        architecture=published_name(published),
        num_classes=published.num_classes,
        input_size=(channels, *(choices.image_size or size)),
        mean=mean,
        std=std,
        classes=class_names(choices, published.num_classes),
    )
    metadata = replace(
        metadata,
        dataset=_dataset_title(choices),
        rule=choices.rule or UNKNOWN,
        epoch=_epoch(examined.imported),
        config=_config(examined, choices),
        versions={},  # of nobody's training
    )
    return Checkpoint(metadata, dict(examined.tensors), {}, "")


def _dataset_title(choices: Choices) -> str:
    """What people call the data that the user named."""
    if choices.dataset in SOURCES:
        return SOURCES[choices.dataset].title
    return choices.dataset or UNKNOWN


def _epoch(imported: Imported) -> int:
    """Epochs that a file says were completed; 0 where it does not say."""
    epoch = imported.beside.get("epoch")
    if not isinstance(epoch, int) or isinstance(epoch, bool):
        return 0
    return epoch if 0 <= epoch < MOST_EPOCHS else 0


def _config(examined: Examined, choices: Choices) -> dict[str, Any]:
    """Where a checkpoint came from, what was assumed of it, and its data set's name."""
    imported, recognition = examined.imported, examined.recognition
    source = {
        "file": imported.name,
        "sha256": imported.sha256,
        "wrapped_in": imported.wrapped_in,
        "variant": recognition.variant if recognition else examined.published[0].library,
        "assumed": assumed(choices),
        "channel_order": choices.channel_order,
    }
    return {SOURCE: source, **({"dataset": choices.dataset} if choices.dataset in SOURCES else {})}


# ------------------------------------------------------------------------- files of ours


def adopt(examined: Examined, choices: Choices, folder: Path) -> Path:
    """Write a file from outside as a checkpoint of ours, named by its SHA-256.

    Args:
        examined: the file.
        choices: what the user says about it.
        folder: where to write it; made if missing.

    Returns:
        the path, "SHA256.safetensors".

    Raises:
        InputError: the choices do not fit the network.
        auglocal.errors.WorkError: the file cannot be written.
    """
    with translated_errors(), writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".adopted-") as own_folder:
            candidate = adopt_as(examined, choices, Path(own_folder) / "candidate")
            path = folder / f"{file_sha256(candidate)}.safetensors"
            candidate.replace(path)
    return path


@dataclass(frozen=True)
class Shrinking:
    """What to take from a checkpoint so that its file is smaller.

    Attributes:
        weights_dtype: fp32, bf16 or fp16: the type of its trained values, as
            `auglocal.checkpoint.round_weights`; None leaves them as they are.
        backbone_only: leave out its auxiliary networks.
    """

    weights_dtype: str | None = None
    backbone_only: bool = False

    def __call__(self, checkpoint: Checkpoint) -> Checkpoint:
        """The checkpoint without what is taken from it."""
        if self.backbone_only:
            checkpoint = drop_auxiliary(checkpoint)
        if self.weights_dtype is not None:
            checkpoint = round_weights(checkpoint, self.weights_dtype)
        return checkpoint


NOTHING_TAKEN = Shrinking()


def adopt_as(
    examined: Examined, choices: Choices, path: Path, shrink: Shrinking = NOTHING_TAKEN
) -> Path:
    """Write a file from outside as a checkpoint of ours, to a path; otherwise as `adopt`."""
    write_checkpoint(path, shrink(make_checkpoint(examined, choices)))
    return path


def rewrite_own(path: Path, out: Path, shrink: Shrinking) -> None:
    """Write a checkpoint of ours again, smaller.

    Args:
        path: of ours.
        out: file to write.
        shrink: what to take from it.

    Raises:
        InputError: the file cannot be read.
        auglocal.errors.WorkError: `out` cannot be written, or a value is too large for the type.
    """
    with translated_errors():
        read = _read_published if is_published(read_metadata(path)) else load_checkpoint
        write_checkpoint(out, shrink(read(path)))


def settle(checkpoint: Checkpoint, choices: Choices | None) -> Checkpoint:
    """Put what the user says in the place of what was assumed when a file was made one of ours.

    Args:
        checkpoint: of ours; one that assumes nothing stays as it is.
        choices: of its images and classes; the others decide how a foreign file is read.

    Raises:
        InputError: the choices do not fit the network.
    """
    metadata = checkpoint.metadata
    source = metadata.config.get(SOURCE)
    if choices is None or not isinstance(source, dict) or not source.get("assumed"):
        return checkpoint
    check_choices(choices, metadata.input_size[0])
    usual = Preprocessing("", metadata.mean, metadata.std)
    mean, std = normalisation(choices, usual)
    classes = class_names(choices, metadata.num_classes) if choices.classes else metadata.classes
    left = [name for name in source["assumed"] if name in assumed(choices)]
    tensors = checkpoint.backbone
    if choices.channel_order == BGR:
        key = None if is_published(metadata) else _first_convolution(metadata)
        tensors = red_first(tensors, key)
    config = {**metadata.config, SOURCE: {**source, "assumed": left}}
    settled = replace(metadata, mean=mean, std=std, classes=tuple(classes), config=config)
    return replace(checkpoint, metadata=settled, backbone=tensors)


def open_adopted(path: Path, device: str = "cpu", choices: Choices | None = None) -> Model:
    """Open a checkpoint of a published architecture that `adopt` wrote.

    Args:
        path: of the checkpoint.
        device: "auto", "cpu", "cuda" or "mps".
        choices: see `settle`.

    Raises:
        InputError: it is damaged, or does not hold what it says.
    """
    with translated_errors():
        checkpoint = _read_published(path)
    metadata = checkpoint.metadata
    shapes = {key: tuple(tensor.shape) for key, tensor in checkpoint.backbone.items()}
    said = (metadata.architecture, metadata.num_classes, metadata.input_size[0])
    found = [
        each
        for each in find_published(shapes)
        if (published_name(each), each.num_classes, each.in_channels) == said
    ]
    if not found:
        raise InputError(
            f"{path.name} says that it is a {metadata.architecture} but does not hold one; open "
            "the file that it was made from again."
        )
    return published_model(settle(checkpoint, choices), path, device, found[0])


def _read_published(path: Path) -> Checkpoint:
    """Read a checkpoint of a published architecture; whether it holds one is not looked at."""
    content = path.read_bytes()
    metadata = read_metadata(path)
    try:
        tensors = load_tensors(content)
    except (SafetensorError, ValueError, RuntimeError) as error:
        raise InputError(f"{path.name} is damaged; copy it again.") from error
    check_finite(path, tensors)
    return Checkpoint(metadata, tensors, {}, hashlib.sha256(content).hexdigest())


def published_model(checkpoint: Checkpoint, path: Path, device: str, published: Published) -> Model:
    """Make a model of a checkpoint of a published architecture."""
    metadata = checkpoint.metadata
    model = open_published(
        published,
        checkpoint.backbone,
        name=short_name(path),
        mean=metadata.mean,
        std=metadata.std,
        classes=metadata.classes or None,
        device=device,
    )
    return replace(model, path=path, sha256=checkpoint.sha256, metadata=metadata)
