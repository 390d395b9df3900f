"""Evaluation spread over ranks: every image once, the accuracy of one process, one rank speaks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from auglocal.__main__ import main
from auglocal.batches import ResidentSplit
from auglocal.data import load_dataset
from auglocal.material import place_splits
from auglocal.parallel.evaluation import SharedSplit
from auglocal.streaming import StreamedSplit
from tests.auglocal.ranks import Command, Ranks


@pytest.mark.parametrize("num_images", [1, 6, 20, 23])
@pytest.mark.parametrize("num_ranks", [1, 2, 3, 7])
def test_the_shares_of_all_ranks_hold_every_image_once(num_images: int, num_ranks: int) -> None:
    pixels = torch.arange(num_images, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 2, 2)
    whole = ResidentSplit(pixels, torch.arange(num_images) + 100)
    seen, batch_sizes = [], []
    for rank in range(num_ranks):
        share = SharedSplit(whole, rank, num_ranks, batch_size=3)
        batches = list(share.batches(3))
        assert len(share) == len(share.labels) == sum(len(images) for images, _ in batches)
        for images, labels in batches:
            assert torch.equal(images[:, 0, 0, 0] + 100, labels)
        batch_sizes += [len(images) for images, _ in batches]
        seen += [int(label) for _, labels in batches for label in labels]
    assert sorted(seen) == list(range(100, 100 + num_images))
    # As one process would cut them, or a batch's answers might differ in the last bit.
    assert sorted(batch_sizes) == sorted(
        [3] * (num_images // 3) + [num_images % 3] * (num_images % 3 > 0)
    )


def test_streamed_images_are_shared_out_too_and_a_rank_may_have_none(image_folder: Path) -> None:
    dataset = load_dataset(f"imagefolder:{image_folder}")
    whole = place_splits(dataset, torch.device("cpu"), stream=True, num_workers=0)["test"]
    assert isinstance(whole, StreamedSplit)
    expected = list(whole.batches(6))
    for num_ranks in (2, 5):
        shares = [SharedSplit(whole, rank, num_ranks, batch_size=6) for rank in range(num_ranks)]
        found = [list(share.batches(6)) for share in shares]
        assert [len(batches) for batches in found] == [
            len(expected[r::num_ranks]) for r in range(num_ranks)
        ]
        for rank, batches in enumerate(found):
            for (images, labels), (same, same_labels) in zip(
                batches, expected[rank::num_ranks], strict=True
            ):
                assert torch.equal(images, same)
                assert torch.equal(labels, same_labels)


@pytest.fixture(scope="module")
def checkpoint(image_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a network that has learned little, so that some answers are wrong."""
    out = tmp_path_factory.mktemp("run") / "run"
    options = ["--dataset", f"imagefolder:{image_folder}", "--rule", "bp", "--width", "0.25"]
    options += ["--epochs", "1", "--batch-size", "24", "--device", "cpu", "--learning-rate", "0.01"]
    assert main(["train", *options, "--out", str(out)]) == 0
    return out / "checkpoint.safetensors"


@pytest.mark.parametrize(("split", "batch_size"), [("train", 7), ("test", 16)])
@pytest.mark.parametrize("stream", ["--stream", "--no-stream"])
def test_two_ranks_find_the_accuracy_of_one_and_the_first_alone_prints(
    split: str,
    batch_size: int,
    stream: str,
    checkpoint: Path,
    image_folder: Path,
    ranks: Ranks,
    capsys: pytest.CaptureFixture[str],
) -> None:
    options = [str(checkpoint), "--dataset", f"imagefolder:{image_folder}", "--split", split]
    options += [
        "--batch-size",
        str(batch_size),
        "--device",
        "cpu",
        "--workers",
        "0",
        stream,
        "--json",
    ]
    capsys.readouterr()
    assert main(["evaluate", *options]) == 0
    alone = json.loads(capsys.readouterr().out)
    ranks.start(2, Command(options, "evaluate"))
    assert ranks.wait() == [0, 0], ranks.said()
    spread = json.loads(ranks.log(0).read_text().splitlines()[-1].rpartition("\r")[2])
    assert ranks.log(1).read_text() == ""
    assert spread == alone
    assert spread["samples"] == {"train": 48, "test": 16}[split]


def test_what_is_wrong_with_an_evaluation_is_said_once(
    checkpoint: Path, image_folder: Path, ranks: Ranks
) -> None:
    options = [str(checkpoint), "--dataset", f"imagefolder:{image_folder}", "--split", "dev"]
    ranks.start(2, Command([*options, "--device", "cpu"], "evaluate"))
    statuses = ranks.wait()
    assert 2 in statuses
    assert set(statuses) <= {1, 2}
    assert ranks.said().count("has no split 'dev'; choose one of") == 1
    assert "Traceback" not in ranks.said()
