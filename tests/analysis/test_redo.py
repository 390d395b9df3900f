"""python -m analysis redo: a study comes out again, or the command says what moved."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from analysis.__main__ import main

SMALL = ["--samples", "12", "--batch-size", "4", "--device", "cpu", "--train-samples", "20"]
NAME = "pair.study.json"


@pytest.fixture
def study(checkpoints, tmp_path, monkeypatch, capsys) -> Path:
    """A study of two small networks, in the folder where the test runs."""
    for path in checkpoints:
        shutil.copy(path, tmp_path)
    monkeypatch.chdir(tmp_path)
    names = ["first.safetensors", "second.safetensors"]
    measures = ["--measures", "cka,probe,procrustes,geometry"]
    assert main(["study", *names, *SMALL, *measures, "--out", NAME]) == 0
    capsys.readouterr()
    return tmp_path / NAME


def change(study: Path, part: str, edit) -> None:
    record = json.loads(study.read_text())
    edit(record[part])
    study.write_text(json.dumps(record))


def test_the_same_answers_come_out_of_every_measure(study, capsys):
    assert main(["redo", NAME, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)[NAME]
    assert {row["measure"].split()[0] for row in rows} >= {"cka", "probe", "procrustes"}
    assert any("participation_ratio" in row["measure"] for row in rows)
    assert rows[0]["count"] == 400  # all pairs of the 10 layers of both
    assert all(row["largest"] < 1e-6 and row["undefined"] == 0 for row in rows)


def test_a_value_that_left_its_interval_is_counted(study, capsys):
    def edit(answers):
        for name in ("values", "low", "high"):
            answers["cka"][name][0][3] = 0.99

    change(study, "answers", edit)
    assert main(["redo", NAME, "--out", "again"]) == 1
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("cka")]
    assert line.split()[3] == "1"
    assert Path("again", NAME).is_file()


def test_other_checkpoints_of_the_same_name_are_refused(study, capsys):
    shutil.copy("second.safetensors", "first.safetensors")
    assert main(["redo", NAME]) == 2
    assert "the checkpoints are not those of the study" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["", "rm -rf .", "python -m analysis report x", "'"])
def test_a_command_of_another_program_is_never_run(study, capsys, command):
    change(study, "provenance", lambda provenance: provenance.update(command=command))
    assert main(["redo", NAME]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert Path("first.safetensors").is_file()


def test_what_follows_the_command_is_an_option_and_nothing_else(study, capsys):
    def edit(provenance):
        provenance["command"] += "; touch gone"

    change(study, "provenance", edit)
    with pytest.raises(SystemExit, match="2"):
        main(["redo", NAME])
    assert not Path("gone").exists()
