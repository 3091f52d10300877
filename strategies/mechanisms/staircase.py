"""Staircase noise for numbers and, in a norm ball, for vectors.

The density falls by ``exp(-epsilon)`` at the distances ``(j + gamma) * sensitivity``
and is constant between (Geng and Viswanath, "The optimal noise-adding mechanism in
differential privacy", IEEE Trans. Inf. Theory 62, 2016; sampler: Geng, Kairouz, Oh and
Viswanath, IEEE J. Sel. Topics Signal Process. 9(7), 2015, algorithm 1). With a norm in
place of the absolute value it is epsilon-DP for vectors of that norm, in any dimension,
by the triangle inequality (Kulesza, Suresh and Wang, "General staircase mechanisms for
optimal differential privacy", AISTATS 2025).

Difference to the papers' samplers: what falls in steps is a mixture of uniform
distributions on balls, ball j of radius ``(j + gamma) * sensitivity`` with a
probability proportional to ``exp(-j epsilon) (j + gamma)**d``. Rounding to integers is
post-processing.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from .csprng import BLOCK, Source
from .gaussian import draw_floats
from .laplace import standard_laplace
from .lattice import Norm
from .layers import LAYERS, centred
from .rounding import check_fits, rounded

__all__ = [
    "DELTA_SLACK",
    "draw_staircase",
    "draw_staircase_ball",
    "staircase_std",
    "support",
]

Doubles = NDArray[np.float64]
Integers = NDArray[np.int64]

# Balls of smaller probability than exp(-60) of the likeliest are left out: together
# less than this, in total variation for one draw.
DELTA_SLACK = 2.0**-64
_DROP = 60.0
# More balls would not differ from the K-norm mechanism in anything but memory.
MOST_BALLS = 2**23


def draw_staircase(
    epsilon: float, gamma: float, units: float, d: int, source: Source
) -> Integers:
    """Return d independent rounded scalar Staircase numbers, shape (d,).

    Each is the noise of one number of sensitivity ``units``. Added to the coordinates
    of one vector they are **not** epsilon-DP: see :func:`draw_staircase_ball`.

    Parameters
    ----------
    epsilon : float
    gamma : float
        Where the steps are, in (0, 1].
    units : float
        Sensitivity in lattice steps.
    d : int
    source : Source

    Raises
    ------
    ValueError
        For parameters out of range, or noise that does not fit 2**51.
    """
    _check(epsilon, gamma, units)
    radii, weights = _balls(epsilon, gamma, 1)
    halves = radii * units
    check_fits(float(halves.max()))
    # As many of the table's places for each ball as it has 1/LAYERS of probability;
    # what the balls have over is drawn for the places that remain.
    shares = weights * LAYERS
    whole = np.floor(shares).astype(np.intp)
    table = np.zeros(LAYERS)
    known = int(whole.sum())
    table[:known] = np.repeat(halves, whole)
    out = np.empty(d, np.int64)
    void = centred(table, known, out, source)
    sums = np.cumsum(shares - whole)
    for start in range(0, len(void), BLOCK):
        places = void[start : start + BLOCK]
        ball = np.searchsorted(sums, source.fine(len(places)) * sums[-1])
        signed = source.words(len(places)).view(np.int64) >> 10
        out[places] = np.rint(halves[ball] * (signed * 2.0**-53))
    return out


def draw_staircase_ball(
    epsilon: float, gamma: float, units: float, d: int, norm: Norm, source: Source
) -> Integers:
    """Return one rounded Staircase vector, shape (d,).

    Parameters
    ----------
    epsilon : float
    gamma : float
        Where the steps are, in (0, 1].
    units : float
        Sensitivity of the whole vector in ``norm``, in lattice steps.
    d : int
    norm : "l1" or "l2"
    source : Source

    Raises
    ------
    ValueError
        For parameters out of range, or noise that does not fit 2**51.
    """
    _check(epsilon, gamma, units)
    radii, weights = _balls(epsilon, gamma, d)
    sums = np.cumsum(weights)
    radius = float(radii[np.searchsorted(sums, source.fine(1)[0] * sums[-1])]) * units
    check_fits(radius)
    if norm == "l1":  # the first d of d + 1 exponential numbers over their sum
        x = standard_laplace(d + 1, source)
        return rounded(x[:d], radius / float(np.abs(x).sum()))
    x = draw_floats(d, source)
    inside = math.exp(math.log(source.fine(1)[0]) / d)
    return rounded(x, radius * inside / math.sqrt(x @ x))


def staircase_std(
    epsilon: float, gamma: float, units: float, d: int = 1, norm: Norm = "l2"
) -> float:
    """Return the standard deviation of each coordinate of the rounded noise.

    With ``d = 1`` that of :func:`draw_staircase`, otherwise of
    :func:`draw_staircase_ball`.
    """
    _check(epsilon, gamma, units)
    radii, weights = _balls(epsilon, gamma, d)
    second = float(weights @ radii**2) * units**2
    in_ball = 1 / (d + 2) if norm == "l2" else 2 / ((d + 1) * (d + 2))
    return math.sqrt(second * in_ball + 1 / 12)


def support(epsilon: float, gamma: float, units: float, d: int = 1) -> float:
    """Return the largest absolute value that a coordinate can have."""
    radii, _ = _balls(epsilon, gamma, d)
    return math.ceil(float(radii.max()) * units)


@lru_cache(maxsize=4)
def _balls(epsilon: float, gamma: float, d: int) -> tuple[Doubles, Doubles]:
    """Return the balls' radii in sensitivities and their probabilities.

    Smallest probability first: in this order sums of them are exact enough that the
    smallest are drawn as often as they ought to be.
    """
    middle = max(d / epsilon, gamma)

    def log_weight(radius: Doubles) -> Doubles:  # against a ball of radius `middle`
        away = radius - middle
        result: Doubles = d * np.log1p(away / middle) - epsilon * away
        return result

    nearest = math.floor(middle - gamma) + gamma + np.arange(2.0)
    drop = _DROP - float(log_weight(nearest).max())
    # s - log(1 + s) is at least s**2 / (2 + 2 s) above the middle, s**2 / 2 below.
    c = drop / (epsilon * middle)
    first = max(math.floor(middle * (1 - math.sqrt(2 * c)) - gamma), 0)
    last = math.ceil(middle * (1 + c + math.sqrt(c * c + 2 * c)) - gamma)
    if last - first >= MOST_BALLS:
        raise ValueError(
            f"Staircase noise of epsilon={epsilon:g} in {d} dimensions needs "
            f"{last - first:,} balls, more than {MOST_BALLS:,}: use laplace-ball, "
            "from which it does not differ here."
        )
    radii = np.arange(first, last + 1, dtype=np.float64) + gamma
    logs = log_weight(radii)
    order = np.argsort(logs, kind="stable")
    radii, logs = radii[order], logs[order]
    weights = np.exp(logs - logs[-1])
    weights /= weights.sum()
    radii.flags.writeable = weights.flags.writeable = False  # kept for the next call
    return radii, weights


def _check(epsilon: float, gamma: float, units: float) -> None:
    if not (epsilon > 0 and 0 < gamma <= 1 and units > 0):
        raise ValueError(
            f"Expected epsilon={epsilon} > 0, gamma={gamma} in (0, 1] and "
            f"units={units} > 0."
        )
