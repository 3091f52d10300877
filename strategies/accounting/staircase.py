"""Mathematics of staircase noise: variance, best gamma, privacy loss, composition.

Sources: Geng and Viswanath, "The Optimal Noise-Adding Mechanism in Differential
Privacy", IEEE Trans. Inf. Theory 62 (2016), the scalar; Kulesza, Suresh, Wang, "General
Staircase Mechanisms", AISTATS 2025 (PMLR 258), the norm ball. Differences: the ball is
written as a mixture of uniform balls, from which its variance follows.

Mathematics
-----------
With step 1 and ``b = exp(-epsilon0)`` the density at x is proportional to
``b ** level(x)``, where ``level(x)`` counts the k >= 0 with ``k + gamma <= |x|``, and
``|x|`` is the L2 norm in the ball. It is the mixture of uniform balls of radius
``j + gamma`` with weights proportional to ``b**j (j + gamma)**d``, j = 0, 1, ...

Moving a scalar by one step changes the level by -1, 0 or 1. So the privacy loss has
three atoms, and that of T releases lies on the lattice of multiples of epsilon0: its
composition is exact.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar

__all__ = [
    "atoms",
    "best_gamma",
    "compose",
    "iid_epsilon",
    "lattice_epsilon",
    "shift_losses",
    "variance",
]

Doubles = NDArray[np.float64]

# Longer convolutions go through FFT, whose error is 1e-16 of the largest value.
EXACT = 4096


def variance(epsilon0: float, gamma: float, dimension: int = 1) -> float:
    """Return the variance of one coordinate, for step 1.

    Parameters
    ----------
    epsilon0 : float
        Pure epsilon, > 0.
    gamma : float
        Part of a step that is high, in [0, 1].
    dimension : int
        d; 1 is the scalar staircase.
    """
    d = dimension
    if d == 1:
        # Sums of j**p b**j for p = 0, 1, 2, 3.
        b, t = math.exp(-epsilon0), -math.expm1(-epsilon0)
        s0, s1, s2 = 1 / t, b / t**2, b * (1 + b) / t**3
        s3 = b * (1 + 4 * b + b * b) / t**4
        square = s3 + 3 * gamma * s2 + 3 * gamma**2 * s1 + gamma**3 * s0
        return float(square / (3 * (s1 + gamma * s0)))
    if math.sqrt(d) / epsilon0 > 100:
        # Steps much finer than the noise: the sum below is an integral (K-norm noise).
        return (d + 1) / epsilon0**2
    middle, reach = d / epsilon0, (40 + math.sqrt(80 * d)) / epsilon0
    radius = np.arange(max(0, int(middle - reach)), int(middle + reach) + 2) + gamma
    with np.errstate(divide="ignore"):
        log_weight = d * np.log(radius) - epsilon0 * radius
    weight = np.exp(log_weight - log_weight.max())
    return float(weight @ radius**2 / weight.sum() / (d + 2))


@lru_cache(maxsize=1024)
def best_gamma(epsilon0: float, dimension: int = 1, moment: str = "l2") -> float:
    """Return the gamma of least noise.

    Parameters
    ----------
    epsilon0 : float
        Pure epsilon, > 0.
    dimension : int
        d; for more than 1 the least variance is searched.
    moment : {"l2", "l1"}
        Least variance, or least expected size (scalar only).
    """
    b = math.exp(-epsilon0)
    if moment == "l1":
        return 1 / (1 + math.exp(epsilon0 / 2))
    if dimension == 1:
        # Geng and Viswanath, section IV; (1 - b)**3 (1 + b) is their polynomial.
        gamma = (math.cbrt(b * (1 + b) / 2) - b) / -math.expm1(-epsilon0)
        return min(max(gamma, 1e-12), 0.5)
    # Several local minima are not excluded, so a grid first.
    grid = np.linspace(0, 1, 33)[1:]
    low = int(np.argmin([variance(epsilon0, g, dimension) for g in grid]))
    found = minimize_scalar(
        lambda g: variance(epsilon0, g, dimension),
        bounds=(max(grid[low] - 1 / 32, 1e-9), min(grid[low] + 1 / 32, 1 - 1e-9)),
        method="bounded",
        options={"xatol": 1e-7},
    )
    return float(found.x)


def atoms(epsilon0: float, gamma: float) -> Doubles:
    """Return the probabilities of the losses -epsilon0, 0, epsilon0 of the scalar.

    The loss is that of two inputs one step apart, under the first. A step dominates
    every smaller distance.
    """
    b = math.exp(-epsilon0)
    high = -math.expm1(-epsilon0) / (2 * (gamma + b * (1 - gamma)))
    same = high * (b * (1 - 2 * gamma) if gamma <= 0.5 else 2 * gamma - 1)
    up = (1 - same) / (1 + b)
    return np.array([b * up, same, up])


def shift_losses(epsilon0: float, gamma: float, shift: float) -> Doubles:
    """Return the probabilities of the losses -epsilon0, 0, epsilon0 at any distance.

    Parameters
    ----------
    shift : float
        Distance in steps, in (0, 1]; 1 gives :func:`atoms`.
    """
    b = math.exp(-epsilon0)
    edges = np.arange(math.ceil(40 / epsilon0) + 2) + gamma
    edges = np.concatenate([-edges[::-1], edges])
    x = np.sort(np.concatenate([edges, edges + shift]))
    width, x = np.diff(x), (x[1:] + x[:-1]) / 2

    def level(x: Doubles) -> Doubles:
        found: Doubles = np.clip(np.floor(np.abs(x) - gamma) + 1, 0, None)
        return found

    high = -math.expm1(-epsilon0) / (2 * (gamma + b * (1 - gamma)))
    mass = high * np.exp(-epsilon0 * level(x)) * width
    change = level(x - shift) - level(x)
    found = np.array([mass[change < 0].sum(), 0.0, mass[change > 0].sum()])
    found[1] = 1 - found.sum()
    return found


def compose(p: Doubles, rounds: int) -> tuple[Doubles, int]:
    """Return the distribution of the sum of independent losses on a lattice.

    Parameters
    ----------
    p : array of 3 probabilities
        Of -1, 0 and 1 lattice steps.
    rounds : int
        How many.

    Returns
    -------
    probabilities, first
        The probabilities and the lattice point of the first of them. Exact up to
        rounding (terms are only added and multiplied) for up to 4096 rounds.
    """
    if rounds <= EXACT:
        result, power, left = np.ones(1), np.asarray(p, np.float64), rounds
        while left:
            if left % 2:
                result = np.convolve(result, power)
            left //= 2
            power = np.convolve(power, power) if left else power
        return result, -rounds
    mean = p[2] - p[0]
    spread = math.sqrt(rounds * max(p[2] + p[0] - mean**2, 0))
    n = 1 << math.ceil(math.log2(40 * spread + 100))
    first = round(rounds * mean) - n // 2
    angle = -2j * np.pi * np.arange(n // 2 + 1) / n
    transform = (p[0] * np.exp(-angle) + p[1] + p[2] * np.exp(angle)) ** rounds
    # Values outside the window of 20 deviations wrap around; they are below rounding.
    return np.clip(np.roll(np.fft.irfft(transform, n), -(first % n)), 0, None), first


def lattice_epsilon(p: Doubles, first: int, unit: float, delta: float) -> float:
    """Return the epsilon at delta of a privacy loss on a lattice.

    Parameters
    ----------
    p : array of probabilities
        Of the losses ``unit * (first + i)``.
    unit : float
        Lattice step, in nats.
    """
    from scipy.signal import lfilter  # takes longer to import than all else here

    shrink = math.exp(-unit)
    # above[i] = sum over n > i of p[n] exp(-(n - i) unit)
    above = lfilter([0, shrink], [1, -shrink], p[::-1])[::-1]
    tail = np.cumsum(p[::-1])[::-1]
    missing = tail - p - above
    at = int(np.argmax(missing <= delta))
    if tail[at] <= delta:
        return 0.0
    exact = unit * (first + at) + math.log((tail[at] - delta) / (p[at] + above[at]))
    return max(0.0, exact)


def iid_epsilon(epsilon0: float, gamma: float, dimension: int, delta: float) -> float:
    """Return a lower bound on what staircase noise on every coordinate really costs.

    One release of a vector of L2 norm <= 1 step, with independent noise of step 1 on
    each coordinate, for neighbours that differ equally in all of them.

    Returns
    -------
    float
        No epsilon below this holds at ``delta``. It grows like the square root of the
        dimension at first, because each coordinate can cross a step.
    """
    losses = shift_losses(epsilon0, gamma, 1 / math.sqrt(dimension))
    p, first = compose(losses, dimension)
    return lattice_epsilon(p, first, epsilon0, delta)
