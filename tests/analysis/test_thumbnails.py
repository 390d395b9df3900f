"""Small pictures of studies, read back as XML."""

from __future__ import annotations

import re
import subprocess
import sys
from xml.etree import ElementTree

import numpy as np
import pytest

from analysis.rule_styles import RULE_STYLES, Style
from analysis.study import load_study
from analysis.thumbnails import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, Curve, Panel, draw_panels
from analysis.thumbnails import study_thumbnail as thumbnail

SVG = "{http://www.w3.org/2000/svg}"
SOLID = Style("#123456", "solid", "circle")


def curve(values, low=None, high=None, name="a"):
    values = np.array(values, float)
    empty = np.full(len(values), np.nan)
    return Curve(
        name,
        SOLID,
        values,
        empty if low is None else np.array(low, float),
        empty if high is None else np.array(high, float),
    )


def drawn(*curves, title="t"):
    return ElementTree.fromstring(draw_panels([Panel(title, curves)]))


def points(element):
    return [tuple(map(float, place.split(","))) for place in element.get("points").split()]


def test_values_stand_where_they_belong():
    (line,) = drawn(curve([0, 0.5, 1])).iter(f"{SVG}polyline")
    middle = (TOP + HEIGHT - BOTTOM) / 2
    expected = [
        (LEFT, HEIGHT - BOTTOM),
        ((LEFT + WIDTH - RIGHT) / 2, middle),
        (WIDTH - RIGHT, TOP),
    ]
    np.testing.assert_allclose(points(line), expected, atol=0.06)


def test_values_beyond_the_axis_are_drawn_at_its_edge():
    (line,) = drawn(curve([-0.2, 1.3])).iter(f"{SVG}polyline")
    assert [y for _, y in points(line)] == [HEIGHT - BOTTOM, TOP]


def test_an_interval_is_a_band_of_its_ends():
    (band,) = drawn(curve([0.5, 0.5], [0, 0.25], [1, 0.75])).iter(f"{SVG}polygon")
    span = HEIGHT - TOP - BOTTOM
    heights = [(HEIGHT - BOTTOM - y) / span for _, y in points(band)]
    np.testing.assert_allclose(heights, [1, 0.75, 0.25, 0], atol=0.001)


def test_undefined_values_leave_a_gap_and_single_ones_a_dot():
    picture = drawn(curve([0.1, 0.2, np.nan, 0.4, np.nan, 0.6, 0.7]))
    assert [len(points(line)) for line in picture.iter(f"{SVG}polyline")] == [2, 2]
    assert len(list(picture.iter(f"{SVG}circle"))) == 1
    assert not list(picture.iter(f"{SVG}polygon"))


def test_names_and_titles_stay_text():
    evil = "<script>x</script>"
    source = draw_panels([Panel(evil, [curve([0, 1], name="<b>&")])])
    assert "<script" not in source
    assert "<b>" not in source
    texts = [element.text for element in ElementTree.fromstring(source).iter(f"{SVG}text")]
    assert evil in texts
    assert "<b>&" in texts


@pytest.fixture(params=["digits", "cifar10-jpeg"])
def study(request):
    return load_study(f"checkpoints/{request.param}.study.json")


def test_a_shipped_study_shows_similarity_and_probes(study):
    picture = ElementTree.fromstring(thumbnail(study))
    texts = [element.text for element in picture.iter(f"{SVG}text")]
    assert "CKA with BP, same depth" in texts
    assert "Accuracy of linear probes" in texts
    lines = list(picture.iter(f"{SVG}polyline"))
    colours = {line.get("stroke") for line in lines}
    assert {RULE_STYLES["bp"].colour, RULE_STYLES["auglocal"].colour} <= colours
    accuracy = study.probe(study.models[0]).accuracy
    bp = next(line for line in lines if line.get("stroke") == RULE_STYLES["bp"].colour)
    span = HEIGHT - TOP - BOTTOM
    read = [(HEIGHT - BOTTOM - y) / span for _, y in points(bp)]
    np.testing.assert_allclose(read, accuracy, atol=0.001)


def test_nothing_is_drawn_without_a_library():
    program = (
        "import sys; import analysis.thumbnails as t; from analysis.study import load_study; "
        "t.study_thumbnail(load_study('checkpoints/digits.study.json')); "
        "print(sorted({'plotly', 'torch', 'sklearn', 'scipy', 'matplotlib'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert re.fullmatch(r"\[\]\s*", done.stdout)
