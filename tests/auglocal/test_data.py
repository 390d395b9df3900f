"""Data sets: what is there, what is refused and how."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from auglocal.batches import Augmentation, RandomResizedCrop
from auglocal.data import load_dataset
from auglocal.errors import InputError, WorkError
from auglocal.image_folder import ResizeAndCrop
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


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder with 1,000 classes of one image each."""
    folder = tmp_path_factory.mktemp("data")
    for split in ("train", "val"):
        for index in range(1000):
            (folder / "imagenet" / split / f"n{index:08d}").mkdir(parents=True)
            Image.new("RGB", (50, 40)).save(folder / "imagenet" / split / f"n{index:08d}" / "1.png")
    return folder


def test_imagenet_is_seen_as_its_recipe_says(imagenet: Path) -> None:
    dataset = load_dataset("imagenet", folder=imagenet)
    assert len(dataset.classes) == 1000
    assert (dataset.resize, dataset.interpolation) == (256, "bilinear")
    assert dataset.augmentation == RandomResizedCrop()
    assert dataset.splits["test"].take(torch.arange(2)).shape == (2, 3, 224, 224)
    small = load_dataset("imagenet", folder=imagenet, image_size=56, validation_samples=4)
    assert small.resize == 64
    assert len(small.splits["validation"]) == 4
    assert small.splits["validation"].take(torch.arange(4)).shape == (4, 3, 56, 56)


def test_imagenet_that_is_not_there_says_how_to_lay_it_out(tmp_path: Path) -> None:
    sentence = "never downloaded; lay it out there as train/CLASS/.* and val/CLASS/.* 1,000 class"
    with pytest.raises(InputError, match=sentence):
        load_dataset("imagenet", folder=tmp_path, download=True)


def test_a_part_of_imagenet_is_no_imagenet(image_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "imagenet").symlink_to(image_folder)
    with pytest.raises(InputError, match="2 class folders, and ImageNet has 1,000; .*folder:"):
        load_dataset("imagenet", folder=tmp_path)


def test_imagenets_evaluation_is_the_centre_of_the_resized_image() -> None:
    ramp = np.add.outer(np.arange(120), np.arange(180)).astype(np.uint8)
    image = Image.fromarray(np.stack([ramp, ramp // 2, 255 - ramp % 200], axis=2).astype(np.uint8))
    image = image.resize((450, 300), Image.Resampling.BICUBIC)
    resized = image.resize((384, 256), Image.Resampling.BILINEAR)
    expected = np.asarray(resized)[16:240, 80:304].astype(int)
    seen = ResizeAndCrop(256, 224)(image)
    assert seen.shape == (224, 224, 3)
    assert np.abs(seen.astype(int) - expected).max() <= 1  # both round


def test_an_augmentation_is_the_one_asked_for(image_folder: Path) -> None:
    name = f"imagefolder:{image_folder}"
    assert load_dataset(name).augmentation == Augmentation(4, "reflect", True)
    crops = load_dataset(name, augmentation="random-resized-crop")
    assert crops.augmentation == RandomResizedCrop()
    shifts = load_dataset("digits", augmentation="crop-and-flip")
    assert shifts.augmentation == Augmentation(4, "reflect", True)
    with pytest.raises(InputError, match="cuts from image files, and scikit-learn digits has none"):
        load_dataset("digits", augmentation="random-resized-crop")


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


def test_a_folder_without_splits_is_all_test_split_where_that_will_do(image_folder: Path) -> None:
    dataset = load_dataset(f"imagefolder:{image_folder / 'train'}", unsplit=True)
    assert dataset.classes == ("dark", "light")
    assert list(dataset.splits) == ["test"]
    assert len(dataset.splits["test"]) == 48


def test_images_without_classes_are_of_one_that_says_so(image_folder: Path) -> None:
    dataset = load_dataset(f"imagefolder:{image_folder / 'train' / 'dark'}", unsplit=True)
    assert dataset.classes == ("no class",)
    assert dataset.splits["test"].take(torch.tensor([0, 23])).shape == (2, 3, 16, 16)


def test_a_folder_without_any_image_says_what_it_may_hold(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="neither train/CLASS/.*, nor CLASS/.*, nor images"):
        load_dataset(f"imagefolder:{tmp_path}", unsplit=True)


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
