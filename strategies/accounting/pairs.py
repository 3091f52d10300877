"""Dominating pairs: the two output distributions that a release cannot exceed.

Every release has a pair (P, Q) such that no two neighbours are easier to tell apart
than P from Q. Whatever the pair cannot tell, the release does not tell.

Sources: Zhu, Dong, Wang, "Optimal Accounting of Differential Privacy via Characteristic
Function", AISTATS 2022 (dominating pairs, Theorem 10: they compose, Theorem 11: Poisson
sampling); Balle, Barthe, Gaboardi, "Privacy Amplification by Subsampling", NeurIPS 2018
(Theorem 9: without replacement); Kairouz, Oh, Viswanath, "The Composition Theorem for
Differential Privacy", ICML 2015 (two points dominate everything of pure epsilon).

Mathematics
-----------
Without sampling, with s the distance of neighbours and A = (1 - q) Q + q P:

- ``gaussian``: N(s/z, 1) and N(0, 1); ``laplace``: the same scalar shift, in the one
  coordinate that differs; ``staircase``: a shift by one step; balls: randomized
  response with the same pure epsilon;
- ``poisson``: (A, Q) for a unit removed and (Q, A) for one added. A run has one of the
  two from beginning to end, so each is composed by itself and the worse one counts;
- ``fixed``: replacing is symmetric, and for losses > 0 the divergence is at most that
  of (A, Q). So the pair has the masses of (A, Q) where A > Q, the same with A and Q
  exchanged, and what is left at loss 0.

Here a pair is a list of weighted points (exact atoms, or a quadrature).
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.special import logsumexp

from .events import Release
from .staircase import atoms

__all__ = ["Pair", "deviation", "pairs", "points", "renyi"]

Doubles = NDArray[np.float64]
# Logarithms of the masses of P and of Q.
Pair = tuple[Doubles, Doubles]

NODES, WEIGHTS = np.polynomial.legendre.leggauss(16)
# Beyond nine deviations a normal distribution has 2e-19 of its mass.
TAIL = 9.0


def points(release: Release, reach: float = 0.0) -> Pair:
    """Return the pair (P, Q) of a release without its sampling.

    Parameters
    ----------
    reach : float
        For Gaussian noise, how many standard deviations more are covered on each side:
        the order times the shift, where a Rényi divergence is wanted.

    Returns
    -------
    log_p, log_q : arrays of shape (n,)
        Logarithms of masses. Atoms are exact; continuous parts are Gauss-Legendre
        nodes, with an end of a panel where the loss is 0.
    """
    epsilon = release.pure_epsilon
    if release.mechanism == "gaussian":
        shift = release.sensitivity / release.scale
        x, weight = _panels(reach + TAIL + shift, max(0.02, min(1.0, 1 / shift)))
        base = np.log(weight) - 0.5 * math.log(2 * math.pi)
        return base - (x - shift / 2) ** 2 / 2, base - (x + shift / 2) ** 2 / 2
    if release.mechanism == "laplace":
        # Fine enough for exp(order * loss) up to order 256.
        loss, weight = _panels(epsilon, 0.125)
        inner = np.log(weight / 4) + (loss - epsilon) / 2
        log_p = np.concatenate([[-epsilon], inner, [0.0]])
        log_p[[0, -1]] -= math.log(2)
        loss = np.concatenate([[-epsilon], loss, [epsilon]])
        return log_p, log_p - loss
    if release.mechanism == "staircase":
        p = atoms(epsilon, release.gamma)
        log_p = np.log(p[p > 0])
        return log_p, log_p - epsilon * np.array([-1.0, 0.0, 1.0])[p > 0]
    high, low = -np.logaddexp(0, -epsilon), -np.logaddexp(0, epsilon)
    return np.array([low, high]), np.array([high, low])


def pairs(release: Release, reach: float = 0.0) -> list[Pair]:
    """Return the dominating pairs of a release with its sampling: one, or two.

    Parameters
    ----------
    reach : float
        See :func:`points`.
    """
    log_p, log_q = points(release, reach)
    rate = release.sampling.rate
    if rate == 1:
        return [(log_p, log_q)]
    mixed = np.logaddexp(math.log1p(-rate) + log_q, math.log(rate) + log_p)
    if release.sampling.kind == "poisson":
        return [(mixed, log_q), (log_q, mixed)]
    a, q = mixed[log_p > log_q], log_q[log_p > log_q]
    rest = max(1e-300, 1 - float(np.exp(a).sum() + np.exp(q).sum()))
    return [
        (
            np.concatenate([a, q, [math.log(rest)]]),
            np.concatenate([q, a, [math.log(rest)]]),
        )
    ]


@lru_cache(maxsize=1024)
def deviation(release: Release) -> float:
    """Return about the standard deviation of the privacy loss of one release.

    It is the square root of twice the Kullback-Leibler divergence.
    """
    divergences = [
        float(np.exp(upper) @ (upper - lower)) for upper, lower in pairs(release)
    ]
    return math.sqrt(2 * max(*divergences, 1e-14))


def renyi(pair: Pair, order: float) -> float:
    """Return the Rényi divergence of a pair, order > 1."""
    upper, lower = pair
    value = logsumexp(order * upper - (order - 1) * lower)
    return max(0.0, float(value) / (order - 1))


def _panels(half: float, width: float) -> Pair:
    """Return nodes and weights of a quadrature on [-half, half], 0 being an edge."""
    count = math.ceil(half / width)
    edges = np.linspace(-half, half, 2 * count + 1)
    middle, radius = (edges[1:] + edges[:-1]) / 2, half / count / 2
    x = (middle[:, None] + radius * NODES).ravel()
    return x, np.tile(radius * WEIGHTS, 2 * count)
