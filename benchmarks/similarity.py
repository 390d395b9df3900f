"""Time and memory of every measure of similarity over all pairs of layers of two checkpoints.

    python benchmarks/similarity.py A.safetensors B.safetensors --dataset digits --samples 500

Features are gathered once. "map" compares all pairs, preparing each layer once; "pair by pair" is
what the same values take with the usual public functions, measured on a few pairs and scaled to
all: pdist and spearmanr for RSA, RidgeCV and cross_val_predict for predictivity, and an SVD of
every pair's features for the others. "difference" is the largest between the two on these pairs.
"""

from __future__ import annotations

import argparse
import time
import tracemalloc
from collections.abc import Callable

import numpy as np
import torch
from scipy.linalg import subspace_angles, svdvals
from scipy.spatial.distance import cdist, pdist
from scipy.stats import spearmanr
from sklearn.linear_model import RidgeCV
from sklearn.model_selection import PredefinedSplit, cross_val_predict
from threadpoolctl import threadpool_limits

from analysis.cca import SVCCA
from analysis.features import sample_images, stream_features
from analysis.models import Model, open_model
from analysis.neighbours import MutualNeighbours
from analysis.predictivity import LinearPredictivity
from analysis.procrustes import Procrustes
from analysis.rsa import RSA
from analysis.similarity import Measure, similarity_map

Features = dict[str, np.ndarray]


def gather(model: Model, images: torch.Tensor, pool: int) -> Features:
    """Features of all layers, (N, D), averaged to pool x pool places, or flattened if pool is 0."""
    parts: dict[str, list[torch.Tensor]] = {}
    for batch in images.split(250):
        for name, output in stream_features(model, batch):
            if pool and output.ndim == 4 and output.shape[-1] > pool:
                output = torch.nn.functional.adaptive_avg_pool2d(output, pool)
            parts.setdefault(name, []).append(output.flatten(1).clone())
    return {name: torch.cat(part).numpy() for name, part in parts.items()}


def svcca_of(x: np.ndarray, y: np.ndarray) -> float:
    """Principal subspaces by SVD, and the cosines of the angles between them."""
    bases = []
    for features in (x, y):
        features = features - features.mean(axis=0, dtype=np.float64)
        left, sizes, _ = np.linalg.svd(features, full_matrices=False)
        held = np.cumsum(sizes**2) / (sizes**2).sum()
        bases.append(left[:, : int((held < 0.99).sum()) + 1])
    return float(np.cos(subspace_angles(*bases)).mean())


def procrustes_of(x: np.ndarray, y: np.ndarray) -> float:
    """2 - 2 |A^T B|_* of centred features of size 1."""
    x, y = (features - features.mean(axis=0, dtype=np.float64) for features in (x, y))
    return float(2 - 2 * svdvals(x.T @ y).sum() / np.linalg.norm(x) / np.linalg.norm(y))


def rsa_of(x: np.ndarray, y: np.ndarray) -> float:
    """Spearman correlation of correlation distances."""
    return float(spearmanr(pdist(x, "correlation"), pdist(y, "correlation")).statistic)


def neighbours_of(x: np.ndarray, y: np.ndarray) -> float:
    """Shared members of the ten nearest by cosine."""
    nearest = []
    for features in (x, y):
        distances = cdist(features, features, "cosine")
        np.fill_diagonal(distances, np.inf)
        nearest.append(distances.argsort(axis=1)[:, :10])
    shared = [len(np.intersect1d(*rows)) for rows in zip(*nearest, strict=True)]
    return float(np.mean(shared) / 10)


def predictivity_of(x: np.ndarray, y: np.ndarray) -> float:
    """R^2 of RidgeCV on held-out images, with the penalties and folds of the measure."""
    measure = LinearPredictivity()
    folds = measure.prepare(x).fold_by_image
    x, y = (features - features.mean(axis=0, dtype=np.float64) for features in (x, y))
    model = RidgeCV(np.array(measure.penalties) * (x**2).sum())
    predicted = cross_val_predict(model, x, y, cv=PredefinedSplit(folds))
    means = np.stack([y[folds != fold].mean(axis=0) for fold in folds])
    return float(1 - ((y - predicted) ** 2).sum() / ((y - means) ** 2).sum())


CASES: dict[str, tuple[Measure, Callable[[np.ndarray, np.ndarray], float]]] = {
    "SVCCA": (SVCCA(), svcca_of),
    "Procrustes": (Procrustes(), procrustes_of),
    "RSA": (RSA(), rsa_of),
    "mutual neighbours": (MutualNeighbours(), neighbours_of),
    "linear predictivity": (LinearPredictivity(), predictivity_of),
}


def compare(name: str, layers_a: Features, layers_b: Features, pairs: int) -> str:
    """Measure one row of the table."""
    measure, other = CASES[name]
    started = time.perf_counter()
    result = similarity_map(layers_a, layers_b, measure)
    seconds = time.perf_counter() - started
    tracemalloc.start()
    similarity_map(layers_a, layers_b, measure)
    memory = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    cells = np.random.default_rng(0).integers((len(layers_a), len(layers_b)), size=(pairs, 2))
    differences = []
    started = time.perf_counter()
    for row, column in cells:
        value = other(layers_a[result.rows[row]], layers_b[result.columns[column]])
        differences.append(abs(value - result.values[row, column]))
    by_pairs = (time.perf_counter() - started) / pairs * result.values.size
    return (
        f"{name:20} {seconds:8.2f} {by_pairs:14.1f} {by_pairs / seconds:6.0f} x "
        f"{memory / 2**20:9.0f} {np.nanmax(differences):11.1e}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoints", nargs=2)
    parser.add_argument("--dataset", default="digits")
    parser.add_argument("--samples", type=int, default=500)
    parser.add_argument("--pool", type=int, default=1, help="0 flattens")
    parser.add_argument("--pairs", type=int, default=3, help="pairs to measure one by one")
    parser.add_argument("--measures", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--data-folder", default="data")
    options = parser.parse_args()
    models = [open_model(path) for path in options.checkpoints]
    threadpool_limits(1)
    images = sample_images(
        options.dataset, samples=options.samples, folder=options.data_folder
    ).images
    started = time.perf_counter()
    layers_a, layers_b = (gather(model, images, options.pool) for model in models)
    print(f"{len(layers_a)} x {len(layers_b)} layers, {len(images)} images, ", end="")
    print(f"{'flattened' if options.pool == 0 else f'pooled to {options.pool}'}; ", end="")
    print(f"forward passes {time.perf_counter() - started:.2f} s, one thread")
    print(f"{'':20} {'map, s':>8} {'pair by pair, s':>14} {'ratio':>7} {'map, MiB':>10} difference")
    for name in options.measures:
        print(compare(name, layers_a, layers_b, options.pairs))


if __name__ == "__main__":
    main()
