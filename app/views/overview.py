"""The first page: a pair of networks, what is seen in it, its map and its probe curves."""

from __future__ import annotations

import streamlit as st

from analysis import figures
from analysis.study import Study
from app import jobs, links, texts, widgets
from app.sources import studies
from auglocal.errors import WorkError

MOST_MEGABYTES = 64


def _distinct(titles: list[str], studies: list[Study]) -> list[str]:
    """The data of each study; with its title, and then a number, where others have the same."""
    names: list[str] = []
    for title, study in zip(titles, studies, strict=True):
        name = title if titles.count(title) == 1 else f"{title}: {study.title}"
        count = sum(other == name or other.startswith(f"{name} (") for other in names)
        names.append(name if count == 0 else f"{name} ({count + 1})")
    return names


def pick(studies: list[Study]) -> Study:
    """One of the pairs; no box where there is only one."""
    if len(studies) == 1:
        return studies[0]
    titles = [study.question.dataset_title for study in studies]
    names = dict(zip(_distinct(titles, studies), studies, strict=True))
    links.restore("pair", next(iter(names)), lambda text: text if text in names else None)
    if st.session_state["pair"] not in names:
        st.session_state["pair"] = next(iter(names))
    chosen = st.selectbox("Networks trained on", list(names), key="pair", width=320)
    links.remember(pair=chosen)
    return names[chosen]


def draw_accuracies(study: Study) -> None:
    """Accuracy of each network, with the data it was measured on."""
    with st.container(horizontal=True, gap="large"):
        for entry, title in zip(study.question.checkpoints, texts.titles(study), strict=True):
            if entry.role:
                continue
            accuracy = entry.accuracy
            value = texts.percent(accuracy["value"]) if accuracy else "not measured"
            images = f", {accuracy['samples']:,} {accuracy['split']} images" if accuracy else ""
            st.metric(
                f"{texts.plain(title)}, accuracy on {texts.plain(entry.dataset)}",
                value,
                help=texts.plain(f"{entry.name}, {entry.architecture}{images}"),
                width="content",
            )


def draw_pictures(study: Study) -> None:
    """The map and the probe curves, side by side where there is room."""
    question = study.question
    labels = [
        figures.checkpoint_label(entry.rule, entry.name) for entry in question.checkpoints[:2]
    ]
    left, right = widgets.side_by_side()
    with left:
        title = f"Linear CKA, {question.split} split, n = {question.samples:,}"
        pair = studies.study_pair(study, *(entry.sha256 for entry in question.checkpoints[:2]))
        widgets.chart(
            figures.cka_map(pair, title=title, row_label=labels[0], column_label=labels[1]),
            "overview-map",
            f"Map of similarities between the layers of {labels[0]} and {labels[1]}",
        )
        st.caption(
            "Each cell compares a layer of one network with a layer of the other on the same "
            "images: 1 is the same up to rotation and scale, about 0 is unrelated."
        )
    with right:
        rules = {entry.name: entry.rule for entry in question.checkpoints}
        probes = [study.probe(name) for name in study.models]
        title = f"Linear probes, {question.split} split, n = {study.probes[0].test_samples:,}"
        widgets.chart(
            figures.probe_curves(probes, rules, title=title),
            "overview-probes",
            "Accuracy of linear probes by depth",
        )
        st.caption(
            "How well a linear classifier reads the class from each layer. Dotted lines: each "
            "network's own classifier; thin dotted curves and open markers, where the study has "
            "them: nearest neighbours and auxiliary networks."
        )


def draw_ways_on(study: Study) -> None:
    """Buttons to the pages that go deeper, with this pair picked."""
    sha256s = [entry.sha256 for entry in study.question.checkpoints if not entry.role]
    settings = {
        "data": study.question.dataset,
        "samples": study.question.samples,
        "seed": study.question.seed,
        "batch_size": study.question.batch_size,
    }
    with st.container(horizontal=True):
        if st.button("Compare layer by layer", type="primary"):
            links.go("views/similarity.py", a=sha256s[0], b=sha256s[1], **settings)
        if st.button("Probes of more checkpoints"):
            links.go("views/probes.py", models=sha256s, **settings)


def receive() -> None:
    """Check an uploaded study and keep it, or keep the sentence that says why not."""
    file = st.session_state["study-upload"]
    if file is None:
        return
    try:
        study = studies.keep_study(file.getvalue())
    except (ValueError, WorkError, OSError) as error:
        st.session_state["study_message"] = (False, jobs.sentence(error))
        return
    st.session_state["study_message"] = (
        True,
        f"Kept: {study.title}. Choose it under “Networks trained on”.",
    )


def draw_upload() -> None:
    """The door for studies made elsewhere."""
    with st.expander("Open a study from a file"):
        st.file_uploader(
            "A study that `python -m analysis study` wrote (.study.json)",
            type="json",
            key="study-upload",
            on_change=receive,
            max_upload_size=MOST_MEGABYTES,
            help="With CKA and probes of two networks or more; a copy stays on this machine.",
        )
        accepted, message = st.session_state.pop("study_message", (True, ""))
        if message:
            (st.success if accepted else st.error)(texts.plain(message))


st.title("BP and AugLocal, layer by layer", anchor=False)
st.markdown(
    "Two networks of one architecture, one trained end to end by backpropagation (BP), the other "
    "layer by layer with local losses (AugLocal): how do their layers differ?"
)
found = studies.pairs()
if found:
    study = pick(found)
    words, pictures = st.container(), st.container()
    # The pictures go out first: the browser takes a second to load what draws them.
    with pictures:
        draw_pictures(study)
    with words:
        draw_accuracies(study)
        st.markdown(texts.seen_in(study))
    st.caption(texts.IMAGES_NOTE)
    draw_ways_on(study)
else:
    widgets.empty_state(
        "No study yet",
        "A study of two checkpoints in the folder `checkpoints/` appears here. Upload checkpoints "
        "on the page Checkpoints, or train a pair with `python -m auglocal train`.",
    )
draw_upload()
