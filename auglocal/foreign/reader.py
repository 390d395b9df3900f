"""Any checkpoint file into tensors by name, without running code from it.

In: a path, limits. Out: the state dict, where in the file it was, and what stands beside it; or one
`InputError` whose sentence says what the file is and what to do. Everything from the file is data:
its pickles are read by a machine that imports and calls nothing (`auglocal/foreign/machine.py`),
every size is checked against the file and the limits before memory is taken.
"""

from __future__ import annotations

import hashlib
import math
import mmap
import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from auglocal.errors import InputError
from auglocal.foreign import lookalike
from auglocal.foreign.limits import Limits
from auglocal.foreign.plain import beside
from auglocal.foreign.pytorch_file import Saved, read_pickles, read_zip, whole_module
from auglocal.foreign.refusal import (
    SAVE_AGAIN,
    CodeRefusal,
    Damage,
    Refusal,
    printable,
    shown,
    shown_list,
)
from auglocal.foreign.safetensors_file import (
    METADATA,
    check_bytes,
    check_count,
    looks_like_safetensors,
    read_safetensors,
)
from auglocal.foreign.states import State, complete_states, find_states, is_module
from auglocal.foreign.tensors import (
    ITEM_BYTES,
    RawTensor,
    Unsupported,
    View,
    checked_shape,
    read_view,
    supported_dtype,
)
from auglocal.foreign.values import NumpyArray

if TYPE_CHECKING:
    from torch import Tensor

ZIP_SIGNATURES = (b"PK\x03\x04", b"PK\x05\x06")
PICKLE_PROTOCOL = 0x80


@dataclass(frozen=True)
class FileContent:
    """What a file holds.

    Attributes:
        tensors: the state dict that was taken, in the file's order; memory of its own.
        container: "safetensors", "zip", "legacy" (both of torch.save) or "pickle".
        sha256: of the file's bytes.
        wrapped_in: name of the entry that is the state dict, joined by dots ("model", "ema.net");
            None for the whole file.
        header: metadata of a safetensors file.
        beside: plain values that stand beside the state dict, such as the epoch.
        other_states: names of other complete state dicts in the file; "" for the whole file.
        not_finite: keys of tensors with NaN or infinity.
        warnings: sentences about what was left out or looks wrong.
    """

    tensors: dict[str, RawTensor]
    container: str
    sha256: str
    wrapped_in: str | None = None
    header: dict[str, str] = field(default_factory=dict)
    beside: dict[str, Any] = field(default_factory=dict)
    other_states: tuple[str, ...] = ()
    not_finite: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    def state_dict(self) -> dict[str, Tensor]:
        """The tensors as PyTorch's, sharing their memory."""
        return {key: tensor.to_torch() for key, tensor in self.tensors.items()}


def read_file(path: Path | str, limits: Limits, state: str | None = None) -> FileContent:
    """Read a checkpoint of any origin.

    Args:
        path: a .safetensors file, or one of torch.save or pickle (.pt, .pth, .th, .tar, .ckpt,
            .bin); its content decides, not its name.
        limits: what it may take.
        state: name of the state dict to take, of those that an earlier reading offered; the
            likeliest where None.

    Raises:
        InputError: it cannot be opened; the sentence says why, and what to do.
    """
    path = Path(path)
    try:
        content = _open(path, limits)
        return _read(content, limits, state)
    except Refusal as refusal:
        raise InputError(refusal.sentence(path.name)) from refusal
    except MemoryError as error:
        raise InputError(
            f"{printable(path.name)} needs more memory than there is, so it was not opened; "
            "give a smaller file."
        ) from error


def _open(path: Path, limits: Limits) -> memoryview:
    """A file's bytes, mapped rather than read."""
    name = printable(path.name)
    try:
        found = path.stat()
    except (FileNotFoundError, NotADirectoryError, ValueError) as error:
        raise InputError(f"There is no file {name}; check the path.") from error
    except OSError as error:
        raise _unreadable(name) from error
    if stat.S_ISDIR(found.st_mode):
        raise InputError(f"{name} is a folder; give a checkpoint file in it.")
    if not stat.S_ISREG(found.st_mode):
        raise InputError(f"{name} is not a regular file; give a checkpoint file.")
    size = found.st_size
    if size > limits.file_bytes:
        raise Refusal(
            f"is {size / 10**6:,.0f} MB large, and at most {limits.file_bytes / 10**6:,.0f} MB "
            "are read",
            "give the weights without the optimizer's state, or open it from the command line "
            "with a larger --max-bytes",
        )
    if size == 0:
        return memoryview(b"")
    try:
        with path.open("rb") as file:
            return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    except (OSError, ValueError) as error:
        raise _unreadable(name) from error


def _unreadable(name: str) -> InputError:
    return InputError(f"{name} cannot be read; check that it is there and that you may read it.")


def _read(content: memoryview, limits: Limits, state: str | None) -> FileContent:
    """What the bytes hold, by what they begin with."""
    if looks_like_safetensors(content):
        return _from_safetensors(content, limits, state)
    saved = _saved(content, limits)
    states, is_too_deep = find_states(saved.value, limits)
    if not states:
        raise _no_state(saved, is_too_deep, limits)
    offered = complete_states(states)
    taken = _choose(offered, state)
    tensors = _tensors(taken, limits)
    not_finite = _not_finite(tensors)
    return FileContent(
        tensors=tensors,
        container=saved.container,
        sha256=hashlib.sha256(content).hexdigest(),
        wrapped_in=taken.name or None,
        beside=beside(taken.others if taken.name == "" else saved.value, offered, limits),
        other_states=tuple(each.name for each in offered if each is not taken),
        not_finite=not_finite,
        warnings=_warnings(saved, taken, not_finite),
    )


def _from_safetensors(content: memoryview, limits: Limits, state: str | None) -> FileContent:
    """A safetensors file: one state dict, and metadata."""
    if state is not None:
        raise _no_such_state(state, [])
    check_bytes(len(content) - 8, limits)
    tensors, header = read_safetensors(content, limits)
    for key in tensors:
        _check_key(key, limits)
    not_finite = _not_finite(tensors)
    return FileContent(
        tensors=tensors,
        container="safetensors",
        sha256=hashlib.sha256(content).hexdigest(),
        header=header,
        not_finite=not_finite,
        warnings=_finite_warning(not_finite),
    )


def _saved(content: memoryview, limits: Limits) -> Saved:
    """The object in a file of torch.save or pickle; the refusal of anything else."""
    if bytes(content[:4]) in ZIP_SIGNATURES:
        return read_zip(content, limits, lookalike.of_archive)
    if len(content) > 0 and content[0] == PICKLE_PROTOCOL:
        return read_pickles(content, limits)
    refusal = lookalike.beginning(content)
    if refusal is not None:
        raise refusal
    try:  # pickles of protocols 0 and 1 begin with nothing in particular
        saved = read_pickles(content, limits)
    except CodeRefusal:
        raise
    except Refusal as error:
        raise lookalike.remainder(content) from error
    if not isinstance(saved.value, (dict, list, tuple)):
        raise lookalike.remainder(content)
    return saved


def _no_state(saved: Saved, is_too_deep: bool, limits: Limits) -> Refusal:
    """Why no state dict was found."""
    if is_module(saved.value):
        return whole_module()
    if is_too_deep:
        return Refusal(
            f"has dictionaries inside one another deeper than {limits.depth} levels",
            SAVE_AGAIN,
        )
    if saved.opaque:
        return CodeRefusal(saved.opaque[0])
    if isinstance(saved.value, (View, NumpyArray)):
        return Refusal("holds a single tensor, not a state dict (tensors by name)", SAVE_AGAIN)
    return Refusal("holds no state dict (tensors by name)", SAVE_AGAIN)


def _choose(offered: list[State], name: str | None) -> State:
    """The likeliest state dict, or the one of this name."""
    if name is None:
        return offered[0]
    for each in offered:
        if each.name == name:
            return each
    raise _no_such_state(name, [each.name for each in offered])


def _no_such_state(name: str, names: list[str]) -> Refusal:
    choice = f"choose one of {shown_list(names)}" if names else "leave the choice out"
    return Refusal(f"has no state dict named {shown(name)}", choice)


def _tensors(state: State, limits: Limits) -> dict[str, RawTensor]:
    """All tensors of a state dict: first every claim is checked, then the bytes are copied."""
    check_count(len(state.tensors), limits)
    views: dict[str, View] = {}
    num_bytes = 0
    for key, value in state.tensors.items():
        views[key] = view = _view(_check_key(key, limits), value)
        shape = checked_shape(key, view.shape, limits)
        num_bytes += math.prod(shape) * ITEM_BYTES[supported_dtype(key, view.dtype)]
        check_bytes(num_bytes, limits)
    return {key: read_view(key, view, limits) for key, view in views.items()}


def _view(key: str, value: View | NumpyArray | Unsupported) -> View:
    """A tensor's view, of those kinds that have one."""
    if isinstance(value, Unsupported):
        raise Refusal(
            f"holds {shown(key)} as a {value.kind} tensor, and only plain (strided) ones are read",
            "convert it to a plain tensor, and save the state dict again",
        )
    view = value.view if isinstance(value, NumpyArray) else value
    if view is None:
        raise Damage(f"the array {shown(key)} has no content")
    return view


def _check_key(key: Any, limits: Limits) -> str:
    """A tensor's name: a text of bounded length that can be written."""
    if not isinstance(key, str) or not key or key == METADATA:
        raise Refusal(f"holds a tensor without a proper name ({shown(key)})", SAVE_AGAIN)
    if len(key) > limits.key_characters:
        raise Refusal(
            f"holds a tensor whose name has {len(key):,} characters ({shown(key)}...), and at most "
            f"{limits.key_characters} are read",
            "give its modules shorter names, and save its state_dict() again",
        )
    if any("\ud800" <= each <= "\udfff" for each in key):
        raise Damage(f"the name {shown(key)} is not text")
    return key


def _not_finite(tensors: dict[str, RawTensor]) -> tuple[str, ...]:
    """Keys of tensors with NaN or infinity."""
    return tuple(key for key, tensor in tensors.items() if not tensor.is_finite())


def _finite_warning(not_finite: tuple[str, ...]) -> tuple[str, ...]:
    if not not_finite:
        return ()
    return (
        f"NaN or infinity in {shown_list(not_finite)}: what is computed from it would be "
        "undefined; give a checkpoint from before the training diverged.",
    )


def _warnings(saved: Saved, taken: State, not_finite: tuple[str, ...]) -> tuple[str, ...]:
    """Sentences about what was left out or looks wrong."""
    warnings = list(_finite_warning(not_finite))
    if saved.opaque:
        warnings.append(
            f"Objects of classes beside the weights were left out: {shown_list(saved.opaque)}."
        )
    if saved.broken:
        warnings.append(
            f"The checksums of {len(saved.broken)} stored tensors do not fit "
            f"({shown_list(saved.broken, 2)}): the file may be damaged."
        )
    if taken.name != "" and taken.others:
        names = shown_list(str(key) for key in taken.others)
        warnings.append(f"Entries of the state dict that are no tensors were left out: {names}.")
    return tuple(warnings)
