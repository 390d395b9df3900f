"""How to redo a study: the command and the Python lines that the pages show."""

from __future__ import annotations

import json
import shlex
from dataclasses import replace
from pathlib import Path

import pytest

from analysis.study import load_study
from app import redo, texts


@pytest.fixture
def paths(shipped, sha256s):
    names = ("bp-net", "auglocal-net")
    return {
        sha256: shipped / f"{name}.safetensors" for sha256, name in zip(sha256s, names, strict=True)
    }


def recorded(study, command):
    return replace(study, provenance=replace(study.provenance, command=command))


def test_the_python_lines_compute_the_study_again(
    make_study, sha256s, paths, tmp_path, monkeypatch
):
    study = recorded(
        make_study(sha256s),
        "python -m analysis study bp-net.safetensors auglocal-net.safetensors --measures cka,rsa "
        "--dataset digits --split test --samples 40 --seed 3 --batch-size 8 --num-shuffles 5 "
        "--floor 2 --out kept.study.json",
    )
    lines = redo.python_lines(study, "digits", paths)
    monkeypatch.chdir(tmp_path)
    exec(compile(lines, "lines", "exec"), {})
    again = load_study(tmp_path / "again.study.json")
    assert [entry.sha256 for entry in again.question.checkpoints[:2]] == sha256s
    assert again.question.checkpoints[2].role == "floor"
    assert again.question.checkpoints[2].seed == 2
    assert again.question.measures == ("cka", "rsa")
    assert (again.question.samples, again.question.seed, again.question.batch_size) == (40, 3, 8)
    assert again.cka.num_shuffles == 5


def test_the_command_names_files_and_folder_as_they_are_here(make_study, sha256s, paths):
    study = recorded(
        make_study(sha256s),
        "python -m analysis study a.safetensors a.safetensors --dataset imagefolder:images "
        "--ceiling c.safetensors --out x.study.json",
    )
    words = shlex.split(redo.command_lines(study, "imagefolder:/my images", paths))
    assert words[4:6] == [str(path) for path in paths.values()]
    assert words[words.index("--dataset") + 1] == "imagefolder:/my images"
    assert words[words.index("--ceiling") + 1] == "c.safetensors"


@pytest.mark.parametrize("command", ["make study", "python -m analysis fly to the moon"])
def test_a_command_of_another_kind_stays_as_it_is(make_study, command):
    study = recorded(make_study(), command)
    assert redo.command_lines(study, "digits", {}) == command
    assert redo.python_lines(study, "digits", {}) is None


def test_what_is_at_its_default_is_left_out(make_study, sha256s, paths):
    lines = redo.python_lines(make_study(sha256s), "digits", paths)
    assert "kernel" not in lines
    assert "samples=1000" in lines
    assert lines.count("auxiliaries=True") == 2
    assert str(Path(next(iter(paths.values())))) in lines


def test_tables_become_one_document_with_numbers_and_nulls():
    document = json.loads(texts.tables_json({"Map": "layer,cka\nstem,0.5\nhead,\n"}))
    assert document == {"Map": [{"layer": "stem", "cka": 0.5}, {"layer": "head", "cka": None}]}


@pytest.mark.parametrize(("page", "table"), [("similarity", "Map"), ("probes", "Curves")])
def test_a_page_offers_everything_to_take_away(open_app, page, table):
    app = open_app(page)
    labels = [button.label for button in app.get("download_button")]
    assert labels[-3:] == ["All tables (JSON)", "Study (JSON)", "Report (HTML)"]
    assert labels[0] == f"{table} (CSV)"
    commands = [code.value for code in app.code]
    assert commands[0].startswith("python -m analysis study")
    assert "run_study(" in commands[1]
    app.segmented_control(key="picture_form").set_value("svg").run()
    configs = [json.loads(chart.proto.config) for chart in app.get("plotly_chart")]
    assert {config["toImageButtonOptions"]["format"] for config in configs} == {"svg"}


def test_chosen_names_are_in_the_python_lines(make_study, sha256s, paths):
    study = recorded(
        make_study(sha256s),
        "python -m analysis study bp.safetensors al.safetensors '--name=My net' --name=other "
        "--dataset digits --out x.study.json",
    )
    lines = redo.python_lines(study, "digits", paths)
    assert ', name="My net"),' in lines
    assert lines.startswith("from dataclasses import replace\n")
    assert "'--name=My net'" in redo.command_lines(study, "digits", paths)
    compile(lines, "lines", "exec")
