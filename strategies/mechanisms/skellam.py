"""Skellam noise: integers that stay Skellam when they are added.

The difference of two independent Poisson variables of mean ``v / 2`` each has mean 0,
variance v and the probabilities ``exp(-v) I_|k|(v)``, I the modified Bessel function of
the first kind (Skellam, J. Royal Stat. Soc. 109, 1946). Sums of independent ones are of
the same kind, and their variances add up: so clients can add shares of the noise
(Agarwal, Kairouz and Liu, "The Skellam Mechanism for Differentially Private Federated
Learning", NeurIPS 2021). Difference to the paper: no Poisson variables are drawn, for
which exact samplers are slow at means of 2**30. The probabilities are symmetric and
fall from 0 outwards, so that they are drawn from as :mod:`.layers` draws from
densities.

Mathematics
-----------
Under the probabilities f lie up to 1024 centred layers of mass 1/1024: layer i has the
integers up to ``h_i`` on both sides, all of the same probability, and the layers below
``h_i`` do not reach above ``f(h_i)``. Ten bits of a word choose a layer, 54 a place in
it. What is left between layers and f, and the tail beyond the widest layer, is drawn by
rejection from boxes and a geometric distribution.

``ln f(k) = k**2 / (s + v) - k asinh(k / v) - ln(2 pi s) / 2 + ln(1 + u1 + u2 + u3)``
with ``s = sqrt(k**2 + v**2)`` and the first terms of Debye's expansion (NIST Handbook
of Mathematical Functions, 10.41.3). The first term left out is below ``v**-4``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from .csprng import BLOCK, Source
from .layers import LAYERS, centred
from .rounding import UNSURE, check_fits, epsilon_slack

__all__ = [
    "LEAST_VARIANCE",
    "delta_slack",
    "draw_skellam",
    "epsilon_slack",
    "log_probability",
    "support",
    "tail",
]

Doubles = NDArray[np.float64]
Integers = NDArray[np.int64]

# Narrower noise has too few integers for 1024 layers: take a finer lattice.
LEAST_VARIANCE = 2.0**16
# Beyond this many standard deviations the sampler is not relied on.
_BULK = 16.0


def draw_skellam(variance: float, d: int, source: Source) -> Integers:
    """Return d independent Skellam numbers, shape (d,).

    Parameters
    ----------
    variance : float
        v, at least :data:`LEAST_VARIANCE`: the sum of the means of both Poisson
        variables.
    d : int
    source : Source

    Raises
    ------
    ValueError
        For a smaller variance, or noise that does not fit 2**51.
    """
    layers = _layers(variance)
    out = np.empty(d, np.int64)
    # A place in [-h - 1/2, h + 1/2], rounded, is an integer up to h.
    void = centred(layers.halves + 0.5, layers.known, out, source)
    for start in range(0, len(void), BLOCK):
        places = void[start : start + BLOCK]
        out[places] = _rest(layers, len(places), source)
    return out


def log_probability(k: Doubles, variance: float) -> Doubles:
    """Return ``ln f(k)``, with an error below 1e-13 up to 16 standard deviations.

    Parameters
    ----------
    k : float array
        Integers.
    variance : float
        v, at least :data:`LEAST_VARIANCE`.
    """
    s = np.hypot(k, variance)
    t, q = 1 / s, np.square(k / s)
    u = (30375 - q * (369603 - q * (765765 - q * 425425))) / 414720 * t
    u = (u + (81 - q * (462 - q * 385)) / 1152) * t
    u = (u + (3 - q * 5) / 24) * t
    exponent = k**2 / (s + variance) - k * np.arcsinh(k / variance)
    result: Doubles = exponent - 0.5 * np.log(2 * np.pi * s) + np.log1p(u)
    return result


def tail(variance: float, reach: float) -> float:
    """Return a bound on the probability of a number of at least ``reach``, or below.

    Both sides together, for ``reach >= 0``: Chernoff's bound from the moment generating
    function ``exp(v (cosh x - 1))``.
    """
    away = math.hypot(reach, variance)
    exponent = reach**2 / (away + variance) - reach * math.asinh(reach / variance)
    return min(1.0, 2 * math.exp(exponent))


def support(variance: float) -> float:
    """Return the largest absolute value that :func:`draw_skellam` can return."""
    return _layers(variance).reach


def delta_slack(variance: float, d: int) -> float:
    """Return how far d draws may be from ideal ones, in total variation.

    It is the mass of d tails beyond 16 standard deviations, and 2**-64 for the cases in
    which :func:`.rounding.epsilon_slack` does not hold.
    """
    return d * tail(variance, _BULK * math.sqrt(variance)) + UNSURE


@dataclass(frozen=True)
class _Layers:
    """The layers under the probabilities and what is left.

    Attributes
    ----------
    variance : float
    halves : array of shape (LAYERS,)
        ``h_i``, widest first; the first ``known`` are layers, the others are the rest.
    known : int
    boxes : array of shape (4, known)
        First integer, number of integers, low and height of the boxes that cover the
        rest for k >= 0, the tail excepted.
    edge, ratio : float
        ``f`` at the first integer of the tail, and by how much it falls there: more
        further out, since f is log-concave.
    """

    variance: float
    halves: Doubles
    known: int
    boxes: Doubles
    edge: float
    ratio: float

    @property
    def reach(self) -> float:
        """Largest possible ``|k|``: the tail is drawn from 106 bits."""
        return float(self.halves[0]) + 2 - 106 * math.log(2) / math.log(self.ratio)

    def probability(self, k: Doubles) -> Doubles:
        """Return ``f(k)``."""
        f: Doubles = np.exp(log_probability(k, self.variance))
        return f


@lru_cache(maxsize=4)
def _layers(variance: float) -> _Layers:
    """Return the layers for a variance; computed once."""
    if not variance >= LEAST_VARIANCE or math.isinf(variance):
        raise ValueError(
            f"Expected a variance={variance} of at least {LEAST_VARIANCE:g}: a finer "
            "lattice has more."
        )
    std = math.sqrt(variance)
    check_fits(_BULK * 2 * std)

    def room(h: Doubles) -> Doubles:  # below a layer up to h that just fits
        f: Doubles = np.exp(log_probability(h, variance))
        return f - 1 / (LAYERS * (2 * h + 1))

    # Room grows up to here and falls from here on.
    inner = np.unique(np.rint(np.geomspace(1, 3 * std, 4000)))
    most = float(inner[np.argmax(room(inner))])
    heights, halves = [0.0], [math.floor(_BULK * std)]
    while room(np.array([most]))[0] >= heights[-1] and len(halves) <= LAYERS:
        h = _widest(room, heights[-1], most, halves[-1])
        halves.append(h)
        heights.append(heights[-1] + 1 / (LAYERS * (2 * h + 1)))
    known = len(halves) - 1
    ends, low = np.array(halves[1:], float), np.array(heights[1:])
    left = np.append(ends[1:], -1.0) + 1
    f = np.exp(log_probability(left, variance))
    first = np.exp(log_probability(ends[0] + np.array([1.0, 2.0]), variance))
    table = np.zeros(LAYERS)
    table[:known] = ends
    table.flags.writeable = False
    boxes = np.stack([left, ends + 1 - left, low, np.maximum(f - low, 0)])
    return _Layers(
        *(variance, table, known, boxes), float(first[0]), float(first[1] / first[0])
    )


def _widest(
    room: Callable[[Doubles], Doubles], low: float, inner: float, outer: int
) -> int:
    """Return the largest integer in [inner, outer] with ``room`` for ``low``."""
    a, b = int(inner), outer + 1  # room at a, none at b (or not allowed)
    while b - a > 1:
        step = max(1, (b - a) // 32)
        h = np.arange(a + step, b, step, dtype=np.float64)
        fits = int(np.argmin(np.append(room(h) >= low, False)))
        a, b = (int(h[fits - 1]) if fits else a), (int(h[fits]) if fits < len(h) else b)
    return a


def _rest(layers: _Layers, n: int, source: Source) -> Integers:
    """Return ``n`` draws from what lies between the layers and f, shape (n,)."""
    found = [np.empty(0)]
    while (missing := n - sum(map(len, found))) > 0:
        found.append(_from_boxes(layers, 3 * missing + 16, source)[:missing])
    return np.concatenate(found).astype(np.int64)


def _from_boxes(layers: _Layers, n: int, source: Source) -> Doubles:
    """Return those of ``n`` points in the boxes that lie under f, with a sign."""
    left, width, low, height = layers.boxes
    beyond = layers.edge / (1 - layers.ratio)
    sums = np.cumsum(np.append(width * height, beyond))
    u, v, w = source.uniforms(3 * n).reshape(3, n)
    box = np.searchsorted(sums, u * sums[-1])
    out = np.flatnonzero(box == len(left))
    box[out] = 0
    # 1 - v is in [0, 1).
    k, y = left[box] + np.floor(width[box] * (1 - v)), low[box] + height[box] * w
    further = np.floor(np.log(source.fine(len(out))) / math.log(layers.ratio))
    k[out] = layers.halves[0] + 1 + further
    y[out] = layers.edge * layers.ratio**further * source.fine(len(out))
    sign = 1.0 - 2.0 * (source.words(n) >> np.uint64(63))
    # 0 is on both sides, and counts on one.
    fits = (y <= layers.probability(k)) & ((k > 0) | (sign > 0))
    drawn: Doubles = (sign * k)[fits]
    return drawn
