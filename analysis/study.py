"""One analysis run as a file: what was asked, what came out, where it came from.

In: the results of the measures. Out: a JSON text with the parts `question`, `answers` and
`provenance`, which `load_study` turns back into the same arrays, bit for bit. Reads without torch
and scikit-learn, so that a picture from a file is drawn at once.
"""

from __future__ import annotations

import json
import os
import tempfile
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np

from analysis.cka import CKAPair, CKAResult, FloatArray
from analysis.errors import InputError
from analysis.probes import ProbeResult

FORMAT = "auglocal-study"
FORMAT_VERSION = 1
LARGEST_FILE = 256 * 2**20  # bytes; 20 pairs of ResNet-110 take 40 MB
Record = dict[str, Any]
Value = TypeVar("Value")


@dataclass(frozen=True)
class StudyCheckpoint:
    """A checkpoint of a study: its name in the results, and what its file says about it.

    `accuracy` is {"value": fraction, "split": name, "samples": count}, or None.
    """

    name: str
    sha256: str
    architecture: str
    rule: str
    rule_options: Record
    dataset: str
    accuracy: Record | None
    epoch: int
    seed: int | None


@dataclass(frozen=True)
class StudyQuestion:
    """What was asked: checkpoints, images and options of the measures.

    `samples` images of `split` were drawn with `seed`, in `batch_size` for CKA; `images_sha256`
    identifies them. `train_samples` and `penalty` belong to the probes, None without.
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


@dataclass(frozen=True)
class StudyProvenance:
    """Where the answers came from: versions by package, device, seconds, ISO 8601 date, command."""

    versions: dict[str, str]
    device: str
    seconds: float
    date: str
    command: str


@dataclass(frozen=True, eq=False)
class Study:
    """One analysis run. `cka` is None, or `probes` empty, where that was not asked."""

    title: str
    question: StudyQuestion
    cka: CKAResult | None
    probes: tuple[ProbeResult, ...]
    provenance: StudyProvenance

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
        "question": asdict(study.question),
        "answers": {
            "cka": None if study.cka is None else _plain(study.cka),
            "probes": [_plain(result) for result in study.probes],
        },
        "provenance": asdict(study.provenance),
    }


def pair_record(study: Study, pair: CKAPair) -> Record:
    """Turn one pair's CKA into plain values, with the study's question and provenance.

    Returns:
        the fields of the pair, matrices as nested lists (L_a, L_b) with None for NaN, and
        `question` and `provenance` as in `study_record`.
    """
    whole = study_record(study)
    return {**_plain(pair), "question": whole["question"], "provenance": whole["provenance"]}


def save_study(study: Study, path: Path | str) -> None:
    """Write a study, whole or not at all.

    Args:
        study: what to write.
        path: file to write or to replace, `*.study.json` by custom; its folder must exist.

    Raises:
        OSError: the file cannot be written; an older file of that name is then unharmed.
    """
    path = Path(path)
    text = json.dumps(study_record(study), sort_keys=True, allow_nan=False) + "\n"
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(0o644)  # mkstemp makes files that only their owner may read
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


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


def _plain(result: CKAPair | CKAResult | ProbeResult) -> Record:
    """Turn a result's fields into JSON values."""
    return {field.name: _plain_value(getattr(result, field.name)) for field in fields(result)}


def _plain_value(value: Any) -> Any:
    """Turn arrays into nested lists, and NaN into None."""
    if isinstance(value, np.ndarray):
        plain = value.astype(object)
        plain[np.isnan(value)] = None
        return plain.tolist()
    return value


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
    """Build a study from JSON values of format version 1."""
    if _get(record, "format_version", int) < 1:
        raise ValueError("format_version is below 1")
    answers = _get(record, "answers", dict)
    cka = _get_optional(answers, "cka", dict)
    study = Study(
        title=_get(record, "title", str),
        question=_parse_question(_get(record, "question", dict)),
        cka=None if cka is None else _parse_cka(cka),
        probes=tuple(_parse_probes(entry) for entry in _get(answers, "probes", list)),
        provenance=_parse_provenance(_get(record, "provenance", dict)),
    )
    _check_names(study)
    return study


def _check_names(study: Study) -> None:
    """Hold the answers to the checkpoints of the question."""
    names = tuple(checkpoint.name for checkpoint in study.question.checkpoints)
    if len(set(names)) < len(names):
        raise ValueError("two checkpoints have the same name")
    answered = [study.cka.models] if study.cka else []
    answered += [tuple(result.model for result in study.probes)] if study.probes else []
    if not names or any(models != names for models in answered):
        raise ValueError("its answers are not those of its checkpoints")


def _parse_question(record: Record) -> StudyQuestion:
    """Build the question."""
    return StudyQuestion(
        checkpoints=tuple(_parse_checkpoint(entry) for entry in _get(record, "checkpoints", list)),
        dataset=_get(record, "dataset", str),
        dataset_title=_get(record, "dataset_title", str),
        split=_get(record, "split", str),
        samples=_get(record, "samples", int),
        seed=_get(record, "seed", int),
        batch_size=_get(record, "batch_size", int),
        image_size=_get_optional(record, "image_size", int),
        images_sha256=_get(record, "images_sha256", str),
        train_samples=_get_optional(record, "train_samples", int),
        penalty=_get_optional(record, "penalty", float),
    )


def _parse_checkpoint(record: Record) -> StudyCheckpoint:
    """Build one checkpoint's entry."""
    accuracy = _get_optional(record, "accuracy", dict)
    if accuracy is not None:
        _get(accuracy, "value", float)
        _get(accuracy, "split", str)
        _get(accuracy, "samples", int)
    return StudyCheckpoint(
        name=_get(record, "name", str),
        sha256=_get(record, "sha256", str),
        architecture=_get(record, "architecture", str),
        rule=_get(record, "rule", str),
        rule_options=_get(record, "rule_options", dict),
        dataset=_get(record, "dataset", str),
        accuracy=accuracy,
        epoch=_get(record, "epoch", int),
        seed=_get_optional(record, "seed", int),
    )


def _parse_provenance(record: Record) -> StudyProvenance:
    """Build the provenance."""
    return StudyProvenance(
        versions=_texts(record, "versions"),
        device=_get(record, "device", str),
        seconds=_get(record, "seconds", float),
        date=_get(record, "date", str),
        command=_get(record, "command", str),
    )


def _parse_cka(record: Record) -> CKAResult:
    """Build the CKA result, with every matrix of the shape that its layers need."""
    layers = tuple(_names(names) for names in _get(record, "layers", list))
    models = _names(_get(record, "models", list))
    if len(models) != len(layers):
        raise ValueError("models and layers differ in length")
    shape = (sum(map(len, layers)),) * 2
    return CKAResult(
        models=models,
        layers=layers,
        values=_array(record, "values", shape),
        standard_errors=_array(record, "standard_errors", shape),
        low=_array(record, "low", shape),
        high=_array(record, "high", shape),
        undefined=_texts(record, "undefined"),
        samples=_get(record, "samples", int),
        batch_sizes=tuple(_checked(size, int) for size in _get(record, "batch_sizes", list)),
        interval_note=_get_optional(record, "interval_note", str),
    )


def _parse_probes(record: Any) -> ProbeResult:
    """Build the probes of one model."""
    layers = _names(_get(record, "layers", list))
    shape = (len(layers),)
    return ProbeResult(
        model=_get(record, "model", str),
        layers=layers,
        accuracy=_array(record, "accuracy", shape),
        low=_array(record, "low", shape),
        high=_array(record, "high", shape),
        classifier_accuracy=_get_optional(record, "classifier_accuracy", float),
        classifier_low=_get_optional(record, "classifier_low", float),
        classifier_high=_get_optional(record, "classifier_high", float),
        chance=_get(record, "chance", float),
        train_samples=_get(record, "train_samples", int),
        test_samples=_get(record, "test_samples", int),
        penalty=_get(record, "penalty", float),
        undefined=_texts(record, "undefined"),
    )


def _get(record: Any, name: str, kind: type[Value]) -> Value:
    """Take a field of a kind."""
    return _named(_checked(record, dict)[name], name, kind)


def _get_optional(record: Any, name: str, kind: type[Value]) -> Value | None:
    """Take a field of a kind that may be null or missing."""
    value = _checked(record, dict).get(name)
    return None if value is None else _named(value, name, kind)


def _named(value: Any, name: str, kind: type[Value]) -> Value:
    """Pass a value of a kind, or name the field that is wrong."""
    try:
        return _checked(value, kind)
    except TypeError as error:
        raise TypeError(f"{name} is {error}") from error


def _checked(value: Any, kind: type[Value]) -> Value:
    """Pass a value of a kind; a whole number is a float too, a truth value is no number."""
    if kind is float and type(value) is int:
        return cast(Value, float(value))
    if type(value) is not kind:
        raise TypeError(f"a {type(value).__name__} instead of a {kind.__name__}")
    return value


def _names(values: list[Any]) -> tuple[str, ...]:
    """Pass a list of texts."""
    return tuple(_checked(value, str) for value in values)


def _texts(record: Record, name: str) -> dict[str, str]:
    """Pass an object with texts only."""
    return {key: _checked(value, str) for key, value in _get(record, name, dict).items()}


def _array(record: Record, name: str, shape: tuple[int, ...]) -> FloatArray:
    """Build a float64 array of a given shape; null becomes NaN."""
    array = np.array(_get(record, name, list), dtype=np.float64)
    if array.shape != shape:
        raise ValueError(f"{name} has the shape {array.shape} where its layers need {shape}")
    if np.isinf(array).any():
        raise ValueError(f"{name} holds a number that is too large")
    return array
