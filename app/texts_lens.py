"""What a lens found, in words and tables."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from analysis.figures import rule_title
from app import texts
from app.sources.checkpoints import CheckpointFile
from app.sources.lens import LensRequest, Seen

if TYPE_CHECKING:
    from analysis.lens import Lens, LensAnswer, Neighbours

COLUMNS = ("checkpoint", "sha256", "image", "reader", "layer", "class", "probability", "reason")
NEIGHBOUR_COLUMNS = (
    "checkpoint",
    "sha256",
    "image",
    "layer",
    "metric",
    "rank",
    "training_image",
    "class",
    "distance",
)


@dataclass(frozen=True, eq=False)
class View:
    """One network's half of the page: its lens, the image as it sees it, and what was said."""

    entry: CheckpointFile
    request: LensRequest
    lens: Lens
    seen: Seen
    said: LensAnswer

    def part(self, kind: str) -> np.ndarray[Any, Any]:
        """What readers of a kind say, (L, K); NaN rows where a layer has none."""
        rows = [self.said.row(kind, name) for name in self.lens.layer_names]
        nothing = np.full(len(self.lens.classes), math.nan)
        return np.array([nothing if row is None else row for row in rows])

    def classifier(self) -> np.ndarray[Any, Any]:
        """What the network's own classifier says, (K,); NaN where undefined."""
        row = self.said.row("classifier", "classifier")
        return np.full(len(self.lens.classes), math.nan) if row is None else row


def verdict(view: View, settled: int | None) -> str:
    """One sentence on what a network makes of an image and from where on; markdown-safe."""
    classes, own, probes = view.lens.classes, view.classifier(), view.part("probe")
    name = f"**{texts.plain(rule_title(view.entry.rule))}**"
    if math.isnan(own[0]):
        start = f"{name}: its classifier cannot speak of these classes"
    else:
        start = f"{name} says {_class_value(classes, own)}{_right(view, int(own.argmax()))}"
    if settled is None:
        return f"{start}."
    last = int(probes[-1].argmax())
    where = texts.plain(view.lens.layer_names[settled])
    said = texts.plain(classes[last])
    if settled == len(probes) - 1 and len(probes) > 1:
        return f"{start}; of the probes only the last layer's says {said}."
    if settled == 0:
        return f"{start}; the probes of all layers say {said}."
    return f"{start}; all probes from {where} on say {said}."


def _class_value(classes: Sequence[str], probabilities: np.ndarray[Any, Any]) -> str:
    """The likeliest class and its probability."""
    index = int(probabilities.argmax())
    return f"{texts.plain(classes[index])} ({probabilities[index]:.3f})"


def _right(view: View, said: int) -> str:
    """Whether that is so, where it is known."""
    if view.seen.label is None:
        return ""
    true = texts.plain(view.lens.classes[view.seen.label])
    return ", which is right" if said == view.seen.label else f", but it is {true}"


def honesty(view: View) -> str:
    """What the probabilities are and are not, with the numbers that tell; markdown-safe."""
    lens = view.lens
    count = len(lens.layers)
    last = _claim(lens, count - 1, "the last layer's probe")
    # Of an upload nobody knows whether it was among them.
    unseen = "" if view.seen.label is None else " and never to this one"
    own = _claim(lens, len(lens.readers) - 1, "the network's own classifier")
    claims = "; ".join(part for part in (last, own) if part)
    return (
        f"{texts.plain(view.entry.name)}: each probe is a logistic regression (penalty "
        f"{lens.penalty:g}) fitted to {len(lens.train_labels):,} training images{unseen}. "
        "Probabilities are softmax at temperature 1, not calibrated, and tend to be overconfident: "
        f"on {len(lens.test_labels):,} test images {claims or 'nothing could be checked'}."
    )


def _claim(lens: Lens, reader: int, name: str) -> str:
    """What a reader claims on average, and how often it is right."""
    accuracy, confidence = lens.accuracy(reader), lens.mean_confidence(reader)
    if math.isnan(accuracy):
        return ""
    return f"{name} claims {confidence:.1%} on average and is right on {accuracy:.1%}"


def no_auxiliaries(rule: str) -> str:
    """Why there is no strip of auxiliary networks."""
    if rule == "bp":
        return "BP trains no auxiliary networks."
    return "This checkpoint carries no auxiliary networks; training can keep them in the file."


def beliefs_csv(views: Sequence[View]) -> str:
    """All that is said of the image, one line a reader and class."""
    return _csv(COLUMNS, [row for view in views for row in _belief_rows(view)])


def _belief_rows(view: View) -> list[tuple[object, ...]]:
    said = view.said
    start = (view.entry.name, view.entry.sha256, view.seen.name)
    rows: list[tuple[object, ...]] = []
    for index, reader in enumerate(said.readers):
        for name, value in zip(said.classes, said.probabilities[index], strict=True):
            number = repr(float(value)) if math.isfinite(value) else ""
            row = (reader.kind, reader.layer, name, number, said.reasons.get(index, ""))
            rows.append((*start, *row))
    return rows


def neighbours_csv(views: Sequence[View], found: Sequence[Neighbours]) -> str:
    """The nearest training images, one line each; training_image counts within the split."""
    rows: list[tuple[object, ...]] = []
    for view, part in zip(views, found, strict=True):
        start = (view.entry.name, view.entry.sha256, view.seen.name)
        for layer, positions, distances in zip(
            part.layers, part.positions, part.distances, strict=True
        ):
            for rank, (position, distance) in enumerate(
                zip(positions, distances, strict=True), start=1
            ):
                if position < 0:
                    continue
                index = int(view.lens.train_indices[position])
                name = view.lens.classes[view.lens.train_labels[position]]
                rows.append((*start, layer, part.metric, rank, index, name, repr(float(distance))))
    return _csv(NEIGHBOUR_COLUMNS, rows)


def lens_json(views: Sequence[View], found: Sequence[Neighbours]) -> str:
    """Both tables, and what they rest on, as one JSON text."""
    document = {
        "format": "auglocal-lens",
        "networks": [
            {
                "checkpoint": view.entry.name,
                "sha256": view.entry.sha256,
                "dataset": view.request.dataset,
                "seed": view.request.seed,
                "train_samples": len(view.lens.train_labels),
                "test_samples": len(view.lens.test_labels),
                "penalty": view.lens.penalty,
                "image": view.seen.name,
                "label": None if view.seen.label is None else view.lens.classes[view.seen.label],
                "classes": view.lens.classes,
                "readers": [
                    {
                        "kind": reader.kind,
                        "layer": reader.layer,
                        "probabilities": [
                            float(value) if math.isfinite(value) else None
                            for value in view.said.probabilities[index]
                        ],
                        "reason": view.said.reasons.get(index),
                    }
                    for index, reader in enumerate(view.said.readers)
                ],
                "neighbours": {
                    "metric": part.metric,
                    "layers": {
                        layer: [
                            {
                                "training_image": int(view.lens.train_indices[position]),
                                "class": view.lens.classes[view.lens.train_labels[position]],
                                "distance": float(distance),
                            }
                            for position, distance in zip(positions, distances, strict=True)
                            if position >= 0
                        ]
                        for layer, positions, distances in zip(
                            part.layers, part.positions, part.distances, strict=True
                        )
                    },
                },
            }
            for view, part in zip(views, found, strict=True)
        ],
    }
    return json.dumps(document, sort_keys=True, allow_nan=False) + "\n"


def python_lines(views: Sequence[View], image: int | str, path: Sequence[str]) -> str:
    """The lines that compute the same again.

    Args:
        views: what the page shows.
        image: its number in the test split, or the checksum of an uploaded one.
        path: of each checkpoint, as one would type it.
    """
    request = views[0].request
    lines = [
        "import torch",
        "from analysis.features import sample_images",
        "from analysis.lens import ask, fit_lens, nearest",
        "from analysis.models import open_model",
        "from auglocal.data import load_dataset",
        "",
    ]
    resized = request.dataset.startswith("imagefolder:")
    size = f", image_size={views[0].seen.pixels.shape[0]}" if resized else ""
    draw = f'sample_images("{request.dataset}", "{{}}", seed={request.seed}, default_samples={{}}'
    lines.append(f"train = {draw.format('train', request.train_samples)}{size})")
    lines.append(f"test = {draw.format('test', request.samples)}{size})")
    if isinstance(image, int):
        lines.append(f'split = load_dataset("{request.dataset}"{size}).splits["test"]')
        lines.append(f"image = split.take(torch.tensor([{image}]))[0]")
    else:
        lines.append(
            "image = ...  # your image as a uint8 tensor (C, H, W), resized as the network takes it"
        )
    lines.append(f"for path in {list(path)!r}:")
    lines.append("    model = open_model(path, auxiliaries=True)")
    lines.append("    lens = fit_lens(model, train, test)")
    lines.append("    answer = ask(model, lens, image)")
    lines.append("    print(answer.readers, answer.probabilities, nearest(lens, answer))")
    return "\n".join(lines)


def _csv(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(head)
    writer.writerows(rows)
    return stream.getvalue()
