"""Weights to start from: anybody's file, a checkpoint of ours, or published ones by name.

In: a backbone, the run's auxiliary networks, and a file, or the name of published weights, which
are fetched only because they were asked for. Out: the tensors that fit. The classifier starts
fresh where it has another number of classes there, and so does each auxiliary network that is not
the file's; nothing else may be missing. No code of a file runs (`auglocal.foreign`).
"""

from __future__ import annotations

import contextlib
import re
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import torch
import torch.hub
import torchvision
from safetensors import SafetensorError, safe_open
from safetensors.torch import load as load_tensors
from torch import Tensor, nn

from auglocal.backbones.backbone import Backbone
from auglocal.checkpoint import (
    AUXILIARY_PREFIX,
    METADATA_KEY,
    Checkpoint,
    check_file,
    load_checkpoint,
)
from auglocal.errors import InputError, WorkError
from auglocal.files import file_sha256
from auglocal.foreign.child import read_in_child
from auglocal.foreign.conversion import to_checkpoint
from auglocal.foreign.limits import command_line_limits
from auglocal.foreign.recognise import Unrecognised, recognise
from auglocal.foreign.refusal import printable

TORCHVISION_PREFIX = "torchvision:"
CLASSIFIER = "head.linear."
BATCH_COUNTER = ".num_batches_tracked"
DIGEST = re.compile(r"-([0-9a-f]{8,64})\.")  # in the names of published files


@dataclass(frozen=True)
class Pretrained:
    """Tensors that a run starts from.

    Attributes:
        source: where they are from, for people.
        backbone: by our keys; those of the classifier ("head.linear...") only if the number of
            classes is the same.
        auxiliary: by our keys ("auxiliary.LAYER..."), of the networks that are taken.
        taken: names of the layers whose auxiliary networks these are.
        offered: names of the layers with auxiliary networks in the file.
    """

    source: str
    backbone: dict[str, Tensor]
    auxiliary: dict[str, Tensor]
    taken: tuple[str, ...]
    offered: tuple[str, ...]

    @property
    def has_classifier(self) -> bool:
        """Whether the classifier is the file's; otherwise it starts fresh."""
        return any(key.startswith(CLASSIFIER) for key in self.backbone)

    def sentence(self, num_classes: int) -> str:
        """Say what was taken.

        Args:
            num_classes: K of the run.
        """
        parts = [f"From {self.source} come the backbone and its classifier"]
        if not self.has_classifier:
            parts = [
                f"From {self.source} comes the backbone",
                f"the classifier starts fresh, since {self.source} has not {num_classes} classes",
            ]
        if self.taken:
            parts.append(f"{len(self.taken)} of its {len(self.offered)} auxiliary networks too")
        elif self.offered:
            parts.append(f"its {len(self.offered)} auxiliary networks are not those of this run")
        return f"{'; '.join(parts)}."


def load_pretrained(
    backbone: Backbone,
    architecture: str,
    path: Path | str,
    auxiliaries: nn.ModuleDict | None = None,
) -> Pretrained:
    """Put the weights of a file, or published ones, into a backbone and its auxiliary networks.

    Args:
        backbone: changes in place, only if all of them fit.
        architecture: its name.
        path: see `read_pretrained`.
        auxiliaries: those of the run, by layer; change in place where they are the file's.

    Returns:
        what was taken.

    Raises:
        InputError, WorkError: see `read_pretrained`.
    """
    pretrained = read_pretrained(backbone, architecture, path, auxiliaries)
    backbone.load_state_dict({**backbone.state_dict(), **pretrained.backbone})
    for name in pretrained.taken:
        assert auxiliaries is not None  # otherwise none is taken
        auxiliaries[name].load_state_dict(_below(_prefix(name), pretrained.auxiliary))
    return pretrained


def load_torchvision_state(backbone: Backbone, state: Mapping[str, Tensor]) -> bool:
    """Put a state dict with torchvision's keys into a backbone.

    Args:
        backbone: changes in place, only if the whole state fits.
        state: as torchvision publishes it.

    Returns:
        Whether the classifier is the state's; otherwise it stays as it was.

    Raises:
        InputError: the state is not that of this architecture.
    """
    fitting = _fit(backbone, _from_torchvision(backbone, state), "The state dict")
    backbone.load_state_dict({**backbone.state_dict(), **fitting})
    return any(key.startswith(CLASSIFIER) for key in fitting)


def read_pretrained(
    backbone: Backbone,
    architecture: str,
    path: Path | str,
    auxiliaries: nn.ModuleDict | None = None,
) -> Pretrained:
    """Read weights that a backbone can start from; no code of a file runs.

    Args:
        backbone: what they must fit; it is left as it is and may be on the "meta" device.
        architecture: its name.
        path: a checkpoint of ours, or a file of anybody's that `auglocal.foreign.recognise` knows
            as this architecture; or "torchvision:" and the name of weights that torchvision
            publishes for it, "torchvision:IMAGENET1K_V1" say, to be fetched where they are not
            yet in PyTorch's cache.
        auxiliaries: those of the run, by layer; left as they are. A network of the file's is taken
            where it has the keys and shapes of the one at its layer.

    Returns:
        The tensors that fit.

    Raises:
        InputError: the file is missing, damaged, or of another architecture; or torchvision
            publishes no such weights.
        WorkError: they could not be fetched.
    """
    if str(path).startswith(TORCHVISION_PREFIX):
        name = str(path).removeprefix(TORCHVISION_PREFIX)
        state = _fetch_torchvision(backbone, architecture, name)
        fitting = _fit(backbone, _from_torchvision(backbone, state), str(path))
        return Pretrained(str(path), fitting, {}, (), ())
    path = Path(path)
    check_file(path)
    source = printable(path.name)
    checkpoint = _own(path, architecture) if is_checkpoint(path) else _foreign(path, architecture)
    auxiliary = _fitting_auxiliaries(checkpoint.auxiliary, auxiliaries or {})
    return Pretrained(
        source=source,
        backbone=_fit(backbone, checkpoint.backbone, source),
        auxiliary=auxiliary,
        taken=_layers_of(auxiliary, backbone),
        offered=_layers_of(checkpoint.auxiliary, backbone),
    )


def is_checkpoint(path: Path) -> bool:
    """Whether a file says in its header that it is a checkpoint of ours."""
    try:
        with safe_open(path, framework="pt") as file:
            return METADATA_KEY in (file.metadata() or {})
    except (OSError, SafetensorError, ValueError):
        return False


# ------------------------------------------------------------------------- files


def _own(path: Path, architecture: str) -> Checkpoint:
    """A checkpoint of ours, of this architecture."""
    checkpoint = load_checkpoint(path)
    held = checkpoint.metadata.architecture
    if held != architecture:
        raise InputError(
            f"{path.name} holds a {held}, not a {architecture}; give --architecture {held}, "
            "or another file to --pretrained."
        )
    return checkpoint


def _foreign(path: Path, architecture: str) -> Checkpoint:
    """Anybody's file as a checkpoint of ours, of this architecture."""
    with tempfile.TemporaryDirectory(prefix="auglocal-") as folder:
        imported = read_in_child(path, folder, command_line_limits())
        if imported.not_finite:
            raise InputError(
                f"{imported.name} has NaN or infinity in {imported.not_finite[0][:80]!r}, so it "
                "was not taken; give weights from before the training diverged."
            )
        tensors = dict(sorted(load_tensors(imported.path.read_bytes()).items()))
    try:
        found = recognise(tensors, architecture=architecture)
    except Unrecognised as error:
        raise InputError(f"{imported.name} does not fit the backbone: {error}") from error
    flat = (0.0,) * found.input_size[0]  # nobody asks for the normalisation
    return to_checkpoint(tensors, found, mean=flat, std=flat)


# ------------------------------------------------------------------------- published weights


def _fetch_torchvision(backbone: Backbone, architecture: str, name: str) -> dict[str, Tensor]:
    """The state dict that torchvision publishes under a name, from PyTorch's cache or the network.

    What is fetched, and what lies in the cache, is held against the digest in the file's name.
    """
    url = _published_weights(backbone, architecture, name).url
    cached = Path(torch.hub.get_dir()) / "checkpoints" / PurePosixPath(url).name
    digest = DIGEST.search(cached.name)
    try:
        if not cached.exists():
            cached.parent.mkdir(parents=True, exist_ok=True)
            with contextlib.redirect_stdout(sys.stderr):  # where it says what it fetches
                torch.hub.download_url_to_file(url, str(cached))
        if digest is None or not file_sha256(cached).startswith(digest[1]):
            raise WorkError("it is not the file that was published")
        with tempfile.TemporaryDirectory(prefix="auglocal-") as folder:
            imported = read_in_child(cached, folder, command_line_limits())
            return load_tensors(imported.path.read_bytes())
    except Exception as error:  # the network, the digest, the disk, the reader
        advice = "check the network and try again, or give --pretrained a file"
        if cached.exists():
            advice = f"delete {cached} and try again"
        raise WorkError(
            f"Could not fetch torchvision's weights {name} of {architecture} "
            f"({_first_line(error)}); {advice}."
        ) from error


def _published_weights(backbone: Backbone, architecture: str, name: str) -> Any:
    """The member of torchvision's enumeration of an architecture's weights."""
    if backbone.key_map is None:
        raise InputError(
            f"torchvision has no {architecture}, and so no weights {name!r} of it; give "
            "--pretrained a checkpoint of this project, or choose another --architecture."
        )
    published = torchvision.models.get_model_weights(backbone.key_map.model)
    if name not in published.__members__:
        known = ", ".join(TORCHVISION_PREFIX + each for each in published.__members__)
        raise InputError(
            f"torchvision publishes no weights {name!r} of {architecture}; give --pretrained one "
            f"of {known}."
        )
    return published[name]


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")


def _from_torchvision(backbone: Backbone, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors by our keys; keys that torchvision's model has not stay as they are."""
    renamed = {}
    for key, tensor in state.items():
        try:
            renamed[backbone.key_map.from_torchvision(key) if backbone.key_map else key] = tensor
        except KeyError:
            renamed[key] = tensor
    return renamed


# ------------------------------------------------------------------------- what fits


def _fitting_auxiliaries(
    tensors: Mapping[str, Tensor], auxiliaries: Mapping[str, nn.Module] | nn.ModuleDict
) -> dict[str, Tensor]:
    """Tensors of those auxiliary networks that have the keys and shapes of the run's."""
    fitting: dict[str, Tensor] = {}
    for name, auxiliary in auxiliaries.items():
        found = _below(_prefix(name), tensors)
        if found and _shapes(found) == _shapes(auxiliary.state_dict()):
            fitting |= {_prefix(name) + key: tensor for key, tensor in found.items()}
    return fitting


def _layers_of(tensors: Mapping[str, Tensor], backbone: Backbone) -> tuple[str, ...]:
    """Names of the layers with auxiliary networks among the tensors, input to output."""
    return tuple(name for name in backbone.layer_names if _below(_prefix(name), tensors))


def _prefix(layer_name: str) -> str:
    return f"{AUXILIARY_PREFIX}{layer_name}."


def _below(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors under a prefix, without it."""
    return {
        key.removeprefix(prefix): tensor
        for key, tensor in tensors.items()
        if key.startswith(prefix)
    }


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    return {key: tensor.shape for key, tensor in tensors.items()}


def _fit(backbone: Backbone, state: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
    """Tensors that fit the backbone, without a classifier of another number of classes."""
    expected = backbone.state_dict()
    optional = {key for key in expected if key.endswith(BATCH_COUNTER)}  # old files lack them
    missing = sorted(expected.keys() - optional - state.keys())
    unexpected = sorted(state.keys() - expected.keys())
    for what, keys in (("lacks", missing), ("holds besides", unexpected)):
        if keys:
            raise _misfit(source, f"{what} {len(keys)} tensors, {keys[0][:80]!r} first")
    fresh = {
        key
        for key, tensor in state.items()
        if key.startswith(CLASSIFIER) and _differs_in_classes(tensor, expected[key])
    }
    for key in sorted(state.keys() - fresh):
        if state[key].shape != expected[key].shape:
            came, wanted = (list(tensor.shape) for tensor in (state[key], expected[key]))
            raise _misfit(source, f"has {key!r} of shape {came} instead of {wanted}")
    return {key: tensor for key, tensor in state.items() if key not in fresh}


def _differs_in_classes(tensor: Tensor, expected: Tensor) -> bool:
    """Whether two tensors (K, ...) differ in K and in nothing else."""
    return tensor.shape[:1] != expected.shape[:1] and tensor.shape[1:] == expected.shape[1:]


def _misfit(source: str, reason: str) -> InputError:
    return InputError(
        f"{source} {reason}, so it does not fit the backbone; choose its --architecture and "
        "--width (torchvision's files fit the -imagenet forms) and images of as many channels."
    )
