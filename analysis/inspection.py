"""A checkpoint file in, all that is known of it out: plain values, to print or to show."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from analysis.choices import BGR, RGB, Choices
from analysis.errors import InputError
from analysis.examining import DEFAULT_MAX_BYTES, Examined, examine, limits_of
from analysis.features import ImageSample
from analysis.fingerprints import is_computed
from analysis.models import UNKNOWN, Model, num_parameters, open_model
from analysis.opening import SOURCE, is_own, make_model, own_architecture
from analysis.preprocessing import (
    Evidence,
    Preprocessing,
    choices_of,
    presets,
    try_preprocessing,
)

MOST_ALTERNATIVES = 20
STATISTICS = (".running_mean", ".running_var")


def inspection(
    path: Path | str, choices: Choices | None = None, max_bytes: int = DEFAULT_MAX_BYTES
) -> dict[str, Any]:
    """Say what a checkpoint file of any origin is.

    Args:
        path: of the file.
        choices: the state dict and the architecture to take.
        max_bytes: most bytes that file and tensors may have.

    Returns:
        plain values by name: architecture, family, variant, num_classes, input_size, parameters,
        layers, wrapped_in, prefixes_stripped, auxiliary_networks, rule, rule_evidence, dtype,
        sha256, alternatives, warnings, and what else is known of it.

    Raises:
        InputError: see `examine`.
    """
    return describe_file(*open_examined(path, choices, max_bytes))


def open_examined(
    path: Path | str, choices: Choices | None = None, max_bytes: int = DEFAULT_MAX_BYTES
) -> tuple[Examined, Model]:
    """Examine a checkpoint file of any origin, and open it; the arguments are `inspection`'s.

    Returns:
        what it is; and the model, with those auxiliary networks that are known.

    Raises:
        InputError: see `examine`.
    """
    path, choices = Path(path), choices or Choices()
    is_ours = is_own(path)
    if is_ours:
        choices = replace(choices, architecture=own_architecture(path))
    with tempfile.TemporaryDirectory(prefix="auglocal-") as folder:
        examined = examine(path, folder, choices, limits=limits_of(max_bytes))
    if not is_ours:
        return examined, make_model(examined, choices, auxiliaries=True)
    try:
        return examined, open_model(path, auxiliaries=True, max_bytes=max_bytes)
    except InputError:  # its auxiliary networks, perhaps
        return examined, open_model(path, max_bytes=max_bytes)


def describe_file(
    examined: Examined, model: Model, *, backbone_only: bool = False
) -> dict[str, Any]:
    """Give all that is known of a file; see `inspection`.

    `backbone_only` says that the model lacks the file's auxiliary networks because the user wanted
    it so.
    """
    imported, metadata = examined.imported, model.metadata
    is_ours = SOURCE not in metadata.config
    return {
        "architecture": metadata.architecture,
        **_kind(examined),
        "num_classes": metadata.num_classes,
        "input_size": list(metadata.input_size),
        "parameters": num_parameters(model) or _count(examined.tensors),
        "layers": list(model.layer_names),
        "wrapped_in": imported.wrapped_in,
        "prefixes_stripped": list(examined.prefixes),
        "auxiliary_networks": list(model.auxiliary_layers),
        "rule": metadata.rule,
        "rule_options": metadata.rule_options,
        "rule_evidence": _rule_evidence(examined, model),
        "dtype": imported.dtype,
        "sha256": imported.sha256,
        "alternatives": list(examined.alternatives[:MOST_ALTERNATIVES]),
        "other_states": list(imported.other_states),
        "mean": list(metadata.mean),
        "std": list(metadata.std),
        "assumed": list(model.assumed),
        "classes": list(metadata.classes),
        "dataset": metadata.dataset,
        "accuracy": metadata.accuracy,
        "epoch": metadata.epoch if is_ours or metadata.epoch else None,
        "seed": metadata.seed if is_ours else None,
        "beside": imported.beside,
        "warnings": _warnings(examined, model, backbone_only),
    }


def _kind(examined: Examined) -> dict[str, str]:
    """Family and variant: of the backbone and its keys, or of the library."""
    recognition = examined.recognition
    if recognition is not None:
        return {"family": recognition.family, "variant": recognition.variant}
    first = examined.published[0]
    return {"family": first.library, "variant": first.name}


def _rule_evidence(examined: Examined, model: Model) -> str:
    """What shows the rule."""
    recognition, rule = examined.recognition, model.metadata.rule
    shown = "an architecture that is not trained here"
    if recognition is not None:
        shown = recognition.rule_evidence
        if rule == recognition.rule:
            return shown
    return shown if rule == UNKNOWN else "as the file or its user says"


def _warnings(examined: Examined, model: Model, backbone_only: bool) -> list[str]:
    """Sentences about what was left out or cannot be known."""
    recognition = examined.recognition
    if recognition is None:
        changes = examined.published[0].changes
        more = tuple(f"It differs from the published form: {part}." for part in changes)
    else:
        more = recognition.warnings
        if recognition.auxiliary_keys and not model.auxiliaries and not backbone_only:
            more = (*more, "Its auxiliary networks are not those of its rule, and were left out.")
    return [*examined.imported.warnings, *more]


def _count(tensors: Mapping[str, Tensor]) -> int:
    """Numbers that training changes: weights, and no running statistics or computed tables."""
    return sum(
        tensor.numel()
        for key, tensor in tensors.items()
        if tensor.is_floating_point() and not key.endswith(STATISTICS) and not is_computed(key)
    )


# ------------------------------------------------------------------------- what images tell


def find_choices(
    examined: Examined,
    choices: Choices,
    sample: ImageSample,
    channel_orders: Sequence[str] = (RGB, BGR),
) -> tuple[Choices, Evidence]:
    """Find out on labelled images what neither a file nor its user says.

    Args:
        examined: the file.
        choices: what the user says; a mean and std are kept, and tried alone.
        sample: images of the network's classes and size.
        channel_orders: to try.

    Returns:
        the choices, filled in where the evidence tells something; and the evidence.

    Raises:
        InputError: the images or the choices do not fit the network.
    """
    if (choices.mean is None) != (choices.std is None):
        raise InputError("The mean and the std belong together; give both, or neither.")
    model = make_model(examined, replace(choices, channel_order=RGB, classes=None))
    tried: Sequence[Preprocessing] = presets(model.metadata.input_size[0])
    if choices.mean is not None and choices.std is not None:
        given = Preprocessing("as given", choices.mean, choices.std)
        tried = [replace(given, channel_order=order) for order in channel_orders]
    tried = [choice for choice in tried if choice.channel_order in channel_orders]
    evidence = try_preprocessing(model, sample, tried)
    if not evidence.tells:
        return choices, evidence
    return choices_of(evidence, replace(choices, mean=None, std=None)), evidence
