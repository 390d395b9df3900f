"""Layers along training: epoch x layer maps of one run or two, and what the runs recorded."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import streamlit as st

from analysis import figures, figures_dynamics
from analysis.dynamics import (
    RECORDS,
    REFERENCES,
    DynamicsMap,
    cka_development,
    dynamics_maps,
    recorded_map,
    trajectories,
)
from analysis.study import Study
from app import links, offering, texts, texts_dynamics, widgets
from app.sources import datasets, dynamics
from app.sources.dynamics import Question, Run

ALONE = ""  # in the place of the second run
MISSING_RUN = "This link refers to a run not on this machine."
CHANGED_RUN = "A run of this link went on, or was trained again, since the link was made."
OTHER_END = "other"
MEASURES: dict[str, str] = {
    **{f"cka-{name}": title for name, title in REFERENCES.items()},
    f"cka-{OTHER_END}": "CKA with the other run's end",
    "probe": "Accuracy of a linear probe",
    **{name: title[0].upper() + title[1:] for name, title in RECORDS.items()},
}
BY_BLOCK = " of each block"  # left out where half a page must hold the title
SETTINGS = (("dynamics_samples", 1000), ("dynamics_seed", 0), ("dynamics_train", 2000))


# ----------------------------------------------------------------------------------------- choices


def pick_runs(found: Sequence[Run]) -> list[Run]:
    """One run, and another to compare or none."""
    by_key = {run.key: run for run in found}
    first = next(iter(by_key))
    for name, default in (("run_a", first), ("run_b", other_default(found))):
        if st.session_state.get(name, first) not in {*by_key, ALONE}:
            st.session_state[name] = same_name(st.session_state[name], found) or default
        links.restore(name, default, lambda text: parse_run(text, found))
    for place, name in zip(widgets.row_of(2), ("run_a", "run_b"), strict=True):
        with place:
            st.selectbox(
                "Run" if name == "run_a" else "Beside it",
                [*by_key, *([ALONE] if name == "run_b" else [])],
                key=name,
                format_func=lambda key: label(by_key[key]) if key else "None",
                on_change=forget_link,
                persist_state="session",
            )
    chosen = [st.session_state[name] for name in ("run_a", "run_b")]
    links.remember(run_a=chosen[0], run_b=chosen[1] or "none")
    if st.session_state.get("run_problem"):
        st.warning(st.session_state["run_problem"])
    return [by_key[key] for key in dict.fromkeys(chosen) if key]


def other_default(found: Sequence[Run]) -> str:
    """A run of another rule with snapshots, to stand beside the first; none where there is none."""
    first = found[0]
    others = [run for run in found if run.rule != first.rule and len(run.sha256s) > 1]
    return others[0].key if others and len(first.sha256s) > 1 else ALONE


def label(run: Run) -> str:
    """A run in a list to pick from."""
    name = figures.checkpoint_label(run.rule, run.name)
    return name if len(run.sha256s) > 1 else f"{name} (no snapshots)"


def same_name(key: str, found: Sequence[Run]) -> str | None:
    """The run that a key of another moment means."""
    name = key.rpartition("~")[0]
    return next((run.key for run in found if run.name == name), None)


def parse_run(text: str, found: Sequence[Run]) -> str | None:
    """A run named in an address; one that changed is taken as it is now, and said to."""
    if text == "none":
        return ALONE
    if text in {run.key for run in found}:
        return text
    changed = same_name(text, found)
    if text:
        st.session_state["run_problem"] = CHANGED_RUN if changed else MISSING_RUN
    return changed


def forget_link() -> None:
    """Something was picked; the link no longer matters."""
    st.session_state["run_problem"] = ""


def pick_data(chosen: Sequence[Run]) -> str:
    """Test images: those of the runs' own data first."""
    own = [str(run.config["dataset"]) for run in chosen if run.config.get("dataset")]
    known = dynamics.settings_of(chosen[0].sha256s)
    options = list(dict.fromkeys([*own, *datasets.datasets_on_disk()]))
    if known and known[0] not in options:
        options.insert(0, known[0])
    titles = {
        **{name: str(run.config.get("dataset_title") or name) for run in chosen for name in own},
        **datasets.datasets_on_disk(),
    }
    links.restore(
        "dynamics_data",
        options[0],
        lambda text: next((name for name in options if datasets.written(name) == text), None),
    )
    if st.session_state["dynamics_data"] not in options:
        st.session_state["dynamics_data"] = options[0]
    return str(
        st.selectbox(
            "Images",
            options,
            key="dynamics_data",
            format_func=lambda name: titles.get(name, name),
            persist_state="session",
        )
    )


def pick_settings(chosen: Sequence[Run]) -> tuple[int, int, int]:
    """Test images, seed and training images of the probes, folded away."""
    known = dynamics.settings_of(chosen[0].sha256s)
    defaults = dict(SETTINGS)
    if known:
        defaults |= {"dynamics_samples": known[1], "dynamics_seed": known[2]}
    for name, _ in SETTINGS:
        links.restore(name, defaults[name], links.whole_number)
    samples, seed, train = (int(st.session_state[name] or 0) for name, _ in SETTINGS)
    summary = f"{samples:,} test images, seed {seed}, probes of {train:,} training images"
    with st.expander(summary, key="settings-dynamics", type="compact"):
        return (
            number("Test images", "dynamics_samples", 8, 100_000),
            number("Seed", "dynamics_seed", 0, 999_999_999),
            number("Training images of probes (0 leaves them out)", "dynamics_train", 0, 100_000),
        )


def number(title: str, name: str, lowest: int, highest: int) -> int:
    """A whole number within bounds, kept across pages."""
    st.session_state[name] = min(max(int(st.session_state[name] or lowest), lowest), highest)
    value = st.number_input(
        title, lowest, highest, step=1, key=name, persist_state="session", required=True
    )
    return int(value or lowest)


def pick_measure(num_runs: int) -> str:
    """What the maps show."""
    options = [name for name in MEASURES if num_runs > 1 or name != f"cka-{OTHER_END}"]
    links.restore("shown", options[0], lambda text: text if text in options else None)
    if st.session_state["shown"] not in options:
        st.session_state["shown"] = options[0]
    shown = st.selectbox(
        "Map", options, key="shown", format_func=MEASURES.__getitem__, persist_state="session"
    )
    links.remember(shown=shown)
    return str(shown)


# -------------------------------------------------------------------------------------------- maps


def map_of(run: Run, others: Sequence[Run], study: Study | None, shown: str) -> DynamicsMap | None:
    """One run's map of a measure; None where it is not known."""
    if shown in RECORDS:
        return recorded_map(run.lines, shown, run.name)
    trajectory = None if study is None else dynamics.trajectory_of(study, run)
    if study is None or trajectory is None:
        return None
    if shown == "probe":
        if not study.probes:
            return None
        parts = dynamics_maps_of(study, trajectory.names)
        return next((part for part in parts if part.measure == "probe"), None)
    if study.cka is None:
        return None
    reference = shown.removeprefix("cka-")
    if reference != OTHER_END:
        return cka_development(study, trajectory, reference)
    targets = [dynamics.trajectory_of(study, other) for other in others if other is not run]
    return cka_development(study, trajectory, targets[0]) if targets and targets[0] else None


def dynamics_maps_of(study: Study, names: Sequence[str]) -> list[DynamicsMap]:
    """The maps of a study that are about these snapshots."""
    if not any(set(names) <= set(part.names) for part in trajectories(study)):
        return []
    return [part for part in dynamics_maps(study) if tuple(part.trajectory.names) == tuple(names)]


def pick_cell(parts: Mapping[str, DynamicsMap]) -> tuple[int, str]:
    """The epoch and the layer of the curves; a click in a map sets both."""
    epochs = sorted({epoch for part in parts.values() for epoch in part.trajectory.epochs})
    layers = list(dict.fromkeys(name for part in parts.values() for name in part.layers))
    links.restore("epoch", epochs[len(epochs) // 2], links.whole_number)
    if st.session_state["epoch"] not in epochs:
        st.session_state["epoch"] = min(epochs, key=lambda e: abs(e - st.session_state["epoch"]))
    links.restore("trained_layer", layers[len(layers) // 2], str)
    if st.session_state["trained_layer"] not in layers:
        st.session_state["trained_layer"] = layers[len(layers) // 2]
    left, right = widgets.row_of(2)
    with left:
        if len(epochs) > 1:
            epoch = st.select_slider("Epoch", epochs, key="epoch", persist_state="session")
        else:
            epoch = epochs[0]
            st.caption(f"Epoch {epoch}")
    with right:
        layer = st.selectbox("Layer", layers, key="trained_layer", persist_state="session")
    links.remember(epoch=epoch, trained_layer=layer)
    return int(epoch), str(layer)


def clicked(key: str, part: DynamicsMap) -> None:
    """Copy a clicked cell to the slider and the box."""
    points = st.session_state[key]["selection"]["points"]
    if points:
        st.session_state["epoch"] = part.trajectory.epochs[int(points[0]["y"])]
        st.session_state["trained_layer"] = part.layers[int(points[0]["x"])]


def draw_maps(
    chosen: Sequence[Run], parts: Mapping[str, DynamicsMap], epoch: int, layer: str
) -> None:
    """The maps side by side on one scale."""
    scale = figures_dynamics.common_scale(list(parts.values()))
    rows = max(len(part.trajectory.epochs) for part in parts.values())
    places = widgets.side_by_side() if len(chosen) == 2 else [st.container()]
    for place, run, side in zip(places, chosen, "ab", strict=False):
        part = parts.get(run.name)
        with place:
            if part is None:
                st.caption(f"{texts.plain(run.name)} has nothing of this kind.")
                continue
            name = figures.checkpoint_label(run.rule, run.name)
            key = f"development-{side}"
            title = f"{part.title[0].upper()}{part.title[1:]}: {name}"
            st.plotly_chart(
                figures_dynamics.development_map(
                    part, title=title, label=name, scale=scale, selected=(epoch, layer), rows=rows
                ),
                key=key,
                on_select=select(key, part),
                selection_mode="points",
                config=widgets.chart_config(key),
                alt=f"{title}, by epoch and layer",
            )
    st.caption("Click a cell, or pick an epoch and a layer.")


def select(key: str, part: DynamicsMap) -> Callable[[], None]:
    """What a click in one map does."""
    return lambda: clicked(key, part)


def draw_curves(
    chosen: Sequence[Run], parts: Mapping[str, DynamicsMap], epoch: int, layer: str
) -> None:
    """By depth after the chosen epoch, and by epoch at the chosen layer."""
    rules = {run.name: run.rule for run in chosen}
    scale = figures_dynamics.common_scale(list(parts.values()))
    title = figures_dynamics.short_title(next(iter(parts.values())))
    title = title[0].upper() + title[1:]
    left, right = widgets.side_by_side()
    with left:
        widgets.chart(
            figures_dynamics.depth_curves(
                parts,
                rules,
                title=f"{title} by depth, epoch {epoch}",
                epoch=epoch,
                scale=scale,
                layer=layer,
            ),
            "depth-curves",
            f"{title} by depth after epoch {epoch}",
        )
    with right:
        widgets.chart(
            figures_dynamics.epoch_curves(
                parts,
                rules,
                title=f"{title} of {layer} by epoch",
                layer=layer,
                scale=scale,
                epoch=epoch,
            ),
            "epoch-curves",
            f"{title} of {layer} by epoch",
        )


def draw_records(chosen: Sequence[Run]) -> None:
    """Loss and accuracy of every block after every epoch, as the runs wrote them down."""
    if not any(run.lines for run in chosen):
        return
    st.subheader("Recorded while training", anchor=False)
    for record in ("accuracies", "losses"):
        found = {run.name: recorded_map(run.lines, record, run.name) for run in chosen}
        parts = {name: part for name, part in found.items() if part is not None}
        if not parts:
            continue
        scale = figures_dynamics.common_scale(list(parts.values()))
        places = widgets.side_by_side() if len(chosen) == 2 else [st.container()]
        for place, run in zip(places, chosen, strict=False):
            if run.name not in parts:
                continue
            test = [
                (line["epoch"], line["test_accuracy"])
                for line in run.lines
                if record == "accuracies" and isinstance(line.get("test_accuracy"), float)
            ]
            name = figures.checkpoint_label(run.rule, run.name)
            with place:
                widgets.chart(
                    figures_dynamics.recorded_curves(
                        parts[run.name],
                        title=f"{MEASURES[record].removesuffix(BY_BLOCK)}: {name}",
                        scale=scale,
                        test_accuracy=test,
                    ),
                    f"{record}-{run.key}",
                    f"{MEASURES[record]} of {name} by epoch",
                )
    st.caption(
        "A curve a block, from dark (first) to bright (last). A network that is trained end to end "
        "is one block. Training values are running means over the epoch, with augmentation."
    )


# --------------------------------------------------------------------------------------------- page


def answers(chosen: Sequence[Run], question: Question) -> dict[str, Study]:
    """The study of each run by its name, from one question about all or from several."""
    together = dynamics.find(question)
    found = {}
    for run in chosen:
        if len(run.sha256s) < 2:
            continue
        alone = Question(
            run.sha256s, question.dataset, question.samples, question.seed, question.train_samples
        )
        study = together or dynamics.find(alone)
        if study is not None:
            found[run.name] = study
    return found


def offer(chosen: Sequence[Run], question: Question, shown: str) -> None:
    """Offer to measure the snapshots of these runs; `shown` is the measure of what is there."""
    able = [run for run in chosen if len(run.snapshots) > 1]
    if len(able) < len([run for run in chosen if len(run.sha256s) > 1]):
        st.info(
            "The snapshots of a run that is known from a study alone are not on this machine; pick "
            "the data, number of images and seed of that study."
        )
        return
    if datasets.is_missing_folder(question.dataset):
        folder = texts.plain(question.dataset.removeprefix(datasets.FOLDER_PREFIX))
        widgets.empty_state(
            "The images are not here",
            f"There is no folder {folder} with train/CLASS/\\* and test/CLASS/\\* on this machine; "
            "pick other images.",
        )
        return
    count = sum(len(run.snapshots) for run in able)
    seconds = dynamics.seconds_of(question, count)
    time = f"about {texts.duration(seconds)}" if seconds else ""
    names = " and ".join(run.name for run in able)
    text = f"Not measured yet for these choices: {count} snapshots, {question.samples:,} images"
    text += f", {time}" if time else ""
    part = dynamics.find_stopped(question)
    if part is not None:
        text = f"**Partial**: {texts.plain(str(part.provenance.stopped))}"
        text += f"; all of it takes {time}" if time else ""
    offering.offer(
        question.key,
        text,
        f"Measure {names}",
        lambda: dynamics.start(question, able),
        draw=lambda part: draw_part(part, able, shown),
        part=part,
    )


def draw_part(study: Study, chosen: Sequence[Run], shown: str) -> None:
    """Maps that are not whole: while they are computed, or what a stopped job kept."""
    made = {run.name: map_of(run, chosen, study, shown) for run in chosen}
    parts = {
        name: part
        for name, part in made.items()
        if part is not None and np.isfinite(part.values).any()
    }
    if not parts:
        return
    scale = figures_dynamics.common_scale(list(parts.values()))
    rows = max(len(part.trajectory.epochs) for part in parts.values())
    places = widgets.side_by_side() if len(parts) == 2 else [st.container()]
    for place, (name, part) in zip(places, parts.items(), strict=False):
        title = f"{part.title[0].upper()}{part.title[1:]}: {name}"
        with place:
            widgets.chart(
                figures_dynamics.development_map(
                    part, title=title, label=name, scale=scale, rows=rows
                ),
                f"part-{name}",
                f"{title}, so far",
            )
    st.caption(f"**Partial**, {texts.plain(str(study.provenance.stopped))}.")


def draw_files(
    chosen: Sequence[Run],
    question: Question,
    parts: Mapping[str, DynamicsMap],
    found: Mapping[str, Study],
) -> None:
    """What to take away, and how to redo it."""
    with_files = [run for run in chosen if len(run.snapshots) > 1]
    with st.container(horizontal=True, vertical_alignment="center", key="exports"):
        widgets.take_away(
            {"Maps": lambda: texts_dynamics.maps_csv(parts)} if parts else {},
            shown=list({id(study): study for study in found.values()}.values()),
            name="dynamics",
        )
        if with_files:
            with st.popover("How to redo this"):
                st.markdown("From a terminal, in the folder where the app was started:")
                st.code(dynamics.command(question, with_files), language="bash", wrap_lines=True)


def draw(chosen: Sequence[Run], question: Question) -> None:
    """All that is known of one run or two."""
    found = answers(chosen, question)
    able = [run for run in chosen if len(run.sha256s) > 1]
    shown = pick_measure(len(able))
    made = {run.name: map_of(run, able, found.get(run.name), shown) for run in chosen}
    parts = {name: part for name, part in made.items() if part is not None}
    needs_study = shown not in RECORDS and any(run.name not in parts for run in able)
    if needs_study and able:
        offer(chosen, question, shown)
    for run in chosen:
        if run not in able:
            st.info(f"{texts.plain(run.name)} {texts_dynamics.NO_SNAPSHOTS}")
    if parts:
        maps, boxes = st.container(), st.container()
        with boxes:
            epoch, layer = pick_cell(parts)
        with maps:
            draw_maps(chosen, parts, epoch, layer)
            if shown == "cka-end":
                for name, part in parts.items():
                    st.markdown(texts_dynamics.slowest(part, name))
        draw_curves(chosen, parts, epoch, layer)
        draw_caption(shown, found, able)
    elif shown in RECORDS:
        st.info("No run shown here has recorded this.")
    draw_records(chosen)
    draw_files(chosen, question, parts, found)


def draw_caption(shown: str, found: Mapping[str, Study], able: Sequence[Run]) -> None:
    """What the numbers are and what their bands cover."""
    if shown in RECORDS:
        st.caption("As the runs wrote it down; without intervals.")
        return
    study = next(iter(found.values()))
    if shown == "probe":
        st.caption(
            f"Logistic regression on average-pooled features, fitted on "
            f"{study.question.train_samples or 0:,} training images. {texts.IMAGES_NOTE}"
        )
        return
    caption = texts.plain(figures.cka_caption(study).split(" Without a second")[0])
    st.caption(f"{caption} {texts_dynamics.ends(able)}")


def page() -> None:
    """Pick, get, draw."""
    st.title("Dynamics", anchor=False)
    with st.spinner("Looking for runs"):
        found = dynamics.runs()
    if not found:
        widgets.empty_state(
            "No runs yet",
            "Runs in the folder `runs/` appear here. Two minutes on digits: `python -m auglocal "
            "train --dataset digits --rule auglocal --epochs 8 --snapshot-epochs 0,1,2,4,8 --out "
            "runs/digits-auglocal`.",
        )
        return
    chosen = pick_runs(found)
    for run in chosen:
        st.markdown(texts_dynamics.run_line(run))
    left, right = widgets.row_of(2)
    with left:
        dataset = pick_data(chosen)
    with right:
        samples, seed, train = pick_settings(chosen)
    links.remember(
        dynamics_data=datasets.written(dataset),
        dynamics_samples=samples,
        dynamics_seed=seed,
        dynamics_train=train,
    )
    sha256s = tuple(
        dict.fromkeys(sha256 for run in chosen if len(run.sha256s) > 1 for sha256 in run.sha256s)
    )
    draw(chosen, Question(sha256s, dataset, samples, seed, train))


page()
