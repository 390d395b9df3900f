"""The address bar and the page's choices: a link reproduces what was picked.

Choices live in session state under the same names as in the address; checkpoints appear in an
address by the start of their checksum.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import streamlit as st

from app.sources.checkpoints import CheckpointFile, by_prefix
from app.sources.studies import Request

MISSING = "This link refers to a checkpoint not on this machine."
PREFIX = 12  # characters of a checksum in an address


def restore(name: str, default: Any, parse: Callable[[str], Any]) -> None:
    """Give a choice its first value: from the address, or the default.

    Args:
        name: of the choice, in session state and in the address.
        default: the value without an address.
        parse: text to value, None for text that means nothing here.
    """
    if name in st.session_state:
        return
    text = st.query_params.get(name)
    value = None if text is None else parse(text)
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
    """Write choices into the address; an empty one leaves it.

    All at once and only if something differs: every write is a step for the browser's Back.
    """
    before = st.query_params.to_dict()
    after = {**before, **{name: str(value) for name, value in values.items()}}
    after = {name: text for name, text in after.items() if text or name not in values}
    if after != before:
        st.query_params.from_dict(after)


def remember_request(request: Request, **checkpoints: str | Sequence[str]) -> None:
    """Write a question into the address: checkpoints, data, and which images."""
    values: dict[str, object] = {
        name: ",".join(map(short, [value] if isinstance(value, str) else value))
        for name, value in checkpoints.items()
    }
    values.update(data=request.dataset, samples=request.samples, seed=request.seed)
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
