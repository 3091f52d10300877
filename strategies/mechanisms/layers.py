"""Fast exact draws from symmetric densities that fall from 0 outwards.

Under the curve lie as many centred rectangles of area 1/1024 as fit (1021 under the
Gaussian), stacked from the bottom. Ten bits of a random word choose one, and the other
54 are a uniform place in it: no rejection, one table, one word. What is left between
the rectangles and the curve is drawn by rejection from boxes, and the tail from an
exponential. The idea is the ziggurat's (Marsaglia and Tsang, "The ziggurat method for
generating random variables", J. Stat. Software 5(8), 2000); there every draw is tested,
here three in a thousand are.

Differences to the ideal: a place is one of 2**54 in its rectangle, and the tail ends
where a uniform number of 106 bits does (:attr:`Stack.reach`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from .csprng import BLOCK, Source
from .rounding import MAGIC, MAGIC_BITS, check_fits

__all__ = [
    "LAYERS",
    "Curve",
    "Stack",
    "centred",
    "draw",
    "stack",
]

Doubles = NDArray[np.float64]
Integers = NDArray[np.int64]

LAYERS = 1024


@dataclass(frozen=True)
class Curve:
    """A symmetric log-concave density of scale 1.

    Attributes
    ----------
    top : float
        ``f(0)``.
    density : callable
        ``f`` for arrays of x >= 0.
    inverse : callable
        The x >= 0 with ``f(x) = y``, for 0 < y <= top.
    slope : callable
        ``-(ln f)'(x)``.
    """

    top: float
    density: Callable[[Doubles], Doubles]
    inverse: Callable[[float], float]
    slope: Callable[[float], float]


@dataclass(frozen=True)
class Stack:
    """The rectangles under a curve and what is left.

    Attributes
    ----------
    curve : Curve
    halves : array of shape (LAYERS,)
        Half widths; the first ``known`` are rectangles, the others are the rest.
    known : int
    boxes : array of shape (4, known)
        Left, width, low and height of the boxes that cover the rest for x > 0, the tail
        beyond the widest rectangle excepted.
    """

    curve: Curve
    halves: Doubles
    known: int
    boxes: Doubles

    @property
    def reach(self) -> float:
        """Largest possible ``|x|``, in the curve's scale."""
        begin = float(self.halves[0])
        return begin + 106 * float(np.log(2)) / self.curve.slope(begin)


@lru_cache(maxsize=8)
def stack(curve: Curve) -> Stack:
    """Return the rectangles under a curve; computed once."""
    heights, halves = [0.0], list[float]()
    while (height := _next(curve, heights[-1])) is not None:
        heights.append(height)
        halves.append(curve.inverse(height))
    known = len(halves)
    table = np.zeros(LAYERS)
    table[:known] = halves
    # Box i lies on rectangle i, between its end and that of the rectangle below.
    left, low = np.array([*halves[1:], 0.0]), np.array(heights[1:])
    high = np.array([*heights[2:], curve.top])
    boxes = np.stack([left, table[:known] - left, low, high - low])
    return Stack(curve, table, known, boxes)


def _next(curve: Curve, low: float) -> float | None:
    """Return up to which height the rectangle on ``low`` reaches; None if none fits."""
    half_area = 0.5 / LAYERS

    def area(height: float) -> float:
        return curve.inverse(height) * (height - low)

    a, b = low, curve.top
    for _ in range(60):  # the largest rectangle
        c, e = a + (b - a) / 3, b - (b - a) / 3
        a, b = (c, b) if area(c) < area(e) else (a, e)
    if area(b) < half_area:
        return None
    a = low
    for _ in range(80):
        c = (a + b) / 2
        a, b = (c, b) if area(c) < half_area else (a, c)
    return b


def centred(
    halves: Doubles, known: int, out: Doubles | Integers, source: Source
) -> NDArray[np.intp]:
    """Fill ``out`` with draws uniform on ``[-h, h]``, h one of ``halves``.

    Parameters
    ----------
    halves : array of shape (LAYERS,)
        Each is chosen with probability 1/LAYERS.
    known : int
        Draws of halves from this one on are void.
    out : array of shape (n,)
        Float64, or int64 for rounded draws, which must be below 2**51.
    source : Source

    Returns
    -------
    array of int
        The places of the void draws.
    """
    table, void = halves * 2.0**-53, list[NDArray[np.intp]]()
    size = min(BLOCK, len(out))
    layers, widths = np.empty(size, np.int64), np.empty(size)
    for start in range(0, len(out), BLOCK):
        target = out[start : start + BLOCK]
        n = len(target)
        words, layer, width = source.block(n), layers[:n], widths[:n]
        np.bitwise_and(words, LAYERS - 1, out=layer)
        np.take(table, layer, out=width, mode="clip")  # the other modes copy
        void.append(np.flatnonzero(layer >= known) + start)
        np.right_shift(words, 10, out=words)
        # Few arrays, so that they stay in the cache: the layers are done with.
        x = layer.view(np.float64)
        np.copyto(x, words)
        if target.dtype == np.float64:
            np.multiply(x, width, out=target)
        else:
            np.multiply(x, width, out=x)
            np.add(x, MAGIC, out=x)
            np.subtract(layer, MAGIC_BITS, out=target)
    return np.concatenate(void) if void else np.empty(0, np.intp)


def draw(
    rectangles: Stack, scale: float, out: Doubles | Integers, source: Source
) -> None:
    """Fill ``out`` with draws from the curve times ``scale``, int64 ones rounded.

    Raises
    ------
    ValueError
        For draws of int64 that may not fit 2**51.
    """
    if out.dtype != np.float64:
        check_fits(scale * rectangles.reach)
    void = centred(rectangles.halves * scale, rectangles.known, out, source)
    for start in range(0, len(void), BLOCK):
        places = void[start : start + BLOCK]
        x = _rest(rectangles, len(places), source) * scale
        out[places] = x if out.dtype == np.float64 else np.rint(x)


def _rest(rectangles: Stack, n: int, source: Source) -> Doubles:
    """Return ``n`` draws from what lies between the rectangles and the curve."""
    found = [np.empty(0)]
    while (missing := n - sum(map(len, found))) > 0:
        x = _from_boxes(rectangles, 2 * missing + 16, source)[:missing]
        sign = 1.0 - 2.0 * (source.words(len(x)) >> np.uint64(63))
        found.append(x * sign)
    return np.concatenate(found)


def _from_boxes(rectangles: Stack, n: int, source: Source) -> Doubles:
    """Return those of ``n`` points in the boxes that lie under the curve, x > 0."""
    curve, (left, width, low, height) = rectangles.curve, rectangles.boxes
    begin = float(rectangles.halves[0])
    slope, edge = curve.slope(begin), float(curve.density(np.array([begin]))[0])
    sums = np.cumsum(np.append(width * height, edge / slope))
    u, v, w = source.uniforms(3 * n).reshape(3, n)
    box = np.searchsorted(sums, u * sums[-1])
    tail = np.flatnonzero(box == len(left))
    box[tail] = 0
    x, y = left[box] + width[box] * v, low[box] + height[box] * w
    # Log-concave: beyond `begin` the curve stays below an exponential.
    x[tail] = begin - np.log(source.fine(len(tail))) / slope
    y[tail] = edge * np.exp(slope * (begin - x[tail])) * source.fine(len(tail))
    fits: Doubles = x[y <= curve.density(x)]
    return fits
