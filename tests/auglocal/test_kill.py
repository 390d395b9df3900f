"""A run that is killed again and again, at moments drawn at random, ends as one that was not."""

from __future__ import annotations

import multiprocessing
import os
import random
import threading
import time
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
import torch
from tqdm import tqdm

from auglocal.__main__ import main
from auglocal.checkpoint import load_checkpoint
from auglocal.files import file_sha256
from auglocal.runs import RunFolder, load_state, read_metrics

NUM_KILLS = 20
EPOCHS = 32
OPTIONS = ["--rule", "linear", "--modules", "3", "--width", "0.25", "--batch-size", "12"]
OPTIONS += ["--validation-samples", "8", "--snapshot-epochs", "0,8,16,32", "--device", "cpu"]


@pytest.fixture
def processes() -> ForkServerContext:
    """Processes that start at once: they are forked from one that has imported PyTorch."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["auglocal.__main__"])
    return context


def train_quietly(options: list[str]) -> None:
    """The command, on one thread and with nothing on the terminal."""
    for descriptor in (1, 2):
        os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)
    torch.set_num_threads(1)
    # The bar's own lock is a semaphore of the system, which a killed process would leave behind.
    tqdm.set_lock(threading.RLock())
    raise SystemExit(main(["train", *options]))


def seconds_of(processes: ForkServerContext, options: list[str]) -> float:
    """Run the command to its end."""
    started = time.perf_counter()
    process = processes.Process(target=train_quietly, args=(options,))
    process.start()
    process.join()
    assert process.exitcode == 0
    return time.perf_counter() - started


def committed_epochs(folder: RunFolder) -> int:
    """Epochs that a run would go on from."""
    saved = load_state(folder)
    return 0 if saved is None else int(saved["epoch"])


def recorded_epochs(folder: RunFolder) -> int:
    """Epochs that a run has a line for."""
    return len(read_metrics(folder))


def kill_at_random(
    process: BaseProcess, folder: RunFolder, draw: random.Random, start: float, epoch: float
) -> int:
    """Kill while the process starts, or after it recorded an epoch; returns the epochs seen before.

    The moment follows the run's own progress, so that a slow machine is killed in training too.
    """
    first = recorded_epochs(folder)
    if draw.random() < 0.3:
        time.sleep(draw.uniform(0, start))
    else:
        while process.is_alive() and recorded_epochs(folder) <= first:
            time.sleep(0.002)
        time.sleep(draw.uniform(0, 1.5 * epoch))
    seen = recorded_epochs(folder)
    process.kill()
    process.join()
    return seen


@pytest.mark.slow
def test_a_run_killed_at_20_random_moments_ends_as_one_that_was_not(
    image_folder: Path, tmp_path: Path, processes: ForkServerContext
) -> None:
    new = ["--dataset", f"imagefolder:{image_folder}", "--epochs", str(EPOCHS), *OPTIONS]
    whole, killed = RunFolder(tmp_path / "whole"), RunFolder(tmp_path / "killed")
    seconds_of(processes, [*new, "--dry-run"])  # the first process waits for the imports
    training = seconds_of(processes, [*new, "--out", str(whole.path)])
    # Nothing is left to do: what is measured is how long a run takes to start.
    start = seconds_of(processes, ["--resume", str(whole.path)])
    epoch = max(0.005, (training - start) / EPOCHS)
    draw = random.Random(0)
    epochs = num_kills_in_training = 0
    for _ in range(NUM_KILLS):
        command = ["--resume", str(killed.path)]
        if not killed.config.exists():
            command = [*new, "--out", str(killed.path)]
        process = processes.Process(target=train_quietly, args=(command,))
        process.start()
        seen = kill_at_random(process, killed, draw, start, epoch)
        before, epochs = epochs, committed_epochs(killed)
        assert epochs >= max(before, seen - 1)
        assert recorded_epochs(killed) - epochs in (0, 1)
        num_kills_in_training += before < epochs < EPOCHS
    assert num_kills_in_training >= NUM_KILLS // 4
    seconds_of(processes, ["--resume", str(killed.path)])
    files = ["checkpoint.safetensors", "best.safetensors"]
    files += [f"snapshots/epoch-{epoch:04d}.safetensors" for epoch in (0, 8, 16, 32)]
    for name in files:
        assert file_sha256(whole.path / name) == file_sha256(killed.path / name)
        load_checkpoint(killed.path / name)
    assert not [path for path in killed.path.rglob(".*") if path.is_file()]
    for line, same in zip(read_metrics(whole), read_metrics(killed), strict=True):
        assert line["losses"] == same["losses"]
        assert line["test_accuracy"] == same["test_accuracy"]
