"""Figures of the lens: what is drawn where, and that names stay text."""

from __future__ import annotations

import base64
import io
import math

import numpy as np
import pytest
from PIL import Image

from analysis.figures_lens import (
    Beliefs,
    ClassCurve,
    Thumbnail,
    belief_strip,
    class_curves,
    gallery,
    neighbour_rows,
    png_uri,
    shown_classes,
)

LAYERS = ("stem", "stage1_block1", "stage2_block1")
CLASSES = ("cat", "<b>dog</b>", "ship")


@pytest.fixture
def beliefs():
    values = np.array([[0.7, 0.2, 0.1], [math.nan] * 3, [0.1, 0.1, 0.8], [0.0, 0.0, 1.0]])
    accuracy = np.array([0.5, math.nan, 0.6, 0.9])
    return Beliefs("probe", LAYERS, values, {1: "it is constant"}, accuracy, CLASSES)


def test_a_strip_shows_classes_downwards_and_the_classifier_last(beliefs):
    figure = belief_strip(beliefs, title="t", shown=[0, 1, 2], true_class=2)
    cells = np.asarray(figure.data[0].z, dtype=float)
    np.testing.assert_array_equal(cells, beliefs.probabilities[:, [2, 1, 0]].T)
    assert (figure.data[0].zmin, figure.data[0].zmax) == (0, 1)
    assert list(figure.layout.yaxis.ticktext) == [
        "<b>ship</b>",
        "&lt;b&gt;dog&lt;/b&gt;",
        "cat",
    ]
    frame = figure.layout.shapes[-1]
    assert (frame.y0, frame.y1, frame.x1) == (-0.5, 0.5, 3.5)


def test_a_strip_says_on_hover_who_says_what_and_why_not(beliefs):
    hover = belief_strip(beliefs, title="t", shown=[0, 1, 2], true_class=2).data[1].hovertext
    assert hover[0] == (
        "<b>stem</b>, probe<br>ship, the true class: 0.100<br>right on 50.0% of the test images"
    )
    assert hover[1] == "<b>stage1_block1</b>, probe<br>undefined: it is constant"
    assert hover[3].startswith("the network's own <b>classifier</b><br>ship")
    assert "&lt;b&gt;dog" in hover[4]


def test_dots_mark_what_each_column_names(beliefs):
    figure = belief_strip(beliefs, title="t", shown=[0, 1, 2], true_class=None)
    dots = figure.data[3]
    assert list(zip(dots.x, dots.y)) == [(0, 2), (2, 0), (3, 0)]
    few = belief_strip(beliefs, title="t", shown=[0], true_class=None).data[3]
    assert list(zip(few.x, few.y)) == [(0, 0)]


def test_the_classes_worth_a_row_are_the_likeliest_and_the_true_one(beliefs):
    assert shown_classes([beliefs.probabilities], None, 2) == [0, 2]
    assert shown_classes([beliefs.probabilities], 1, 2) == [1, 2]
    assert shown_classes([np.full((2, 3), math.nan)], None, 2) == [0, 1]


def test_curves_have_gaps_marks_and_a_line_at_the_classifier():
    curve = ClassCurve(
        "net",
        "auglocal",
        LAYERS,
        np.array([0.1, math.nan, 0.3]),
        np.array([0.9, 0.8, math.nan]),
        0.7,
    )
    figure = class_curves([curve], title="t", layer="stem")
    assert list(figure.data[0].y) == [0.1, None, 0.3]
    assert list(figure.data[1].y) == [0.9, 0.8, None]
    assert list(figure.data[2].y) == [0.7, 0.7]
    assert list(figure.data[3].y) == [0.1]


def test_small_images_are_enlarged_without_blur():
    pixels = np.random.default_rng(0).integers(0, 255, (8, 8, 3)).astype(np.uint8)
    with Image.open(io.BytesIO(base64.b64decode(png_uri(pixels).partition(",")[2]))) as image:
        assert image.size == (64, 64)
        np.testing.assert_array_equal(np.array(image)[::8, ::8], pixels)
        np.testing.assert_array_equal(np.array(image)[7::8, 7::8], pixels)


def test_galleries_run_in_reading_order_and_frame_the_chosen_image():
    pixels = np.zeros((32, 32, 3), np.uint8)
    thumbnails = [Thumbnail(pixels, f"<i>{index}", "a\nb") for index in range(5)]
    figure = gallery(thumbnails, title="t", columns=3, selected=4)
    assert list(zip(figure.data[0].x, figure.data[0].y)) == [(0, 0), (1, 0), (2, 0), (0, 1), (1, 1)]
    assert figure.data[0].hovertext[0] == "a<br>b"
    assert figure.data[1].text[0] == "&lt;i&gt;0"
    assert (figure.layout.shapes[0].x0, figure.layout.shapes[0].y0) == (0.52, 0.51)
    assert len(figure.layout.images) == 5


def test_a_layer_without_neighbours_says_so():
    thumbnail = Thumbnail(np.zeros((4, 4, 3), np.uint8), "cat", "x", is_bold=True)
    figure = neighbour_rows([("stem", []), ("<i>", [thumbnail])], title="t")
    assert figure.layout.annotations[0].text == "undefined"
    assert list(figure.layout.yaxis.ticktext) == ["stem", "&lt;i&gt;"]
    assert figure.data[1].text == ("<b>cat</b>",)
