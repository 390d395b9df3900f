"""One analysis run as a file: what was asked, what came out, where it came from.

In: the results of the measures. Out: a JSON text with the parts `question`, `answers` and
`provenance`, which `load_study` turns back into the same arrays, bit for bit. Reads without torch
and scikit-learn, so that a picture from a file is drawn at once.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from analysis.cka_result import CKAPair, CKAResult
from analysis.errors import InputError
from analysis.files import write_text
from analysis.geometry import GeometryResult
from analysis.paired import PairedResult
from analysis.probes import ProbeResult
from analysis.records import Record, checked, parse, plain
from analysis.similarity import SimilarityResult

FORMAT = "auglocal-study"
FORMAT_VERSION = 3  # since 3 a checkpoint's epoch may be null, and its preprocessing is told
ANSWERS = ("cka", "probes", "similarity", "paired", "geometry")
# Axes of the arrays: L layers, K classes, N images, A auxiliary networks.
CKA_FIELDS = ("values", "standard_errors", "low", "high", "null_levels")
PROBE_FIELDS = {
    **dict.fromkeys(("accuracy", "low", "high", "penalties", "cross_entropy"), "L"),
    **dict.fromkeys(("calibration_error", "neighbours_accuracy"), "L"),
    **dict.fromkeys(("neighbours_low", "neighbours_high"), "L"),
    **dict.fromkeys(("recall", "recall_low", "recall_high"), "LK"),
    "confusion": "LKK",
    **dict.fromkeys(("predictions", "confidence"), "LN"),
    "classifier_predictions": "N",
    **dict.fromkeys(("auxiliary_accuracy", "auxiliary_low", "auxiliary_high"), "A"),
    "auxiliary_predictions": "AN",
}
LARGEST_FILE = 256 * 2**20  # bytes; 20 pairs of ResNet-110 take 40 MB
# What a checkpoint is compared for: as itself, as the level of two runs that should be alike, or as
# that of a network that has learned nothing.
ROLES = ("", "ceiling", "floor")


@dataclass(frozen=True)
class StudyCheckpoint:
    """A checkpoint of a study: its name in the results, and what its file says about it.

    `accuracy` is {"value": fraction, "split": name, "samples": count}, or None. `role` is "", or
    for a reference "ceiling" (a second seed of a rule) or "floor" (untrained). `epoch` and `seed`
    are None where the file does not say. `preprocessing` is how it read the images: "input_size"
    (C, H, W), to which a folder's images were resized; "mean" and "std" by channel, of pixels in
    [0, 1]; "channel_order"; and "assumed" where neither its file nor its user said so. Studies of
    older versions lack it.
    """

    name: str
    sha256: str
    architecture: str
    rule: str
    rule_options: Record
    dataset: str
    accuracy: Record | None
    epoch: int | None
    seed: int | None
    role: str = ""
    preprocessing: Record | None = None


@dataclass(frozen=True)
class StudyQuestion:
    """What was asked: checkpoints, images and options of the measures.

    `samples` images of `split` were drawn with `seed`, in `batch_size` for CKA; `images_sha256`
    identifies them. `train_samples` and `penalty` belong to the probes, None without.

    Studies of older versions lack what follows: `measures` asked for; `classes` K names and
    `labels` (N,) of the images; `balanced`, as many images of each class; `batch_note`, how they
    were cut; the `kernel`, `bandwidth`, `estimator`, `pooling` (s of features pooled to s x s, None
    flattened), `precision` and `num_shuffles` of CKA; `probe_pooling`, the `penalties` that probes
    chose from and `num_neighbours` (0: none); `geometry_groups`.
    """

    checkpoints: tuple[StudyCheckpoint, ...]
    dataset: str
    dataset_title: str
    split: str
    samples: int
    seed: int
    batch_size: int
    image_size: int | None
    images_sha256: str
    train_samples: int | None
    penalty: float | None
    measures: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()
    labels: tuple[int, ...] = ()
    balanced: bool = False
    batch_note: str | None = None
    kernel: str = "linear"
    bandwidth: float | None = None
    estimator: str = "unbiased"
    pooling: int | None = None
    precision: str = "fp32"
    num_shuffles: int = 0
    probe_pooling: int | None = 1
    penalties: tuple[float, ...] = ()
    num_neighbours: int = 0
    geometry_groups: int = 0


@dataclass(frozen=True, eq=False)
class PairSimilarity:
    """One measure other than CKA of model A (rows) and model B (columns)."""

    model_a: str
    model_b: str
    result: SimilarityResult


@dataclass(frozen=True, eq=False)
class PairedProbes:
    """The probes of model A against those of model B on the same images, layer by layer."""

    model_a: str
    model_b: str
    result: PairedResult


@dataclass(frozen=True)
class StudyProvenance:
    """Where the answers came from: versions by package, device, seconds, ISO 8601 date, command.

    `stopped` says how far a run came that was stopped before its end; None of a whole one.
    """

    versions: dict[str, str]
    device: str
    seconds: float
    date: str
    command: str
    stopped: str | None = None


@dataclass(frozen=True, eq=False)
class Study:
    """One analysis run. What was not asked is None or empty."""

    title: str
    question: StudyQuestion
    cka: CKAResult | None
    probes: tuple[ProbeResult, ...]
    provenance: StudyProvenance
    similarity: tuple[PairSimilarity, ...] = ()
    paired: tuple[PairedProbes, ...] = ()
    geometry: tuple[GeometryResult, ...] = ()

    @property
    def models(self) -> tuple[str, ...]:
        """Names of the checkpoints that are compared, references left out."""
        return tuple(entry.name for entry in self.question.checkpoints if not entry.role)

    @property
    def measures(self) -> tuple[str, ...]:
        """The measures that it holds, as the command line calls them."""
        found = ["cka"] * (self.cka is not None)
        found += ["probe"] * bool(self.probes) + ["geometry"] * bool(self.geometry)
        return (*found, *dict.fromkeys(pair.result.measure for pair in self.similarity))

    def reference(self, role: str) -> str | None:
        """Name the checkpoint that serves as "ceiling" or "floor"; None where there is none."""
        entries = self.question.checkpoints
        return next((entry.name for entry in entries if entry.role == role), None)

    def probe(self, model: str) -> ProbeResult:
        """Find the probes of one model by its name."""
        for result in self.probes:
            if result.model == model:
                return result
        raise ValueError(f"this study has no probes of {model!r}")


def study_record(study: Study) -> Record:
    """Turn a study into plain lists, numbers and texts, with None for NaN.

    Returns:
        what `save_study` writes; floats are exact, matrices are nested lists.
    """
    return {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "title": study.title,
        "question": plain(study.question),
        "answers": {name: plain(getattr(study, name)) for name in ANSWERS},
        "provenance": plain(study.provenance),
    }


def pair_record(study: Study, pair: CKAPair) -> Record:
    """Turn one pair's CKA into plain values, with the study's question and provenance.

    Returns:
        the fields of the pair, matrices as nested lists (L_a, L_b) with None for NaN, and
        `question` and `provenance` as in `study_record`.
    """
    whole = study_record(study)
    return {**plain(pair), "question": whole["question"], "provenance": whole["provenance"]}


def save_study(study: Study, path: Path | str) -> None:
    """Write a study, whole or not at all.

    Args:
        study: what to write.
        path: file to write or to replace, `*.study.json` by custom; its folder must exist.

    Raises:
        OSError: the file cannot be written; an older file of that name is then unharmed.
    """
    text = json.dumps(study_record(study), sort_keys=True, allow_nan=False) + "\n"
    write_text(Path(path), text)


def load_study(path: Path | str) -> Study:
    """Read a study of this format version or an older one.

    Args:
        path: file written by `save_study`.

    Returns:
        the study, with arrays equal to those saved in every bit.

    Raises:
        InputError: no such file, not a study, damaged, or of a newer format version.
    """
    path = Path(path)
    record = _read_json(path)
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        raise InputError(
            f"{path.name} is not a study; choose a file that `python -m analysis study` wrote."
        )
    version = record.get("format_version")
    if isinstance(version, int) and version > FORMAT_VERSION:
        raise InputError(
            f"{path.name} has study format {version}, but this program reads up to "
            f"{FORMAT_VERSION}; update the program."
        )
    try:
        return _parse_study(record)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise InputError(
            f"{path.name} is a damaged study ({_reason(error)}); make it again."
        ) from error


def _read_json(path: Path) -> Any:
    """Parse a file, with one sentence for everything that can be wrong with it."""
    try:
        if path.stat().st_size > LARGEST_FILE:
            raise InputError(f"{path.name} is larger than any study; choose another file.")
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise InputError(f"There is no study {path}; check its name and folder.") from error
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path.name} is not a study; choose a file that `python -m analysis study` wrote."
        ) from error
    except OSError as error:
        raise InputError(
            f"{path.name} cannot be read ({error.strerror}); choose another file."
        ) from error
    try:
        return json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"{path.name} is not a study, or a damaged one; "
            "choose a file that `python -m analysis study` wrote."
        ) from error


def _refuse_constant(name: str) -> float:
    """Refuse NaN and Infinity, which are not JSON and which no study holds."""
    raise ValueError(name)


def _reason(error: Exception) -> str:
    """Say in a few words what is wrong with a record."""
    return f"{error.args[0]} is missing" if isinstance(error, KeyError) else str(error)


def _parse_study(record: Record) -> Study:
    """Build a study from JSON values of any format version."""
    if type(version := record["format_version"]) is not int:
        raise TypeError(f"format_version is a {type(version).__name__} instead of a int")
    if version < 1:
        raise ValueError("format_version is below 1")
    answers = checked(record["answers"], dict)
    whole = {name: record[name] for name in ("title", "question", "provenance")}
    whole |= {name: answers[name] for name in ANSWERS if name in answers}
    study = parse(Study, whole)
    _check_accuracies(study)
    _check_names(study)
    _check_shapes(study)
    return study


def _check_accuracies(study: Study) -> None:
    """Hold what checkpoints say of their accuracy to its fields."""
    for checkpoint in study.question.checkpoints:
        if checkpoint.accuracy is not None:
            for name, kind in (("value", float), ("split", str), ("samples", int)):
                checked(checkpoint.accuracy[name], kind)


def _check_names(study: Study) -> None:
    """Hold the answers to the checkpoints of the question."""
    names = tuple(checkpoint.name for checkpoint in study.question.checkpoints)
    if len(set(names)) < len(names):
        raise ValueError("two checkpoints have the same name")
    if any(checkpoint.role not in ROLES for checkpoint in study.question.checkpoints):
        raise ValueError("a checkpoint has an unknown role")
    if study.cka is not None and len(study.cka.models) != len(study.cka.layers):
        raise ValueError("models and layers differ in length")
    answered = [study.cka.models] if study.cka else []
    answered += [tuple(result.model for result in study.probes)] if study.probes else []
    pairs: tuple[PairSimilarity | PairedProbes, ...] = (*study.similarity, *study.paired)
    others = {pair.model_a for pair in pairs} | {pair.model_b for pair in pairs}
    others |= {result.model for result in study.geometry}
    if not names or any(models != names for models in answered) or not others <= set(names):
        raise ValueError("its answers are not those of its checkpoints")


def _check_shapes(study: Study) -> None:
    """Hold every array to the layers, classes and images that it is about."""
    if study.cka is not None:
        size = sum(map(len, study.cka.layers))
        _check_fields(study.cka, dict.fromkeys(CKA_FIELDS, (size, size)))
    for probe in study.probes:
        sizes = {"L": len(probe.layers), "A": len(probe.auxiliary_layers)}
        sizes |= {"K": len(study.question.classes), "N": probe.test_samples}
        shapes = {name: tuple(sizes[s] for s in letters) for name, letters in PROBE_FIELDS.items()}
        _check_fields(probe, shapes)
    for pair in study.similarity:
        shape = len(pair.result.rows), len(pair.result.columns)
        _check_fields(pair.result, dict.fromkeys((*CKA_FIELDS[:4], "chance"), shape))
    for paired in study.paired:
        names = [field.name for field in fields(paired.result) if field.name != "samples"]
        _check_fields(paired.result, dict.fromkeys(names, (len(paired.result.rows),)))
    for geometry in study.geometry:
        for name in ("values", "standard_errors", "low", "high"):
            for array in getattr(geometry, name).values():
                _check_shape(name, array, (len(geometry.layers),))


def _check_fields(result: Any, shapes: Mapping[str, tuple[int, ...]]) -> None:
    for name, shape in shapes.items():
        if (array := getattr(result, name)) is not None:
            _check_shape(name, array, shape)


def _check_shape(name: str, array: Any, shape: tuple[int, ...]) -> None:
    if array.shape != shape:
        raise ValueError(f"{name} has the shape {array.shape} where its layers need {shape}")
