"""Figures: what a reader sees, and that names from files stay text."""

from __future__ import annotations

import math
import subprocess
import sys
from dataclasses import replace

import numpy as np
import plotly.graph_objects as go
import pytest

from analysis import figure_style, figures
from analysis.cka_result import CKAPair
from analysis.plane import plane_of_layers
from analysis.probes import ProbeResult
from tests.analysis.full_study import DEAD, MODELS, full_study

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
    styles = figure_style.checkpoint_styles(
        {"x": "auglocal", "y": "bp", "z": "bp", "w": "unheard-of"}
    )
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


def test_curves_mark_stages_unless_every_layer_is_one():
    few = figures.same_depth_curve(make_pair(), title="t").layout.shapes
    assert [(line.x0, line.x1) for line in few] == [(0.5, 0.5), (2.5, 2.5)]
    layers = [f"layer{index}" for index in range(64)]
    pair = make_pair(rows=layers, columns=layers)
    assert not figures.same_depth_curve(pair, title="t").layout.shapes


@pytest.mark.parametrize("key", ["showSendToCloud", "displaylogo"])
def test_no_figure_offers_to_upload_itself(key):
    assert figures.CONFIG[key] is False


def test_hovering_gives_the_null_level_where_there_is_one():
    levels = np.full((4, 4), 0.0315)
    levels[0, 0] = math.nan
    pair = replace(make_pair(), null_levels=levels, num_shuffles=100)
    texts = draw_map(pair).data[1].hovertext
    assert "null level" not in texts[0]
    assert "null level 0.032: 95% of 100 shuffles stay under it" in texts[1]


def test_layers_without_a_value_have_no_null_level_to_show():
    pair = replace(make_pair(undefined=["stem"]), null_levels=np.full((4, 4), 0.03))
    assert draw_map(pair).data[1].hovertext[0].endswith("undefined: the same for every image")


def difference(first, second, **options):
    return figures.cka_difference_map(
        first, second, title="t", **LABELS, names=("first", "second"), **options
    )


def test_a_difference_is_the_first_map_minus_the_second_on_a_scale_about_zero():
    first, second = make_pair(), make_pair()
    second = replace(second, values=second.values[::-1])
    figure = difference(first, second)
    cells = figure.data[0]
    np.testing.assert_allclose(np.asarray(cells.z), first.values - second.values)
    assert cells.zmin == -cells.zmax
    assert cells.zmax == pytest.approx(np.abs(first.values - second.values).max())
    assert cells.colorscale == go.Heatmap(colorscale="RdBu").colorscale
    text = figure.data[1].hovertext[0]
    assert f"difference {first.values[0, 0] - second.values[0, 0]:+.3f}" in text
    assert "first: -0.020" in text
    assert "second: 0.772" in text


def test_two_differences_share_a_scale():
    parts = [np.array([[0.1, math.nan]]), np.array([[-0.4, 0.2]])]
    assert figures.largest_difference(parts) == 0.4
    assert difference(make_pair(), make_pair(), limit=0.4).data[0].zmax == 0.4


def test_equal_maps_have_a_difference_to_draw():
    cells = difference(make_pair(), make_pair()).data[0]
    assert cells.zmin < cells.zmax
    assert not np.asarray(cells.z).any()


def test_an_undefined_cell_of_either_map_is_undefined_in_the_difference():
    figure = difference(make_pair(), make_pair(undefined=["stem"]))
    assert [*zip(figure.data[2].y, figure.data[2].x, strict=True)] == [(r, 0) for r in range(4)]
    assert "second: undefined: the same for every image" in figure.data[1].hovertext[0]
    assert "difference" not in figure.data[1].hovertext[0]


def test_maps_of_different_shapes_have_no_difference():
    with pytest.raises(ValueError, match=r"same shape, but they are \(4, 4\) and \(3, 4\)"):
        difference(make_pair(), make_pair(rows=LAYERS[:3]))


def test_the_best_match_is_the_largest_of_each_row():
    pair = make_pair()
    shuffled = replace(pair, values=pair.values[:, [2, 0, 3, 1]])
    (curve,) = curves(figures.best_match_curve(shuffled, title="t"))
    np.testing.assert_allclose(curve.y, pair.values.max(axis=1))
    assert "<b>stem</b> and <b>stage1_block2</b>" in curve.hovertext[0]


def test_a_row_without_any_value_has_no_best_match():
    (curve,) = curves(figures.best_match_curve(make_pair(undefined=LAYERS), title="t"))
    assert list(curve.y) == [None] * 4
    assert "undefined" in curve.hovertext[0]


@pytest.mark.parametrize("draw", [figures.same_depth_curve, figures.best_match_curve])
def test_references_stand_beside_the_curve_with_bands_and_names(draw):
    study = full_study()
    references = figures.reference_pairs(study, "bp-0", "auglocal-0")
    figure = draw(study.cka.pair("bp-0", "auglocal-0"), title="t", references=references)
    assert [curve.name for curve in curves(figure)] == [
        "ceiling: bp-0 and bp-1",
        "floor: bp-0 and untrained",
        "bp-0 and auglocal-0",
        "null level",
    ]
    assert len({(c.line.dash, c.marker.symbol) for c in curves(figure)[:3]}) == 3
    bands = [trace for trace in figure.data if trace.fill == "toself"]
    assert {band.legendgroup for band in bands} == {curve.name for curve in curves(figure)[:3]}
    assert figure.layout.showlegend is not False


def test_the_null_level_is_that_of_the_pairs_drawn():
    pair = replace(make_pair(), null_levels=np.arange(16.0).reshape(4, 4) / 100, num_shuffles=100)
    level = curves(figures.same_depth_curve(pair, title="t"))[-1]
    np.testing.assert_allclose(level.y, [0, 0.05, 0.1, 0.15])


def test_a_reference_is_paired_with_the_network_of_its_rule():
    study = full_study()
    references = figures.reference_pairs(study, "auglocal-0", "bp-0")
    assert references["ceiling"].model_a == "bp-0"
    assert references["floor"].model_a == "auglocal-0"
    assert figures.reference_pairs(replace(study, cka=None), "bp-0", "auglocal-0") == {}


def test_the_caption_says_what_was_estimated_and_what_intervals_cover():
    caption = figures.cka_caption(full_study())
    for part in (
        "Linear CKA, unbiased minibatch estimate: 2,000 images in 16 batches of 125.",
        "cover the choice of images, not of training runs",
        "95% of 100 shuffles",
        "ceiling, bp-1: a second seed",
        "floor, untrained: an untrained network",
    ):
        assert part in caption


def test_the_caption_names_kernel_estimator_pooling_and_missing_intervals():
    study = full_study()
    nan = np.full_like(study.cka.low, math.nan)
    changed = {"kernel": "rbf", "bandwidth": 0.5, "estimator": "debiased", "null_levels": None}
    cka = replace(study.cka, low=nan, high=nan, interval_note="one batch has none", **changed)
    question = replace(study.question, pooling=2, batch_note=None)
    caption = figures.cka_caption(replace(study, cka=cka, question=question))
    assert caption.startswith(
        "RBF CKA (0.5 medians), debiased estimate over the whole set, features pooled to 2 x 2: "
        "2,000 images in 16 batches."
    )
    assert "One batch has none." in caption
    assert "jackknife" not in caption
    assert "shuffles" not in caption
    assert figures.cka_caption(replace(study, cka=None)) == ""


def test_without_references_the_caption_says_that_values_have_no_scale():
    study = full_study()
    plain = tuple(replace(entry, role="") for entry in study.question.checkpoints)
    question = replace(study.question, checkpoints=plain)
    caption = figures.cka_caption(replace(study, question=question))
    assert "Without a second seed (ceiling) and an untrained network (floor)" in caption


def test_the_plane_joins_the_layers_of_each_network_in_order():
    plane = plane_of_layers(full_study().cka)
    figure = figures.layer_plane(plane, MODELS, title="t")
    lines = curves(figure)
    assert [line.name for line in lines] == [
        "BP, bp-0",
        "AugLocal, auglocal-0",
        "BP, bp-1",
        "untrained",
    ]
    assert [len(line.x) for line in lines] == [10, 10, 10, 9]
    assert DEAD not in " ".join(lines[3].hovertext)
    np.testing.assert_allclose(np.stack([lines[0].x, lines[0].y], 1), plane.points[:10])
    assert figure.layout.yaxis.scaleanchor == "x"
    assert f"{plane.explained[0]:.0%}" in figure.layout.xaxis.title.text


def test_figures_are_drawn_without_torch_or_streamlit():
    program = (
        "import sys, analysis.figures, analysis.report;"
        "print({'torch', 'streamlit', 'sklearn', 'scipy'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "set()"
