"""Blocks in threads leave bit for bit what one block after the other leaves."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from auglocal.acceleration import Stepper
from auglocal.concurrency import BlockThreads, draws_at_random
from auglocal.config import TrainConfig
from auglocal.files import file_sha256
from auglocal.material import prepare_material
from auglocal.memory import Subject
from auglocal.resumption import computing_threads, thread_warnings
from auglocal.runs import RunFolder, create_run
from auglocal.step import PRECISIONS, State, train_step
from auglocal.training import Listener, train

CPU = torch.device("cpu")
SIZE = (3, 8, 8)
RATES = (0.1, 0.05, 0.02)
METHODS: dict[str, dict[str, Any]] = {
    "bp": {"rule": "bp"},
    "auglocal": {"rule": "auglocal"},
    "auglocal, predsim": {"rule": "auglocal", "local_loss": "predsim"},
    "auglocal, infopro": {"rule": "auglocal", "local_loss": "infopro"},
    "dgl": {"rule": "dgl"},
    "predsim": {"rule": "predsim"},
    "infopro": {"rule": "infopro"},
    "linear": {"rule": "linear"},
}


@pytest.fixture(autouse=True)
def _one_thread_an_operation() -> Iterator[None]:
    """What the claim is about: the order of sums depends on it."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def threads() -> Iterator[BlockThreads]:
    with contextlib.closing(BlockThreads(2)) as made:
        yield made


def make_state(**options: Any) -> State:
    """A narrow ResNet-20 with a block a layer, or by `options`."""
    config = TrainConfig(**{"width": 0.25, **options})
    return Subject(config, 4, SIZE).make_state(CPU)


def make_batch(index: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(index)
    return torch.randn(6, *SIZE, generator=generator), torch.randperm(6, generator=generator) % 4


def assert_equal(first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    assert first.keys() == second.keys()
    assert [key for key in first if not torch.equal(first[key], second[key])] == []


def contents(state: State) -> dict[str, Tensor]:
    """Weights, buffers, sums and momenta."""
    momenta = {
        f"momentum {index}": values["momentum_buffer"]
        for index, values in state.optimizer.state_dict()["state"].items()
    }
    sums = {"losses": state.losses, "correct": state.correct}
    return {**state.network.state_dict(), **sums, **momenta}


def serial_gradients(
    state: State, images: Tensor, labels: Tensor, precision: torch.dtype
) -> tuple[dict[str, Tensor | None], list[Tensor]]:
    """Gradients by name, and the logits of every block."""
    blocks = []
    for _, loss, logits in state.network.local_losses(images, labels, precision):
        loss.backward()
        blocks.append(logits)
    return gradients(state), blocks


def gradients(state: State) -> dict[str, Tensor | None]:
    return {name: value.grad for name, value in state.network.named_parameters()}


@pytest.mark.parametrize("num_threads", [2, 3])
@pytest.mark.parametrize("precision", list(PRECISIONS))
@pytest.mark.parametrize("method", list(METHODS))
def test_steps_are_those_of_one_block_after_the_other(
    method: str, precision: str, num_threads: int
) -> None:
    kind = PRECISIONS[precision]
    serial, threaded = (make_state(**METHODS[method]) for _ in range(2))
    expected, blocks = serial_gradients(serial, *make_batch(), kind)
    with contextlib.closing(BlockThreads(num_threads)) as threads:
        results = threads.backward(threaded.network, *make_batch(), kind)
        found = gradients(threaded)
        assert {name for name in expected if expected[name] is None} == {
            name for name in found if found[name] is None
        }
        assert_equal(
            {name: value for name, value in expected.items() if value is not None},
            {name: value for name, value in found.items() if value is not None},
        )
        assert all(torch.equal(ours, logits) for (_, ours), logits in zip(results, blocks))
        for index, rate in enumerate(RATES):
            batch = make_batch(index)
            train_step(serial, *batch, rate, kind)
            train_step(threaded, *batch, rate, kind, threads=threads)
    assert_equal(contents(serial), contents(threaded))
    assert (serial.step, serial.images) == (threaded.step, threaded.images) == (3, 18)


def test_results_come_in_the_order_of_the_blocks_however_slow_a_thread_is(
    threads: BlockThreads, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = make_state()
    _, blocks = serial_gradients(make_state(), *make_batch(), torch.float32)
    submit = threads._pool.submit

    def submit_and_dawdle(*arguments: Any) -> Any:
        future = submit(*arguments)
        time.sleep(0.02)  # the block that was submitted runs meanwhile, and submits the next one
        return future

    monkeypatch.setattr(threads._pool, "submit", submit_and_dawdle)
    results = threads.backward(state.network, *make_batch(), torch.float32)
    assert len(results) == len(blocks) > 4
    assert all(torch.equal(ours, logits) for (_, ours), logits in zip(results, blocks))


@pytest.mark.parametrize("where", ["auxiliary", "layer", "backward"])
def test_an_exception_in_a_block_reaches_the_caller_and_the_threads_end(
    where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = make_state()
    before = {key: value.clone() for key, value in state.network.state_dict().items()}
    network, name = state.network, state.network.block_names[2]
    poisoned = network.auxiliaries[name] if where != "layer" else network.backbone.layers[name]

    def fail(*_: Tensor) -> Tensor:
        raise ArithmeticError("poisoned")

    with contextlib.closing(BlockThreads(2)) as threads, monkeypatch.context() as patch:
        if where == "backward":
            auxiliary = network.auxiliaries[name]
            forward = auxiliary.forward

            def forward_that_fails_later(*inputs: Tensor) -> tuple[Tensor, Tensor]:
                loss, logits = forward(*inputs)
                loss.register_hook(fail)
                return loss, logits

            patch.setattr(auxiliary, "forward", forward_that_fails_later)
        else:
            patch.setattr(poisoned, "forward", fail)
        with pytest.raises(ArithmeticError, match="poisoned"):
            train_step(state, *make_batch(), 0.1, threads=threads)
        assert any(thread.name.startswith("block") for thread in threading.enumerate())
    assert not any(thread.name.startswith("block") for thread in threading.enumerate())
    after = state.network.state_dict()
    weights = dict(state.network.named_parameters())
    assert all(torch.equal(before[key], after[key]) for key in weights)


def test_other_threads_keep_their_number_of_threads() -> None:
    torch.set_num_threads(2)
    with contextlib.closing(BlockThreads(2)) as threads:
        threads.backward(make_state().network, *make_batch(), torch.float32)
        assert torch.get_num_threads() == 2
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize(
    ("architecture", "answer"),
    [
        ("efficientnet-b0", True),
        ("mobilenetv2", True),
        ("resnet20", False),
        ("resnet18", False),
        ("regnetx-400mf", False),
    ],
)
def test_networks_that_draw_are_told_from_those_that_do_not(
    architecture: str, answer: bool
) -> None:
    network = make_state(architecture=architecture, rule="bp").network
    assert draws_at_random(network) is answer
    network.train()
    state = torch.get_rng_state()
    list(network.local_losses(torch.ones(4, 3, 32, 32), torch.arange(4)))
    assert torch.equal(torch.get_rng_state(), state) is not answer


def test_a_network_that_draws_trains_serially_and_says_so() -> None:
    said: list[str] = []
    options = {"architecture": "efficientnet-b0", "modules": 3}
    states = []
    for block_threads in (1, 2):
        state = make_state(**options)
        config = TrainConfig(width=0.25, block_threads=block_threads, **options)
        with contextlib.closing(Stepper(config, state, said.append)) as stepper:
            for index in range(2):
                torch.manual_seed(index)
                stepper.step(torch.randn(4, 3, 32, 32), torch.arange(4), 0.1)
        states.append(contents(state))
    assert_equal(*states)
    (warning,) = said
    assert "draws random numbers" in warning
    assert "in spite of --block-threads" in warning


@pytest.mark.parametrize("option", ["recompute", "step_per_block"])
def test_the_memory_options_want_one_block_at_a_time(option: str) -> None:
    state = make_state()
    config = TrainConfig(width=0.25, block_threads=2, **{option: True})
    with contextlib.closing(Stepper(config, state, pytest.fail)) as stepper:
        stepper.step(*make_batch(), 0.1)
        assert not any(thread.name.startswith("block") for thread in threading.enumerate())


@pytest.fixture
def run(
    image_folder: Path, tmp_path: Path
) -> Callable[[str, dict[str, Any], int | None], list[str]]:
    """Train, or go on, in a folder; stop after so many batches; returns what was warned of."""
    config = TrainConfig(
        dataset=f"imagefolder:{image_folder}",
        width=0.25,
        epochs=2,
        batch_size=10,
        validation_samples=8,
        device="cpu",
    )

    def run_in(name: str, options: dict[str, Any], stop_after: int | None = None) -> list[str]:
        ours, path = replace(config, **options), tmp_path / name
        folder = RunFolder(path) if path.exists() else create_run(path, ours, overwrite=False)
        steps: list[int] = []
        said: list[str] = []
        listener = Listener(
            on_step=lambda report: steps.append(report.step),
            should_stop=lambda: stop_after is not None and len(steps) >= stop_after,
            on_warning=said.append,
        )
        train(ours, prepare_material(ours, download=False), folder, listener)
        return said

    return run_in


@pytest.mark.parametrize("precision", list(PRECISIONS))
def test_a_run_in_threads_stopped_and_resumed_ends_as_a_plain_one(
    precision: str,
    run: Callable[..., list[str]],
    tmp_path: Path,
) -> None:
    # Batches of 12 leave a smaller one at the end of an epoch.
    options = {"precision": precision, "batch_size": 12}
    threaded = {**options, "block_threads": 2}
    said = run("plain", options)
    said += run("threads", threaded)
    said += run("parts", threaded, 2)
    said += run("parts", options, 3)
    said += run("parts", threaded)
    assert said == []
    plain, *others = (RunFolder(tmp_path / name) for name in ("plain", "threads", "parts"))
    for other in others:
        assert file_sha256(other.checkpoint) == file_sha256(plain.checkpoint)
        assert file_sha256(other.best) == file_sha256(plain.best)


def test_a_block_in_a_thread_computes_with_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    plain = torch.nn.Identity()
    assert computing_threads(TrainConfig(), plain) == 4
    threaded = TrainConfig(block_threads=3)
    assert computing_threads(threaded, plain) == 1
    assert computing_threads(replace(threaded, recompute=True), plain) == 4
    assert computing_threads(replace(threaded, step_per_block=True), plain) == 4
    assert list(thread_warnings(threaded, plain, {"threads": 1})) == []
    (warning,) = thread_warnings(threaded, plain, {"threads": 4})
    assert "computed with 4 threads so far and goes on with 1" in warning


def test_going_on_in_threads_is_warned_of_where_operations_had_several(
    run: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(torch, "get_num_threads", lambda: 3)
        assert run("run", {"epochs": 1}, 1) == []
    (warning,) = run("run", {"epochs": 1, "block_threads": 2})
    assert "computed with 3 threads so far and goes on with 1" in warning
    assert "OMP_NUM_THREADS=3" in warning
