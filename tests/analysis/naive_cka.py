"""CKA a second time, in float64 and term by term as the papers have it; slow and plain."""

from __future__ import annotations

import numpy as np


def flat(features):
    """(N, D) in float64."""
    return np.asarray(features, np.float64).reshape(len(features), -1)


def linear_gram(features):
    x = flat(features)
    x = x - x.mean(axis=0)
    return x @ x.T


def rbf_gram(features, fraction):
    """Kornblith et al. 2019: exp(-d^2 / (2 s^2)), s a fraction of the median distance."""
    x = flat(features)
    distances = np.sqrt(((x[:, None] - x[None]) ** 2).sum(axis=2))
    median = np.median(distances[np.triu_indices(len(x), 1)])
    return np.exp(-(distances**2) / (2 * (fraction * median) ** 2))


def unbiased_hsic(gram_x, gram_y):
    """Song et al. 2012, equation 5, with explicit traces."""
    size = len(gram_x)
    x, y = gram_x - np.diag(np.diag(gram_x)), gram_y - np.diag(np.diag(gram_y))
    one = np.ones(size)
    value = np.trace(x @ y)
    value += (one @ x @ one) * (one @ y @ one) / ((size - 1) * (size - 2))
    value -= 2 / (size - 2) * (one @ x @ y @ one)
    return value / (size * (size - 3))


def biased_hsic(gram_x, gram_y):
    """Gretton et al. 2005: tr(K H L H) / (N - 1)^2."""
    size = len(gram_x)
    centring = np.eye(size) - 1 / size
    return np.trace(gram_x @ centring @ gram_y @ centring) / (size - 1) ** 2


def cka_of(features_x, features_y, batches=None, gram=linear_gram, hsic=unbiased_hsic):
    """Nguyen et al. 2021: mean HSICs over batches, then the ratio."""
    sums = np.zeros(3)
    for batch in [slice(None)] if batches is None else batches:
        x, y = gram(features_x[batch]), gram(features_y[batch])
        sums += hsic(x, y), hsic(x, x), hsic(y, y)
    return sums[0] / np.sqrt(sums[1] * sums[2])
