"""Rounding noise to integers quickly, and what finite bits cost."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .csprng import BLOCK

__all__ = ["MAGIC", "MAGIC_BITS", "UNSURE", "check_fits", "epsilon_slack", "rounded"]

Doubles = NDArray[np.float64]
Integers = NDArray[np.int64]

# Adding it rounds |x| < 2**51 to integers, ties to even, and has them in the low bits.
MAGIC = 1.5 * 2.0**52
MAGIC_BITS = int(np.float64(MAGIC).view(np.int64))
# How often `epsilon_slack` may not hold.
UNSURE = 2.0**-64


def check_fits(largest: float) -> None:
    """Raise ValueError unless noise of up to ``largest`` steps can be rounded."""
    if not largest < 2.0**51:
        raise ValueError(
            f"Noise of up to {largest:.3g} steps does not fit 51 bits: expected more "
            "privacy budget or a smaller update."
        )


def rounded(x: Doubles, factor: float) -> Integers:
    """Return ``x * factor`` rounded to int64, in the memory of ``x``: below 2**51."""
    for start in range(0, len(x), BLOCK):
        part = x[start : start + BLOCK]
        np.multiply(part, factor, out=part)
        np.add(part, MAGIC, out=part)
        np.subtract(part.view(np.int64), MAGIC_BITS, out=part.view(np.int64))
    return x.view(np.int64)


def epsilon_slack(scale: float, d: int) -> float:
    """Return what d Gaussian or Laplace draws add to epsilon, because bits are finite.

    Parameters
    ----------
    scale : float
        The largest, in lattice steps.
    d : int
        Draws of the whole run together.

    Notes
    -----
    A lattice step gets the points of each rectangle that fall on it, two more or less
    than ideal. A rectangle of half width h has them ``h * scale * 2**-53`` apart, so at
    x a probability is wrong by a factor of at most
    ``1 + (|x| + 1.3) * scale * 2**-52``; its mean square is below ``eta**2``. In tails
    float64 itself is coarser, 64 eta at most. The logarithm of the factors of d draws
    has a mean of at most ``d * eta**2``, and is below the value here but for
    :data:`UNSURE` (Bernstein's inequality; Boucheron, Lugosi and Massart,
    "Concentration inequalities", 2013, section 2.8). Two neighbouring inputs have it
    both.
    """
    eta, sure = scale * 2.0**-50, -float(np.log(UNSURE))
    body = float(np.sqrt(2 * d * sure)) * eta
    return 2 * (d * eta**2 + body + 64 * eta * sure * 2 / 3)
