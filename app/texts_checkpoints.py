"""Checkpoints in words: the table, what a file said, what was tried, what differs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from analysis.rule_styles import rule_title
from app import texts

if TYPE_CHECKING:
    from app.sources.checkpoints import CheckpointFile
    from auglocal.checkpoint import CheckpointMetadata

MOST_LISTED = 12
# What a report of an uploaded file shows, by what people call it, in order.
REPORT = {
    "Architecture": "architecture",
    "Family": "family",
    "Names of its tensors": "variant",
    "Weights found under": "wrapped_in",
    "Prefixes taken off": "prefixes_stripped",
    "Numbers stored as": "dtype",
    "Auxiliary networks": "auxiliary_networks",
    "Rule": "rule_evidence",
    "Would fit as well": "alternatives",
    "Other weights in the file": "other_states",
    "Beside the weights": "beside",
    "SHA-256 of the file": "sha256",
}


def table_rows(
    entries: Sequence[tuple[CheckpointFile, CheckpointMetadata, int]],
) -> list[dict[str, object]]:
    """Checkpoints as a table, one line each; numbers stay numbers, so that they sort."""
    return [
        {
            "Name": entry.name,
            "Rule": rule_title(entry.rule),
            "Architecture": about.architecture,
            "Data": about.dataset,
            "Accuracy": 100 * about.accuracy["value"] if about.accuracy else None,
            "Parameters": parameters,
            "Size": entry.size / 2**20,
            "Date": datetime.fromtimestamp(entry.added),
            "From": entry.origin,
        }
        for entry, about, parameters in entries
    ]


def report_rows(report: Mapping[str, Any]) -> list[dict[str, str]]:
    """What was found in an uploaded file, one line each; all of it text from a file."""
    rows = []
    for title, name in REPORT.items():
        value = as_text(report.get(name))
        if value:
            rows.append({"Found": title, "In the file": value})
    return rows


def as_text(value: object) -> str:
    """A plain value as a person reads it; empty for nothing."""
    if isinstance(value, Mapping):
        value = [f"{name} {part}" for name, part in value.items()]
    if isinstance(value, (list, tuple)):
        more = f" and {len(value) - MOST_LISTED} more" if len(value) > MOST_LISTED else ""
        return ", ".join(map(str, value[:MOST_LISTED])) + more
    return "" if value is None else str(value)


def difference_rows(
    first: Mapping[str, str], second: Mapping[str, str], names: tuple[str, str]
) -> list[dict[str, str]]:
    """What two configurations say differently, one line an option."""
    return [
        {
            "Option": name,
            names[0]: first.get(name, "not said"),
            names[1]: second.get(name, "not said"),
        }
        for name in {**first, **second}
        if first.get(name) != second.get(name)
    ]


def all_options(metadata: CheckpointMetadata) -> dict[str, str]:
    """All that a checkpoint says about itself, by what people call it."""
    about = {
        "architecture": metadata.architecture,
        "width": f"{metadata.width:g}",
        "input": " x ".join(map(str, metadata.input_size)),
        "classes": str(metadata.num_classes),
        "mean": numbers(metadata.mean),
        "std": numbers(metadata.std),
        "data": metadata.dataset,
        "rule": metadata.rule,
        "epochs": str(metadata.epoch),
        "seed": str(metadata.seed),
        "accuracy": texts.percent(metadata.accuracy["value"]) if metadata.accuracy else "not said",
    }
    return about | {row["Option"]: row["Value"] for row in texts.config_rows(metadata)}


def trial_rows(evidence: Mapping[str, Any]) -> list[dict[str, object]]:
    """What each choice of preprocessing made of the images, best first."""
    return [
        {
            "Preprocessing": trial["name"],
            "Accuracy": texts.percent(trial["accuracy"]),
            "n": trial.get("samples"),
            "95% interval": f"{texts.percent(trial['low'])} to {texts.percent(trial['high'])}",
            "Cross-entropy (nats)": f"{trial['cross_entropy']:.3f}",
            "Order of classes": "another" if trial["class_order"] else "as in the data",
        }
        for trial in evidence["trials"]
    ]


def evidence_note(evidence: Mapping[str, Any]) -> str:
    """Which images the trials are about."""
    which = f"Tried on the {evidence['split']} split of {evidence['title']}"
    if len({trial.get("samples") for trial in evidence["trials"]}) > 1:
        return f"{which}: all choices on some of the images, those that may be the best on all (n)."
    return f"{which}."


def numbers(values: Sequence[float]) -> str:
    """Numbers as they are typed in."""
    return ", ".join(f"{value:.4g}" for value in values)


def parse_numbers(text: str, what: str) -> tuple[float, ...]:
    """Numbers with commas between them.

    Raises:
        ValueError: they are none; one sentence.
    """
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise ValueError(
            f"The {what} must be numbers with commas between them, one a channel, not "
            f"{text[:40]!r}; for instance 0.485, 0.456, 0.406."
        ) from None


def parse_classes(text: str) -> tuple[str, ...] | None:
    """Names with commas or line ends between them; None for no text."""
    names = [part.strip() for part in text.replace("\n", ",").split(",")]
    return tuple(name for name in names if name) or None
