"""Ranks that decode image files while they train, as the ImageNet recipes do."""

from __future__ import annotations

import os
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from auglocal.__main__ import main
from auglocal.batches import RandomResizedCrop
from auglocal.data import load_dataset
from auglocal.files import file_sha256
from auglocal.material import place_splits
from auglocal.parallel.layout import plan_epoch, shares_by_step
from auglocal.recipe import read_recipe
from auglocal.runs import RunFolder, read_metrics
from auglocal.streaming import StreamedSplit, default_workers
from tests.auglocal.ranks import Command, Ranks, wait_for

pytestmark = pytest.mark.slow
NUM_IMAGES, BATCH_SIZE = 54, 10


@pytest.fixture(scope="module")
def greys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of one grey each, which tells the image from every other, whatever crop is taken."""
    root = tmp_path_factory.mktemp("greys")
    for split, count in (("train", NUM_IMAGES), ("test", 10)):
        for index in range(count):
            folder = root / split / ("dark" if index < count // 2 else "light")
            folder.mkdir(parents=True, exist_ok=True)
            size = (40 + index % 7, 30 + index % 5, 3)
            pixels = np.full(size, 4 * index, np.uint8)
            Image.fromarray(pixels).save(folder / f"{index:02d}.png")
    return root


def images_of_rank(
    split: StreamedSplit, rank: int, *, epoch: int, seed: int = 3, first_step: int = 0
) -> list[list[int]]:
    """Which images a rank of two trains on, by step."""
    place = {"num_shares": 2, "share_index": rank, "first_step": first_step}
    parts = list(plan_epoch(len(split), BATCH_SIZE, **place))
    batches = split.training_batches(
        BATCH_SIZE,
        seed=seed,
        epoch=epoch,
        first_step=first_step,
        augmentation=RandomResizedCrop(),
        shares=shares_by_step(parts),
    )
    found = []
    for images, labels in batches:
        assert images.shape[1:] == (3, 16, 16)
        greys = images.flatten(1)
        assert torch.equal(greys.amin(1), greys.amax(1))
        indices = greys[:, 0].div(4, rounding_mode="floor").tolist()
        assert labels.tolist() == [int(index >= NUM_IMAGES // 2) for index in indices]
        found.append(indices)
    return found


def test_two_ranks_share_out_streamed_images_anew_each_epoch(greys: Path) -> None:
    dataset = load_dataset(f"imagefolder:{greys}", image_size=16)
    splits = [
        place_splits(dataset, torch.device("cpu"), stream=True, num_workers=number)["train"]
        for number in (0, 1)  # the number of workers says nothing about the order
    ]
    assert all(isinstance(split, StreamedSplit) for split in splits)
    by_epoch = []
    for epoch in range(3):
        first, second = (
            images_of_rank(split, rank, epoch=epoch) for rank, split in enumerate(splits)
        )
        assert [len(images) for images in first] == [5, 5, 5, 5, 5, 2]
        assert sorted(chain(*first, *second)) == list(range(NUM_IMAGES))
        by_epoch.append((first, second))
    assert by_epoch[0] != by_epoch[1] != by_epoch[2] != by_epoch[0]
    # Who trains on what is drawn anew, not only when.
    assert set(chain(*by_epoch[0][0])) != set(chain(*by_epoch[1][0]))
    again = images_of_rank(splits[0], 1, epoch=1)
    assert again == by_epoch[1][1]
    assert images_of_rank(splits[0], 1, epoch=1, first_step=2) == again[2:]
    assert images_of_rank(splits[0], 1, epoch=1, seed=4) != again


@pytest.mark.parametrize("model", ["resnet34", "resnet101", "vgg13"])
def test_the_imagenet_recipes_have_the_published_schedule(model: str) -> None:
    for rule in ("auglocal", "bp"):
        values = read_recipe(f"imagenet-{model}-{rule}").values
        # Ma, Wu, Si, Tan (ICLR 2024): 1024 images in all at rate 0.4, cosine without warm-up.
        assert values["dataset"] == "imagenet"
        assert values["architecture"] == f"{model}-imagenet"
        assert (values["epochs"], values["batch_size"], values["learning_rate"]) == (200, 1024, 0.4)
        assert (values["schedule"], values["weight_decay"]) == ("cosine-no-warmup", 1e-4)
        assert values["precision"] == "bf16"


def tiny_imagenet(greys: Path, *options: str) -> list[str]:
    """A recipe for ImageNet, on a few small files."""
    small = ["--recipe", "imagenet-resnet34-auglocal", "--dataset", f"imagefolder:{greys}"]
    small += ["--augmentation", "random-resized-crop", "--image-size", "32", "--width", "0.125"]
    small += ["--batch-size", str(BATCH_SIZE), "--modules", "3", "--auxiliary-depth", "1"]
    return [*small, "--workers", "1", "--device", "cpu", *options]


def test_ranks_that_stream_are_killed_and_go_on_as_if_nothing_had_happened(
    greys: Path, tmp_path: Path, ranks: Ranks
) -> None:
    common = tiny_imagenet(greys, "--epochs", "2")
    ranks.train("data=2", 2, *common, "--out", str(tmp_path / "whole"))
    whole, killed = RunFolder(tmp_path / "whole"), RunFolder(tmp_path / "killed")
    ranks.start(2, Command([*common, "--out", str(killed.path), "--parallel", "data=2"]))
    wait_for(lambda: len(read_metrics(killed)) >= 1, ranks.processes)
    ranks.processes[1].kill()
    # The dead rank's worker holds its connections for a moment.
    assert ranks.wait()[0] == 1, ranks.said()
    assert ranks.said().count("Rank 1 (data 1 of 0 to 1) ended without a word") == 1
    assert len(read_metrics(killed)) == 1
    ranks.train("data=2", 2, "--resume", str(killed.path))
    assert file_sha256(whole.checkpoint) == file_sha256(killed.checkpoint)
    assert [line["losses"] for line in read_metrics(whole)] == [
        line["losses"] for line in read_metrics(killed)
    ]


def test_ranks_that_own_blocks_stream_to_the_weights_of_one_process(
    greys: Path, tmp_path: Path, ranks: Ranks
) -> None:
    common = tiny_imagenet(greys, "--epochs", "1")
    ranks.train("layers=2", 2, *common, "--out", str(tmp_path / "ranks"))
    assert main(["train", *common, "--out", str(tmp_path / "alone")]) == 0
    one, other = (RunFolder(tmp_path / name) for name in ("alone", "ranks"))
    assert file_sha256(one.checkpoint) == file_sha256(other.checkpoint)


def test_the_ranks_of_a_machine_share_out_its_cores_for_decoding(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(12)), raising=False)
    assert default_workers() == 8
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert default_workers() == 3
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "16")
    assert default_workers() == 1
