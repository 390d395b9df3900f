"""What every number here means, how it is estimated, what can mislead, and how to cite it."""

from __future__ import annotations

import streamlit as st

from analysis.similarity import MEASURES
from app import texts_method as words
from app.texts_method import Entry

READABLE = 760  # pixels; longer lines are hard to read
SECTIONS = {
    "cka": "CKA",
    "similarity": "Other measures of similarity",
    "probes": "Probes",
    "geometry": "Geometry",
    "intervals": "What intervals mean",
    "misleading": "What can mislead",
    "rules": "Training rules",
    "data": "Data",
    "versions": "Versions",
    "citing": "How to cite",
}


def draw_contents() -> None:
    """Links to the sections."""
    st.markdown("  ·  ".join(f"[{title}](#{anchor})" for anchor, title in SECTIONS.items()))


def heading(anchor: str) -> None:
    """The heading of a section, where its link leads."""
    st.header(SECTIONS[anchor], anchor=anchor, divider="gray")


def draw_entry(entry: Entry, note: str = "") -> None:
    """A definition: words, formulas, cautions, source."""
    st.markdown(f"**{entry.title}**  \n{entry.text}")
    for formula in entry.formulas:
        st.latex(formula)
    for caution in entry.cautions:
        st.markdown(caution)
    if note:
        st.caption(note)
    if entry.source:
        st.caption(f"Source: {entry.source}")


def draw_measures() -> None:
    """Similarity, probes and geometry."""
    heading("cka")
    draw_entry(words.CKA)
    heading("similarity")
    st.markdown("All are computed on pooled features, a vector of channels an image.")
    for name, make in MEASURES.items():
        draw_entry(words.SIMILARITY[name], words.about(make()))
    heading("probes")
    draw_entry(words.PROBES)
    heading("geometry")
    st.markdown(
        "Of one layer's pooled features $x_i$, $i = 1 \\dots N$; $m_c$ is the mean of class $c$ of "
        "$K$, $m$ the mean of these, $S_W$ and $S_B$ the scatter within and between classes, "
        "$W$ the classifier's weights and $M$ the class means about $m$."
    )
    for entry in words.geometry_entries():
        draw_entry(entry)


def draw_honesty() -> None:
    """What intervals mean and what can mislead."""
    heading("intervals")
    st.markdown(words.INTERVALS)
    heading("misleading")
    for title, text in words.MISLEADING:
        st.markdown(f"**{title}.** {text}")


def draw_training() -> None:
    """The rules in short, and the data."""
    heading("rules")
    for entry in words.RULES:
        draw_entry(entry)
    if st.button("See who copies which layers"):
        st.switch_page("views/auxiliary.py")
    heading("data")
    st.markdown(words.DATA)


def draw_citing() -> None:
    """Versions and citations."""
    heading("versions")
    st.table(words.version_rows(), border="horizontal", hide_index=True)
    heading("citing")
    st.markdown("The paper whose method AugLocal is:")
    st.code(words.PAPER, language=None, wrap_lines=True)
    st.markdown("This software:")
    st.code(words.software_citation(), language=None, wrap_lines=True)
    st.caption(
        "A study's own file names its checkpoints by checksum, its images by seed, and the command "
        "that redoes it: cite the file beside the software."
    )


def page() -> None:
    """All sections, in order."""
    st.title("Method", anchor=False)
    with st.container(width=READABLE):
        st.markdown("What every number here means, how it is estimated, and what can mislead.")
        draw_contents()
        draw_measures()
        draw_honesty()
        draw_training()
        draw_citing()


page()
