"""Linear probes of 28 layers against scikit-learn, side by side on real features.

    python benchmarks/probes.py --images imagefolder:data/cifar10-jpeg

A ResNet-56 of random weights (batch statistics from the training images) reads 5,000 training and
2,000 test images once; its 28 layers are pooled to 16, 32 and 64 features. Every solver then fits
all layers to the same float64 features, standardised inside its time, and they take turns. The
reference is scikit-learn's newton-cholesky at a tolerance of 1e-12. The table gives the best
round of each, the ratio to ours, the largest gap of the objective (sum of cross-entropies plus
penalty / 2 |W|^2) above the reference, relative to it, and the largest difference of a test
accuracy. `--checkpoint` reads the layers of a trained network instead, `--features` keeps the
features in a file for another run.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from analysis.features import ImageSample, sample_images, stream_features
from analysis.models import open_model
from analysis.probes import fit_probes, pooled
from auglocal.backbones.registry import build_backbone

BATCH = 250
# Per layer: objective, and predicted classes of the test images.
Answers = list[tuple[float, np.ndarray]]
Data = tuple[list[np.ndarray], np.ndarray, list[np.ndarray], np.ndarray]


def read_features(options: argparse.Namespace) -> Data:
    """Pooled features by layer with labels, of training and of test images, as float64."""
    if options.features and options.features.exists():
        kept = np.load(options.features)
        count = sum(name.startswith("train-") for name in kept.files)
        parts = ([kept[f"{part}-{i}"] for i in range(count)] for part in ("train", "test"))
        train, test = parts
        return train, kept["train_labels"], test, kept["test_labels"]
    samples = [
        sample_images(options.images, "train", options.train_samples, seed=0),
        sample_images(options.images, "test", options.test_samples, seed=0),
    ]
    started = time.perf_counter()
    run = trained(options.checkpoint) if options.checkpoint else random_resnet56(samples[0])
    train, test = ([*layers_of(run, sample)] for sample in samples)
    print(f"forward passes and pooling: {time.perf_counter() - started:.1f} s", flush=True)
    if options.features:
        arrays = {f"train-{i}": part for i, part in enumerate(train)}
        arrays |= {f"test-{i}": part for i, part in enumerate(test)}
        labels = {"train_labels": samples[0].labels, "test_labels": samples[1].labels}
        np.savez(options.features, **arrays, **labels)
    return train, samples[0].labels, test, samples[1].labels


def trained(path: str) -> Callable[[torch.Tensor], list[np.ndarray]]:
    """Read the layers of a checkpoint."""
    model = open_model(path)
    return lambda images: [pooled(output) for _, output in stream_features(model, images)]


def random_resnet56(sample: ImageSample) -> Callable[[torch.Tensor], list[np.ndarray]]:
    """Read the layers of a ResNet-56 of random weights, normalised by some of the images."""
    torch.manual_seed(0)
    backbone = build_backbone("resnet56")

    def run(images: torch.Tensor) -> list[np.ndarray]:
        with torch.no_grad():
            inputs = images.float() / 127.5 - 1
            return [pooled(output) for _, output in backbone.forward_layers(inputs)]

    backbone.train()
    for start in range(0, 4 * BATCH, BATCH):
        run(sample.images[start : start + BATCH])
    backbone.eval()
    return run


def layers_of(
    run: Callable[[torch.Tensor], list[np.ndarray]], sample: ImageSample
) -> list[np.ndarray]:
    """Features (N, D) of each layer."""
    batches = [run(sample.images[i : i + BATCH]) for i in range(0, len(sample.images), BATCH)]
    return [np.concatenate(parts).astype(np.float64) for parts in zip(*batches, strict=True)]


def fit_ours(data: Data, penalty: float, threads: int) -> Answers:
    """Fit all layers by `fit_probes`, with all its scores."""
    train, train_labels, test, test_labels = data
    fits = fit_probes(
        dict(enumerate(train)),
        train_labels,
        dict(enumerate(test)),
        test_labels,
        penalties=[penalty],
        threads=threads,
    )
    return [(probe.objective, probe.scores.predictions) for probe in fits.layers.values()]


def fit_sklearn(data: Data, penalty: float, **options: object) -> Answers:
    """Fit layer by layer with scikit-learn at one thread."""
    train, train_labels, test, _ = data
    answers = []
    with threadpool_limits(1), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # lbfgs ends where rounding stops its line search
        for seen, unseen in zip(train, test, strict=True):
            scaler = StandardScaler().fit(seen)
            inputs = scaler.transform(seen)
            model = LogisticRegression(C=1 / penalty, max_iter=10_000, **options)
            model.fit(inputs, train_labels)
            predictions = model.predict(scaler.transform(unseen))
            answers.append((objective_of(model, inputs, train_labels, penalty), predictions))
    return answers


def objective_of(
    model: LogisticRegression, inputs: np.ndarray, labels: np.ndarray, penalty: float
) -> float:
    """Sum of cross-entropies plus penalty / 2 |W|^2; takes a hundredth of the fit."""
    scores = model.decision_function(inputs)
    losses = np.logaddexp.reduce(scores, axis=1) - scores[np.arange(len(labels)), labels]
    return float(losses.sum() + penalty / 2 * (model.coef_**2).sum())


def report(name: str, seconds: float, ours: float, answers: Answers, best: Answers, labels) -> None:
    """Print a line of the table."""
    gap = max(value / least - 1 for (value, _), (least, _) in zip(answers, best, strict=True))
    differences = [
        abs((given == labels).mean() - (right == labels).mean())
        for (_, given), (_, right) in zip(answers, best, strict=True)
    ]
    changed = sum((given != right).sum() for (_, given), (_, right) in zip(answers, best))
    print(
        f"{name:44s} {seconds:7.2f} {seconds / ours:7.2f} {gap:13.1e} {max(differences):13.4f} "
        f"{changed:11d}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", default="imagefolder:data/cifar10-jpeg")
    parser.add_argument("--checkpoint", help="a trained network instead of a random ResNet-56")
    parser.add_argument("--features", type=Path, help="an .npz file to keep the features in")
    parser.add_argument("--train-samples", type=int, default=5000)
    parser.add_argument("--test-samples", type=int, default=2000)
    parser.add_argument("--penalty", type=float, default=1.0)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    data = read_features(options)
    penalty = options.penalty
    widths = [part.shape[1] for part in data[0]]
    print(
        f"{len(widths)} layers of {min(widths)} to {max(widths)} features, penalty {penalty:g}",
        flush=True,
    )
    solvers: dict[str, Callable[[], Answers]] = {
        "fit_probes, 1 thread": lambda: fit_ours(data, penalty, 1),
        "fit_probes, 2 threads": lambda: fit_ours(data, penalty, 2),
        "scikit-learn lbfgs, tol 1e-4 (default)": lambda: fit_sklearn(data, penalty),
        "scikit-learn lbfgs, tol 1e-6": lambda: fit_sklearn(data, penalty, tol=1e-6),
        "scikit-learn newton-cholesky, tol 1e-4": lambda: fit_sklearn(
            data, penalty, solver="newton-cholesky"
        ),
    }
    best = fit_sklearn(data, penalty, solver="newton-cholesky", tol=1e-12)
    seconds: dict[str, list[float]] = {name: [] for name in solvers}
    answers = {}
    for _ in range(options.rounds):
        for name, solve in solvers.items():
            started = time.perf_counter()
            answers[name] = solve()
            seconds[name].append(time.perf_counter() - started)
    ours = min(min(times) for name, times in seconds.items() if name.startswith("fit_probes"))
    print(f"{'':44s} {'seconds':>7s} {'x ours':>7s} {'objective gap':>13s}", end="")
    print(f" {'accuracy diff':>13s} {'predictions':>11s}")
    for name, times in seconds.items():
        report(name, min(times), ours, answers[name], best, data[3])


if __name__ == "__main__":
    main()
