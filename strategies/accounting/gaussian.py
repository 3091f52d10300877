"""Gaussian noise on everyone composes exactly, without discretisation.

However many releases and however noisy each is, together they are one Gaussian release
whose neighbours are the root of the sum of squared distances apart (Dong, Roth and Su,
"Gaussian Differential Privacy", J. R. Stat. Soc. B 84(1), 2022, section 3.2), of which
delta is known in closed form (Balle and Wang, "Improving the Gaussian Mechanism for
Differential Privacy", ICML 2018, Theorem 8).
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from scipy.optimize import brentq
from scipy.special import log_ndtr, ndtr

from .events import Release

__all__ = ["delta_of_distance", "distance", "epsilon_of_distance"]


def distance(releases: Mapping[Release, int]) -> float:
    """Return how many standard deviations neighbours are apart, all releases together.

    0 if there are none, or others than Gaussian noise on everyone.
    """
    made = [(release, count) for release, count in releases.items() if count]
    if any(r.mechanism != "gaussian" or r.sampling.rate < 1 for r, _ in made):
        return 0.0
    return math.sqrt(sum(n * (r.sensitivity / r.scale) ** 2 for r, n in made))


def delta_of_distance(mu: float, epsilon: float) -> float:
    """Return delta at an epsilon >= 0, for neighbours mu > 0 deviations apart.

    Exact but for rounding errors, about 1e-16.
    """
    middle, far = mu / 2, epsilon / mu
    other = math.exp(epsilon + float(log_ndtr(-middle - far)))
    return max(0.0, float(ndtr(middle - far)) - other)


def epsilon_of_distance(mu: float, delta: float) -> float:
    """Return the least epsilon at delta; infinite for a delta that is not above 0."""
    if delta <= 0:
        return math.inf
    if delta_of_distance(mu, 0.0) <= delta:
        return 0.0
    # Zero-concentrated privacy of mu**2 / 2 has no more (Bun and Steinke, TCC 2016).
    most = mu**2 / 2 + mu * math.sqrt(2 * math.log(1 / delta))
    close = 1e-10 * most
    found = float(
        brentq(lambda e: delta_of_distance(mu, e) - delta, 0.0, most, xtol=close)
    )
    while delta_of_distance(mu, found) > delta:
        found += close
    return found
