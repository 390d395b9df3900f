"""Probes of studies that say what was read of every image: classes, differences, galleries."""

from __future__ import annotations

import math
import re
import shutil
import threading

import numpy as np
import pytest

from analysis.errors import Cancelled
from analysis.study import load_study, save_study
from app import texts_probes
from app.sources import answers, checkpoints, computing, images, studies
from app.texts_probes import Gallery
from tests.app.conftest import fill
from tests.app.real_study import SAMPLES


@pytest.fixture
def shipped(real, tmp_path, monkeypatch):
    """The real study in the place of `checkpoints/`."""
    folder = tmp_path / "shipped"
    shutil.copytree(real, folder)
    monkeypatch.setenv("AUGLOCAL_SHIPPED", str(folder))
    return folder


@pytest.fixture
def study(shipped):
    return load_study(shipped / "pair.study.json")


def titles(figures):
    return [figure["layout"]["title"]["text"] for figure in figures]


def pictures_of(app):
    """Alternative texts of the images on the page."""
    return re.findall(r'alt="([^"]*)"', "".join(part.proto.body for part in app.get("html")))


def wrong_then_right(study, layer, later, model=0):
    """How many images a layer gets wrong and a later one right, counted anew."""
    probe, labels = study.probes[model], study.question.labels
    rows = [probe.predictions[probe.layers.index(name)].tolist() for name in (layer, later)]
    return sum(a != t and b == t for a, b, t in zip(*rows, labels, strict=True))


def test_shows_curves_differences_classes_confusions_and_images(open_app, figures_of, study):
    app = open_app("probes")
    assert not app.exception
    assert titles(figures_of(app)) == [
        f"Linear probe, test split, n = {SAMPLES}",
        f"Difference of linear probes, n = {SAMPLES}",
        f"Recall, test split, n = {SAMPLES}",
        "Confusions at stage2_block2",
    ]
    expected = wrong_then_right(study, "stage2_block2", "stage3_block3")
    assert 0 < expected < SAMPLES
    assert len(pictures_of(app)) == min(60, expected)
    sentence = next(text.value for text in app.markdown if "gets wrong" in text.value)
    assert f"**{expected} of {SAMPLES} images**" in sentence


def test_the_difference_is_tested_with_correction_on_the_same_images(open_app, study):
    app = open_app("probes")
    adjusted = study.paired[0].result.adjusted
    sentence = next(text.value for text in app.markdown if "differ significantly" in text.value)
    assert sentence.startswith(f"{int((adjusted < 0.05).sum())} of 10 layers differ significantly")


def test_other_scores_are_a_choice(open_app, figures_of, study):
    app = open_app("probes")
    for score, title in (
        ("neighbours_accuracy", "Nearest neighbours"),
        ("calibration_error", "Calibration error"),
        ("cross_entropy", "Cross-entropy"),
    ):
        app.segmented_control(key="score").set_value(score).run()
        assert not app.exception
        figure = figures_of(app)[0]
        assert figure["layout"]["title"]["text"].startswith(title)
        curve = next(trace for trace in figure["data"] if trace.get("name") == "BP, bp-net")
        np.testing.assert_allclose(curve["y"], getattr(study.probes[0], score))
        assert app.query_params["score"] == score


def test_the_slider_of_layers_changes_the_confusions_and_the_images(open_app, figures_of, study):
    app = open_app("probes")
    app.select_slider(key="layer").set_value("stem").run()
    assert titles(figures_of(app))[-1] == "Confusions at stem"
    assert len(pictures_of(app)) == min(60, wrong_then_right(study, "stem", "stage3_block3"))
    assert app.query_params["layer"] == "stem"


def test_boxes_narrow_the_images_to_a_cell(open_app, figures_of, study):
    app = open_app("probes", layer="stem", later="anything")
    confusion = study.probes[0].confusion[0]
    truth, taken = max(
        ((int(t), int(p)) for t, p in np.ndindex(10, 10) if t != p), key=lambda c: confusion[c]
    )
    app.selectbox(key="truth").set_value(truth).run()
    app.selectbox(key="taken").set_value(taken).run()
    assert len(pictures_of(app)) == confusion[truth, taken]
    assert all(f": {truth}, read as {taken}" in text for text in pictures_of(app))
    corners = figures_of(app)[-1]["layout"]["shapes"][-1]
    assert (corners["x0"], corners["y0"]) == (taken - 0.5, 9 - truth - 0.5)


def test_the_images_are_those_that_were_read(study):
    shown = images.of_study(study.question, "digits")
    np.testing.assert_array_equal(shown.labels, study.question.labels)
    assert shown.pixels.shape == (SAMPLES, 32, 32, 3)
    assert shown.pixels.max() > 200


def test_a_long_gallery_has_pages(open_app, study, page_warnings):
    app = open_app("probes", layer="stem", later="anything")
    wrong = round(SAMPLES * (1 - study.probes[0].accuracy[0]))
    assert wrong > 60, "the probe of an untrained stem is too good for this test"
    first = pictures_of(app)
    app.pagination[0].set_value(2).run()
    assert len(first) == 60
    assert len(pictures_of(app)) == min(60, wrong - 60)
    assert not set(first) & set(pictures_of(app))
    assert app.query_params["sheet"] == "2"
    app.selectbox(key="truth").set_value(0).run()
    assert app.session_state["sheet"] == 1
    assert page_warnings == []


def test_a_link_reproduces_the_view(open_app, figures_of, sha256s_here):
    query = {"of": sha256s_here[1][:12], "layer": "stage1_block1", "later": "stage3_block1"}
    app = open_app("probes", **query, truth="3", way="lost", score="cross_entropy")
    assert app.selectbox(key="of").value == sha256s_here[1]
    assert app.selectbox(key="later").value == "stage3_block1"
    assert app.selectbox(key="truth").value == 3
    assert app.selectbox(key="way").value == "lost"
    assert titles(figures_of(app))[-1] == "Confusions at stage1_block1"
    for name, value in query.items():
        assert app.query_params[name] == value


@pytest.mark.parametrize(
    "query", [{"layer": "nowhere"}, {"truth": "99"}, {"sheet": "77"}, {"score": "x"}, {"of": ""}]
)
def test_a_link_that_means_nothing_shows_the_defaults(open_app, query):
    app = open_app("probes", **query)
    assert not app.exception
    assert pictures_of(app)


@pytest.fixture
def sha256s_here(shipped):
    return [entry.sha256 for entry in study_of(shipped).question.checkpoints]


def study_of(folder):
    return load_study(folder / "pair.study.json")


def test_a_third_checkpoint_brings_boxes_for_the_pair(open_app, shipped, add_net, wait_for_job):
    third = add_net(shipped / "third.safetensors", "bp", 9)
    app = open_app("probes")
    chosen = [*app.multiselect(key="models").value, third]
    app.multiselect(key="models").set_value(chosen).run()
    app.number_input(key="samples").set_value(SAMPLES).run()
    app.button(key="run-probe").click().run()
    wait_for_job()
    app.run()
    assert not app.exception
    assert not app.error
    assert app.selectbox(key="first").value != app.selectbox(key="second").value
    app.selectbox(key="second").set_value(third).run()
    assert any("differ significantly" in text.value for text in app.markdown)
    # The third one's probes come from a study of its own, tested against the first all the same.
    entries = checkpoints.checkpoint_files()[0]
    request = studies.Request("probe", tuple(chosen), "digits", SAMPLES, 0, 125)
    first, *_, last = answers.probe_answers(request, entries)
    assert first.study is not last.study
    paired = answers.paired(first, last)
    hits = [
        (part.probe.predictions[0] == np.asarray(part.study.question.labels)).sum()
        for part in (first, last)
    ]
    assert paired.difference[0] == pytest.approx((hits[0] - hits[1]) / SAMPLES)


def test_probes_of_other_images_are_not_tested_against_each_other(study, shipped):
    entries = checkpoints.checkpoint_files()[0]
    request = studies.Request("probe", (), "digits", SAMPLES, 0, 125)
    first, second = answers.probe_answers(request, entries)
    assert not isinstance(answers.paired(first, second), str)
    from dataclasses import replace

    question = replace(study.question, images_sha256="d" * 64)
    other = replace(second, study=replace(study, question=question))
    assert answers.paired(first, other) == "the two were not scored on the same images"


def test_a_study_of_an_older_format_says_what_it_lacks_until_run_again(
    open_app, figures_of, shipped, library, study
):
    fill(shipped)  # the same checkpoints, with a study of 1,000 images as format 1 had it
    app = open_app("probes")
    assert not app.exception
    words = [text.value for text in app.markdown]
    assert any("were computed before classes, single images" in text for text in words)
    assert app.button(key="run-probe").label == "Run probes again"
    assert len(figures_of(app)) == 1
    from dataclasses import replace

    (library / "studies").mkdir(parents=True)
    question = replace(study.question, samples=1000)  # as if it were of these images
    save_study(replace(study, question=question), library / "studies" / "again.study.json")
    again = open_app("probes")
    assert "run-probe" not in [button.key for button in again.button]
    assert len(figures_of(again)) == 4


def test_data_that_are_not_here_are_said_to_be_missing(open_app, shipped, real_folder_study):
    app = open_app("probes", data="imagefolder:gone")
    assert not app.exception
    assert "No images to show" in [heading.value for heading in app.subheader]
    text = " ".join(part.value for part in app.markdown).replace("\\", "")
    assert "there is no folder gone with train/CLASS/* and test/CLASS/*" in text
    assert not pictures_of(app)


@pytest.fixture
def real_folder_study(shipped, study):
    """The study as if it were about a folder that is elsewhere."""
    from dataclasses import replace

    question = replace(study.question, dataset="imagefolder:gone", dataset_title="gone")
    save_study(replace(study, question=question), shipped / "pair.study.json")


def test_other_images_of_the_same_name_are_not_shown(open_app, shipped, study):
    from dataclasses import replace

    question = replace(study.question, images_sha256="d" * 64)
    save_study(replace(study, question=question), shipped / "pair.study.json")
    app = open_app("probes")
    assert not pictures_of(app)
    assert any("are not those that were read" in part.value for part in app.markdown)


def test_a_layer_without_a_probe_says_why_on_hover(open_app, figures_of, shipped, study):
    from dataclasses import replace

    probe = study.probes[0]
    accuracy, recall, confusion = (
        np.array(part, copy=True) for part in (probe.accuracy, probe.recall, probe.confusion)
    )
    predictions = np.array(probe.predictions, copy=True)
    accuracy[0], recall[0], confusion[0], predictions[0] = math.nan, math.nan, -1, -1
    dead = replace(
        probe,
        accuracy=accuracy,
        recall=recall,
        confusion=confusion,
        predictions=predictions,
        undefined={"stem": "its features are the same for every image"},
    )
    save_study(replace(study, probes=(dead, study.probes[1])), shipped / "pair.study.json")
    app = open_app("probes", layer="stem")
    assert not app.exception
    hover = figures_of(app)[-1]["data"][1]["hovertext"]
    assert "undefined: its features are the same for every image" in hover[0]
    assert not pictures_of(app)


def test_options_are_part_of_the_question(open_app):
    app = open_app("probes", penalty="10", probe_pooling="2")
    assert app.selectbox(key="penalty").value == 10.0
    assert app.selectbox(key="probe_pooling").value == 2
    assert app.button(key="run-probe").label == "Run probes"
    assert (app.query_params["penalty"], app.query_params["probe_pooling"]) == ("10", "2")


def test_options_reach_the_run(open_app, wait_for_job, monkeypatch):
    seen = []

    def work(request, entries):
        def steps(report, cancelled):
            seen.append(dict(request.options))
            raise Cancelled("stopped")

        return steps

    monkeypatch.setattr(computing, "_work", work)
    app = open_app("probes", penalty="0", probe_pooling="4")
    app.button(key="run-probe").click().run()
    wait_for_job()
    app.run()
    assert seen == [{"penalties": (0.1, 1.0, 10.0, 100.0, 1000.0), "probe_pooling": 4}]
    assert app.info[0].value == "Cancelled; nothing was saved."


def test_a_running_job_shows_progress_and_can_be_cancelled(open_app, wait_for_job, monkeypatch):
    reached = threading.Event()

    def work(request, entries):
        def steps(report, cancelled):
            report("Fitting probes", 3, 20)
            reached.set()
            while not cancelled():
                threading.Event().wait(0.01)
            raise Cancelled("stopped")

        return steps

    monkeypatch.setattr(computing, "_work", work)
    app = open_app("probes", samples="40")
    app.button(key="run-probe").click().run()
    assert reached.wait(10)
    app.run()
    assert "Fitting probes, 3 of 20" in app.get("progress")[0].text
    next(button for button in app.button if button.label == "Cancel").click().run()
    wait_for_job()


def test_the_gallery_as_a_table_has_a_line_an_image(study):
    labels = np.asarray(study.question.labels)
    gallery = Gallery("stem", "stage3_block3")
    text = texts_probes.gallery_csv(
        study.probes[0], labels, study.question.classes, np.arange(SAMPLES), gallery
    )
    expected = wrong_then_right(study, "stem", "stage3_block3")
    assert len(text.splitlines()) == 1 + expected
