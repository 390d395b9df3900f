"""SVCCA and PWCCA against closed forms, a generalised eigenproblem and scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg
from sklearn.cross_decomposition import CCA

from analysis.cca import PWCCA, SVCCA
from analysis.similarity import similarity

ALL = SVCCA(variance=1)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def related(rng):
    """Features of 200 images with 6 and 4 dimensions that share some of their content."""
    shared = rng.normal(size=(200, 3))
    x = shared @ rng.normal(size=(3, 6)) + rng.normal(size=(200, 6))
    y = shared @ rng.normal(size=(3, 4)) + rng.normal(size=(200, 4))
    return x, y


def canonical_correlations(x, y):
    """Roots of the generalised eigenproblem of the covariances (Hotelling 1936)."""
    x, y = x - x.mean(axis=0), y - y.mean(axis=0)
    zero = np.zeros((x.shape[1],) * 2)
    both = np.block([[zero, x.T @ y], [(x.T @ y).T, np.zeros((y.shape[1],) * 2)]])
    own = scipy.linalg.block_diag(x.T @ x, y.T @ y)
    roots = scipy.linalg.eigh(both, own, eigvals_only=True)
    return roots[::-1][: min(x.shape[1], y.shape[1])]


def morcos_pwcca(x, y):
    """Morcos et al. 2018, equation 3, term by term from the whitened cross-covariance."""
    x, y = x - x.mean(axis=0), y - y.mean(axis=0)
    white_x = scipy.linalg.inv(scipy.linalg.sqrtm(x.T @ x)).real
    white_y = scipy.linalg.inv(scipy.linalg.sqrtm(y.T @ y)).real
    left, correlations, _ = np.linalg.svd(white_x @ x.T @ y @ white_y, full_matrices=False)
    total = weight_sum = 0.0
    for variate, correlation in zip((x @ white_x @ left).T, correlations, strict=True):
        weight = sum(abs(variate @ neuron) for neuron in x.T)
        total, weight_sum = total + weight * correlation, weight_sum + weight
    return total / weight_sum


def test_svcca_with_all_variance_is_the_mean_root_of_the_eigenproblem(related):
    x, y = related
    assert similarity(x, y, ALL) == pytest.approx(canonical_correlations(x, y).mean(), abs=1e-10)


def test_svcca_agrees_with_scikit_learns_cca(related):
    x, y = related
    scores_x, scores_y = CCA(n_components=4, max_iter=20000, tol=1e-12).fit_transform(x, y)
    found = [np.corrcoef(a, b)[0, 1] for a, b in zip(scores_x.T, scores_y.T, strict=True)]
    assert similarity(x, y, ALL) == pytest.approx(np.mean(found), abs=1e-4)


def test_canonical_correlation_of_single_features_is_the_absolute_correlation(related):
    x, y = related[0][:, :1], -related[1][:, :1]
    expected = abs(np.corrcoef(x[:, 0], y[:, 0])[0, 1])
    assert similarity(x, y, SVCCA()) == pytest.approx(expected, abs=1e-12)
    assert similarity(x, y, PWCCA()) == pytest.approx(expected, abs=1e-12)


def test_layers_at_known_angles_have_the_cosines_for_correlations(rng):
    basis = np.linalg.qr(rng.normal(size=(50, 6)) - 0)[0]
    basis = np.linalg.qr(basis - basis.mean(axis=0))[0]
    angles = np.array([0.3, 1.2])
    x, y = basis[:, :2], basis[:, :2] * np.cos(angles) + basis[:, 2:4] * np.sin(angles)
    # Each neuron of x is a variate of length 1, so both have the same weight.
    assert similarity(x, y, ALL) == pytest.approx(np.cos(angles).mean(), abs=1e-12)
    assert similarity(x, y, PWCCA()) == pytest.approx(np.cos(angles).mean(), abs=1e-12)
    # Three times the first neuron: three times its variate's weight, the same correlations.
    weighted = (3 * np.cos(0.3) + np.cos(1.2)) / 4
    assert similarity(x * [3, 1], y, PWCCA()) == pytest.approx(weighted, abs=1e-12)
    assert similarity(x * [3, 1], y, ALL) == pytest.approx(np.cos(angles).mean(), abs=1e-12)


def test_svcca_cuts_each_layer_to_the_wanted_variance(rng):
    columns = np.linalg.qr(rng.normal(size=(60, 5)))[0]
    columns = np.linalg.qr(columns - columns.mean(axis=0))[0]
    x = columns * np.sqrt([60, 30, 6, 3, 1])
    for variance, kept in [(0.5, 1), (0.6, 1), (0.61, 2), (0.95, 3), (0.99, 4), (1, 5)]:
        assert SVCCA(variance=variance).prepare(x).kept == kept
    y = rng.normal(size=(60, 2))
    exact = canonical_correlations(x[:, :3], y[:, :1]).mean()
    assert similarity(x, y[:, :1], SVCCA(variance=0.95)) == pytest.approx(exact, abs=1e-10)


def test_more_features_than_images_give_what_their_rotation_to_fewer_gives(related, rng):
    x, y = related
    wide = x @ np.linalg.qr(rng.normal(size=(300, 6)))[0].T
    for variance in (0.9, 1):
        measure = SVCCA(variance=variance)
        assert similarity(wide, y, measure) == pytest.approx(similarity(x, y, measure), abs=1e-9)


def test_pwcca_agrees_with_the_papers_formula(related):
    x, y = related
    assert similarity(x, y, PWCCA()) == pytest.approx(morcos_pwcca(x, y), abs=1e-9)
    assert similarity(y, x, PWCCA()) == pytest.approx(morcos_pwcca(y, x), abs=1e-9)
    assert similarity(x, y, PWCCA()) != pytest.approx(similarity(y, x, PWCCA()), abs=1e-4)


@pytest.mark.parametrize("measure", [ALL, PWCCA()])
def test_invertible_maps_of_the_other_layer_change_nothing(related, rng, measure):
    x, y = related
    mixed = y @ (rng.normal(size=(4, 4)) * [1, 10, 100, 0.1]) + 3
    assert similarity(x, mixed, measure) == pytest.approx(similarity(x, y, measure), abs=1e-9)
    assert similarity(x, x @ rng.normal(size=(6, 6)), measure) == pytest.approx(1, abs=1e-9)


def test_svcca_is_unchanged_by_rotation_of_either_layer_whatever_it_keeps(related, rng):
    x, y = related
    rotation = np.linalg.qr(rng.normal(size=(6, 6)))[0]
    measure = SVCCA(variance=0.8)
    assert similarity(-2 * x @ rotation + 1, y, measure) == pytest.approx(
        similarity(x, y, measure), abs=1e-10
    )


def test_pwcca_is_unchanged_by_what_it_says_of_layer_a_and_changed_by_rotation(related, rng):
    x, y = related
    value = similarity(x, y, PWCCA())
    shuffled = 5 * (x * [1, -1, 1, 1, -1, 1])[:, rng.permutation(6)] - 2
    rotated = x @ np.linalg.qr(rng.normal(size=(6, 6)))[0]
    assert similarity(shuffled, y, PWCCA()) == pytest.approx(value, abs=1e-10)
    assert abs(similarity(rotated, y, PWCCA()) - value) > 1e-3


@pytest.mark.parametrize(("measure", "bias"), [(ALL, 0.1), (PWCCA(), 0.1)])
def test_chance_is_about_what_unrelated_features_score(rng, measure, bias):
    a, b = (measure.prepare(rng.normal(size=(101, width))) for width in (25, 5))
    draws = [measure.compare(a, measure.restrict(b, rng.permutation(101))) for _ in range(50)]
    chance = measure.chance(a, b)
    assert chance == pytest.approx(0.5)  # sqrt(25 / 100)
    assert chance - bias < np.mean(draws) < chance + 0.01


def test_layers_with_as_many_dimensions_as_images_have_no_value(rng):
    x, y = rng.normal(size=(20, 40)), rng.normal(size=(20, 2))
    with pytest.raises(ValueError, match="SVCCA is undefined for features_a: 19 directions hold 1"):
        similarity(x, y, ALL)
    with pytest.raises(ValueError, match="PWCCA would be 1 with anything: take at least 42 images"):
        similarity(x, y, PWCCA())
    with pytest.raises(ValueError, match="undefined for features_b: it has 19 features for 20"):
        similarity(y, x[:, :19], PWCCA())
    assert 0 < similarity(x[:, :18], y, PWCCA()) < 1


@pytest.mark.parametrize("variance", [0, 1.01, float("nan")])
def test_a_variance_that_is_no_fraction_is_refused(variance):
    with pytest.raises(ValueError, match="variance must be a fraction above 0"):
        SVCCA(variance=variance)
