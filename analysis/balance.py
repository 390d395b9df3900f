"""Class sizes and a number of images in, how many of each class and which of them out."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from analysis.errors import InputError

IntArray = npt.NDArray[np.int64]
MOST_LISTED = 5


def usual_samples(counts: IntArray, most: int) -> int:
    """Give the largest multiple of K up to `most` that every class can take an equal part in.

    Args:
        counts: (K,) images of each class.
        most: images at most; K at least are given, whether classes have them or not.
    """
    share = min(int(counts.min()), most // len(counts))
    return max(share, 1) * len(counts)


def class_quotas(
    classes: Sequence[str],
    counts: IntArray,
    samples: int,
    generator: np.random.Generator,
    place: str,
) -> IntArray:
    """Share images out among classes; where they do not divide, some drawn at random have one more.

    Args:
        classes: K names.
        counts: (K,) images of each class.
        samples: images to be drawn.
        generator: draws the classes that have one more.
        place: what holds the images, for people.

    Returns:
        (K,) images of each class, which sum to `samples` and differ by at most 1.

    Raises:
        InputError: there are fewer images than classes, or a class has too few.
    """
    share, remainder = divmod(samples, len(counts))
    if share == 0:
        raise InputError(
            f"{samples:,} images cannot be balanced over the {len(counts):,} classes of {place}; "
            f"ask for {len(counts):,} or more."
        )
    smallest = int(counts.argmin())
    if counts[smallest] < share:
        most = int(counts[smallest]) * len(counts)
        advice = f"ask for {most:,} or fewer, or draw them" if most else "draw them"
        raise InputError(
            f"A balanced draw of {samples:,} images takes {share:,} of each class, but {place} "
            f"holds {counts[smallest]:,} of class {classes[smallest]!r}; {advice} without balance."
        )
    able = np.flatnonzero(counts > share)
    if len(able) < remainder:
        raise InputError(
            f"A balanced draw of {samples:,} images takes {share + 1:,} of {remainder:,} classes, "
            f"but only {len(able):,} classes of {place} hold so many; ask for "
            f"{share * len(counts):,}."
        )
    quotas = np.full(len(counts), share, dtype=np.int64)
    quotas[generator.permutation(able)[:remainder]] += 1
    return quotas


def within_quotas(labels: IntArray, quotas: IntArray) -> IntArray:
    """Give the positions (M,) of the first images of each class up to its quota, in order.

    Args:
        labels: (N,), in 0 .. K - 1.
        quotas: (K,), each at most the number of images of its class.
    """
    positions = np.argsort(labels, kind="stable")
    counts = np.bincount(labels, minlength=len(quotas))
    rank = np.arange(len(labels)) - np.repeat(np.cumsum(counts) - counts, counts)
    return np.sort(positions[rank < np.repeat(quotas, counts)])


def remainder_note(classes: Sequence[str], quotas: IntArray) -> str:
    """Say which classes have one image more, in a sentence; "" if none has."""
    share = int(quotas.min())
    more = [classes[index] for index in np.flatnonzero(quotas > share).tolist()]
    if not more:
        return ""
    left = len(more) - MOST_LISTED
    listed = ", ".join(more[:MOST_LISTED]) + (f" and {left} more" if left > 0 else "")
    return (
        f"{quotas.sum():,} images do not divide by {len(classes):,} classes: {share + 1:,} images "
        f"of {listed}, {share:,} of each other class."
    )
