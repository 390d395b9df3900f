"""Drawing images, and streaming layer outputs."""

from __future__ import annotations

import weakref
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from analysis.errors import InputError
from analysis.features import check_images, classify, sample_images, stream_features
from analysis.models import open_model
from auglocal.data import load_dataset


@pytest.fixture
def model(checkpoints):
    return open_model(checkpoints[0])


@pytest.fixture
def picture_folder(tmp_path):
    """Two classes of 6 x 6 pictures, four to train and two to test in each."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 4), ("test", 2)):
        for name in ("cat", "dog"):
            folder = tmp_path / "pictures" / split / name
            folder.mkdir(parents=True)
            for index in range(count):
                pixels = rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{index}.png")
    return tmp_path / "pictures"


# ------------------------------------------------------------------------ images


def test_a_sample_holds_the_images_and_labels_that_its_indices_say():
    sample = sample_images("digits", "test", 50, seed=3)
    split = load_dataset("digits").splits["test"]
    torch.testing.assert_close(sample.images, split.images[sample.indices])
    np.testing.assert_array_equal(sample.labels, split.labels.numpy()[sample.indices])
    assert sample.images.dtype == torch.uint8
    assert (sample.dataset, sample.title, sample.split) == ("digits", "scikit-learn digits", "test")


def test_no_image_is_drawn_twice_and_all_can_be_drawn():
    sample = sample_images("digits", "test", 1000)
    assert sorted(sample.indices.tolist()) == list(range(1000))


def test_images_are_shuffled_so_that_no_batch_is_of_one_class(picture_folder):
    labels = sample_images(f"imagefolder:{picture_folder}", "train", 8, seed=1).labels
    assert sorted(labels.tolist()) == [0] * 4 + [1] * 4
    assert labels.tolist() != sorted(labels.tolist())


def test_the_seed_decides_the_images():
    first, again, other = (sample_images("digits", "test", 20, seed) for seed in (1, 1, 2))
    assert first.sha256 == again.sha256 != other.sha256
    assert first.indices.tolist() == again.indices.tolist() != other.indices.tolist()


def test_without_a_number_a_thousand_images_or_all_are_drawn():
    assert len(sample_images("digits", "test").images) == 1000
    assert len(sample_images("digits", "train").images) == 697
    assert len(sample_images("digits", "test", default_samples=30).images) == 30


@pytest.mark.parametrize("samples", [1001, 0, -1])
def test_more_images_than_the_split_holds_or_none_are_refused(samples):
    with pytest.raises(InputError, match=r"were asked for, but it holds 1,000; ask for 1 to 1,000"):
        sample_images("digits", "test", samples)


def test_a_split_that_is_not_there_is_refused(picture_folder):
    with pytest.raises(InputError, match="pictures has no split 'validation', only train and test"):
        sample_images(f"imagefolder:{picture_folder}", "validation")


def test_a_negative_seed_is_refused():
    with pytest.raises(InputError, match="seed must be 0 or more, not -1"):
        sample_images("digits", "test", 10, seed=-1)


def test_an_unknown_data_set_is_refused():
    with pytest.raises(InputError, match="no data set 'mnist'; choose one of digits"):
        sample_images("mnist")


def test_a_data_set_that_was_not_downloaded_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"give --download .* or --data-folder"):
        sample_images("cifar10", folder=tmp_path)


# ------------------------------------------------------------------------ fit


def test_images_of_the_networks_size_fit(model):
    check_images(model, sample_images("digits", "test", 5))


def test_a_folder_of_another_size_is_refused_with_the_option_that_resizes(model, picture_folder):
    sample = sample_images(f"imagefolder:{picture_folder}", title="Pictures")
    with pytest.raises(
        InputError,
        match="first takes images of 3 x 32 x 32, but those of Pictures are 3 x 6 x 6; "
        "give --image-size 32",
    ):
        check_images(model, sample)
    check_images(model, sample_images(f"imagefolder:{picture_folder}", image_size=32))


def test_other_channels_and_sets_that_cannot_be_resized_are_refused(model):
    sample = sample_images("digits", "test", 5)
    with pytest.raises(InputError, match="are 1 x 32 x 32; choose another data set"):
        check_images(model, replace(sample, images=sample.images[:, :1]))
    with pytest.raises(InputError, match="are 3 x 16 x 32; choose another data set"):
        check_images(model, replace(sample, images=sample.images[:, :, ::2]))


# ------------------------------------------------------------------------ features


def test_streamed_features_are_those_of_the_plain_forward_pass(model):
    images = sample_images("digits", "test", 4).images
    outputs = {name: features.clone() for name, features in stream_features(model, images)}
    assert tuple(outputs) == model.layer_names
    features = model.preprocess(images)
    for name, layer in model.backbone.layers.items():
        features = layer(features)
        torch.testing.assert_close(outputs[name], features)
    expected = model.backbone(model.preprocess(images)).argmax(dim=1).tolist()
    assert classify(model, features).tolist() == expected


def test_the_callers_autograd_mode_is_left_alone_between_layers(model):
    images = sample_images("digits", "test", 4).images
    assert torch.is_grad_enabled()
    for _, features in stream_features(model, images):
        assert torch.is_grad_enabled()
        assert not features.requires_grad
        assert features.grad_fn is None


def test_no_more_than_the_current_layers_features_stay_alive(model):
    images = sample_images("digits", "test", 4).images
    references = []
    for _, features in stream_features(model, images):
        references.append(weakref.ref(features))
        del features
        assert sum(reference() is not None for reference in references) <= 1


def test_reading_changes_neither_weights_nor_running_statistics(model):
    before = {key: value.clone() for key, value in model.backbone.state_dict().items()}
    for _ in stream_features(model, sample_images("digits", "test", 4).images):
        pass
    after = model.backbone.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)
