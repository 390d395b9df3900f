"""How fast this machine trains: ways to take a training step, timed in turn.

In: a configuration. Out: seconds of a step by rule, precision and memory layout, of the backbone's
evaluation, and of making the batches. The ways take turns, so that what else the machine does falls
on all of them; the fastest round of each counts, since other work only ever adds time.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from auglocal.acceleration import Stepper
from auglocal.batches import ResidentSplit, normalise
from auglocal.config import PRECISION_NAMES, TrainConfig
from auglocal.data import CIFAR_AUGMENTATION, CIFAR_MEAN, CIFAR_STD
from auglocal.memory import Subject, measure_step
from auglocal.step import State, memory_format

LAYOUT_NAMES = {True: "channels-last", False: "contiguous"}
PIPELINE_IMAGES = 8192


@dataclass(frozen=True)
class Way:
    """A way to take a training step, and its name for people."""

    name: str
    config: TrainConfig


@dataclass(frozen=True)
class Timing:
    """A way, and the seconds that its step took in each round."""

    way: Way
    seconds: tuple[float, ...]

    @property
    def best(self) -> float:
        """Seconds of the fastest round."""
        return min(self.seconds)


def ways_to_train(asked: TrainConfig, device: torch.device) -> list[Way]:
    """BP, and the rule asked for, in each precision and layout, and by what makes them faster.

    Args:
        asked: backbone, rule and options; its precision and layout play no part.
        device: what makes a step faster depends on it.
    """
    plain = replace(asked, cuda_graph=False, compile=False, block_threads=1)
    bp = replace(plain, rule="bp", modules=None, recompute=False, step_per_block=False)
    ways = []
    for config in (bp, plain) if asked.rule != "bp" else (bp,):
        for precision in PRECISION_NAMES:
            for channels_last in LAYOUT_NAMES:
                variant = replace(config, precision=precision, channels_last=channels_last)
                ways.append(Way(config.rule, variant))
            ways += _faster_ways(replace(config, precision=precision, channels_last=True), device)
    if asked.compile:
        ways += [
            Way(f"{way.name} --compile", replace(way.config, compile=True))
            for way in ways
            if way.config.channels_last and "--" not in way.name
        ]
    return ways


def _faster_ways(config: TrainConfig, device: torch.device) -> list[Way]:
    """What this device can do to make a rule's step faster."""
    if device.type == "cuda":
        return [Way(f"{config.rule} --cuda-graph", replace(config, cuda_graph=True))]
    num_threads = torch.get_num_threads()
    if device.type != "cpu" or config.rule == "bp" or num_threads < 2:
        return []
    name = f"{config.rule} --block-threads {num_threads}"
    return [Way(name, replace(config, block_threads=num_threads))]


def time_steps(
    ways: list[Way],
    subject: Subject,
    device: torch.device,
    num_rounds: int,
    *,
    report: Callable[[str], None] = lambda text: None,
    warn: Callable[[str], None] = lambda text: None,
) -> list[Timing]:
    """Take a step by each way in turn, `num_rounds` times after a round that warms up.

    Args:
        ways: what to time.
        subject: classes and images; its configuration gives the batch size.
        device: where to compute.
        num_rounds: at least 1.
        report: hears of each step.
        warn: hears what does not work here.
    """
    with contextlib.ExitStack() as stack:
        steps = {}
        for way in ways:
            report(f"{way.name}, {way.config.precision}: setting up")
            steps[way.name, way.config] = stack.enter_context(
                _ready_step(replace(subject, config=way.config), device, warn)
            )
        seconds: dict[tuple[str, TrainConfig], list[float]] = {key: [] for key in steps}
        for _ in range(num_rounds):
            for key, take_step in steps.items():
                report(f"{key[0]}, {key[1].precision}")
                started = time.perf_counter()
                take_step()
                seconds[key].append(time.perf_counter() - started)
    return [Timing(way, tuple(seconds[way.name, way.config])) for way in ways]


@contextlib.contextmanager
def _ready_step(
    subject: Subject, device: torch.device, warn: Callable[[str], None]
) -> Iterator[Callable[[], None]]:
    """A step on random images that waits for the device; warmed up."""
    state = subject.make_state(device)
    images, labels = random_batch(subject, device)

    def take_step() -> None:
        stepper.step(images, labels, 1e-3)
        state.losses.tolist()

    with contextlib.closing(Stepper(subject.config, state, warn)) as stepper:
        take_step()
        yield take_step


def random_batch(subject: Subject, device: torch.device) -> tuple[Tensor, Tensor]:
    """Images, float (N, C, H, W), and labels, int64 (N,), of the configured batch size."""
    generator = torch.Generator().manual_seed(0)
    size = subject.config.batch_size
    images = torch.randn(size, *subject.input_size, generator=generator)
    labels = torch.randint(subject.num_classes, (size,), generator=generator)
    layout = memory_format(subject.config, device)
    return images.to(device).contiguous(memory_format=layout), labels.to(device)


def time_evaluation(subject: Subject, device: torch.device, num_rounds: int) -> float:
    """Seconds to classify a batch with the backbone alone: the fastest round."""
    state = subject.make_state(device)
    images, _ = random_batch(subject, device)
    state.network.eval()
    return min(_time_forward(state, images) for _ in range(num_rounds + 1))


def _time_forward(state: State, images: Tensor) -> float:
    started = time.perf_counter()
    with torch.inference_mode():
        state.network.backbone(images).argmax(dim=1).tolist()
    return time.perf_counter() - started


def time_pipeline(batch_size: int, device: torch.device, num_rounds: int) -> float:
    """Seconds an image to shuffle, augment and normalise 3x32x32 images: the fastest round."""
    images = torch.randint(256, (PIPELINE_IMAGES, 3, 32, 32), dtype=torch.uint8, device=device)
    labels = torch.zeros(PIPELINE_IMAGES, dtype=torch.int64, device=device)
    split = ResidentSplit(images, labels)
    seconds = []
    for round_index in range(num_rounds + 1):
        started = time.perf_counter()
        batches = split.training_batches(
            batch_size, seed=0, epoch=round_index, first_step=0, augmentation=CIFAR_AUGMENTATION
        )
        for pixels, _ in batches:
            batch = normalise(pixels, CIFAR_MEAN, CIFAR_STD)
        batch[0, 0, 0, 0].item()  # waits for an accelerator
        seconds.append(time.perf_counter() - started)
    return min(seconds) / PIPELINE_IMAGES


def flops_ratio(subject: Subject) -> float:
    """Floating-point operations of a training step, as a ratio to BP's of the same backbone."""
    size = subject.config.batch_size
    bp = replace(subject, config=replace(subject.config, rule="bp", modules=None, recompute=False))
    return measure_step(subject).flops(size) / measure_step(bp).flops(size)


def speed_rows(timings: list[Timing], batch_size: int) -> list[dict[str, Any]]:
    """Seconds, images a second, and ratios to BP in fp32: of the same layout, and the fastest."""
    reference = {
        timing.way.config.channels_last: timing.best
        for timing in timings
        if timing.way.config.rule == timing.way.name == "bp"
        and timing.way.config.precision == "fp32"
    }
    return [
        {
            "name": timing.way.name,
            "rule": timing.way.config.rule,
            "precision": timing.way.config.precision,
            "layout": LAYOUT_NAMES[timing.way.config.channels_last],
            "seconds": timing.best,
            "seconds_by_round": list(timing.seconds),
            "images_per_second": batch_size / timing.best,
            "ratio": timing.best / reference[timing.way.config.channels_last],
            "ratio_to_fastest": timing.best / min(reference.values()),
        }
        for timing in timings
    ]
