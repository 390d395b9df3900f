"""Normalisation, order of channels and order of classes, found where they were hidden."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from analysis.errors import InputError
from analysis.features import ImageSample
from analysis.modules import from_module
from analysis.preprocessing import (
    BGR,
    GREY_PRESETS,
    PRESETS,
    RGB,
    best_order,
    describe,
    presets,
    try_preprocessing,
    with_preprocessing,
)

CLASSES = ("dark", "red", "green", "blue", "bright")
# What an image of each class shows, as values in [0, 1].
# Red and blue are no mirror images, or another order of classes would do for another of channels.
COLOURS = torch.tensor(
    [[0.30] * 3, [0.7, 0.3, 0.35], [0.3, 0.6, 0.3], [0.25, 0.4, 0.55], [0.6] * 3]
)


class Nearest(nn.Module):
    """Answers with the class whose colour, once normalised, is nearest to the image's mean."""

    def __init__(self, mean, std, order=range(5), flip=False):
        super().__init__()
        self.body = nn.Conv2d(3, 3, 1, bias=False)
        self.body.weight.data = torch.eye(3).reshape(3, 3, 1, 1)
        colours = (COLOURS - torch.tensor(mean)) / torch.tensor(std)
        colours = colours[list(order)]
        self.register_buffer("colours", colours.flip(1) if flip else colours)

    def forward(self, images):
        features = self.body(images).mean((2, 3))
        return -10 * torch.cdist(features, self.colours) ** 2


@pytest.fixture
def sample():
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(400) % 5
    labels = labels[torch.randperm(400, generator=generator)]
    values = COLOURS[labels][:, :, None, None] + 0.05 * torch.randn(
        400, 3, 8, 8, generator=generator
    )
    values += 0.08 * torch.randn(400, 3, 1, 1, generator=generator)
    images = (values.clamp(0, 1) * 255).round().to(torch.uint8)
    return ImageSample(
        images=images,
        labels=labels.numpy(),
        classes=CLASSES,
        dataset="colours",
        title="colours",
        split="test",
        indices=np.arange(400),
        seed=0,
        sha256="0" * 64,
    )


@pytest.mark.parametrize("preset", PRESETS, ids=describe)
@pytest.mark.parametrize("flip", [False, True])
def test_the_preprocessing_of_training_is_found(sample, preset, flip):
    model = from_module(Nearest(preset.mean, preset.std, flip=flip), input_size=(3, 8, 8))
    evidence = try_preprocessing(model, sample)
    true = replace(preset, channel_order=BGR if flip else RGB)
    (trial,) = (trial for trial in evidence.trials if trial.preprocessing == true)
    assert evidence.tells
    assert describe(true) in evidence.alike
    # These images cannot tell all presets apart: what is named is as good as what is true.
    assert evidence.best.cross_entropy <= trial.cross_entropy + 0.01
    assert evidence.best.accuracy > 0.8
    assert evidence.best.preprocessing.channel_order == true.channel_order
    assert evidence.class_names == CLASSES


def test_another_order_of_classes_is_found_on_images_not_used_to_find_it(sample):
    preset, order = PRESETS[0], [3, 1, 4, 0, 2]
    model = from_module(Nearest(preset.mean, preset.std, order), input_size=(3, 8, 8))
    evidence = try_preprocessing(model, sample)
    assert evidence.best.needs_order
    assert evidence.best.class_order == tuple(order)
    assert evidence.class_names == ("blue", "red", "bright", "dark", "green")
    right, images = evidence.best.reordered
    assert images == 200
    assert right > 180
    assert evidence.best.accuracy < 0.3 < evidence.best.best


def test_a_network_that_answers_at_random_tells_nothing(sample):
    model = from_module(Nearest((0.5,) * 3, (0.5,) * 3), input_size=(3, 8, 8))
    shuffled = np.random.default_rng(0).permutation(sample.labels)
    evidence = try_preprocessing(model, replace(sample, labels=shuffled))
    assert not evidence.tells
    assert not evidence.best.needs_order
    assert evidence.class_names == CLASSES


def test_cross_entropy_is_that_of_pytorch(sample):
    preset = PRESETS[3]
    network = Nearest(preset.mean, preset.std)
    evidence = try_preprocessing(from_module(network, input_size=(3, 8, 8)), sample, [preset])
    images = sample.images.float() / 255
    normalised = (images - torch.tensor(preset.mean).view(3, 1, 1)) / torch.tensor(preset.std).view(
        3, 1, 1
    )
    with torch.no_grad():
        expected = nn.functional.cross_entropy(network(normalised), torch.from_numpy(sample.labels))
    assert evidence.best.cross_entropy == pytest.approx(float(expected), rel=1e-4)


def test_the_best_order_of_some_outputs_is_that_of_most_right_answers():
    # Output 0 answers for class 1 mostly, and output 1 for class 0; output 2 keeps its own.
    predictions = np.array([0, 0, 0, 1, 1, 0])
    labels = np.array([1, 1, 1, 0, 0, 0])
    np.testing.assert_array_equal(best_order(predictions, labels, 3), [1, 0, 2])
    np.testing.assert_array_equal(best_order(np.arange(4), np.arange(4), 4), np.arange(4))
    # As good either way: nothing is exchanged.
    np.testing.assert_array_equal(best_order(np.array([0, 1]), np.array([1, 1]), 2), [0, 1])


def test_grey_images_have_presets_of_their_own():
    assert presets(1) == GREY_PRESETS
    assert len(presets(3)) == 2 * len(PRESETS)
    (only,) = presets(5)
    assert len(only.mean) == len(only.std) == 5


def test_misfits_are_one_sentence(sample):
    model = from_module(Nearest((0.5,) * 3, (0.5,) * 3), input_size=(3, 8, 8))
    with pytest.raises(InputError, match=r"tells 5 classes apart, and colours has 7"):
        try_preprocessing(model, replace(sample, classes=tuple("abcdefg")))
    for mean, std in (((0.5,), (0.5,)), ((0.5,) * 3, (0.5, 0.0, 0.5))):
        with pytest.raises(InputError, match=r"3 numbers each, std above 0.*; give both so"):
            with_preprocessing(model, mean, std)
