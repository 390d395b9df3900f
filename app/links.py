"""The address bar and the page's choices: a link reproduces what was picked.

Choices live in session state under the same names as in the address; checkpoints appear in an
address by the start of their checksum.

Back and Forward: Streamlit makes an entry of the browser's history of every page that is opened and
of every change of the address, and offers no way to change the address without one. So a run of a
page writes at most once, at its end, and a page at its first values writes nothing: Back leaves it.
One entry too many remains: a page that is opened from the sidebar while choices of other pages hold
comes first without them in its address and then with them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, ParamSpec

import streamlit as st

from app.sources import datasets
from app.sources.checkpoints import CheckpointFile, by_prefix
from app.sources.studies import Request

MISSING = "This link refers to a checkpoint not on this machine."
PREFIX = 12  # characters of a checksum in an address
FIRSTS = "link_firsts"  # the values that a page gives its choices where nothing else says so
MEMORY = "link_memory"  # what the address was after the last run
Parameters = ParamSpec("Parameters")


@dataclass
class Run:
    """What a run of a page has read of the address, and what it is going to write there."""

    texts: dict[str, str] = field(default_factory=dict)
    read: dict[str, tuple[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class Memory:
    """The address as the last run left it, of which page, and the choices that it stands for.

    `texts` is all that the page would write, which a page at its first values does not.
    """

    page: str
    address: dict[str, str]
    choices: dict[str, Any] = field(default_factory=dict)
    texts: dict[str, str] = field(default_factory=dict)


_run: ContextVar[Run | None] = ContextVar("run", default=None)


@contextmanager
def one_write() -> Iterator[None]:
    """Collect all that is remembered inside and write it at the end; nothing where that fails."""
    if _run.get() is not None:  # a fragment, drawn with its page
        yield
        return
    run = Run()
    token = _run.set(run)
    try:
        yield
        _write(run.texts)
        _tell_corrected(run)
    finally:
        _run.reset(token)


def fragment(function: Callable[Parameters, None]) -> Callable[Parameters, None]:
    """A fragment of a page that remembers choices; by itself it writes them once, too."""

    @functools.wraps(function)
    def drawn(*values: Parameters.args, **options: Parameters.kwargs) -> None:
        with one_write():
            function(*values, **options)

    return st.fragment(drawn)


def follow(page: str) -> None:
    """Before a page runs: where Back, Forward or a link changed the address, choices follow it.

    Args:
        page: the one that is about to run.
    """
    address, memory = st.query_params.to_dict(), st.session_state.get(MEMORY)
    st.session_state[FIRSTS] = {}
    names = set(address)
    if memory is not None and memory.page == page:
        # Someone who picks something before the browser has the new address sends the old one.
        is_picked = any(st.session_state.get(name) != kept for name, kept in memory.choices.items())
        names = set() if is_picked or address == memory.address else names | set(memory.address)
    for name in names & set(st.session_state):
        del st.session_state[name]
    st.session_state[MEMORY] = Memory(page, address)


def restore(name: str, default: Any, parse: Callable[[str], Any]) -> None:
    """Give a choice its first value: from the address, or the default.

    Args:
        name: of the choice, in session state and in the address.
        default: the value without an address.
        parse: text to value, None for text that means nothing here.
    """
    st.session_state.setdefault(FIRSTS, {})[name] = default
    if name in st.session_state:
        return
    text = st.query_params.get(name)
    value = None if text is None else parse(text)
    if text and (run := _run.get()) is not None:
        run.read[name] = (text, value)
    st.session_state[name] = default if value is None else value


def restore_checkpoint(
    name: str, default: CheckpointFile, entries: Sequence[CheckpointFile]
) -> None:
    """Give the choice of a checkpoint its first value; note a link to one that is not here.

    A choice that went away gives way to the default: the address still names it, but is no link.
    """
    here = {entry.sha256 for entry in entries}
    if name in st.session_state and st.session_state[name] not in here:
        st.session_state[name] = default.sha256

    def parse(text: str) -> str | None:
        entry = by_prefix(entries, text)
        _note_missing(bool(text) and entry is None)
        return entry.sha256 if entry else None

    restore(name, default.sha256, parse)


def restore_checkpoints(
    name: str, default: Sequence[CheckpointFile], entries: Sequence[CheckpointFile]
) -> None:
    """Give the choice of several checkpoints its first value; drop those that went away."""
    here = {entry.sha256 for entry in entries}
    if name in st.session_state:
        st.session_state[name] = [sha256 for sha256 in st.session_state[name] if sha256 in here]

    def parse(text: str) -> list[str] | None:
        found = [by_prefix(entries, part) for part in text.split(",") if part]
        _note_missing(None in found)
        return [entry.sha256 for entry in found if entry is not None] or None

    restore(name, list(dict.fromkeys(entry.sha256 for entry in default)), parse)


def _note_missing(is_missing: bool) -> None:
    """Note that some part of the link is not here."""
    if is_missing:
        st.session_state["link_is_missing"] = True


def show_missing() -> None:
    """Say that a link's checkpoint is not here, until something else is picked."""
    if st.session_state.get("link_is_missing"):
        st.warning(MISSING)


def forget_missing() -> None:
    """Something was picked; the link no longer matters."""
    st.session_state["link_is_missing"] = False


def remember(**values: object) -> None:
    """Note choices for the address; an empty one leaves it.

    They are written together when the run ends (`one_write`), and at once outside of a run.
    """
    texts = {name: str(value) for name, value in values.items()}
    run = _run.get()
    if run is None:
        _write(texts)
    else:
        run.texts.update(texts)


def _write(texts: dict[str, str]) -> None:
    """Write choices into the address, if something differs; first values alone do not count.

    A fragment writes what its page would write, too, so that a link says all or nothing.
    """
    before, memory = st.query_params.to_dict(), st.session_state.get(MEMORY)
    texts = {**memory.texts, **texts} if memory is not None else texts
    after = {**before, **texts}
    after = {name: text for name, text in after.items() if text or name not in texts}
    if not before and _are_first(texts):
        after = before
    if after != before:
        st.query_params.from_dict(after)
    if memory is not None:
        chosen = {name: st.session_state.get(name) for name in texts}
        st.session_state[MEMORY] = Memory(memory.page, after, chosen, texts)


def _are_first(texts: dict[str, str]) -> bool:
    """Whether all choices have the values that their page gives them."""
    firsts = st.session_state.get(FIRSTS, {})
    return all(name in firsts or not text for name, text in texts.items()) and all(
        st.session_state.get(name) == first for name, first in firsts.items()
    )


def _tell_corrected(run: Run) -> None:
    """Say once which parts of a link mean nothing here; missing checkpoints are told apart."""
    corrected = [
        name
        for name, (text, value) in run.read.items()
        if run.texts.get(name) != text
        and (value is None or st.session_state.get(name) != value)
        and not st.session_state.get("link_is_missing")
    ]
    if corrected:
        names = ", ".join(name.replace("_", " ") for name in corrected)
        st.toast(f"This link asks for what is not possible here; changed: {names}.")


def remember_request(request: Request, **checkpoints: str | Sequence[str]) -> None:
    """Write a question into the address: checkpoints, data, and which images."""
    values: dict[str, object] = {
        name: ",".join(map(short, [value] if isinstance(value, str) else value))
        for name, value in checkpoints.items()
    }
    values.update(
        data=datasets.written(request.dataset), samples=request.samples, seed=request.seed
    )
    if request.measure == "cka":
        values["batch_size"] = request.batch_size
    values["split"] = "" if request.split == "test" else request.split
    values["balanced"] = "True" if request.option("balanced") else ""
    remember(**values)


def short(sha256: str) -> str:
    """A checksum as it stands in an address."""
    return sha256[:PREFIX]


def go(page: str, **choices: object) -> None:
    """Open another page with these choices made."""
    for name, value in choices.items():
        st.session_state[name] = value
    st.switch_page(page)


def whole_number(text: str) -> int | None:
    """A number from an address."""
    return int(text) if text.isascii() and text.isdigit() and len(text) < 10 else None
