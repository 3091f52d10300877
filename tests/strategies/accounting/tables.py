"""Standard deviations that others computed, and oracles that share no code with ours.

Noise for sensitivity 1 at a total of (8, 1e-5), as measured before this code existed.
"""

from __future__ import annotations

import math

import numpy as np
from scipy.special import gammaln
from scipy.stats import norm

# Rounds: staircase, Laplace, Gaussian; everyone takes part.
FULL = {
    1: (0.0581, 0.177, 0.600),
    2: (0.255, 0.354, 0.849),
    5: (0.838, 0.884, 1.342),
    10: (1.744, 1.766, 1.898),
    50: (5.465, 5.549, 4.244),
    100: (8.010, 8.102, 6.002),
    500: (18.58, 18.68, 13.42),
}
# (q, rounds): staircase (gamma on a coarse grid), Laplace, Gaussian; Poisson.
SAMPLED = {
    (0.1, 50): (0.665, 0.652, 0.803),
    (0.1, 100): (0.884, 0.846, 0.936),
    (0.01, 100): (0.161, 0.254, 0.465),
    (0.01, 1000): (0.360, 0.388, 0.586),
}
DIMENSIONS = (2, 5, 10, 20, 50, 100, 10_000, 1_000_000)
# (rounds, epsilon0): std per coordinate of the ball for DIMENSIONS; L2 clip 1. The
# value of d = 2 at epsilon0 8 is the one of a fine search over gamma.
BALL = {
    (1, 8.0): (0.109, 0.240, 0.386, 0.569, 0.893, 1.26, 12.5, 125),
    (2, 4.0): (0.369, 0.597, 0.828, 1.15, 1.79, 2.51, 25, 250),
    (5, 1.6): (1.07, 1.53, 2.07, 2.86, 4.46, 6.28, 62.5, 625),
    (10, 0.8): (2.16, 3.06, 4.15, 5.73, 8.93, 12.6, 125, 1250),
    (50, 0.2455): (7.06, 9.98, 13.5, 18.7, 29.1, 40.9, 407, 4070),
}
# Noise multipliers for (q, rounds) at epsilon 1, 2, 4, 8.
MULTIPLIERS = {
    (0.05, 30): (1.482, 1.052, 0.782, 0.586),
    (0.1, 100): (3.946, 2.248, 1.388, 0.936),
    (0.2, 100): (7.633, 4.177, 2.377, 1.444),
}


def three_point_delta(
    upper: np.ndarray, lower: np.ndarray, rounds: int, epsilon: float
) -> float:
    """Delta of T releases with three outcomes, by all counts of the outcomes."""
    i, j = np.meshgrid(np.arange(rounds + 1), np.arange(rounds + 1), indexing="ij")
    k = rounds - i - j
    counts = [n[k >= 0].astype(float) for n in (i, j, k)]
    ways = gammaln(rounds + 1) - sum(gammaln(n + 1) for n in counts)
    log_up = ways + sum(n * math.log(p) for n, p in zip(counts, upper, strict=True))
    log_low = ways + sum(n * math.log(p) for n, p in zip(counts, lower, strict=True))
    excess = -np.expm1(np.minimum(epsilon + log_low - log_up, 0))
    return float(np.exp(log_up) @ excess)


def gaussian_delta(z: float, rounds: int, epsilon: float) -> float:
    """Balle and Wang, ICML 2018, Theorem 8; T releases are one of z / sqrt(T)."""
    shift = math.sqrt(rounds) / z
    there = norm.cdf(shift / 2 - epsilon / shift)
    return there - math.exp(epsilon) * norm.cdf(-shift / 2 - epsilon / shift)


def staircase_density(x: np.ndarray, epsilon0: float, gamma: float) -> np.ndarray:
    """Geng and Viswanath's density for sensitivity 1."""
    b = math.exp(-epsilon0)
    top = (1 - b) / (2 * (gamma + b * (1 - gamma)))
    k = np.floor(np.abs(x))
    return top * b ** (k + (np.abs(x) - k >= gamma))
