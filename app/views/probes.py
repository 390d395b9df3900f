"""Probes: what a classifier reads from every layer, of which classes, and in which images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import streamlit as st

from analysis import figures, figures_probes
from analysis.study import Study
from app import jobs, links, offering, pictures, several, texts, texts_probes, widgets
from app.several import Question
from app.sources import answers, images, studies
from app.sources.answers import ProbeAnswer
from app.sources.checkpoints import CheckpointFile
from app.texts_probes import ANYTHING, Gallery

ANY = -1  # stands for every class in the boxes
NARROW_BOX = 140  # pixels, which show a layer's or a class's name
A_SHEET = 60  # images of the gallery at once
KINDS = {
    "accuracy": "Linear probe",
    "neighbours_accuracy": "Nearest neighbours",
    "calibration_error": "Calibration error",
    "cross_entropy": "Cross-entropy",
}
MEANINGS = {
    "accuracy": "Logistic regression on the features of each layer: which share of images it "
    "reads right. Large open markers, where there are any: auxiliary networks.",
    "neighbours_accuracy": "A vote of the nearest training images by cosine similarity, without a "
    "fit: which share of images it gets right.",
    "calibration_error": "How far the linear probe's confidence is from the share that it gets "
    "right, on average over images in bins of confidence; lower is better. It has no interval.",
    "cross_entropy": "Minus the logarithm of the probability that the linear probe gives the true "
    "class, on average over images; lower is better. It has no interval.",
}
WAYS = {"mended": True, "lost": False}


# ------------------------------------------------------------------------------------------ curves


def draw_curves(found: Sequence[ProbeAnswer]) -> None:
    """A score by depth, and what it is."""
    probes = [answer.probe for answer in found]
    kinds = [kind for kind in KINDS if any(getattr(probe, kind) is not None for probe in probes)]
    several.restore_choice("score", kinds, "accuracy")
    if len(kinds) > 1:
        st.segmented_control(
            "Score",
            kinds,
            key="score",
            required=True,
            format_func=KINDS.__getitem__,
            persist_state="session",
            label_visibility="collapsed",
        )
    kind = st.session_state["score"]
    links.remember(score="" if kind == "accuracy" else kind)
    question = found[0].study.question
    title = f"{KINDS[kind]}, {question.split} split, n = {probes[0].test_samples:,}"
    rules = {answer.entry.name: answer.entry.rule for answer in found}
    figure = _curves(kind, probes, rules, title)
    widgets.chart(figure, "probe-chart", f"{KINDS[kind]} by depth")
    has_own = any(probe.classifier_accuracy is not None for probe in probes)
    is_drawn = has_own and kind.endswith("accuracy")
    st.caption(
        f"{MEANINGS[kind]} Fitted on {probes[0].train_samples:,} training images"
        + (". Dotted lines: each network's own classifier" if is_drawn else "")
        + f". {texts.IMAGES_NOTE} {texts.plain(texts.sizes_note(found[0].study))}"
    )


def draw_part(study: Study, entries: Sequence[CheckpointFile]) -> None:
    """Curves that are not whole: while probes are fitted, or what a stopped job kept."""
    found = answers.probe_parts(study, entries)
    if not found:
        return
    probes = [answer.probe for answer in found]
    kind = st.session_state.get("score", "accuracy")
    if kind not in KINDS or not any(_has_values(probe, kind) for probe in probes):
        kind = "accuracy"
    rules = {answer.entry.name: answer.entry.rule for answer in found}
    title = f"{KINDS[kind]}, {study.question.split} split, n = {probes[0].test_samples:,}"
    widgets.chart(_curves(kind, probes, rules, title), "part-chart", f"{KINDS[kind]} so far")
    st.caption(
        f"**Partial**, {texts.plain(str(study.provenance.stopped))}. Layers that are there do not "
        "change any more."
    )


def _has_values(probe: Any, kind: str) -> bool:
    values = getattr(probe, kind)
    return values is not None and bool(np.isfinite(values).any())


def _curves(kind: str, probes: Sequence[Any], rules: dict[str, str], title: str) -> Any:
    """The figure of a score."""
    if kind == "accuracy":
        alone = [replace(probe, neighbours_accuracy=None) for probe in probes]
        return figures.probe_curves(alone, rules, title=title)
    if kind == "neighbours_accuracy":
        return figures_probes.neighbours_curves(probes, rules, title=title)
    return figures_probes.score_curves(probes, rules, kind, title=title)


# ------------------------------------------------------------------------------------------- pairs


def draw_paired(found: Sequence[ProbeAnswer]) -> None:
    """Two checkpoints on the same images: which layers differ."""
    st.subheader("Which layers differ?", anchor=False)
    first, second = _pick_pair(found)
    paired = answers.paired(first, second)
    if isinstance(paired, str):
        st.caption(f"These cannot be tested against each other: {texts.plain(paired)}.")
        return
    probes = (first.probe, second.probe)
    rules = {answer.entry.name: answer.entry.rule for answer in (first, second)}
    labels = (widgets.label(first.entry), widgets.label(second.entry))
    st.markdown(texts_probes.paired_sentence(paired, probes, labels))
    entries = [studies.study_checkpoint(a.study, a.entry.sha256) for a in (first, second)]
    unlike = texts_probes.unlike_sentence(entries[0], entries[1], probes)
    if unlike:
        st.caption(texts.plain(unlike))
    widgets.chart(
        figures_probes.paired_curve(
            paired, probes, rules, title=f"Difference of linear probes, n = {paired.samples:,}"
        ),
        "paired-chart",
        f"Accuracy of {labels[0]} minus {labels[1]} by depth",
    )
    st.caption(
        "Filled: a difference that the corrected test finds. Bars are 95% intervals of single "
        "layers (Tango), not corrected, so that one may leave out 0 where the test finds nothing. "
        "They cover the choice of images, not of training runs."
    )


def _pick_pair(found: Sequence[ProbeAnswer]) -> tuple[ProbeAnswer, ProbeAnswer]:
    """Two of the checkpoints; boxes only where there are more."""
    if len(found) == 2:
        return found[0], found[1]
    entries = [answer.entry for answer in found]
    left, right = widgets.row_of(2)
    with left:
        first = several.pick_one("first", "First", entries)
    others = [entry for entry in entries if entry is not first]
    with right:
        second = several.pick_one("second", "Second", others)
    by_sha256 = {answer.entry.sha256: answer for answer in found}
    return by_sha256[first.sha256], by_sha256[second.sha256]


# --------------------------------------------------------------------------- classes and images


@links.fragment
def draw_classes(found: Sequence[ProbeAnswer], dataset: str) -> None:
    """The classes of one checkpoint by layer, one layer's confusions, and single images."""
    st.subheader("Which classes, and which images?", anchor=False)
    left, right = widgets.row_of(2)
    with left:
        entry = several.pick_one(
            "of", "Checkpoint to look into", [answer.entry for answer in found]
        )
    answer = next(answer for answer in found if answer.entry is entry)
    with right:
        layer = _pick_layer(answer)
    truth, taken = _classes_chosen(answer)
    _draw_maps(answer, layer, truth, taken)
    _draw_gallery(answer, dataset, Gallery(layer, "", True, truth, taken))


def _pick_layer(answer: ProbeAnswer) -> str:
    """One of the layers; a click in the map of classes sets it too."""
    layers = answer.probe.layers
    several.restore_choice("layer", layers, layers[len(layers) // 2])
    st.select_slider("Layer", layers, key="layer", persist_state="session")
    links.remember(layer=st.session_state["layer"])
    return str(st.session_state["layer"])


def _classes_chosen(answer: ProbeAnswer) -> tuple[int | None, int | None]:
    """True class and class read that the images are narrowed to; their boxes come later."""
    choices = [ANY, *range(len(answer.study.question.classes))]
    for key in ("truth", "taken"):
        several.restore_choice(key, choices, ANY, links.whole_number)
    chosen = [st.session_state[key] for key in ("truth", "taken")]
    names = ("truth", "taken")
    links.remember(**{k: "" if v == ANY else v for k, v in zip(names, chosen, strict=True)})
    truth, taken = (None if value == ANY else int(value) for value in chosen)
    return truth, taken


def _draw_maps(answer: ProbeAnswer, layer: str, truth: int | None, taken: int | None) -> None:
    """Classes by layers on the left, the chosen layer's confusions on the right."""
    classes = answer.study.question.classes
    samples = f"{answer.study.question.split} split, n = {answer.probe.test_samples:,}"
    left, right = widgets.side_by_side()
    with left:
        st.plotly_chart(
            figures_probes.recall_map(
                answer.probe, classes, title=f"Recall, {samples}", layer=layer, true_class=truth
            ),
            key="recall-chart",
            on_select=lambda: recall_clicked(answer),
            selection_mode="points",
            config=widgets.chart_config("recall"),
            alt="Map of the share of each class that a probe of each layer finds",
        )
        st.caption("Click a cell to see its layer and class, or use the slider and the boxes.")
    with right:
        st.plotly_chart(
            figures_probes.confusion_map(
                answer.probe,
                layer,
                classes,
                title=f"Confusions at {layer}",
                true_class=truth,
                predicted=taken,
            ),
            key="confusion-chart",
            on_select=lambda: confusion_clicked(answer),
            selection_mode="points",
            config=widgets.chart_config("confusions"),
            alt=f"Which classes the probe of {layer} takes for which",
        )
        st.caption("Shares of each true class, a row each. Click a cell to see its images below.")


def _clicked(chart: str) -> tuple[int, int] | None:
    """Column and row from the bottom of a clicked cell."""
    points = st.session_state[chart]["selection"]["points"]
    return (int(points[0]["x"]), int(points[0]["y"])) if points else None


def recall_clicked(answer: ProbeAnswer) -> None:
    """Copy a clicked layer and class to their controls; a second click takes the class back."""
    if cell := _clicked("recall-chart"):
        layer = answer.probe.layers[cell[0]]
        truth = len(answer.study.question.classes) - 1 - cell[1]
        is_same = (layer, truth) == (st.session_state["layer"], st.session_state["truth"])
        st.session_state["layer"] = layer
        st.session_state["truth"] = ANY if is_same else truth
        st.session_state["taken"] = ANY


def confusion_clicked(answer: ProbeAnswer) -> None:
    """Copy a clicked pair of classes to their boxes; a second click takes them back."""
    if cell := _clicked("confusion-chart"):
        pair = (len(answer.study.question.classes) - 1 - cell[1], cell[0])
        if pair == (st.session_state["truth"], st.session_state["taken"]):
            pair = (ANY, ANY)
        st.session_state["truth"], st.session_state["taken"] = pair
        # The diagonal holds what the layer reads right.
        st.session_state["way"] = "lost" if pair[0] == pair[1] != ANY else "mended"


# ----------------------------------------------------------------------------------------- gallery


def _draw_gallery(answer: ProbeAnswer, dataset: str, gallery: Gallery) -> None:
    """The images that this layer gets wrong and a later one right, or the other way round."""
    probe, question = answer.probe, answer.study.question
    gallery = _pick_gallery(answer, gallery)
    labels = np.asarray(question.labels)
    found = texts_probes.chosen_images(probe, labels, gallery)
    st.markdown(
        texts_probes.gallery_sentence(gallery, question.classes, len(found), len(labels))
        + (", surest first." if len(found) else ".")
    )
    try:
        with st.spinner("Reading the images"):
            shown = images.of_study(question, dataset)
    except (ValueError, OSError) as error:
        shown = None
        widgets.empty_state("No images to show", texts.plain(jobs.sentence(error)))
    if shown is not None and len(found):
        sheet = _pick_sheet(len(found))
        pictures.gallery([_picture(answer, gallery, shown, int(place)) for place in found[sheet]])
    numbers = None if shown is None else shown.indices
    several.download(
        "These images",
        lambda: texts_probes.gallery_csv(probe, labels, question.classes, numbers, gallery),
        "images.csv",
        disabled=not len(found),
    )


def _pick_gallery(answer: ProbeAnswer, gallery: Gallery) -> Gallery:
    """What to hold the layer against, and which classes."""
    choices = texts_probes.later_choices(answer.probe, gallery.layer)
    several.restore_choice("later", choices, choices[0])
    several.restore_choice("way", list(WAYS), "mended")
    classes = answer.study.question.classes
    grid = st.grid(4, min_column_width=NARROW_BOX)
    places = [grid.cell() for _ in range(4)]
    with places[0]:
        later = st.selectbox(
            "Later layer",
            choices,
            key="later",
            format_func=lambda name: "whatever it says" if name == ANYTHING else name,
            persist_state="session",
        )
    is_open = later == ANYTHING
    with places[1]:
        way = st.selectbox(
            "Images",
            list(WAYS),
            key="way",
            format_func=lambda way: _way_title(way, is_open),
            persist_state="session",
        )
    for place, key, title in zip(places[2:], ("truth", "taken"), ("True class", "Read here as")):
        place.selectbox(
            title,
            [ANY, *range(len(classes))],
            key=key,
            format_func=lambda value: "any" if value == ANY else classes[value],
            persist_state="session",
        )
    links.remember(later=later, way="" if way == "mended" else way)
    return replace(gallery, later=later, mended=WAYS[way])


def _way_title(way: str, is_open: bool) -> str:
    """Which images, in words."""
    if is_open:
        return "wrong here" if way == "mended" else "right here"
    return "wrong here, right later" if way == "mended" else "right here, wrong later"


def _pick_sheet(count: int) -> slice:
    """Which of the images are on the page at hand."""
    sheets = -(-count // A_SHEET)
    links.restore("sheet", 1, links.whole_number)
    st.session_state["sheet"] = min(max(int(st.session_state["sheet"] or 1), 1), sheets)
    sheet = int(st.session_state["sheet"])
    if sheets > 1:
        # A widget that always has a default must not have the choice's own key: its value is the
        # default of the widget, which another number of sheets makes anew.
        key = f"sheet-of-{sheets}"
        st.pagination(sheets, default=sheet, key=key, on_change=lambda: _turn_to(key))
    links.remember(sheet="" if sheet == 1 else sheet)
    return slice((sheet - 1) * A_SHEET, sheet * A_SHEET)


def _turn_to(key: str) -> None:
    """Copy the sheet that was clicked to the choice of sheets."""
    st.session_state["sheet"] = st.session_state[key]


def _picture(
    answer: ProbeAnswer, gallery: Gallery, shown: images.Images, place: int
) -> pictures.Picture:
    """One image with what the layer and the later one make of it."""
    probe, classes = answer.probe, answer.study.question.classes
    assert probe.predictions is not None
    row = probe.layers.index(gallery.layer)
    truth, here = int(shown.labels[place]), int(probe.predictions[row, place])
    sureness = "" if probe.confidence is None else f" ({probe.confidence[row, place]:.0%})"
    lines = [f"{_mark(here == truth)} {classes[here]}{sureness}"]
    details = f"Image {shown.indices[place]}: {classes[truth]}, read as {classes[here]}{sureness}"
    if gallery.later != ANYTHING:
        then = int(texts_probes.later_predictions(probe, gallery.later)[place])
        lines.append(f"{_mark(then == truth)} {classes[then]}")
        details += f" at {gallery.layer} and as {classes[then]} at {gallery.later}"
    return pictures.Picture(shown.pixels[place], classes[truth], tuple(lines), details)


def _mark(is_right: bool) -> str:
    return "\N{CHECK MARK}" if is_right else "\N{MULTIPLICATION X}"


# -------------------------------------------------------------------------------------------- page


def draw_old(old: Sequence[ProbeAnswer], question: Question) -> None:
    """What older studies lack, and the way to get it."""
    entries = [answer.entry for answer in old]
    names = texts_probes.listed([texts.plain(entry.name) for entry in entries])
    _offer(
        question,
        entries,
        "Run probes again",
        text=f"The probes of {names} were computed before classes, single images, calibration and "
        "nearest neighbours were kept; run them again to see these",
    )


def _offer(
    question: Question, entries: Sequence[Any], verb: str = "Run probes", **options: Any
) -> None:
    """Progress, or a button to run."""
    names = " and ".join(entry.name for entry in entries)
    request = studies.narrowed(question.request, entries)
    offering.offer_study(
        request,
        entries,
        f"Probing {names}",
        verb,
        draw=lambda part: draw_part(part, entries),
        **options,
    )


def draw_files(found: Sequence[ProbeAnswer], dataset: str) -> None:
    """What to take away."""
    probes = [answer.probe for answer in found]
    tables = {"Curves": lambda: texts_probes.scores_csv(probes)}
    whole = [answer for answer in found if answer.is_whole]
    if len(whole) > 1:
        first, second = (_by_key(whole, key, at) for at, key in enumerate(("first", "second")))
        paired = answers.paired(first, second)
        if not isinstance(paired, str):
            pair = (first.probe, second.probe)
            tables["Differences"] = lambda: texts_probes.paired_csv(paired, pair)
    if whole:
        chosen = _by_key(whole, "of", 0)
        classes = chosen.study.question.classes
        tables["Classes"] = lambda: texts_probes.classes_csv(chosen.probe, classes)
    distinct: list[Study] = list({id(answer.study): answer.study for answer in found}.values())
    widgets.exports(distinct, tables, dataset=dataset, name="probes")


def _by_key(found: Sequence[ProbeAnswer], key: str, default: int) -> ProbeAnswer:
    """The checkpoint that a box chose."""
    chosen = st.session_state.get(key)
    matches = [answer for answer in found if answer.entry.sha256 == chosen]
    return matches[0] if matches else found[default]


def page() -> None:
    """Pick, get, draw."""
    st.title("Probes", anchor=False)
    question = several.ask("probe", "Pick one checkpoint or more to see its probes.")
    if question is None:
        return
    dataset = question.request.dataset
    found = answers.probe_answers(question.request, question.chosen)
    here = {answer.entry.sha256 for answer in found}
    old = [answer for answer in found if not answer.is_whole]
    missing = [entry for entry in question.chosen if entry.sha256 not in here]
    if missing:
        _offer(question, [*missing, *(answer.entry for answer in old)])
    if not found:
        return
    draw_curves(found)
    if old and not missing:
        draw_old(old, question)
    whole = [answer for answer in found if answer.is_whole]
    if len(whole) > 1:
        draw_paired(whole)
    if whole:
        draw_classes(whole, dataset)
    with st.expander("Numbers"):
        st.dataframe(texts_probes.score_rows([answer.probe for answer in found]), hide_index=True)
    draw_files(found, dataset)


page()
