"""A checkpoint file in, all that is known of it out: plain values, to print or to show."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from analysis.choices import Choices
from analysis.models import Model, num_parameters, open_model
from analysis.opening import DEFAULT_MAX_BYTES, Examined, examine, is_own, limits_of, make_model

MOST_ALTERNATIVES = 20


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
    path, choices = Path(path), choices or Choices()
    with tempfile.TemporaryDirectory(prefix="auglocal-") as folder:
        examined = examine(path, folder, choices, limits=limits_of(max_bytes))
        model = (
            open_model(path, auxiliaries=True)
            if is_own(path)
            else make_model(examined, choices, auxiliaries=True)
        )
    return describe_file(examined, model)


def describe_file(examined: Examined, model: Model) -> dict[str, Any]:
    """Give all that is known of a file; see `inspection`."""
    imported, metadata, recognition = examined.imported, model.metadata, examined.recognition
    if recognition is not None:
        kind, variant = recognition.family, recognition.variant
        prefixes, evidence = recognition.prefixes_stripped, recognition.rule_evidence
        warnings = recognition.warnings
    else:
        first = examined.published[0]
        kind, variant = first.library, first.name
        prefixes, evidence = (), "an architecture that is not trained here"
        warnings = tuple(f"It differs from the published form: {part}." for part in first.changes)
    return {
        "architecture": metadata.architecture,
        "family": kind,
        "variant": variant,
        "num_classes": metadata.num_classes,
        "input_size": list(metadata.input_size),
        "parameters": num_parameters(model) or _count(examined.tensors),
        "layers": list(model.layer_names),
        "wrapped_in": imported.wrapped_in,
        "prefixes_stripped": list(prefixes),
        "auxiliary_networks": list(model.auxiliary_layers),
        "rule": metadata.rule,
        "rule_options": metadata.rule_options,
        "rule_evidence": evidence,
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
        "epoch": metadata.epoch,
        "seed": metadata.seed,
        "beside": imported.beside,
        "warnings": [*imported.warnings, *warnings],
    }


def _count(tensors: Mapping[str, Tensor]) -> int:
    """Numbers that training changes: weights, and no running statistics."""
    return sum(
        tensor.numel()
        for key, tensor in tensors.items()
        if tensor.is_floating_point() and not key.endswith((".running_mean", ".running_var"))
    )
