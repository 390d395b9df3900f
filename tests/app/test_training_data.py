"""Which images a page begins with, and what it says of others."""

from __future__ import annotations

from dataclasses import replace

import pytest
from PIL import Image

from app.sources import checkpoints, datasets, library, training_data
from auglocal.data import SOURCES, load_dataset


@pytest.fixture
def jpeg(tmp_path, monkeypatch):
    """A data folder with the images that the project's own checkpoints were trained on."""
    folder = tmp_path / "data"
    for split, count in (("train", 3), ("test", 2)):
        for name in ("cat", "dog"):
            place = folder / "cifar10-jpeg" / split / name
            place.mkdir(parents=True)
            for index in range(count):
                Image.new("RGB", (32, 32), (index, 0, 0)).save(place / f"{index}.jpg")
    monkeypatch.setattr(datasets, "DATA", folder)
    return f"imagefolder:{folder / 'cifar10-jpeg'}"


@pytest.fixture
def entry(shipped, monkeypatch):
    """A checkpoint, and a way to say what it was trained on."""
    found = checkpoints.checkpoint_files()[0][0]

    def trained_on(title):
        monkeypatch.setattr(training_data, "title_of", lambda entry: title)
        return found

    return trained_on


def test_the_folder_that_the_project_trains_on_is_in_the_list(jpeg):
    assert datasets.datasets_on_disk()[jpeg] == "CIFAR-10 (JPEG)"


def test_data_begin_with_those_of_the_training_and_as_jpeg_will_do(entry, jpeg):
    assert training_data.home([entry("CIFAR-10")]) == jpeg
    assert training_data.home([entry("scikit-learn digits")]) == "digits"
    assert training_data.home([entry("ImageNet")]) == ""
    assert training_data.home([entry("")]) == ""


def test_other_data_than_those_of_the_training_are_named(entry, jpeg):
    found = entry("CIFAR-10")
    assert training_data.mismatch([found], jpeg) == ""
    assert "was trained on CIFAR-10, and these images are scikit-learn digits" in (
        training_data.mismatch([found], "digits")
    )
    assert "not known what" in training_data.mismatch([entry("")], "digits")
    assert training_data.mismatch([found], "imagefolder:/somewhere/else") == ""


def test_what_preprocessing_was_found_on_counts_as_training_data(shipped, library_entry):
    library.write_note(library_entry.path, evidence={"tells": True, "title": "CIFAR-10 (JPEG)"})
    assert training_data.title_of(library_entry) == "CIFAR-10 (JPEG)"


@pytest.fixture
def library_entry(shipped):
    path = shipped / "bp-net.safetensors"
    sha256 = path.stem
    found = checkpoints.checkpoint_files()[0][0]
    return replace(found, origin=checkpoints.UPLOADED, sha256=sha256)


def test_a_page_begins_with_the_data_of_the_training(open_app, jpeg, monkeypatch):
    monkeypatch.setattr(training_data, "title_of", lambda entry: "CIFAR-10")
    monkeypatch.setattr("app.sources.studies.study_files", lambda: [])
    app = open_app("similarity")
    assert app.selectbox(key="data").value == jpeg
    assert not [caption for caption in app.caption if "Other data" in caption.value]
    app.selectbox(key="data").set_value("digits").run()
    assert [caption for caption in app.caption if "Other data" in caption.value]


def test_no_more_images_are_asked_for_than_there_are(open_app, jpeg):
    app = open_app("similarity", data=jpeg, samples="100")
    assert "There are 4 test images; all of them are taken." in [c.value for c in app.caption]
    assert any("4 images" in text.value for text in app.markdown)  # what the run would read
    assert app.query_params["samples"] == "4"


def test_sizes_of_named_sets_are_those_of_the_loader():
    splits = load_dataset("digits").splits
    assert {name: len(part) for name, part in splits.items()} == datasets.SIZES["digits"]
    assert set(datasets.SIZES) <= set(SOURCES)


def test_images_of_a_split_are_counted(jpeg, tmp_path):
    assert datasets.split_size(jpeg, "train") == 6
    assert datasets.split_size(jpeg, "test") == 4
    loose = tmp_path / "loose"
    loose.mkdir()
    Image.new("RGB", (8, 8)).save(loose / "one.png")
    assert datasets.split_size(f"imagefolder:{loose}", "test") == 1
    assert datasets.split_size(f"imagefolder:{tmp_path / 'nowhere'}", "test") is None
