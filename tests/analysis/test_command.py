"""python -m analysis: documents, tables, files, sentences and exit statuses."""

from __future__ import annotations

import json
import shlex
import shutil

import numpy as np
import pytest

import analysis.reading
from analysis.__main__ import main
from analysis.study import load_study

SMALL = ["--samples", "12", "--batch-size", "4", "--device", "cpu"]
FEW = [*SMALL, "--train-samples", "20"]


@pytest.fixture
def pair(checkpoints):
    return [str(path) for path in checkpoints]


@pytest.fixture
def no_work(monkeypatch):
    """Fail where a command starts to work although its input is wrong."""
    monkeypatch.setattr("analysis.features.stream_features", pytest.fail)


# ------------------------------------------------------------------------ documents


def test_cka_prints_one_json_document_of_a_against_b(pair, capsys):
    assert main(["cka", *pair, *SMALL, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["model_a"], document["model_b"]) == ("first", "second")
    assert np.shape(document["values"]) == (10, 10)
    assert np.shape(document["standard_errors"]) == (10, 10)
    assert document["rows"][0] == "stem"
    assert document["undefined"] == {}
    assert document["batch_sizes"] == [4, 4, 4]
    assert document["question"]["dataset"] == "digits"
    assert document["provenance"]["command"].startswith(
        "python -m analysis study first.safetensors"
    )


def test_a_checkpoint_against_itself_is_one_along_the_diagonal(pair, capsys):
    assert main(["cka", pair[0], pair[0], *SMALL, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    np.testing.assert_allclose(np.diagonal(document["values"]), 1, atol=1e-12)


def test_undefined_values_are_null_with_a_reason(pair, capsys):
    arguments = ["--samples", "6", "--batch-size", "6", "--device", "cpu", "--json"]
    assert main(["cka", *pair, *arguments]) == 0
    document = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert document["standard_errors"][0] == [None] * 10
    assert "at least 2 batches" in document["interval_note"]


def test_probe_prints_one_json_document_of_every_checkpoint(pair, capsys):
    assert main(["probe", *pair, *FEW, "--json", "--penalty", "2"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert [result["model"] for result in document["probes"]] == ["first", "second"]
    assert len(document["probes"][0]["accuracy"]) == 10
    assert document["question"]["penalty"] == 2.0


def test_study_writes_the_file_that_it_prints(pair, tmp_path, capsys):
    out = tmp_path / "pair.study.json"
    assert main(["study", *pair, *FEW, "--out", str(out), "--title", "My pair", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads(out.read_text())
    study = load_study(out)
    assert study.title == "My pair"
    assert study.cka.models == ("first", "second")
    assert len(study.probes) == 2


def test_the_command_a_study_records_redoes_it(pair, tmp_path, capsys, monkeypatch):
    for path in pair:
        shutil.copy(path, tmp_path)
    monkeypatch.chdir(tmp_path)
    names = ["first.safetensors", "second.safetensors"]
    assert main(["study", *names, *FEW, "--seed", "4", "--out", "one.study.json"]) == 0
    one = load_study("one.study.json")
    words = shlex.split(one.provenance.command)
    assert words[:3] == ["python", "-m", "analysis"]
    assert words[-1] == "one.study.json"
    (tmp_path / "one.study.json").unlink()
    assert main([*words[3:], "--device", "cpu"]) == 0
    again = load_study("one.study.json")
    assert again.question == one.question
    np.testing.assert_array_equal(again.cka.values, one.cka.values)
    np.testing.assert_array_equal(again.probes[0].accuracy, one.probes[0].accuracy)


# ------------------------------------------------------------------------ tables


def test_the_cka_table_has_a_row_a_layer_with_values_and_intervals(pair, capsys):
    assert main(["cka", *pair, *SMALL]) == 0
    captured = capsys.readouterr()
    lines = captured.out.splitlines()
    assert lines[0] == "first and second: scikit-learn digits, test split, n = 12"
    assert lines[3].split("  ")[0] == "layer of first"
    stem = lines[4].split()
    assert stem[:2] == ["stem", "stem"]
    assert 0.3 < float(stem[2]) <= 1
    assert float(stem[3]) <= float(stem[2]) <= float(stem[5])
    assert len(lines) == 14


def test_the_cka_table_says_why_values_or_intervals_are_missing(pair, capsys):
    assert main(["cka", *pair, "--samples", "6", "--batch-size", "6", "--device", "cpu"]) == 0
    assert "note: intervals need at least 2 batches" in capsys.readouterr().out


def test_the_probe_table_has_a_column_a_checkpoint_and_the_deepest_networks_order(
    pair, capsys, tmp_path, make_checkpoint
):
    names = tuple(f"class {index}" for index in range(12))
    deep = make_checkpoint(
        tmp_path / "deep.safetensors", architecture="resnet32", num_classes=12, classes=names
    )
    assert main(["probe", pair[0], str(deep), *FEW]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[2].endswith("from 20 training images")
    assert lines[3].split() == ["layer", "first", "deep"]
    layers = [line.split()[0] for line in lines[4:20]]
    assert layers == ["stem", *(f"stage{s}_block{b}" for s in (1, 2, 3) for b in range(1, 6))]
    assert lines[20].split()[0] == "classifier"
    assert lines[20].split()[-1] == "-"
    assert lines[21].split()[0] == "chance"
    assert lines[22].startswith("undefined: deep/classifier, because the network tells 12 classes")


def test_the_study_table_shows_every_pair_and_names_the_file(pair, tmp_path, capsys):
    out = tmp_path / "three.study.json"
    assert main(["study", *pair, pair[0], *FEW, "--out", str(out)]) == 0
    output = capsys.readouterr().out
    for title in ("first and second", "first and first-2", "second and first-2"):
        assert f"linear CKA, {title}\n" in output
    assert output.endswith(f"\nstudy  {out}\n")


def test_progress_goes_to_stderr(pair, capsys):
    assert main(["probe", pair[0], *FEW, "--json"]) == 0
    captured = capsys.readouterr()
    assert "Reading test images" in captured.err
    assert "Fitting probes" in captured.err
    assert captured.out.count("\n") == 1


# ------------------------------------------------------------------------ wrong input


def complain(arguments, capsys) -> tuple[int, str]:
    """Run a command; give its status and the only line on stderr."""
    try:
        status = main(arguments)
    except SystemExit as stop:  # how argparse ends
        status = stop.code
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = [line for line in captured.err.splitlines() if line.startswith("auglocal-analysis")]
    assert len(lines) == 1
    assert "Traceback" not in captured.err
    return status, lines[0]


@pytest.mark.usefixtures("no_work")
@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "the following arguments are required: COMMAND; see auglocal-analysis --help."),
        (["dance"], "invalid choice: 'dance'"),
        (["cka", "A"], "arguments are required: CHECKPOINT; see auglocal-analysis cka --help."),
        (["cka", "A", "B", "C"], "unrecognized arguments: C"),
        (["cka", "A", "B", "--samples", "many"], "--samples: invalid int value: 'many'"),
        (["cka", "A", "B", "--penalty", "1"], "unrecognized arguments"),
        (["study", "A", "B"], "required: --out"),
        (["cka", "A", "none.safetensors"], "There is no file none.safetensors"),
        (["cka", "A", "."], "is a folder"),
        (["cka", "A", "LETTER"], "letter.safetensors is a text file, not a checkpoint"),
        (["cka", "A", "B", "--dataset", "mnist"], "no data set 'mnist'"),
        (["cka", "A", "B", "--dataset", "imagefolder:nowhere"], "There is no folder nowhere"),
        (
            ["cka", "A", "B", "--dataset", "cifar10", "--data", "x"],
            "is not in the folder 'x'; give --download",
        ),
        (["cka", "A", "B", "--samples", "5000"], "it holds 1,000; ask for 1 to 1,000"),
        (["cka", "A", "B", "--batch-size", "3"], "CKA needs at least 4 images in every batch"),
        (["cka", "A", "B", "--split", "holdout"], "has no split 'holdout'"),
        (["cka", "A", "B", "--device", "tpu"], "no device 'tpu'"),
        (["cka", "A", "B", "--seed", "-1"], "seed must be at least 0"),
        (["probe", "A", "--penalty", "0"], "must be above 0"),
        (["probe", "A", "--split", "train"], "cannot be scored on the train split"),
        (["study", "A", "B", "--out", "x.json"], "a file that ends in .study.json"),
        (["study", "A", "B", "--out", "none/x.study.json"], "There is no folder none; make it"),
    ],
)
def test_wrong_input_is_refused_in_one_sentence_with_status_2(
    pair, tmp_path, capsys, monkeypatch, arguments, sentence
):
    monkeypatch.chdir(tmp_path)
    letter = tmp_path / "letter.safetensors"
    letter.write_text("Dear reader")
    words = {"A": pair[0], "B": pair[1], "LETTER": letter.name}
    status, line = complain([words.get(word, word) for word in arguments], capsys)
    assert status == 2
    assert sentence in line
    assert line.endswith(".")


def test_checkpoints_of_unknown_data_ask_for_the_option(pair, capsys, tmp_path, make_checkpoint):
    other = make_checkpoint(
        tmp_path / "o.safetensors", config={"dataset": "imagefolder:x"}, dataset="JPEGs"
    )
    status, line = complain(["cka", pair[0], str(other)], capsys)
    assert status == 2
    assert "trained on JPEGs and scikit-learn digits); give --dataset one of digits" in line


def test_a_folder_that_may_not_be_written_is_refused_before_the_work(
    pair, capsys, tmp_path, monkeypatch, no_work
):
    def refuse(**arguments):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("tempfile.NamedTemporaryFile", refuse)
    out = tmp_path / "x.study.json"
    status, line = complain(["study", *pair, "--out", str(out)], capsys)
    assert status == 2
    sentence = f"{tmp_path} cannot be written to (Read-only file system); give another --out"
    assert sentence in line


def test_wrong_input_leaves_nothing_on_stderr_but_the_sentence(pair, capsys):
    assert main(["cka", *pair, "--samples", "5000"]) == 2
    assert capsys.readouterr().err.startswith("auglocal-analysis: 5,000 images of the test split")


# ------------------------------------------------------------------------ failures while working


@pytest.mark.parametrize(
    ("error", "status", "sentence"),
    [
        (KeyboardInterrupt(), 130, "interrupted; nothing was written."),
        (RuntimeError("CUDA out of memory. Tried\nmore"), 1, "give a smaller --batch-size"),
        (MemoryError(), 1, "Memory ran out (MemoryError); give a smaller --batch-size"),
        (RuntimeError("kernel failed\ndetails"), 1, "The analysis failed (kernel failed); nothing"),
    ],
)
def test_failures_while_working_are_one_sentence(
    pair, capsys, monkeypatch, error, status, sentence
):
    def fail(*arguments):
        raise error

    monkeypatch.setattr(analysis.reading, "visit_features", fail)
    given_status, line = complain(["cka", *pair, *SMALL], capsys)
    assert given_status == status
    assert sentence in line


def test_a_full_disk_is_one_sentence_after_the_tables_and_leaves_no_file(
    pair, capsys, tmp_path, monkeypatch
):
    def fail(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", fail)
    out = tmp_path / "x.study.json"
    assert main(["study", *pair, *FEW, "--out", str(out)]) == 1
    captured = capsys.readouterr()
    assert "linear CKA, first and second\n" in captured.out
    assert "linear probes, accuracy" in captured.out
    assert f"study  {out}" not in captured.out
    line = captured.err.splitlines()[-1]
    assert f"{out} could not be read or written (No space left on device); nothing was" in line
    assert list(tmp_path.iterdir()) == []
