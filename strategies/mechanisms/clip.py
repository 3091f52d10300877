"""Clipping an update to a norm, so that integers can prove it.

The factor is computed in floating point and is not trusted: the integers that it makes
are measured exactly, and shortened again if they are too long.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy.linalg.blas import sasum, sdot

from truststram.vectors import one_blas_thread

from .lattice import BLOCK, Floats, Integers, Lattice, to_lattice

__all__ = ["Clipped", "clip"]

# Sums of float32 squares in this range lost nothing to overflow or underflow.
SAFE = 2.0**-80, 2.0**120
# How much longer than C an update may seem to be before it is scaled: more than the
# error of a norm added in float32.
MARGIN = 1e-3


@dataclass(frozen=True)
class Clipped:
    """A clipped update on the lattice.

    Attributes
    ----------
    integers : array of int64, shape (d,)
        In steps; their norm is at most C in exact arithmetic.
    norm : float
        Of the update before, to 1e-4; NaN if it was not finite. Secret.
    factor : float
        What the update was multiplied by: 1 if it was short enough. Secret.
    finite : bool
        False: the update held NaN or Inf and counts as a zero update.
    """

    integers: Integers
    norm: float
    factor: float
    finite: bool


def clip(update: Floats, on: Lattice) -> Clipped:
    """Return an update shortened to the lattice's clip and rounded toward zero.

    Parameters
    ----------
    update : float32 array of shape (d,)
        Anything: zero, subnormal, 1e38, NaN and Inf included. Not changed.
    on : Lattice

    Returns
    -------
    Clipped
        **Guarantee**: whatever the update, the exact L1 or L2 norm of the integers is
        at most ``on.units``; so replacing the update by nothing changes a sum by at
        most that, and by another one by at most twice that. An update that was clipped
        before comes out as it was.
    """
    norm = _norm(update, on)
    if not math.isfinite(norm):
        return Clipped(np.zeros(len(update), np.int64), math.nan, 0.0, finite=False)
    factor = 1.0 if norm <= on.clip * (1 + MARGIN) else on.clip / norm
    integers, size = to_lattice(update, on, factor)
    shorter = 2.0**-30
    while size > on.bound:  # by a little: ever more is taken off until it fits
        ratio = on.bound / size if on.norm == "l1" else math.sqrt(on.bound / size)
        factor *= ratio * (1 - shorter)
        shorter *= 16
        integers, size = to_lattice(update, on, factor)
    return Clipped(integers, norm, factor, finite=True)


def _norm(update: Floats, on: Lattice) -> float:
    """Return the norm of an update, not finite if the update is not."""
    add = sasum if on.norm == "l1" else _squares
    total, (low, high) = 0.0, SAFE
    with one_blas_thread():
        for start in range(0, len(update), BLOCK):
            total += float(add(update[start : start + BLOCK]))
    if not low < total < high:  # zero, not finite, or float32 was too narrow
        total = 0.0
        for start in range(0, len(update), BLOCK):
            wide = update[start : start + BLOCK].astype(np.float64)
            total += float(np.abs(wide).sum() if on.norm == "l1" else wide @ wide)
    return total if on.norm == "l1" else math.sqrt(total)


def _squares(x: Floats) -> float:
    return float(sdot(x, x))
