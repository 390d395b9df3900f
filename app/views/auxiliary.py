"""Which later layers each local layer copies, what that costs beside BP, and how to train it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import streamlit as st

from analysis import figures_auxiliary as figures
from analysis.figure_style import rule_title
from app import jobs, links, texts, widgets
from app import texts_auxiliary as words
from app.sources import plans, training
from app.sources.plans import PlanAnswer, Setting
from auglocal.errors import InputError

PREFIX = "aux_"
OWN_IMAGES = "own"
ADVANCED = ("tail", "modules", "local_loss")


def parse_float(text: str) -> float | None:
    """A number from an address."""
    try:
        return float(text)
    except ValueError:
        return None


def restore(name: str, default: Any, parse: Callable[[str], Any]) -> str:
    """Give a choice its first value; returns its key."""
    links.restore(PREFIX + name, default, parse)
    return PREFIX + name


def pick_name(title: str, name: str, default: str, **options: Any) -> str:
    """One of the names that a field takes."""
    names = plans.choices()[name]
    key = restore(name, default, lambda text: text if text in names else None)
    return str(st.selectbox(title, names, key=key, persist_state="session", **options))


def pick_number(
    title: str, name: str, default: float, lowest: float, highest: float, **options: Any
) -> Any:
    """A number within bounds; whole if its default is."""
    is_whole = isinstance(default, int)
    key = restore(name, default, links.whole_number if is_whole else parse_float)
    kept = st.session_state[key]
    st.session_state[key] = default if kept is None else min(max(kept, lowest), highest)
    value = st.number_input(title, lowest, highest, key=key, persist_state="session", **options)
    return default if value is None else value


def pick_images() -> tuple[str, int, int]:
    """Data set (empty for other images), number of classes and pixels."""
    titles = {
        name: f"{images.title}: {images.num_classes} classes, {images.pixels} pixels"
        for name, images in plans.IMAGES.items()
    }
    titles[OWN_IMAGES] = "Others ..."
    key = restore("images", "cifar10", lambda text: text if text in titles else None)
    chosen = st.selectbox(
        "Images", list(titles), key=key, format_func=titles.__getitem__, persist_state="session"
    )
    if chosen in plans.IMAGES:
        images = plans.IMAGES[chosen]
        return str(chosen), images.num_classes, images.pixels
    with st.container(horizontal=True):
        num_classes = pick_number("Classes", "classes", 10, 2, 100_000)
        return "", num_classes, pick_number("Pixels a side", "pixels", 64, 8, 1024)


def pick() -> tuple[Setting, str]:
    """Backbone, rule and images; the data set's name, empty for other images."""
    first, second, third = widgets.row_of(3)
    with first:
        architecture = pick_name("Backbone", "architecture", "resnet32")
    with second:
        rule = pick_name("Rule", "rule", "auglocal", format_func=rule_title)
    with third:
        dataset, num_classes, pixels = pick_images()
    is_auglocal = rule == "auglocal"
    first, second, third = widgets.row_of(3)
    with first:
        depth = pick_number(
            "Auxiliary depth d", "depth", 2, 1, 64, disabled=not is_auglocal, help=DEPTH_HELP
        )
    with second:
        key = restore("pyramid", 0.5, parse_float)
        st.session_state[key] = min(max(st.session_state[key], 0.0), 1.0)
        pyramid = st.slider(
            "Pyramid c",
            0.0,
            1.0,
            step=0.05,
            key=key,
            disabled=not is_auglocal,
            persist_state="session",
            help=PYRAMID_HELP,
        )
    with third, st.container(horizontal=True):
        width = pick_number("Width", "width", 1.0, 0.125, 16.0, step=0.25, help=WIDTH_HELP)
        batch_size = pick_number("Batch size", "batch", 128, 2, 65536, help=BATCH_HELP)
    advanced = pick_advanced(rule)
    setting = Setting(
        architecture=architecture,
        width=width,
        rule=rule,
        auxiliary_depth=depth if is_auglocal else 2,
        pyramid=pyramid if is_auglocal else 0.5,
        num_classes=num_classes,
        pixels=pixels,
        batch_size=batch_size,
        **advanced,
    )
    return setting, dataset


DEPTH_HELP = "Layers that the first local layer's auxiliary network copies."
PYRAMID_HELP = "0 keeps this depth everywhere; 1 falls to a single layer at the last local layer."
WIDTH_HELP = "Multiplies the backbone's channels."
SELECTION_HELP = (
    "Uniform: evenly spaced up to the last layer, as in the paper; next: those that follow; "
    "random: drawn by the seed."
)
BATCH_HELP = "Operations and memory are those of a training step with so many images."


def pick_advanced(rule: str) -> dict[str, Any]:
    """Tail, number of blocks, local loss and selection, folded away."""
    chosen: dict[str, Any] = {"tail": None, "modules": None, "local_loss": "cross-entropy"}
    chosen |= {"selection": "uniform", "selection_seed": 0}
    if rule == "bp":
        return chosen
    with st.expander("Blocks, local loss and selection", type="compact"):
        columns = widgets.row_of(4)
        with columns[0]:
            key = restore("modules", None, links.whole_number)
            chosen["modules"] = st.number_input(
                "Blocks in all",
                min_value=1,
                max_value=1000,
                key=key,
                placeholder="a block a layer",
                persist_state="session",
            )
        if rule == "auglocal":
            with columns[1]:
                key = restore("tail", None, links.whole_number)
                chosen["tail"] = st.number_input(
                    "Layers that train with the classifier",
                    min_value=1,
                    max_value=1000,
                    key=key,
                    placeholder="depth + 1; ImageNet forms: 1",
                    persist_state="session",
                )
            with columns[2]:
                chosen["local_loss"] = pick_name(
                    "What auxiliary networks learn from", "local_loss", "cross-entropy"
                )
            with columns[3]:
                chosen["selection"] = pick_name(
                    "Which later layers are copied", "selection", "uniform", help=SELECTION_HELP
                )
                if chosen["selection"] == "random":
                    chosen["selection_seed"] = pick_number(
                        "Seed of the selection", "selection_seed", 0, 0, 10**6
                    )
    return chosen


def remember(setting: Setting, dataset: str) -> None:
    """Write the choices into the address."""
    default = Setting()
    values: dict[str, Any] = {
        "architecture": setting.architecture,
        "rule": setting.rule,
        "images": dataset or OWN_IMAGES,
        "depth": setting.auxiliary_depth if setting.rule == "auglocal" else "",
        "pyramid": setting.pyramid if setting.rule == "auglocal" else "",
        "width": setting.width if setting.width != default.width else "",
        "batch": setting.batch_size if setting.batch_size != default.batch_size else "",
        "classes": "" if dataset else setting.num_classes,
        "pixels": "" if dataset else setting.pixels,
        "modules": setting.modules or "",
        "tail": setting.tail or "",
        "selection": "" if setting.selection == default.selection else setting.selection,
        "selection_seed": setting.selection_seed or "",
        "local_loss": "" if setting.local_loss == default.local_loss else setting.local_loss,
    }
    links.remember(**{PREFIX + name: value for name, value in values.items()})


def draw_totals(answer: PlanAnswer, setting: Setting) -> None:
    """Parameters, operations and memory of a step, with their ratio to BP."""
    counts, costs, bp = answer.plan["parameters"], answer.costs, answer.bp
    local = len(answer.plan["blocks"]) - 1
    with st.container(horizontal=True, gap="medium"):
        st.metric(
            "Blocks that learn by themselves",
            f"{local + 1}",
            f"of {len(answer.plan['layers'])} layers",
            delta_color="off",
            delta_arrow="off",
            width="content",
        )
        for title, value, times, note in (
            (
                "Parameters in training",
                f"{counts['total']:,}",
                words.ratio(counts["total"], counts["backbone"]),
                f"{counts['backbone']:,} of the backbone and {counts['auxiliary']:,} of auxiliary "
                "networks, which training throws away.",
            ),
            (
                "FLOP a step",
                words.operations(costs.flops),
                words.ratio(costs.flops, bp.flops),
                f"Forward and backward, batch {setting.batch_size:,}; a multiplication and an "
                "addition are two.",
            ),
            (
                "Held for backward, at most",
                words.memory(costs.saved),
                words.ratio(costs.saved, bp.saved),
                f"What autograd saves in float32, batch {setting.batch_size:,}; weights, "
                "gradients and the optimizer's state come on top.",
            ),
        ):
            st.metric(
                title,
                value,
                times,
                delta_color="off",
                delta_arrow="off",
                help=note,
                width="content",
            )


def pick_layer(plan: dict[str, Any]) -> int | None:
    """The local layer whose auxiliary network is drawn; None where there is none."""
    locals_ = [row["layer"] for row in plan["auxiliaries"]]
    if not locals_:
        return None
    names: dict[str, int] = {plan["layers"][index]["name"]: index for index in locals_}
    key = restore("layer", next(iter(names)), str)
    if st.session_state[key] not in names:
        st.session_state[key] = next(iter(names))
    chosen = st.selectbox("Local layer", list(names), key=key, persist_state="session", width=320)
    links.remember(aux_layer=chosen)
    return names[chosen]


def clicked(plan: dict[str, Any]) -> None:
    """Copy a clicked row of the map to the box."""
    points = st.session_state["copies-chart"]["selection"]["points"]
    if points:
        index = int(points[0]["y"])
        if any(row["layer"] == index for row in plan["auxiliaries"]):
            st.session_state["aux_layer"] = plan["layers"][index]["name"]


@links.fragment
def draw_networks(answer: PlanAnswer, setting: Setting) -> None:
    """The chosen layer's network over the backbone, the map of all copies, and the costs."""
    plan = answer.plan
    chosen = pick_layer(plan)
    if chosen is None:
        title = "One block: the gradient runs through all layers"
        st.plotly_chart(
            figures.auxiliary_diagram(plan, None, title=title),
            key="diagram-chart",
            config=widgets.chart_config("diagram"),
            alt="The backbone's layers in a row",
        )
        st.caption(
            "BP trains all layers by one loss at the end, so there are no auxiliary networks. Pick "
            "another rule to see some."
        )
        draw_costs(answer, setting)
        return
    name = plan["layers"][chosen]["name"]
    st.plotly_chart(
        figures.auxiliary_diagram(plan, chosen, title=f"What trains {name}"),
        key="diagram-chart",
        config=widgets.chart_config("diagram"),
        alt=f"The backbone's layers in a row, and above them the auxiliary network of {name}",
    )
    st.markdown(words.copies_sentence(plan, chosen))
    copies = (
        "Upper row: its auxiliary network, each copy above its original, with weights of its own."
        if words.auxiliary_of(plan, chosen)["selected"]
        else "Above it: its auxiliary network, which copies no layers."
    )
    st.caption(f"Lower row: the backbone. {copies} Strokes below: no gradient passes there.")
    if any(row["selected"] for row in plan["auxiliaries"]):
        left, right = widgets.side_by_side()
        with left:
            draw_map(plan, chosen)
        with right:
            draw_costs(answer, setting)
    else:
        draw_costs(answer, setting)


def draw_map(plan: dict[str, Any], chosen: int) -> None:
    """All copies of all local layers; a click picks one."""
    st.plotly_chart(
        figures.copies_map(plan, chosen, title="Which later layers each local layer copies"),
        key="copies-chart",
        on_select=lambda: clicked(plan),
        selection_mode="points",
        config=widgets.chart_config("copies"),
        alt="Map of local layers and the later layers that they copy",
    )
    st.caption(
        "Click a row, or pick a local layer above. Rows without cells train with a later layer or "
        "with the classifier."
    )


def draw_costs(answer: PlanAnswer, setting: Setting) -> None:
    """Parameters, operations and memory by layer."""
    names = [layer["name"] for layer in answer.plan["layers"]]
    widgets.chart(
        figures.cost_bars(
            names,
            words.cost_rows(answer),
            title=f"Costs by layer, batch {setting.batch_size:,}, float32",
        ),
        "costs-chart",
        "Parameters, operations and memory by layer",
    )
    st.caption(
        "Held: what the layer and those before it in its block keep until their backward pass; "
        "local learning lets go after every block, BP (dotted) only at the end."
    )


def draw_files(answer: PlanAnswer, setting: Setting, dataset: str) -> None:
    """The command, the plan as a file, and the way to training it."""
    values = setting.config_values()
    if dataset:
        values["dataset"] = dataset
    st.subheader("Train it", anchor=False)
    fetched = ("--download",) if dataset not in ("", "digits", "imagenet") else ()
    st.code(training.command(values, *fetched), language="bash", wrap_lines=True)
    if not dataset:
        st.caption("Add `--dataset imagefolder:PATH` for your images.")
    with st.container(horizontal=True):
        if st.button("Set up this run", type="primary"):
            chosen = {f"train_{name}": value for name, value in values.items()}
            links.go("views/train.py", **chosen)
        widgets.take_away(
            {"Plan and costs": lambda: words.csv_text(answer)},
            documents={"Plan": lambda: texts.as_json(answer.plan)},
            name="auxiliary",
        )


def page() -> None:
    """Pick, get, draw."""
    st.title("Auxiliary networks", anchor=False)
    with st.spinner("Starting PyTorch"):
        plans.choices()
    setting, dataset = pick()
    remember(setting, dataset)
    try:
        with st.spinner("Counting"):
            answer = plans.plan(setting)
    except InputError as error:
        st.warning(texts.plain(jobs.sentence(error)))
        return
    draw_totals(answer, setting)
    draw_networks(answer, setting)
    draw_files(answer, setting, dataset)


page()
