"""Comparing two checkpoints."""

from __future__ import annotations

import base64
import csv
import io
import threading
from dataclasses import replace

import numpy as np
import pytest

from analysis.errors import Cancelled
from analysis.study import save_study
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
    assert not app.error
    assert app.get("plotly_chart")
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
    app.number_input(key="samples").set_value(9).run()
    app.number_input(key="batch_size").set_value(4).run()
    app.button(key="run-cka").click().run()
    wait_for_job()
    app.run()
    assert not app.exception
    assert "at least 4 images in every batch" in app.error[0].value
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


# ------------------------------------------------------------------------------- queue and parts


@pytest.fixture
def slow_work(publishing, make_study):
    """Jobs that publish half a CKA and wait."""

    def part(request, entries):
        study = make_study([entry.sha256 for entry in entries])
        return replace(study, question=replace(study.question, samples=request.samples))

    publishing.make = part
    return publishing


def press(app, label):
    next(button for button in app.button if button.label == label).click().run()


def run_with(app, samples):
    app.number_input(key="samples").set_value(samples).run()
    app.button(key="run-cka").click().run()


def test_the_map_shows_while_batches_come_in_and_cancel_keeps_it(
    open_app, slow_work, wait_for_job, figures_of
):
    app = open_app("similarity")
    run_with(app, 500)
    assert slow_work.published.wait(10)
    app.run()
    assert map_figure(figures_of(app))
    assert any("Partial" in caption.value for caption in app.caption)
    assert "run-cka" not in {button.key for button in app.button}
    press(app, "Cancel")
    wait_for_job()
    app.run()
    assert map_figure(figures_of(app))
    words = " ".join(text.value for text in app.markdown).replace("\\", "")
    assert "**Partial**: stopped after 4 of 10 layers" in words
    assert app.button(key="run-cka").label == "Compare in full"
    # A part is never taken for the answer.
    assert not app.get("download_button")


def test_a_second_question_waits_for_its_turn_and_can_leave_the_queue(
    open_app, slow_work, wait_for_job
):
    app = open_app("similarity")
    run_with(app, 500)
    assert slow_work.published.wait(10)
    app.number_input(key="samples").set_value(600).run()
    assert "after 1 job that comes first" in " ".join(text.value for text in app.markdown)
    app.button(key="run-cka").click().run()
    assert any(caption.value == "Waiting: 1 job first" for caption in app.caption)
    assert [job.state for job in computing.registry().waiting()] == ["queued"]
    # The running one is in the sidebar, the waiting one on the page.
    assert "4 of 10" in app.sidebar.get("progress")[0].text
    main = [button for button in app.main.button if button.label == "Cancel"]
    main[0].click().run()
    assert computing.registry().waiting() == []
    assert app.info[0].value == "Cancelled; nothing was saved."
    assert [request.samples for request in slow_work.asked] == [500]


# -------------------------------------------------------------------------- measures and options


@pytest.mark.parametrize("measure", ["procrustes", "predictivity"])
def test_another_measure_has_map_curves_and_numbers(open_app, wait_for_job, figures_of, measure):
    app = open_app("similarity", samples="40")
    app.selectbox(key="measure").set_value(measure).run()
    app.button(key=f"run-{measure}").click().run()
    wait_for_job()
    app.run()
    assert not app.exception
    assert not app.error
    assert len(app.get("plotly_chart")) == 4
    assert app.query_params["measure"] == measure
    assert app.metric[0].value != "undefined"
    assert app.metric[2].label == "Chance level"
    app.segmented_control(key="map").set_value("B-B").run()
    assert app.button(key=f"run-{measure}").label == "Compare"


def test_options_are_part_of_the_question_and_of_the_link(open_app, wait_for_job, figures_of):
    app = open_app("similarity", samples="32", batch_size="8")
    app.segmented_control(key="kernel").set_value("rbf").run()
    app.number_input(key="bandwidth").set_value(0.5).run()
    app.toggle(key="floor").set_value(True).run()
    app.button(key="run-cka").click().run()
    wait_for_job()
    app.run()
    assert not app.error
    figures = figures_of(app)
    assert "RBF CKA (0.5 medians)" in figures[0]["layout"]["title"]["text"]
    same_depth = next(f for f in figures if "same depth" in f["layout"]["title"]["text"])
    assert any("floor" in (trace.get("name") or "") for trace in same_depth["data"])
    link = {name: app.query_params[name] for name in ("kernel", "bandwidth", "floor")}
    again = open_app("similarity", samples="32", batch_size="8", **link)
    assert figures_of(again)[0]["layout"]["title"] == figures[0]["layout"]["title"]
    again.toggle(key="floor").set_value(False).run()
    figures = figures_of(again)
    same_depth = next(f for f in figures if "same depth" in f["layout"]["title"]["text"])
    assert not any("floor" in (trace.get("name") or "") for trace in same_depth["data"])


def test_features_can_be_pooled_or_whole(open_app):
    app = open_app("similarity")
    assert app.selectbox(key="pooling").options[0] == "Whole features"
    assert app.selectbox(key="pooling").value == 0
    app.selectbox(key="pooling").set_value(1).run()
    assert app.button(key="run-cka").label == "Compare"
    assert app.query_params["pooling"] == "1"
    app.selectbox(key="pooling").set_value(0).run()
    assert "pooling" not in app.query_params
    assert app.get("plotly_chart")


def test_another_split_is_another_question(open_app):
    app = open_app("similarity")
    app.segmented_control(key="split").set_value("train").run()
    assert app.button(key="run-cka").label == "Compare"
    assert app.query_params["split"] == "train"
    again = open_app("similarity", split="train")
    assert again.segmented_control(key="split").value == "train"


def test_each_with_itself_and_their_difference_have_common_scales(open_app, figures_of):
    app = open_app("similarity", map="all")
    heatmaps = [f["data"][0] for f in figures_of(app) if f["data"][0]["type"] == "heatmap"]
    assert [(h["zmin"], h["zmax"]) for h in heatmaps[:3]] == [(0, 1)] * 3
    assert heatmaps[3]["zmin"] == -heatmaps[3]["zmax"]
    app.segmented_control(key="map").set_value("difference").run()
    assert not app.exception
    assert "difference" in map_figure(figures_of(app))["layout"]["title"]["text"]
    assert app.metric[-1].label == "CKA of B with B"


def test_many_checkpoints_are_compared_at_once(
    open_app, shipped, add_net, wait_for_job, figures_of
):
    third = add_net(shipped / "third.safetensors", "dgl", 7)
    app = open_app("similarity", samples="32", batch_size="8")
    app.multiselect(key="more").set_value([third]).run()
    app.button(key="run-cka").click().run()
    wait_for_job()
    app.run()
    plane = next(f for f in figures_of(app) if "plane" in f["layout"]["title"]["text"])
    names = [trace["name"] for trace in plane["data"] if trace.get("name")]
    assert names == ["BP, bp-net", "AugLocal, auglocal-net", "DGL, third"]
    assert app.query_params["more"] == third[:12]


def test_images_of_both_layers_are_seen_through_pca(open_app, figures_of):
    app = open_app("similarity", view="images", pair_image="7")
    assert not app.exception
    assert not app.error
    titles = [f["layout"]["title"]["text"] for f in figures_of(app)]
    assert {"A: stage2_block2", "B: stage2_block2"} <= set(titles)
    points = next(f for f in figures_of(app) if f["layout"]["title"]["text"].startswith("A: "))
    assert sum(len(trace.get("customdata", ())) for trace in points["data"]) == 300
    assert app.number_input(key="pair_image").value == 7
    app.number_input(key="pair_image").set_value(9).run()
    assert app.query_params["pair_image"] == "9"


# -------------------------------------------------------------------------- ceiling and floor


@pytest.fixture
def with_ceiling(shipped, sha256s, add_net, make_study):
    """The pair's study with a second seed of B's rule; returns its checksum."""
    third = add_net(shipped / "seed1.safetensors", "auglocal", 7)
    study = make_study(
        [*sha256s, third],
        names=("bp-net", "auglocal-net", "seed1"),
        rules=("bp", "auglocal", "auglocal"),
        starts=(0.5, 0.6, 0.6),
    )
    *compared, last = study.question.checkpoints
    checkpoints = (*compared, replace(last, role="ceiling"))
    values = study.cka.values.copy()
    values[10:20, 20:] += 0.06  # the second seed is nearer to B than A is
    values[20:, 10:20] += 0.06
    cka = replace(study.cka, values=values)
    question = replace(study.question, checkpoints=checkpoints)
    save_study(replace(study, question=question, cka=cka), shipped / "pair.study.json")
    return third


def colours_of(heatmap):
    """The numbers of a heatmap, which plotly sends as bytes."""
    numbers = heatmap["z"]
    return np.frombuffer(base64.b64decode(numbers["bdata"]), numbers["dtype"])


def test_a_map_minus_the_ceiling_says_what_the_rule_changes(open_app, figures_of, with_ceiling):
    app = open_app("similarity", map="ceiling", row="stem", column="stem")
    assert not app.exception
    figure = map_figure(figures_of(app))
    # A with B is 0.9 at equal depth, the second seed with B 0.96
    values = colours_of(figure["data"][0])
    np.testing.assert_allclose(values, -0.06, atol=1e-9)
    assert figure["data"][0]["zmin"] == -figure["data"][0]["zmax"]
    hover = figure["data"][1]["hovertext"][0]
    assert "difference -0.060" in hover
    assert "seed1 with auglocal-net: 0.960 (95%: 0.880 to 0.920)" in hover
    numbers = {metric.label: metric.value for metric in app.metric}
    assert (numbers["CKA"], numbers["CKA of the ceiling"]) == ("0.900", "0.960")
    captions = " ".join(caption.value for caption in app.caption).replace("\\", "")
    assert "The ceiling: seed1 with auglocal-net." in captions
    assert "No map minus a floor (an untrained network)" in captions


def test_all_differences_share_a_scale(open_app, figures_of, with_ceiling):
    app = open_app("similarity", map="all")
    assert not app.exception
    maps = [f["data"][0] for f in figures_of(app) if f["data"][0]["type"] == "heatmap"]
    assert [(h["zmin"], h["zmax"]) for h in maps[:3]] == [(0, 1)] * 3
    ends = [(h["zmin"], h["zmax"]) for h in maps[3:]]
    np.testing.assert_allclose(ends, [(-0.06, 0.06)] * 2)
    # Both networks are alike in themselves, so that their own difference is none.
    assert np.abs(colours_of(maps[3])).max() == 0


def test_without_a_ceiling_the_control_says_why_there_is_no_such_map(open_app):
    app = open_app("similarity", map="ceiling")
    assert not app.exception
    assert app.segmented_control(key="map").value == "A-B"
    assert "A with B minus ceiling" not in app.segmented_control(key="map").options
    captions = " ".join(caption.value for caption in app.caption)
    assert "No map minus a ceiling (such as a second seed of A or B) or a floor" in captions
    app.toggle(key="floor").set_value(True).run()
    assert "A with B minus floor" in app.segmented_control(key="map").options


def test_another_measure_can_be_held_against_the_floor(open_app, wait_for_job, figures_of):
    app = open_app("similarity", samples="40", measure="rsa", floor="True", map="floor")
    app.button(key="run-rsa").click().run()
    wait_for_job()
    app.run()
    assert not app.exception
    assert not app.error
    figure = map_figure(figures_of(app))
    # Of half a page's width: the measure's whole name would be cut.
    assert figure["layout"]["title"]["text"] == "RSA minus the floor, test split, n = 40"
    assert app.metric[-1].label == "RSA of the floor"
    # The curves have the floor beside them.
    assert any("floor" in (t.get("name") or "") for f in figures_of(app) for t in f["data"])
