"""Figures of probes: every number at its place, with its interval or the reason for its lack."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from analysis import figures_probes
from tests.analysis.full_study import CLASSES, DEAD, LAYERS, MODELS, full_study

STUDY = full_study()
BP, AUGLOCAL, _, UNTRAINED = STUDY.probes


def named(figure):
    return {trace.name: trace for trace in figure.data if trace.name}


def test_neighbours_are_thin_dotted_curves_in_the_checkpoints_colour():
    figure = figures_probes.probe_curves([BP], MODELS, title="t")
    thin = [trace for trace in figure.data if trace.line.width == 1 and trace.x[0] is not None]
    (curve,) = thin
    np.testing.assert_allclose(curve.y, BP.neighbours_accuracy)
    assert (curve.line.dash, curve.line.color) == ("dot", "#0072B2")
    assert "10 nearest neighbours" in curve.hovertext[0]
    assert "10 nearest neighbours" in named(figure)


def test_auxiliary_networks_are_markers_at_their_own_layers():
    figure = figures_probes.probe_curves([AUGLOCAL], MODELS, title="t")
    (marks,) = [trace for trace in figure.data if trace.error_y.array is not None]
    np.testing.assert_allclose(marks.y, AUGLOCAL.auxiliary_accuracy)
    assert [LAYERS[int(x)] for x in marks.x] == list(AUGLOCAL.auxiliary_layers)
    np.testing.assert_allclose(marks.error_y.array, 0.02)
    assert marks.mode == "markers"
    assert "auxiliary networks" in named(figure)


def test_an_auxiliary_network_of_an_unknown_layer_is_left_out():
    probe = replace(AUGLOCAL, auxiliary_layers=("elsewhere", *AUGLOCAL.auxiliary_layers[1:]))
    figure = figures_probes.probe_curves([probe], MODELS, title="t")
    (marks,) = [trace for trace in figure.data if trace.error_y.array is not None]
    np.testing.assert_allclose(marks.y, AUGLOCAL.auxiliary_accuracy[1:])


def test_probes_without_neighbours_or_auxiliaries_have_no_such_entries():
    probe = replace(BP, neighbours_accuracy=None)
    assert list(named(figures_probes.probe_curves([probe], MODELS, title="t"))) == ["BP, bp-0"]


def test_recall_has_the_first_class_at_the_top_and_layers_to_the_right():
    figure = figures_probes.recall_map(BP, CLASSES, title="t")
    cells = np.asarray(figure.data[0].z)
    np.testing.assert_allclose(cells[-1], BP.recall[:, 0])
    np.testing.assert_allclose(cells[0], BP.recall[:, -1])
    assert list(figure.layout.yaxis.ticktext)[-1] == "plane"
    points = figure.data[1]
    index = [*zip(points.y, points.x, strict=True)].index((9, 2))
    text = points.hovertext[index]
    assert "<b>plane</b> at <b>stage1_block2</b>" in text
    assert f"{BP.recall[2, 0]:.1%} (95%: {BP.recall_low[2, 0]:.1%} to" in text


def test_undefined_recall_says_why():
    figure = figures_probes.recall_map(UNTRAINED, CLASSES, title="t")
    assert len(figure.data[2].x) == len(CLASSES)
    points = figure.data[1]
    index = [*points.x].index(LAYERS.index(DEAD))
    assert "undefined: its features are the same for every image" in points.hovertext[index]


def test_old_studies_have_no_recall():
    with pytest.raises(ValueError, match="no recall by class; make the study again"):
        figures_probes.recall_map(replace(BP, recall=None), CLASSES, title="t")


def test_confusions_are_shares_of_the_true_class_read_from_the_top():
    confusion = np.zeros((len(LAYERS), 10, 10), dtype=np.int64)
    confusion[0, 0, :2] = 3, 1  # of four planes one is taken for a car
    probe = replace(BP, confusion=confusion)
    figure = figures_probes.confusion_map(probe, "stem", CLASSES, title="t")
    cells = np.asarray(figure.data[0].z)
    np.testing.assert_allclose(cells[-1, :3], [0.75, 0.25, 0])
    assert np.isnan(cells[:-1]).all()
    points = figure.data[1]
    hover = dict(zip(zip(points.y, points.x, strict=True), points.hovertext, strict=True))
    assert "true <b>plane</b>, read as <b>car</b><br>1 of 4 images (25.0%)" in hover[9, 1]
    assert "no test images of this class" in hover[0, 0]


def test_a_layer_without_a_probe_has_only_undefined_confusions():
    figure = figures_probes.confusion_map(UNTRAINED, DEAD, CLASSES, title="t")
    assert np.isnan(np.asarray(figure.data[0].z)).all()
    assert "its features are the same" in figure.data[1].hovertext[0]


def test_confusions_of_an_unknown_layer_are_refused():
    with pytest.raises(ValueError, match="no confusions of 'nowhere'; choose another layer"):
        figures_probes.confusion_map(BP, "nowhere", CLASSES, title="t")


@pytest.mark.parametrize("score", figures_probes.SCORES)
def test_scores_are_one_curve_a_checkpoint_that_has_them(score):
    probes = [BP, replace(AUGLOCAL, **{score: None}), UNTRAINED]
    figure = figures_probes.score_curves(probes, MODELS, score, title="t")
    assert list(named(figure)) == ["BP, bp-0", "untrained"]
    np.testing.assert_allclose(named(figure)["BP, bp-0"].y, getattr(BP, score))
    assert named(figure)["untrained"].y[LAYERS.index(DEAD)] is None


def test_a_score_that_no_checkpoint_has_draws_nothing():
    probes = [replace(BP, cross_entropy=None)]
    assert not figures_probes.score_curves(probes, MODELS, "cross_entropy", title="t").data


def paired_figure():
    (paired,) = STUDY.paired
    return paired.result, figures_probes.paired_curve(
        paired.result, (BP, AUGLOCAL), MODELS, title="t"
    )


def test_only_differences_that_the_corrected_test_finds_are_filled():
    paired, figure = paired_figure()
    traces = named(figure)
    assert list(traces) == ["bp-0 better", "auglocal-0 better", "no clear difference"]
    clear = [int(x) for name in list(traces)[:2] for x in traces[name].x]
    assert sorted(clear) == np.flatnonzero(paired.adjusted < 0.05).tolist()
    assert all(y > 0 for y in traces["bp-0 better"].y)
    assert all(y < 0 for y in traces["auglocal-0 better"].y)
    assert [trace.marker.symbol for trace in traces.values()] == ["circle", "square", "circle-open"]
    assert traces["auglocal-0 better"].marker.color == "#D55E00"


def test_differences_have_their_intervals_and_tests_on_hover():
    paired, figure = paired_figure()
    trace = named(figure)["bp-0 better"]
    index = int(trace.x[-1])
    np.testing.assert_allclose(trace.error_y.array[-1], paired.high[index] - trace.y[-1])
    np.testing.assert_allclose(trace.error_y.arrayminus[-1], trace.y[-1] - paired.low[index])
    for part in ("+8.0% (95%: +5.0% to +11.0%)", "120 images only bp-0", "0.001 by Holm"):
        assert part in trace.hovertext[-1]


def test_a_layer_without_a_probe_has_no_difference():
    _, figure = paired_figure()
    trace = named(figure)["no clear difference"]
    at = [int(x) for x in trace.x].index(1)
    assert trace.y[at] is None
    assert "undefined: one of the two has no probe" in trace.hovertext[at]


def test_names_from_files_stay_text():
    evil = "<a href='x'>x</a>"
    probe = replace(AUGLOCAL, model=evil, layers=(evil, *LAYERS[1:]), undefined={evil: evil})
    probe = replace(probe, accuracy=np.where(np.arange(10) == 0, math.nan, probe.accuracy))
    classes = (evil, *CLASSES[1:])
    paired = STUDY.paired[0].result
    rules = {evil: evil}
    for figure in (
        figures_probes.probe_curves([probe], rules, title=evil),
        figures_probes.score_curves([probe], rules, "cross_entropy", title=evil),
        figures_probes.recall_map(probe, classes, title=evil),
        figures_probes.confusion_map(probe, evil, classes, title=evil),
        figures_probes.paired_curve(paired, (probe, probe), rules, title=evil),
    ):
        text = figure.to_json()
        assert "\\u003ca" not in text.lower()
        assert "<a" not in text


def test_neighbours_have_curves_of_their_own_with_bands():
    figure = figures_probes.neighbours_curves([BP, AUGLOCAL], MODELS, title="t")
    assert list(named(figure)) == ["BP, bp-0", "AugLocal, auglocal-0"]
    curve = named(figure)["BP, bp-0"]
    np.testing.assert_allclose(curve.y, BP.neighbours_accuracy)
    assert "10 nearest neighbours" in curve.hovertext[0]
    assert f"{BP.neighbours_low[0]:.1%}" in curve.hovertext[0]
    band = next(trace for trace in figure.data if trace.fill == "toself")
    np.testing.assert_allclose(band.y[: len(LAYERS)], BP.neighbours_low)


def test_neighbours_that_lack_say_why_and_old_probes_are_left_out():
    old = replace(BP, neighbours_accuracy=None)
    figure = figures_probes.neighbours_curves([old, UNTRAINED], MODELS, title="t")
    (name,) = named(figure)
    hover = named(figure)[name].hovertext[LAYERS.index(DEAD)]
    assert "undefined: its features are the same for every image" in hover
    assert not named(figures_probes.neighbours_curves([old], MODELS, title="t"))


def corners(figure):
    """x0, x1, y0, y1 of the last frame."""
    shape = figure.layout.shapes[-1]
    return shape.x0, shape.x1, shape.y0, shape.y1


def test_the_chosen_layer_is_framed_from_top_to_bottom_and_a_class_alone():
    figure = figures_probes.recall_map(BP, CLASSES, title="t", layer=LAYERS[3])
    assert corners(figure) == (2.5, 3.5, -0.5, 9.5)
    figure = figures_probes.recall_map(BP, CLASSES, title="t", layer=LAYERS[3], true_class=0)
    assert corners(figure) == (2.5, 3.5, 8.5, 9.5)


def test_chosen_classes_are_framed_as_row_column_or_cell():
    def frame(**chosen):
        return corners(figures_probes.confusion_map(BP, LAYERS[0], CLASSES, title="t", **chosen))

    assert frame(true_class=2) == (-0.5, 9.5, 6.5, 7.5)
    assert frame(predicted=4) == (3.5, 4.5, -0.5, 9.5)
    assert frame(true_class=2, predicted=4) == (3.5, 4.5, 6.5, 7.5)
    plain = figures_probes.confusion_map(BP, LAYERS[0], CLASSES, title="t")
    assert not plain.layout.shapes
