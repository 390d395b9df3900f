"""What the pages about several checkpoints share: which checkpoints, which images, which features.

In: the checkpoints on this machine. Out: a `Question` that the page gets and draws.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import streamlit as st

from analysis.probes import PENALTIES
from app import links, widgets
from app.sources import checkpoints, datasets
from app.sources.checkpoints import CheckpointFile
from app.sources.studies import Request

POOLINGS = {
    1: "averaged over the image",
    2: "averaged over quarters (2 x 2)",
    4: "averaged over a grid of 4 x 4",
}
BY_LAYER = 0.0  # stands for a penalty chosen by layer, as a value of the box and in the address
CHOICES = (BY_LAYER, 0.01, *PENALTIES)


@dataclass(frozen=True)
class Question:
    """What a page asks, and the checkpoints that it is about."""

    request: Request
    chosen: tuple[CheckpointFile, ...]


def ask(measure: str, nothing: str) -> Question | None:
    """Let the user pick checkpoints, data and options; None while there is nothing to ask.

    Args:
        measure: "probe" or "geometry".
        nothing: a sentence for the page without checkpoints picked.
    """
    with st.spinner("Opening checkpoints"):
        entries, problems = checkpoints.checkpoint_files()
    widgets.show_problems(problems)
    if not entries:
        widgets.no_checkpoints()
        return None
    left, right = widgets.row_of(2)
    with left:
        chosen = _pick(entries, measure)
    links.show_missing()
    if not chosen:
        links.remember(models="")
        widgets.empty_state("Nothing picked", nothing)
        return None
    sha256s = tuple(entry.sha256 for entry in chosen)
    with right:
        dataset = widgets.pick_data(sha256s, measure)
    left, right = widgets.row_of(2)
    with right:
        options = _pick_options(measure)
    with left:
        request = widgets.pick_question(sha256s, measure, dataset, options=options)
    links.remember_request(request, models=sha256s)
    return Question(request, tuple(chosen))


def _pick(entries: Sequence[CheckpointFile], measure: str) -> list[CheckpointFile]:
    """Any number of checkpoints; a shipped pair at first."""
    by_sha256 = {entry.sha256: entry for entry in entries}
    links.restore_checkpoints("models", checkpoints.first_pair(entries), entries)
    chosen = st.multiselect(
        "Checkpoints",
        list(by_sha256),
        key="models",
        format_func=lambda sha256: widgets.label(by_sha256[sha256]),
        on_change=widgets.adopt_models,
        args=(measure, "models"),
        persist_state="session",
        placeholder="Pick one or more",
        wrap=True,
    )
    return [by_sha256[sha256] for sha256 in chosen]


def _pick_options(measure: str) -> dict[str, Any]:
    """How features are pooled, and for probes the penalty; folded away."""
    links.restore("probe_pooling", 1, lambda text: _one_of(text, POOLINGS))
    if st.session_state["probe_pooling"] not in POOLINGS:
        st.session_state["probe_pooling"] = 1
    is_probe = measure == "probe"
    if is_probe:
        links.restore("penalty", 1.0, lambda text: _one_of(text, CHOICES))
    with st.expander(_summary(is_probe), key=f"options-{measure}", type="compact"):
        pooling = st.selectbox(
            "Features",
            list(POOLINGS),
            key="probe_pooling",
            format_func=POOLINGS.__getitem__,
            persist_state="session",
            help="Where features are maps, each channel is averaged over the image or its parts.",
        )
        penalty = _pick_penalty() if is_probe else 1.0
    written = {"penalty": "" if penalty == 1.0 else f"{penalty:g}"} if is_probe else {}
    links.remember(probe_pooling="" if pooling == 1 else pooling, **written)
    if penalty == BY_LAYER:
        return {"probe_pooling": pooling, "penalties": PENALTIES}
    return {"probe_pooling": pooling, "penalty": penalty}


def _summary(is_probe: bool) -> str:
    """The options in one line."""
    summary = f"Features {POOLINGS[st.session_state['probe_pooling']]}"
    if is_probe:
        summary += f", penalty {_penalty_text(st.session_state['penalty'])}"
    return summary


def _pick_penalty() -> float:
    """The penalty of the probes."""
    return float(
        st.selectbox(
            "Penalty of the probes",
            CHOICES,
            key="penalty",
            format_func=_penalty_text,
            persist_state="session",
            help="The weight of the squared norm of a probe's weights: a larger one makes simpler "
            "probes. Chosen by layer: on a fifth of the training images.",
        )
    )


def _penalty_text(penalty: float) -> str:
    return "chosen by layer" if penalty == BY_LAYER else f"{penalty:g}"


def _one_of(text: str, choices: Any) -> Any:
    """A number of an address, if it can be chosen."""
    return next((choice for choice in choices if f"{choice:g}" == text), None)


def choices_of(request: Request) -> dict[str, Any]:
    """All choices that make a page ask this question, by their names in session state."""
    sha256s = request.sha256s
    is_listed = request.dataset in datasets.datasets_on_disk()
    is_folder = request.dataset.startswith(datasets.FOLDER_PREFIX) and not is_listed
    chosen: dict[str, Any] = {
        "measure": "cka" if request.measure in ("probe", "geometry") else request.measure,
        "a": sha256s[0],
        "b": sha256s[min(1, len(sha256s) - 1)],
        "more": list(sha256s[2:]),
        "models": list(sha256s),
        "data": widgets.FOLDER if is_folder else request.dataset,
        "ceiling": request.ceiling or "",
        "floor": request.floor is not None,
        "intervals": bool(request.option("groups")),
        "pooling": request.option("pooling") or 0,
        "penalty": BY_LAYER if request.option("penalties") else request.option("penalty"),
    }
    if is_folder:
        chosen["folder_path"] = request.dataset.removeprefix(datasets.FOLDER_PREFIX)
    names = ("samples", "seed", "batch_size", "split")
    chosen |= {name: getattr(request, name) for name in names}
    options = ("balanced", "kernel", "bandwidth", "estimator", "probe_pooling")
    chosen |= {name: request.option(name) or 0 for name in options}
    return chosen | {"balanced": bool(chosen["balanced"])}


def pick_one(
    key: str, title: str, entries: Sequence[CheckpointFile], default: int = 0, **options: Any
) -> CheckpointFile:
    """One of the checkpoints on the page, kept in the address; no box where there is only one."""
    by_sha256 = {entry.sha256: entry for entry in entries}
    restore_choice(
        key,
        list(by_sha256),
        entries[min(default, len(entries) - 1)].sha256,
        lambda text: next((sha256 for sha256 in by_sha256 if sha256.startswith(text)), None),
    )
    if len(by_sha256) > 1:
        st.selectbox(
            title,
            list(by_sha256),
            key=key,
            format_func=lambda sha256: widgets.label(by_sha256[sha256]),
            persist_state="session",
            **options,
        )
    links.remember(**{key: links.short(st.session_state[key])})
    return by_sha256[st.session_state[key]]


def restore_choice(
    key: str, choices: Sequence[Any], default: Any, parse: Callable[[str], Any] = str
) -> None:
    """Give a choice its first value from the address; one that is no longer there, its default."""
    links.restore(key, default, lambda text: value if (value := parse(text)) in choices else None)
    if st.session_state[key] not in choices:
        st.session_state[key] = default


def download(title: str, table: Callable[[], str], file_name: str, **options: Any) -> None:
    """A table as a file."""
    st.download_button(
        f"{title} (CSV)",
        table,
        file_name=file_name,
        mime="text/csv",
        on_click="ignore",
        **options,
    )
