"""Figures of other similarities, of geometry and of training: ranges, directions, reasons."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import plotly.graph_objects as go
import pytest

from analysis.figures_geometry import geometry_curves
from analysis.figures_similarity import (
    epoch_layer_map,
    measure_colours,
    similarity_curve,
    similarity_pair_map,
)
from tests.analysis.full_study import LAYERS, MODELS, full_study, make_geometry, make_similarity

LABELS = {"row_label": "BP, a", "column_label": "AugLocal, b"}
EVIL = "<a href='x'>x</a>"


def named(figure):
    return {trace.name: trace for trace in figure.data if trace.name}


@pytest.mark.parametrize(
    ("measure", "ends", "scale"),
    [
        ("rsa", (-1, 1), "RdBu"),
        ("procrustes", (0, 2), "Cividis_r"),
        ("predictivity", (0, 1), "Cividis"),
    ],
)
def test_colours_span_the_measures_range_whatever_the_values(measure, ends, scale):
    result = make_similarity(measure, LAYERS)
    cells = similarity_pair_map(result, title="t", **LABELS).data[0]
    assert (cells.zmin, cells.zmax) == ends
    assert cells.colorscale == go.Heatmap(colorscale=scale).colorscale
    np.testing.assert_array_equal(np.asarray(cells.z, dtype=float), result.values)


def test_a_distance_and_a_similarity_have_the_light_end_where_layers_are_alike():
    similar = measure_colours(make_similarity("predictivity", LAYERS))
    distant = measure_colours(make_similarity("procrustes", LAYERS))
    ends = [go.Heatmap(colorscale=colours.scale).colorscale for colours in (similar, distant)]
    assert ends[0][-1][1] == ends[1][0][1]  # the colour of the best value
    assert ends[0][-1][1] == go.Heatmap(colorscale="Cividis").colorscale[-1][1]


def test_a_range_without_an_end_says_so_at_the_colour_bar():
    bar = similarity_pair_map(make_similarity("predictivity", LAYERS), title="t", **LABELS)
    assert bar.data[0].colorbar.ticktext[0] == "≤ 0"
    endless = replace(make_similarity("predictivity", LAYERS), range=(0.0, math.inf))
    assert measure_colours(endless).tick_texts[-1].startswith("≥")


def test_hovering_gives_value_interval_chance_level_direction_and_n():
    result = make_similarity("rsa", LAYERS)
    figure = similarity_pair_map(result, title="t", **LABELS)
    text = figure.data[1].hovertext[0]
    for part in ("0.750 (95%: 0.720 to 0.780)", "chance level 0.050", "higher", "n = 1,000"):
        assert part in text


def test_an_undefined_pair_is_crossed_and_says_why():
    figure = similarity_pair_map(make_similarity("rsa", LAYERS), title="t", **LABELS)
    assert (figure.data[2].y, figure.data[2].x) == ((2,), (1,))
    points = figure.data[1]
    index = [*zip(points.y, points.x, strict=True)].index((2, 1))
    assert "undefined: its ranks are all equal" in points.hovertext[index]


def test_the_selected_cell_is_framed():
    figure = similarity_pair_map(
        make_similarity("rsa", LAYERS), title="t", **LABELS, selected=(2, 1)
    )
    frame = figure.layout.shapes[-1]
    assert (frame.x0, frame.x1, frame.y0, frame.y1) == (0.5, 1.5, 1.5, 2.5)


def test_the_curve_is_the_diagonal_with_band_and_chance_level():
    result = make_similarity("procrustes", LAYERS)
    figure = similarity_curve(result, title="t", row_label="a", column_label="b")
    curves = named(figure)
    np.testing.assert_allclose(curves["a and b"].y, np.diag(result.values))
    np.testing.assert_allclose(curves["chance level"].y, 1.8)
    np.testing.assert_allclose(figure.data[0].y[:10], np.diag(result.low))
    assert "lower is more alike" in figure.layout.yaxis.title.text


def test_values_below_a_drawn_end_are_still_on_the_axis():
    result = make_similarity("predictivity", LAYERS)
    result = replace(result, values=result.values - 3)
    figure = similarity_curve(result, title="t", row_label="a", column_label="b")
    assert figure.layout.yaxis.range[0] <= np.nanmin(np.diag(result.values))


# ------------------------------------------------------------------------------------ training


def test_epochs_go_to_the_right_and_layers_up():
    values = np.arange(6.0).reshape(2, 3)
    values[1, 2] = math.nan
    figure = epoch_layer_map(values, [0, 40], LAYERS[:3], title="t", unit="CKA with the end")
    cells = np.asarray(figure.data[0].z)
    np.testing.assert_array_equal(cells, values.T)
    assert (figure.data[0].zmin, figure.data[0].zmax) == (0, 4)
    assert list(figure.layout.xaxis.ticktext) == ["0", "40"]
    points = figure.data[1]
    hover = dict(zip(zip(points.y, points.x, strict=True), points.hovertext, strict=True))
    assert hover[2, 0] == "<b>stage1_block2</b>, epoch 0<br>CKA with the end 2.000"
    assert "undefined" in hover[2, 1]


def test_epoch_maps_that_compare_take_given_ends():
    figure = epoch_layer_map(
        np.zeros((1, 2)), [1], LAYERS[:2], title="t", unit="CKA", lowest=0.0, highest=1.0
    )
    assert (figure.data[0].zmin, figure.data[0].zmax) == (0, 1)
    alone = epoch_layer_map(np.full((1, 2), math.nan), [1], LAYERS[:2], title="t", unit="u")
    assert alone.data[0].zmin < alone.data[0].zmax


def test_an_epoch_map_of_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"2 epochs and 3 layers have the shape \(3, 2\)"):
        epoch_layer_map(np.zeros((3, 2)), [0, 1], LAYERS[:3], title="t", unit="u")


# ------------------------------------------------------------------------------------ geometry


def test_geometry_is_a_curve_with_its_band_for_each_model():
    results = full_study().geometry
    figure = geometry_curves(results, MODELS, "silhouette", title="t")
    curves = named(figure)
    assert list(curves) == ["BP, bp-0", "AugLocal, auglocal-0"]
    np.testing.assert_allclose(curves["BP, bp-0"].y, results[0].values["silhouette"])
    np.testing.assert_allclose(figure.data[0].y[:10], results[0].low["silhouette"])
    assert "n = 1,000" in curves["BP, bp-0"].hovertext[0]
    assert figure.layout.yaxis.title.text == "score"


def test_a_layer_without_the_measure_says_why():
    curve = named(geometry_curves(full_study().geometry, MODELS, "nc3", title="t"))["BP, bp-0"]
    assert list(curve.y[:-1]) == [None] * 9
    assert "undefined: only the classifier" in curve.hovertext[0]


def test_a_value_without_an_interval_says_why():
    curve = named(geometry_curves(full_study().geometry, MODELS, "two_nn", title="t"))["BP, bp-0"]
    assert "too few neighbours differ for an interval" in curve.hovertext[0]


def test_only_endless_measures_of_wide_span_are_logarithmic():
    result = make_geometry("bp-0", LAYERS, 0)
    axes = {
        name: geometry_curves([result], MODELS, name, title="t").layout.yaxis.type
        for name in ("effective_rank", "sparsity")
    }
    assert axes == {"effective_rank": "log", "sparsity": None}
    below = {**result.low, "effective_rank": result.low["effective_rank"] - 10}
    reaching = replace(result, low=below)  # no place on a logarithmic axis
    figure = geometry_curves([reaching], MODELS, "effective_rank", title="t")
    assert figure.layout.yaxis.type is None


def test_a_model_without_the_measure_is_left_out():
    first, second = full_study().geometry
    values = {name: part for name, part in second.values.items() if name != "nc1"}
    figure = geometry_curves([first, replace(second, values=values)], MODELS, "nc1", title="t")
    assert list(named(figure)) == ["BP, bp-0"]
    assert not geometry_curves([], MODELS, "nc1", title="t").data


def test_names_from_files_stay_text():
    layers = (EVIL, *LAYERS[1:])
    result = replace(make_similarity("rsa", layers), title=EVIL, direction=EVIL, measure=EVIL)
    geometry = make_geometry(EVIL, layers, 0)
    labels = {"row_label": EVIL, "column_label": EVIL}
    for figure in (
        similarity_pair_map(result, title=EVIL, **labels),
        similarity_curve(result, title=EVIL, **labels),
        geometry_curves([geometry], {EVIL: EVIL}, "nc1", title=EVIL),
        epoch_layer_map(np.zeros((1, 10)), [0], layers, title=EVIL, unit=EVIL),
    ):
        text = figure.to_json()
        assert "\\u003ca" not in text.lower()
        assert "<a" not in text
