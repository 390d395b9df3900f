"""Learning rates at the places where the formulas say what they are."""

from __future__ import annotations

import math

import pytest

from auglocal.schedule import cosine_no_warmup_rate, cosine_rate, published_rate


def test_cosine_warms_up_over_one_epoch_and_ends_near_zero() -> None:
    rates = [cosine_rate(step, 10, 20, 0.8) for step in range(200)]
    assert rates[0] == pytest.approx(0.08)
    assert rates[9] == rates[10] == pytest.approx(0.8)
    assert max(rates) == pytest.approx(0.8)
    assert rates[105] == pytest.approx(0.4)
    assert 0 < rates[-1] < 1e-4


def test_cosine_warm_up_grows_with_long_runs() -> None:
    assert cosine_rate(19, 10, 80, 1.0) == pytest.approx(1.0)
    assert cosine_rate(9, 10, 80, 1.0) == pytest.approx(0.5)


def test_cosine_of_a_single_epoch_is_all_warm_up() -> None:
    assert [cosine_rate(step, 2, 1, 1.0) for step in range(2)] == [0.5, 1.0]


def test_published_schedule_blends_with_a_hundredth_for_ten_epochs() -> None:
    assert published_rate(0, 5, 400, 0.8) == pytest.approx(0.01)
    sixth = 0.4 * (1 + math.cos(math.pi * 6 / 400)) * 0.5 + 0.01 * 0.5
    assert published_rate(25, 5, 400, 0.8) == pytest.approx(sixth)


def test_published_schedule_changes_by_epoch_and_ends_at_zero() -> None:
    assert published_rate(500, 5, 400, 0.8) == published_rate(504, 5, 400, 0.8)
    assert published_rate(199 * 5, 5, 400, 0.8) == pytest.approx(0.4)
    assert published_rate(1999, 5, 400, 0.8) == pytest.approx(0.0)


def test_cosine_without_warm_up_starts_at_the_peak_and_changes_by_epoch() -> None:
    rates = [cosine_no_warmup_rate(step, 5, 200, 0.4) for step in range(1000)]
    assert rates[:5] == [0.4] * 5
    assert rates[500] == pytest.approx(0.2)
    assert rates[500] == rates[504] > rates[505]
    # Symmetric about the middle: epoch e and epoch E - e add up to the peak.
    for epoch in range(1, 200):
        assert rates[5 * epoch] + rates[5 * (200 - epoch)] == pytest.approx(0.4)
    assert 0 < rates[-1] < 1e-4
