"""One layer's images reduced to what geometry needs: sums by group, and a sample of images.

In: features (n, D) of batch after batch, with labels and the images' indices. Out: `LayerSums`,
which merge exactly, whatever the order of the images. This file knows numpy only.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from analysis.activity import lengths, sparseness_by_image, zero_fractions
from analysis.moments import FloatArray, IntArray, Moments, Undefined, add_up, matrix

# A layer of this width keeps 8 MiB of second moments in 16 groups; wider ones are measured over
# the sample of images alone.
WIDEST = 256
TALLIES = ("images", "norms", "squared norms", "zeros", "sparseness", "active images")


@dataclass(frozen=True)
class SumsOptions:
    """What has to agree between sums that are to be merged.

    `groups` images are dealt to for the jackknife, at random by `seed`; `sample` images are kept
    whole, those whose random numbers are the smallest.
    """

    groups: int
    sample: int
    seed: int


@dataclass(frozen=True, eq=False)
class ImageSample:
    """Whole features of some images: `features` (n, D) with `labels`, `groups`, `indices` (n,).

    `keys` (n,) are the random numbers by which they were drawn.
    """

    features: FloatArray
    labels: IntArray
    groups: IntArray
    indices: IntArray
    keys: npt.NDArray[np.uint64]

    def take(self, rows: Any) -> ImageSample:
        """Pick images by position."""
        return ImageSample(
            self.features[rows],
            self.labels[rows],
            self.groups[rows],
            self.indices[rows],
            self.keys[rows],
        )

    def joined(self, other: ImageSample, size: int) -> ImageSample:
        """Put two samples together, keep the `size` smallest keys, in the order of indices."""
        both = ImageSample(
            np.concatenate([self.features, other.features]),
            np.concatenate([self.labels, other.labels]),
            np.concatenate([self.groups, other.groups]),
            np.concatenate([self.indices, other.indices]),
            np.concatenate([self.keys, other.keys]),
        )
        if len(both.keys) > size:
            both = both.take(np.argpartition(both.keys, size)[:size])
        both = both.take(np.argsort(both.indices, kind="stable"))
        if (twice := both.indices[1:] == both.indices[:-1]).any():
            raise ValueError(
                f"image {both.indices[:-1][twice][0]} was added twice to the same layer: give each "
                "image an index of its own"
            )
        return both


@dataclass(frozen=True, eq=False)
class LayerSums:
    """One layer so far. Never changed in place: `plus` gives a new one.

    `origin` (D,) is the first image, off which `moments` are taken: one for each group, empty
    for layers wider than `WIDEST`. `tallies` (G, 6) are sums over images, named in TALLIES.
    `lowest` and `highest` (D,) bound each unit. `finite` is False once a feature was not finite.
    """

    options: SumsOptions
    origin: FloatArray
    moments: tuple[Moments, ...]
    tallies: FloatArray
    lowest: FloatArray
    highest: FloatArray
    sample: ImageSample
    finite: bool

    @property
    def samples(self) -> int:
        """Number of images."""
        return int(self.tallies[:, 0].sum())

    @property
    def width(self) -> int:
        """Number of features of an image, D."""
        return len(self.origin)

    def plus(self, other: LayerSums) -> LayerSums:
        """Put the images of two together."""
        if not (self.finite and other.finite):
            return replace(self, finite=False, tallies=self.tallies + other.tallies)
        step = other.origin - self.origin
        classes = max((len(part.counts) for part in self.moments + other.moments), default=0)
        with np.errstate(all="ignore"):
            moments = tuple(
                with_classes(mine, classes) + with_classes(theirs.moved(step), classes)
                for mine, theirs in zip(self.moments, other.moments, strict=True)
            )
        return LayerSums(
            options=self.options,
            origin=self.origin,
            moments=moments,
            tallies=self.tallies + other.tallies,
            lowest=np.minimum(self.lowest, other.lowest),
            highest=np.maximum(self.highest, other.highest),
            sample=self.sample.joined(other.sample, self.options.sample),
            finite=True,
        )


def layer_sums(
    features: Any,
    labels: IntArray,
    indices: IntArray,
    options: SumsOptions,
    origin: FloatArray | None = None,
) -> LayerSums:
    """Reduce one batch.

    Args:
        features: (n, ...) array or tensor, flattened to (n, D).
        labels: (n,) classes.
        indices: (n,) which images these are; no image may be added twice.
        options: shared by all batches.
        origin: (D,) of the batches before; the first image if None.

    Returns:
        the sums of this batch.

    Raises:
        ValueError: features without an axis for images.
    """
    try:
        rows, finite = matrix(features), True
    except Undefined:
        rows, finite = np.zeros((len(labels), int(np.prod(features.shape[1:])))), False
    keys = random_keys(indices, options.seed)
    groups = (random_keys(keys, options.seed + 1) % np.uint64(options.groups)).astype(np.int64)
    origin = rows[0].astype(np.float64) if origin is None else origin
    whole = ImageSample(rows, labels, groups, indices, keys)
    empty = whole.take(slice(0, 0))
    return LayerSums(
        options=options,
        origin=origin,
        moments=_group_moments(rows, labels, groups, origin, options) if finite else (),
        tallies=_tallies(rows, groups, options.groups),
        lowest=rows.min(axis=0),
        highest=rows.max(axis=0),
        # A copy, for the features may be the memory of a tensor that is worked on in place.
        sample=empty.joined(whole, options.sample) if finite else empty,
        finite=finite,
    )


def random_keys(indices: Any, seed: int) -> npt.NDArray[np.uint64]:
    """Give each whole number a random one of 64 bits, the same in every process.

    Source: Steele, Lea and Flood 2014 (Fast splittable pseudorandom number generators), figure
    17, SplitMix64's mixing function with David Stafford's constants.
    """
    steps = np.uint64(0x9E3779B97F4A7C15)
    start = np.uint64((seed * 0xD1342543DE82EF95 + 1) % 2**64)
    keys = (np.asarray(indices).astype(np.uint64) + np.uint64(1)) * steps + start
    keys = (keys ^ (keys >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    keys = (keys ^ (keys >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(keys ^ (keys >> np.uint64(31)), dtype=np.uint64)


def with_classes(sums: Moments, count: int) -> Moments:
    """Give moments room for classes that have no images yet."""
    missing = count - len(sums.counts)
    if missing <= 0:
        return sums
    return Moments(
        np.pad(sums.counts, (0, missing)), np.pad(sums.sums, ((0, missing), (0, 0))), sums.second
    )


def _group_moments(
    rows: FloatArray, labels: IntArray, groups: IntArray, origin: FloatArray, options: SumsOptions
) -> tuple[Moments, ...]:
    """Moments of each group's images off the origin; none for wide layers."""
    if rows.shape[1] > WIDEST:
        return ()
    classes = int(labels.max()) + 1
    moved = rows.astype(np.float64) - origin
    return tuple(
        add_up(moved[groups == group], labels[groups == group], classes)
        for group in range(options.groups)
    )


def _tallies(rows: FloatArray, groups: IntArray, count: int) -> FloatArray:
    """Sums of each group's images, (G, 6)."""
    norms, sparse = lengths(rows), sparseness_by_image(rows)
    active = ~np.isnan(sparse)
    with np.errstate(over="ignore"):
        squares = norms**2
    columns = [
        np.ones(len(rows)),
        norms,
        squares,
        zero_fractions(rows),
        np.where(active, sparse, 0),
        active.astype(np.float64),
    ]
    return np.stack([np.bincount(groups, column, count) for column in columns], axis=1)
