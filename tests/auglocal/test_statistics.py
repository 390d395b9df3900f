"""Wilson's interval against SciPy's."""

from __future__ import annotations

import pytest
from scipy.stats import binomtest

from auglocal.statistics import wilson_interval


@pytest.mark.parametrize(("correct", "samples"), [(0, 1), (1, 1), (5, 10), (978, 1000), (0, 50)])
def test_interval_equals_scipys(correct: int, samples: int) -> None:
    expected = binomtest(correct, samples).proportion_ci(0.95, method="wilson")
    assert wilson_interval(correct, samples) == pytest.approx((expected.low, expected.high))


def test_no_samples_have_no_interval() -> None:
    with pytest.raises(ValueError, match="samples >= 1, got 0 of 0"):
        wilson_interval(0, 0)
