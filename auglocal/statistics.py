"""Uncertainty of measured fractions."""

from __future__ import annotations

import math

Z_95 = 1.959963984540054  # 97.5th percentile of the standard normal distribution


def wilson_interval(correct: int, samples: int) -> tuple[float, float]:
    """95% interval of a proportion.

    (p + z^2/2n -+ z sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2 / n), p = correct / n

    Args:
        correct: successes, 0 .. samples.
        samples: n >= 1.

    Returns:
        (low, high), both in [0, 1].

    Source: Wilson 1927.
    """
    if samples < 1 or not 0 <= correct <= samples:
        raise ValueError(f"expected 0 <= correct <= samples >= 1, got {correct} of {samples}")
    proportion = correct / samples
    spread = Z_95**2 / samples
    centre = proportion + spread / 2
    margin = Z_95 * math.sqrt(proportion * (1 - proportion) / samples + spread / (4 * samples))
    low, high = (centre - margin) / (1 + spread), (centre + margin) / (1 + spread)
    return max(0.0, low), min(1.0, high)
