"""Data sets: what is there, what is refused and how."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from auglocal.data import load_dataset
from auglocal.errors import InputError, WorkError
from auglocal.splits import stratified_choice


def test_digits_split_into_697_100_and_1000_images() -> None:
    dataset = load_dataset("digits")
    sizes = {name: len(split) for name, split in dataset.splits.items()}
    assert sizes == {"train": 697, "test": 1000, "validation": 100}
    images = dataset.splits["train"].images
    assert images.shape == (697, 3, 32, 32)
    assert images.dtype == torch.uint8


def test_digits_are_each_in_one_split() -> None:
    dataset = load_dataset("digits")
    found = np.concatenate([split.images[:, 0].numpy() for split in dataset.splits.values()])
    stored = load_digits().images
    # The four corners' pixels of an enlarged image are those of the small one.
    corners = np.sort(found[:, ::31, ::31].reshape(len(found), 4), axis=0)
    expected = np.round(stored[:, ::7, ::7] * 255 / 16).astype(np.uint8)
    assert np.array_equal(corners, np.sort(expected.reshape(len(stored), 4), axis=0))


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_digits_are_split_in_proportion_to_their_classes(split: str) -> None:
    labels = load_dataset("digits").splits[split].labels
    shares = torch.bincount(labels, minlength=10) / len(labels)
    whole = torch.bincount(torch.from_numpy(load_digits().target)) / 1797
    assert (shares - whole).abs().max() < 1.1 / len(labels)


def test_stratified_choice_is_always_the_same_and_has_the_size_asked_for() -> None:
    labels = torch.arange(97) % 7
    first, second = stratified_choice(labels, 31), stratified_choice(labels, 31)
    assert torch.equal(first, second)
    assert len(first.unique()) == 31
    counts = torch.bincount(labels[first])
    assert counts.max() - counts.min() <= 1


def test_unknown_data_set_lists_what_there_is() -> None:
    with pytest.raises(InputError, match="no data set 'mnist'; choose one of digits, cifar10"):
        load_dataset("mnist")


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "svhn", "stl10"])
def test_a_set_that_is_not_there_says_how_to_fetch_it(name: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="give --download to fetch it .*--data-folder"):
        load_dataset(name, folder=tmp_path)


class StoredSet:
    """Stands for torchvision's classes: channels last and `targets` for CIFAR, else first."""

    def __init__(self, root: str, download: bool, train: bool = True, split: str = "") -> None:
        generator = np.random.default_rng(int(train))
        self.data = generator.integers(0, 256, (5, 3, 32, 32), dtype=np.uint8)
        self.labels = np.arange(5)
        if not split:
            self.data = self.data.transpose(0, 2, 3, 1)
            self.targets = self.labels.tolist()


@pytest.mark.parametrize(
    ("name", "class_name", "num_classes"),
    [("cifar10", "CIFAR10", 10), ("cifar100", "CIFAR100", 100), ("svhn", "SVHN", 10)],
)
def test_torchvisions_sets_come_channels_first(
    name: str, class_name: str, num_classes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(f"torchvision.datasets.{class_name}", StoredSet)
    dataset = load_dataset(name)
    assert len(dataset.classes) == num_classes
    split = dataset.splits["test"]
    stored = StoredSet("", False, **({"split": "test"} if name == "svhn" else {"train": False}))
    expected = stored.data if name == "svhn" else stored.data.transpose(0, 3, 1, 2)
    assert np.array_equal(split.images.numpy(), expected)
    assert split.labels.tolist() == [0, 1, 2, 3, 4]


def test_a_failed_download_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(root: str, **options: object) -> None:
        raise OSError("the network is unreachable")

    monkeypatch.setattr("torchvision.datasets.CIFAR10", refuse)
    with pytest.raises(WorkError, match="Downloading CIFAR10 failed .the network is unreachable"):
        load_dataset("cifar10", folder=tmp_path, download=True)


def test_an_image_folder_gives_classes_in_order_and_images_as_stored(image_folder: Path) -> None:
    dataset = load_dataset(f"imagefolder:{image_folder}", title="Shades")
    assert dataset.classes == ("dark", "light")
    assert dataset.title == "Shades"
    split = dataset.splits["test"]
    assert split.labels.tolist() == [0] * 8 + [1] * 8
    with Image.open(image_folder / "test" / "light" / "02.png") as image:
        expected = np.asarray(image).transpose(2, 0, 1)
    assert np.array_equal(split.take(torch.tensor([10]))[0].numpy(), expected)


def test_held_out_images_leave_the_training_split(image_folder: Path) -> None:
    dataset = load_dataset(f"imagefolder:{image_folder}", validation_samples=10)
    assert len(dataset.splits["train"]) == 38
    assert torch.bincount(dataset.splits["validation"].labels).tolist() == [5, 5]


def test_holding_out_everything_is_refused(image_folder: Path) -> None:
    with pytest.raises(InputError, match="hold out 48 of 48 training images"):
        load_dataset(f"imagefolder:{image_folder}", validation_samples=48)


def test_val_serves_where_there_is_no_test_folder(image_folder: Path, tmp_path: Path) -> None:
    root = tmp_path / "tree"
    shutil.copytree(image_folder, root)
    (root / "test").rename(root / "val")
    assert len(load_dataset(f"imagefolder:{root}").splits["test"]) == 16


def test_image_size_resizes_images_of_different_sizes(image_folder: Path, tmp_path: Path) -> None:
    root = tmp_path / "tree"
    shutil.copytree(image_folder, root)
    Image.new("RGB", (40, 20), (255, 0, 0)).save(root / "train" / "dark" / "99.png")
    with pytest.raises(InputError, match="differ in size .*give --image-size"):
        _ = load_dataset(f"imagefolder:{root}").splits["train"].images
    dataset = load_dataset(f"imagefolder:{root}", image_size=12)
    assert dataset.splits["train"].images.shape == (49, 3, 12, 12)
    assert (dataset.resize, dataset.interpolation) == (12, "bilinear")


def test_a_corrupt_image_is_named(image_folder: Path, tmp_path: Path) -> None:
    root = tmp_path / "tree"
    shutil.copytree(image_folder, root)
    (root / "train" / "dark" / "98.png").write_bytes(b"not an image")
    with pytest.raises(InputError, match=r"98\.png is not a readable image; .* --skip-corrupt"):
        _ = load_dataset(f"imagefolder:{root}").splits["train"].images


def test_corrupt_images_are_left_out_where_asked(image_folder: Path, tmp_path: Path) -> None:
    root = tmp_path / "tree"
    shutil.copytree(image_folder, root)
    corrupt = [root / "train" / "dark" / "03.png", root / "test" / "light" / "99.png"]
    cut_short = corrupt[0].read_bytes()[:200]
    corrupt[0].write_bytes(cut_short)
    corrupt[1].write_bytes(b"not an image")
    dataset = load_dataset(f"imagefolder:{root}", skip_corrupt=True)
    assert dataset.skipped == tuple(str(path) for path in corrupt)
    whole = load_dataset(f"imagefolder:{image_folder}")
    kept = torch.tensor([index for index in range(48) if index != 3])
    assert torch.equal(dataset.splits["train"].images, whole.splits["train"].take(kept))
    assert torch.equal(dataset.splits["train"].labels, whole.splits["train"].labels[kept])
    assert torch.equal(dataset.splits["test"].images, whole.splits["test"].images)


def test_a_class_of_corrupt_images_is_refused(image_folder: Path, tmp_path: Path) -> None:
    root = tmp_path / "tree"
    shutil.copytree(image_folder, root)
    for file in (root / "test" / "dark").iterdir():
        file.write_bytes(b"")
    with pytest.raises(InputError, match="None of the 8 images of .*dark can be read; replace"):
        load_dataset(f"imagefolder:{root}", skip_corrupt=True)


def test_a_folder_that_is_not_there_says_what_is_needed(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no folder .*train/CLASS"):
        load_dataset(f"imagefolder:{tmp_path / 'nowhere'}")
    with pytest.raises(InputError, match="There is no folder .*train; an image folder needs"):
        load_dataset(f"imagefolder:{tmp_path}")


def test_one_class_is_refused(image_folder: Path, tmp_path: Path) -> None:
    root = tmp_path / "tree"
    shutil.copytree(image_folder, root)
    shutil.rmtree(root / "train" / "light")
    with pytest.raises(InputError, match="holds 1 class folders, and learning needs at least 2"):
        load_dataset(f"imagefolder:{root}")


def test_classes_that_differ_between_splits_are_named(image_folder: Path, tmp_path: Path) -> None:
    root = tmp_path / "tree"
    shutil.copytree(image_folder, root)
    (root / "test" / "light").rename(root / "test" / "bright")
    with pytest.raises(InputError, match=r"differ between train and test \(bright, light\)"):
        load_dataset(f"imagefolder:{root}")


def test_a_class_without_images_is_named(image_folder: Path, tmp_path: Path) -> None:
    root = tmp_path / "tree"
    shutil.copytree(image_folder, root)
    for file in (root / "test" / "dark").iterdir():
        file.unlink()
    with pytest.raises(InputError, match="dark holds no images"):
        load_dataset(f"imagefolder:{root}")
