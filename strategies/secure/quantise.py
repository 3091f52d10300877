"""Real numbers as integers that can be added exactly: the quantiser of all schemes.

Mathematics
-----------
``x`` in ``[-clip, clip]`` lies on a grid of ``2 half + 1`` points, ``half = 2**(bits -
1) - 1``, of width ``step = clip / half``. Zero is a point of the grid. A value between
two points goes up with the probability that makes it right on average (Alistarh et al.,
"QSGD", NeurIPS 2017, section 3.1, with one scale that everybody knows in place of each
vector's norm). What is sent is the point's number ``q`` in ``[0, 2 half]``; a sum of
``n`` clients is ``(sum q - n half) step``.

The sum of at most ``most`` clients fits ``bits + ceil(log2(most))`` bits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from truststram.errors import ProtocolError
from truststram.validate import in_range, positive

__all__ = ["Coder", "Quantiser"]

Float32 = NDArray[np.float32]
# Temporary arrays stay in the cache.
BLOCK = 65_536


class Coder(Protocol):
    """What makes the integers of a sum of updates: :class:`Quantiser`, or another.

    Attributes
    ----------
    noised : bool
        Integers hold a share of noise that protects their sum only: nothing else that
        is computed from them may be told, and an update is encoded once.
    """

    noised: ClassVar[bool]

    @property
    def most(self) -> int:
        """Largest number of clients in a sum."""
        ...

    @property
    def bits(self) -> int:
        """Bits of one client's value."""
        ...

    @property
    def width(self) -> int:
        """Bits that the sum of ``most`` clients needs."""
        ...

    def encode(self, x: Any, rng: np.random.Generator) -> NDArray[np.uint32]:
        """Return the integers of an update (or, if so made, of integers), (n,)."""
        ...

    def clipped(self, x: Any) -> int:
        """Return how many values are beyond the clip."""
        ...

    def check_sum(self, total: NDArray[np.integer], count: int) -> None:
        """Refuse what cannot be a sum of ``count`` clients."""
        ...

    def decode_sum(self, total: NDArray[np.integer], count: int) -> NDArray[np.float64]:
        """Return the sum of the updates of ``count`` clients, shape (n,)."""
        ...


@dataclass(frozen=True)
class Quantiser:
    """Grid that all clients of a sum share.

    Parameters
    ----------
    clip : float
        Largest absolute value that is represented; > 0.
    bits : int
        Bits of one client's value, in [2, 31].
    most : int
        Largest number of clients in a sum, >= 1. ``width`` must not exceed 62.

    Guarantees
    ----------
    Each value within the clip is off by less than one step and by nothing on average;
    0 is exact. Sums are exact integers, in any order.
    """

    clip: float
    bits: int
    most: int

    noised: ClassVar[bool] = False

    def __post_init__(self) -> None:
        positive(clip=self.clip)
        in_range(2, 32, bits=self.bits)
        in_range(1, 2**30, most=self.most)

    @property
    def half(self) -> int:
        """The number of the point 0; the largest number is twice this."""
        return int(2 ** (self.bits - 1)) - 1

    @property
    def step(self) -> float:
        """Distance of two neighbouring points."""
        return self.clip / self.half

    @property
    def width(self) -> int:
        """Bits that the sum of ``most`` clients needs."""
        return self.bits + (self.most - 1).bit_length()

    def encode(
        self, x: Float32 | NDArray[np.float64], rng: np.random.Generator
    ) -> NDArray[np.uint32]:
        """Return the points' numbers, shape (n,), each in ``[0, 2 half]``.

        Parameters
        ----------
        x : array of shape (n,)
            Values beyond the clip count as the clip (:meth:`clipped` counts them).
        rng : numpy Generator
            Of ``default_rng``; decides which way values are rounded. It protects
            nothing and need not be secret.

        Raises
        ------
        ValueError
            For NaN; infinities are clipped.
        """
        q = np.empty(len(x), np.uint32)
        places, fractions = np.empty((2, min(BLOCK, len(x))))
        for start in range(0, len(x), BLOCK):
            part = x[start : start + BLOCK]
            y, up = places[: len(part)], fractions[: len(part)]
            # In double precision: float32 has not enough digits for a place between
            # two points.
            np.multiply(part, 1 / self.step, out=y, dtype=np.float64)
            np.multiply(_uniform(rng, len(part)), 2.0**-32, out=up)
            y += up
            y += self.half
            if np.isnan(y.sum()):
                raise ValueError("a value to be quantised is not a number")
            # Truncation is the floor here.
            np.clip(y, 0, 2 * self.half, out=y)
            q[start : start + BLOCK] = y
        return q

    def clipped(self, x: Float32 | NDArray[np.float64]) -> int:
        """Return how many values are beyond the clip."""
        return int(np.count_nonzero(np.abs(x) > self.clip))

    def check_sum(self, total: NDArray[np.integer], count: int) -> None:
        """Refuse what cannot be a sum of ``count`` clients.

        Raises
        ------
        ProtocolError
            ``sum-range``, for more than ``most`` or fewer than one client, or a value
            outside ``[0, count * 2 half]``.
        """
        if not 1 <= count <= self.most:
            raise ProtocolError("sum-range", f"{count} clients, at most {self.most}")
        if len(total) and (total.min() < 0 or total.max() > count * 2 * self.half):
            raise ProtocolError("sum-range", f"not a sum of values of {count} clients")

    def decode_sum(self, total: NDArray[np.integer], count: int) -> NDArray[np.float64]:
        """Return the sum of the values of ``count`` clients, shape (n,).

        Parameters
        ----------
        total : integer array of shape (n,)
            Sum of what :meth:`encode` returned.
        count : int
            How many clients are in it.

        Raises
        ------
        ProtocolError
            As :meth:`check_sum`.
        """
        self.check_sum(total, count)
        centred = total.astype(np.int64, copy=False) - count * self.half
        values: NDArray[np.float64] = centred.astype(np.float64)
        values *= self.step
        return values


def _uniform(rng: np.random.Generator, n: int) -> NDArray[np.uint32]:
    """Return ``n`` random words, two of each draw: 2**-32 of a step is fine enough."""
    raw: NDArray[np.uint64] = rng.bit_generator.random_raw((n + 1) // 2)
    return raw.view(np.uint32)[:n]
