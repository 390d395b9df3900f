"""Ranks on this machine, as torchrun would start them, but at once: forked, not from the disk."""

from __future__ import annotations

import multiprocessing
import os
import socket
import threading
import time
from collections.abc import Callable, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
import torch
from tqdm import tqdm

from auglocal.__main__ import main
from auglocal.files import file_sha256
from auglocal.runs import RunFolder, load_state, read_metrics

PATIENCE = 120  # seconds that a busy machine may take for what takes two
MEASURED = {"seconds", "images_per_second", "peak_memory", "parallel"}


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def be_rank(rank: int, size: int, port: int, log: str, action: Callable[[], int]) -> None:
    """Do something as torchrun would have it done, with what it says in a file."""
    for descriptor in (1, 2):
        os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND), descriptor)
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in place.items()})
    os.environ["MASTER_ADDR"] = "127.0.0.1"
    torch.set_num_threads(1)
    tqdm.set_lock(threading.RLock())
    raise SystemExit(action())


class Command:
    """A command, as something that can be sent to another process."""

    def __init__(self, options: Sequence[str], name: str = "train") -> None:
        self.arguments = [name, *options]

    def __call__(self) -> int:
        return main(self.arguments)


class Ranks:
    """Processes on this machine, forked from one that has imported PyTorch."""

    def __init__(self, folder: Path) -> None:
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(
            ["auglocal.__main__", "auglocal.parallel.training", "sklearn.datasets"]
        )
        self._folder = folder
        self._num_starts = 0
        self._all: list[BaseProcess] = []
        self.processes: list[BaseProcess] = []

    def start(self, size: int, action: Callable[[], int]) -> None:
        self._num_starts += 1
        port = free_port()
        self.processes = []
        for rank in range(size):
            process = self._context.Process(
                target=be_rank, args=(rank, size, port, str(self.log(rank)), action)
            )
            process.start()
            self.processes.append(process)
            self._all.append(process)

    def log(self, rank: int) -> Path:
        return self._folder / f"start-{self._num_starts}-rank-{rank}.log"

    def said(self) -> str:
        logs = (self.log(rank) for rank in range(len(self.processes)))
        return "\n".join(log.read_text() for log in logs if log.exists())

    def wait(self, seconds: float = PATIENCE) -> list[int | None]:
        """Exit statuses; None of those that have not ended."""
        deadline = time.monotonic() + seconds
        for process in self.processes:
            process.join(max(0, deadline - time.monotonic()))
        return [process.exitcode for process in self.processes]

    def train(self, layout: str, size: int, *options: str) -> None:
        """Run the command to its end."""
        self.start(size, Command([*options, "--parallel", layout, "--timeout", "100"]))
        assert self.wait() == [0] * size, self.said()

    def clean_up(self) -> None:
        for process in self._all:
            if process.is_alive():
                process.kill()
            process.join()


def wait_for(happened: Callable[[], bool], processes: Sequence[BaseProcess]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not happened():
        assert time.monotonic() < deadline
        assert all(process.is_alive() for process in processes)
        time.sleep(0.01)


def assert_same_run(one: RunFolder, other: RunFolder, *, same_sums: bool = True) -> None:
    """Equal to the last bit, but for what was measured by the clock.

    A run by data=N that was stopped inside an epoch adds up its losses in another order: without
    `same_sums`, the mean losses in metrics.jsonl need only agree to rounding.
    """
    for path in (one.checkpoint, one.best, *one.path.glob("snapshots/*")):
        assert file_sha256(path) == file_sha256(other.path / path.relative_to(one.path)), path
    for line, same in zip(read_metrics(one), read_metrics(other), strict=True):
        assert line.keys() - MEASURED == same.keys() - MEASURED
        rounded = set() if same_sums else {"losses"}
        assert all(line[name] == same[name] for name in line.keys() - MEASURED - rounded)
        assert same["losses"] == pytest.approx(line["losses"], rel=1e-6)
    saved, again = load_state(one), load_state(other)
    assert saved is not None
    assert again is not None
    assert saved["optimizer"]["param_groups"] == again["optimizer"]["param_groups"]
    momenta, others = saved["optimizer"]["state"], again["optimizer"]["state"]
    assert momenta.keys() == others.keys()
    for index, values in momenta.items():
        assert torch.equal(values["momentum_buffer"], others[index]["momentum_buffer"])
