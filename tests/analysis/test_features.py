"""Drawing images, and streaming layer outputs."""

from __future__ import annotations

import json
import weakref
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from analysis.balance import class_quotas, within_quotas
from analysis.errors import InputError
from analysis.features import (
    auxiliary_logits,
    check_images,
    classify,
    sample_images,
    stream_features,
    visit_features,
)
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


# ------------------------------------------------------------------------ balance


def test_a_plain_draw_is_that_of_the_shipped_study():
    path = Path(__file__).resolve().parents[2] / "checkpoints" / "digits.study.json"
    question = json.loads(path.read_text())["question"]
    sample = sample_images("digits", question["split"], question["samples"], question["seed"])
    assert sample.sha256 == question["images_sha256"]
    assert (sample.balanced, sample.note) == (False, "")


def test_a_balanced_draw_takes_as_many_images_of_each_class():
    sample = sample_images("digits", "test", 200, seed=4, balanced=True)
    assert np.bincount(sample.labels).tolist() == [20] * 10
    assert len(set(sample.indices.tolist())) == 200
    assert (sample.balanced, sample.note) == (True, "")
    split = load_dataset("digits").splits["test"]
    torch.testing.assert_close(sample.images, split.images[sample.indices])
    np.testing.assert_array_equal(sample.labels, split.labels.numpy()[sample.indices])


def test_balanced_images_are_the_first_of_each_class_in_the_order_of_the_plain_draw():
    sample = sample_images("digits", "test", 50, seed=4, balanced=True)
    order = sample_images("digits", "test", 1000, seed=4)
    taken = dict.fromkeys(range(10), 0)
    expected = []
    for index, label in zip(order.indices, order.labels):
        if taken[label] < 5:
            taken[label] += 1
            expected.append(index)
    assert sample.indices.tolist() == expected
    assert sample.labels.tolist() != sorted(sample.labels.tolist())


def test_batches_of_a_balanced_draw_are_not_of_single_classes():
    # Class-sorted batches move CKA by 0.19.
    labels = sample_images("digits", "test", 400, balanced=True).labels
    assert min(len(set(part)) for part in np.split(labels, 10)) >= 8


def test_images_that_do_not_divide_are_spread_and_the_note_says_so():
    sample = sample_images("digits", "test", 23, seed=1, balanced=True)
    counts = np.bincount(sample.labels, minlength=10)
    assert sorted(counts.tolist()) == [2] * 7 + [3] * 3
    more = ", ".join(str(label) for label in np.flatnonzero(counts == 3))
    assert sample.note == (
        f"23 images do not divide by 10 classes: 3 images of {more}, 2 of each other class."
    )
    other = sample_images("digits", "test", 23, seed=2, balanced=True)
    assert np.bincount(other.labels, minlength=10).tolist() != counts.tolist()


def test_without_a_number_a_balanced_draw_takes_what_the_smallest_class_allows():
    labels = load_dataset("digits").splits["test"].labels.numpy()
    sample = sample_images("digits", "test", balanced=True)
    assert len(sample.labels) == 10 * np.bincount(labels).min()
    assert len(sample_images("digits", "test", default_samples=57, balanced=True).labels) == 50


def test_a_class_with_too_few_images_is_refused(picture_folder):
    (picture_folder / "train" / "dog" / "3.png").unlink()
    name = f"imagefolder:{picture_folder}"
    assert sample_images(name, "train", 7, balanced=True).note.startswith("7 images do not divide")
    (picture_folder / "train" / "dog" / "2.png").unlink()
    with pytest.raises(
        InputError,
        match="6 images takes 3 of each class, but the train split of pictures holds 2 of class "
        "'dog'; ask for 4 or fewer, or draw them without balance",
    ):
        sample_images(name, "train", 6, balanced=True)
    with pytest.raises(InputError, match="1 images cannot be balanced over the 2 classes"):
        sample_images(name, "train", 1, balanced=True)


def test_a_remainder_that_too_few_classes_can_take_is_refused():
    counts, generator = np.array([2, 2, 3]), np.random.default_rng(0)
    assert class_quotas("abc", counts, 7, generator, "it").tolist() == [2, 2, 3]
    with pytest.raises(InputError, match="takes 3 of 2 classes, but only 1 classes .* ask for 6"):
        class_quotas("abc", counts, 8, generator, "it")
    with pytest.raises(InputError, match="holds 0 of class 'b'; draw them without balance"):
        class_quotas("abc", np.array([4, 0, 4]), 3, generator, "it")


def test_quotas_take_the_first_of_each_class():
    labels = np.array([2, 0, 0, 2, 1, 0, 2])
    assert within_quotas(labels, np.array([2, 0, 1])).tolist() == [0, 1, 2]
    assert within_quotas(labels, np.array([3, 1, 3])).tolist() == list(range(7))


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


def test_visited_features_and_logits_are_those_of_the_plain_forward_pass(model):
    images = sample_images("digits", "test", 4).images
    visited = {}
    logits = visit_features(
        model, images, lambda name, features: visited.update({name: features.clone()})
    )
    streamed = {name: features.clone() for name, features in stream_features(model, images)}
    assert list(visited) == list(streamed) == list(model.layer_names)
    assert all(torch.equal(visited[name], streamed[name]) for name in streamed)
    torch.testing.assert_close(logits, model.backbone(model.preprocess(images)))
    assert logits.grad_fn is None


def test_visiting_runs_every_layer_once(model):
    calls = []
    handles = [
        layer.register_forward_hook(lambda *_, name=name: calls.append(name))
        for name, layer in model.backbone.layers.items()
    ]
    visit_features(model, sample_images("digits", "test", 4).images, lambda name, features: None)
    for handle in handles:
        handle.remove()
    assert calls == list(model.layer_names)


def test_visiting_keeps_no_layers_features_but_the_last_input(model):
    references = []
    most = 0

    def count(name, features):
        nonlocal most
        references.append(weakref.ref(features))
        most = max(most, sum(reference() is not None for reference in references))

    visit_features(model, sample_images("digits", "test", 4).images, count)
    assert len(references) == len(model.layer_names)
    assert most == 1


def test_auxiliary_networks_answer_for_the_layers_that_have_them():
    path = Path(__file__).resolve().parents[2] / "checkpoints" / "digits-auglocal.safetensors"
    model = open_model(path, auxiliaries=True)
    sample = sample_images("digits", "test", 200)
    correct = {}

    def score(name, features):
        before = features.clone()
        logits = auxiliary_logits(model, name, features)
        assert torch.equal(features, before)
        if logits is not None:
            assert logits.shape == (200, 10)
            assert logits.grad_fn is None
            correct[name] = (logits.argmax(1).numpy() == sample.labels).mean()

    final = visit_features(model, sample.images, score)
    assert tuple(correct) == model.auxiliary_layers == model.layer_names[: len(correct)]
    # Trained to classify: far above the 0.1 of chance, and deeper layers near the network itself.
    assert min(correct.values()) > 0.5
    own = (final.argmax(1).numpy() == sample.labels).mean()
    assert list(correct.values())[-1] > own - 0.05
    assert auxiliary_logits(open_model(path), "stem", torch.zeros(1, 16, 32, 32)) is None
