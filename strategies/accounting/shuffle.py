"""What a mixing party adds to local privacy: amplification by shuffling.

Source: Feldman, McMillan, Talwar, "Hiding Among the Clones: A Simple and Nearly Optimal
Analysis of Privacy Amplification by Shuffling", FOCS 2021, Theorem 3.2 and the
numerical bound of section 5. Own implementation: the sums over outcomes are closed with
binomial tails instead of being scanned.

It is an option, not a selling point. A party other than the server must receive all
replies and hand them on without names and in random order; a Flower server sees the
node of each reply, so without such a party there is no amplification at all. And it
helps only where local noise is large already: at delta 1e-5, 1,000 clients turn a local
epsilon of 1 into 0.15, but at a local epsilon of 8 nothing is gained with 50,000.

Mathematics
-----------
Any report of pure epsilon0 is, with probability ``exp(-epsilon0)``, a clone of what one
of the two neighbouring units would have sent, either with one half. With
``C ~ Bin(n - 1, exp(-epsilon0))``, ``A ~ Bin(C, 1/2)`` and
``D ~ Bernoulli(exp(epsilon0) / (1 + exp(epsilon0)))`` the server learns no more than
from ``(A + D, C - A + 1 - D)`` against ``(A + 1 - D, C - A + D)``. Given C = c, the
likelihood ratio grows with the first number k, so the divergence at epsilon is that of
one tail for each c.
"""

from __future__ import annotations

import math

import numpy as np
from scipy.optimize import brentq
from scipy.stats import binom

__all__ = ["amplified", "shuffled_delta"]

# Numbers of clones left out have less than this probability, which delta includes.
UNLIKELY = 1e-14


def amplified(epsilon0: float, n: int, delta: float) -> float:
    """Return the central epsilon of n shuffled local reports.

    Parameters
    ----------
    epsilon0 : float
        Pure local epsilon of each report, > 0: for Laplace and staircase noise; not for
        Gaussian, which has none.
    n : int
        Reports that were mixed, >= 1, all of honest units: subtract those that may
        work together with the server.
    delta : float
        In (1e-12, 1).

    Returns
    -------
    float
        Epsilon at delta for one report replaced; never above ``epsilon0``.

    Raises
    ------
    ValueError
        For values out of range.

    Examples
    --------
    >>> round(amplified(1.0, 1000, 1e-5), 2), round(amplified(8.0, 10_000, 1e-5), 2)
    (0.15, 8.0)
    """
    if not (epsilon0 > 0 and math.isfinite(epsilon0)) or n < 1 or n != int(n):
        raise ValueError(f"epsilon0 = {epsilon0}, n = {n}: expected > 0 and >= 1.")
    if not 1e-12 < delta < 1:
        raise ValueError(f"delta = {delta}: expected in (1e-12, 1).")
    if shuffled_delta(epsilon0, n, 0.0) <= delta:
        return 0.0
    inside = epsilon0 * (1 - 1e-9)
    if shuffled_delta(epsilon0, n, inside) > delta:
        return epsilon0
    close = 1e-6 * epsilon0
    found = brentq(
        lambda e: shuffled_delta(epsilon0, n, e) - delta, 0.0, inside, xtol=close
    )
    while shuffled_delta(epsilon0, n, found) > delta:
        found += close
    return min(float(found), epsilon0)


def shuffled_delta(epsilon0: float, n: int, epsilon: float) -> float:
    """Return the delta of n shuffled reports at a central epsilon in [0, epsilon0).

    See :func:`amplified`.
    """
    clone = math.exp(-epsilon0)
    low, high = binom.interval(1 - UNLIKELY, n - 1, clone)
    c = np.arange(max(0, int(low)), int(high) + 1)
    weight = binom.pmf(c, n - 1, clone)
    own = 1 / (1 + clone)
    other = clone * own
    # Outcome k has P0 : P1 = own k + other (c+1-k) : other k + own (c+1-k), above
    # exp(epsilon) from here on.
    first = (own * math.exp(epsilon) - other) / (own - other) / (1 + math.exp(epsilon))
    least = np.floor((c + 1) * first)
    # P(Bin(c, 1/2) + 1 > least) and P(Bin(c, 1/2) > least).
    shifted, plain = binom.sf(least - 1, c, 0.5), binom.sf(least, c, 0.5)
    mine = own * shifted + other * plain
    theirs = other * shifted + own * plain
    excess = np.clip(mine - math.exp(epsilon) * theirs, 0, None)
    return float(weight @ excess) + UNLIKELY
