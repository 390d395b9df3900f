"""Anybody's checkpoint file in, what network it holds out; no code of it runs.

A file is read in a process of its own (`auglocal.foreign.child`) and told from its keys and shapes
(`auglocal.foreign.recognise` for the backbones that can be trained here, `analysis.fingerprints`
for the published ones that can only be analysed).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import load as load_tensors
from torch import Tensor

from analysis.choices import Choices
from analysis.errors import InputError
from analysis.fingerprints import Nearest, Published, find_published, nearest_published
from analysis.models import translated_errors
from auglocal.checkpoint import PUBLISHED_PREFIXES
from auglocal.foreign.child import Imported, read_in_child
from auglocal.foreign.limits import MAX_BYTES, Limits, command_line_limits
from auglocal.foreign.prefixes import strip_prefixes
from auglocal.foreign.recognise import Recognition, Unrecognised, recognise
from auglocal.foreign.refusal import printable

ENOUGH_KEYS = 0.4  # of a published architecture, to name it as the nearest
MOST_NAMED = 5
DEFAULT_MAX_BYTES = MAX_BYTES  # of a path on the command line


@dataclass(frozen=True, eq=False)
class Examined:
    """A file from outside: what it holds and what that is.

    Attributes:
        imported: what the reader found; its `path` is the clean copy, if that was kept.
        tensors: the state dict, by the file's keys.
        recognition: the backbone that can be trained here, else None.
        published: the published architectures that fit, likeliest first; empty where there is a
            recognition.
        prefixes: what wrappers had put before the keys, outermost first.
    """

    imported: Imported
    tensors: Mapping[str, Tensor]
    recognition: Recognition | None
    published: tuple[Published, ...]
    prefixes: tuple[str, ...] = ()

    @property
    def num_classes(self) -> int:
        """K; 0 where the file has no classifier."""
        found = self.recognition or self.published[0]
        return found.num_classes

    @property
    def input_size(self) -> tuple[int, int, int]:
        """(C, H, W) that is usual for the network."""
        found = self.recognition or self.published[0]
        return found.input_size

    @property
    def alternatives(self) -> tuple[str, ...]:
        """Other architectures of the same tensors, likeliest first."""
        if self.recognition is not None:
            return tuple(other.architecture for other in self.recognition.alternatives)
        return tuple(published_name(other) for other in self.published[1:])


def published_name(published: Published) -> str:
    """The architecture as metadata have it: "torchvision:densenet121"."""
    return f"{published.library}:{published.name}"


def limits_of(max_bytes: int = DEFAULT_MAX_BYTES) -> Limits:
    """Give the limits of a path on the command line, by the value of --max-bytes."""
    return command_line_limits(max_bytes)


def examine(
    path: Path | str,
    folder: Path | str,
    choices: Choices | None = None,
    *,
    limits: Limits | None = None,
) -> Examined:
    """Read a file from outside in a process of its own, and tell what network it is.

    Args:
        path: of any file.
        folder: where the reader's clean copy is put.
        choices: the state dict and the architecture to take.
        limits: what the file may take; None takes those of a path on the command line.

    Raises:
        InputError: it cannot be read, holds numbers that are none, or is no network that is known;
            the sentence says what it is nearest to.
    """
    choices = choices or Choices()
    with translated_errors():
        limits = limits or limits_of()
        imported = read_in_child(path, folder, limits, choices.state)
    _check_finite(imported)
    # The library gives them in another order each time.
    tensors = dict(sorted(load_tensors(imported.path.read_bytes()).items()))
    return tell(imported, tensors, choices.architecture)


def tell(imported: Imported, tensors: Mapping[str, Tensor], architecture: str | None) -> Examined:
    """Tell what network the tensors of a file are.

    Args:
        imported: what the reader said of the file.
        tensors: its state dict.
        architecture: take this one of those that fit; None takes the likeliest.

    Raises:
        InputError: none that is known; the sentence says what it is nearest to.
    """
    trouble = ""
    if architecture is None or not architecture.startswith(PUBLISHED_PREFIXES):
        try:
            found = recognise(tensors, architecture=architecture)
        except Unrecognised as error:
            trouble = str(error)
        else:
            return Examined(imported, tensors, found, (), found.prefixes_stripped)
    names, prefixes = strip_prefixes(tensors)
    own = {name: tensors[key] for key, name in names.items()}
    shapes = {name: tuple(tensor.shape) for name, tensor in own.items()}
    published = find_published(shapes)
    fitting = tuple(each for each in published if architecture in (None, published_name(each)))
    if fitting:
        return Examined(imported, own, None, fitting, prefixes)
    if architecture is None:
        raise InputError(_misfit(imported.name, trouble, nearest_published(shapes)))
    raise InputError(_not_this_one(imported.name, architecture, trouble, published))


def _not_this_one(
    name: str, architecture: str, trouble: str, published: tuple[Published, ...]
) -> str:
    """The sentence about a network that is another one than was asked for."""
    if trouble and not published:
        return f"{name} was not opened. {trouble}"
    others = ", ".join(published_name(each) for each in published[:MOST_NAMED])
    advice = f"choose one of {others}" if others else "leave --architecture out to see what it is"
    return f"{name} does not hold a {printable(architecture)}; {advice}."


def _misfit(name: str, trouble: str, nearest: Nearest) -> str:
    """The sentence about a network that is not known, with what it is nearest to."""
    if nearest.share < ENOUGH_KEYS and trouble:
        return f"{name} was not opened. {trouble}"
    misfits = ", ".join(printable(each) for each in nearest.misfits)
    return (
        f"{name} holds no network that is known here: it is nearest to {nearest.name}, of which "
        f"{nearest.share:.0%} of the keys and shapes fit ({misfits}); "
        "build the network in Python, load its weights, and give it to "
        "analysis.modules.from_module."
    )


def _check_finite(imported: Imported) -> None:
    """Refuse weights that are no numbers: whatever is computed from them would be undefined."""
    if imported.not_finite:
        more = len(imported.not_finite) - 1
        others = f" and {more} more tensors" if more else ""
        raise InputError(
            f"{imported.name} has NaN or infinity in {imported.not_finite[0][:80]!r}{others}, so "
            "nothing can be computed from it; give a checkpoint from before the training diverged."
        )
