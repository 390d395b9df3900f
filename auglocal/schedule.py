"""Learning rates over a run: a step in, the rate at which it learns out."""

from __future__ import annotations

import math

PUBLISHED_WARMUP_EPOCHS = 10


def cosine_rate(step: int, steps_per_epoch: int, epochs: int, peak: float) -> float:
    """Linear warm-up over max(1, epochs / 40) epochs, then a cosine to 0, changing every step.

    Args:
        step: 0 .. epochs * steps_per_epoch - 1.
        steps_per_epoch: at least 1.
        epochs: at least 1.
        peak: the rate after the warm-up.
    """
    total = epochs * steps_per_epoch
    warmup = min(total, round(max(1.0, epochs / 40) * steps_per_epoch))
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak / 2 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))


def published_rate(step: int, steps_per_epoch: int, epochs: int, peak: float) -> float:
    """The AugLocal CIFAR recipe, changing every epoch e = 1 .. E; meant for 400 epochs.

    cosine(e) = peak / 2 (1 + cos(pi e / E)); for e <= 10 it is blended with 0.01:
    cosine(e) (e - 1) / 10 + 0.01 (11 - e) / 10. The last epoch's rate is 0.

    Args: as `cosine_rate`.
    """
    epoch = step // steps_per_epoch + 1
    cosine = peak / 2 * (1 + math.cos(math.pi * epoch / epochs))
    if epoch > PUBLISHED_WARMUP_EPOCHS:
        return cosine
    share = (epoch - 1) / PUBLISHED_WARMUP_EPOCHS
    return cosine * share + 0.01 * (1 - share)


def cosine_no_warmup_rate(step: int, steps_per_epoch: int, epochs: int, peak: float) -> float:
    """The AugLocal ImageNet recipe: no warm-up, changing every epoch e = 0 .. E - 1.

    peak / 2 (1 + cos(pi e / E)): the first epoch learns at the peak, and the last just above 0.

    Args: as `cosine_rate`.
    """
    epoch = step // steps_per_epoch
    return peak / 2 * (1 + math.cos(math.pi * epoch / epochs))


SCHEDULES = {
    "cosine": cosine_rate,
    "published": published_rate,
    "cosine-no-warmup": cosine_no_warmup_rate,
}
