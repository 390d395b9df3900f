"""Figures of two networks by any measure, and of images."""

from __future__ import annotations

import math

import numpy as np
import pytest

from analysis.figures_pair import (
    image_scatter,
    matched_columns,
    measure_curve,
    measure_difference_map,
    measure_profile,
)
from analysis.procrustes import Procrustes
from analysis.rsa import RSA
from analysis.similarity import similarity_map


@pytest.fixture(scope="module")
def features():
    """Layers of which the second and third have changed places in the other network."""
    generator = np.random.default_rng(0)
    layers = [generator.normal(size=(30, 5)) for _ in range(3)]
    noise = [layer + 0.05 * generator.normal(size=layer.shape) for layer in layers]
    first = dict(zip(("one", "two", "three"), layers, strict=True))
    second = dict(zip(("one", "two", "three"), (noise[0], noise[2], noise[1]), strict=True))
    return first, second


@pytest.mark.parametrize("measure", [RSA(), Procrustes()])
def test_the_best_match_is_found_whichever_way_a_measure_runs(features, measure):
    result = similarity_map(*features, measure)
    assert matched_columns(result, best=True) == [0, 2, 1]
    assert matched_columns(result, best=False) == [0, 1, 2]


def test_a_layer_without_values_is_drawn_at_its_own_depth_with_its_reason(features):
    first, second = features
    result = similarity_map({**first, "two": np.ones((30, 5))}, second, RSA())
    assert matched_columns(result, best=True)[1] == 1
    figure = measure_curve(result, title="t", name="a with b", best=True)
    curve = next(trace for trace in figure.data if trace.name == "a with b")
    assert curve.y[1] is None
    assert "undefined" in curve.hovertext[1]


def test_a_curve_has_its_values_its_references_and_the_range_of_the_measure(features):
    result = similarity_map(*features, RSA())
    floor = similarity_map(features[0], features[0], RSA())
    figure = measure_curve(result, title="t", name="<b>x", references={"floor": ("a, c", floor)})
    curves = {trace.name: trace for trace in figure.data if trace.mode == "lines+markers"}
    assert list(curves) == ["floor: a, c", "&lt;b&gt;x"]
    np.testing.assert_allclose(curves["&lt;b&gt;x"].y, np.diag(result.values))
    np.testing.assert_allclose(curves["floor: a, c"].y, 1)
    low, high = figure.layout.yaxis.range
    assert low < -1
    assert high > 1


def test_a_profile_is_a_row_and_a_column(features):
    result = similarity_map(*features, RSA())
    figure = measure_profile(result, (1, 2), title="t", labels=("A", "B"), rules=("bp", "auglocal"))
    curves = [trace for trace in figure.data if trace.mode == "lines+markers"]
    np.testing.assert_allclose(curves[0].y, result.values[1])
    np.testing.assert_allclose(curves[1].y, result.values[:, 2])


@pytest.mark.parametrize(
    ("measure", "scale"), [(RSA(), "rgb(103,0,31)"), (Procrustes(), "rgb(5,48,97)")]
)
def test_blue_is_more_alike_in_the_first_map(features, measure, scale):
    first = similarity_map(*features, measure)
    second = similarity_map(features[0], features[0], measure)
    figure = measure_difference_map(
        first, second, title="t", row_label="r", column_label="c", names=("x", "y")
    )
    heatmap = figure.data[0]
    np.testing.assert_allclose(heatmap.z, first.values - second.values)
    assert heatmap.zmin == -heatmap.zmax
    # The lower end: of a similarity red, less alike; of a distance blue, more alike.
    assert heatmap.colorscale[0][1].replace(" ", "") == scale


def test_maps_of_different_shape_have_no_difference(features):
    first = similarity_map(*features, RSA())
    fewer = {"one": features[0]["one"]}
    second = similarity_map(fewer, fewer, RSA())
    with pytest.raises(ValueError, match="two maps of the same shape"):
        measure_difference_map(
            first, second, title="t", row_label="r", column_label="c", names=("x", "y")
        )


def test_every_image_is_one_point_that_knows_its_index():
    generator = np.random.default_rng(0)
    points, labels = generator.normal(size=(40, 2)), generator.integers(0, 3, 40)
    figure = image_scatter(
        points, np.array([0.5, 0.2]), labels, ("a", "<b>", "c"), title="t", selected=4
    )
    traces = [trace for trace in figure.data if trace.customdata is not None]
    indices = [index for trace in traces for index in trace.customdata]
    assert sorted(indices) == list(range(40))
    for trace in traces:
        own = list(trace.customdata)
        np.testing.assert_allclose(trace.x, points[own, 0])
        assert len(set(labels[own])) == 1
    assert math.isclose(figure.data[-1].x[0], points[4, 0])
    assert "70%" in figure.layout.xaxis.title.text
    assert any("&lt;b&gt;" in trace.name for trace in traces)
