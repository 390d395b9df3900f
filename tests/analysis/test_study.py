"""Studies survive the disk bit for bit, and what is no study is refused in a sentence."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from dataclasses import asdict, fields
from pathlib import Path

import numpy as np
import pytest

from analysis.cka import CKAResult
from analysis.errors import InputError
from analysis.probes import ProbeResult
from analysis.study import (
    Study,
    StudyCheckpoint,
    StudyProvenance,
    StudyQuestion,
    load_study,
    pair_record,
    save_study,
    study_record,
)


def make_study(seed: int = 0) -> Study:
    """A study with awkward numbers: NaN, the smallest and the largest float, -0, a third."""
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(5, 5)) * 10.0 ** rng.integers(-300, 300, (5, 5))
    values[0, :4] = 5e-324, 1.7976931348623157e308, -0.0, 1 / 3
    values[4] = values[:, 4] = math.nan
    names = ("first", "second")
    checkpoints = tuple(
        StudyCheckpoint(
            name=name,
            sha256=name * 2,
            architecture="resnet20",
            rule="auglocal",
            rule_options={"auxiliary_depth": 2, "pyramid": 0.5, "tail": None},
            dataset="Ziffern äöü",
            accuracy={"value": 1 / 3, "split": "test", "samples": 1000} if seed else None,
            epoch=15,
            seed=3,
        )
        for name in names
    )
    return Study(
        title="first and second",
        question=StudyQuestion(
            checkpoints=checkpoints,
            dataset="digits",
            dataset_title="scikit-learn digits",
            split="test",
            samples=40,
            seed=0,
            batch_size=20,
            image_size=None,
            images_sha256="abc",
            train_samples=100,
            penalty=0.1,
        ),
        cka=CKAResult(
            models=names,
            layers=(("stem", "stage1"), ("stem", "stage1", "stage2")),
            values=values,
            standard_errors=np.abs(values),
            low=values - 1,
            high=values + 1,
            undefined={"second/stage2": "its features are the same for every image"},
            samples=40,
            batch_sizes=(20, 20),
            interval_note=None,
        ),
        probes=tuple(
            ProbeResult(
                model=name,
                layers=("stem", "stage1"),
                accuracy=np.array([0.1 + seed, math.nan]),
                low=np.array([0.05, math.nan]),
                high=np.array([0.2, math.nan]),
                classifier_accuracy=None,
                classifier_low=None,
                classifier_high=None,
                chance=0.1,
                train_samples=100,
                test_samples=40,
                penalty=0.1,
                undefined={"stage1": "not finite", "classifier": "other classes"},
            )
            for name in names
        ),
        provenance=StudyProvenance(
            versions={"python": "3.11"}, device="cpu", seconds=1.5, date="2026-01-01", command="x"
        ),
    )


def assert_same_result(left, right):
    """Equal fields; arrays equal in every bit."""
    for field in fields(left):
        a, b = getattr(left, field.name), getattr(right, field.name)
        if isinstance(a, np.ndarray):
            assert (a.dtype, a.shape) == (b.dtype, b.shape)
            assert np.isnan(a).tolist() == np.isnan(b).tolist()
            defined = ~np.isnan(a)
            assert a[defined].tobytes() == b[defined].tobytes()
        else:
            assert a == b


# ------------------------------------------------------------------------ there and back


@pytest.mark.parametrize("seed", range(5))
def test_a_study_read_back_equals_the_one_written_in_every_bit(tmp_path, seed):
    study = make_study(seed)
    save_study(study, tmp_path / "a.study.json")
    again = load_study(tmp_path / "a.study.json")
    assert (again.title, again.question, again.provenance) == (
        study.title,
        study.question,
        study.provenance,
    )
    assert_same_result(study.cka, again.cka)
    for left, right in zip(study.probes, again.probes, strict=True):
        assert_same_result(left, right)


def test_a_study_without_cka_or_without_probes_comes_back_without(tmp_path):
    study = make_study()
    only_probes = Study(study.title, study.question, None, study.probes, study.provenance)
    save_study(only_probes, tmp_path / "a.study.json")
    assert load_study(tmp_path / "a.study.json").cka is None
    only_cka = Study(study.title, study.question, study.cka, (), study.provenance)
    save_study(only_cka, tmp_path / "a.study.json")
    assert load_study(tmp_path / "a.study.json").probes == ()


def test_the_file_is_strict_sorted_json_with_null_for_undefined(tmp_path):
    save_study(make_study(), tmp_path / "a.study.json")
    text = (tmp_path / "a.study.json").read_text(encoding="utf-8")
    record = json.loads(text, parse_constant=pytest.fail)
    assert text == json.dumps(record, sort_keys=True) + "\n"
    assert record["format"] == "auglocal-study"
    assert record["format_version"] == 3
    assert record["answers"]["cka"]["values"][4] == [None] * 5
    assert record["answers"]["cka"]["values"][0][3] == 1 / 3
    assert record["answers"]["cka"]["undefined"] == {
        "second/stage2": "its features are the same for every image"
    }


def test_a_pairs_record_holds_its_own_matrix_and_the_question():
    study = make_study()
    record = json.loads(json.dumps(pair_record(study, study.cka.pair("first", "second"))))
    assert np.shape(record["values"]) == (2, 3)
    assert record["values"][0][2] is None
    assert record["values"][1][0] == study.cka.values[1, 2]
    assert record["rows"] == ["stem", "stage1"]
    assert record["question"] == json.loads(json.dumps(asdict(study.question)))


def test_probes_are_found_by_the_models_name():
    study = make_study()
    assert study.probe("second") is study.probes[1]
    with pytest.raises(ValueError, match="no probes of 'third'"):
        study.probe("third")


def test_reading_studies_imports_neither_torch_nor_scikit_learn_nor_streamlit():
    code = (
        "import sys, analysis.study; "
        "print([m for m in ('torch', 'sklearn', 'scipy', 'streamlit') if m in sys.modules])"
    )
    root = Path(__file__).parents[2]
    output = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True
    )
    assert output.stdout.strip() == "[]"


# ------------------------------------------------------------------------ whole or not at all


@pytest.mark.parametrize("failing", ["os.fsync", "pathlib.Path.replace"])
def test_a_failed_write_leaves_the_old_study_and_no_litter(tmp_path, monkeypatch, failing):
    path = tmp_path / "a.study.json"
    save_study(make_study(), path)
    before = path.read_bytes()

    def fail(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(failing, fail)
    with pytest.raises(OSError, match="No space left"):
        save_study(make_study(1), path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["a.study.json"]


def test_writing_again_replaces_the_study(tmp_path):
    path = tmp_path / "a.study.json"
    save_study(make_study(0), path)
    save_study(make_study(1), path)
    assert load_study(path).probes[0].accuracy[0] == 1.1


# ------------------------------------------------------------------------ versions


def write(tmp_path, record) -> Path:
    path = tmp_path / "a.study.json"
    path.write_text(record if isinstance(record, str) else json.dumps(record), encoding="utf-8")
    return path


@pytest.fixture
def record():
    """A study's JSON values."""
    return json.loads(json.dumps(study_record(make_study())))


def test_a_newer_format_is_refused_in_a_sentence(tmp_path, record):
    record["format_version"] = 4
    with pytest.raises(InputError, match="a.study.json has study format 4, .* update the program"):
        load_study(write(tmp_path, record))


def test_fields_of_this_version_that_are_not_known_are_passed_over(tmp_path, record):
    record["remark"] = record["question"]["remark"] = record["answers"]["remark"] = "new"
    assert load_study(write(tmp_path, record)).title == "first and second"


def test_optional_fields_may_be_missing(tmp_path, record):
    for name in ("image_size", "train_samples", "penalty"):
        del record["question"][name]
    del record["answers"]["cka"]["interval_note"]
    study = load_study(write(tmp_path, record))
    assert study.question.penalty is None
    assert study.cka.interval_note is None


# ------------------------------------------------------------------------ what is no study


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match=r"There is no study .*none\.study\.json"):
        load_study(tmp_path / "none.study.json")


def test_a_folder_is_refused(tmp_path):
    with pytest.raises(InputError, match="cannot be read .*; choose another file"):
        load_study(tmp_path)


@pytest.mark.parametrize(
    "text", ["", "{", "<html>", "[" * 100_000, '{"format": NaN}', "null", "[]", '{"format": "x"}']
)
def test_foreign_text_is_refused(tmp_path, text):
    with pytest.raises(InputError, match=r"a.study.json is not a study.*choose a file that"):
        load_study(write(tmp_path, text))


def test_foreign_bytes_are_refused(tmp_path):
    path = tmp_path / "a.study.json"
    path.write_bytes(b"\x80\x02\xff\xfe" * 10)
    with pytest.raises(InputError, match="is not a study"):
        load_study(path)


def test_a_truncated_study_is_refused(tmp_path):
    path = tmp_path / "a.study.json"
    save_study(make_study(), path)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(InputError, match="or a damaged one"):
        load_study(path)


def test_a_file_larger_than_any_study_is_refused_unread(tmp_path, monkeypatch):
    monkeypatch.setattr("analysis.study.LARGEST_FILE", 100)
    path = tmp_path / "a.study.json"
    save_study(make_study(), path)
    with pytest.raises(InputError, match="larger than any study"):
        load_study(path)


def change(record, place, value):
    """Set a value deep in a record; a missing value deletes."""
    *parents, last = place
    for key in parents:
        record = record[key]
    if value is KeyError:
        del record[last]
    else:
        record[last] = value


@pytest.mark.parametrize(
    ("place", "value", "reason"),
    [
        (["title"], KeyError, "title is missing"),
        (["title"], 5, "title is a int instead of a str"),
        (["format_version"], "1", "format_version is a str instead of a int"),
        (["format_version"], 0, "format_version is below 1"),
        (["question"], [], "question is a list instead of a dict"),
        (["question", "samples"], True, "samples is a bool instead of a int"),
        (["question", "samples"], 4.5, "samples is a float instead of a int"),
        (["question", "checkpoints"], [], "not those of its checkpoints"),
        (["question", "checkpoints", 0], None, "NoneType instead of a dict"),
        (["question", "checkpoints", 0, "name"], "second", "two checkpoints have the same name"),
        (["question", "checkpoints", 0, "name"], "third", "not those of its checkpoints"),
        (["question", "checkpoints", 0, "accuracy"], {"value": 1}, "split is missing"),
        (["answers", "cka", "models"], ["first"], "models and layers differ in length"),
        (["answers", "cka", "layers", 0], ["stem"], r"values has the shape \(5, 5\)"),
        (["answers", "cka", "values", 0], [1, 2], "rows of one length"),
        (["answers", "cka", "values", 0, 0], "x", "no table of numbers"),
        (["answers", "cka", "values", 0, 0], 10**400, "too large"),
        (["answers", "cka", "undefined", "first/stem"], 3, "int instead of a str"),
        (["answers", "probes", 0], 3, "int instead of a dict"),
        (["answers", "probes", 0, "accuracy"], [0.1], r"accuracy has the shape \(1,\)"),
        (["provenance", "versions"], None, "versions is a NoneType"),
    ],
)
def test_a_damaged_study_is_refused_with_what_is_wrong(tmp_path, record, place, value, reason):
    change(record, place, value)
    with pytest.raises(InputError, match=rf"a.study.json is a damaged study \(.*{reason}"):
        load_study(write(tmp_path, record))


def test_a_number_beyond_float64_is_refused(tmp_path, record):
    text = json.dumps(record).replace("0.3333333333333333", "1e999", 1)
    with pytest.raises(InputError, match="holds a number that is too large"):
        load_study(write(tmp_path, text))
