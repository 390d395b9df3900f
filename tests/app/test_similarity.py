"""Comparing two checkpoints."""

from __future__ import annotations

import csv
import io
import threading

import pytest

from analysis.errors import Cancelled
from app.sources import computing, studies


def map_figure(figures):
    return next(figure for figure in figures if figure["data"][0]["type"] == "heatmap")


def test_shows_a_shipped_study_at_once(open_app, figures_of):
    app = open_app("similarity")
    assert not app.exception
    titles = [figure["layout"]["title"]["text"] for figure in figures_of(app)]
    assert "Linear CKA, test split, n = 1,000" in titles
    assert "Linear CKA at the same depth, test split, n = 1,000" in titles
    assert not [button for button in app.button if button.label == "Compare"]


def test_boxes_choose_the_cell_that_is_outlined_and_described(open_app, figures_of):
    app = open_app("similarity")
    app.selectbox(key="row").set_value("stem").run()
    app.selectbox(key="column").set_value("stage1_block2").run()
    # 1 - 0.1 between networks - 2 layers of 0.05
    values = {metric.label: metric.value for metric in app.metric}
    assert values["CKA"] == "0.800"
    assert values["95% interval"] == "0.780 to 0.820"
    outline = map_figure(figures_of(app))["layout"]["shapes"][-1]
    assert (outline["x0"], outline["y0"]) == (1.5, -0.5)


def test_an_undefined_cell_says_why(open_app, shipped, refill):
    refill(undefined="stage3_block3")
    app = open_app("similarity")
    app.selectbox(key="column").set_value("stage3_block3").run()
    assert not app.exception
    assert app.metric[0].value == "undefined"
    assert any("same for every image" in caption.value for caption in app.caption)


def test_each_network_can_be_compared_with_itself(open_app, figures_of):
    app = open_app("similarity")
    app.segmented_control(key="map").set_value("B-B").run()
    layout = map_figure(figures_of(app))["layout"]
    assert "auglocal-net" in layout["xaxis"]["title"]["text"]
    assert "auglocal-net" in layout["yaxis"]["title"]["text"]


def test_a_link_reproduces_the_view(open_app, sha256s):
    query = {"a": sha256s[1][:12], "b": sha256s[0][:12], "row": "stem", "column": "stage2_block1"}
    app = open_app("similarity", **query, map="A-B")
    assert app.selectbox(key="a").value == sha256s[1]
    assert app.metric[0].value == "0.700"
    assert app.query_params["row"] == "stem"
    assert app.query_params["a"] == sha256s[1][:12]


def test_a_link_to_a_checkpoint_elsewhere_says_so(open_app):
    app = open_app("similarity", a="0123456789ab")
    assert not app.exception
    assert app.warning[0].value == "This link refers to a checkpoint not on this machine."


def test_one_missing_checkpoint_of_two_is_enough_to_say_so(open_app, sha256s):
    app = open_app("similarity", a="0123456789ab", b=sha256s[0][:12])
    assert app.selectbox(key="b").value == sha256s[0]
    assert "not on this machine" in app.warning[0].value
    app.selectbox(key="a").set_value(sha256s[1]).run()
    assert not app.warning


def test_choices_survive_a_visit_to_another_page(open_app):
    app = open_app("similarity")
    app.selectbox(key="row").set_value("stem").run()
    app.switch_page("views/overview.py").run()
    app.switch_page("views/similarity.py").run()
    assert app.selectbox(key="row").value == "stem"
    assert app.query_params["row"] == "stem"


def test_the_colours_stretch_only_when_asked(open_app, figures_of):
    app = open_app("similarity")
    assert map_figure(figures_of(app))["data"][0]["zmin"] == 0
    app.toggle(key="stretch").set_value(True).run()
    assert map_figure(figures_of(app))["data"][0]["zmin"] > 0


def test_a_folder_of_images_can_be_typed_in(open_app, wait_for_job, image_folder):
    app = open_app("similarity")
    app.selectbox(key="data").set_value("folder").run()
    assert app.button(key="run-cka").disabled
    app.text_input(key="folder_path").set_value(str(image_folder)).run()
    app.button(key="run-cka").click().run()
    wait_for_job()
    app.run()
    assert not app.exception
    assert "This could not be computed" in app.error[0].value
    again = open_app("similarity", data=f"imagefolder:{image_folder}")
    assert again.text_input(key="folder_path").value == str(image_folder)


def test_offers_what_to_do_where_there_are_no_checkpoints(open_app, monkeypatch, tmp_path):
    monkeypatch.setenv("AUGLOCAL_SHIPPED", str(tmp_path))
    app = open_app("similarity")
    assert not app.exception
    assert app.subheader[0].value == "No checkpoints yet"


def test_other_settings_are_computed_in_a_job_and_kept(open_app, wait_for_job, figures_of):
    app = open_app("similarity")
    app.number_input(key="samples").set_value(24).run()
    app.number_input(key="batch_size").set_value(8).run()
    assert "Not computed yet" in " ".join(text.value for text in app.markdown)
    app.button(key="run-cka").click().run()
    wait_for_job()
    app.run()
    assert not app.exception
    assert not app.error
    assert "n = 24" in figures_of(app)[0]["layout"]["title"]["text"]
    again = open_app("similarity", samples="24", batch_size="8")
    assert "n = 24" in figures_of(again)[0]["layout"]["title"]["text"]


def test_a_failed_job_is_explained_in_one_sentence(open_app, wait_for_job):
    app = open_app("similarity")
    app.number_input(key="samples").set_value(5000).run()
    app.button(key="run-cka").click().run()
    wait_for_job()
    app.run()
    assert not app.exception
    assert "5,000" in app.error[0].value
    assert "Traceback" not in app.error[0].value


def test_a_running_job_shows_progress_and_can_be_cancelled(open_app, wait_for_job, monkeypatch):
    reached = threading.Event()

    def work(request, entries):
        def steps(report, cancelled):
            report("Reading test images", 1, 4)
            reached.set()
            while not cancelled():
                threading.Event().wait(0.01)
            raise Cancelled("stopped")

        return steps

    monkeypatch.setattr(computing, "_work", work)
    app = open_app("similarity")
    app.number_input(key="samples").set_value(16).run()
    app.button(key="run-cka").click().run()
    assert reached.wait(10)
    app.run()
    assert "Reading test images, 1 of 4" in app.get("progress")[0].text
    elsewhere = open_app()
    assert "Reading test images" in elsewhere.sidebar.get("progress")[0].text
    next(button for button in app.button if button.label == "Cancel").click().run()
    wait_for_job()
    app.run()
    assert app.info[0].value == "Cancelled; nothing was saved."


def test_a_job_that_the_last_server_did_not_end_is_called_interrupted(open_app, library):
    app = open_app("similarity")
    app.number_input(key="samples").set_value(40).run()
    sha256s = (app.selectbox(key="a").value, app.selectbox(key="b").value)
    key = studies.Request("cka", sha256s, "digits", 40, 0, 125).key
    (library / "jobs").mkdir(parents=True)
    (library / "jobs" / f"{key}.json").write_text(
        '{"title": "t", "state": "running", "message": ""}'
    )
    app.run()
    assert app.info[0].value == "Interrupted, because the app was closed; run it again."


def test_the_map_can_be_taken_away_as_a_table(make_study):
    from app.texts import map_csv

    study = make_study(undefined="stem")
    rows = list(csv.DictReader(io.StringIO(map_csv(study.cka.pair("bp-net", "auglocal-net")))))
    assert len(rows) == 100
    assert float(rows[1]["cka"]) == pytest.approx(0.85)
    assert rows[0]["cka"] == ""
    assert "same for every image" in rows[0]["reason"]


def test_data_that_are_not_on_this_machine_are_said_to_be_missing(open_app, sha256s, tmp_path):
    folder = tmp_path / "nowhere"
    app = open_app(
        "similarity", a=sha256s[0], b=sha256s[1], data=f"imagefolder:{folder}", samples=40
    )
    assert "The images are not here" in [heading.value for heading in app.subheader]
    assert not [button for button in app.button if button.label == "Compare"]
