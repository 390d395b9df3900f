"""Results in, words out: sentences, labels and tables of numbers that the pages show.

Every name that came from a file goes through `plain` before a label that Streamlit reads as
markdown, so that a link or an image in it stays text.
"""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from analysis.cka import CKAPair
from analysis.figures import rule_title
from analysis.probes import ProbeResult
from analysis.study import Study, StudyCheckpoint

if TYPE_CHECKING:
    from app.sources.checkpoints import CheckpointFile
    from app.sources.studies import StudyFile
    from auglocal.checkpoint import CheckpointMetadata

IMAGES_NOTE = (
    "Intervals are 95% and cover the choice of images, not of training runs: another seed may "
    "differ by more."
)
_MARKDOWN = re.compile(r"([\\`*_{}\[\]()<>#+\-.!|~$:&@/])")
# What becomes a link by itself, escaped or not: a word joiner, which nobody sees, prevents it.
_ADDRESS = re.compile(r"(?i)(https?(?=:)|ftp(?=:)|www(?=\.)|\w(?=@))")
LONGEST_TITLE = 150


def plain(text: str) -> str:
    """Text that markdown shows as it is: every character that could mean something is escaped."""
    words = _ADDRESS.sub("\\1\u2060", " ".join(str(text).split()))
    return _MARKDOWN.sub(r"\\\1", words)


def shortened(text: str) -> str:
    """A title of a file from outside, of a length that a page has room for."""
    return text if len(text) <= LONGEST_TITLE else f"{text[: LONGEST_TITLE - 1]}…"


def percent(fraction: float) -> str:
    """A fraction as people read it."""
    return f"{fraction:.1%}"


def checkpoint_title(entry: StudyCheckpoint) -> str:
    """What to call a checkpoint of a study on screen: its rule."""
    return rule_title(entry.rule)


def study_line(study: Study) -> str:
    """A study in a list to pick from, which shows text as it is."""
    date = study.provenance.date[:16].replace("T", " ")
    return f"{study_title(study)}, {date}"


def study_rows(files: Sequence[StudyFile]) -> list[dict[str, object]]:
    """Studies of this machine, a line each."""
    rows: list[dict[str, object]] = []
    for file in files:
        study, question = file.study, file.study.question
        rows.append(
            {
                "Title": study_title(study),
                "Networks": ", ".join(study.models),
                "Data": f"{question.dataset_title}, {question.samples:,} {question.split} images",
                "Measures": ", ".join(study.measures),
                "Date": study.provenance.date[:16].replace("T", " "),
            }
        )
    return rows


def sizes_note(study: Study) -> str:
    """That networks read the same images at different sizes; empty where they do not; plain."""
    sizes = {
        entry.name: tuple(entry.preprocessing.get("input_size", ()))[1:]
        for entry in study.question.checkpoints
        if entry.preprocessing
    }
    if len(set(sizes.values())) < 2:
        return ""
    parts = [f"{name} {' x '.join(map(str, size))}" for name, size in sizes.items()]
    return f"The images were resized for each network: {', '.join(parts)} pixels."


def study_title(study: Study) -> str:
    """The title that its author gave it, or what it is about; plain text, not yet escaped."""
    return shortened(study.title or study_heading(study))


def study_heading(study: Study) -> str:
    """What a study is about: its images and its backbones."""
    compared = [entry for entry in study.question.checkpoints if not entry.role]
    backbones = " and ".join(dict.fromkeys(entry.architecture for entry in compared))
    return f"{study.question.dataset_title}, {backbones}"


def study_images(study: Study) -> str:
    """What a study looked at: its images and its backbones."""
    images = f"{study.question.samples:,} {study.question.split} images"
    return f"{study_heading(study)}, {images}"


def similarity(pair: CKAPair, row: int, column: int) -> str:
    """A similarity with its interval, as it stands in a sentence."""
    value = f"CKA {pair.values[row, column]:.3f}"
    if not math.isfinite(pair.low[row, column]):
        return value
    return f"{value}, 95% {pair.low[row, column]:.3f} to {pair.high[row, column]:.3f}"


def probe_value(probe: ProbeResult, index: int) -> str:
    """A probe's accuracy with its interval."""
    low, high = percent(probe.low[index]), percent(probe.high[index])
    return f"{percent(probe.accuracy[index])} ({low} to {high})"


def map_csv(pair: CKAPair) -> str:
    """A map as a table: one line a cell, with interval; undefined values stay empty."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["model_a", "layer_a", "model_b", "layer_b", "cka", "low", "high", "reason"])
    for row, layer_a in enumerate(pair.rows):
        for column, layer_b in enumerate(pair.columns):
            cell = (row, column)
            numbers = [
                repr(float(values[cell])) if math.isfinite(values[cell]) else ""
                for values in (pair.values, pair.low, pair.high)
            ]
            reason = pair.reason(row, column) or ""
            writer.writerow([pair.model_a, layer_a, pair.model_b, layer_b, *numbers, reason])
    return stream.getvalue()


def cell_parts(pair: CKAPair, row: int, column: int) -> tuple[str, str, str]:
    """Value, interval and note of a cell, as the page shows them."""
    if not math.isfinite(pair.values[row, column]):
        return "undefined", "none", f"Undefined: {pair.reason(row, column)}."
    value = f"{pair.values[row, column]:.3f}"
    if not math.isfinite(pair.low[row, column]):
        return value, "none", pair.interval_note or "This interval is undefined"
    low, high = pair.low[row, column], pair.high[row, column]
    return value, f"{low:.3f} to {high:.3f}", ""


def interval_caption(pair: CKAPair) -> str:
    """What the intervals of a map cover, or why there are none."""
    batches = f"{len(pair.batch_sizes)} batches" if len(pair.batch_sizes) > 1 else "1 batch"
    note = f" {plain(pair.interval_note)}." if pair.interval_note else ""
    return f"Unbiased minibatch estimate over {batches}. {IMAGES_NOTE}{note}"


def probe_rows(probes: Sequence[ProbeResult]) -> list[dict[str, str]]:
    """Probe accuracies as a table to read: one line a layer."""
    return [
        {
            "Checkpoint": probe.model,
            "Layer": layer,
            "Accuracy": probe_value(probe, index)
            if math.isfinite(probe.accuracy[index])
            else f"undefined: {probe.undefined.get(layer, '')}",
        }
        for probe in probes
        for index, layer in enumerate(probe.layers)
    ]


def probe_csv(probes: Sequence[ProbeResult]) -> str:
    """Probe accuracies as a table to compute with; undefined values stay empty."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["model", "layer", "accuracy", "low", "high", "reason"])
    for probe in probes:
        for index, layer in enumerate(probe.layers):
            numbers = [
                repr(float(values[index])) if math.isfinite(values[index]) else ""
                for values in (probe.accuracy, probe.low, probe.high)
            ]
            writer.writerow([probe.model, layer, *numbers, probe.undefined.get(layer, "")])
    return stream.getvalue()


def file_name(title: str) -> str:
    """A title as a part of a file's name."""
    return re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")


def tables_json(tables: Mapping[str, str | Callable[[], str]]) -> str:
    """Tables as one document: a list of records by title, numbers as numbers, empty as null."""
    document = {
        title: [
            {column: _number(value) for column, value in row.items()}
            for row in csv.DictReader(io.StringIO(table if isinstance(table, str) else table()))
        ]
        for title, table in tables.items()
    }
    return json.dumps(document, allow_nan=False) + "\n"


def _number(value: str) -> float | str | None:
    """A value of a table; a text that is no number stays one."""
    try:
        number = float(value)
    except ValueError:
        return value or None
    return number if math.isfinite(number) else None


def as_json(record: dict[str, Any]) -> str:
    """A study as its file holds it."""
    return json.dumps(record, sort_keys=True, allow_nan=False) + "\n"


def detail_rows(
    entry: CheckpointFile, metadata: CheckpointMetadata, num_layers: int
) -> list[dict[str, str]]:
    """What a checkpoint says about itself, one line a field."""
    accuracy = "not measured"
    is_foreign = "opened_from" in metadata.config
    if metadata.accuracy:
        accuracy = (
            f"{percent(metadata.accuracy['value'])} on {metadata.accuracy['samples']:,} "
            f"{metadata.accuracy['split']} images"
        )
    resized = f", resized ({metadata.interpolation})" if metadata.resize else ""
    fields = {
        "Name": entry.name,
        "Rule": rule_title(entry.rule),
        "Architecture": f"{metadata.architecture}, {num_layers} layers",
        "Trained on": metadata.dataset,
        "Accuracy": accuracy,
        "Epochs": "not said" if is_foreign and not metadata.epoch else str(metadata.epoch),
        "Seed": "not said" if is_foreign else str(metadata.seed),
        "Input": " x ".join(map(str, metadata.input_size)) + resized,
        "Classes": f"{metadata.num_classes}: {_listed(metadata.classes)}",
        "Made with": ", ".join(f"{name} {value}" for name, value in metadata.versions.items()),
    }
    return [{"Field": name, "Value": value} for name, value in fields.items() if value]


def _listed(names: Sequence[str]) -> str:
    """The first names; dots where there are more."""
    return ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")


def config_rows(metadata: CheckpointMetadata) -> list[dict[str, str]]:
    """How a checkpoint was trained, one line an option that has a value.

    Options of other rules are left out.
    """
    from auglocal.rules.registry import RULES

    options_of_rules = {field.name for rule in RULES.values() for field in fields(rule)}
    values = {
        name: value
        for name, value in {**metadata.config, **metadata.rule_options}.items()
        if value is not None
        and (name not in options_of_rules or name in metadata.rule_options)
        and name != "opened_from"
    }
    return [
        {"Option": name.replace("_", " "), "Value": str(value)} for name, value in values.items()
    ]


def size(num_bytes: int) -> str:
    """Bytes as people read them."""
    return f"{num_bytes / 2**20:.1f} MiB"


def duration(seconds: float) -> str:
    """Seconds as people say them."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{round(seconds / 60)} min"
