"""Who copies which layers, what it costs, and the command."""

from __future__ import annotations

import csv
import io
import json
import shlex

import pytest

from app import texts_auxiliary
from app.sources import plans
from app.sources.plans import Setting
from auglocal import __main__ as auglocal
from auglocal.commands.shared import chosen_config
from auglocal.config import TrainConfig

SMALL = Setting(architecture="resnet20", width=0.5, auxiliary_depth=3, pyramid=1.0)


def figure(app, figures_of, title):
    return next(
        chart for chart in figures_of(app) if chart["layout"]["title"]["text"].startswith(title)
    )


def test_the_plan_is_the_one_that_the_command_prints(capsys):
    command = "plan --architecture resnet20 --width 0.5 --auxiliary-depth 3 --pyramid 1 --json"
    assert auglocal.main(command.split()) == 0
    assert json.loads(capsys.readouterr().out) == json.loads(json.dumps(plans.plan(SMALL).plan))


def test_the_page_shows_the_published_ratios_of_resnet32(open_app, figures_of):
    app = open_app("auxiliary")
    assert not app.exception
    values = {metric.label: (metric.value, metric.delta) for metric in app.metric}
    assert values["Parameters in training"] == ("1,807,964", "3.87 x BP")
    assert values["FLOP a step"][1] == "2.38 x BP"
    assert values["Held for backward, at most"][1] == "0.231 of BP"
    assert values["Blocks that learn by themselves"] == ("14", "of 16 layers")
    assert len(figures_of(app)) == 3


def test_the_map_has_a_cell_for_every_copy(open_app, figures_of):
    app = open_app("auxiliary")
    drawn = set()
    for trace in figure(app, figures_of, "Which later")["data"]:
        if trace["type"] == "heatmap":
            drawn |= {
                (row, column)
                for row, values in enumerate(trace["z"])
                for column, value in enumerate(values)
                if value is not None
            }
    plan = plans.plan(Setting()).plan
    copies = {(row["layer"], index) for row in plan["auxiliaries"] for index in row["selected"]}
    assert drawn == copies
    assert all(column > row for row, column in drawn)


def test_the_box_picks_the_local_layer_without_a_mouse(open_app, figures_of):
    app = open_app("auxiliary")
    app.selectbox(key="aux_layer").set_value("stage2_block2").run()
    assert figure(app, figures_of, "What trains stage2_block2")
    assert app.query_params["aux_layer"] == "stage2_block2"
    text = next(text.value for text in app.markdown if "learns through" in text.value)
    assert text.startswith("**stage2\\_block2** learns through 2 fresh copies")


def test_a_link_reproduces_the_view_and_drops_what_means_nothing(open_app):
    query = {
        "aux_architecture": "resnet20",
        "aux_rule": "auglocal",
        "aux_depth": "3",
        "aux_pyramid": "1.0",
        "aux_images": "cifar100",
        "aux_layer": "stage1_block2",
        "aux_batch": "64",
    }
    app = open_app("auxiliary", **query, aux_width="wide")
    assert not app.exception
    assert {name: app.query_params[name] for name in query} == query
    assert app.number_input(key="aux_width").value == 1.0
    assert "--auxiliary-depth=3" in app.code[0].value
    assert "--dataset=cifar100" in app.code[0].value


def test_the_command_parses_and_asks_for_the_same(open_app):
    app = open_app("auxiliary", aux_architecture="resnet20", aux_depth="3", aux_images="svhn")
    words = shlex.split(app.code[0].value)
    assert words[:4] == ["python", "-m", "auglocal", "train"]
    options = auglocal.make_parser().parse_args(words[3:])
    config = TrainConfig(**chosen_config(options))
    assert config.architecture == "resnet20"
    assert config.auxiliary_depth == 3
    assert config.dataset == "svhn"
    assert options.download


def test_bp_has_one_block_and_no_local_layer(open_app, figures_of):
    app = open_app("auxiliary", aux_rule="bp")
    assert not app.exception
    assert {metric.label: metric.value for metric in app.metric}["Blocks that learn by themselves"]
    assert "One block" in figures_of(app)[0]["layout"]["title"]["text"]
    assert not [box for box in app.selectbox if box.key == "aux_layer"]


def test_rules_without_copies_say_what_layers_learn_from(open_app, figures_of):
    app = open_app("auxiliary", aux_rule="dgl", aux_architecture="resnet20")
    assert not app.exception
    assert any("1x1 convolutions" in text.value for text in app.markdown)
    assert len(figures_of(app)) == 2


def test_a_setting_that_cannot_be_is_told_in_a_sentence(open_app, figures_of):
    app = open_app("auxiliary", aux_architecture="resnet20", aux_depth="9")
    assert not app.exception
    assert "nothing is left to learn locally" in app.warning[0].value
    assert not figures_of(app)


def test_the_csv_has_a_line_a_layer_and_adds_up():
    answer = plans.plan(SMALL)
    rows = list(csv.DictReader(io.StringIO(texts_auxiliary.csv_text(answer))))
    assert [row["layer"] for row in rows] == [layer["name"] for layer in answer.plan["layers"]]
    copied = sum(int(row["auxiliary_parameters"] or 0) for row in rows)
    assert copied == answer.plan["parameters"]["auxiliary"]
    assert rows[0]["copies"] == " ".join(map(str, answer.plan["auxiliaries"][0]["selected"]))


def test_what_is_held_grows_within_a_block_and_starts_anew_after_it():
    answer = plans.plan(SMALL)
    bp = texts_auxiliary.held_by_layer(answer.bp.layers, answer.bp.blocks)
    assert bp == sorted(bp)
    assert bp[-1] + answer.bp.head.saved == answer.bp.saved
    rows = texts_auxiliary.cost_rows(answer)
    held = [own + extra for own, extra in zip(rows[2].layers, rows[2].auxiliaries)]
    assert max(held) * 2**20 == pytest.approx(answer.costs.saved, rel=0.01)


def test_images_of_named_data_sets_are_what_training_takes():
    from auglocal.data import SOURCES

    assert set(plans.IMAGES) == set(SOURCES)
    for name, images in plans.IMAGES.items():
        source = SOURCES[name]
        assert images.title == source.title
        num_classes = getattr(source, "num_classes", None) or len(source.classes)
        assert images.num_classes == num_classes


def test_the_run_can_be_set_up_on_the_page_that_trains(open_app):
    app = open_app("auxiliary", aux_architecture="resnet20", aux_depth="3", aux_images="digits")
    next(button for button in app.button if button.label == "Set up this run").click().run()
    assert app.title[0].value == "Train"
    assert app.number_input(key="train_auxiliary_depth").value == 3
