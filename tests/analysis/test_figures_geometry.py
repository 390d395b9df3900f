"""Figures of a layer's images as points: every image once, at its place, in its class's colour."""

from __future__ import annotations

import numpy as np
import pytest

from analysis import figures_geometry
from analysis.figures_geometry import FADED, layer_scatter

CLASSES = ("ant", "bee <b>", "cat")
LABELS = np.array([0, 1, 0, 2, 1, 0])
NUMBERS = np.array([60, 61, 62, 63, 64, 65])


def points(dimensions):
    return np.random.default_rng(0).normal(size=(6, dimensions))


def draw(dimensions=2, **options):
    return layer_scatter(points(dimensions), LABELS, CLASSES, NUMBERS, title="t", **options)


def classes_of(figure):
    return [trace for trace in figure.data if trace.customdata is not None]


@pytest.mark.parametrize("dimensions", [2, 3])
def test_every_image_is_at_its_place_and_says_which_it_is(dimensions):
    figure = draw(dimensions)
    seen = []
    for trace in classes_of(figure):
        for at, (place, number) in enumerate(trace.customdata):
            seen.append(place)
            assert number == NUMBERS[place]
            found = [getattr(trace, axis)[at] for axis in "xyz"[:dimensions]]
            np.testing.assert_array_equal(found, points(dimensions)[place])
            assert f"image {place}<br>number {number} of the split" in trace.hovertext[at]
    assert sorted(seen) == list(range(6))


def test_classes_differ_in_colour_and_marker_and_their_names_are_escaped():
    traces = classes_of(draw())
    assert [trace.name for trace in traces] == ["ant", "bee &lt;b&gt;", "cat"]
    assert len({trace.marker.color for trace in traces}) == 3
    assert len({trace.marker.symbol for trace in traces}) == 3


def test_forty_classes_differ_and_have_no_legend():
    labels = np.arange(40)
    names = [f"class {label}" for label in labels]
    figure = layer_scatter(np.eye(40)[:, :2], labels, names, labels, title="t")
    styles = {(trace.marker.color, trace.marker.symbol) for trace in classes_of(figure)}
    assert len(styles) == 40
    assert figure.layout.showlegend is False


def test_the_limit_is_that_of_both_axes_or_holds_all_points():
    figure = draw(limit=4.0)
    assert figure.layout.xaxis.range == figure.layout.yaxis.range == (-4.0, 4.0)
    assert figure.layout.yaxis.scaleanchor == "x"
    end = draw().layout.xaxis.range[1]
    assert end > abs(points(2)).max()
    space = draw(3, limit=4.0).layout.scene
    assert space.xaxis.range == space.yaxis.range == space.zaxis.range == (-4.0, 4.0)


def test_images_that_are_picked_stand_out_and_are_ringed():
    figure = draw(selected=[3, 0])
    for trace in classes_of(figure):
        for at, (place, _) in enumerate(trace.customdata):
            assert trace.marker.opacity[at] == (1.0 if place in (0, 3) else FADED)
    rings = figure.data[-1]
    np.testing.assert_array_equal(sorted(rings.x), sorted(points(2)[[0, 3], 0]))


def test_many_picked_images_have_no_rings_in_the_plane():
    labels = np.zeros(50, dtype=int)
    spots = np.random.default_rng(0).normal(size=(50, 2))
    many = range(figures_geometry.MOST_RINGS + 1)
    figure = layer_scatter(spots, labels, CLASSES, labels, title="t", selected=many)
    assert len(classes_of(figure)) == 1
    assert not [trace for trace in figure.data if trace.marker.symbol == "circle-open"]


def test_the_legend_does_not_fade_with_the_points():
    figure = draw(selected=[0])
    keys = [trace for trace in figure.data if trace.showlegend is not False]
    assert [trace.name for trace in keys] == ["ant", "bee &lt;b&gt;", "cat"]
    assert [trace.marker.opacity for trace in keys] == [None] * 3
    by_name = {trace.name: trace for trace in classes_of(figure)}
    for key in keys:
        assert key.marker.color == by_name[key.name].marker.color


def test_the_lasso_is_in_hand():
    assert draw().layout.dragmode == "lasso"


def test_in_space_picked_images_are_drawn_once_more_in_their_colours():
    figure = draw(3, selected=[3, 0])
    marks = figure.data[-1]
    np.testing.assert_array_equal(marks.z, points(3)[[3, 0], 2])
    by_name = {trace.name: trace.marker for trace in classes_of(figure)}
    assert list(marks.marker.color) == [by_name["cat"].color, by_name["ant"].color]
    assert {marker.opacity for marker in by_name.values()} == {2 * FADED}
