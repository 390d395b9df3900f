"""A fitted lens as a file: numpy arrays in a zip without pickles, written whole or not at all."""

from __future__ import annotations

import json
import tempfile
import zipfile
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np

from analysis.errors import InputError
from analysis.lens import Lens, LensLayer, Reader
from analysis.probes import ProbeModel

FORMAT_VERSION = 1
ARRAYS = (
    "train_labels",
    "train_indices",
    "test_labels",
    "test_indices",
    "predictions",
    "confidence",
    "disagreement",
)
LAYER_ARRAYS = ("mean", "scale", "features")
PROBE_ARRAYS = tuple(item.name for item in fields(ProbeModel) if item.name != "num_classes")


def save_lens(lens: Lens, path: Path | str) -> None:
    """Write a lens.

    Raises:
        OSError: the file cannot be written; an older file of that name is then unharmed.
    """
    path = Path(path)
    head = {
        "format_version": FORMAT_VERSION,
        "layers": [[layer.name, layer.reason, layer.probe is not None] for layer in lens.layers],
        "classes": lens.classes,
        "readers": [[reader.kind, reader.layer] for reader in lens.readers],
        "reasons": sorted(lens.reasons.items()),
        "penalty": lens.penalty,
        "pooling": lens.pooling,
    }
    arrays: dict[str, Any] = {name: getattr(lens, name) for name in ARRAYS}
    for index, layer in enumerate(lens.layers):
        arrays |= {f"{index}.{name}": getattr(layer, name) for name in LAYER_ARRAYS}
        if layer.probe is not None:
            arrays |= {f"{index}.probe.{n}": getattr(layer.probe, n) for n in PROBE_ARRAYS}
    with tempfile.NamedTemporaryFile(
        dir=path.parent, prefix=f".{path.name}.", suffix=".npz", delete=False
    ) as file:
        temporary = Path(file.name)
        try:
            np.savez(file, head=np.array(json.dumps(head)), **arrays)
            file.close()
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def load_lens(path: Path | str) -> Lens:
    """Read a lens that `save_lens` wrote; no code of the file runs.

    Raises:
        InputError: no such file, damaged, or of another format version.
    """
    path = Path(path)
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            head = json.loads(str(file["head"]))
            if head["format_version"] != FORMAT_VERSION:
                raise ValueError(f"its format is {head['format_version']}")
            return _parse(head, file)
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(
            f"{path.name} is no lens that can be read, or a damaged one; delete it and fit the "
            "probes again."
        ) from error


def _parse(head: dict[str, Any], file: Any) -> Lens:
    """Put a lens together from its parts."""
    classes = tuple(head["classes"])
    layers = []
    for index, (name, reason, has_probe) in enumerate(head["layers"]):
        arrays = {n: file[f"{index}.{n}"] for n in LAYER_ARRAYS}
        probe = None
        if has_probe:
            parts = {n: file[f"{index}.probe.{n}"] for n in PROBE_ARRAYS}
            probe = ProbeModel(num_classes=len(classes), **parts)
        layers.append(LensLayer(name=name, probe=probe, reason=reason, **arrays))
    return Lens(
        layers=tuple(layers),
        classes=classes,
        readers=tuple(Reader(kind, layer) for kind, layer in head["readers"]),
        reasons={int(index): text for index, text in head["reasons"]},
        penalty=head["penalty"],
        pooling=head["pooling"],
        **{name: file[name] for name in ARRAYS},
    )
