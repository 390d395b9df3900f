"""A study with every measure, of made-up numbers: two networks, a ceiling and a floor."""

from __future__ import annotations

import math

import numpy as np

from analysis.cka_result import CKAResult
from analysis.geometry import GeometryResult
from analysis.geometry_measures import GEOMETRY_MEASURES
from analysis.paired import PairedResult
from analysis.probes import ProbeResult
from analysis.similarity import SimilarityResult
from analysis.study import (
    PairedProbes,
    PairSimilarity,
    Study,
    StudyCheckpoint,
    StudyProvenance,
    StudyQuestion,
)

LAYERS = ("stem", *(f"stage{stage}_block{block}" for stage in (1, 2, 3) for block in (1, 2, 3)))
DEAD = LAYERS[5]  # of the floor: constant, so undefined
CLASSES = tuple("plane car bird cat deer dog frog horse ship truck".split())
MODELS = {"bp-0": "bp", "auglocal-0": "auglocal", "bp-1": "bp", "untrained": "untrained"}
ROLES = {"bp-1": "ceiling", "untrained": "floor"}
REASON = "its features are the same for every image, so there is nothing to compare"
SAMPLES = 2000


def full_study(*, title="BP and AugLocal, every measure", layers=LAYERS, command="make it again"):
    """Every field of a study filled; undefined values among them."""
    names = tuple(MODELS)
    return Study(
        title=title,
        question=make_question(names),
        cka=make_cka(names, layers),
        probes=tuple(make_probe(name, layers, seed) for seed, name in enumerate(names)),
        provenance=StudyProvenance(
            versions={"numpy": "2.4", "python": "3.11"},
            device="cpu",
            seconds=12.5,
            date="2026-02-03T04:05:06+00:00",
            command=command,
        ),
        similarity=tuple(
            PairSimilarity("bp-0", "auglocal-0", make_similarity(measure, layers))
            for measure in SIMILARITIES
        ),
        paired=(PairedProbes("bp-0", "auglocal-0", make_paired(len(layers))),),
        geometry=tuple(make_geometry(name, layers, seed) for seed, name in enumerate(names[:2])),
    )


def make_question(names):
    return StudyQuestion(
        checkpoints=tuple(
            StudyCheckpoint(
                name=name,
                sha256=f"{seed}" * 64,
                architecture="resnet20",
                rule=MODELS[name],
                rule_options={"auxiliary_depth": 2} if "aug" in name else {},
                dataset="CIFAR-10",
                accuracy=None
                if "un" in name
                else {"value": 0.85, "split": "test", "samples": 10000},
                epoch=15,
                seed=seed,
                role=ROLES.get(name, ""),
            )
            for seed, name in enumerate(names)
        ),
        dataset="cifar10",
        dataset_title="CIFAR-10",
        split="test",
        samples=SAMPLES,
        seed=0,
        batch_size=125,
        image_size=None,
        images_sha256="ab" * 32,
        train_samples=5000,
        penalty=1.0,
        measures=("cka", "probes", "similarity", "geometry"),
        classes=CLASSES,
        labels=(0,) * SAMPLES,
        batch_note="2,000 images in 16 batches of 125",
        num_shuffles=100,
        num_neighbours=10,
    )


def make_cka(names, layers):
    """Grams as random directions that turn with depth; networks of one rule turn alike."""
    rng = np.random.default_rng(0)
    depth = np.linspace(0, 1, len(layers))
    axes = np.eye(6)
    vectors = []
    for name in names:
        turn = {"bp": 1.2, "auglocal": 0.9, "untrained": 0.2}[MODELS[name]] * depth
        own = 0.25 * depth + (0.9 if "un" in name else 0)
        vectors.append(
            np.outer(np.cos(turn), axes[0])
            + np.outer(np.sin(turn), axes[1])
            + np.outer(own, axes[2 + names.index(name)])
        )
    points = np.concatenate(vectors)
    points /= np.linalg.norm(points, axis=1)[:, None]
    values = points @ points.T
    margin = 0.01 + 0.02 * rng.random(values.shape)
    margin = (margin + margin.T) / 2
    model = np.repeat(np.arange(len(names)), len(layers))
    null = np.where(model[:, None] == model, math.nan, 0.03)
    undefined = {}
    if DEAD in layers:
        dead = 3 * len(layers) + layers.index(DEAD)
        for part in (values, margin, null):
            part[dead] = part[:, dead] = math.nan
        undefined[f"untrained/{DEAD}"] = REASON
    return CKAResult(
        models=names,
        layers=(layers,) * len(names),
        values=values,
        standard_errors=margin / 2,
        low=values - margin,
        high=values + margin,
        undefined=undefined,
        samples=SAMPLES,
        batch_sizes=(125,) * 16,
        interval_note=None,
        null_levels=null,
        num_shuffles=100,
    )


def make_probe(model, layers, seed):
    rng = np.random.default_rng(seed)
    num_layers, num_classes = len(layers), len(CLASSES)
    top = 0.4 if model == "untrained" else 0.85 - 0.02 * seed
    accuracy = np.linspace(0.35, top, num_layers) + rng.normal(0, 0.01, num_layers)
    recall = np.clip(accuracy[:, None] + rng.normal(0, 0.08, (num_layers, num_classes)), 0, 1)
    confusion = np.full((num_layers, num_classes, num_classes), 4)
    confusion[:, range(num_classes), range(num_classes)] = np.rint(200 * recall)
    undefined = {}
    cross_entropy, calibration = 2.3 * (1 - accuracy), 0.1 * (1 - accuracy)
    neighbours = accuracy - 0.08
    if model == "untrained" and DEAD in layers:
        index = layers.index(DEAD)
        for part in (accuracy, recall, cross_entropy, calibration, neighbours):
            part[index] = math.nan
        confusion[index] = -1
        undefined[DEAD] = REASON
    is_local = model.startswith("aug")
    auxiliary = accuracy[1::2] + 0.03
    return ProbeResult(
        model=model,
        layers=layers,
        accuracy=accuracy,
        low=accuracy - 0.02,
        high=accuracy + 0.02,
        classifier_accuracy=None if model == "untrained" else 0.85,
        classifier_low=None if model == "untrained" else 0.83,
        classifier_high=None if model == "untrained" else 0.87,
        chance=0.1,
        train_samples=5000,
        test_samples=SAMPLES,
        penalty=1.0,
        undefined=undefined,
        penalties=np.full(num_layers, 10.0),
        cross_entropy=cross_entropy,
        calibration_error=calibration,
        recall=recall,
        recall_low=recall - 0.05,
        recall_high=recall + 0.05,
        confusion=confusion,
        num_neighbours=10,
        neighbours_accuracy=neighbours,
        neighbours_low=neighbours - 0.02,
        neighbours_high=neighbours + 0.02,
        auxiliary_layers=layers[1::2] if is_local else (),
        auxiliary_accuracy=auxiliary if is_local else None,
        auxiliary_low=auxiliary - 0.02 if is_local else None,
        auxiliary_high=auxiliary + 0.02 if is_local else None,
    )


SIMILARITIES = {
    "rsa": ("Representational similarity (RSA)", (-1.0, 1.0), "higher is more alike"),
    "procrustes": ("Procrustes distance", (0.0, 2.0), "lower is more alike"),
    "predictivity": ("Linear predictivity", (-math.inf, 1.0), "higher is more alike"),
}


def make_similarity(measure, layers):
    title, ends, direction = SIMILARITIES[measure]
    place = np.linspace(0, 1, len(layers))
    alike = 0.95 - 0.9 * np.abs(place[:, None] - place)
    values = 1.9 - 1.8 * alike if direction.startswith("lower") else alike - 0.2
    values[2, 1] = math.nan
    margin = np.where(np.isnan(values), math.nan, 0.03)
    return SimilarityResult(
        measure=measure,
        title=title,
        options={},
        range=ends,
        direction=direction,
        rows=layers,
        columns=layers,
        values=values,
        standard_errors=margin / 2,
        low=values - margin,
        high=values + margin,
        chance=np.where(np.isnan(values), math.nan, 0.05 if "lower" not in direction else 1.8),
        undefined={f"{layers[2]}|{layers[1]}": "its ranks are all equal"},
        samples=1000,
        groups=10,
        seed=0,
        notes=("1000 of 2000 images were drawn at random with seed 0",),
    )


def make_paired(num_layers):
    difference = np.linspace(-0.06, 0.08, num_layers)
    difference[1] = math.nan
    adjusted = np.where(np.abs(difference) > 0.04, 0.001, 0.5)
    adjusted[1] = math.nan
    return PairedResult(
        rows=np.arange(num_layers),
        columns=np.arange(num_layers),
        difference=difference,
        low=difference - 0.03,
        high=difference + 0.03,
        only_a=np.full(num_layers, 120),
        only_b=np.full(num_layers, 90),
        p_values=adjusted / 10,
        adjusted=adjusted,
        samples=SAMPLES,
    )


def make_geometry(model, layers, seed):
    rng = np.random.default_rng(seed)
    values, low, high, undefined = {}, {}, {}, {}
    for name, kind in GEOMETRY_MEASURES.items():
        top = kind.highest if kind.highest is not None else 300.0
        values[name] = top * np.linspace(0.01, 0.9, len(layers)) * rng.uniform(0.8, 1, len(layers))
        if name == "nc3":
            values[name][:-1] = math.nan
            reason = "only the classifier's own input has it"
            undefined |= {f"{layer}/nc3": reason for layer in layers[:-1]}
        low[name], high[name] = 0.9 * values[name], 1.1 * values[name]
    return GeometryResult(
        model=model,
        layers=layers,
        measures=tuple(GEOMETRY_MEASURES),
        values=values,
        standard_errors={name: 0.05 * part for name, part in values.items()},
        low=low,
        high=high,
        samples_by_measure={name: np.full(len(layers), 1000) for name in values},
        undefined=undefined,
        notes={f"{layers[0]}/two_nn": "too few neighbours differ for an interval"},
        widths=(16,) * len(layers),
        samples=SAMPLES,
        groups=16,
        seed=0,
    )
