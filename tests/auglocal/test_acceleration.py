"""Faster steps are the same steps, and what does not work is left out with a warning."""

from __future__ import annotations

import contextlib
import copy
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters

from auglocal import acceleration
from auglocal.acceleration import StepGraph, Stepper, make_momentum, plain_modules
from auglocal.backbones.registry import build_meta_backbone
from auglocal.config import TrainConfig
from auglocal.files import file_sha256
from auglocal.material import prepare_material
from auglocal.memory import Subject
from auglocal.runs import RunFolder, create_run
from auglocal.step import (
    State,
    make_state,
    memory_format,
    move_weights,
    pack_state,
    step_options,
    train_step,
    unpack_state,
)
from auglocal.training import Listener, train

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
SIZE = (3, 8, 8)
RATES = (0.1, 0.05, 0.07, 0.02, 0.01)
# Contiguous: the shapes are tiny, and layouts are not the subject.
SMALL = TrainConfig(width=0.25, modules=3, channels_last=False, cuda_graph=False)
on_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

Warnings = list[str]


def fresh_state(config: TrainConfig = SMALL, device: torch.device = CPU) -> State:
    return Subject(config, 4, SIZE).make_state(device)


def make_batch(
    index: int = 0, size: int = 6, device: torch.device = CPU, layout: TrainConfig = SMALL
) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(index)
    images = torch.randn(size, *SIZE, generator=generator)
    labels = torch.randint(4, (size,), generator=generator)
    return images.to(device).to(memory_format=memory_format(layout, device)), labels.to(device)


def contents(state: State) -> dict[str, Tensor]:
    """Weights, buffers, sums and momenta, copied."""
    momenta = {
        f"momentum {index}": values["momentum_buffer"]
        for index, values in state.optimizer.state_dict()["state"].items()
    }
    sums = {"losses": state.losses, "correct": state.correct}
    everything = {**state.network.state_dict(), **sums, **momenta}
    return {key: value.clone() for key, value in everything.items()}


def assert_equal(first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    assert first.keys() == second.keys()
    assert [key for key in first if not torch.equal(first[key], second[key])] == []


def assert_close(first: dict[str, Tensor], second: dict[str, Tensor], tolerance: float) -> None:
    torch.testing.assert_close(first, second, rtol=tolerance, atol=tolerance)


def take_steps(config: TrainConfig, state: State, device: torch.device = CPU) -> Warnings:
    """Five steps with changing batches and rates, a smaller batch among them."""
    said: Warnings = []
    with contextlib.closing(Stepper(config, state, said.append)) as stepper:
        for index, rate in enumerate(RATES):
            torch.manual_seed(index)
            size = 4 if index == 2 else 6
            stepper.step(*make_batch(index, size, device, config), rate)
    return said


# The optimizer


@pytest.mark.parametrize("step_per_block", [False, True])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_a_step_is_nesterovs_written_by_hand(momentum: float, step_per_block: bool) -> None:
    # Sutskever et al. (2013) as PyTorch defines it: g = gradient + decay w; v = momentum v + g;
    # w = w - rate (g + momentum v).
    decay = 0.01
    config = replace(SMALL, momentum=momentum, weight_decay=decay)
    network = fresh_state(config).network.double()
    ours = make_state(config, copy.deepcopy(network), CPU)
    velocities = {name: torch.zeros_like(w) for name, w in network.named_parameters()}
    for index, rate in enumerate(RATES):
        images, labels = make_batch(index)
        images = images.double()
        train_step(ours, images, labels, rate, step_per_block=step_per_block)
        for _, loss, _ in network.local_losses(images, labels):
            loss.backward()
        with torch.no_grad():
            for name, weight in network.named_parameters():
                if weight.grad is None:
                    continue
                gradient = weight.grad + decay * weight
                velocities[name] = momentum * velocities[name] + gradient
                weight -= rate * (gradient + momentum * velocities[name])
        network.zero_grad()
    # Heads cast logits to float32: what differs in the last digit there differs by 1e-7 then.
    expected = dict(network.named_parameters())
    found = dict(ours.network.named_parameters())
    assert_close(
        {name: value.detach() for name, value in expected.items()},
        {name: value.detach() for name, value in found.items()},
        1e-5,
    )


def test_a_momentum_of_zeros_is_as_good_as_none() -> None:
    plain, prepared = fresh_state(), fresh_state()
    make_momentum(prepared.optimizer)
    parameters = list(prepared.network.parameters())
    assert all(
        not prepared.optimizer.state[parameter]["momentum_buffer"].any() for parameter in parameters
    )
    for state in (plain, prepared):
        train_step(state, *make_batch(), 0.1)
    assert_equal(contents(plain), contents(prepared))


def test_momentum_that_is_there_stays_and_where_none_is_wanted_none_is_made() -> None:
    state = fresh_state()
    train_step(state, *make_batch(), 0.1)
    before = {key: values["momentum_buffer"] for key, values in state.optimizer.state.items()}
    copies = [value.clone() for value in before.values()]
    make_momentum(state.optimizer)
    for (key, buffer), value in zip(before.items(), copies, strict=True):
        assert state.optimizer.state[key]["momentum_buffer"] is buffer
        assert torch.equal(buffer, value)
    without = fresh_state(replace(SMALL, momentum=0.0))
    make_momentum(without.optimizer)
    assert not any(without.optimizer.state.values())


def test_the_optimizer_of_a_copied_state_moves_the_copied_network() -> None:
    state = fresh_state()
    train_step(state, *make_batch(), 0.1)
    before = contents(state)
    copied = copy.deepcopy(state)
    (group,) = copied.optimizer.param_groups
    assert [id(weight) for weight in group["params"]] == [
        id(weight) for weight in copied.network.parameters()
    ]
    assert set(copied.optimizer.state) == set(group["params"])
    train_step(copied, *make_batch(1), 0.1)
    assert_equal(contents(state), before)
    train_step(state, *make_batch(1), 0.1)
    assert_equal(contents(state), contents(copied))


# Compiling


# PyTorch's compiler looks at gradients, and silences what it says of them only by default.
quiet_compiler = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")


class CountingBackend:
    """Compiles nothing, and counts what it was given."""

    def __init__(self) -> None:
        self.num_graphs = 0
        self.num_threads: set[int] = set()

    def __call__(self, graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
        self.num_graphs += 1
        self.num_threads.add(torch.get_num_threads())
        return graph.forward


@pytest.fixture
def compile_with(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Any], None]]:
    """Have modules compiled by another backend than Inductor."""
    compile_module = nn.Module.compile

    def use(backend: Any) -> None:
        def compile_so(module: nn.Module, **options: Any) -> None:
            compile_module(module, backend=backend, **options)

        monkeypatch.setattr(nn.Module, "compile", compile_so)

    torch.compiler.reset()
    yield use
    torch.compiler.reset()


@quiet_compiler
@pytest.mark.parametrize(
    ("backend", "rule", "tolerance"),
    [("eager", "auglocal", 0.0), ("aot_eager", "bp", 1e-4), ("eager", "predsim", 0.0)],
)
def test_compiled_steps_are_plain_steps(
    backend: str, rule: str, tolerance: float, compile_with: Callable[[Any], None]
) -> None:
    compile_with(backend)
    config = replace(SMALL, rule=rule, modules=None if rule == "bp" else 2)
    plain, compiled = fresh_state(config), fresh_state(config)
    keys = list(compiled.network.state_dict())
    assert take_steps(config, plain) == []
    assert take_steps(replace(config, compile=True), compiled) == []
    assert list(compiled.network.state_dict()) == keys
    assert (compiled.step, compiled.images) == (plain.step, plain.images) == (5, 28)
    assert_close(contents(plain), contents(compiled), tolerance)


@quiet_compiler
@pytest.mark.parametrize("block_threads", [1, 2])
def test_every_kind_of_module_is_compiled_once_for_all_full_batches(
    block_threads: int, compile_with: Callable[[Any], None]
) -> None:
    backend = CountingBackend()
    compile_with(backend)
    config = replace(SMALL, compile=True, modules=None, block_threads=block_threads)
    before = torch.get_num_threads()
    torch.set_num_threads(2)  # a block's thread has another number
    try:
        state = fresh_state(config)
        with contextlib.closing(Stepper(config, state, pytest.fail)) as stepper:
            stepper.step(*make_batch(0), 0.1)
            num_graphs = backend.num_graphs
            # Layers: stem; plain, narrowing and plain ones of three widths; auxiliary networks.
            kinds = {repr(part) for part in state.network.backbone.layers.values()}
            kinds |= {repr(part) for part in state.network.auxiliaries.values()}
            # And the head; two threads may compile a kind at the same time.
            assert 1 < num_graphs <= block_threads * (len(kinds) + 1)
            # Compiled code holds for a number of threads: for those that run it, from the trial on.
            assert backend.num_threads == {2 if block_threads == 1 else 1}
            stepper.step(*make_batch(1), 0.05)
            stepper.step(*make_batch(2, 4), 0.05)
            stepper.step(*make_batch(3), 0.05)
            with plain_modules(), torch.no_grad():
                state.network.eval().backbone(make_batch(4)[0])
            state.network.train()
            stepper.step(*make_batch(5), 0.05)
    finally:
        torch.set_num_threads(before)
    assert backend.num_graphs == num_graphs


@quiet_compiler
def test_a_compiled_run_with_evaluations_ends_as_a_plain_one(
    image_folder: Path, tmp_path: Path, compile_with: Callable[[Any], None]
) -> None:
    backend = CountingBackend()
    compile_with(backend)
    plain = replace(
        SMALL,
        dataset=f"imagefolder:{image_folder}",
        epochs=2,
        batch_size=10,  # 48 images: a smaller batch at the end of an epoch
        snapshot_epochs=(1,),
        device="cpu",
    )
    hashes, counts = [], []
    for config in (plain, replace(plain, compile=True)):
        path = tmp_path / f"compile-{config.compile}"
        listener = Listener(
            on_step=lambda report: counts.append(backend.num_graphs), on_warning=pytest.fail
        )
        material = prepare_material(config, download=False)
        assert train(config, material, create_run(path, config, overwrite=False), listener)
        hashes.append(file_sha256(RunFolder(path).checkpoint))
    assert hashes[0] == hashes[1]
    without, compiled = counts[: len(counts) // 2], counts[len(counts) // 2 :]
    assert set(without) == {0}
    assert set(compiled) == {backend.num_graphs} != {0}


def fails_when_called(monkeypatch: pytest.MonkeyPatch, error: BaseException, last: bool) -> None:
    """Have compiled modules raise when they are called: all, or the head of the backbone alone."""

    def compile_so(module: nn.Module, **_: Any) -> None:
        def fail(*_: Any) -> None:
            raise error

        if not last or isinstance(module, HEAD):
            module._compiled_call_impl = fail

    monkeypatch.setattr(nn.Module, "compile", compile_so)


HEAD = type(build_meta_backbone("efficientnet-b0", 4, (3, 32, 32), 0.25).head)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (RuntimeError("no C++ compiler.\nA long story follows."), "(no C++ compiler)"),
        (ImportError("triton is not installed"), "(triton is not installed)"),
        (OSError(), "(OSError)"),
    ],
    ids=["RuntimeError", "ImportError", "OSError"],
)
def test_a_run_goes_on_as_a_plain_one_where_compiling_fails(
    error: Exception, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, other = fresh_state(), fresh_state()
    take_steps(SMALL, plain)
    fails_when_called(monkeypatch, error, last=False)
    (warning,) = take_steps(replace(SMALL, compile=True), other)
    assert warning.startswith("Warning: compiling the training step failed " + reason)
    assert warning.endswith("(--no-compile leaves it out).")
    assert "\n" not in warning
    assert_equal(contents(plain), contents(other))


def test_a_trial_takes_no_random_numbers_from_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    config = replace(SMALL, architecture="efficientnet-b0", rule="bp", modules=None)
    subject = Subject(config, 4, (3, 32, 32))
    results = []
    fails_when_called(monkeypatch, RuntimeError("out of luck"), last=True)
    for compile_too in (False, True):
        state, said = subject.make_state(CPU), []
        stepper = Stepper(replace(config, compile=compile_too), state, said.append)
        torch.manual_seed(3)
        stepper.step(torch.ones(4, 3, 32, 32), torch.arange(4), 0.1)
        results.append({**contents(state), "generator": torch.get_rng_state()})
        assert len(said) == compile_too
    assert_equal(*results)


def test_running_out_of_memory_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    fails_when_called(monkeypatch, torch.OutOfMemoryError("CUDA out of memory"), last=False)
    with pytest.raises(torch.OutOfMemoryError, match="CUDA out of memory"):
        take_steps(replace(SMALL, compile=True), fresh_state())


@pytest.mark.slow
@pytest.mark.skipif(
    shutil.which(os.environ.get("CXX", "c++")) is None, reason="needs a C++ compiler"
)
@pytest.mark.filterwarnings("default")  # the compiler's own are not ours
def test_inductor_computes_what_pytorch_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch._inductor.config, "compile_threads", 1)
    torch.compiler.reset()
    counters.clear()
    config = replace(SMALL, rule="bp", modules=None)
    plain, compiled = fresh_state(config), fresh_state(config)
    # One layer, the rest as it is: each kind of layer takes the compiler long.
    monkeypatch.setattr(acceleration, "compile_modules", lambda state: compile_one(state, "stem"))
    assert take_steps(config, plain) == []
    assert take_steps(replace(config, compile=True), compiled) == []
    assert counters["stats"]["unique_graphs"] == 1
    assert_close(contents(plain), contents(compiled), 1e-3)
    torch.compiler.reset()


def compile_one(state: State, name: str) -> None:
    state.network.backbone.layers[name].compile(dynamic=False)


# Recording


class Recording:
    """Stands in for `torch.cuda.CUDAGraph`: keeps what was asked for, and does it at each replay.

    As on a device, nothing is computed while it records, the learning rate is read where it lay
    then, and all that a replay sees of a new batch is what was copied into the recorded one.
    """

    current: Recording | None = None

    def __init__(self) -> None:
        self.work: Callable[[], None] | None = None
        self.num_replays = 0

    def record(self, state: State, *inputs: Any, **options: Any) -> None:
        rates = [group["lr"] for group in state.optimizer.param_groups]
        assert all(isinstance(rate, Tensor) for rate in rates)

        def work() -> None:
            kept = [group["lr"] for group in state.optimizer.param_groups]
            self.put(state, rates)
            move_weights(state, *self.inputs(*inputs), **options)
            self.put(state, kept)

        self.work = work

    def put(self, state: State, rates: list[Any]) -> None:
        for group, rate in zip(state.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate

    def inputs(self, *inputs: Any) -> tuple[Any, ...]:
        return inputs

    def replay(self) -> None:
        assert self.work is not None
        self.num_replays += 1
        self.work()


class Forgetful(Recording):
    """Does nothing at a replay."""

    def replay(self) -> None:
        self.num_replays += 1


class Stale(Recording):
    """Sees the batch that was there while it recorded, whatever comes later."""

    def record(self, state: State, images: Tensor, labels: Tensor, **options: Any) -> None:
        super().record(state, images.clone(), labels.clone(), **options)


class Weightless(Recording):
    """Computes the losses and leaves the weights where they were."""

    def put(self, state: State, rates: list[Any]) -> None:
        for group in state.optimizer.param_groups:
            group["lr"] = 0.0


class Refusing(Recording):
    """Cannot record."""

    def record(self, *_: Any, **__: Any) -> None:
        raise RuntimeError("operation not permitted when stream is capturing\nand so on")


@pytest.fixture
def record_with(monkeypatch: pytest.MonkeyPatch) -> Callable[[type[Recording]], list[Recording]]:
    """Let a CPU record, by a stand-in; returns the list that recordings will come into."""

    def use(kind: type[Recording]) -> list[Recording]:
        made: list[Recording] = []
        capturing: list[Recording] = []

        def make() -> Recording:
            made.append(kind())
            return made[-1]

        @contextlib.contextmanager
        def capture(graph: Recording) -> Iterator[None]:
            capturing.append(graph)
            try:
                yield
            finally:
                capturing.pop()

        def move(state: State, images: Tensor, labels: Tensor, **options: Any) -> None:
            capturing[-1].record(state, images, labels, **options)

        class Stream:
            def __init__(self, *_: Any) -> None:
                pass

            def wait_stream(self, other: Stream) -> None:
                assert other is not self

        monkeypatch.setattr(acceleration, "RECORDING_DEVICES", ("cpu",))
        monkeypatch.setattr(acceleration, "move_weights", move)
        monkeypatch.setattr(torch.cuda, "CUDAGraph", make)
        monkeypatch.setattr(torch.cuda, "graph", capture)
        monkeypatch.setattr(torch.cuda, "Stream", Stream)
        monkeypatch.setattr(torch.cuda, "current_stream", Stream)
        monkeypatch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext())
        return made

    return use


RECORDED = replace(SMALL, cuda_graph=True)


@pytest.mark.parametrize(
    "options", [{}, {"precision": "bf16"}, {"step_per_block": True}, {"momentum": 0.0}], ids=str
)
def test_a_recording_that_agrees_takes_the_full_batches(
    options: dict[str, Any], record_with: Callable[[type[Recording]], list[Recording]]
) -> None:
    config = replace(RECORDED, **options)
    plain, recorded = fresh_state(config), fresh_state(config)
    take_steps(replace(config, cuda_graph=False), plain)
    made = record_with(Recording)
    assert take_steps(config, recorded) == []
    (recording,) = made
    assert recording.num_replays == acceleration.TRIAL_STEPS + 4  # the fifth is a smaller batch
    # The rate is a float32 here and a double there.
    assert_close(contents(plain), contents(recorded), 1e-4)
    assert (recorded.step, recorded.images) == (plain.step, plain.images) == (5, 28)


def test_a_network_that_draws_draws_alike_in_both_trials(
    record_with: Callable[[type[Recording]], list[Recording]],
) -> None:
    config = replace(RECORDED, architecture="efficientnet-b0", modules=2)
    state, said = Subject(config, 4, (3, 32, 32)).make_state(CPU), []
    (made, stepper) = record_with(Recording), Stepper(config, state, said.append)
    torch.manual_seed(0)
    stepper.step(torch.randn(4, 3, 32, 32), torch.arange(4), 0.01)
    assert said == []
    assert made[0].num_replays == acceleration.TRIAL_STEPS + 1


def test_a_trial_leaves_the_state_as_it_was_and_where_it_was(
    record_with: Callable[[type[Recording]], list[Recording]],
) -> None:
    record_with(Recording)
    state = fresh_state()
    train_step(state, *make_batch(1), 0.1)
    buffers = [values["momentum_buffer"] for values in state.optimizer.state.values()]
    tensors = [*state.network.parameters(), *state.network.buffers(), *buffers, state.losses]
    places = [tensor.data_ptr() for tensor in tensors]
    before, counts, generator = contents(state), (state.step, state.images), torch.get_rng_state()
    graph = StepGraph(state, *make_batch(), step_options(SMALL))
    trial = graph.trial(*make_batch())
    assert trial.losses.abs().min() > 0
    assert trial.movement.abs().max() > 0
    assert_equal(contents(state), before)
    assert (state.step, state.images) == counts
    assert torch.equal(torch.get_rng_state(), generator)
    for values, buffer in zip(state.optimizer.state.values(), buffers, strict=True):
        assert values["momentum_buffer"] is buffer
    assert [tensor.data_ptr() for tensor in tensors] == places


@pytest.mark.parametrize("kind", [Forgetful, Stale, Weightless, Refusing])
def test_a_recording_that_does_something_else_is_left_out(
    kind: type[Recording], record_with: Callable[[type[Recording]], list[Recording]]
) -> None:
    plain, other = fresh_state(), fresh_state()
    take_steps(SMALL, plain)
    made = record_with(kind)
    (warning,) = take_steps(RECORDED, other)
    reason = "the recorded step computes something else"
    if kind is Refusing:
        reason = "operation not permitted when stream is capturing"
    assert warning == (
        f"Warning: recording the training step failed ({reason}); going on without it "
        "(--no-cuda-graph leaves it out)."
    )
    assert made[0].num_replays in (0, acceleration.TRIAL_STEPS)
    assert_equal(contents(plain), contents(other))
    (group,) = other.optimizer.param_groups
    assert group["lr"] == RATES[-1]


@pytest.mark.parametrize("options", [{"recompute": True}, {"cuda_graph": False}], ids=str)
def test_nothing_is_recorded_where_it_is_not_wanted(
    options: dict[str, Any], record_with: Callable[[type[Recording]], list[Recording]]
) -> None:
    made = record_with(Recording)
    assert take_steps(replace(RECORDED, **options), fresh_state()) == []
    assert made == []


# Recording on a GPU


@pytest.fixture
def _exact_sums() -> Iterator[None]:
    """TF32 rounds too much for a comparison."""
    kept = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = kept


@pytest.mark.gpu
@on_gpu
@pytest.mark.usefixtures("_exact_sums")
@pytest.mark.parametrize(
    "options",
    [
        {"rule": "bp", "modules": None},
        {"rule": "auglocal"},
        {"rule": "auglocal", "channels_last": True},
        {"rule": "auglocal", "step_per_block": True},
        {"rule": "auglocal", "momentum": 0.0},
        {"rule": "predsim"},
        {"rule": "infopro"},
    ],
    ids=str,
)
def test_recorded_steps_are_plain_steps_on_a_gpu(options: dict[str, Any]) -> None:
    config = replace(SMALL, **options)
    plain, recorded = (fresh_state(config, CUDA) for _ in range(2))
    assert take_steps(config, plain, CUDA) == []
    assert take_steps(replace(config, cuda_graph=True), recorded, CUDA) == []
    assert_close(contents(plain), contents(recorded), 1e-3)
    assert (plain.step, plain.images) == (recorded.step, recorded.images)


@pytest.mark.gpu
@on_gpu
@pytest.mark.usefixtures("_exact_sums")
def test_a_recorded_run_resumed_on_a_gpu_goes_on() -> None:
    whole, first, second = (fresh_state(RECORDED, CUDA) for _ in range(3))
    batches = [make_batch(index, 6, CUDA) for index in range(4)]
    stepper = Stepper(RECORDED, whole, pytest.fail)
    for batch in batches:
        stepper.step(*batch, 0.05)
    stepper = Stepper(RECORDED, first, pytest.fail)
    for batch in batches[:2]:
        stepper.step(*batch, 0.05)
    unpack_state(second, copy.deepcopy(pack_state(first)))
    stepper = Stepper(RECORDED, second, pytest.fail)
    for batch in batches[2:]:
        stepper.step(*batch, 0.05)
    assert_close(contents(whole), contents(second), 1e-3)


@pytest.mark.gpu
@on_gpu
def test_a_recorded_step_draws_what_a_plain_one_draws_on_a_gpu() -> None:
    config = replace(SMALL, architecture="efficientnet-b0", modules=2)
    results = []
    for cuda_graph in (False, True):
        state = Subject(config, 4, (3, 32, 32)).make_state(CUDA)
        stepper = Stepper(replace(config, cuda_graph=cuda_graph), state, pytest.fail)
        for index in range(2):
            torch.manual_seed(index)
            images = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(index))
            stepper.step(images.to(CUDA), torch.arange(8, device=CUDA) % 4, 0.01)
        results.append(state.losses)
    torch.testing.assert_close(*results, rtol=0.05, atol=0)
