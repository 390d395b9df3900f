"""CKA in, plotly figures out: maps, differences of maps, curves by depth, a plane of layers.

One function a result, no mathematics and no torch. Probes, other similarities and geometry have
files of their own (figures_probes.py, figures_similarity.py, figures_geometry.py); what all share
is in figure_style.py and figure_maps.py.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import plotly.graph_objects as go

from analysis.cka_result import CKAPair
from analysis.figure_maps import Axis, Colours, draw_map, outline
from analysis.figure_style import CONFIG as CONFIG  # these four are part of this interface
from analysis.figure_style import (
    LOW_HEIGHT,
    NO_REASON,
    FloatArray,
    Style,
    add_curve,
    add_level,
    add_ring,
    checkpoint_styles,
    depth_axis,
    lay_out,
    mark_stages,
    positions,
    text,
    with_interval,
)
from analysis.figure_style import checkpoint_label as checkpoint_label
from analysis.figure_style import rule_title as rule_title
from analysis.figures_probes import probe_curves as probe_curves
from analysis.plane import LayerPlane
from analysis.study import Study

# A pair belongs to no rule, so its colour is none of theirs; references stay grey.
PAIR_STYLE = Style("#8E63B8", "solid", "circle")
REFERENCE_STYLES: dict[str, Style] = {
    "ceiling": Style("#5F7382", "dash", "triangle-up"),
    "floor": Style("#8C9BA5", "dot", "triangle-down"),
}
ESTIMATORS: dict[str, str] = {
    "unbiased": "unbiased minibatch estimate",
    "debiased": "debiased estimate over the whole set",
    "biased": "biased estimate over the whole set, higher the fewer images there are",
}
KERNELS: dict[str, str] = {"linear": "Linear CKA", "rbf": "RBF CKA"}


# -------------------------------------------------------------------------------------------- maps


def cka_map(
    pair: CKAPair,
    *,
    title: str,
    row_label: str,
    column_label: str,
    selected: tuple[int, int] | None = None,
    stretch: bool = False,
) -> go.Figure:
    """The similarity of every layer of one network to every layer of another, as square cells.

    The first layers meet in the lower left corner. Colours run from 0 to 1 whatever the values, so
    that two maps compare; unbiased estimates can lie slightly outside, and hovering shows them.

    Args:
        pair: Similarities (L_a, L_b), rows are layers of the first network.
        title: What is shown, with the number of images.
        row_label: The first network: rule and checkpoint.
        column_label: The second network: rule and checkpoint.
        selected: Row and column of the outlined cell.
        stretch: Run the colours over the range of this map only; the colour bar then says so.

    Returns:
        A figure whose second trace holds one transparent point a cell: `x` is the column, `y` the
        row. A heatmap reports no selection to Streamlit, points do.
    """

    def hover(row: int, column: int) -> str:
        layers = _layers_text(pair, row, column, row_label, column_label)
        return layers + _value_text(pair, row, column)

    figure = draw_map(
        pair.values,
        hover,
        title=title,
        rows=Axis(row_label, pair.rows),
        columns=Axis(column_label, pair.columns),
        colours=_cka_colours(np.asarray(pair.values, dtype=np.float64), stretch),
    )
    if selected is not None:
        outline(figure, *selected)
    return figure


def _cka_colours(values: FloatArray, stretch: bool) -> Colours:
    """From 0 to 1, or labelled as stretched over the defined values."""
    finite = values[np.isfinite(values)]
    if not stretch or finite.size == 0:
        return Colours("CKA")
    low, high = float(finite.min()), float(finite.max())
    ticks = (low, (low + high) / 2, high)
    return Colours("CKA, stretched", low, high, ticks=ticks, tick_form=".2f")


def cka_difference_map(
    minuend: CKAPair,
    subtrahend: CKAPair,
    *,
    title: str,
    row_label: str,
    column_label: str,
    names: tuple[str, str],
    limit: float | None = None,
) -> go.Figure:
    """How much more alike layers are in one map than in another, cell by cell.

    White is no difference, blue is more alike in the first map and red in the second. For instance
    A with A minus B with B, or A with B minus A with its second seed. There is no interval: both
    maps rest on the same images, so that theirs do not add up.

    Args:
        minuend: Similarities (L_a, L_b).
        subtrahend: Similarities of the same shape, subtracted.
        title: What is shown, with the number of images.
        row_label: What the rows are layers of.
        column_label: What the columns are layers of.
        names: What to call the two maps.
        limit: The difference at which colours end, on both sides; the same for maps that are to
            compare. By default the largest one here.

    Raises:
        ValueError: The maps differ in shape.
    """
    first, second = (np.asarray(p.values, dtype=np.float64) for p in (minuend, subtrahend))
    if first.shape != second.shape:
        raise ValueError(
            f"a difference needs two maps of the same shape, but they are {first.shape} and "
            f"{second.shape}; choose networks with equally many layers"
        )
    difference = first - second
    limit = largest_difference([difference]) if limit is None else limit

    def hover(row: int, column: int) -> str:
        heading = f"<b>{text(minuend.rows[row])}</b> and <b>{text(minuend.columns[column])}</b><br>"
        parts = [
            f"{text(name)}: {_number_text(pair, row, column)}"
            for name, pair in zip(names, (minuend, subtrahend), strict=True)
        ]
        if math.isfinite(difference[row, column]):
            parts.insert(0, f"difference {difference[row, column]:+.3f}")
        return heading + "<br>".join([*parts, f"n = {minuend.samples:,}"])

    return draw_map(
        difference,
        hover,
        title=title,
        rows=Axis(row_label, minuend.rows),
        columns=Axis(column_label, minuend.columns),
        colours=Colours(
            "difference",
            -limit,
            limit,
            scale="RdBu",
            ticks=(-limit, 0.0, limit),
            tick_texts=(f"-{limit:.2f}", "0", f"+{limit:.2f}"),
        ),
    )


def largest_difference(differences: Sequence[FloatArray]) -> float:
    """The limit of a scale that several difference maps share; 0.01 where all are equal."""
    sizes = [np.abs(part[np.isfinite(part)]) for part in differences]
    return max([0.01, *(float(part.max()) for part in sizes if part.size)])


def _layers_text(pair: CKAPair, row: int, column: int, row_label: str, column_label: str) -> str:
    """Both layers of a cell and what they are layers of."""
    return (
        f"<b>{text(pair.rows[row])}</b>, {text(row_label)}<br>"
        f"<b>{text(pair.columns[column])}</b>, {text(column_label)}<br>"
    )


def _value_text(pair: CKAPair, row: int, column: int) -> str:
    """A similarity with its interval, null level and n, or the reason why there is none."""
    number = _number_text(pair, row, column)
    if not math.isfinite(pair.values[row, column]):
        return number
    null = "" if pair.null_levels is None else _null_text(pair, row, column)
    return f"CKA {number}{null}<br>n = {pair.samples:,}"


def _number_text(pair: CKAPair, row: int, column: int) -> str:
    """A similarity with its interval, or the reason why there is none."""
    if not math.isfinite(pair.values[row, column]):
        return f"undefined: {text(pair.reason(row, column) or NO_REASON)}"
    cell = (row, column)
    return with_interval(pair.values[cell], pair.low[cell], pair.high[cell])


def _null_text(pair: CKAPair, row: int, column: int) -> str:
    """What chance alone would give, on a line of its own; nothing where that is unknown."""
    assert pair.null_levels is not None
    level = pair.null_levels[row, column]
    if not math.isfinite(level):
        return ""
    return f"<br>null level {level:.3f}: 95% of {pair.num_shuffles} shuffles stay under it"


# ------------------------------------------------------------------------------------------ curves


def same_depth_curve(
    pair: CKAPair, *, title: str, references: Mapping[str, CKAPair] | None = None
) -> go.Figure:
    """The similarity of layers at the same depth of two networks, with its 95% band.

    Args:
        pair: Similarities (L_a, L_b). Of unequal depths, each layer of the first network meets the
            layer of the second at the nearest relative depth.
        title: What is shown, with the number of images.
        references: By "ceiling" or "floor", a pair of networks that should be alike and one that
            should not; drawn beside the curve. `reference_pairs` finds those of a study.

    Returns:
        One curve over the layers of the first network, one for each reference, and the null level
        where the pair has one.
    """
    return _depth_curves(pair, references or {}, title, best=False)


def best_match_curve(
    pair: CKAPair, *, title: str, references: Mapping[str, CKAPair] | None = None
) -> go.Figure:
    """The highest similarity that each layer of one network has to any layer of another.

    A maximum over layers lies a little above what its own interval says, the more layers there are
    to choose from; hovering names the layer.

    Args:
        pair: Similarities (L_a, L_b).
        title: What is shown, with the number of images.
        references: As in `same_depth_curve`.

    Returns:
        One curve over the layers of the first network, with its 95% band, one for each reference,
        and the null level where the pair has one.
    """
    return _depth_curves(pair, references or {}, title, best=True)


def _depth_curves(
    pair: CKAPair, references: Mapping[str, CKAPair], title: str, *, best: bool
) -> go.Figure:
    """Curves of a pair and its references over the layers of their first networks."""
    layer_lists = [pair.rows, *(reference.rows for reference in references.values())]
    places = positions(layer_lists)
    figure = go.Figure()
    for (role, reference), xs in zip(references.items(), places[1:], strict=True):
        name = f"{text(role)}: {_pair_name(reference)}"
        _add_pair(figure, reference, xs, REFERENCE_STYLES.get(role, PAIR_STYLE), name, best)
    _add_pair(figure, pair, places[0], PAIR_STYLE, _pair_name(pair), best)
    has_null = _add_null_level(figure, pair, places[0], best)
    lay_out(figure, title, LOW_HEIGHT)
    _similarity_axis(figure)
    figure.update_xaxes(**depth_axis(layer_lists))
    mark_stages(figure, layer_lists)
    if not references and not has_null:
        figure.update_layout(showlegend=False, height=LOW_HEIGHT, margin_t=48)
    return figure


def _pair_name(pair: CKAPair) -> str:
    """Both networks, escaped."""
    return f"{text(pair.model_a)} and {text(pair.model_b)}"


def _matched(pair: CKAPair, best: bool) -> list[int]:
    """For each row the column it is drawn with; for a row without any value, the same depth."""
    same = pair.same_depth().tolist()
    if not best:
        return list(same)
    return [b if b >= 0 else s for b, s in zip(pair.best_match().tolist(), same, strict=True)]


def _add_pair(
    figure: go.Figure, pair: CKAPair, xs: Sequence[float], style: Style, name: str, best: bool
) -> None:
    """One curve with its band and hover texts."""
    columns = _matched(pair, best)
    rows = range(len(pair.rows))
    cells = (list(rows), columns)
    hover = [
        f"{name}<br><b>{text(pair.rows[row])}</b> and <b>{text(pair.columns[column])}</b><br>"
        + _value_text(pair, row, column)
        for row, column in zip(rows, columns, strict=True)
    ]
    bounds = (pair.values[cells], pair.low[cells], pair.high[cells])
    add_curve(figure, xs, bounds, style, name=name, hover=hover)


def _add_null_level(figure: go.Figure, pair: CKAPair, xs: Sequence[float], best: bool) -> bool:
    """Draw the null level, if there is one; tells whether there is."""
    if pair.null_levels is None:
        return False
    columns = _matched(pair, best)
    levels = pair.null_levels[list(range(len(pair.rows))), columns]
    if not np.isfinite(levels).any():
        return False
    hover = [f"null level {level:.3f}" for level in levels]
    add_level(figure, xs, levels, name="null level", hover=hover)
    return True


def profile_curves(
    pair: CKAPair,
    selected: tuple[int, int],
    *,
    title: str,
    row_label: str,
    column_label: str,
    row_rule: str,
    column_rule: str,
) -> go.Figure:
    """A row and a column of the map through one cell, as curves with 95% bands.

    Args:
        pair: Similarities (L_a, L_b).
        selected: Row and column of the cell; each curve marks it with a ring.
        title: What is shown.
        row_label: The first network: rule and checkpoint.
        column_label: The second network.
        row_rule: Rule of the first network, for the colour of the curve of its layer.
        column_rule: Rule of the second network.

    Returns:
        Two curves: the chosen layer of each network against all layers of the other.
    """
    row, column = selected
    styles = list(checkpoint_styles({"row": row_rule, "column": column_rule}).values())
    figure = go.Figure()
    row_name = f"{text(pair.rows[row])} of {text(row_label)}"
    column_name = f"{text(pair.columns[column])} of {text(column_label)}"
    places = positions([pair.columns, pair.rows])
    along_row = (pair.values[row], pair.low[row], pair.high[row])
    along_column = (pair.values[:, column], pair.low[:, column], pair.high[:, column])
    row_hover = [
        f"{row_name}<br>and <b>{text(name)}</b> of {text(column_label)}<br>"
        + _value_text(pair, row, index)
        for index, name in enumerate(pair.columns)
    ]
    column_hover = [
        f"{column_name}<br>and <b>{text(name)}</b> of {text(row_label)}<br>"
        + _value_text(pair, index, column)
        for index, name in enumerate(pair.rows)
    ]
    add_curve(figure, places[0], along_row, styles[0], name=row_name, hover=row_hover)
    add_curve(figure, places[1], along_column, styles[1], name=column_name, hover=column_hover)
    add_ring(figure, places[0][column], pair.values[row, column], styles[0])
    add_ring(figure, places[1][row], pair.values[row, column], styles[1])
    lay_out(figure, title)
    _similarity_axis(figure)
    figure.update_xaxes(**depth_axis([pair.columns, pair.rows]))
    figure.update_xaxes(title="layer compared with")
    return figure


def _similarity_axis(figure: go.Figure) -> None:
    """CKA from 0 to 1, with room for unbiased estimates slightly below 0."""
    figure.update_yaxes(title="CKA", range=[-0.04, 1.02], tickformat=".1f", fixedrange=True)


# ------------------------------------------------------------------------------------------- plane


def layer_plane(plane: LayerPlane, rules: Mapping[str, str], *, title: str) -> go.Figure:
    """All layers of any number of networks as points, near each other where they are alike.

    Args:
        plane: Places of the layers, of `plane.plane_of_layers`.
        rules: The rule by checkpoint name, for colour, dash and marker.
        title: What is shown.

    Returns:
        One line a network through its layers in order; the first layer has a ring. The axes have
        no meaning of their own, their scales are equal.
    """
    styles = checkpoint_styles({model: rules.get(model, "") for model in plane.models})
    figure = go.Figure()
    for model, style in styles.items():
        label = text(checkpoint_label(rules.get(model, ""), model))
        own = [index for index, owner in enumerate(plane.owners) if owner == model]
        if not own:
            continue
        points = plane.points[own]
        hover = [f"<b>{text(plane.layers[index])}</b>, {label}" for index in own]
        figure.add_trace(_path(points, style, label, hover))
        add_ring(figure, float(points[0, 0]), float(points[0, 1]), style)
    lay_out(figure, title)
    shared = {"zeroline": False, "fixedrange": True, "tickformat": "~g", "nticks": 6}
    figure.update_xaxes(title=f"first axis ({plane.explained[0]:.0%})", **shared)
    figure.update_yaxes(title=f"second axis ({plane.explained[1]:.0%})", scaleanchor="x", **shared)
    return figure


def _path(points: FloatArray, style: Style, name: str, hover: Sequence[str]) -> go.Scatter:
    """Points (L, 2) joined in order, the first small and the last large."""
    sizes = np.linspace(5, 12, len(points)) if len(points) > 1 else np.array([8.0])
    return go.Scatter(
        x=points[:, 0].tolist(),
        y=points[:, 1].tolist(),
        mode="lines+markers",
        name=name,
        line={"color": style.colour, "dash": style.dash, "width": 1.5},
        marker={
            "color": style.colour,
            "symbol": style.symbol,
            "size": sizes.tolist(),
            "opacity": 1,
            "line": {"width": 1, "color": style.colour},
        },
        hovertext=list(hover),
        hoverinfo="text",
    )


# ------------------------------------------------------------------------------------- for a study


def reference_pairs(study: Study, model_a: str, model_b: str) -> dict[str, CKAPair]:
    """Find what stands beside the curve of two networks: the ceiling and the floor of a study.

    A reference is paired with whichever of the two has its rule, and else with the first.

    Returns:
        Pairs by "ceiling" and "floor", as far as the study has them.
    """
    if study.cka is None:
        return {}
    rules = {entry.name: entry.rule for entry in study.question.checkpoints}
    pairs = {}
    for role in REFERENCE_STYLES:
        name = study.reference(role)
        if name is None or name in (model_a, model_b) or name not in study.cka.models:
            continue
        partner = model_b if rules[name] == rules[model_b] != rules[model_a] else model_a
        pairs[role] = study.cka.pair(partner, name)
    return pairs


def cka_caption(study: Study) -> str:
    """What stands under every CKA figure: estimator, batches, what intervals and references are.

    Returns:
        Some sentences of plain text, not escaped; "" for a study without CKA.
    """
    if study.cka is None:
        return ""
    estimate, references = _estimate_sentence(study), _reference_sentence(study)
    return " ".join([estimate, *_interval_sentences(study), references])


def cka_name(study: Study) -> str:
    """Linear CKA, or RBF CKA with its bandwidth."""
    kernel, bandwidth = study.question.kernel, study.question.bandwidth
    if study.cka is not None:
        kernel, bandwidth = study.cka.kernel, study.cka.bandwidth
    name = KERNELS.get(kernel, f"{kernel} CKA")
    return name if kernel == "linear" or bandwidth is None else f"{name} ({bandwidth:g} medians)"


def _estimate_sentence(study: Study) -> str:
    """Kernel, estimator and how the images were cut."""
    assert study.cka is not None
    estimator = ESTIMATORS.get(study.cka.estimator, study.cka.estimator)
    sizes = study.cka.batch_sizes
    batches = f"{len(sizes)} batches" if len(sizes) != 1 else "1 batch"
    cut = study.question.batch_note or f"{study.cka.samples:,} images in {batches}"
    pooling = study.question.pooling
    features = "" if pooling is None else f", features pooled to {pooling} x {pooling}"
    dropped = f", {study.cka.dropped} left out" if study.cka.dropped else ""
    return f"{cka_name(study)}, {estimator}{features}: {cut.rstrip('.')}{dropped}."


def _interval_sentences(study: Study) -> list[str]:
    """What intervals and null levels are, or why there are none."""
    cka = study.cka
    assert cka is not None
    sentences = []
    if np.isfinite(cka.low).any():
        sentences.append(
            "Intervals are 95% by jackknife and cover the choice of images, not of training runs."
        )
    if cka.interval_note:
        sentences.append(f"{cka.interval_note[0].upper()}{cka.interval_note[1:].rstrip('.')}.")
    if cka.null_levels is not None:
        sentences.append(
            f"The null level is what 95% of {cka.num_shuffles} shuffles of one network's images "
            "stay under."
        )
    return sentences


def _reference_sentence(study: Study) -> str:
    """What the ceiling and the floor are, or what their lack means."""
    meanings = {
        "ceiling": "a second seed, as alike as two runs of one rule are",
        "floor": "an untrained network, alike by architecture alone",
    }
    named = [
        f"{role}, {study.reference(role)}: {meaning}"
        for role, meaning in meanings.items()
        if study.reference(role)
    ]
    if named:
        return f"References: {'; '.join(named)}."
    return (
        "Without a second seed (ceiling) and an untrained network (floor) beside them, these "
        "values do not tell whether the networks are more or less alike than two runs of one rule."
    )
