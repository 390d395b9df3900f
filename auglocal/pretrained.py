"""Weights to start from: torchvision's, by file or by name, or a checkpoint of ours.

In: a backbone and a file, or the name of published weights, which are fetched only because they
were asked for. Out: the tensors that fit the backbone. The classifier starts fresh where it has
another number of classes there; nothing else may be missing.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import torch
import torch.hub
import torchvision
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from auglocal.backbones.backbone import Backbone
from auglocal.checkpoint import METADATA_KEY, check_file, check_finite, load_checkpoint
from auglocal.errors import InputError, WorkError

TORCHVISION_PREFIX = "torchvision:"
CLASSIFIER = "head.linear."
BATCH_COUNTER = ".num_batches_tracked"


def load_pretrained(backbone: Backbone, architecture: str, path: Path | str) -> bool:
    """Put the weights of a file, or published ones, into a backbone.

    Args:
        backbone: changes in place, only if all of them fit.
        architecture: its name.
        path: see `read_pretrained`.

    Returns:
        Whether the classifier is theirs; otherwise it stays as it was.

    Raises:
        InputError, WorkError: see `read_pretrained`.
    """
    return _put(backbone, read_pretrained(backbone, architecture, path))


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
    return _put(backbone, _fit(backbone, _from_torchvision(backbone, state), "The state dict"))


def read_pretrained(backbone: Backbone, architecture: str, path: Path | str) -> dict[str, Tensor]:
    """Read weights that a backbone can start from; no code of a file runs.

    Args:
        backbone: what they must fit; it is left as it is and may be on the "meta" device.
        architecture: its name.
        path: a checkpoint of ours of the same architecture, or a .safetensors or .pth file that
            holds a state dict with torchvision's keys; or "torchvision:" and the name of weights
            that torchvision publishes for this architecture, "torchvision:IMAGENET1K_V1" say, to
            be fetched where they are not yet in PyTorch's cache.

    Returns:
        Tensors by our keys; those of the classifier ("head.linear...") only if the number of
        classes is the same.

    Raises:
        InputError: the file is missing, damaged, or of another architecture; or torchvision
            publishes no such weights.
        WorkError: they could not be fetched.
    """
    if str(path).startswith(TORCHVISION_PREFIX):
        name = str(path).removeprefix(TORCHVISION_PREFIX)
        state = _fetch_torchvision(backbone, architecture, name)
        return _fit(backbone, _from_torchvision(backbone, state), str(path))
    path = Path(path)
    check_file(path)
    if _is_checkpoint(path):
        checkpoint = load_checkpoint(path)
        if checkpoint.metadata.architecture != architecture:
            held = checkpoint.metadata.architecture
            raise InputError(
                f"{path.name} holds a {held}, not a {architecture}; give --architecture {held}, "
                "or another file to --pretrained."
            )
        return _fit(backbone, checkpoint.backbone, path.name)
    state = _read_state(path)
    check_finite(path, state)
    if backbone.key_map is None:
        raise InputError(
            f"torchvision has no {architecture}, so {path.name} cannot be its weights; give "
            "--pretrained a checkpoint of this project, or choose another --architecture."
        )
    return _fit(backbone, _from_torchvision(backbone, state), path.name)


def has_classifier(state: Mapping[str, Tensor]) -> bool:
    """Whether tensors that `read_pretrained` gave hold those of the classifier."""
    return any(key.startswith(CLASSIFIER) for key in state)


def _put(backbone: Backbone, state: dict[str, Tensor]) -> bool:
    """Load tensors that fit, keeping the backbone's own for those that are not there."""
    backbone.load_state_dict({**backbone.state_dict(), **state})
    return has_classifier(state)


def _fetch_torchvision(backbone: Backbone, architecture: str, name: str) -> dict[str, Tensor]:
    """The state dict that torchvision publishes under a name, from PyTorch's cache or the network.

    PyTorch holds what it fetches against the digest in the file's name.
    """
    weights = _published_weights(backbone, architecture, name)
    cached = Path(torch.hub.get_dir()) / "checkpoints" / PurePosixPath(weights.url).name
    try:
        with contextlib.redirect_stdout(sys.stderr):  # where it says what it fetches
            state: dict[str, Tensor] = torch.hub.load_state_dict_from_url(
                weights.url, map_location="cpu", check_hash=True, weights_only=True
            )
    except Exception as error:  # the network, the digest, the disk, PyTorch's reader
        advice = "check the network and try again, or give --pretrained a file"
        if cached.exists():
            advice = f"delete {cached} and try again"
        raise WorkError(
            f"Could not fetch torchvision's weights {name} of {architecture} "
            f"({_first_line(error)}); {advice}."
        ) from error
    return state


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


def _is_checkpoint(path: Path) -> bool:
    """Whether a file says in its header that it is a checkpoint of ours."""
    try:
        with safe_open(path, framework="pt") as file:
            return METADATA_KEY in (file.metadata() or {})
    except (OSError, SafetensorError, ValueError):
        return False


def _read_state(path: Path) -> dict[str, Tensor]:
    """Tensors by key of a .safetensors or .pth file."""
    try:
        if path.suffix == ".safetensors":
            state: Any = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # PyTorch's reader meets damage with errors of a dozen kinds
        raise InputError(
            f"{path.name} cannot be read as weights; give --pretrained a checkpoint, or a "
            ".safetensors or .pth file with one of torchvision's state dicts."
        ) from error
    if not isinstance(state, dict) or not all(
        isinstance(key, str) and isinstance(value, Tensor) for key, value in state.items()
    ):
        raise InputError(
            f"{path.name} holds something else than a state dict (tensors by name); save "
            "model.state_dict() of a torchvision model, and give that file to --pretrained."
        )
    return state


def _from_torchvision(backbone: Backbone, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors by our keys; keys that torchvision's model has not stay as they are."""
    renamed = {}
    for key, tensor in state.items():
        try:
            renamed[backbone.key_map.from_torchvision(key) if backbone.key_map else key] = tensor
        except KeyError:
            renamed[key] = tensor
    return renamed


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
