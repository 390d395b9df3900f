"""The options of a comparison: how it is computed, and what it is held against."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import streamlit as st

from analysis.request import ESTIMATORS, KERNELS
from app import links, texts, widgets
from app.sources import checkpoints, studies
from app.sources.checkpoints import CheckpointFile

WHOLE = 0  # a choice of None would look like no choice
POOLINGS = (WHOLE, 1, 2, 4)
GROUPS = 10
NO_CEILING = ""
OPTIONS: dict[str, Any] = {
    "kernel": "linear",
    "bandwidth": 0.8,
    "estimator": "unbiased",
    "pooling": WHOLE,
    "probe_pooling": 1,
    "intervals": False,
    "ceiling": NO_CEILING,
    "floor": False,
}


def pick_options(
    measure: str, chosen: Sequence[CheckpointFile], entries: Sequence[CheckpointFile]
) -> tuple[dict[str, Any], str | None, int | None]:
    """Options of the measure, the ceiling and the floor, folded away."""
    _restore_options(measure, chosen, entries)
    with st.expander(_options_summary(measure, entries), key="measure-options", type="compact"):
        options = _pick_cka_options() if measure == "cka" else _pick_other_options()
        ceiling, floor = _pick_references(chosen, entries)
    return options, ceiling, floor


def first_options(
    measure: str, chosen: Sequence[CheckpointFile], entries: Sequence[CheckpointFile]
) -> dict[str, Any]:
    """First values of the options: references as a study of the pair has them that is here."""
    sha256s = [entry.sha256 for entry in chosen]
    roles = {
        entry.role: entry
        for study in studies.studies_of(sha256s, measure)[:1]
        for entry in study.question.checkpoints
        if entry.role
    }
    here = {entry.sha256 for entry in entries} - set(sha256s)
    ceiling = roles["ceiling"].sha256 if "ceiling" in roles else NO_CEILING
    return {
        **OPTIONS,
        "floor": "floor" in roles,
        "ceiling": ceiling if ceiling in here else NO_CEILING,
    }


def _restore_options(
    measure: str, chosen: Sequence[CheckpointFile], entries: Sequence[CheckpointFile]
) -> None:
    """Give the options their first values: of the address, or of a study that is here."""
    sha256s = [entry.sha256 for entry in chosen]
    here = [entry.sha256 for entry in entries]
    parsers: dict[str, Callable[[str], Any]] = {
        "kernel": lambda text: text if text in KERNELS else None,
        "bandwidth": _positive,
        "estimator": lambda text: text if text in ESTIMATORS else None,
        "pooling": links.whole_number,
        "probe_pooling": links.whole_number,
        "ceiling": lambda text: getattr(
            checkpoints.by_prefix(entries, text), "sha256", NO_CEILING if text == "none" else None
        ),
    }
    for name, default in first_options(measure, chosen, entries).items():
        links.restore(name, default, parsers.get(name, lambda text: text == "True"))
    for name in ("pooling", "probe_pooling"):
        if st.session_state[name] not in POOLINGS:
            st.session_state[name] = OPTIONS[name]
    if st.session_state["ceiling"] not in {*here, NO_CEILING} - set(sha256s):
        st.session_state["ceiling"] = NO_CEILING


def _positive(text: str) -> float | None:
    """A number above 0 from an address."""
    try:
        number = float(text)
    except ValueError:
        return None
    return number if 0.01 <= number <= 100 else None


def _options_summary(measure: str, entries: Sequence[CheckpointFile]) -> str:
    """The options in one line."""
    chosen = st.session_state
    if measure == "cka":
        kernel = chosen["kernel"] if chosen["kernel"] == "linear" else "RBF"
        parts = [f"{kernel} kernel", chosen["estimator"], _pooling_name(chosen["pooling"])]
    else:
        intervals = "with" if chosen["intervals"] else "without"
        parts = [_pooling_name(chosen["probe_pooling"]), f"{intervals} intervals"]
    names = {entry.sha256: entry.name for entry in entries}
    if chosen["ceiling"]:
        parts.append(f"ceiling {texts.plain(names[chosen['ceiling']])}")
    parts += ["untrained floor"] * bool(chosen["floor"])
    text = ", ".join(parts)
    return text[0].upper() + text[1:]


def _pooling_name(size: int) -> str:
    """What is compared of a layer."""
    names = {WHOLE: "whole features", 1: "averaged features"}
    return names.get(size, f"features pooled to {size} x {size}")


def _pick_cka_options() -> dict[str, Any]:
    """Kernel, bandwidth, estimator and pooling of CKA."""
    kernel = st.segmented_control(
        "Kernel",
        KERNELS,
        key="kernel",
        required=True,
        format_func=lambda name: {"linear": "Linear", "rbf": "RBF"}[name],
        persist_state="session",
    )
    if kernel == "rbf":
        st.number_input(
            "Bandwidth, in median distances",
            0.01,
            100.0,
            step=0.1,
            key="bandwidth",
            persist_state="session",
        )
    estimator = st.segmented_control(
        "Estimator",
        ESTIMATORS,
        key="estimator",
        required=True,
        format_func=str.capitalize,
        persist_state="session",
        help="Unbiased goes by minibatches and has intervals; the others take all images at once.",
    )
    pooling = _pick_pooling("pooling")
    bandwidth = st.session_state["bandwidth"] if kernel == "rbf" else OPTIONS["bandwidth"]
    return {
        "kernel": kernel,
        "bandwidth": bandwidth,
        "estimator": estimator,
        "pooling": pooling,
    }


def _pick_other_options() -> dict[str, Any]:
    """Pooling and intervals of the other measures."""
    pooling = _pick_pooling("probe_pooling")
    intervals = st.toggle(
        f"Intervals, which take {GROUPS} times as long", key="intervals", persist_state="session"
    )
    return {"probe_pooling": pooling, "groups": GROUPS if intervals else 0}


def _pick_pooling(key: str) -> int | None:
    """What of each layer is compared; None for all of it."""
    chosen = st.selectbox(
        "Compare",
        POOLINGS,
        key=key,
        format_func=lambda size: _pooling_name(size).capitalize(),
        persist_state="session",
        help="Averaging over positions keeps what a layer sees and drops where.",
    )
    return None if chosen == WHOLE else int(chosen)


def _pick_references(
    chosen: Sequence[CheckpointFile], entries: Sequence[CheckpointFile]
) -> tuple[str | None, int | None]:
    """What the curves are held against."""
    names = {entry.sha256: widgets.label(entry) for entry in entries if entry not in chosen}
    ceiling = st.selectbox(
        "Ceiling: a network that should be alike, such as a second seed",
        [NO_CEILING, *names],
        key="ceiling",
        format_func=lambda sha256: names.get(sha256, "None"),
        persist_state="session",
    )
    floor = st.toggle("Floor: an untrained network", key="floor", persist_state="session")
    return ceiling or None, 0 if floor else None


def changes(first: Mapping[str, Any]) -> dict[str, str]:
    """The options as they stand in an address; those at their first value are left out of it."""
    return {
        name: "" if st.session_state[name] == value else _written(name)
        for name, value in first.items()
    }


def _written(name: str) -> str:
    """An option as it stands in an address."""
    value = st.session_state[name]
    if name == "ceiling":
        return links.short(value) or "none"
    return str(value)
