"""Streamed images: the batches of images in memory, whatever the workers, and what ends them."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from multiprocessing.context import ForkServerContext
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2
from tqdm import tqdm

from auglocal.__main__ import main
from auglocal.batches import Augmentation, BatchedSplit, RandomResizedCrop, ResidentSplit
from auglocal.config import TrainConfig
from auglocal.data import Dataset, load_dataset
from auglocal.errors import InputError, WorkError
from auglocal.evaluation import evaluate
from auglocal.files import file_sha256
from auglocal.image_folder import FileSplit
from auglocal.material import place_splits, prepare_material
from auglocal.randomness import derive_seed
from auglocal.rules.registry import RULES, build_network
from auglocal.runs import RunFolder, create_run, load_state
from auglocal.streaming import CropDraw, DecodingWorkers, StreamedSplit, random_crop
from auglocal.training import Listener, StepReport, train

CPU = torch.device("cpu")
SHIFTS = Augmentation(2, "reflect", True)
CROPS = RandomResizedCrop()


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of JPEG files of different sizes: 80 for training, 10 for testing."""
    root = tmp_path_factory.mktemp("photos")
    generator = np.random.default_rng(0)
    for split, count in (("train", 40), ("test", 5)):
        for name, offset in (("dark", 40), ("light", 160)):
            (root / split / name).mkdir(parents=True)
            for index in range(count):
                height, width = generator.integers(20, 60, 2)
                pixels = offset + generator.integers(0, 60, (height, width, 3))
                file = root / split / name / f"{index:02d}.jpg"
                Image.fromarray(pixels.astype(np.uint8)).save(file)
    return root


def open_photos(root: Path, image_size: int | None = 16, **options: object) -> Dataset:
    return load_dataset(f"imagefolder:{root}", image_size=image_size, **options)


def place(dataset: Dataset, num_workers: int | None, stream: bool) -> dict[str, BatchedSplit]:
    return place_splits(dataset, CPU, stream=stream, num_workers=num_workers)


def epoch_of(
    split: BatchedSplit, augmentation: Augmentation | RandomResizedCrop | None, first_step: int = 0
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Batches of 35 images: more than one part each."""
    return list(
        split.training_batches(
            35, seed=3, epoch=1, first_step=first_step, augmentation=augmentation
        )
    )


def are_equal(
    batches: list[tuple[torch.Tensor, torch.Tensor]], same: list[tuple[torch.Tensor, torch.Tensor]]
) -> bool:
    pairs = zip(batches, same, strict=True)
    return all(torch.equal(a, c) and torch.equal(b, d) for (a, b), (c, d) in pairs)


@pytest.mark.parametrize("augmentation", [None, SHIFTS, CROPS])
def test_the_number_of_workers_changes_nothing(
    augmentation: Augmentation | RandomResizedCrop | None, photos: Path
) -> None:
    dataset = open_photos(photos)
    expected = epoch_of(place(dataset, 0, stream=True)["train"], augmentation)
    assert [len(images) for images, _ in expected] == [35, 35, 10]
    for num_workers in (1, 3):
        split = place(dataset, num_workers, stream=True)["train"]
        assert are_equal(epoch_of(split, augmentation), expected)
        assert are_equal(epoch_of(split, augmentation, first_step=1), expected[1:])


@pytest.mark.parametrize("augmentation", [None, SHIFTS])
def test_streamed_batches_are_those_of_images_in_memory(
    augmentation: Augmentation | None, photos: Path
) -> None:
    dataset = open_photos(photos)
    streamed, resident = place(dataset, 2, stream=True), place(dataset, 0, stream=False)
    assert isinstance(streamed["train"], StreamedSplit)
    assert isinstance(resident["train"], ResidentSplit)
    for name, split in streamed.items():
        assert split.image_shape == resident[name].image_shape == (3, 16, 16)
        assert are_equal(list(split.batches(7)), list(resident[name].batches(7)))
        assert are_equal(epoch_of(split, augmentation), epoch_of(resident[name], augmentation))


def test_a_stream_that_was_left_disturbs_no_later_one(photos: Path) -> None:
    splits = place(open_photos(photos), 2, stream=True)
    expected = epoch_of(splits["train"], CROPS)
    next(iter(splits["train"].batches(4)))
    next(iter(splits["test"].batches(4)))
    assert are_equal(epoch_of(splits["train"], CROPS), expected)


def test_every_image_and_epoch_has_a_crop_of_its_own(photos: Path) -> None:
    image = torch.arange(48 * 40, dtype=torch.int32).remainder(251).to(torch.uint8)
    image = image.view(1, 40, 48).repeat(3, 1, 1)
    crops = {
        random_crop(image, index, CropDraw(CROPS, (12, 10), seed, epoch)).numpy().tobytes()
        for index in range(4)
        for seed in range(2)
        for epoch in range(3)
    }
    assert len(crops) == 24


@pytest.mark.parametrize("flip", [False, True])
def test_a_crop_is_the_part_that_torchvision_draws_resized_by_pil(flip: bool) -> None:
    generator = np.random.default_rng(1)
    coarse = Image.fromarray(generator.integers(0, 256, (9, 12, 3), dtype=np.uint8))
    stored = coarse.resize((120, 90), Image.Resampling.BICUBIC)
    pixels = torch.from_numpy(np.array(stored)).permute(2, 0, 1)
    crop = RandomResizedCrop(flip=flip)
    num_mirrored = 0
    for index in range(12):
        before = torch.get_rng_state()
        found = random_crop(pixels, index, CropDraw(crop, (24, 32), seed=5, epoch=2))
        assert torch.equal(torch.get_rng_state(), before)
        with torch.random.fork_rng():
            torch.manual_seed(derive_seed(5, "crop", 2, index))
            box = v2.RandomResizedCrop((24, 32)).make_params([pixels])
        left, top = box["left"], box["top"]
        part = stored.crop((left, top, left + box["width"], top + box["height"]))
        expected = np.asarray(part.resize((32, 24), Image.Resampling.BILINEAR)).transpose(2, 0, 1)
        plain = np.abs(found.numpy().astype(int) - expected).max() <= 1  # both round
        mirrored = np.abs(found.numpy().astype(int) - expected[:, :, ::-1]).max() <= 1
        assert plain or (flip and mirrored)
        num_mirrored += not plain
    assert (num_mirrored > 0) == flip


def test_evaluation_of_a_stream_is_that_of_images_in_memory(photos: Path) -> None:
    dataset = open_photos(photos)
    backbone = build_network("resnet20", RULES["bp"](), 2, (3, 16, 16), 0, width=0.25).backbone
    measured = [
        evaluate(backbone, place(dataset, 1, stream)["train"], (0.5,) * 3, (0.5,) * 3, batch_size=9)
        for stream in (True, False)
    ]
    assert measured[0] == measured[1]
    assert measured[0].samples == 80


def test_the_command_evaluates_a_stream(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(make_config(photos, epochs=1), tmp_path / "run", Listener())
    command = ["evaluate", str(tmp_path / "run" / "checkpoint.safetensors"), "--json"]
    command += ["--dataset", f"imagefolder:{photos}", "--device", "cpu", "--split", "train"]
    outcomes = []
    for more in (["--stream", "--workers", "1"], ["--no-stream"]):
        assert main([*command, *more]) == 0
        outcomes.append(json.loads(capsys.readouterr().out))
    assert outcomes[0] == outcomes[1]
    assert outcomes[0]["samples"] == 80


def test_a_held_out_split_is_streamed_by_its_own_files(photos: Path) -> None:
    dataset = open_photos(photos, validation_samples=10)
    streamed, resident = place(dataset, 1, stream=True), place(dataset, 0, stream=False)
    for name in ("train", "validation"):
        assert are_equal(list(streamed[name].batches(20)), list(resident[name].batches(20)))


# Where images are held, and what is refused.


def test_files_are_streamed_where_they_do_not_fit(
    photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = open_photos(photos)
    in_memory = place_splits(dataset, CPU, stream=None, num_workers=0)
    assert all(isinstance(split, ResidentSplit) for split in in_memory.values())
    monkeypatch.setattr("auglocal.material.MAX_DATASET_BYTES", 80 * 3 * 16 * 16 - 1)
    streamed = place_splits(dataset, CPU, stream=None, num_workers=0)
    assert all(isinstance(split, StreamedSplit) for split in streamed.values())


@pytest.mark.parametrize(("free", "fits"), [(2 * 90 * 768, True), (2 * 90 * 768 - 2, False)])
def test_half_of_a_gpus_free_memory_is_for_images(
    free: int, fits: bool, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class OnTheGpu(ResidentSplit):
        pass

    monkeypatch.setattr("torch.cuda.mem_get_info", lambda device: (free, 2 * free))
    monkeypatch.setattr("torch.Tensor.to", lambda tensor, device: tensor)
    monkeypatch.setattr("auglocal.material.ResidentSplit", OnTheGpu)
    placed = place_splits(open_photos(photos), torch.device("cuda"), stream=None, num_workers=0)
    assert isinstance(placed["train"], OnTheGpu) == fits


def make_config(root: Path, **changes: object) -> TrainConfig:
    config = TrainConfig(
        dataset=f"imagefolder:{root}",
        rule="linear",
        width=0.25,
        modules=3,
        image_size=16,
        epochs=2,
        batch_size=24,
        device="cpu",
    )
    return replace(config, **changes)


def test_mean_and_deviation_do_not_depend_on_streaming(
    photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("auglocal.material.MAX_MEASURED_IMAGES", 10)
    resident, streamed = (
        prepare_material(make_config(photos, stream=stream, workers=1), download=False)
        for stream in (False, True)
    )
    assert resident.normalisation == streamed.normalisation
    assert isinstance(streamed.training, StreamedSplit)


def test_mean_and_deviation_of_a_large_folder_are_measured_on_a_fixed_sample(
    photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = prepare_material(make_config(photos), download=False)
    monkeypatch.setattr("auglocal.material.MAX_MEASURED_IMAGES", 60)
    crops = make_config(photos, augmentation="random-resized-crop", workers=0)
    first = prepare_material(crops, download=False)
    monkeypatch.setattr("auglocal.material.MAX_DATASET_BYTES", 80 * 3 * 16 * 16 - 1)
    second = prepare_material(make_config(photos, workers=1), download=False)
    assert first.normalisation == second.normalisation != whole.normalisation
    assert first.mean == pytest.approx(whole.mean, abs=0.03)


def test_what_cannot_be_streamed_or_must_be_says_so(photos: Path) -> None:
    with pytest.raises(InputError, match="digits is always held in memory; leave --stream out"):
        prepare_material(TrainConfig(stream=True), download=False)
    config = make_config(photos, augmentation="random-resized-crop", stream=False)
    with pytest.raises(InputError, match="while it trains; leave --no-stream out, or give"):
        prepare_material(config, download=False)


def test_streamed_images_of_different_sizes_are_refused_before_training(
    image_folder: Path, tmp_path: Path
) -> None:
    root = tmp_path / "tree"
    shutil.copytree(image_folder, root)
    Image.new("RGB", (40, 20), (255, 0, 0)).save(root / "test" / "light" / "99.png")
    with pytest.raises(InputError, match=r"00\.png is 16 x 16, .*99\.png is 40 x 20\); give --im"):
        place(open_photos(root, image_size=None), 0, stream=True)
    assert len(place(open_photos(root, image_size=12), 0, stream=True)["test"]) == 17


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_corrupt_streamed_image_is_named_and_left_out_where_asked(
    num_workers: int, photos: Path, tmp_path: Path
) -> None:
    root = tmp_path / "tree"
    shutil.copytree(photos, root)
    corrupt = root / "train" / "light" / "07.jpg"
    corrupt.write_bytes(corrupt.read_bytes()[:300])
    split = place(open_photos(root), num_workers, stream=True)["train"]
    with pytest.raises(InputError, match=r"07\.jpg is not a readable image; .*skip-corrupt"):
        epoch_of(split, CROPS)
    dataset = open_photos(root, skip_corrupt=True)
    assert dataset.skipped == (str(corrupt),)
    labels = torch.cat([b for _, b in epoch_of(place(dataset, num_workers, True)["train"], CROPS)])
    assert torch.bincount(labels).tolist() == [40, 39]


def test_paths_of_any_characters_are_read(photos: Path, tmp_path: Path) -> None:
    for split in ("train", "test"):
        for name in ("größe", "小"):
            (tmp_path / split / name).mkdir(parents=True)
            for file in ("a b.jpg", "ü.jpg"):
                shutil.copy(photos / "test" / "dark" / "00.jpg", tmp_path / split / name / file)
    split = place(open_photos(tmp_path), 0, stream=True)["train"]
    assert sum(len(images) for images, _ in split.batches(3)) == 4


# Runs: what is killed goes on, and leaves nothing behind.


def run(config: TrainConfig, path: Path, listener: Listener) -> bool:
    """Train, or go on."""
    folder = RunFolder(path) if path.exists() else create_run(path, config, overwrite=False)
    return train(config, prepare_material(config, download=False), folder, listener)


def stopping_after(num_steps: int) -> Listener:
    steps: list[StepReport] = []
    return Listener(on_step=steps.append, should_stop=lambda: len(steps) >= num_steps)


def test_a_stopped_run_goes_on_exactly_with_other_workers(photos: Path, tmp_path: Path) -> None:
    config = make_config(photos, augmentation="random-resized-crop", workers=0)
    assert run(config, tmp_path / "whole", Listener())
    for num_workers, num_steps in ((2, 1), (1, 4)):
        stopped = replace(config, workers=num_workers)
        assert not run(stopped, tmp_path / "parts", stopping_after(num_steps))
    assert run(config, tmp_path / "parts", Listener())
    whole, parts = (RunFolder(tmp_path / name) for name in ("whole", "parts"))
    assert file_sha256(whole.checkpoint) == file_sha256(parts.checkpoint)


def test_a_run_may_go_on_from_memory_to_streaming(photos: Path, tmp_path: Path) -> None:
    config = make_config(photos, stream=False)
    assert run(config, tmp_path / "whole", Listener())
    assert not run(config, tmp_path / "parts", stopping_after(2))
    assert run(replace(config, stream=True, workers=1), tmp_path / "parts", Listener())
    whole, parts = (RunFolder(tmp_path / name) for name in ("whole", "parts"))
    assert file_sha256(whole.checkpoint) == file_sha256(parts.checkpoint)


@pytest.mark.slow
def test_a_killed_worker_ends_the_run_in_a_sentence_and_the_run_goes_on(
    photos: Path, tmp_path: Path
) -> None:
    config = make_config(photos, augmentation="random-resized-crop", epochs=3, workers=1)
    assert run(config, tmp_path / "whole", Listener())

    others = set(multiprocessing.active_children())

    def kill_worker(report: StepReport) -> None:
        if report.epoch == 2:
            for worker in set(multiprocessing.active_children()) - others:
                os.kill(worker.pid, signal.SIGKILL)

    before = signal.getsignal(signal.SIGCHLD)
    with pytest.raises(WorkError, match="died .killed, or out of memory.* --workers than 1"):
        run(config, tmp_path / "killed", Listener(on_step=kill_worker))
    assert signal.getsignal(signal.SIGCHLD) == before
    saved = load_state(RunFolder(tmp_path / "killed"))
    assert saved is not None
    assert saved["epoch"] in (1, 2)  # a small epoch may have been decoded before the kill
    assert run(replace(config, workers=0), tmp_path / "killed", Listener())
    whole, killed = (RunFolder(tmp_path / name) for name in ("whole", "killed"))
    assert file_sha256(whole.checkpoint) == file_sha256(killed.checkpoint)


def test_an_error_of_the_decoding_itself_is_not_called_a_death(
    photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object) -> None:
        raise RuntimeError("no such operator")

    monkeypatch.setattr("auglocal.streaming.random_crop", fail)
    with pytest.raises(RuntimeError, match="no such operator"):
        epoch_of(place(open_photos(photos), 1, stream=True)["train"], CROPS)


def test_a_worker_without_memory_is_a_death(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object) -> None:
        raise MemoryError

    monkeypatch.setattr("auglocal.streaming.random_crop", fail)
    with pytest.raises(WorkError, match="A worker process that decodes images died"):
        epoch_of(place(open_photos(photos), 1, stream=True)["train"], CROPS)


def test_workers_end_with_who_uses_them(photos: Path) -> None:
    dataset = open_photos(photos)
    assert isinstance(dataset.splits["train"], FileSplit)
    others = set(multiprocessing.active_children())
    workers = DecodingWorkers({"train": dataset.splits["train"].read}, 2, CPU)
    split = StreamedSplit("train", dataset.splits["train"].labels, (3, 16, 16), workers)
    next(iter(split.batches(3)))
    started = set(multiprocessing.active_children()) - others
    assert len(started) == 2
    del split, workers
    for worker in started:
        worker.join(5)
        assert not worker.is_alive()


def group_members(group: int) -> list[int]:
    """Living processes of a process group, by /proc."""
    members = []
    for entry in Path("/proc").iterdir():
        try:
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
        except (OSError, ValueError):
            continue
        if entry.name.isdigit() and int(fields[2]) == group and fields[0] != "Z":
            members.append(int(entry.name))
    return members


def train_in_a_group(options: list[str]) -> None:
    """The command, in a process group of its own and with nothing on the terminal."""
    os.setsid()
    for descriptor in (1, 2):
        os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)
    torch.set_num_threads(1)
    tqdm.set_lock(threading.RLock())  # the bar's own would outlive a killed process
    raise SystemExit(main(["train", *options]))


@pytest.fixture(scope="module")
def processes() -> ForkServerContext:
    """Processes that start at once: they are forked from one that has imported PyTorch."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["auglocal.__main__"])
    return context


def wait_until(condition: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.005)
    assert condition()


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes in /proc")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_stopped_or_killed_command_leaves_no_workers_and_goes_on(
    number: signal.Signals, photos: Path, tmp_path: Path, processes: ForkServerContext
) -> None:
    config = make_config(
        photos, augmentation="random-resized-crop", epochs=20, batch_size=8, workers=2
    )
    folder = create_run(tmp_path / "stopped", config, overwrite=False)
    process = processes.Process(target=train_in_a_group, args=(["--resume", str(folder.path)],))
    process.start()
    group = process.pid
    assert group is not None
    try:
        wait_until(folder.checkpoint.exists, 60)
        assert len(group_members(group)) >= 3  # and a tracker of resources
        if number == signal.SIGKILL:
            process.kill()  # its workers are not told
        else:
            os.killpg(group, number)  # as a terminal does on Ctrl-C: the workers are told too
        process.join(30)
        assert process.exitcode == (-signal.SIGKILL if number == signal.SIGKILL else 130)
        wait_until(lambda: not group_members(group), 20)
    finally:
        for member in group_members(group):
            os.kill(member, signal.SIGKILL)
    saved = load_state(folder)
    assert saved is not None
    assert saved["epoch"] < 20
    # What is left of the run goes as it would have gone: as far as another epoch here.
    shutil.copytree(folder.path, tmp_path / "on")
    for path in (tmp_path / "on", tmp_path / "whole"):
        listener = epochs_listener(saved["epoch"] + 2)
        assert not run(replace(config, workers=0), path, listener)
    states = [load_state(RunFolder(tmp_path / name)) for name in ("on", "whole")]
    weights, same = (state["network"] for state in states if state is not None)
    assert all(torch.equal(value, same[key]) for key, value in weights.items())


def epochs_listener(epoch: int) -> Listener:
    """Stop in the midst of this epoch, from 1."""
    reports: list[StepReport] = []
    return Listener(
        on_step=reports.append,
        should_stop=lambda: bool(reports) and reports[-1].step >= (epoch - 1) * 10 + 3,
    )
