"""Projections against scikit-learn's, and what an alignment must and must not change."""

from __future__ import annotations

import itertools
import math
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from sklearn.manifold import trustworthiness

from analysis.moments import Undefined
from analysis.projection import (
    PROJECTIONS,
    aligned_coordinates,
    fit_pca,
    pca,
    rotation,
    tsne,
    umap,
)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def stretched(samples, width, seed=0):
    """Features (N, D) of clearly different variances in turned directions."""
    rng = np.random.default_rng(seed)
    turn = np.linalg.qr(rng.normal(size=(width, width)))[0]
    return rng.normal(size=(samples, width)) * np.geomspace(5, 0.1, width) @ turn + 3


def orthogonal(size, seed=0):
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(size, size)))[0]


def distances(points):
    return np.linalg.norm(points[:, None] - points[None], axis=2)


# ------------------------------------------------------------------------ PCA


@pytest.mark.parametrize("shape", [(50, 8), (20, 60), (20, 20)])
@pytest.mark.parametrize("dimensions", [1, 2, 3])
def test_pca_is_scikit_learns(shape, dimensions):
    features = stretched(*shape)
    expected = PCA(dimensions, svd_solver="full").fit(features)
    projection = fit_pca(features, dimensions)
    np.testing.assert_allclose(projection.components, expected.components_, atol=1e-9)
    np.testing.assert_allclose(projection.mean, expected.mean_, atol=1e-12)
    np.testing.assert_allclose(projection.explained_variance, expected.explained_variance_)
    np.testing.assert_allclose(projection.explained, expected.explained_variance_ratio_)
    np.testing.assert_allclose(projection.apply(features), expected.transform(features), atol=1e-9)
    np.testing.assert_array_equal(pca(features, dimensions).points, projection.apply(features))


def test_a_projection_is_reused_on_other_layers_of_the_same_width():
    first, second = stretched(40, 6, seed=1), stretched(30, 6, seed=2)
    expected = PCA(2).fit(first).transform(second)
    projection = fit_pca(first)
    np.testing.assert_allclose(projection.apply(second), expected, atol=1e-9)
    maps = torch.from_numpy(second).reshape(30, 3, 2)
    np.testing.assert_allclose(projection.apply(maps), expected, atol=1e-9)


def test_features_that_span_many_blocks_give_the_same_projection(monkeypatch):
    features = stretched(20, 60)
    expected = pca(features, 3).points
    monkeypatch.setattr("analysis.projection.BLOCK_COLUMNS", 7)
    monkeypatch.setattr("analysis.moments.BLOCK_COLUMNS", 11)
    np.testing.assert_allclose(pca(features, 3).points, expected, atol=1e-9)


@pytest.mark.parametrize("shape", [(50, 8), (20, 60)])
def test_signs_depend_on_the_components_alone(shape):
    features = stretched(*shape)
    mirrored = fit_pca(2 * features.mean(axis=0) - features)
    np.testing.assert_allclose(mirrored.components, fit_pca(features).components, atol=1e-9)
    reordered = fit_pca(features[::-1])
    np.testing.assert_allclose(reordered.components, fit_pca(features).components, atol=1e-9)
    for row in fit_pca(features).components:
        assert row[np.abs(row).argmax()] > 0


@pytest.mark.parametrize("shape", [(50, 8), (20, 60)])
@pytest.mark.parametrize("scale", [1e-3, 1e3])
def test_pca_is_exact_far_from_zero_and_at_any_scale(shape, scale):
    features = stretched(*shape)
    moved = ((features + 500) * scale).astype(np.float32)
    expected = PCA(2, svd_solver="full").fit_transform(moved.astype(np.float64)) / scale
    np.testing.assert_allclose(pca(moved).points / scale, expected, atol=1e-6)


@pytest.mark.parametrize("shape", [(30, 6), (6, 30)])
def test_directions_that_features_do_not_have_are_zero(rng, shape):
    line = rng.normal(size=(shape[0], 1)) @ rng.normal(size=(1, shape[1]))
    found = fit_pca(line, 3)
    assert found.explained.tolist() == pytest.approx([1, 0, 0])
    assert not found.components[1:].any()
    np.testing.assert_allclose(distances(found.apply(line)), distances(line), atol=1e-9)


@pytest.mark.parametrize("width", [2, 3])
def test_all_components_keep_all_distances(width):
    features = stretched(30, width)
    np.testing.assert_allclose(
        distances(pca(features, width).points), distances(features), atol=1e-9
    )
    assert pca(features, width).explained.sum() == pytest.approx(1)


# ------------------------------------------------------------------------ alignment


def test_a_turned_and_mirrored_layer_falls_on_the_one_before(rng):
    first = stretched(40, 3)
    layers = {"a": first, "b": 7 * first @ orthogonal(3, 4) + 2, "c": first @ -orthogonal(3, 5)}
    aligned = aligned_coordinates(layers, 3)
    for layer in ("b", "c"):
        np.testing.assert_allclose(aligned.points[layer], aligned.points["a"], atol=1e-9)
    assert aligned.scales["b"] == pytest.approx(7 * aligned.scales["a"])


def test_alignment_keeps_the_distances_of_each_layers_own_pca():
    layers = {"a": stretched(40, 5, 1), "b": stretched(40, 70, 2), "c": stretched(40, 9, 3)}
    aligned = aligned_coordinates(layers)
    for layer, features in layers.items():
        own = pca(features)
        points = aligned.points[layer]
        np.testing.assert_allclose(
            distances(points) * aligned.scales[layer], distances(own.points), atol=1e-9
        )
        assert aligned.explained[layer] == pytest.approx(own.explained.sum())
        assert np.sqrt((points**2).sum(axis=1).mean()) == pytest.approx(1)


@pytest.mark.parametrize("dimensions", [2, 3])
def test_no_turn_or_mirror_image_lies_better_on_the_layer_before(rng, dimensions):
    layers = {"a": stretched(40, 6, 1), "b": stretched(40, 6, 1) + rng.normal(size=(40, 6))}
    aligned = aligned_coordinates(layers, dimensions).points
    best = np.linalg.norm(aligned["b"] - aligned["a"])
    for seed in range(200):
        other = aligned["b"] @ orthogonal(dimensions, seed)
        assert np.linalg.norm(other - aligned["a"]) >= best - 1e-12


def test_a_slider_through_slowly_changing_layers_does_not_jump(rng):
    # Two axes whose variances cross half way: unaligned PCA swaps them there.
    base = rng.normal(size=(200, 2))
    layers = {
        f"layer{step}": base * [1 + step / 10, 2 - step / 10] @ orthogonal(2, step)
        for step in range(11)
    }
    aligned = list(aligned_coordinates(layers).points.values())
    plain = [pca(features).points for features in layers.values()]
    plain = [points / np.sqrt((points**2).sum(axis=1).mean()) for points in plain]

    def largest_step(sequence):
        return max(
            np.sqrt(((a - b) ** 2).sum(axis=1).mean()) for a, b in itertools.pairwise(sequence)
        )

    assert largest_step(aligned) < 0.15
    assert largest_step(plain) > 1


def test_layers_without_coordinates_are_passed_over_with_a_reason():
    first = stretched(40, 3)
    broken = first.copy()
    broken[3, 1] = math.nan
    layers = {"dead": np.ones((40, 5)), "a": first, "broken": broken, "b": first @ orthogonal(3)}
    aligned = aligned_coordinates(layers, 3)
    assert list(aligned.points) == list(aligned.scales) == list(aligned.explained) == ["a", "b"]
    np.testing.assert_allclose(aligned.points["b"], aligned.points["a"], atol=1e-9)
    assert "same for every image" in aligned.undefined["dead"]
    assert "not all finite" in aligned.undefined["broken"]


def test_rotation_undoes_a_rotation(rng):
    points, turn = rng.normal(size=(20, 3)), orthogonal(3)
    np.testing.assert_allclose(rotation(points @ turn, 5 * points), turn.T, atol=1e-12)


# ------------------------------------------------------------------------ t-SNE


def clusters(samples=90, width=60):
    labels = np.arange(samples) % 3
    rng = np.random.default_rng(6)
    return 12 * rng.normal(size=(3, width))[labels] + rng.normal(size=(samples, width)), labels


def test_tsne_unrolls_a_sheet_that_is_rolled_up_in_many_dimensions(rng):
    sheet = rng.uniform(size=(200, 2)) * [9, 3]
    rolled = np.c_[np.cos(sheet[:, 0]), sheet[:, 1], np.sin(sheet[:, 0])] * [4, 4, 4]
    features = np.pad(rolled, ((0, 0), (0, 17))) @ orthogonal(20)
    assert trustworthiness(features, tsne(features).points, n_neighbors=5) > 0.95


@pytest.mark.parametrize("dimensions", [2, 3])
def test_tsne_keeps_neighbours(dimensions):
    features, labels = clusters()
    found = tsne(features, perplexity=15, dimensions=dimensions)
    assert found.points.shape == (90, dimensions)
    assert found.note is None
    assert found.explained is None
    kept = trustworthiness(features, found.points, n_neighbors=5)
    assert kept > trustworthiness(features, pca(features, dimensions).points, n_neighbors=5)
    nearest = distances(found.points) + np.diag(np.full(90, np.inf))
    assert (labels[nearest.argmin(axis=1)] == labels).all()


def test_tsne_is_decided_by_its_seed_and_unchanged_by_scale():
    features, _ = clusters(40)
    first = tsne(features, perplexity=5, seed=1, max_steps=250).points
    np.testing.assert_array_equal(tsne(features, perplexity=5, seed=1, max_steps=250).points, first)
    scaled = tsne(1024 * features, perplexity=5, seed=1, max_steps=250).points
    np.testing.assert_allclose(scaled, first, atol=1e-4 * np.abs(first).max())


@pytest.mark.parametrize("samples", [5, 31])
def test_a_perplexity_that_few_images_do_not_allow_is_cut_and_said(rng, samples):
    found = tsne(rng.normal(size=(samples, 4)), perplexity=30, max_steps=250)
    assert found.note == (
        f"perplexity {(samples - 1) / 3:.3g} in place of 30: {samples} images allow no more"
    )
    assert np.isfinite(found.points).all()


def test_tsne_of_fewer_features_than_dimensions_works(rng):
    found = tsne(rng.normal(size=(20, 1)), perplexity=5, dimensions=3, max_steps=250)
    assert np.isfinite(found.points).all()


# ------------------------------------------------------------------------ UMAP


def test_umap_says_how_to_install_it_when_it_is_missing(monkeypatch):
    monkeypatch.setattr("analysis.projection.importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="not installed: run `pip install umap-learn`"):
        umap(clusters()[0])


def test_umap_is_asked_for_what_few_images_allow(monkeypatch, rng):
    asked = {}

    class Stand:
        def __init__(self, **options):
            asked.update(options)

        def fit_transform(self, rows):
            asked["rows"] = rows
            return rows[:, : asked["n_components"]].astype(np.float32)

    monkeypatch.setitem(sys.modules, "umap", SimpleNamespace(UMAP=Stand, __spec__=object()))
    found = umap(rng.normal(size=(8, 100)), neighbours=15, seed=4, dimensions=3)
    assert (asked["n_neighbors"], asked["random_state"]) == (7, 4)
    assert asked["rows"].shape == (8, 7)
    assert found.points.shape == (8, 3)
    assert found.points.dtype == np.float64
    assert found.note == "7 neighbours in place of 15: there are 8 images"
    assert umap(rng.normal(size=(80, 100))).note is None
    assert asked["rows"].shape == (80, 50)


@pytest.mark.slow
def test_umap_itself_keeps_clusters_apart_and_follows_its_seed():
    pytest.importorskip("umap", reason="umap-learn is optional")
    features, labels = clusters()
    points = umap(features).points
    nearest = distances(points) + np.diag(np.full(90, np.inf))
    assert (labels[nearest.argmin(axis=1)] == labels).all()
    np.testing.assert_array_equal(umap(features).points, points)


# ------------------------------------------------------------------------ undefined


@pytest.mark.parametrize("name", PROJECTIONS)
def test_features_without_coordinates_have_a_reason(name, monkeypatch, rng):
    monkeypatch.setattr("analysis.projection.importlib.util.find_spec", lambda name: True)
    project = PROJECTIONS[name]
    with pytest.raises(Undefined, match="the same for every image"):
        project(np.full((20, 5), 0.1, np.float32))
    with pytest.raises(Undefined, match="not all finite"):
        project(np.r_[rng.normal(size=(20, 5)), np.full((1, 5), math.nan)])
    with pytest.raises(Undefined, match="images, and there are 2"):
        project(rng.normal(size=(2, 5)))
    for width in (5, 50):
        with pytest.raises(Undefined, match="too large to multiply"):
            project(rng.normal(size=(20, width)) * 1e200)


def test_options_that_make_no_sense_are_refused(monkeypatch, rng):
    monkeypatch.setattr("analysis.projection.importlib.util.find_spec", lambda name: True)
    features = rng.normal(size=(20, 5))
    with pytest.raises(ValueError, match="needs 1 dimension or more, not 0|at least 1 dimension"):
        fit_pca(features, 0)
    for project in (tsne, umap):
        with pytest.raises(ValueError, match="2 or 3 dimensions, but 4"):
            project(features, dimensions=4)
    for perplexity in (1, math.nan):
        with pytest.raises(ValueError, match="perplexity of t-SNE must be above 1"):
            tsne(features, perplexity)
    with pytest.raises(ValueError, match="2 neighbours or more, but 1"):
        umap(features, 1)
    with pytest.raises(ValueError, match="fitted to 5 features, but there are 6: use aligned"):
        fit_pca(features).apply(np.ones((3, 6)))
    with pytest.raises(ValueError, match="same images only, but their numbers of images are 3, 20"):
        aligned_coordinates({"a": features, "b": features[:3]})
