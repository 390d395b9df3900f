"""One pass over images: every layer of every model, reduced as soon as it is computed.

In: models, images, and what the measures need. Out: what is kept of each layer: Gram matrices, one
batch at a time, in a CKA accumulator; pooled features; predictions. Parts of a pass that were read
by several processes are put together by `merged`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from analysis.cka_result import FloatArray
from analysis.errors import Cancelled
from analysis.features import ImageSample, IntArray, auxiliary_logits, visit_features
from analysis.gram import centred_gram, packed, spatial_pool
from analysis.gram_store import GramStore, gram_key
from analysis.minibatch import CKAAccumulator
from analysis.models import Model
from analysis.probes import pooled
from analysis.request import StudyRequest

Key = tuple[str, str]
Features = dict[Key, FloatArray]


@dataclass(frozen=True)
class Progress:
    """How far a run is: `done` of `total` steps of the stage with this name."""

    stage: str
    done: int
    total: int


class Watch:
    """Report progress, and listen for a wish to stop."""

    def __init__(self, progress: Callable[[Progress], None], cancelled: Callable[[], bool]) -> None:
        self._progress = progress
        self.cancelled = cancelled
        self._at = Progress("", 0, 0)

    def start(self, stage: str, total: int) -> None:
        """Begin a stage of `total` steps."""
        self._at = Progress(stage, 0, total)
        self._progress(self._at)

    def check(self) -> None:
        """Stop here if that is wished."""
        if self.cancelled():
            raise Cancelled("The analysis was cancelled; nothing was saved.")

    @property
    def done(self) -> int:
        """Steps done of this stage."""
        return self._at.done

    def step(self) -> None:
        """Count one step."""
        self.to(self._at.done + 1)

    def to(self, done: int) -> None:
        """Say how many steps are done."""
        self._at = Progress(self._at.stage, done, self._at.total)
        self._progress(self._at)


@dataclass(eq=False)
class Reading:
    """What some batches of images gave.

    Attributes:
        cka: None where it was not asked for, or is of the whole set.
        features: pooled, of each batch by its index, by (model, layer).
        predictions: of each model's own head, likewise by model; None of one without.
        auxiliary: predictions of the auxiliary networks, by (model, layer).
    """

    cka: CKAAccumulator | None = None
    features: dict[Key, dict[int, FloatArray]] = field(default_factory=dict)
    predictions: dict[str, dict[int, IntArray]] = field(default_factory=dict)
    auxiliary: dict[Key, dict[int, IntArray]] = field(default_factory=dict)

    def all_features(self) -> Features:
        """Pooled features of all images read, in order, (N, D) by (model, layer)."""
        return {key: _joined(parts) for key, parts in self.features.items()}

    def all_predictions(self) -> dict[str, IntArray]:
        """(N,) by model."""
        return {key: _joined(parts) for key, parts in self.predictions.items()}

    def all_auxiliary(self) -> dict[Key, IntArray]:
        """(N,) by (model, layer)."""
        return {key: _joined(parts) for key, parts in self.auxiliary.items()}


def _joined(parts: Mapping[int, Any]) -> Any:
    return np.concatenate([parts[index] for index in sorted(parts)])


def merged(readings: Sequence[Reading]) -> Reading:
    """Put parts of one pass together; every batch was read once."""
    whole = Reading(cka=readings[0].cka)
    for part in readings[1:]:
        if whole.cka is not None and part.cka is not None:
            whole.cka = whole.cka.merge(part.cka)
    for part in readings:
        for mine, other in (
            (whole.features, part.features),
            (whole.predictions, part.predictions),
            (whole.auxiliary, part.auxiliary),
        ):
            for key, batches in other.items():
                mine.setdefault(key, {}).update(batches)  # type: ignore[arg-type]
    return whole


@dataclass(frozen=True)
class Share:
    """Which batches of a pass this process reads: every `count`th from `index` on."""

    index: int = 0
    count: int = 1

    def batches(self, slices: Sequence[slice]) -> Iterator[tuple[int, slice]]:
        """(index, images) of the batches of this share."""
        numbered = list(enumerate(slices))
        return iter(numbered[self.index :: self.count])


def read_features(
    models: Mapping[str, Model],
    samples: Mapping[str, ImageSample],
    slices: Sequence[slice],
    pooling: int | None,
    watch: Watch,
    share: Share,
) -> Reading:
    """Keep the pooled features of every layer: what probes learn from.

    `samples` are the same images by model, of the size that each takes.
    """
    reading = Reading()
    mine = list(share.batches(slices))
    watch.start("Reading training images", len(mine) * len(models))
    for index, batch in mine:
        for name, model in models.items():
            watch.check()

            def keep(layer: str, features: Any, name: str = name, index: int = index) -> None:
                reading.features.setdefault((name, layer), {})[index] = pooled(features, pooling)

            visit_features(model, samples[name].images[batch], keep)
            watch.step()
    return reading


def read_test(
    models: Mapping[str, Model],
    samples: Mapping[str, ImageSample],
    slices: Sequence[slice],
    request: StudyRequest,
    watch: Watch,
    share: Share,
    refined: Callable[[CKAAccumulator], None] = lambda accumulator: None,
) -> Reading:
    """Read every layer of every model once, for all measures that were asked for.

    `samples` are the same images by model, of the size that each takes.

    Where a wish to stop comes after a batch was done, the batches done are what is returned.
    `refined` is called with what CKA has gathered after every batch but the last.
    """
    minibatch = "cka" in request.measures and not request.full_set
    layers = {name: model.layer_names for name, model in models.items()}
    reading = Reading(cka=make_accumulator(layers, request) if minibatch else None)
    kept = KeptGrams(request, samples, slices) if minibatch and request.grams is not None else None
    known = {name: kept.find(name, model) for name, model in models.items()} if kept else {}
    mine = list(share.batches(slices))
    watch.start("Reading test images", len(mine) * len(models))
    fresh: dict[Key, dict[int, FloatArray]] = {}
    for index, batch in mine:
        grams: dict[Key, FloatArray] = {}
        num_read = 0
        for name, model in models.items():
            if watch.cancelled():
                break
            num_read += 1
            found = known.get(name)
            if found is not None and not request.keeps_features:
                grams |= {(name, layer): parts[index] for layer, parts in found.items()}
            else:
                images = samples[name].images[batch]
                visitor = _Visitor(reading, request, name, index, model, images)
                visitor.run(grams if minibatch else None)
            watch.step()
        if num_read < len(models):
            _forget_batch(reading, index)
            break
        if reading.cka is not None:
            reading.cka.update(grams, index=index)
            if index != mine[-1][0]:
                refined(reading.cka)
        if kept is not None:
            for key, gram in grams.items():
                if known.get(key[0]) is None:
                    fresh.setdefault(key, {})[index] = packed(gram)
    if kept is not None and share.count == 1 and not watch.cancelled():
        kept.keep(models, fresh)
    return reading


def _forget_batch(reading: Reading, index: int) -> None:
    """Leave out a batch that not all models have read."""
    for part in (reading.features, reading.predictions, reading.auxiliary):
        for batches in part.values():
            batches.pop(index, None)


def make_accumulator(layers: Mapping[str, Sequence[str]], request: StudyRequest) -> CKAAccumulator:
    """An empty accumulator with the options of a request."""
    return CKAAccumulator(
        layers,
        kernel=request.kernel,
        bandwidth=request.bandwidth,
        precision=request.precision,
        num_shuffles=request.num_shuffles,
        seed=request.seed,
    )


@dataclass(frozen=True)
class _Visitor:
    """Reads one batch by one model."""

    reading: Reading
    request: StudyRequest
    name: str
    index: int
    model: Model
    images: Any

    def run(self, grams: dict[Key, FloatArray] | None) -> None:
        """Reduce each layer as it is computed; `grams` takes the Gram matrices."""

        def visit(layer: str, features: Any) -> None:
            key = self.name, layer
            if grams is not None:
                grams[key] = self._gram(features)
            if self.request.keeps_features:
                kept = self.reading.features.setdefault(key, {})
                kept[self.index] = pooled(features, self.request.probe_pooling)
                self._ask_auxiliary(key, features)

        logits = visit_features(self.model, self.images, visit)
        if logits is not None:
            predictions = self.reading.predictions.setdefault(self.name, {})
            predictions[self.index] = logits.argmax(dim=1).cpu().numpy()

    def _gram(self, features: Any) -> FloatArray:
        pooling = self.request.pooling
        return centred_gram(
            features if pooling is None else spatial_pool(features, pooling),
            kernel=self.request.kernel,
            bandwidth=self.request.bandwidth,
            precision=self.request.precision,
        )

    def _ask_auxiliary(self, key: Key, features: Any) -> None:
        """Keep what the layer's own auxiliary network says, where the checkpoint carries it."""
        if "probe" not in self.request.measures:
            return
        logits = auxiliary_logits(self.model, key[1], features)
        if logits is not None:
            answers = self.reading.auxiliary.setdefault(key, {})
            answers[self.index] = logits.argmax(dim=1).cpu().numpy()


class KeptGrams:
    """Gram matrices of whole passes, found again by what they depend on.

    Args:
        request: names the folder and the options.
        samples, slices: the images by model, and how they are cut.
    """

    def __init__(
        self,
        request: StudyRequest,
        samples: Mapping[str, ImageSample],
        slices: Sequence[slice],
    ) -> None:
        assert request.grams is not None
        self._store = GramStore(request.grams)
        self._request = request
        self._images = {name: sample.sha256 for name, sample in samples.items()}
        self._sizes = [batch.stop - batch.start for batch in slices]

    def find(self, name: str, model: Model) -> dict[str, list[FloatArray]] | None:
        """All layers' Grams of all batches; None unless every one is there."""
        found = {}
        for layer in model.layer_names:
            grams = self._store.get(self._key(name, model, layer))
            if grams is None or len(grams) != len(self._sizes):
                return None
            found[layer] = grams
        return found

    def keep(self, models: Mapping[str, Model], fresh: Mapping[Key, dict[int, FloatArray]]) -> None:
        """Keep what was computed anew."""
        for (name, layer), batches in fresh.items():
            grams = [batches[index] for index in sorted(batches)]
            self._store.put(self._key(name, models[name], layer), grams)

    def _key(self, name: str, model: Model, layer: str) -> str:
        request = self._request
        return gram_key(
            checkpoint=model.sha256,
            images=self._images[name],
            layer=layer,
            batch_sizes=self._sizes,
            kernel=request.kernel,
            bandwidth=request.bandwidth if request.kernel == "rbf" else None,
            pooling=request.pooling,
            precision=request.precision,
        )
