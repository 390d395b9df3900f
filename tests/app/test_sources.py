"""What is kept, what is found again, and what is refused."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace

import pytest

from analysis.study import study_record
from app import jobs
from app.sources import checkpoints, datasets, folders, studies


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
    assert set(studies.probes_of(request, entries)) == set(sha256s)


def test_a_result_on_a_folder_is_not_found_once_an_image_changed(
    image_folder, tmp_path, sha256s, make_study, save
):
    folder = tmp_path / "images"
    shutil.copytree(image_folder, folder)
    request = ask(sha256s, f"imagefolder:{folder}")
    keep(request, make_study(sha256s), save)
    assert studies.find_study(request) is not None
    image = next((folder / "test" / "dark").iterdir())
    os.utime(image, ns=(1, 1))
    datasets._folder_fingerprint.clear()
    assert studies.find_study(request) is None


def test_a_folder_without_training_images_is_missing(image_folder, tmp_path):
    assert not datasets.is_missing_folder(f"imagefolder:{image_folder}")
    assert datasets.is_missing_folder(f"imagefolder:{tmp_path}")
    assert not datasets.is_missing_folder("digits")


def test_the_command_names_the_folder_as_it_is_here(make_study):
    study = make_study()
    question = replace(study.question, dataset="imagefolder:images")
    command = "python -m analysis cka a b --dataset imagefolder:images --seed 0"
    provenance = replace(study.provenance, command=command)
    study = replace(study, question=question, provenance=provenance)
    here = studies.command_of(study, "imagefolder:/my images")
    assert here == "python -m analysis cka a b --dataset 'imagefolder:/my images' --seed 0"


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
    from app.sources import folders

    here = str(tmp_path / "mine")
    monkeypatch.setattr("sys.argv", ["app", *(word.replace("HERE", here) for word in words)])
    assert folders.library_folder() == tmp_path / "mine"
    monkeypatch.setattr("sys.argv", ["app"])
    assert folders.library_folder() != tmp_path / "mine"
