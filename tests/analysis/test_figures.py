"""Figures: what a reader sees, and that names from files stay text."""

from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import plotly.graph_objects as go
import pytest

from analysis import figure_style, figures
from analysis.cka_result import CKAPair
from analysis.probes import ProbeResult

LAYERS = ("stem", "stage1_block1", "stage1_block2", "stage2_block1")
LABELS = {"row_label": "BP, a", "column_label": "AugLocal, b"}


def make_pair(rows=LAYERS, columns=LAYERS, *, undefined=(), low=0.05):
    values = np.linspace(-0.02, 0.97, len(rows) * len(columns)).reshape(len(rows), len(columns))
    reasons = {}
    for name in undefined:
        values[:, columns.index(name)] = math.nan
        reasons[f"b/{name}"] = "the same for every image"
    margin = np.where(np.isnan(values), math.nan, low)
    return CKAPair(
        model_a="a",
        model_b="b",
        rows=tuple(rows),
        columns=tuple(columns),
        values=values,
        standard_errors=margin / 2,
        low=values - margin,
        high=values + margin,
        undefined=reasons,
        samples=2000,
        batch_sizes=(125,) * 16,
        interval_note=None,
    )


def make_probe(model="a", layers=LAYERS, *, undefined=(), classifier=0.9):
    accuracy = np.linspace(0.4, 0.8, len(layers))
    for name in undefined:
        accuracy[layers.index(name)] = math.nan
    return ProbeResult(
        model=model,
        layers=tuple(layers),
        accuracy=accuracy,
        low=accuracy - 0.03,
        high=accuracy + 0.03,
        classifier_accuracy=classifier,
        classifier_low=classifier,
        classifier_high=classifier,
        chance=0.1,
        train_samples=697,
        test_samples=1000,
        penalty=1.0,
        undefined=dict.fromkeys(undefined, "the same for every image"),
    )


def draw_map(pair, **options):
    return figures.cka_map(pair, title="Linear CKA, test split, n = 2,000", **LABELS, **options)


def curves(figure):
    return [trace for trace in figure.data if trace.name]


def test_a_map_has_the_same_colours_and_range_whatever_its_values():
    pair = make_pair()
    figure = draw_map(pair)
    cells = figure.data[0]
    assert (cells.zmin, cells.zmax) == (0, 1)
    assert cells.colorscale == go.Heatmap(colorscale="Cividis").colorscale
    np.testing.assert_array_equal(np.asarray(cells.z, dtype=float), pair.values)


def test_only_a_labelled_toggle_stretches_the_range():
    figure = draw_map(make_pair(), stretch=True)
    assert (figure.data[0].zmin, figure.data[0].zmax) == (-0.02, 0.97)
    assert "stretched" in figure.data[0].colorbar.title.text


def test_a_map_has_one_clickable_point_a_cell_over_a_silent_heatmap():
    pair = make_pair(rows=LAYERS[:3])
    heatmap, points, *_ = draw_map(pair).data
    assert heatmap.hoverinfo == "skip"
    assert len(points.x) == 3 * 4
    index = [*zip(points.y, points.x, strict=True)].index((1, 2))
    assert f"{pair.values[1, 2]:.3f}" in points.hovertext[index]
    assert points.marker.opacity == points.unselected.marker.opacity == 0


def test_hovering_gives_both_layers_value_interval_and_n():
    text = draw_map(make_pair()).data[1].hovertext[0]
    for part in ("stem", "BP, a", "AugLocal, b", "CKA -0.020", "-0.070 to 0.030", "n = 2,000"):
        assert part in text


def test_an_undefined_cell_is_crossed_and_says_why():
    figure = draw_map(make_pair(undefined=["stem"]))
    assert "undefined: the same for every image" in figure.data[1].hovertext[0]
    crosses = figure.data[2]
    assert [*zip(crosses.y, crosses.x, strict=True)] == [(row, 0) for row in range(4)]


def test_a_map_without_any_value_can_be_drawn():
    pair = make_pair(undefined=LAYERS)
    assert len(draw_map(pair, stretch=True).data[2].x) == 16
    figures.same_depth_curve(pair, title="t")


def test_cells_are_square_and_the_first_layers_meet_below_at_the_left():
    layout = draw_map(make_pair()).layout
    assert layout.yaxis.scaleanchor == "x"
    assert layout.xaxis.constrain == layout.yaxis.constrain == "domain"
    assert tuple(layout.xaxis.range) == tuple(layout.yaxis.range) == (-0.5, 3.5)


def test_the_selected_cell_is_framed():
    shapes = draw_map(make_pair(), selected=(2, 1)).layout.shapes
    frame = [shape for shape in shapes if shape.type == "rect"][-1]
    assert (frame.x0, frame.x1, frame.y0, frame.y1) == (0.5, 1.5, 1.5, 2.5)


def test_lines_separate_stages():
    lines = [shape for shape in draw_map(make_pair()).layout.shapes if shape.type == "line"]
    assert sorted({line.x0 for line in lines if line.x0 == line.x1}) == [0.5, 2.5]


def test_titles_and_axes_name_content_rule_and_checkpoint():
    layout = draw_map(make_pair()).layout
    assert layout.title.text == "Linear CKA, test split, n = 2,000"
    assert layout.yaxis.title.text == "BP, a"
    assert layout.xaxis.title.text == "AugLocal, b"


def test_rules_keep_their_colours_and_differ_in_dash_and_marker():
    styles = figure_style.checkpoint_styles({"x": "auglocal", "y": "bp", "z": "bp", "w": "unheard-of"})
    assert styles["x"].colour == "#D55E00"
    assert styles["y"].colour == styles["z"].colour == "#0072B2"
    assert len({(style.dash, style.symbol) for style in styles.values()}) == 4
    assert len({style.symbol for style in figure_style.RULE_STYLES.values()}) == 6


def test_names_from_files_stay_text():
    evil = '<a href="http://example.com">x</a>'
    pair = make_pair(rows=(evil, *LAYERS[1:]))
    probe = make_probe(model=evil, layers=(evil, *LAYERS[1:]))
    drawn = [
        figures.cka_map(pair, title=evil, row_label=evil, column_label=evil),
        figures.same_depth_curve(pair, title=evil),
        figures.profile_curves(
            pair,
            (0, 0),
            title=evil,
            row_label=evil,
            column_label=evil,
            row_rule="bp",
            column_rule="bp",
        ),
        figures.probe_curves([probe], {evil: evil}, title=evil),
    ]
    for figure in drawn:
        text = figure.to_json()
        assert "\\u003ca" not in text.lower()
        assert "<a" not in text


def test_the_same_depth_curve_is_the_diagonal_with_its_band():
    pair = make_pair()
    figure = figures.same_depth_curve(pair, title="t")
    (curve,) = curves(figure)
    np.testing.assert_allclose(curve.y, np.diag(pair.values))
    band = figure.data[0]
    np.testing.assert_allclose(band.y[:4], np.diag(pair.low))
    np.testing.assert_allclose(band.y[4:], np.diag(pair.high)[::-1])


def test_networks_of_unequal_depth_meet_at_relative_depth():
    pair = make_pair(rows=LAYERS, columns=("stem", "stage1_block1"))
    (curve,) = curves(figures.same_depth_curve(pair, title="t"))
    np.testing.assert_allclose(curve.y, pair.values[range(4), [0, 0, 1, 1]])
    figure = figures.profile_curves(
        pair, (3, 1), title="t", **LABELS, row_rule="bp", column_rule="auglocal"
    )
    assert list(curves(figure)[0].x) == [0, 1]
    assert curves(figure)[1].x[-1] == 1


def test_an_undefined_layer_leaves_a_gap_in_curve_and_band():
    pair = make_pair(undefined=["stage1_block1"])
    figure = figures.same_depth_curve(pair, title="t")
    (curve,) = curves(figure)
    assert curve.y[1] is None
    assert curve.connectgaps is False
    assert len(figure.data) == 3  # a band on either side of the gap, and the curve


def test_profiles_are_a_row_and_a_column_of_the_map():
    pair = make_pair()
    figure = figures.profile_curves(
        pair, (1, 2), title="t", **LABELS, row_rule="bp", column_rule="auglocal"
    )
    row, column = curves(figure)
    np.testing.assert_allclose(row.y, pair.values[1])
    np.testing.assert_allclose(column.y, pair.values[:, 2])
    assert row.line.color == "#0072B2"
    assert column.line.color == "#D55E00"
    rings = [trace for trace in figure.data if trace.marker.symbol == "circle-open"]
    assert [(ring.x[0], ring.y[0]) for ring in rings] == [
        (2, pair.values[1, 2]),
        (1, pair.values[1, 2]),
    ]


def test_probe_curves_have_bands_classifier_lines_and_chance():
    probes = [make_probe("a"), make_probe("b", classifier=None)]
    figure = figures.probe_curves(probes, {"a": "bp", "b": "auglocal"}, title="t")
    assert [curve.name for curve in curves(figure)] == ["BP, a", "AugLocal, b"]
    dotted = [trace for trace in figure.data if trace.line.dash == "dot"]
    assert [tuple(trace.y) for trace in dotted] == [(0.9, 0.9)]
    assert [shape.y0 for shape in figure.layout.shapes if shape.y0 == shape.y1] == [0.1]
    assert "chance, 10.0%" in [note.text for note in figure.layout.annotations]
    assert tuple(figure.layout.yaxis.range) == (0, 1.02)


def test_a_probe_that_could_not_be_fitted_says_why():
    probe = make_probe(undefined=["stage1_block1"])
    (curve,) = curves(figures.probe_curves([probe], {"a": "bp"}, title="t"))
    assert curve.y[1] is None
    assert "undefined: the same for every image" in curve.hovertext[1]


def test_many_stages_get_few_tick_names():
    layers = [f"layer{index}" for index in range(64)]
    axis = draw_map(make_pair(rows=layers, columns=layers)).layout.xaxis
    assert len(axis.tickvals) <= 10


@pytest.mark.parametrize("key", ["showSendToCloud", "displaylogo"])
def test_no_figure_offers_to_upload_itself(key):
    assert figures.CONFIG[key] is False


def test_figures_are_drawn_without_torch_or_streamlit():
    program = (
        "import sys, analysis.figures, analysis.study;"
        "print({'torch', 'streamlit', 'sklearn'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "set()"
