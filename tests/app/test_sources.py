"""What is kept, what is found again, and what is refused."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from dataclasses import replace

import numpy as np
import pytest

from analysis.study import study_record
from app import jobs
from app.sources import answers, checkpoints, datasets, folders, studies


def keep(request, study, save):
    """Keep a study as a job does."""
    folder = folders.library_folder() / "studies"
    folder.mkdir(parents=True, exist_ok=True)
    save(study, folder / f"{request.key}.study.json")


def ask(sha256s, dataset):
    return studies.Request("probe", tuple(sha256s), dataset, 1000, 0, 125)


def test_probes_of_two_checkpoints_on_a_folder_are_found_for_each(
    image_folder, sha256s, make_study, save
):
    request = ask(sha256s, f"imagefolder:{image_folder}")
    keep(request, make_study(sha256s), save)
    entries, _ = checkpoints.checkpoint_files()
    found = answers.probe_answers(request, entries)
    assert {answer.entry.sha256 for answer in found} == set(sha256s)


def test_a_result_on_a_folder_is_not_found_once_an_image_changed(
    image_folder, tmp_path, sha256s, make_study, save
):
    folder = tmp_path / "images"
    shutil.copytree(image_folder, folder)
    request = ask(sha256s, f"imagefolder:{folder}")
    keep(request, make_study(sha256s), save)
    assert studies.find_study(request) is not None
    image = next((folder / "test" / "dark").iterdir())
    image.rename(image.with_stem("another"))
    datasets._folder_fingerprint.clear()  # ten seconds pass
    assert studies.find_study(request) is None


def test_an_image_written_over_in_place_is_seen_when_all_files_are_read_again(
    image_folder, tmp_path
):
    folder = tmp_path / "images"
    shutil.copytree(image_folder, folder)
    before = datasets.folder_prefix(f"imagefolder:{folder}")
    os.utime(next((folder / "test" / "dark").iterdir()), ns=(1, 1))
    datasets._folder_fingerprint.clear()  # ten seconds pass
    assert datasets.folder_prefix(f"imagefolder:{folder}") == before
    datasets._folder_fingerprint.clear()
    datasets._files_fingerprint.clear()  # five minutes pass
    assert datasets.folder_prefix(f"imagefolder:{folder}") != before


def test_files_of_a_folder_are_looked_at_only_when_it_changed(image_folder, tmp_path, monkeypatch):
    folder = tmp_path / "images"
    shutil.copytree(image_folder, folder)
    seen = []
    datasets._files_fingerprint.clear()
    sha256 = hashlib.sha256
    monkeypatch.setattr(
        datasets.hashlib, "sha256", lambda content: seen.append(content) or sha256(content)
    )
    for _ in range(3):
        datasets._folder_fingerprint.clear()
        datasets.folder_prefix(f"imagefolder:{folder}")
    assert len(seen) == 1
    next((folder / "test" / "dark").iterdir()).unlink()
    datasets._folder_fingerprint.clear()
    datasets.folder_prefix(f"imagefolder:{folder}")
    assert len(seen) == 2


def test_a_whole_study_comes_before_an_older_shipped_one(sha256s, make_study, save):
    study = make_study(sha256s)
    row = np.zeros(1000, dtype=np.int16)
    whole = [
        replace(
            probe,
            predictions=np.tile(row, (10, 1)),
            confusion=np.zeros((10, 2, 2)),
            recall=np.zeros((10, 2)),
        )
        for probe in study.probes
    ]
    request = ask(sha256s, "digits")
    shipped_one = studies.StudyFile(folders.shipped_folder() / "a.study.json", True, study)
    question = replace(study.question, classes=("a", "b"))
    newer = studies.StudyFile(
        folders.library_folder() / "b.study.json",
        False,
        replace(study, question=question, probes=tuple(whole)),
    )
    assert studies.is_answer(shipped_one, request)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(studies, "study_files", lambda: [shipped_one, newer])
        assert studies.find_study(request) is newer.study
        patch.setattr(studies, "study_files", lambda: [shipped_one])
        assert studies.find_study(request) is study


def test_cards_of_snapshots_stand_after_those_of_networks(shipped, make_study, save):
    study = make_study(rules=("bp", "bp"), names=("early", "late"))
    first, last = study.question.checkpoints
    question = replace(study.question, checkpoints=(replace(first, epoch=1), last))
    save(replace(study, question=question), shipped / "before.study.json")
    assert [file.path.name for file in studies.cards()] == ["pair.study.json", "before.study.json"]
    assert len(studies.pairs()) == 1


def test_a_folder_without_training_images_is_missing(image_folder, tmp_path):
    assert not datasets.is_missing_folder(f"imagefolder:{image_folder}")
    assert datasets.is_missing_folder(f"imagefolder:{tmp_path}")
    assert not datasets.is_missing_folder("digits")


def test_an_upload_that_is_here_already_is_not_kept_again(shipped, library):
    path = next(shipped.glob("bp-net.safetensors"))
    sha256, was_there = checkpoints.keep_upload("another-name.safetensors", path.read_bytes())
    assert was_there
    assert sha256 == checkpoints.by_prefix(checkpoints.checkpoint_files()[0], sha256).sha256
    assert not (library / "checkpoints").exists()


def test_a_study_made_elsewhere_is_kept_and_shown(make_study, library):
    study = make_study()
    studies.keep_study(json.dumps(study_record(study)).encode())
    assert len(list((library / "studies").glob("*.study.json"))) == 1
    assert study.title in [pair.title for pair in studies.pairs()]


@pytest.mark.parametrize("content", [b"", b"{}", b"[" * 100_000, b'{"format": "auglocal-study"}'])
def test_anything_else_is_no_study(content, library):
    with pytest.raises(ValueError, match="The file"):
        studies.keep_study(content)
    assert list((library / "studies").iterdir()) == []


def test_a_job_that_cannot_be_noted_does_not_block_the_next(tmp_path):
    (tmp_path / "file").write_text("in the way")
    registry = jobs.Registry(tmp_path / "file" / "jobs")
    with pytest.raises(OSError, match="cannot be written .* AUGLOCAL_LIBRARY"):
        registry.start("key", "title", lambda report, cancelled: None, tmp_path / "study.json")
    assert registry.running() is None


@pytest.mark.parametrize("words", [["--library", "HERE"], ["--library=HERE"]])
def test_the_library_is_where_the_command_line_says(words, tmp_path, monkeypatch):
    here = str(tmp_path / "mine")
    monkeypatch.setattr("sys.argv", ["app", *(word.replace("HERE", here) for word in words)])
    assert folders.library_folder() == tmp_path / "mine"
    monkeypatch.setattr("sys.argv", ["app"])
    assert folders.library_folder() != tmp_path / "mine"
