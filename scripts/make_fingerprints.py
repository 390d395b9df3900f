"""Write the table of published architectures, `analysis/fingerprints.zip`.

    python scripts/make_fingerprints.py [--jobs 2]

Every classification architecture of torchvision and every one of timm is built without weights,
once as it is and once each with another number of classes, other channels and larger images: what
differs is what users change. Nothing is downloaded. It takes about five minutes on two cores.
"""

from __future__ import annotations

import argparse
import json
import warnings
import zipfile
from collections.abc import Callable, Iterable, Sequence
from importlib.metadata import version
from multiprocessing import Pool
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torchvision

from analysis.fingerprints import (
    IMAGENET,
    INDEX,
    MODULUS,
    NETWORKS_PER_MEMBER,
    TABLE,
    Form,
    Pattern,
    Position,
    Shapes,
    Variable,
    fingerprint,
    hash_text,
    member_name,
    shape_text,
    sketch_keys,
    without_computed,
)
from analysis.published import AUXILIARY_KEYS, build_unfilled, make_network

CLASSES, OTHER_CLASSES = 1000, 991
CHANNELS, OTHER_CHANNELS = 3, 5
HALVES = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
# Words in the names of tensors whose size may depend on that of the images.
POSITIONS = ("pos_", "position", "relative")


class Surveyed(NamedTuple):
    """One architecture: its published form, its keys and shapes, and what users change of them."""

    form: Form
    shapes: Shapes
    pattern: Pattern


# --------------------------------------------------------------------------- one architecture


def survey(library: str, name: str) -> list[Surveyed]:
    """Build an architecture in every form that matters; with auxiliary classifiers too."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    form = FORMS[library](name)
    has_auxiliary = library == "torchvision" and name in AUXILIARY_KEYS
    return [
        _survey(form, auxiliary=auxiliary)
        for auxiliary in ((False, True) if has_auxiliary else (False,))
    ]


def _survey(form: Form, *, auxiliary: bool) -> Surveyed:
    def shapes(num_classes: int = CLASSES, **options: int) -> Shapes:
        module = build_unfilled(
            lambda: make_network(
                form.library, form.name, num_classes=num_classes, auxiliary=auxiliary, **options
            ),
            complete=False,
        )
        return without_computed({key: part.shape for key, part in module.state_dict().items()})

    plain = shapes()
    side = form.input_size[1]
    may_depend = any(word in key for key in plain for word in POSITIONS)
    pattern = Pattern(
        classes=find_variables(plain, shapes(OTHER_CLASSES), CLASSES, OTHER_CLASSES),
        channels=find_variables(
            plain, _attempt(lambda: shapes(in_channels=OTHER_CHANNELS)), CHANNELS, OTHER_CHANNELS
        ),
        positions=find_positions(
            plain, _attempt(lambda: shapes(image_size=2 * side)) if may_depend else None, side
        ),
    )
    return Surveyed(form, plain, pattern)


def _attempt(build: Callable[[], Shapes]) -> Shapes | None:
    """Build an architecture that may not take such an option."""
    try:
        return build()
    except Exception:  # whatever it says, the option is not for it
        return None


def find_variables(
    plain: Shapes, other: Shapes | None, count: int, other_count: int
) -> tuple[Variable, ...]:
    """Find the entries of shapes that are multiples of a count, from shapes with another count.

    Returns:
        none where anything else differs: the count is then part of the architecture.
    """
    found = []
    for key, shape in plain.items():
        changed = shape if other is None else other.get(key, ())
        if changed == shape:
            continue
        axes = [axis for axis, size in enumerate(shape) if changed[axis : axis + 1] != (size,)]
        multiple = shape[axes[0]] // count
        if len(axes) > 1 or (shape[axes[0]], changed[axes[0]]) != (
            count * multiple,
            other_count * multiple,
        ):
            return ()
        found.append(Variable(key, axes[0], multiple))
    return tuple(found)


def find_positions(plain: Shapes, larger: Shapes | None, side: int) -> tuple[Position, ...]:
    """Find the tensors that depend on the size of images, from shapes for images twice as large.

    Returns:
        none where one of them does so in another way than `Position` knows.
    """
    found = []
    for key, shape in plain.items():
        changed = shape if larger is None else larger.get(key, ())
        if changed == shape:
            continue
        position = find_position(key, shape, changed, side)
        if position is None:
            return ()
        found.append(position)
    return tuple(found)


def find_position(
    key: str, shape: Sequence[int], larger: Sequence[int], side: int
) -> Position | None:
    """Find how a tensor depends on the size of the images; None where it is another way."""
    if len(shape) != len(larger):
        return None
    axes = tuple(axis for axis in range(len(shape)) if shape[axis] != larger[axis])
    sizes, doubled = [shape[axis] for axis in axes], [larger[axis] for axis in axes]
    if len(axes) == 2 and sizes == [sizes[0]] * 2 and doubled == [2 * sizes[0]] * 2:
        return Position(key, axes, side // sizes[0], 0) if side % sizes[0] == 0 else None
    if len(axes) != 1:
        return None
    # Tokens are extra + grid^2, and extra + 4 grid^2 for images twice as large.
    squares, rest = divmod(doubled[0] - sizes[0], 3)
    grid = round(squares**0.5)
    if rest or grid**2 != squares or side % grid or sizes[0] < squares:
        return None
    return Position(key, axes, side // grid, sizes[0] - squares)


# --------------------------------------------------------------------------- published forms


def torchvision_form(name: str) -> Form:
    """Say how torchvision published an architecture: by its first weights."""
    weights = next(iter(torchvision.models.get_model_weights(name)), None)
    side = 224 if weights is None or name.startswith("vit_") else weights.transforms().crop_size[0]
    # These were ported from another library's, and change images of ImageNet's mean and deviation.
    mean, std = HALVES if name in AUXILIARY_KEYS else IMAGENET
    return Form("torchvision", name, (CHANNELS, side, side), CLASSES, mean, std)


def timm_form(name: str) -> Form:
    """Say how timm published an architecture: by its first weights."""
    import timm

    known = timm.get_pretrained_cfg(name)
    mean, std = IMAGENET if known is None else (tuple(known.mean), tuple(known.std))
    size = (CHANNELS, 224, 224) if known is None else tuple(known.input_size)
    num_classes = CLASSES if known is None else known.num_classes
    return Form("timm", name, size, num_classes, mean, std)


FORMS = {"torchvision": torchvision_form, "timm": timm_form}


def likelihood(form: Form) -> tuple[bool, int, str]:
    """Rank architectures of equal shapes: torchvision's first, then the plainest name."""
    return form.library != "torchvision", len(form.name), form.name


# --------------------------------------------------------------------------- the table


def pack(surveyed: Iterable[Surveyed], versions: dict[str, str]) -> dict[str, str]:
    """Write what was found as the texts of the table, see `analysis.fingerprints.read_table`.

    Returns:
        the index, JSON, and the keys and shapes of all networks in its order; by member.
    """
    networks: dict[tuple[Pattern, int], list[Surveyed]] = {}
    for item in surveyed:
        key = (item.pattern, fingerprint(item.shapes, item.pattern))
        networks.setdefault(key, []).append(item)
    ordered = sorted(networks.items(), key=_neighbourly)
    patterns = list(dict.fromkeys(pattern for (pattern, _), _ in ordered))
    presets = list(dict.fromkeys(item.form[-2:] for _, items in ordered for item in items))
    rows, groups, texts = [], {}, []
    for place, ((pattern, whole), items) in enumerate(ordered):
        shapes = items[0].shapes
        forms = sorted({item.form for item in items}, key=likelihood)
        rows.append(
            [
                patterns.index(pattern),
                f"{whole:x}",
                f"{without_head(whole, shapes, pattern):x}",
                [[*form[:4], presets.index(form[-2:])] for form in forms],
            ]
        )
        groups.setdefault(frozenset(shapes), []).append(place)
        texts.append(describe_shapes(shapes, pattern))
    index = {
        "versions": versions,
        "patterns": patterns,
        "presets": presets,
        "networks": rows,
        "sketches": [[sketch_keys(list(keys)), places] for keys, places in groups.items()],
    }
    parts = [texts[i : i + NETWORKS_PER_MEMBER] for i in range(0, len(texts), NETWORKS_PER_MEMBER)]
    members = {member_name(member): "\n\n".join(part) for member, part in enumerate(parts)}
    return {INDEX: json.dumps(index, separators=(",", ":")), **members}


def _neighbourly(entry: tuple[tuple[Pattern, int], list[Surveyed]]) -> tuple[Any, ...]:
    """Put networks of similar keys side by side, so that they are packed well."""
    item = min(entry[1], key=lambda item: likelihood(item.form))
    return next(iter(item.shapes)), item.form.name, entry[0][1]


def without_head(whole: int, shapes: Shapes, pattern: Pattern) -> int:
    """Take the classifier's last layer out of a fingerprint."""
    axes = pattern.axes()
    head = {variable.key for variable in pattern.classes}
    texts = (f"{key} {shape_text(shapes[key], axes[key])}" for key in head)
    return (whole - sum(map(hash_text, texts))) % MODULUS


def describe_shapes(shapes: Shapes, pattern: Pattern) -> str:
    """Write keys and shapes, a line each."""
    axes = pattern.axes()
    return "\n".join(
        f"{key} {shape_text(shape, axes.get(key, ()))}" for key, shape in shapes.items()
    )


def write_table(path: Path, members: dict[str, str]) -> None:
    """Write the table; the same texts always give the same bytes."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_LZMA) as archive:
        for name, text in members.items():
            archive.writestr(zipfile.ZipInfo(name), text, zipfile.ZIP_LZMA)


def list_architectures() -> list[tuple[str, str]]:
    """List all architectures of both libraries."""
    import timm

    names = torchvision.models.list_models(module=torchvision.models)
    return [
        *(("torchvision", name) for name in names),
        *(("timm", name) for name in timm.list_models()),
    ]


def _survey_or_say(architecture: tuple[str, str]) -> list[Surveyed] | str:
    try:
        return survey(*architecture)
    except Exception as error:  # one architecture that cannot be built must not stop the others
        return f"{':'.join(architecture)} was left out: {error!r}"


def main() -> None:
    """Survey all architectures and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    parser.add_argument("--output", type=Path, default=TABLE)
    options = parser.parse_args()
    surveyed: list[Surveyed] = []
    with Pool(options.jobs, maxtasksperchild=50) as pool:
        for result in pool.imap(_survey_or_say, list_architectures()):
            if isinstance(result, str):
                print(result)
            else:
                surveyed.extend(result)
    versions = {name: version(name).partition("+")[0] for name in ("torchvision", "timm")}
    write_table(options.output, pack(surveyed, versions))
    print(f"{len(surveyed):,} forms of architectures, {options.output.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
