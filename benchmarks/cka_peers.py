"""CKA of all pairs of layers beside other packages, in one process and in turns.

    pip install torch_cka pytorch-cka cka-pytorch
    python benchmarks/cka_peers.py [A.safetensors B.safetensors] --samples 1024

The floor is the forward passes alone. Errors are the largest difference from float64 of the
unbiased minibatch estimator, which all these compute. Then four networks, all six pairs. Packages
that are not installed are named and left out.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import itertools
import sys
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from cka_floor import Bench, peak_bytes, seconds_of
from cka_models import PAIR, make_images, make_models
from threadpoolctl import threadpool_limits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from analysis.cka_result import FloatArray
from analysis.gram import has_fast_bf16
from analysis.models import Model, open_model

Compare = Callable[["Tapped", "Tapped", DataLoader[Any]], FloatArray]
FOUR = ("resnet56", "resnet20", "resnet56", "resnet20")


class Tapped(nn.Module):
    """A network with an identity after each layer, for packages to put their hooks on."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.layers = model.backbone.layers.values()  # a plain view, so that no package enters it
        self.names = [f"tap_{name}" for name in model.layer_names]
        for name in self.names:
            self.add_module(name, nn.Identity())
        # Packages ask parameters for the device.
        self.place = nn.Parameter(torch.zeros(()), requires_grad=False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Run the layers, and each one's tap."""
        features = images
        for layer, name in zip(self.layers, self.names):
            features = getattr(self, name)(layer(features))
        return features


def torch_cka(first: Tapped, second: Tapped, loader: DataLoader[Any]) -> FloatArray:
    """CKA by torch_cka."""
    module = importlib.import_module("torch_cka")
    comparison = module.CKA(
        first, second, "first", "second", model1_layers=first.names, model2_layers=second.names
    )
    comparison.compare(loader, loader)
    return np.asarray(comparison.export()["CKA"])


def pytorch_cka(first: Tapped, second: Tapped, loader: DataLoader[Any]) -> FloatArray:
    """CKA by pytorch-cka."""
    module = importlib.import_module("cka")
    (matrix,) = module.compute_cka(
        first,
        second,
        loader,
        layers=first.names,
        model2_layers=second.names,
        device="cpu",
        progress=False,
    )
    return np.asarray(matrix)


def cka_pytorch(first: Tapped, second: Tapped, loader: DataLoader[Any]) -> FloatArray:
    """CKA by cka-pytorch, over one epoch."""
    module = importlib.import_module("cka_pytorch.cka")
    calculator = module.CKACalculator(
        first, second, model1_layers=first.names, model2_layers=second.names, verbose=False
    )
    return np.asarray(calculator.calculate_cka_matrix(loader, num_epochs=1))


PEERS: dict[str, tuple[str, Compare]] = {
    "torch_cka": ("torch_cka", torch_cka),
    "pytorch-cka": ("cka", pytorch_cka),
    "cka-pytorch": ("cka_pytorch.cka", cka_pytorch),
}


def installed() -> dict[str, Compare]:
    """The peers that are here; says which are not."""
    found = {}
    for package, (module, compare) in PEERS.items():
        try:
            importlib.import_module(module)
            found[package] = compare
        except ImportError as error:
            print(f"{package} is left out: {error}")
    return found


def quietly(compare: Compare, first: Model, second: Model, loader: DataLoader[Any]) -> FloatArray:
    """Run a peer without its progress bars, on networks that no hooks were left in."""
    tapped = Tapped(first), Tapped(second)
    with torch.no_grad(), warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        return compare(*tapped, loader)


def loader_of(bench: Bench, batch_size: int) -> DataLoader[Any]:
    """The images as peers take them, normalised beforehand."""
    images = bench.models[0].preprocess(bench.images)
    labels = torch.zeros(len(images), dtype=torch.int64)  # which nobody reads
    return DataLoader(TensorDataset(images, labels), batch_size=batch_size)


def print_table(bench: Bench, peers: dict[str, Compare], batch_size: int, rounds: int) -> None:
    """Compare two networks by everything."""
    loader, (first, second) = loader_of(bench, batch_size), bench.models
    block = np.s_[: len(first.layer_names), len(first.layer_names) :]
    exact = bench.minibatch(double=True).values[block]
    ways: dict[str, Callable[[], FloatArray]] = {
        "here, fp32": lambda: bench.minibatch().values[block]
    }
    if has_fast_bf16():
        ways["here, bf16"] = lambda: bench.minibatch("bf16").values[block]
    for package, compare in peers.items():
        ways[package] = lambda compare=compare: quietly(compare, first, second, loader)  # type: ignore[misc]
    errors = {name: np.abs(work() - exact).max() for name, work in ways.items()}
    seconds: dict[str, list[float]] = {name: [] for name in ("floor", *ways)}
    for _ in range(rounds):
        seconds["floor"].append(seconds_of(bench.forward))
        for name, work in ways.items():
            seconds[name].append(seconds_of(work))
            print(f"{name}: {seconds[name][-1]:.2f} s", file=sys.stderr, flush=True)
    print(f"\n{len(bench.images)} images, batches of {batch_size}, {len(exact)} x {exact.shape[1]}")
    print(f"{'':16} {'s':>7} {'x floor':>8} {'MB':>6} {'error':>8}")
    floor = min(seconds["floor"])
    print(f"{'forward passes':16} {floor:7.2f} {1:8.2f}")
    for name, work in ways.items():
        best = min(seconds[name])
        print(f"{name:16} {best:7.2f} {best / floor:8.2f} ", end="")
        print(f"{peak_bytes(work) / 1e6:6.0f} {errors[name]:8.1e}")


def print_four(images: torch.Tensor, peers: dict[str, Compare], batch_size: int) -> None:
    """Compare four networks, each with each."""
    bench = Bench(make_models(FOUR), images, batch_size)
    loader = loader_of(bench, batch_size)
    print(f"\nfour networks, six pairs, {len(images)} images")
    print(f"{'here, fp32':16} {seconds_of(bench.minibatch):7.2f} s")
    if has_fast_bf16():
        print(f"{'here, bf16':16} {seconds_of(lambda: bench.minibatch('bf16')):7.2f} s")
    if "pytorch-cka" in peers:

        def all_pairs() -> None:
            for first, second in itertools.combinations(bench.models, 2):
                quietly(pytorch_cka, first, second, loader)

        print(f"{'pytorch-cka':16} {seconds_of(all_pairs):7.2f} s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoints", nargs="*", help="two checkpoints; fresh networks if none")
    parser.add_argument("--samples", type=int, default=1024)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--part", choices=("pair", "four", "both"), default="both")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    threadpool_limits(1, user_api="blas")  # as analysis.run does; PyTorch's own threads stay
    peers, images = installed(), make_images(options.samples)
    if options.part != "four":
        models = [open_model(path) for path in options.checkpoints] or make_models(PAIR)
        print_table(
            Bench(models, images, options.batch_size), peers, options.batch_size, options.rounds
        )
    if options.part != "pair":
        print_four(images, peers, options.batch_size)


if __name__ == "__main__":
    main()
