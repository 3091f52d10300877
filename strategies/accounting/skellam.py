"""What a sum with Skellam noise costs: its Rényi divergence.

Source: Agarwal, Kairouz and Liu, "The Skellam Mechanism for Differentially Private
Federated Learning", NeurIPS 2021, Theorem 3.5. For integer vectors that differ by D,
noise of variance v on every coordinate and orders a that are whole numbers,

``D_a <= a |D|_2^2 / (2 v)
+ min( ((2 a - 1) |D|_2^2 + 6 |D|_1) / (4 v^2), 3 |D|_1 / (2 v) )``.

The first term is that of Gaussian noise of the same variance.

Derived again
-------------
Let ``L = ln f``, f the probabilities of the noise, and one coordinate differ by k > 0.
``a L(x) + (1 - a) L(x - k) - L(x + (a - 1) k)`` is a sum of ``a (a - 1) k^2 / 2``
differences ``2 L(j) - L(j + 1) - L(j - 1)``, for ``(a - 1) k`` is a whole number. If
none exceeds t, then ``sum_x f(x)^a f(x - k)^(1-a) <= exp(t a (a - 1) k^2 / 2)``, since
f sums to 1 wherever it is shifted: ``D_a <= a t k^2 / 2``, and coordinates add up. The
largest difference is the one at 0, ``t = 2 ln(I_0(v) / I_1(v))``, about ``1/v + 1/(2
v^2)``: a little below the theorem's first choice, without an L1 term. That it is the
largest was computed, not proved, so the theorem is what is charged.

Other orders
------------
``(a - 1) D_a`` is convex in a and 0 at a = 1. Between whole orders it is at most the
straight line.

Integer vectors have ``|D|_1 <= |D|_2^2``, and ``|D|_1 <= sqrt(d) |D|_2`` as all do.
"""

from __future__ import annotations

import math

from .events import Release

__all__ = ["THEOREM", "divergence", "sensitivities"]

THEOREM = "Agarwal, Kairouz and Liu, NeurIPS 2021, Theorem 3.5"


def divergence(variance: float, l1: float, l2: float, order: float) -> float:
    """Return a bound on the Rényi divergence of one release.

    Parameters
    ----------
    variance : float
        Of the noise on each coordinate, in lattice steps squared.
    l1, l2 : float
        Largest distance of two neighbours' sums in both norms, in lattice steps.
    order : float
        > 1, whole or not.
    """
    low = math.floor(order)
    if order == low:
        return _at_whole_order(variance, l1, l2, low)
    below = (low - 1) * _at_whole_order(variance, l1, l2, low) if low > 1 else 0.0
    above = low * _at_whole_order(variance, l1, l2, low + 1)
    return (below + (order - low) * (above - below)) / (order - 1)


def sensitivities(release: Release) -> tuple[float, float]:
    """Return the distance of neighbours in L1 and in L2, in lattice steps.

    Each unit's integer vector has an L2 norm of at most ``release.units``; neighbours
    under ``replace`` differ by two of them.
    """
    l2 = release.sensitivity * release.units
    return min(math.sqrt(release.dimension) * l2, l2**2), l2


def _at_whole_order(variance: float, l1: float, l2: float, order: int) -> float:
    gaussian = order * l2**2 / (2 * variance)
    wide = ((2 * order - 1) * l2**2 + 6 * l1) / (4 * variance) / variance
    return gaussian + min(wide, 3 * l1 / (2 * variance))
