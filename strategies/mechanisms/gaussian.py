"""Gaussian noise: an integer plus ``round(sigma * N)``, N from 54 random bits.

Rounding integer plus noise is post-processing of the Gaussian mechanism (Dwork and
Roth, "The algorithmic foundations of differential privacy", 2014, appendix A): its
guarantee is that of the exact mechanism, up to what :func:`delta_slack` and
:func:`epsilon_slack` say about the sampler.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from .csprng import Source
from .layers import Curve, Stack, draw, stack
from .rounding import UNSURE, epsilon_slack

__all__ = [
    "delta_slack",
    "draw_floats",
    "draw_gaussian",
    "epsilon_slack",
    "gaussian_std",
    "support",
]

Doubles = NDArray[np.float64]
Integers = NDArray[np.int64]

_TOP = 1 / math.sqrt(2 * math.pi)
# Beyond this many sigmas the sampler is not relied on.
_BULK = 16.0


def _density(x: Doubles) -> Doubles:
    y: Doubles = _TOP * np.exp(-0.5 * x * x)
    return y


def _inverse(y: float) -> float:
    return math.sqrt(max(-2 * math.log(y / _TOP), 0.0)) if y > 0 else math.inf


def _slope(x: float) -> float:
    return x


CURVE = Curve(_TOP, _density, _inverse, _slope)


def rectangles() -> Stack:
    """Return what the sampler draws from; made once in a process."""
    return stack(CURVE)


def draw_gaussian(sigma: float, d: int, source: Source) -> Integers:
    """Return ``round(sigma * N)``, shape (d,).

    Parameters
    ----------
    sigma : float
        Standard deviation in lattice steps.
    d : int
    source : Source

    Raises
    ------
    ValueError
        For a sigma that is not positive, or whose noise does not fit 2**51.
    """
    if not sigma > 0:
        raise ValueError(f"Expected sigma={sigma} > 0.")
    out = np.empty(d, np.int64)
    draw(rectangles(), sigma, out, source)
    return out


def draw_floats(d: int, source: Source) -> Doubles:
    """Return d standard normal numbers, shape (d,): for directions, never released."""
    out = np.empty(d)
    draw(rectangles(), 1.0, out, source)
    return out


def gaussian_std(sigma: float) -> float:
    """Return the standard deviation of the rounded noise."""
    return math.sqrt(sigma**2 + 1 / 12)


def support(sigma: float) -> float:
    """Return the largest absolute value that :func:`draw_gaussian` can return."""
    return math.ceil(sigma * rectangles().reach)


def delta_slack(d: int) -> float:
    """Return how far d draws in a whole run may be from ideal ones.

    In total variation: an (epsilon, delta) guarantee of ideal noise becomes
    ``delta + (1 + exp(epsilon)) * delta_slack(d)``. It is the mass of d Gaussian tails
    beyond 16 sigma, which the sampler does not reach, and 2**-64 for the cases in which
    :func:`epsilon_slack` does not hold.
    """
    return d * math.erfc(_BULK / math.sqrt(2)) + UNSURE
