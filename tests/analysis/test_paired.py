"""Paired comparisons against scipy, second methods and exact coverage."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from scipy.stats import binomtest, multinomial, norm

from analysis.paired import compare_layers, difference_interval, holm, matched_depth, mcnemar


def make_pair(both, only_a, only_b, neither):
    """Two arrays (N,) with the given table."""
    left = np.repeat([True, True, False, False], (both, only_a, only_b, neither))
    right = np.repeat([True, False, True, False], (both, only_a, only_b, neither))
    order = np.random.default_rng(0).permutation(len(left))
    return left[order], right[order]


TABLES = [(1, 1, 7, 12), (100, 40, 20, 0), (36, 12, 2, 0), (5, 0, 0, 5), (900, 30, 31, 39)]


@pytest.mark.parametrize("table", TABLES)
def test_mcnemar_is_the_binomial_test_of_images_that_one_gets_right(table):
    _, only_a, only_b, _ = table
    expected = binomtest(only_a, only_a + only_b).pvalue if only_a + only_b else 1.0
    assert mcnemar(*make_pair(*table)) == pytest.approx(expected, rel=1e-12)


def test_mcnemar_in_closed_form():
    # 1 of 8 or fewer heads, twice: 2 (1 + 8) / 2^8.
    assert mcnemar(*make_pair(1, 1, 7, 12)) == pytest.approx(18 / 256, rel=1e-12)
    assert mcnemar(*make_pair(3, 0, 5, 0)) == pytest.approx(2 / 32, rel=1e-12)
    assert mcnemar(*make_pair(3, 4, 4, 0)) == 1
    assert mcnemar(*make_pair(3, 0, 0, 2)) == 1


def test_mcnemar_of_equal_classifiers_is_seldom_significant():
    probabilities = (0.6, 0.1, 0.1, 0.2)
    tables = np.random.default_rng(0).multinomial(80, probabilities, size=2000)
    significant = np.mean([mcnemar(*make_pair(*table)) <= 0.05 for table in tables])
    assert 0 < significant <= 0.05


@pytest.mark.parametrize("table", TABLES)
def test_interval_ends_are_roots_of_the_quartic_of_a_second_derivation(table):
    # Yang, Sun and Hardin 2013: T(d)^2 = z^2, multiplied out, is a polynomial of degree 4 in d.
    _, b, c, _ = table
    count, g = sum(table), norm.ppf(0.975) ** 2
    gap, total = b - c, b + c
    polynomial = [
        count**2 * (count / g + 1) ** 2,
        -count * gap * (count / g + 1) * (4 * count / g + 1),
        2 * count * gap**2 * (3 * count / g + 2) / g - count**2 * (total / g + 1),
        count * gap * (2 * total / g + 1) - gap**3 * (4 * count / g + 1) / g,
        gap**2 * (gap**2 / g - total) / g,
    ]
    roots = np.roots(polynomial)
    roots = roots[np.abs(roots.imag) < 1e-6].real
    difference, low, high = difference_interval(*make_pair(*table))
    assert difference == gap / count
    for end in (low, high):
        assert np.abs(roots - end).min() < 1e-6
    assert low < difference < high


@pytest.mark.parametrize("table", [(1, 1, 7, 12), (100, 40, 20, 0), (36, 12, 2, 0)])
def test_interval_ends_are_where_a_numerical_likelihood_puts_the_score(table):
    _, b, c, _ = table
    count = sum(table)

    def score_at(d):
        def loss(q):  # only A has probability q + d, only B has q
            rest = 1 - 2 * q - d
            return -b * math.log(q + d) - c * math.log(q) - (count - b - c) * math.log(rest)

        low, high = max(0, -d) + 1e-12, (1 - d) / 2 - 1e-12
        best = minimize_scalar(loss, bounds=(low, high), method="bounded", options={"xatol": 1e-12})
        q = best.x
        return (b - c - count * d) / math.sqrt(count * (2 * q + d - d**2))

    _, low, high = difference_interval(*make_pair(*table))
    assert score_at(low) == pytest.approx(norm.ppf(0.975), abs=1e-4)
    assert score_at(high) == pytest.approx(-norm.ppf(0.975), abs=1e-4)


def test_interval_leaves_out_zero_exactly_where_mcnemars_statistic_is_significant():
    for b, c in itertools.product(range(12), repeat=2):
        _, low, high = difference_interval(*make_pair(10, b, c, 10))
        statistic = (b - c) / math.sqrt(b + c) if b + c else 0.0
        assert (low > 0 or high < 0) == (abs(statistic) > norm.ppf(0.975))


def test_interval_mirrors_when_the_classifiers_change_places():
    left, right = make_pair(20, 9, 4, 7)
    difference, low, high = difference_interval(left, right)
    assert difference_interval(right, left) == pytest.approx((-difference, -high, -low), abs=1e-12)


def test_interval_of_no_disagreement_is_wilsons_of_none_in_n():
    # With b = c = 0, q = 0 for d >= 0 and T(d)^2 = N d / (1 - d), so the end is z^2 / (N + z^2).
    _, low, high = difference_interval(*make_pair(30, 0, 0, 20))
    expected = norm.ppf(0.975) ** 2 / (50 + norm.ppf(0.975) ** 2)
    assert (low, high) == pytest.approx((-expected, expected), abs=1e-12)


def test_interval_of_full_disagreement_reaches_one():
    difference, low, high = difference_interval(*make_pair(0, 5, 0, 0))
    z2 = norm.ppf(0.975) ** 2  # T(d)^2 = N (1 - d) / (1 + d)
    assert (difference, high) == (1, 1)
    assert low == pytest.approx((5 - z2) / (5 + z2), abs=1e-12)


@pytest.mark.parametrize("shares", [(0.1, 0.1), (0.25, 0.1), (0.05, 0.02), (0.4, 0.3)])
def test_interval_covers_the_true_difference_in_95_of_100_samples(shares):
    # Not simulated: the probabilities of all tables of 60 images are summed.
    count, coverage = 60, 0.0
    probabilities = (*shares, 1 - sum(shares))
    for b in range(count + 1):
        for c in range(count + 1 - b):
            weight = multinomial.pmf((b, c, count - b - c), count, probabilities)
            if weight > 1e-7:
                _, low, high = difference_interval(*make_pair(count - b - c, b, c, 0))
                coverage += weight * (low <= shares[0] - shares[1] <= high)
    assert 0.93 < coverage < 0.98


# ------------------------------------------------------------------------ many layers


def test_holm_by_hand():
    # Sorted 0.005, 0.01, 0.03, 0.04 times 4, 3, 2, 1 is 0.02, 0.03, 0.06, 0.04; none may fall.
    adjusted = holm(np.array([0.01, 0.04, 0.03, 0.005]))
    np.testing.assert_allclose(adjusted, [0.03, 0.06, 0.06, 0.02])


def test_holm_rejects_as_its_stepwise_definition_does():
    rng = np.random.default_rng(0)
    for _ in range(200):
        p_values = rng.uniform(size=8) ** 4
        adjusted = holm(p_values)
        expected = np.zeros(8, bool)
        for step, index in enumerate(np.argsort(p_values)):
            if p_values[index] > 0.05 / (8 - step):
                break
            expected[index] = True
        np.testing.assert_array_equal(adjusted <= 0.05, expected)


def test_holm_counts_only_tests_that_were_made_and_stays_in_range():
    np.testing.assert_allclose(
        holm(np.array([np.nan, 0.02, np.nan, 0.9])), [np.nan, 0.04, np.nan, 0.9]
    )
    assert holm(np.array([0.7, 0.8, 0.9])).tolist() == [1, 1, 1]
    assert holm(np.array([])).shape == (0,)


def test_layers_are_compared_one_by_one():
    pairs = [make_pair(30, 20, 3, 7), make_pair(30, 5, 6, 19), make_pair(40, 4, 9, 7)]
    result = compare_layers([left for left, _ in pairs], [right for _, right in pairs])
    assert result.rows.tolist() == result.columns.tolist() == [0, 1, 2]
    assert result.samples == 60
    assert result.only_a.tolist() == [20, 5, 4]
    assert result.only_b.tolist() == [3, 6, 9]
    for i, (left, right) in enumerate(pairs):
        found = result.difference[i], result.low[i], result.high[i]
        assert found == difference_interval(left, right)
        assert result.p_values[i] == mcnemar(left, right)
    np.testing.assert_array_equal(result.adjusted, holm(result.p_values))
    assert result.adjusted[0] == pytest.approx(3 * result.p_values[0])


def test_models_of_different_depth_are_compared_at_relative_depth():
    rng = np.random.default_rng(0)
    deep, shallow = rng.random((5, 40)) < 0.7, rng.random((3, 40)) < 0.5
    result = compare_layers(list(deep), list(shallow))
    assert result.columns.tolist() == [0, 0, 1, 2, 2]  # 0, 0.5, 1, 1.5, 2 rounded to even
    assert result.p_values[3] == mcnemar(deep[3], shallow[2])
    assert matched_depth(1, 4).tolist() == [0]
    assert matched_depth(28, 10)[[0, -1]].tolist() == [0, 9]


def test_a_layer_without_a_probe_has_no_test_and_costs_the_others_nothing():
    left, right = make_pair(30, 20, 3, 7)
    result = compare_layers([left, None, left], [right, right, None])
    assert np.isfinite(result.difference).tolist() == [True, False, False]
    assert result.adjusted[0] == result.p_values[0] == mcnemar(left, right)
    assert np.isnan([result.low[1], result.high[2], result.adjusted[1]]).all()
    assert result.only_a.tolist() == [20, 0, 0]


# ------------------------------------------------------------------------ refusals


def test_what_cannot_be_paired_is_refused():
    left, right = make_pair(3, 2, 1, 4)
    with pytest.raises(ValueError, match=r"two arrays \(N,\) of booleans"):
        mcnemar(left, right[1:])
    with pytest.raises(ValueError, match=r"two arrays \(N,\) of booleans"):
        difference_interval(left.astype(int), right)
    with pytest.raises(ValueError, match="at least one image"):
        difference_interval(left[:0], right[:0])
    with pytest.raises(ValueError, match=r"1 and 1 layers scored on \[9, 10\] images"):
        compare_layers([left], [right[1:]])
    with pytest.raises(ValueError, match="layers of both models on the same images"):
        compare_layers([], [])
