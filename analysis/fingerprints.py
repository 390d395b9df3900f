"""Keys and shapes of a state dict in, the published architectures that have them out.

Every classification architecture of torchvision and timm is known by a fingerprint, from a table
beside this file that `scripts/make_fingerprints.py` writes. Neither library is needed to read it.

The fingerprint of a network is the sum, modulo 2^64, of a hash of each "key shape". In a shape "?"
takes the place of what users change: the number of classes, the channels of the images, and the
number of positions, which depends on the size of the images. Counters of BatchNorm and tables that
are computed do not count, since not all files have them. The table says which entries these are; as
the fingerprint is a sum, all cases are tried without hashing anew.
"""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from hashlib import blake2b
from heapq import nlargest
from itertools import groupby
from math import isqrt
from pathlib import Path
from typing import Any, NamedTuple

Shape = tuple[int, ...]
Shapes = Mapping[str, Shape]

TABLE = Path(__file__).with_name("fingerprints.zip")
INDEX = "index.json"
# Keys and shapes lie in several members, so that few need be unpacked for the nearest network.
NETWORKS_PER_MEMBER = 64
# Keys of these ends count the steps of training, or are tables that a network computes anew. Which
# of them a file has depends on the version that wrote it, and they say nothing of the architecture.
COMPUTED = (
    "num_batches_tracked",
    "attn_mask",
    "relative_position_index",
    "relative_coords_table",
)
# DenseNets of before torchvision 0.4 and vision transformers of before 0.14.
RENAMED = (
    (re.compile(r"(\.denselayer\d+\.(?:norm|conv))\.([12]\.\w+)$"), r"\1\2"),
    (re.compile(r"^(encoder\.layers\.encoder_layer_\d+\.mlp)\.linear_1\."), r"\1.0."),
    (re.compile(r"^(encoder\.layers\.encoder_layer_\d+\.mlp)\.linear_2\."), r"\1.3."),
)
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
MODULUS = 2**64
# Hashes kept of each set of keys, the smallest: two sets of which half is common share about 16.
SKETCH_SIZE = 48
# Sets of keys with the most common hashes, which are compared in full.
CANDIDATES = 4
MOST_MISFITS = 5


@dataclass(frozen=True)
class Published:
    """A published architecture, in the form that a file has it.

    Attributes:
        library: "torchvision" or "timm".
        name: as the library lists it.
        num_classes: K; 0 where the file has no classifier.
        in_channels: of the images.
        input_size: (C, H, W) of an image: told from the positions where there are some, otherwise
            that of the published weights.
        changes: what differs from the published form, a few words each.
        sized: only images of this size fit, since the tensors depend on it.
        mean: of pixel values in [0, 1] by channel, for which the published weights were trained.
        std: likewise.
    """

    library: str
    name: str
    num_classes: int
    in_channels: int
    input_size: tuple[int, int, int]
    changes: tuple[str, ...] = ()
    sized: bool = False
    mean: tuple[float, ...] = IMAGENET[0]
    std: tuple[float, ...] = IMAGENET[1]


class Nearest(NamedTuple):
    """The published architecture with the most of a file's keys and shapes.

    Attributes:
        name: "torchvision:densenet121".
        share: of all keys of both that are in both with the same shape, in [0, 1].
        misfits: a few words on each of the first few others.
    """

    name: str
    share: float
    misfits: tuple[str, ...]


class Variable(NamedTuple):
    """An entry of a shape that is a number of classes or channels, or a multiple of it."""

    key: str
    axis: int
    multiple: int


class Position(NamedTuple):
    """Entries of a shape that depend on the size of the images.

    One axis has (side / patch)^2 + extra entries, two axes have side / patch each.
    """

    key: str
    axes: tuple[int, ...]
    patch: int
    extra: int


class Pattern(NamedTuple):
    """Which entries of the shapes of an architecture users change."""

    classes: tuple[Variable, ...]
    channels: tuple[Variable, ...]
    positions: tuple[Position, ...]

    def axes(self) -> dict[str, set[int]]:
        """Give the axes that are "?" in the fingerprint, by key."""
        axes: dict[str, set[int]] = {}
        for variable in (*self.classes, *self.channels):
            axes.setdefault(variable.key, set()).add(variable.axis)
        for position in self.positions:
            axes.setdefault(position.key, set()).update(position.axes)
        return axes


class Form(NamedTuple):
    """An architecture by name, and the form in which its weights were published."""

    library: str
    name: str
    input_size: tuple[int, int, int]
    num_classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]


class Network(NamedTuple):
    """Architectures of the same keys and shapes, likeliest first."""

    pattern: Pattern
    forms: tuple[Form, ...]


class Table(NamedTuple):
    """The table, ready to be asked.

    Attributes:
        networks: all of them.
        patterns: of the networks, each once.
        by_fingerprint: networks by pattern and fingerprint.
        by_body: networks by pattern and fingerprint without the classifier's last layer.
        sketches: of sets of keys, each with the networks that have just these.
    """

    networks: list[Network]
    patterns: list[Pattern]
    by_fingerprint: dict[tuple[Pattern, int], int]
    by_body: dict[tuple[Pattern, int], int]
    sketches: list[tuple[list[int], list[int]]]


# --------------------------------------------------------------------------- fingerprints


def hash_text(text: str) -> int:
    """Hash a text to 64 bits, the same on every machine."""
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "little")


def shape_text(shape: Shape, hidden: Sequence[int] | set[int] = ()) -> str:
    """Write a shape as "64x3x7x7", with "?" on the axes that are hidden."""
    return "x".join("?" if axis in hidden else str(size) for axis, size in enumerate(shape))


def without_computed(shapes: Shapes) -> dict[str, Shape]:
    """Leave out what a network computes anew, and call keys what they are called today."""
    return {current_key(key): tuple(shape) for key, shape in shapes.items() if not is_computed(key)}


def is_computed(key: str) -> bool:
    """Tell whether a network does without this tensor of a file."""
    return key.endswith(COMPUTED)


def current_key(key: str) -> str:
    """Rename a key of the files that torchvision offers as torchvision does when it loads them."""
    for old, new in RENAMED:
        key = old.sub(new, key)
    return key


def fingerprint(shapes: Shapes, pattern: Pattern) -> int:
    """Compute the fingerprint of a network whose users change what a pattern says.

    Args:
        shapes: by key, without what is computed; all keys of the pattern are among them.
        pattern: of the architecture.

    Returns:
        an integer below 2^64.
    """
    axes = pattern.axes()
    texts = (f"{key} {shape_text(shape, axes.get(key, ()))}" for key, shape in shapes.items())
    return sum(map(hash_text, texts)) % MODULUS


def sketch_keys(keys: Sequence[str]) -> list[int]:
    """Keep the smallest hashes of keys, by which similar sets are found (MinHash).

    Source: Broder, 1997, On the resemblance and containment of documents.
    """
    return sorted(hash_text(key) >> 32 for key in keys)[:SKETCH_SIZE]


# --------------------------------------------------------------------------- asking


def find_published(shapes: Shapes) -> tuple[Published, ...]:
    """Find the published architectures that have these keys and shapes.

    Args:
        shapes: of a state dict, by key, without the prefixes of wrappers.

    Returns:
        likeliest first: of the size of images and number of classes found, torchvision before timm,
        short names before long ones. Empty where there is none.
    """
    table, shapes = read_table(), without_computed(shapes)
    base = fingerprint(shapes, Pattern((), (), ()))
    found = {}
    for pattern in table.patterns:
        for with_head, fingerprints in ((True, table.by_fingerprint), (False, table.by_body)):
            total = _hidden(base, shapes, pattern, with_head=with_head)
            network = None if total is None else fingerprints.get((pattern, total))
            if network is not None:
                for published in _describe(shapes, table.networks[network], with_head=with_head):
                    found[published.library, published.name] = published
    return tuple(found.values())


def _hidden(base: int, shapes: Shapes, pattern: Pattern, *, with_head: bool) -> int | None:
    """Turn the fingerprint of plain shapes into that of a pattern; None where it cannot be."""
    head = {variable.key for variable in pattern.classes}
    if not with_head and any(key in shapes for key in head):
        return None
    for key, axes in pattern.axes().items():
        if key in head and not with_head:
            continue
        shape = shapes.get(key)
        if shape is None or len(shape) <= max(axes):
            return None
        base += hash_text(f"{key} {shape_text(shape, axes)}")
        base -= hash_text(f"{key} {shape_text(shape)}")
    return base % MODULUS


def _describe(shapes: Shapes, network: Network, *, with_head: bool) -> list[Published]:
    """Say in which form a file has a network's architectures; none if it contradicts itself."""
    pattern = network.pattern
    classes = {_value(shapes, variable) for variable in pattern.classes} if with_head else {0}
    channels = {_value(shapes, variable) for variable in pattern.channels}
    sides = {_side(shapes, position) for position in pattern.positions}
    if not all(len(found) <= 1 and None not in found for found in (classes, channels, sides)):
        return []
    side = next(iter(sides), None)
    forms = sorted(
        network.forms,
        key=lambda form: (side not in (None, form.input_size[1]), form.num_classes not in classes),
    )
    return [
        _published(
            form,
            next(iter(classes), form.num_classes) or 0,
            next(iter(channels), form.input_size[0]) or 0,
            side,
        )
        for form in forms
    ]


def _value(shapes: Shapes, variable: Variable) -> int | None:
    """Read a number of classes or channels; None if it is no whole one."""
    number, rest = divmod(shapes[variable.key][variable.axis], variable.multiple)
    return None if rest or not number else number


def _side(shapes: Shapes, position: Position) -> int | None:
    """Read the size of square images in pixels; None if it is no whole number of patches."""
    counts = {shapes[position.key][axis] for axis in position.axes}
    count = counts.pop()
    if counts:
        return None
    if len(position.axes) == 2:
        return count * position.patch
    root = isqrt(max(0, count - position.extra))
    return root * position.patch if root and root**2 == count - position.extra else None


def _published(form: Form, num_classes: int, in_channels: int, side: int | None) -> Published:
    """Say what an architecture is in a file, and what differs from its published form."""
    size = form.input_size[1:] if side is None else (side, side)
    changes = []
    if num_classes != form.num_classes:
        count = f"{num_classes:,} classes" if num_classes else "no classifier"
        changes.append(f"{count} instead of {form.num_classes:,} classes")
    if in_channels != form.input_size[0]:
        channels = "1 channel" if in_channels == 1 else f"{in_channels} channels"
        changes.append(f"images of {channels} instead of {form.input_size[0]}")
    if size != form.input_size[1:]:
        changes.append(f"images of {size[0]} pixels instead of {form.input_size[1]}")
    return Published(
        library=form.library,
        name=form.name,
        num_classes=num_classes,
        in_channels=in_channels,
        input_size=(in_channels, *size),
        changes=tuple(changes),
        sized=side is not None,
        mean=_of_channels(form.mean, in_channels),
        std=_of_channels(form.std, in_channels),
    )


def _of_channels(values: tuple[float, ...], count: int) -> tuple[float, ...]:
    """Give one value a channel: the usual ones, or their mean where there are others."""
    return values if len(values) == count else (sum(values) / len(values),) * count


# --------------------------------------------------------------------------- the nearest


def nearest_published(shapes: Shapes) -> Nearest:
    """Find the architecture with the most of these keys and shapes, for a sentence on a misfit.

    Args:
        shapes: of a state dict, by key, without the prefixes of wrappers.

    Returns:
        its name, how much of it fits, and the first few keys that do not.
    """
    table, shapes = read_table(), without_computed(shapes)
    wanted = set(sketch_keys(list(shapes)))
    closest = nlargest(
        CANDIDATES, table.sketches, key=lambda entry: len(wanted.intersection(entry[0]))
    )
    places = sorted(place for _, networks in closest for place in networks)
    compared = []
    for place, text in zip(places, _read_shapes(places)):
        form = table.networks[place].forms[0]
        compared.append(_compare(f"{form.library}:{form.name}", text, shapes))
    return max(compared, key=lambda nearest: nearest.share)


def _read_shapes(places: Sequence[int]) -> Iterator[str]:
    """Read keys and shapes of networks, whose places are in order."""
    with zipfile.ZipFile(TABLE) as archive:
        for member, chosen in groupby(places, key=lambda place: place // NETWORKS_PER_MEMBER):
            texts = archive.read(member_name(member)).decode().split("\n\n")
            yield from (texts[place % NETWORKS_PER_MEMBER] for place in chosen)


def member_name(member: int) -> str:
    """Name the part of the table in which the keys and shapes of some networks lie."""
    return f"keys-{member:02}.txt"


def _compare(name: str, text: str, shapes: Shapes) -> Nearest:
    """Compare shapes with those of an architecture, a line "key shape" each."""
    theirs = dict(line.split(" ") for line in text.splitlines())
    misfits = [
        f"{key} is {shape_text(shape) or 'a number'}, there {theirs[key] or 'a number'}"
        if key in theirs
        else f"{key} is not in it"
        for key, shape in shapes.items()
        if key not in theirs or not _fits(shape, theirs[key])
    ]
    missing = [f"{key} is missing" for key in theirs if key not in shapes]
    total = len(shapes) + len(missing)
    share = 1 - (len(misfits) + len(missing)) / total if total else 0.0
    return Nearest(name, share, tuple([*misfits, *missing][:MOST_MISFITS]))


def _fits(shape: Shape, text: str) -> bool:
    """Tell whether a shape is the one written, in which "?" is any number."""
    sizes = text.split("x") if text else []
    return len(sizes) == len(shape) and all(
        written in ("?", str(size)) for written, size in zip(sizes, shape)
    )


# --------------------------------------------------------------------------- the table


@cache
def read_table() -> Table:
    """Read the table beside this file, once."""
    with zipfile.ZipFile(TABLE) as archive:
        index = json.loads(archive.read(INDEX))
    patterns = [_read_pattern(row) for row in index["patterns"]]
    table = Table([], patterns, {}, {}, index["sketches"])
    for place, (pattern, whole, body, forms) in enumerate(index["networks"]):
        table.networks.append(Network(patterns[pattern], tuple(_read_forms(index, forms))))
        table.by_fingerprint[patterns[pattern], int(whole, 16)] = place
        if patterns[pattern].classes:
            table.by_body[patterns[pattern], int(body, 16)] = place
    return table


def table_versions() -> dict[str, str]:
    """Give the versions of the libraries that the table was made of."""
    with zipfile.ZipFile(TABLE) as archive:
        versions: dict[str, str] = json.loads(archive.read(INDEX))["versions"]
    return versions


def _read_pattern(row: Sequence[Any]) -> Pattern:
    """Read a pattern as the index has it."""
    classes, channels, positions = row
    return Pattern(
        tuple(Variable(*values) for values in classes),
        tuple(Variable(*values) for values in channels),
        tuple(Position(key, tuple(axes), patch, extra) for key, axes, patch, extra in positions),
    )


def _read_forms(index: Mapping[str, Any], rows: Sequence[Any]) -> Iterator[Form]:
    """Read the architectures of one network as the index has them."""
    for library, name, size, num_classes, preset in rows:
        mean, std = index["presets"][preset]
        yield Form(library, name, tuple(size), num_classes, tuple(mean), tuple(std))
