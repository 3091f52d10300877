"""Laplace noise: independent for the L1 norm, in a ball for the L2 norm.

Independent noise of scale ``C/epsilon`` is epsilon-DP for vectors of L1 norm C (Dwork,
McSherry, Nissim and Smith, TCC 2006). The K-norm mechanism (Hardt and Talwar, "On the
geometry of differential privacy", STOC 2010, section 4) has the density
``exp(-||x|| epsilon / C)`` for any norm; for L2 its direction is uniform and its length
a Gamma variable. Both are rounded to integers, which is post-processing.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from .csprng import Source
from .gaussian import draw_floats
from .lattice import Norm
from .layers import Curve, Stack, draw, stack
from .rounding import UNSURE, check_fits, epsilon_slack, rounded

__all__ = [
    "delta_slack",
    "draw_laplace",
    "draw_laplace_ball",
    "epsilon_slack",
    "laplace_std",
    "standard_laplace",
    "support",
]

Doubles = NDArray[np.float64]
Integers = NDArray[np.int64]


def _density(x: Doubles) -> Doubles:
    y: Doubles = 0.5 * np.exp(-x)
    return y


def _inverse(y: float) -> float:
    return max(-math.log(2 * y), 0.0) if y > 0 else math.inf


def _slope(x: float) -> float:
    return 1.0


# Beyond this many scales the sampler is not relied on.
_BULK = 80.0
CURVE = Curve(0.5, _density, _inverse, _slope)


def rectangles() -> Stack:
    """Return what the sampler draws from; made once in a process."""
    return stack(CURVE)


def draw_laplace(scale: float, d: int, source: Source) -> Integers:
    """Return d independent rounded Laplace numbers, shape (d,).

    Parameters
    ----------
    scale : float
        In lattice steps; the density is ``exp(-|x|/scale) / (2 scale)``.
    d : int
    source : Source

    Raises
    ------
    ValueError
        For a scale that is not positive, or whose noise does not fit 2**51.
    """
    _check(scale)
    out = np.empty(d, np.int64)
    draw(rectangles(), scale, out, source)
    return out


def standard_laplace(d: int, source: Source) -> Doubles:
    """Return d Laplace numbers of scale 1, shape (d,): never released as they are.

    Their absolute values are standard exponential numbers.
    """
    out = np.empty(d)
    draw(rectangles(), 1.0, out, source)
    return out


def draw_laplace_ball(scale: float, d: int, norm: Norm, source: Source) -> Integers:
    """Return a rounded vector of density ``exp(-||x||/scale)``, shape (d,).

    Parameters
    ----------
    scale : float
        Sensitivity in ``norm`` over epsilon, in lattice steps.
    d : int
    norm : "l1" or "l2"
        For L1 the coordinates are independent.
    source : Source

    Raises
    ------
    ValueError
        For a scale that is not positive, or whose noise does not fit 2**51.
    """
    if norm == "l1":
        return draw_laplace(scale, d, source)
    _check(scale)
    # The sum of d exponential numbers is Gamma(d): their absolutes serve.
    length = scale * float(np.abs(standard_laplace(d, source)).sum())
    check_fits(length)
    direction = draw_floats(d, source)
    return rounded(direction, length / math.sqrt(direction @ direction))


def laplace_std(scale: float, d: int = 1, norm: Norm = "l1") -> float:
    """Return the standard deviation of each coordinate of the rounded noise."""
    variance = 2.0 if norm == "l1" else d + 1.0
    return math.sqrt(variance * scale**2 + 1 / 12)


def support(scale: float, d: int = 1, norm: Norm = "l1") -> float:
    """Return the largest absolute value that a coordinate can have."""
    return math.ceil(scale * rectangles().reach * (1 if norm == "l1" else d))


def delta_slack(d: int) -> float:
    """Return how far d draws in a whole run may be from ideal ones.

    As :func:`.gaussian.delta_slack`: the mass of d tails beyond 80 scales, and 2**-64.
    """
    return d * math.exp(-_BULK) + UNSURE


def _check(scale: float) -> None:
    if not scale > 0:
        raise ValueError(f"Expected a scale={scale} > 0.")
