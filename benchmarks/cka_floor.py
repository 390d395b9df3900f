"""Time and memory of CKA of all pairs of layers, against the floor: the forward passes alone.

    python benchmarks/cka_floor.py [A.safetensors B.safetensors] --samples 2048 --batch-size 256

Forward passes and each way to compare take turns in one process; the table gives the best round of
each, its ratio to the floor, the memory beyond models and images, and the largest difference from
the same estimator computed in float64. Without checkpoints, a ResNet-56 and a ResNet-20 are made.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from cka_models import PAIR, make_images, make_models
from threadpoolctl import threadpool_limits

from analysis.batch_plan import batch_slices
from analysis.cka import CKAAccumulator, CKAResult, centred_gram
from analysis.features import stream_features
from analysis.full_set import FullSetAccumulator, full_set_bytes, in_step
from analysis.gram import has_fast_bf16
from analysis.gram_store import GramStore, gram_key
from analysis.models import Model, open_model

Streams = Iterator[tuple[str, torch.Tensor]]


class Bench:
    """Two or more networks, images in batches, and the ways to compare them."""

    def __init__(self, models: list[Model], images: torch.Tensor, batch_size: int) -> None:
        self.models, self.images = models, images
        self.batches = batch_slices(len(images), batch_size)
        self.layers = {model.sha256: model.layer_names for model in models}

    def stream(self, model: Model, batch: slice) -> Streams:
        """Run one batch through one network."""
        return stream_features(model, self.images[batch])

    def forward(self) -> None:
        """Run the layers and use nothing of them."""
        for batch in self.batches:
            for model in self.models:
                for _ in self.stream(model, batch):
                    pass

    def minibatch(
        self, precision: str = "fp32", shuffles: int = 0, *, double: bool = False
    ) -> CKAResult:
        """CKA by unbiased minibatches in one pass."""
        accumulator = CKAAccumulator(self.layers, num_shuffles=shuffles)
        for batch in self.batches:
            accumulator.update(
                {
                    (model.sha256, layer): centred_gram(
                        features.double() if double else features, precision=precision
                    )
                    for model in self.models
                    for layer, features in self.stream(model, batch)
                }
            )
        return accumulator.result()

    def whole(
        self, precision: str = "fp32", estimator: str = "debiased", *, double: bool = False
    ) -> CKAResult:
        """CKA over the whole set."""
        accumulator = FullSetAccumulator(
            self.layers, len(self.images), estimator=estimator, precision=precision
        )
        for model in self.models:
            for layer, parts in in_step([self.stream(model, batch) for batch in self.batches]):
                whole = [part.double() for part in parts] if double else parts
                accumulator.add((model.sha256, layer), whole)
        return accumulator.result()

    def keep(self, store: GramStore) -> None:
        """Fill a store with the Grams of all models."""
        for model in self.models:
            grams: dict[str, list[np.ndarray]] = {}
            for batch in self.batches:
                for layer, features in self.stream(model, batch):
                    grams.setdefault(layer, []).append(centred_gram(features))
            for layer, matrices in grams.items():
                store.put(self.key(model, layer), matrices)

    def key(self, model: Model, layer: str) -> str:
        """Name a layer's Grams in the store."""
        sizes = [batch.stop - batch.start for batch in self.batches]
        return gram_key(checkpoint=model.sha256, images="these", layer=layer, batch_sizes=sizes)

    def kept(self, store: GramStore) -> CKAResult:
        """CKA of Grams in a store."""
        found = {
            (model, layer): store.get(self.key(self.models[index], layer))
            for index, (model, names) in enumerate(self.layers.items())
            for layer in names
        }
        accumulator = CKAAccumulator(self.layers)
        for index in range(len(self.batches)):
            accumulator.update({key: grams[index] for key, grams in found.items()})
        return accumulator.result()


def seconds_of(work: Callable[[], object]) -> float:
    """Seconds that one call takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def resident_bytes() -> int:
    """Memory of this process that is in use now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def peak_bytes(work: Callable[[], object]) -> int:
    """Resident memory at its highest during a call, beyond what was there before."""
    before, highest, done = resident_bytes(), 0, threading.Event()

    def watch() -> None:
        nonlocal highest
        while not done.wait(0.002):
            highest = max(highest, resident_bytes())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        work()
    finally:
        done.set()
        watcher.join()
    return max(highest - before, 0)


def ways(bench: Bench) -> dict[str, Callable[[], object]]:
    """All ways to compare, by what the table calls them."""
    found: dict[str, Callable[[], object]] = {
        "forward passes (floor)": bench.forward,
        "minibatch fp32": bench.minibatch,
        "minibatch fp32, 100 shuffles": lambda: bench.minibatch(shuffles=100),
        "full set fp32": bench.whole,
    }
    if has_fast_bf16():
        found["minibatch bf16"] = lambda: bench.minibatch("bf16")
        found["full set bf16"] = lambda: bench.whole("bf16")
    return found


def error_of(bench: Bench, name: str) -> float:
    """Largest difference from the same estimator in float64."""
    precision = "bf16" if "bf16" in name else "fp32"
    run = bench.whole if "full" in name else bench.minibatch
    return float(np.abs(run(precision).values - run(double=True).values).max())


def print_stored(bench: Bench, rounds: int) -> None:
    """Time another comparison of networks that were read before."""
    with tempfile.TemporaryDirectory() as folder:
        store = GramStore(folder)
        bench.keep(store)
        size = sum(
            (store.folder / f"{bench.key(bench.models[0], layer)}.gram").stat().st_size
            for layer in bench.models[0].layer_names
        )
        seconds = [seconds_of(lambda: bench.kept(store)) for _ in range(rounds)]
        error = np.abs(bench.kept(store).values - bench.minibatch().values).max()
    print(
        f"pair from kept Grams: {1e3 * min(seconds):.0f} ms (first {1e3 * seconds[0]:.0f} ms), "
        f"{size / 1e6:.1f} MB the first network, rounding moves CKA by {error:.1e}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoints", nargs="*")
    parser.add_argument("--samples", type=int, default=2048)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", default="", help="ways whose name holds this text")
    parser.add_argument("--no-errors", action="store_true", help="leave out float64 references")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    threadpool_limits(1, user_api="blas")  # as analysis.run does
    models = [open_model(path) for path in options.checkpoints] or make_models(PAIR)
    bench = Bench(models, make_images(options.samples), options.batch_size)
    chosen = {
        name: work for name, work in ways(bench).items() if options.only in name or "floor" in name
    }
    peaks = {name: peak_bytes(work) for name, work in chosen.items()}
    seconds: dict[str, list[float]] = {name: [] for name in chosen}
    for _ in range(options.rounds):
        for name, work in chosen.items():
            seconds[name].append(seconds_of(work))
            print(f"{name}: {seconds[name][-1]:.2f} s", file=sys.stderr, flush=True)
    floor = min(seconds["forward passes (floor)"])
    print(f"{options.samples} images in batches of {options.batch_size}, ", end="")
    print(f"{options.threads} threads, torch {torch.__version__}")
    print(f"{'':30} {'s':>6} {'x floor':>8} {'MB':>6} {'error':>8}")
    for name, times in seconds.items():
        error = "" if options.no_errors or "floor" in name else f"{error_of(bench, name):8.1e}"
        print(f"{name:30} {min(times):6.2f} {min(times) / floor:8.2f}", end=" ")
        print(f"{peaks[name] / 1e6:6.0f} {error}")
    with torch.no_grad():
        widths = [
            features[0].numel()
            for model in models
            for _, features in bench.stream(model, slice(0, 4))
        ]
    said = full_set_bytes(widths, options.samples)
    print(f"full_set_bytes said {said / 1e6:.0f} MB")
    print_stored(bench, options.rounds)


if __name__ == "__main__":
    main()
