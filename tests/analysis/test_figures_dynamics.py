"""Figures of layers along training."""

from __future__ import annotations

import math

import numpy as np
import pytest

from analysis.dynamics import DynamicsMap, Trajectory
from analysis.figures_dynamics import (
    Scale,
    common_scale,
    depth_curves,
    development_map,
    epoch_curves,
    recorded_curves,
    row_at,
)

LAYERS = ("stem", "stage1_block1")


def make(measure="cka", values=((0.1, 0.2), (math.nan, 0.6), (1.0, 0.9)), epochs=(0, 2, 8)):
    values = np.array(values)
    trajectory = Trajectory("<b>run</b>", (), epochs)
    undefined = {(1, 0): "it is <constant>"}
    return DynamicsMap(
        measure, "CKA with its own end", trajectory, None, LAYERS, values, values - 0.1,
        values + 0.1, undefined,
    )  # fmt: skip


def test_a_map_has_the_first_epoch_at_the_bottom_and_says_why_a_cell_is_empty():
    figure = development_map(
        make(), title="t", label="<b>run</b>", scale=Scale(0, 1), selected=(7, "stem")
    )
    np.testing.assert_array_equal(np.asarray(figure.data[0].z, float), make().values)
    assert list(figure.layout.yaxis.ticktext) == ["0", "2", "8"]
    hover = figure.data[1].hovertext
    assert hover[1] == (
        "<b>stage1_block1</b> after epoch 0, &lt;b&gt;run&lt;/b&gt;<br>CKA with its own end<br>"
        "0.200 (95%: 0.100 to 0.300)"
    )
    assert hover[2].endswith("undefined: it is &lt;constant&gt;")
    # The last snapshot up to epoch 7 is that of epoch 2, in the second row.
    assert (figure.layout.shapes[-1].y0, figure.layout.shapes[-1].x0) == (0.5, -0.5)


@pytest.mark.parametrize(("epoch", "row"), [(0, 0), (1, 0), (2, 1), (7, 1), (8, 2), (99, 2)])
def test_an_epoch_without_snapshot_means_the_last_one_before(epoch, row):
    assert row_at(make(), epoch) == row


def test_an_epoch_before_all_means_the_first():
    assert row_at(make(epochs=(3, 4, 5)), 1) == 0


def test_maps_share_a_scale_and_fractions_run_from_0_to_1():
    assert common_scale([make(), make("probe")]) == Scale(0, 1)
    losses = [make("losses"), make("losses", values=((2.5, 3.0),) * 3)]
    assert common_scale(losses) == Scale(0.1, 3.0)
    assert common_scale([make("losses", values=((2.0, 2.0),) * 3)]) == Scale(2, 3)
    assert common_scale([make("losses", values=((math.nan,) * 2,) * 3)]) == Scale(0, 1)


def test_curves_are_a_row_and_a_column_of_the_map():
    parts, rules = {"a": make(), "b": make()}, {"a": "bp", "b": "auglocal"}
    scale = Scale(0, 1)
    by_depth = depth_curves(parts, rules, title="t", epoch=5, scale=scale, layer="stage1_block1")
    lines = [trace for trace in by_depth.data if trace.name]
    assert [trace.name for trace in lines] == ["a, epoch 2", "b, epoch 2"]
    assert list(lines[0].y) == [None, 0.6]
    by_epoch = epoch_curves(parts, rules, title="t", layer="stem", scale=scale, epoch=0)
    lines = [trace for trace in by_epoch.data if trace.name]
    assert list(lines[0].x) == [0, 2, 8]
    assert list(lines[0].y) == [0.1, None, 1.0]
    assert [trace.line.color for trace in lines] == ["#0072B2", "#D55E00"]


def test_a_run_without_the_layer_is_left_out():
    other = make()
    object.__setattr__(other, "layers", ("stem", "else"))
    figure = epoch_curves(
        {"a": make(), "b": other}, {"a": "bp", "b": "bp"}, title="t", layer="else",
        scale=Scale(0, 1),
    )  # fmt: skip
    assert [trace.name for trace in figure.data if trace.name] == ["b"]


def test_records_have_a_curve_a_block_and_a_thick_one_of_the_whole_network():
    figure = recorded_curves(
        make("accuracies"), title="t", scale=Scale(0, 1), test_accuracy=[(1, 0.5), (2, 0.6)]
    )
    assert [trace.name for trace in figure.data] == ["stem", "stage1_block1", "whole network, test"]
    assert figure.data[0].line.color != figure.data[1].line.color
    assert list(figure.data[2].y) == [0.5, 0.6]
    assert "&lt;b&gt;run" in figure.data[0].hovertext[0]
