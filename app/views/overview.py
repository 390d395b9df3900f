"""What this is, and what its studies show: a card each, drawn from files before anything loads."""

from __future__ import annotations

from typing import Literal

import streamlit as st

from analysis.dynamics import trajectories
from analysis.rule_styles import network_titles
from analysis.study import Study
from analysis.thumbnails import study_thumbnails
from app import jobs, links, several, texts, texts_overview, widgets
from app.sources import checkpoints, studies
from auglocal.errors import WorkError

MOST_MEGABYTES = 256
INK = {"light": "#2B3A42", "dark": "#D7DFE3"}
# Where a study's measures are drawn in full: measure, page, the button's words.
WAYS_ON = {
    "cka": ("views/similarity.py", "Compare layer by layer"),
    "probe": ("views/probes.py", "Probes"),
    "geometry": ("views/geometry.py", "Geometry"),
}


def draw_card(file: studies.StudyFile) -> None:
    """One study: what it is about, what is seen, its picture, and the ways on."""
    study = file.study
    with st.container(border=True, key=f"card-{file.path.name.split('.')[0]}"):
        st.subheader(texts.plain(texts.study_title(study)), anchor=False)
        st.caption(texts.plain(texts.study_images(study)))
        if not trajectories(study):
            draw_accuracies(study)
        st.markdown("\n".join(f"- {sentence}" for sentence in texts_overview.seen_in(study)))
        pictures = study_thumbnails(study, INK[st.context.theme.type or "light"])
        for place, picture in zip(widgets.row_of(len(pictures)), pictures, strict=True):
            with place:
                st.image(picture.svg, width="stretch", alt=picture.title)
        draw_ways_on(file)


def draw_accuracies(study: Study) -> None:
    """Accuracy of each network that is compared, with the images it was measured on."""
    compared = [entry for entry in study.question.checkpoints if not entry.role]
    titles = network_titles(study.question.checkpoints)
    places = widgets.row_of(len(compared), 4, widgets.NARROWEST_NUMBER)
    for place, entry in zip(places, compared, strict=True):
        accuracy = entry.accuracy
        value = texts.percent(accuracy["value"]) if accuracy else "not measured"
        images = f", {accuracy['samples']:,} {accuracy['split']} images" if accuracy else ""
        with place:
            st.metric(
                f"{texts.plain(titles[entry.name])}, accuracy",
                value,
                help=texts.plain(f"{entry.name}, {entry.architecture}{images}"),
            )


def draw_ways_on(file: studies.StudyFile) -> None:
    """Buttons to the pages that show it in full, with its networks and images chosen."""
    study, name = file.study, file.path.name
    if trajectories(study):
        if st.button("Follow training", type="primary", key=f"dynamics-{name}"):
            links.go("views/dynamics.py")
        return
    sha256s = [entry.sha256 for entry in study.question.checkpoints if not entry.role]
    settings = {
        "data": study.question.dataset,
        "samples": study.question.samples,
        "seed": study.question.seed,
        "batch_size": study.question.batch_size,
        "split": study.question.split,
        "balanced": study.question.balanced,
    }
    wanted = ""
    with st.container(horizontal=True):
        for measure, (page, label) in WAYS_ON.items():
            if not studies.holds(study, sha256s, measure):
                continue
            kind: Literal["primary", "secondary"] = "primary" if measure == "cka" else "secondary"
            if st.button(label, type=kind, key=f"{measure}-{name}"):
                wanted = page
    if wanted and not warn_of_missing(study):
        chosen = {"a": sha256s[0], "b": sha256s[1 if len(sha256s) > 1 else 0]}
        links.go(wanted, **chosen, models=sha256s, **settings)


def warn_of_missing(study: Study) -> bool:
    """Say which of the networks are not here, so that no page can show them; whether any is not."""
    here = {entry.sha256 for entry in checkpoints.checkpoint_files()[0]}
    missing = [
        entry.name
        for entry in study.question.checkpoints
        if not entry.role and entry.sha256 not in here
    ]
    if missing:
        st.warning(f"{texts.plain(', '.join(missing))} is not on this machine; upload it first.")
    return bool(missing)


def draw_added() -> None:
    """The studies that were computed or opened here: a line each, to open and to delete."""
    found = {file.path.name: file for file in studies.added()}
    if not found:
        return
    st.subheader("Computed on this machine", anchor=False)
    st.dataframe(texts.study_rows(list(found.values())), hide_index=True, key="added-studies")
    if st.session_state.get("added_study") not in found:
        st.session_state["added_study"] = next(iter(found))
    with st.container(horizontal=True, vertical_alignment="bottom"):
        chosen = st.selectbox(
            "Study",
            list(found),
            key="added_study",
            format_func=lambda name: texts.study_line(found[name].study),
            width=480,
        )
        if st.button("Open"):
            open_study(found[chosen])
        with st.popover("Delete"):
            st.markdown("The file with its results goes away; checkpoints and images stay.")
            st.button("Delete it", on_click=studies.delete, args=(found[chosen],), type="primary")


def open_study(file: studies.StudyFile) -> None:
    """Turn to the page that shows a study, with what it was computed for chosen."""
    request = studies.asked(file)
    if trajectories(file.study):
        links.go("views/dynamics.py")
    if warn_of_missing(file.study):
        return
    page, _ = WAYS_ON.get(request.measure, WAYS_ON["cka"])
    links.go(page, **several.choices_of(request))


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
    where = "Its card is above." if studies.has_card(study) else "The other pages find it."
    name = texts.study_title(study)
    st.session_state["study_message"] = (True, f"Kept: {name}. {where}")


def draw_upload() -> None:
    """The door for studies made elsewhere."""
    with st.expander("Open a study from a file"):
        st.file_uploader(
            "A study that `python -m analysis study` wrote (.study.json)",
            type="json",
            key="study-upload",
            on_change=receive,
            max_upload_size=MOST_MEGABYTES,
            help="With CKA of two networks or more, or probes; a copy stays on this machine.",
        )
    # Outside, as the door closes itself.
    accepted, message = st.session_state.pop("study_message", (True, ""))
    if message:
        (st.success if accepted else st.error)(texts.plain(message))


st.title("Layer by layer", anchor=False)
st.markdown(
    "What do networks learn when no error is propagated through them end to end? Here hidden "
    "layers learn from local losses of their own, in AugLocal through auxiliary networks made of "
    "copies of later layers; backpropagation (BP) is what they are compared with."
)
found = studies.cards()
for card in found:
    draw_card(card)
if found:
    st.caption(
        "CKA: 1 is the same up to rotation and scale, about 0 is unrelated. Linear probes: how "
        f"well the class can be read from a layer. {texts.IMAGES_NOTE}"
    )
else:
    widgets.empty_state(
        "No study yet",
        "A study of checkpoints in the folder `checkpoints/` appears here. Upload checkpoints on "
        "the page Checkpoints, or train a pair with `python -m auglocal train`.",
    )
draw_added()
draw_upload()
