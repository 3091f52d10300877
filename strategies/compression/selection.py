"""Which coordinates are sent: the largest ones, or a selection known to everybody.

A :class:`Selection` is public: it is drawn from the round's seed, or the server sends
it. Codecs that send only the values at a public selection are linear, so they go with
secure sums; the largest coordinates of a single client are data of that client.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

__all__ = ["Selection", "count", "largest"]

Float32 = NDArray[np.float32]
Indices = NDArray[np.int64]

# Magnitudes that the first guess of a threshold is made from, and its safety in
# standard deviations of the sample's count: a guess too high is made up for.
SAMPLE = 20_000
SAFETY = 4.0
BLOCK = 65_536


def count(ratio: float, d: int) -> int:
    """Return how many of d coordinates a ratio of (0, 1] stands for: one at least."""
    return min(max(round(ratio * d), 1), d)


def largest(x: Float32, k: int) -> Indices:
    """Return the places of the k largest magnitudes of ``x`` that are not zero.

    Exact. Of equal magnitudes the first ones are taken, so the result depends on
    nothing else.

    Parameters
    ----------
    x : float32 array of shape (d,)
        Finite.
    k : int

    Returns
    -------
    int64 array of shape (min(k, number of values not 0),)
        Increasing.

    Notes
    -----
    A sample gives a threshold that a few more than k magnitudes reach; among these a
    partition finds the k-th. If fewer than k reach it, all are partitioned.
    """
    k = min(k, len(x))
    if k <= 0:
        return np.empty(0, np.int64)
    found = _reaching(x, _guess(x, k))
    if len(found) < k:
        found = _reaching(x, 0.0)
    sizes = np.abs(x[found])
    if len(found) <= k:
        return found if sizes.all() else found[np.flatnonzero(sizes)]
    limit = np.partition(sizes, len(sizes) - k)[len(sizes) - k]
    keep = sizes > limit
    if limit > 0:
        ties = np.flatnonzero(sizes == limit)
        keep[ties[: k - int(np.count_nonzero(keep))]] = True
    return found[np.flatnonzero(keep)]


def _guess(x: Float32, k: int) -> float:
    """Return a magnitude that a few more than k values probably reach."""
    part = k / len(x)
    above = SAMPLE * part
    above += SAFETY * (above * (1 - part)) ** 0.5 + 1
    if len(x) <= 2 * SAMPLE or above >= SAMPLE:
        return 0.0
    # Which values are looked at changes the time, not the result.
    places = np.random.default_rng(0).integers(0, len(x), SAMPLE)
    sizes = np.abs(x[places])
    rank = SAMPLE - int(above) - 1
    return float(np.partition(sizes, rank)[rank])


def _reaching(x: Float32, limit: float) -> Indices:
    """Return the places of magnitudes of at least ``limit``."""
    mask = np.empty(len(x), np.bool_)
    sizes = np.empty(min(BLOCK, len(x)), np.float32)
    for start in range(0, len(x), BLOCK):
        part = x[start : start + BLOCK]
        np.abs(part, out=sizes[: len(part)])
        reach = mask[start : start + BLOCK]
        np.greater_equal(sizes[: len(part)], np.float32(limit), out=reach)
    return np.flatnonzero(mask)


@dataclass(frozen=True, eq=False)
class Selection:
    """Coordinates that every party knows.

    Attributes
    ----------
    indices : int64 array of shape (k,)
        Strictly increasing, in [0, d).
    d : int
        Length of the vectors.

    Raises
    ------
    ValueError
        If the indices are not of this kind.
    """

    indices: Indices
    d: int

    def __post_init__(self) -> None:
        found = self.indices
        if found.ndim != 1 or found.dtype != np.int64:
            raise ValueError("Expected indices as int64 of shape (k,).")
        inside = not len(found) or (found[0] >= 0 and found[-1] < self.d)
        if not inside or not np.all(found[1:] > found[:-1]):
            raise ValueError(f"Expected increasing indices below {self.d}.")

    @classmethod
    def random(cls, seed: int, k: int, d: int) -> Selection:
        """Draw k of d coordinates, each set of k equally likely.

        Everybody who knows ``seed`` (in [0, 2**64)) draws the same. The definition, for
        implementations in other languages: coordinate i has as its key word i of PCG64
        (O'Neill 2014, XSL-RR 128/64) as ``numpy.random.PCG64(seed)`` initialises it;
        the k smallest keys are selected, of equal keys the lower coordinate.
        """
        k = min(max(k, 0), d)
        keys = np.random.PCG64(seed).random_raw(d)
        if not 0 < k < d:
            return cls(np.arange(k), d)
        limit = np.partition(keys, k - 1)[k - 1]
        keep = keys < limit
        ties = np.flatnonzero(keys == limit)
        keep[ties[: k - int(np.count_nonzero(keep))]] = True
        return cls(np.flatnonzero(keep), d)

    @classmethod
    def largest(cls, x: Float32, k: int) -> Selection:
        """Select the k largest magnitudes of a vector, see :func:`largest`."""
        return cls(largest(x, k), len(x))

    @property
    def k(self) -> int:
        """Number of coordinates."""
        return len(self.indices)

    @cached_property
    def digest(self) -> int:
        """CRC-32 of the indices: tells two selections apart by accident, not malice."""
        return zlib.crc32(self.indices.astype("<i8").tobytes(), self.d & 0xFFFFFFFF)

    def gather(self, x: Float32) -> Float32:
        """Return the values of ``x``, shape (d,), at the selection, shape (k,)."""
        if x.shape != (self.d,):
            raise ValueError(f"Expected {self.d} values, not {x.shape}.")
        return x[self.indices]

    def scatter(self, values: Float32) -> Float32:
        """Return a vector, shape (d,), with ``values``, shape (k,), and zeros."""
        if values.shape != (self.k,):
            raise ValueError(f"Expected {self.k} values, not {values.shape}.")
        x = np.zeros(self.d, np.float32)
        x[self.indices] = values
        return x
