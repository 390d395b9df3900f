"""RSA against scipy's distances and correlations."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats
from scipy.spatial.distance import pdist, squareform

from analysis.arrays import as_matrix
from analysis.rsa import COMPARISONS, DISSIMILARITIES, RSA
from analysis.similarity import similarity

METRICS = {
    "correlation": "correlation",
    "cosine": "cosine",
    "euclidean": "euclidean",
    "squared-euclidean": "sqeuclidean",
}
ORACLES = {
    "spearman": scipy.stats.spearmanr,
    "pearson": scipy.stats.pearsonr,
    "kendall": scipy.stats.kendalltau,
}


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def related(rng):
    x = rng.normal(size=(40, 3, 7)) + 0.5
    y = x.reshape(40, 21)[:, :9] + rng.normal(size=(40, 9))
    return x, y


@pytest.mark.parametrize("comparison", COMPARISONS)
@pytest.mark.parametrize("dissimilarity", DISSIMILARITIES)
def test_rsa_agrees_with_scipy(related, dissimilarity, comparison):
    x, y = related
    metric = METRICS[dissimilarity]
    distances = [pdist(features.reshape(40, -1), metric) for features in (x, y)]
    expected = ORACLES[comparison](*distances).statistic
    assert 0.1 < expected < 0.9
    assert similarity(x, y, RSA(dissimilarity, comparison)) == pytest.approx(expected, abs=1e-10)


@pytest.mark.parametrize("dissimilarity", DISSIMILARITIES)
def test_dissimilarities_agree_with_scipy_across_blocks(rng, monkeypatch, dissimilarity):
    monkeypatch.setattr("analysis.arrays.BLOCK_COLUMNS", 7)
    x = (rng.normal(size=(15, 40)) + 3).astype(np.float32)
    expected = squareform(pdist(x.astype(np.float64), METRICS[dissimilarity]))
    found = DISSIMILARITIES[dissimilarity].between(as_matrix(x))
    np.testing.assert_allclose(
        found, expected, atol=1e-6 if dissimilarity == "euclidean" else 1e-12
    )


def test_ties_have_the_ranks_of_scipy(rng):
    x, y = rng.integers(0, 3, size=(2, 30, 2)).astype(float)
    expected = scipy.stats.spearmanr(pdist(x, "sqeuclidean"), pdist(y, "sqeuclidean")).statistic
    assert similarity(x, y, RSA("squared-euclidean")) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("comparison", ["spearman", "kendall"])
def test_monotone_transforms_of_distances_change_ranked_comparisons_not_at_all(rng, comparison):
    x, y = rng.normal(size=(2, 30, 4))
    plain, squared = RSA("euclidean", comparison), RSA("squared-euclidean", comparison)
    a, a_squared = plain.prepare(x), squared.prepare(x)
    b = plain.prepare(y)
    assert plain.compare(a_squared, b) == pytest.approx(plain.compare(a, b), abs=1e-12)
    assert plain.compare(a, a_squared) == pytest.approx(1, abs=1e-12)


def test_monotone_transforms_of_distances_change_pearson(rng):
    x = rng.normal(size=(30, 4))
    plain, squared = RSA("euclidean", "pearson"), RSA("squared-euclidean", "pearson")
    assert plain.compare(plain.prepare(x), squared.prepare(x)) < 0.999


@pytest.mark.parametrize("dissimilarity", DISSIMILARITIES)
def test_stated_invariances_hold(related, rng, dissimilarity):
    x, y = (features.reshape(40, -1) for features in related)
    measure, value = RSA(dissimilarity), similarity(x, y, RSA(dissimilarity))
    rotation = np.linalg.qr(rng.normal(size=(21, 21)))[0]
    row_scales, row_shifts = rng.uniform(0.5, 2, size=(40, 1)), rng.normal(size=(40, 1))
    changes = {
        "correlation": [3 * x, row_scales * x + row_shifts],
        "cosine": [3 * x @ rotation, row_scales * x],
        "euclidean": [3 * x @ rotation + np.arange(21)],
        "squared-euclidean": [3 * x @ rotation + np.arange(21)],
    }
    for moved in changes[dissimilarity]:
        assert similarity(moved, y, measure) == pytest.approx(value, abs=1e-10)
    assert similarity(x * np.arange(1, 22), y, measure) != pytest.approx(value, abs=1e-3)


def test_unrelated_features_score_zero_on_average(rng):
    measure = RSA("euclidean")
    a, b = (measure.prepare(rng.normal(size=(25, 6))) for _ in range(2))
    draws = [measure.compare(a, measure.restrict(b, rng.permutation(25))) for _ in range(300)]
    assert abs(np.mean(draws)) < 4 * np.std(draws) / np.sqrt(300)
    assert np.std(draws) < 0.2
    assert measure.chance(a, b) == 0


def test_more_noise_makes_layers_less_alike(rng):
    x, noise = rng.normal(size=(60, 8)), rng.normal(size=(60, 8))
    for measure in (RSA(), RSA("euclidean", "kendall")):
        values = [similarity(x, x + level * noise, measure) for level in (0, 0.1, 0.5, 1, 3)]
        assert values == sorted(values, reverse=True)
        assert values[0] == pytest.approx(1, abs=1e-12)
        assert values[-1] < 0.5


@pytest.mark.parametrize(
    ("features", "measure", "reason"),
    [
        (np.eye(6) / 3, RSA("euclidean"), "all its pairs of images are equally dissimilar"),
        (np.outer(np.arange(1, 7), [1.0, 2, 4]), RSA("cosine"), "equally dissimilar"),
        (np.outer(np.arange(6), [1.0, 2, 4]), RSA("cosine"), "1 images are zero.*choose euclidean"),
        (np.arange(6.0)[:, None], RSA(), "6 images do not differ from each other.*euclidean"),
        (np.array([[1.0, 2], [3, 1]]), RSA("euclidean"), "at least 3 images"),
        (np.arange(6.0).reshape(3, 2) ** 2 * 1e-200, RSA("cosine"), "too small to multiply"),
    ],
)
def test_layers_without_a_value_say_why(features, measure, reason):
    with pytest.raises(ValueError, match=reason):
        similarity(features, features, measure)


def test_unknown_choices_are_refused():
    with pytest.raises(ValueError, match="dissimilarity must be one of correlation, cosine"):
        RSA("manhattan")
    with pytest.raises(ValueError, match="comparison must be one of spearman, kendall, pearson"):
        RSA(comparison="cosine")
