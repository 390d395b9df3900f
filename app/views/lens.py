"""One image, layer by layer: what every probe and auxiliary network says, and what is near it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import streamlit as st

from analysis import figures, figures_lens
from analysis.figures_lens import Beliefs, ClassCurve, Thumbnail
from app import jobs, links, offering, texts, texts_lens, widgets
from app.sources import checkpoints, datasets, folders, lens
from app.sources.checkpoints import CheckpointFile
from app.sources.lens import LensRequest
from app.texts_lens import View
from auglocal.errors import WorkError

if TYPE_CHECKING:
    from analysis.lens import Lens, Neighbours

ALONE = ""  # in the place of B
NOBODY = "none"  # the same in an address
NUMBER, CLASS, HARD, UPLOAD = "By number", "By class", "Hard ones", "Your own"
WAYS = (NUMBER, CLASS, HARD, UPLOAD)
PAGE = 12  # images of a gallery that are shown at once
MOST_ROWS = 12  # classes of a strip
MOST_LAYERS = 5  # rows of neighbours, if not all are asked for
MOST_HARD = 240
REFUSED = "image_was_refused"
SELECTION = "A selection, not a sample: test images by how much the layers disagree, most first."
MISSING_IMAGE = "This link refers to an image not on this machine."
METRICS = {"cosine": "Cosine", "euclidean": "Euclidean"}


# ----------------------------------------------------------------------------------------- choices


def pick_networks(entries: Sequence[CheckpointFile]) -> list[CheckpointFile]:
    """Checkpoint A, and B or none."""
    by_sha256 = {entry.sha256: entry for entry in entries}
    places = widgets.row_of(3)
    if "b" not in st.session_state and st.query_params.get("b") == NOBODY:
        st.session_state["b"] = ALONE
    for name, entry in zip(("a", "b"), checkpoints.first_pair(entries), strict=True):
        if st.session_state.get(name) != ALONE:
            links.restore_checkpoint(name, entry, entries)
    for place, name in zip(places, ("a", "b"), strict=False):
        with place:
            st.selectbox(
                f"Checkpoint {name.upper()}",
                [*by_sha256, *([ALONE] if name == "b" else [])],
                key=name,
                format_func=lambda sha256: (
                    widgets.label(by_sha256[sha256]) if sha256 else "None, A alone"
                ),
                on_change=links.forget_missing,
                persist_state="session",
            )
    chosen = [st.session_state[name] for name in ("a", "b")]
    with places[2]:
        st.session_state["lens_data"] = widgets.pick_data(
            tuple(sha256 for sha256 in chosen if sha256), "probe"
        )
    return [by_sha256[sha256] for sha256 in dict.fromkeys(chosen) if sha256]


def pick_settings() -> tuple[int, int, int]:
    """Test images, seed and training images of the probes, folded away."""
    for name, value in (("samples", 1000), ("seed", 0), ("lens_train", 2000)):
        links.restore(name, value, links.whole_number)
    samples, seed, train = (st.session_state[name] for name in ("samples", "seed", "lens_train"))
    summary = f"Probes of {train:,} training images, {samples:,} test images, seed {seed}"
    with st.expander(summary, key="settings-lens", type="compact"):
        return (
            number("Test images to rank and to check", "samples", 8, 100_000),
            number("Seed", "seed", 0, 999_999_999),
            number("Training images for probes and neighbours", "lens_train", 20, 100_000),
        )


def number(title: str, name: str, lowest: int, highest: int) -> int:
    """A whole number within bounds, kept across pages."""
    st.session_state[name] = min(max(int(st.session_state[name] or lowest), lowest), highest)
    value = st.number_input(
        title, lowest, highest, step=1, key=name, persist_state="session", required=True
    )
    return int(value or lowest)


def parse_image(text: str) -> int | str | None:
    """An image named in an address: a number of the test split, or an uploaded one."""
    if (index := links.whole_number(text)) is not None:
        return index
    sha256 = lens.image_by_prefix(text)
    st.session_state["image_is_missing"] = bool(text) and sha256 is None
    return sha256


def choose(image: int | str) -> None:
    """Put an image under the lens."""
    st.session_state["image"] = image
    st.session_state["image_is_missing"] = False


# ------------------------------------------------------------------------------------------- image


def pick_image(
    requests: Sequence[LensRequest],
    entries: Sequence[CheckpointFile],
    lenses: Sequence[Lens],
) -> int | str:
    """The image under the lens: its number in the test split, or the checksum of an upload."""
    model = lens.open_entry(entries[0])
    size = lens.image_size(model, requests[0].dataset)
    count = lens.split_size(requests[0].dataset, size)
    hard = hardest(lenses)
    links.restore("image", hard[0], parse_image)
    if not is_here(st.session_state["image"], count):
        st.session_state["image"] = hard[0]
    links.restore("lens_way", HARD, lambda text: text if text in WAYS else None)
    left, right = st.columns([1, 3], gap="large")
    with right:
        way = st.segmented_control(
            "Image", list(WAYS), key="lens_way", required=True, persist_state="session"
        )
        if way == NUMBER:
            pick_number(count)
        elif way == UPLOAD:
            pick_upload(entries[0])
        else:
            items = of_class(lenses[0]) if way == CLASS else hard
            if way == HARD:
                st.caption(SELECTION)
            pick_from(items, lambda part: shown_of_data(requests[0], size, lenses[0], part))
    with left:
        if not st.session_state.get(REFUSED):
            draw_image(st.session_state["image"], requests, entries, lenses[0].classes)
    chosen: int | str = st.session_state["image"]
    links.remember(lens_way=way, image=chosen if isinstance(chosen, int) else links.short(chosen))
    if st.session_state.get("image_is_missing"):
        st.warning(MISSING_IMAGE)
    return chosen


def is_here(image: int | str, count: int) -> bool:
    """Whether an image can be shown."""
    return image < count if isinstance(image, int) else image in lens.kept_images()


def hardest(lenses: Sequence[Lens]) -> list[int]:
    """Test images by how much the layers of the networks shown disagree, most first."""
    mean = np.mean([part.disagreement for part in lenses], axis=0)
    order = np.argsort(-mean, kind="stable")[:MOST_HARD]
    return [int(index) for index in lenses[0].test_indices[order]]


def of_class(found: Lens) -> list[int]:
    """Test images of a class that is picked here."""
    links.restore("image_class", found.classes[0], str)
    if st.session_state["image_class"] not in found.classes:
        st.session_state["image_class"] = found.classes[0]
    name = st.selectbox(
        "Class of the image",
        found.classes,
        key="image_class",
        persist_state="session",
        label_visibility="collapsed",
        width=260,
    )
    indices = found.test_indices[found.test_labels == found.classes.index(name)]
    return [int(index) for index in np.sort(indices)]


def pick_number(count: int) -> None:
    """Any image of the test split."""
    image = st.session_state["image"]
    st.session_state["image_number"] = image if isinstance(image, int) else None
    st.number_input(
        f"Number of the image in the test split, 0 to {count - 1:,}",
        0,
        count - 1,
        step=1,
        key="image_number",
        value=None,
        placeholder="none of these",
        on_change=lambda: choose_if(st.session_state["image_number"]),
        width=320,
    )


def choose_if(image: int | str | None) -> None:
    """Put an image under the lens, if one was picked."""
    if image is not None:
        choose(image)


def pick_from(
    items: Sequence[int | str], show: Callable[[Sequence[int | str]], list[Thumbnail]]
) -> None:
    """One of a list: a click in the gallery, or its place in the list."""
    if not items:
        st.caption("There is none.")
        return
    image = st.session_state["image"]
    place = items.index(image) + 1 if image in items else None
    if st.session_state.get("image_place_of") != (place, len(items)):
        st.session_state["image_place"] = place
        st.session_state["image_place_of"] = (place, len(items))
    first = ((place or 1) - 1) // PAGE * PAGE
    part = list(items[first : first + PAGE])
    figure = figures_lens.gallery(
        show(part),
        title=f"Images {first + 1} to {first + len(part)} of {len(items):,}",
        selected=None if place is None else place - 1 - first,
    )
    key = f"gallery-{hash((tuple(part), place)) & 0xFFFFFFFF:x}"
    # Another key for other images, or a click of before would count again.
    with st.container(key="image-gallery"):
        st.plotly_chart(
            figure,
            key=key,
            on_select=lambda: clicked(key, part),
            selection_mode="points",
            config={**widgets.chart_config("images"), "displayModeBar": False},
            alt="Images to choose from",
        )
    st.number_input(
        "Place in this list",
        1,
        len(items),
        step=1,
        key="image_place",
        value=None,
        placeholder="click an image, or type its place",
        on_change=lambda: place_changed(items),
        width=320,
        help="The buttons step to the next image.",
    )


def place_changed(items: Sequence[int | str]) -> None:
    """A place was typed."""
    place = st.session_state["image_place"]
    if place is not None:
        choose(items[int(place) - 1])


def clicked(key: str, items: Sequence[int | str]) -> None:
    """Copy a clicked image to the choice."""
    points = st.session_state[key]["selection"]["points"]
    if points and points[0]["point_index"] < len(items):
        choose(items[points[0]["point_index"]])


def shown_of_data(
    request: LensRequest, size: int | None, found: Lens, indices: Sequence[int | str]
) -> list[Thumbnail]:
    """Images of the test split for a gallery."""
    numbers = [int(index) for index in indices]
    disagreement = dict(zip(found.test_indices.tolist(), found.disagreement, strict=True))
    return [
        Thumbnail(
            rgb(seen.pixels),
            found.classes[seen.label] if seen.label is not None else "",
            f"image {index:,}\ndisagreement of the layers {disagreement.get(index, 0):.2f} nats",
        )
        for index, seen in zip(
            numbers, lens.data_images(request.dataset, size, numbers), strict=True
        )
    ]


def rgb(pixels: np.ndarray) -> np.ndarray:
    """Pixels (H, W, 1 or 3) as (H, W, 3)."""
    return pixels if pixels.shape[2] == 3 else np.repeat(pixels[..., :1], 3, axis=2)


def pick_upload(entry: CheckpointFile) -> None:
    """A door for images of the user's own, and those that came through it."""
    number = st.session_state.setdefault("image_upload_number", 0)
    st.file_uploader(
        "Add an image",
        type=list(lens.TYPES),
        key=f"image-upload-{number}",
        on_change=receive,
        max_upload_size=lens.MOST_UPLOADED_BYTES // 2**20,
        help="A copy of its pixels, at most 1,024 a side, stays on this machine.",
    )
    accepted, message = st.session_state.pop("image_message", (True, ""))
    if message:
        (st.success if accepted else st.error)(texts.plain(message))
        st.session_state[REFUSED] = not accepted
    kept = lens.kept_images()
    if not kept:
        return
    model = lens.open_entry(entry)

    def show(part: Sequence[int | str]) -> list[Thumbnail]:
        seen = [lens.uploaded_image(str(sha256), model) for sha256 in part]
        return [Thumbnail(rgb(one.pixels), one.name, one.name) for one in seen]

    pick_from(kept, show)
    image = st.session_state["image"]
    if isinstance(image, str):
        st.button("Delete this image", on_click=forget, args=(image,))


def receive() -> None:
    """Check an uploaded image; keep the message, and let go of the bytes."""
    number = st.session_state["image_upload_number"]
    file = st.session_state[f"image-upload-{number}"]
    st.session_state["image_upload_number"] = number + 1
    if file is None:
        return
    try:
        choose(lens.keep_image(file.name, file.getvalue()))
    except (ValueError, WorkError, OSError) as error:
        st.session_state["image_message"] = (False, jobs.sentence(error))


def forget(sha256: str) -> None:
    """Delete an uploaded image."""
    lens.delete_image(sha256)
    st.session_state["image"] = next(iter(lens.kept_images()), 0)


def see(image: int | str, request: LensRequest, entry: CheckpointFile) -> lens.Seen:
    """An image as a network sees it."""
    model = lens.open_entry(entry)
    if isinstance(image, str):
        return lens.uploaded_image(image, model)
    size = lens.image_size(model, request.dataset)
    return lens.data_images(request.dataset, size, [image])[0]


def draw_image(
    image: int | str,
    requests: Sequence[LensRequest],
    entries: Sequence[CheckpointFile],
    classes: Sequence[str],
) -> None:
    """The image as the networks see it."""
    seen = see(image, requests[0], entries[0])
    factor = max(1, math.ceil(224 / seen.pixels.shape[0]))
    enlarged = np.repeat(np.repeat(rgb(seen.pixels), factor, axis=0), factor, axis=1)
    st.image(enlarged, width=224)
    if seen.label is not None:
        st.markdown(f"**{texts.plain(classes[seen.label])}**")
    height, width, _ = seen.pixels.shape
    st.caption(
        f"{texts.plain(seen.name)}, as the network sees it: {width} x {height} pixels, before "
        "their values are normalised."
    )


# ------------------------------------------------------------------------------------------ beliefs


def beliefs(view: View, kind: str, reader: str) -> Beliefs:
    """What readers of a kind say, as a strip draws it."""
    found = view.lens
    readers = [(one.kind, one.layer) for one in found.readers]
    wanted = [*((kind, name) for name in found.layer_names), ("classifier", "classifier")]
    indices = [readers.index(one) if one in readers else None for one in wanted]
    reasons = {
        column: "no auxiliary network reads this layer"
        if index is None
        else view.said.reasons.get(index, "")
        for column, index in enumerate(indices)
    }
    accuracy = [math.nan if index is None else found.accuracy(index) for index in indices]
    return Beliefs(
        reader=reader,
        layers=found.layer_names,
        probabilities=np.vstack([view.part(kind), view.classifier()]),
        reasons={column: reason for column, reason in reasons.items() if reason},
        accuracy=np.array(accuracy),
        classes=found.classes,
    )


def pick_cell(views: Sequence[View]) -> tuple[str, str]:
    """The layer and the class that curve and neighbours are about; a click in a strip sets both."""
    first = views[0]
    label = first.seen.label
    own = first.classifier()
    likeliest = 0 if math.isnan(own[0]) else int(own.argmax())
    default = first.lens.classes[likeliest if label is None else label]
    if st.session_state.get("class_of") != st.session_state["image"]:
        if "class" in st.session_state:
            st.session_state["class"] = default
        st.session_state["class_of"] = st.session_state["image"]
    layers = list(dict.fromkeys(name for view in views for name in view.lens.layer_names))
    for name, options, value in (
        ("class", first.lens.classes, default),
        ("layer", layers, layers[len(layers) // 2]),
    ):
        links.restore(name, value, str)
        if st.session_state[name] not in options:
            st.session_state[name] = value
    left, right = widgets.row_of(2)
    with left:
        layer = st.selectbox("Layer", layers, key="layer", persist_state="session")
    with right:
        chosen = st.selectbox("Class", first.lens.classes, key="class", persist_state="session")
    links.remember(layer=layer, **{"class": chosen})
    return layer, chosen


def strip_clicked(key: str, view: View, shown: Sequence[int]) -> None:
    """Copy a clicked cell to the two boxes."""
    points = st.session_state[key]["selection"]["points"]
    if not points:
        return
    column, row = int(points[0]["x"]), int(points[0]["y"])
    if column < len(view.lens.layers):
        st.session_state["layer"] = view.lens.layer_names[column]
    st.session_state["class"] = view.lens.classes[list(reversed(shown))[row]]


def draw_strips(views: Sequence[View], layer: str, chosen: str) -> None:
    """A strip of the probes and one of the auxiliary networks for each network."""
    classes = views[0].lens.classes
    label = views[0].seen.label
    shown = list(range(len(classes)))
    if len(classes) > MOST_ROWS and not st.session_state.get("all_classes"):
        rows = [part for view in views for part in (view.part("probe"), view.classifier()[None])]
        shown = figures_lens.shown_classes(rows, label, MOST_ROWS)
        if classes.index(chosen) not in shown:
            shown = sorted([*shown, classes.index(chosen)])
    places = widgets.side_by_side() if len(views) == 2 else [st.container()]
    for place, view, side in zip(places, views, "ab", strict=False):
        with place:
            title = figures.checkpoint_label(view.entry.rule, view.entry.name)
            draw_strip(view, "probe", "probe", f"Probes of {title}", side, shown, layer, chosen)
            if any(reader.kind == "auxiliary" for reader in view.lens.readers):
                draw_strip(
                    view,
                    "auxiliary",
                    "auxiliary network",
                    f"Auxiliary networks of {title}",
                    side,
                    shown,
                    layer,
                    chosen,
                )
            else:
                st.caption(texts_lens.no_auxiliaries(view.entry.rule))
    if len(classes) > MOST_ROWS:
        st.toggle(
            f"All {len(classes)} classes",
            key="all_classes",
            persist_state="session",
            help="Otherwise those that some layer finds likely.",
        )
    st.caption(
        "A dot marks the class that a column names"
        + (", the frame the true class" if label is not None else "")
        + ". The last column, head, is the network's own classifier. Click a cell, or pick a "
        "layer and a class below."
    )


def draw_strip(
    view: View,
    kind: str,
    reader: str,
    title: str,
    side: str,
    shown: Sequence[int],
    layer: str,
    chosen: str,
) -> None:
    """One strip, to click."""
    selected = None
    if layer in view.lens.layer_names:
        selected = (view.lens.layer_names.index(layer), view.lens.classes.index(chosen))
    key = f"strip-{kind}-{side}"
    figure = figures_lens.belief_strip(
        beliefs(view, kind, reader),
        title=title,
        shown=shown,
        true_class=view.seen.label,
        selected=selected,
    )
    st.plotly_chart(
        figure,
        key=key,
        on_select=lambda: strip_clicked(key, view, shown),
        selection_mode="points",
        config=widgets.chart_config(key),
        alt=f"{title}: probability of each class by layer",
    )


def draw_curve(views: Sequence[View], layer: str, chosen: str) -> None:
    """One class through the layers of both networks."""
    curves = []
    for view in views:
        index = view.lens.classes.index(chosen)
        curves.append(
            ClassCurve(
                model=view.entry.name,
                rule=view.entry.rule,
                layers=view.lens.layer_names,
                probes=view.part("probe")[:, index],
                auxiliaries=view.part("auxiliary")[:, index],
                classifier=float(view.classifier()[index]),
            )
        )
    widgets.chart(
        figures_lens.class_curves(curves, title=f"Probability of {chosen} by depth", layer=layer),
        "class-curve",
        f"Probability of {chosen} by depth",
    )


# --------------------------------------------------------------------------------------- neighbours


def pick_metric() -> str:
    """How near is measured."""
    links.restore("metric", "cosine", lambda text: text if text in METRICS else None)
    metric = st.segmented_control(
        "Distance",
        list(METRICS),
        key="metric",
        required=True,
        format_func=METRICS.__getitem__,
        persist_state="session",
        label_visibility="collapsed",
    )
    links.remember(metric=metric)
    return str(metric)


def draw_neighbours(views: Sequence[View], layer: str) -> list[Neighbours]:
    """The nearest training images by layer."""
    st.subheader("Nearest training images", anchor=False)
    with st.container(horizontal=True, vertical_alignment="center", gap="large"):
        metric = pick_metric()
        everything = st.toggle("All layers", key="all_layers", persist_state="session")
    found = [lens.neighbours(view.lens, view.said, metric) for view in views]
    places = widgets.side_by_side() if len(views) == 2 else [st.container()]
    for place, view, part, side in zip(places, views, found, "ab", strict=False):
        rows = neighbour_rows(view, part, layer, everything)
        title = figures.checkpoint_label(view.entry.rule, view.entry.name)
        with place:
            widgets.chart(
                figures_lens.neighbour_rows(rows, title=f"Nearest to it in {title}"),
                f"neighbours-{side}",
                f"Training images nearest to the image in layers of {title}",
            )
    unit = "1 - cosine" if metric == "cosine" else "Euclidean distance"
    bold = " Names of the image's own class are bold." if views[0].seen.label is not None else ""
    st.caption(
        f"By {unit} of average-pooled features, each channel standardised, among "
        f"{len(views[0].lens.train_labels):,} training images; nearest first, distances on "
        f"hover.{bold}"
    )
    return found


def neighbour_rows(
    view: View, part: Neighbours, layer: str, everything: bool
) -> list[tuple[str, list[Thumbnail]]]:
    """Layers and their neighbours, as a figure draws them."""
    chosen = [
        index
        for index, name in enumerate(part.layers)
        if everything or index in few_layers(part.layers, layer)
    ]
    positions = sorted({int(p) for index in chosen for p in part.positions[index] if p >= 0})
    size = lens.image_size(lens.open_entry(view.entry), view.request.dataset)
    indices = [int(view.lens.train_indices[position]) for position in positions]
    images = lens.data_images(view.request.dataset, size, indices, "train")
    pixels = {
        position: rgb(image.pixels) for position, image in zip(positions, images, strict=True)
    }
    return [
        (
            part.layers[index],
            [
                thumbnail(view, int(position), float(distance), pixels[int(position)])
                for position, distance in zip(
                    part.positions[index], part.distances[index], strict=True
                )
                if position >= 0
            ],
        )
        for index in chosen
    ]


def thumbnail(view: View, position: int, distance: float, pixels: np.ndarray) -> Thumbnail:
    """A neighbour as a figure draws it."""
    label = int(view.lens.train_labels[position])
    name = view.lens.classes[label]
    index = view.lens.train_indices[position]
    return Thumbnail(
        pixels,
        name,
        f"{name}\ntraining image {index:,}\ndistance {distance:.3f}",
        is_bold=label == view.seen.label,
    )


def few_layers(layers: Sequence[str], chosen: str) -> set[int]:
    """Ends of stages, at most `MOST_LAYERS`, and the layer that is chosen."""
    stages = [name.split("_")[0] for name in layers]
    ends = [
        index
        for index in range(len(layers))
        if index + 1 == len(layers) or stages[index + 1] != stages[index]
    ]
    if len(ends) > MOST_LAYERS:
        picked = np.linspace(0, len(ends) - 1, MOST_LAYERS).round().astype(int)
        ends = [ends[index] for index in picked]
    return {*ends, *([layers.index(chosen)] if chosen in layers else [])}


# --------------------------------------------------------------------------------------------- page


def draw_files(views: Sequence[View], found: Sequence[Neighbours], image: int | str) -> None:
    """What to take away, and how to redo it."""
    with st.container(horizontal=True, vertical_alignment="center", key="exports"):
        widgets.take_away(
            {
                "Probabilities": lambda: texts_lens.beliefs_csv(views),
                "Neighbours": lambda: texts_lens.neighbours_csv(views, found),
            },
            documents={"All": lambda: texts_lens.lens_json(views, found)},
            name="lens",
        )
        with st.popover("How to redo this"):
            paths = [str(readable(view.entry)) for view in views]
            lines = texts_lens.python_lines(views, image, paths)
            st.markdown("In Python:")
            st.code(lines, language="python", wrap_lines=True)


def readable(entry: CheckpointFile) -> object:
    """A checkpoint's path as people would type it."""
    root = folders.ROOT
    return entry.path.relative_to(root) if entry.path.is_relative_to(root) else entry.path


def offer(requests: Sequence[LensRequest], entries: Sequence[CheckpointFile]) -> None:
    """Offer to fit the lenses that are missing."""
    dataset = requests[0].dataset
    if datasets.is_missing_folder(dataset):
        widgets.empty_state(
            "The images are not here",
            f"There is no folder {texts.plain(dataset.removeprefix(datasets.FOLDER_PREFIX))} with "
            "train/CLASS/\\* and test/CLASS/\\* on this machine; pick other data.",
        )
        return
    seconds = [each for each in map(lens.seconds_of, requests) if each is not None]
    is_known = len(seconds) == len(requests)
    time = f", about {texts.duration(sum(seconds))}" if is_known else ""
    names = " and ".join(entry.name for entry in entries)
    offering.offer(
        lens.job_key(requests),
        f"The probes of **{texts.plain(names)}** are not fitted yet for these choices: once, on "
        f"{requests[0].train_samples:,} training images{time}",
        f"Fit the probes of {names}",
        lambda: lens.start(requests, entries),
        is_ready=bool(dataset),
    )


def draw(
    requests: Sequence[LensRequest],
    entries: Sequence[CheckpointFile],
    lenses: Sequence[Lens],
) -> None:
    """All that is seen through one lens or two."""
    image = pick_image(requests, entries, lenses)
    if st.session_state.pop(REFUSED, False):
        st.caption("Choose another image to go on.")
        return
    views = []
    for request, entry, found in zip(requests, entries, lenses, strict=True):
        seen = see(image, request, entry)
        views.append(View(entry, request, found, seen, lens.answer(request, entry, seen.pixels)))
    for view in views:
        st.markdown(texts_lens.verdict(view, lens.settled_at(view.part("probe"))))
    # Boxes stand below the strips, but strips draw what they hold.
    strips, boxes = st.container(), st.container()
    with boxes:
        layer, chosen = pick_cell(views)
    with strips:
        draw_strips(views, layer, chosen)
    draw_curve(views, layer, chosen)
    for view in views:
        st.caption(texts_lens.honesty(view))
    draw_files(views, draw_neighbours(views, layer), image)


def page() -> None:
    """Pick, get, draw."""
    st.title("Lens", anchor=False)
    with st.spinner("Opening checkpoints"):
        entries, problems = checkpoints.checkpoint_files()
    widgets.show_problems(problems)
    if not entries:
        widgets.no_checkpoints()
        return
    chosen = pick_networks(entries)
    links.show_missing()
    dataset = st.session_state["lens_data"]
    samples, seed, train = pick_settings()
    requests = [LensRequest(entry.sha256, dataset, samples, seed, train) for entry in chosen]
    links.remember(
        a=links.short(chosen[0].sha256),
        b=links.short(chosen[-1].sha256) if st.session_state["b"] else NOBODY,
        data=datasets.written(dataset),
        samples=samples,
        seed=seed,
        lens_train=train,
    )
    found = [lens.find(request) if dataset else None for request in requests]
    pairs = list(zip(requests, chosen, strict=True))
    missing = [pair for pair, part in zip(pairs, found, strict=True) if part is None]
    if missing:
        offer([request for request, _ in missing], [entry for _, entry in missing])
    ready = [pair for pair, part in zip(pairs, found, strict=True) if part is not None]
    if ready:
        draw(
            [request for request, _ in ready],
            [entry for _, entry in ready],
            [part for part in found if part is not None],
        )


page()
