"""Small pictures of studies, read back as XML."""

from __future__ import annotations

import itertools
import re
import subprocess
import sys
from dataclasses import replace
from xml.etree import ElementTree

import numpy as np
import pytest

from analysis.rule_styles import RULE_STYLES, Style
from analysis.study import load_study
from analysis.study_panels import Curve, Panel, epoch_ticks, round_top, study_panels
from analysis.thumbnails import (
    BOTTOM,
    HEIGHT,
    LEFT,
    RIGHT,
    TOP,
    WIDTH,
    draw_panel,
    study_thumbnails,
)

SVG = "{http://www.w3.org/2000/svg}"
SOLID = Style("#123456", "solid", "circle")


def curve(values, low=None, high=None, name="a", places=None):
    values = np.array(values, float)
    empty = np.full(len(values), np.nan)
    return Curve(
        name,
        SOLID,
        values,
        empty if low is None else np.array(low, float),
        empty if high is None else np.array(high, float),
        None if places is None else np.array(places, float),
    )


def drawn(*curves, **options):
    return ElementTree.fromstring(draw_panel(Panel("t", curves, **options)))


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


def test_values_stand_at_their_places_and_below_the_top_of_the_axis():
    picture = drawn(curve([0, 3, 6], places=[0, 0.25, 1]), ticks=("0", "1", "2"), top=12.0)
    (line,) = picture.iter(f"{SVG}polyline")
    width, span = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM
    expected = [
        (LEFT, HEIGHT - BOTTOM),
        (LEFT + width / 4, HEIGHT - BOTTOM - span / 4),
        (WIDTH - RIGHT, HEIGHT - BOTTOM - span / 2),
    ]
    np.testing.assert_allclose(points(line), expected, atol=0.06)
    letters = {element.text: float(element.get("x")) for element in picture.iter(f"{SVG}text")}
    assert {"0", "6", "12"} <= set(letters)
    assert letters["1"] == pytest.approx(LEFT + width / 2, abs=0.06)


@pytest.mark.parametrize(
    ("highest", "top"), [(0, 1), (1, 1), (1.01, 1.2), (11.3, 12), (12.4, 15), (72, 80), (0.31, 0.4)]
)
def test_an_axis_ends_at_a_round_number(highest, top):
    assert round_top(highest) == pytest.approx(top)


def test_of_many_epochs_some_are_named_and_the_last_one_always():
    assert epoch_ticks((0, 1, 2, 4, 8, 16)) == ("0", "1", "2", "4", "8", "16")
    named = [name for name in epoch_ticks(range(0, 400, 20)) if name]
    assert named[-1] == "380"
    assert len(named) <= 8
    assert {int(b) - int(a) for a, b in itertools.pairwise(named)} == {60}


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
    source = draw_panel(Panel(evil, [curve([0, 1], name="<b>&")], ticks=("<i>", "b")))
    assert "<script" not in source
    assert "<b>" not in source
    assert "<i>" not in source
    texts = [element.text for element in ElementTree.fromstring(source).iter(f"{SVG}text")]
    assert evil in texts
    assert "<b>&" in texts


@pytest.fixture(params=["digits", "cifar10-jpeg"])
def study(request):
    return load_study(f"checkpoints/{request.param}.study.json")


def drawn_values(line, top=1.0):
    span = HEIGHT - TOP - BOTTOM
    return [top * (HEIGHT - BOTTOM - y) / span for _, y in points(line)]


def test_a_shipped_study_shows_similarity_probes_and_dimension(study):
    pictures = study_thumbnails(study)
    assert [picture.title for picture in pictures] == [
        "CKA with BP, same depth",
        "Accuracy of linear probes",
        "Participation ratio, directions",
    ]
    roots = [ElementTree.fromstring(picture.svg) for picture in pictures]
    assert len({root.get("height") for root in roots}) == 1  # they stand beside each other
    first = study.models[0]
    (geometry,) = (result for result in study.geometry if result.model == first)
    ratio = geometry.values["participation_ratio"]
    for root, values, top in zip(
        roots[1:],
        (study.probe(first).accuracy, ratio),
        (1.0, study_panels(study)[2].top),
        strict=True,
    ):
        lines = list(root.iter(f"{SVG}polyline"))
        bp = next(line for line in lines if line.get("stroke") == RULE_STYLES["bp"].colour)
        np.testing.assert_allclose(drawn_values(bp, top), values, atol=0.001 * top)
        assert len(lines) == len(study.question.checkpoints)  # ceiling and floor, too
        names = [element.text for element in root.iter(f"{SVG}text")]
        assert "untrained" in names
        assert ("BP, other seed" in names) == (study.reference("ceiling") is not None)


def test_a_study_of_snapshots_is_drawn_by_epoch():
    study = load_study("checkpoints/cifar10-jpeg-resnet32-dynamics.study.json")
    own, other, probes = study_panels(study)
    assert own.ticks == ("0", "1", "2", "4", "8", "16")
    assert [curve.name for curve in own.curves] == ["BP", "AugLocal"]
    assert [curve.name for curve in other.curves] == ["AugLocal"]
    assert [curve.name for curve in probes.curves] == ["BP", "AugLocal"]
    bp, auglocal = (
        [entry.name for entry in study.question.checkpoints if entry.rule == rule]
        for rule in ("bp", "auglocal")
    )
    at = (len(study.cka.layers[0]) - 1) // 2
    expected = [study.cka.pair(name, bp[-1]).values[at, at] for name in auglocal]
    np.testing.assert_array_equal(other.curves[0].values, expected)
    expected = [study.cka.pair(name, auglocal[-1]).values[at, at] for name in auglocal]
    np.testing.assert_array_equal(own.curves[1].values, expected)
    expected = [study.probe(name).accuracy[at] for name in bp]
    np.testing.assert_array_equal(probes.curves[0].values, expected)
    np.testing.assert_allclose(own.curves[0].places, np.arange(6) / 5)


def test_what_a_study_lacks_is_not_drawn(study):
    titles = [picture.title for picture in study_thumbnails(replace(study, probes=(), cka=None))]
    assert titles == ["Participation ratio, directions"]
    assert not study_thumbnails(replace(study, probes=(), cka=None, geometry=()))


def test_nothing_is_drawn_without_a_library():
    program = (
        "import sys; import analysis.thumbnails as t; from analysis.study import load_study; "
        "t.study_thumbnails(load_study('checkpoints/digits.study.json')); "
        "print(sorted({'plotly', 'torch', 'sklearn', 'scipy', 'matplotlib'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert re.fullmatch(r"\[\]\s*", done.stdout)
