"""Accuracy by depth: what a linear probe reads from every layer of any number of checkpoints."""

from __future__ import annotations

from collections.abc import Sequence

import streamlit as st

from analysis import figures
from app import links, texts, widgets
from app.sources import checkpoints, studies
from app.sources.checkpoints import CheckpointFile
from app.sources.studies import Request


def pick(entries: Sequence[CheckpointFile]) -> list[CheckpointFile]:
    """Any number of checkpoints; a shipped pair at first."""
    by_sha256 = {entry.sha256: entry for entry in entries}
    links.restore_checkpoints("models", checkpoints.first_pair(entries), entries)
    chosen = st.multiselect(
        "Checkpoints",
        list(by_sha256),
        key="models",
        format_func=lambda sha256: widgets.label(by_sha256[sha256]),
        on_change=widgets.adopt_models,
        args=("probe", "models"),
        persist_state="session",
        placeholder="Pick one or more",
        wrap=True,
    )
    return [by_sha256[sha256] for sha256 in chosen]


def draw(answers: Sequence[studies.ProbeAnswer], split: str) -> None:
    """The curves, what they are, and the numbers."""
    probes = [answer.probe for answer in answers]
    rules = {answer.probe.model: answer.rule for answer in answers}
    title = f"Linear probes, {split} split, n = {probes[0].test_samples:,}"
    widgets.chart(
        figures.probe_curves(probes, rules, title=title),
        "probe-chart",
        "Accuracy of linear probes by depth",
    )
    st.caption(
        "Logistic regression on globally average-pooled features of each layer, fitted on "
        f"{probes[0].train_samples:,} training images. Dotted lines: each network's own "
        f"classifier. {texts.IMAGES_NOTE}"
    )
    with st.expander("Numbers"):
        st.dataframe(texts.probe_rows(probes), hide_index=True)
    draw_files(answers)


def draw_files(answers: Sequence[studies.ProbeAnswer]) -> None:
    """What to take away: the numbers as a table and the commands."""
    st.download_button(
        "Curves (CSV)",
        lambda: texts.probe_csv([answer.probe for answer in answers]),
        file_name="probes.csv",
        mime="text/csv",
        on_click="ignore",
    )
    st.caption("The same from a terminal:")
    commands = dict.fromkeys(answer.study.provenance.command for answer in answers)
    st.code("\n".join(commands), language=None, wrap_lines=True)


def page() -> None:
    """Pick, get, draw."""
    st.title("Probes", anchor=False)
    with st.spinner("Opening checkpoints"):
        entries, problems = checkpoints.checkpoint_files()
    widgets.show_problems(problems)
    if not entries:
        widgets.no_checkpoints()
        return
    left, right = widgets.row_of(2)
    with left:
        chosen = pick(entries)
    links.show_missing()
    if not chosen:
        links.remember(models="")
        widgets.empty_state("Nothing picked", "Pick one checkpoint or more to see its probes.")
        return
    sha256s = tuple(entry.sha256 for entry in chosen)
    with right:
        dataset = widgets.pick_data(sha256s, "probe")
    settings = widgets.pick_settings(sha256s, "probe", dataset)
    request = Request("probe", sha256s, dataset, *settings)
    links.remember_request(request, models=sha256s)
    answers = studies.probes_of(request, chosen)
    missing = [entry for entry in chosen if entry.sha256 not in answers]
    if missing:
        open_request = studies.narrowed(request, missing)
        names = " and ".join(entry.name for entry in missing)
        widgets.offer(open_request, missing, f"Probing {names}", "Run probes")
    if answers:
        draw(list(answers.values()), "test")


page()
