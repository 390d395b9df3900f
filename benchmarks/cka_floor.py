"""Time and memory of CKA of all pairs of layers, against the floor: the forward passes alone.

    python benchmarks/cka_floor.py A.safetensors B.safetensors --samples 1000 --batch-size 125

Forward passes and the whole comparison take turns in one process; the table gives the best round of
each, their ratio, and the largest difference from the same estimator computed in float64.
"""

from __future__ import annotations

import argparse
import time
import tracemalloc
from collections.abc import Callable

import numpy as np
import torch
from threadpoolctl import threadpool_limits

from analysis.cka import CKAAccumulator, CKAResult, batch_slices, centred_gram
from analysis.features import stream_features
from analysis.models import Model, open_model


def run_forward(models: list[Model], images: torch.Tensor, batch_size: int) -> None:
    """Run the layers and use nothing of them."""
    for batch in batch_slices(len(images), batch_size):
        for model in models:
            for _ in stream_features(model, images[batch]):
                pass


def run_cka(
    models: list[Model],
    images: torch.Tensor,
    batch_size: int,
    gram: Callable[[torch.Tensor], np.ndarray] = centred_gram,
) -> CKAResult:
    """CKA of all pairs of layers, reducing each layer's output by `gram`."""
    accumulator = CKAAccumulator({model.sha256: model.layer_names for model in models})
    for batch in batch_slices(len(images), batch_size):
        accumulator.update(
            {
                (model.sha256, layer): gram(features)
                for model in models
                for layer, features in stream_features(model, images[batch])
            }
        )
    return accumulator.result()


def seconds_of(work: Callable[[], object]) -> float:
    """Seconds that one call takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoints", nargs=2)
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--batch-size", type=int, default=125)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    models = [open_model(path) for path in options.checkpoints]
    threadpool_limits(1, user_api="blas")  # as analysis.run does
    generator = torch.Generator().manual_seed(0)
    size = (options.samples, *models[0].metadata.input_size)
    images = torch.randint(0, 256, size, dtype=torch.uint8, generator=generator)
    arguments = models, images, options.batch_size
    floors, totals = [], []
    for _ in range(options.rounds):
        floors.append(seconds_of(lambda: run_forward(*arguments)))
        totals.append(seconds_of(lambda: run_cka(*arguments)))
    tracemalloc.start()
    values = run_cka(*arguments).values
    extra = tracemalloc.get_traced_memory()[1]
    exact = run_cka(*arguments, gram=lambda features: centred_gram(features.double())).values
    print(f"{options.samples} images in batches of {options.batch_size}, ", end="")
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}")
    print(f"forward passes           {min(floors):8.2f} s")
    print(
        f"CKA of all pairs         {min(totals):8.2f} s = {min(totals) / min(floors):.2f} x floor"
    )
    print(f"NumPy memory at its peak {extra / 2**20:8.0f} MiB")
    print(f"largest error to float64 {np.abs(values - exact).max():8.1e}")


if __name__ == "__main__":
    main()
