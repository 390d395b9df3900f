"""Anybody's checkpoint file in, a model or a clean checkpoint of ours out; no code of it runs.

A file is read in a process of its own (`auglocal.foreign.child`), told from its keys and shapes
(`auglocal.foreign.recognise` for the backbones that can be trained here, `analysis.fingerprints`
for the published ones that can only be analysed), and what it does not say about its images is
assumed, marked as such, and found out from labelled images (`analysis.preprocessing`).
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import load as load_tensors
from torch import Tensor

from analysis.choices import BGR, Choices
from analysis.errors import InputError
from analysis.fingerprints import Nearest, Published, find_published, nearest_published
from analysis.models import (
    Model,
    model_of_checkpoint,
    short_name,
    translated_errors,
)
from analysis.preprocessing import GREY_PRESETS, PRESETS, Preprocessing, presets
from analysis.published import open_published
from auglocal.checkpoint import (
    METADATA_KEY,
    PUBLISHED_PREFIXES,
    Checkpoint,
    CheckpointMetadata,
    read_metadata,
    write_checkpoint,
)
from auglocal.files import file_sha256
from auglocal.foreign.child import Imported, read_in_child
from auglocal.foreign.conversion import to_checkpoint
from auglocal.foreign.limits import MAX_BYTES, Limits, command_line_limits
from auglocal.foreign.prefixes import strip_prefixes
from auglocal.foreign.recognise import Recognition, Unrecognised, recognise

UNKNOWN = "unknown"
SOURCE = "opened_from"  # in a checkpoint's config: where it came from
ENOUGH_KEYS = 0.4  # of a published architecture, to name it as the nearest
# The presets of the images for which networks of this height and width are mostly trained.
USUAL_SMALL, USUAL_LARGE = PRESETS[0], PRESETS[3]
LARGE = 128  # pixels
MOST_EPOCHS = 10**6
DEFAULT_MAX_BYTES = MAX_BYTES  # of a path on the command line


@dataclass(frozen=True, eq=False)
class Examined:
    """A file from outside: what it holds and what that is.

    Attributes:
        imported: what the reader found; its `path` is the clean copy, if that was kept.
        tensors: the state dict, by the file's keys.
        recognition: the backbone that can be trained here, else None.
        published: the published architectures that fit, likeliest first; empty where there is a
            recognition.
    """

    imported: Imported
    tensors: Mapping[str, Tensor]
    recognition: Recognition | None
    published: tuple[Published, ...]

    @property
    def num_classes(self) -> int:
        """K; 0 where the file has no classifier."""
        found = self.recognition or self.published[0]
        return found.num_classes

    @property
    def input_size(self) -> tuple[int, int, int]:
        """(C, H, W) that is usual for the network."""
        found = self.recognition or self.published[0]
        return found.input_size

    @property
    def alternatives(self) -> tuple[str, ...]:
        """Other architectures of the same tensors, likeliest first."""
        if self.recognition is not None:
            return tuple(other.architecture for other in self.recognition.alternatives)
        return tuple(published_name(other) for other in self.published[1:])


def is_own(path: Path) -> bool:
    """Tell whether a file says in its header that it is a checkpoint of this project."""
    try:
        with safe_open(path, framework="pt") as file:
            return METADATA_KEY in (file.metadata() or {})
    except Exception:  # whatever it is, the reader says so in a sentence
        return False


def published_name(published: Published) -> str:
    """The architecture as metadata have it: "torchvision:densenet121"."""
    return f"{published.library}:{published.name}"


def limits_of(max_bytes: int = DEFAULT_MAX_BYTES) -> Limits:
    """Give the limits of a path on the command line, by the value of --max-bytes."""
    return command_line_limits(max_bytes)


# ------------------------------------------------------------------------- what a file is


def examine(
    path: Path | str,
    folder: Path | str,
    choices: Choices | None = None,
    *,
    limits: Limits | None = None,
) -> Examined:
    """Read a file from outside in a process of its own, and tell what network it is.

    Args:
        path: of any file.
        folder: where the reader's clean copy is put.
        choices: the state dict and the architecture to take.
        limits: what the file may take; None takes those of a path on the command line.

    Raises:
        InputError: it cannot be read, holds numbers that are none, or is no network that is known;
            the sentence says what it is nearest to.
    """
    choices = choices or Choices()
    with translated_errors():
        limits = limits or limits_of()
        imported = read_in_child(path, folder, limits, choices.state)
    _check_finite(imported)
    tensors = load_tensors(imported.path.read_bytes())
    return tell(imported, tensors, choices.architecture)


def tell(imported: Imported, tensors: Mapping[str, Tensor], architecture: str | None) -> Examined:
    """Tell what network the tensors of a file are.

    Args:
        imported: what the reader said of the file.
        tensors: its state dict.
        architecture: take this one of those that fit; None takes the likeliest.

    Raises:
        InputError: none that is known; the sentence says what it is nearest to.
    """
    trouble = None
    if architecture is None or not architecture.startswith(PUBLISHED_PREFIXES):
        try:
            return Examined(imported, tensors, recognise(tensors, architecture=architecture), ())
        except Unrecognised as error:
            trouble = str(error)
    names, _ = strip_prefixes(tensors)
    own = {name: tensors[key] for key, name in names.items()}
    shapes = {name: tuple(tensor.shape) for name, tensor in own.items()}
    published = find_published(shapes)
    if architecture is not None:
        published = tuple(found for found in published if published_name(found) == architecture)
    if published:
        return Examined(imported, own, None, published)
    if architecture is not None:
        raise InputError(
            f"{imported.name} does not hold a {architecture[:80]}; leave --architecture out to see "
            "what it holds."
        )
    raise InputError(_misfit(imported.name, trouble or "", nearest_published(shapes)))


def _misfit(name: str, trouble: str, nearest: Nearest) -> str:
    """The sentence about a network that is not known, with what it is nearest to."""
    if nearest.share < ENOUGH_KEYS and trouble:
        return f"{name} was not opened. {trouble}"
    return (
        f"{name} holds no network that is known here: it is nearest to {nearest.name}, of which "
        f"{nearest.share:.0%} of the keys and shapes fit, but not {', '.join(nearest.misfits)}; "
        "build the network in Python, load its weights, and give it to "
        "analysis.modules.from_module."
    )


def _check_finite(imported: Imported) -> None:
    """Refuse weights that are no numbers: whatever is computed from them would be undefined."""
    if imported.not_finite:
        more = len(imported.not_finite) - 1
        others = f" and {more} more tensors" if more else ""
        raise InputError(
            f"{imported.name} has NaN or infinity in {imported.not_finite[0][:80]!r}{others}, so "
            "nothing can be computed from it; give a checkpoint from before the training diverged."
        )


# ------------------------------------------------------------------------- a model of it


def usual_preprocessing(input_size: tuple[int, int, int]) -> Preprocessing:
    """Give what is usual for images of this size, where a file does not say."""
    channels = input_size[0]
    if channels == 1:
        return GREY_PRESETS[0]
    if channels != len(USUAL_SMALL.mean):
        return presets(channels)[0]
    return USUAL_LARGE if input_size[1] >= LARGE else USUAL_SMALL


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
    if examined.recognition is not None:
        checkpoint = _own_checkpoint(examined, examined.recognition, choices)
    else:
        checkpoint = _published_checkpoint(examined, examined.published[0], choices)
    if choices.channel_order == BGR:
        checkpoint = replace(checkpoint, backbone=_turned(checkpoint.backbone))
    return replace(checkpoint, sha256=examined.imported.sha256)


def _own_checkpoint(examined: Examined, recognition: Recognition, choices: Choices) -> Checkpoint:
    """A checkpoint of a backbone that can be trained here."""
    mean, std = _normalisation(choices, usual_preprocessing(examined.input_size))
    with translated_errors():
        return to_checkpoint(
            examined.tensors,
            recognition,
            mean=mean,
            std=std,
            classes=choices.classes,
            dataset=choices.dataset or UNKNOWN,
            rule=choices.rule,
            epoch=_epoch(examined.imported),
            config=_config(examined, choices),
            image_size=choices.image_size,
        )


def _published_checkpoint(examined: Examined, published: Published, choices: Choices) -> Checkpoint:
    """A checkpoint of a published architecture, with its own keys."""
    usual = Preprocessing("", published.mean, published.std)
    mean, std = _normalisation(choices, usual)
    classes = choices.classes or tuple(str(index) for index in range(published.num_classes))
    if len(classes) != published.num_classes:
        raise InputError(
            f"The network has {published.num_classes} classes, not {len(classes)}; give "
            f"{published.num_classes} names, or none."
        )
    channels, *size = published.input_size
    metadata = CheckpointMetadata(
        architecture=published_name(published),
        num_classes=published.num_classes,
        input_size=(channels, *(choices.image_size or size)),
        mean=mean,
        std=std,
        classes=classes,
        dataset=choices.dataset or UNKNOWN,
        rule=choices.rule or UNKNOWN,
        rule_options={},
        epoch=_epoch(examined.imported),
        accuracy=None,
        resize=None,
        interpolation=None,
        seed=0,
        config=_config(examined, choices),
        versions={},
    )
    return Checkpoint(metadata, dict(examined.tensors), {}, "")


def _normalisation(
    choices: Choices, usual: Preprocessing
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation that the user gave, or the usual ones."""
    return choices.mean or usual.mean, choices.std or usual.std


def _epoch(imported: Imported) -> int:
    """Epochs that a file says were completed; 0 where it does not say."""
    epoch = imported.beside.get("epoch")
    if not isinstance(epoch, int) or isinstance(epoch, bool):
        return 0
    return epoch if 0 <= epoch < MOST_EPOCHS else 0


def _config(examined: Examined, choices: Choices) -> dict[str, Any]:
    """Where a checkpoint came from, and what was assumed of it."""
    assumed = [
        name
        for name, value in (("preprocessing", choices.mean), ("classes", choices.classes))
        if value is None
    ]
    imported, recognition = examined.imported, examined.recognition
    return {
        SOURCE: {
            "file": imported.name,
            "sha256": imported.sha256,
            "wrapped_in": imported.wrapped_in,
            "variant": recognition.variant if recognition else examined.published[0].library,
            "assumed": assumed,
            "channel_order": choices.channel_order,
        }
    }


def _turned(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights that read red first, of a network that reads blue first.

    Raises:
        InputError: more than one convolution could be the one that reads the images.
    """
    first = [key for key, value in tensors.items() if value.ndim == 4 and value.shape[1] == 3]
    if len(first) != 1:
        raise InputError(
            f"{len(first)} convolutions of this network read three channels, so that which of them "
            "reads the images is unknown; exchange red and blue in your images instead."
        )
    return {key: value.flip(1) if key == first[0] else value for key, value in tensors.items()}


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
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint = make_checkpoint(examined, choices)
    candidate = folder / f"{examined.imported.sha256}.candidate"
    try:
        write_checkpoint(candidate, checkpoint)
        path = folder / f"{file_sha256(candidate)}.safetensors"
        candidate.replace(path)
    finally:
        candidate.unlink(missing_ok=True)
    return path


def open_adopted(path: Path, device: str = "cpu") -> Model:
    """Open a checkpoint of a published architecture that `adopt` wrote.

    Raises:
        InputError: it is damaged, or does not hold what it says.
    """
    with translated_errors():
        metadata = read_metadata(path)
    content = path.read_bytes()
    tensors = load_tensors(content)
    shapes = {key: tuple(tensor.shape) for key, tensor in tensors.items()}
    found = [
        each for each in find_published(shapes) if published_name(each) == metadata.architecture
    ]
    if not found:
        raise InputError(
            f"{path.name} says that it is a {metadata.architecture} but does not hold one; open "
            "the file that it was made from again."
        )
    checkpoint = Checkpoint(metadata, tensors, {}, hashlib.sha256(content).hexdigest())
    return published_model(checkpoint, path, device, found[0])


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
    size = model.metadata.input_size if not metadata.num_classes else metadata.input_size
    return replace(
        model,
        path=path,
        sha256=checkpoint.sha256,
        metadata=replace(metadata, input_size=size),
    )
