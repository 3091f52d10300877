"""The lattice of integers on which updates are clipped, summed and noised.

Floating-point noise leaks what it was added to: which numbers the sum can be depends on
the secret (Mironov, "On significance of the least significant bits for differential
privacy", CCS 2012), and rounding in sums makes sensitivities larger than they are on
paper (Casacuberta et al., CCS 2022). Integers do neither. The steps are powers of two,
chosen from public numbers only, so that decoding is exact.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.linalg.blas import dasum, ddot

from truststram.vectors import one_blas_thread

from .rounding import MAGIC, MAGIC_BITS

__all__ = ["Lattice", "Norm", "from_lattice", "lattice", "to_lattice"]

Norm = Literal["l1", "l2"]
Floats = NDArray[np.float32]
Integers = NDArray[np.int64]

# Rounding moves a dense update of norm C by C * 2**-FINER or so, at most twice that.
FINER = 13
# C has at least 2**20 steps, and at most so many that norms are exact: `to_lattice`.
LEAST_BITS, MOST_BITS = 20, {"l1": 48, "l2": 25}
# Clips beyond 2**-60 and 2**60 would leave the range of float32.
CLIP_BITS = 60
BLOCK = 32_768


@dataclass(frozen=True)
class Lattice:
    """Multiples of ``step``, for vectors whose norm is at most ``clip``.

    Attributes
    ----------
    clip : float
        C, in the unit of the update.
    step : float
        A power of two, in the unit of the update.
    norm : "l1" or "l2"
    """

    clip: float
    step: float
    norm: Norm

    @property
    def units(self) -> float:
        """C in steps, exactly: the sensitivity of one vector in the sum."""
        return self.clip / self.step

    @property
    def bound(self) -> int:
        """What the exact integer norm may be: sum of absolutes, or of squares."""
        units = Fraction(self.clip) / Fraction(self.step)
        return math.floor(units if self.norm == "l1" else units * units)

    def check_sum(self, vectors: int, noise: float) -> None:
        """Refuse a sum that might not fit.

        Parameters
        ----------
        vectors : int
            How many vectors are summed.
        noise : float
            The largest absolute value of the noise, in steps.

        Raises
        ------
        ValueError
            If a sum may reach 2**62, half of what int64 holds.
        """
        largest = vectors * (math.floor(self.units) + 1) + math.ceil(noise)
        if largest >= 2**62:
            raise ValueError(
                f"A sum of {vectors} vectors of {self.units:.3g} steps and noise of up "
                f"to {noise:.3g} may not fit 62 bits: expected less noise."
            )


def lattice(clip: float, d: int, norm: Norm = "l2") -> Lattice:
    """Return the lattice for updates of d values: from public numbers only.

    Parameters
    ----------
    clip : float
        C, between 2**-60 and 2**60.
    d : int
    norm : "l1" or "l2"

    Raises
    ------
    ValueError
        For another clip, norm or d.
    """
    if norm not in MOST_BITS:
        raise ValueError(f"Unknown norm {norm!r}: expected 'l1' or 'l2'.")
    if d < 1:
        raise ValueError(f"Expected d={d} >= 1.")
    if not 2.0**-CLIP_BITS <= clip <= 2.0**CLIP_BITS:
        raise ValueError(f"Expected a clip={clip} between 2**-60 and 2**60.")
    # Half a step for each of d values; their norm is d or its root.
    size = math.log2(d) if norm == "l1" else math.log2(d) / 2
    bits = min(max(LEAST_BITS, FINER - 1 + math.ceil(size)), MOST_BITS[norm])
    exponent = math.frexp(clip)[1] - 1  # 2**exponent <= clip
    return Lattice(float(clip), 2.0 ** (exponent - bits), norm)


def to_lattice(
    x: NDArray[np.floating], on: Lattice, factor: float = 1.0
) -> tuple[Integers, int]:
    """Return ``x * factor`` in steps, rounded toward zero, and its exact norm.

    Parameters
    ----------
    x : array of shape (d,)
        Finite; ``x * factor / on.step`` below 2**51.
    on : Lattice
    factor : float

    Returns
    -------
    array of int64, shape (d,)
    int
        Sum of squares for L2, of absolutes for L1. The caller compares it with
        ``on.bound``: what passes has a norm of at most C in exact arithmetic.

    Notes
    -----
    The norm is added in float64, in any order: every addend is an integer, and a sum of
    integers is exact as long as it is at most 2**53. Above, rounding is monotone, so
    the result is at least 2**53, and ``on.bound`` is below that.
    """
    out = np.empty(len(x), np.int64)
    values = np.empty(BLOCK)
    scale = factor / on.step
    total = 0.0
    size = dasum if on.norm == "l1" else _squares
    with one_blas_thread():
        for start in range(0, len(x), BLOCK):
            part = x[start : start + BLOCK]
            y = values[: len(part)]
            np.copyto(y, part)
            np.multiply(y, scale, out=y)
            np.trunc(y, out=y)
            total += size(y)
            np.add(y, MAGIC, out=y)
            np.subtract(y.view(np.int64), MAGIC_BITS, out=out[start : start + BLOCK])
    return out, int(total)


def _squares(y: NDArray[np.float64]) -> float:
    return float(ddot(y, y))


def from_lattice(integers: Integers, on: Lattice, divisor: float = 1.0) -> Floats:
    """Return ``integers * on.step / divisor`` as float32, shape (d,).

    Exact with a divisor of 1 and integers below 2**24.
    """
    out = np.empty(len(integers), np.float32)
    for start in range(0, len(integers), BLOCK):
        part = integers[start : start + BLOCK]
        out[start : start + BLOCK] = part * (on.step / divisor)
    return out
