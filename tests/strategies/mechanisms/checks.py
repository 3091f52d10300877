"""Statistical tests with a stated error rate, and distributions written once more.

The formulas here are the densities of the papers, not the mixtures that are drawn.
"""

from __future__ import annotations

import math

import numpy as np
from scipy import stats

# A right sampler fails a test with this probability, over all seeds.
LEVEL = 1e-6


def fits(samples, cdf, reach=8.0, bins=160):
    """Whether integers come from ``round(X)``, X with the distribution ``cdf``."""
    edges = np.unique(np.floor(np.linspace(-reach, reach, bins) * samples.std()) + 0.5)
    counts = np.histogram(samples, np.r_[-np.inf, edges, np.inf])[0]
    expected = np.diff(np.r_[0.0, cdf(edges), 1.0]).clip(0) * len(samples)
    # Neighbouring bins together, until 25 are expected in each.
    groups = np.minimum(np.cumsum(expected), len(samples) - 26).astype(int) // 25
    counts, expected = (np.bincount(groups, x) for x in (counts, expected))
    used = expected > 0
    statistic = ((counts - expected)[used] ** 2 / expected[used]).sum()
    lost = counts[~used].any()
    return not lost and stats.chi2.sf(statistic, max(used.sum() - 1, 1)) > LEVEL


def follows(samples, cdf):
    """Whether numbers come from a continuous distribution (Kolmogorov-Smirnov)."""
    return stats.kstest(samples, cdf).pvalue > LEVEL


def staircase_cdf(epsilon, gamma, step):
    """Return the distribution function of the scalar staircase, from its density."""
    b = math.exp(-epsilon)
    a = (1 - b) / (2 * step * (gamma + b * (1 - gamma)))

    def cdf(x):
        k = np.floor(np.abs(x) / step)
        inside = np.abs(x) - k * step
        high, low = np.minimum(inside, gamma * step), inside - gamma * step
        full = a * step * (gamma + b * (1 - gamma))  # of the first step
        mass = full * (1 - b**k) / (1 - b) + a * b**k * high
        mass += a * b ** (k + 1) * np.maximum(low, 0)
        return 0.5 + np.sign(x) * mass

    return cdf


def ball_cdf(epsilon, gamma, step, d):
    """Return the distribution function of the norm of a staircase vector."""
    k = np.arange(math.ceil((d + 60 + 12 * math.sqrt(d)) / epsilon) + 2)
    ends, reference = k + gamma, d / epsilon + 1
    # Falls by exp(-epsilon) at every end: shells between them, largest taken out.
    log_fall = -epsilon * k
    largest = (log_fall + d * np.log(ends / reference)).max()

    def shell(i, r):  # from the begin of shell i to r
        inner = np.r_[0.0, ends][i]
        with np.errstate(divide="ignore"):
            outer, inner = (d * np.log(x / reference) for x in (r, inner))
        top = log_fall[i] - largest
        return np.exp(top + outer) - np.exp(top + inner)

    before = np.r_[0.0, np.cumsum(shell(k, ends))]

    def cdf(x):
        r = np.maximum(np.atleast_1d(x) / step, 1e-300)
        i = np.minimum(np.searchsorted(ends, r), len(ends) - 1)
        return (before[i] + shell(i, r)) / before[-1]

    return cdf
