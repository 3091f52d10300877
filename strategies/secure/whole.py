"""Whole numbers in a secure sum: what nodes have as integers is added as it is.

A secure sum has a quantiser for updates, which are real numbers. Some clients have made
integers already, by rules of their own (a plan of TensorFlow Federated with its
``secure_aggregator``), and whoever undoes those rules needs their exact sum. The coder
here takes the quantiser's place and changes nothing.

Mathematics
-----------
A vector of n integers is described by *runs* ``(how many, limit)``: values that follow
each other and are in ``[0, limit)``. A sum of c clients is in ``[0, c (limit - 1)]``
and is exact; with ``most`` clients it fits ``bits + ceil(log2(most))`` bits.

How they travel: :mod:`.integers`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from truststram.errors import ProtocolError
from truststram.validate import in_range

__all__ = ["MAX_RUNS", "Runs", "WholeNumbers"]

Runs = tuple[tuple[int, int], ...]

# With these, sums are below 2**52: exact in double precision, too.
MOST_BITS, MOST_CLIENTS = 32, 2**20
# Counters beside the values have digits of 10 bits (:mod:`.slots`).
LEAST_BITS = 11
MAX_RUNS = 2**14
MAX_SIZE = 2**31 - 1


@dataclass(frozen=True)
class WholeNumbers:
    """Coder of clients' own integers, in the place of a quantiser.

    Parameters
    ----------
    runs : tuple of (int, int)
        How many values, and the limit that each is below, in [1, 2**32].
    most : int
        Largest number of clients in a sum.

    Guarantees
    ----------
    What is decoded is the sum of what was encoded. A value outside its range is refused
    before it is encoded; a sum that no clients' values can have is refused. A client
    may choose any values in range.

    Raises
    ------
    ValueError
        For runs that make no sense, or are more than 16,384.
    """

    runs: Runs
    most: int

    noised: ClassVar[bool] = False

    def __post_init__(self) -> None:
        in_range(1, MOST_CLIENTS + 1, most=self.most)
        in_range(1, MAX_RUNS + 1, runs=len(self.runs))
        for count, limit in self.runs:
            in_range(1, MAX_SIZE + 1, count=count)
            in_range(1, 2**MOST_BITS + 1, limit=limit)
        in_range(1, MAX_SIZE + 1, size=self.size)

    @cached_property
    def size(self) -> int:
        """Length of the vector, n."""
        return sum(count for count, _ in self.runs)

    @cached_property
    def bits(self) -> int:
        """Bits of one client's value; at least what the counters beside it need."""
        widest = max((limit - 1).bit_length() for _, limit in self.runs)
        return max(widest, LEAST_BITS)

    @property
    def width(self) -> int:
        """Bits that the sum of ``most`` clients needs."""
        return self.bits + (self.most - 1).bit_length()

    @cached_property
    def digest(self) -> str:
        """Hash of the runs: what sender and receiver must agree on."""
        return hashlib.sha256(repr(self.runs).encode()).hexdigest()

    def encode(self, x: NDArray[np.generic], rng: object = None) -> NDArray[np.uint32]:
        """Return the integers as they are, shape (n,).

        Parameters
        ----------
        x : integer array of shape (n,)
        rng : object
            Not used: nothing is rounded.

        Raises
        ------
        ValueError
            For another length, no integers, or a value outside its range.
        """
        if x.shape != (self.size,) or x.dtype.kind not in "iu":
            raise ValueError(f"{x.dtype} of shape {x.shape}, not {self.size} integers")
        for place, limit in self._places():
            if x[place].min() < 0 or x[place].max() >= limit:
                raise ValueError(f"a value is outside [0, {limit})")
        return x.astype(np.uint32)

    def clipped(self, x: object) -> int:
        """Return 0: nothing is clipped here."""
        return 0

    def check_sum(self, total: NDArray[np.integer], count: int) -> None:
        """Refuse what cannot be a sum of ``count`` clients.

        Parameters
        ----------
        total : integer array of shape (n,) or longer
            What follows the values is not looked at.
        count : int

        Raises
        ------
        ProtocolError
            ``sum-range``, for more than ``most`` or fewer than one client, fewer than n
            values, or a value that is no sum of values in range.
        """
        if not 1 <= count <= self.most:
            raise ProtocolError("sum-range", f"{count} clients, at most {self.most}")
        if len(total) < self.size:
            raise ProtocolError("sum-range", f"{len(total)} values, not {self.size}")
        for place, limit in self._places():
            part = total[place]
            if part.min() < 0 or part.max() > count * (limit - 1):
                raise ProtocolError(
                    "sum-range", f"not a sum of integers of {count} clients"
                )

    def decode_sum(self, total: NDArray[np.integer], count: int) -> NDArray[np.float64]:
        """Return the sum of the integers of ``count`` clients, shape (n,), exactly.

        Raises
        ------
        ProtocolError
            As :meth:`check_sum`.
        """
        self.check_sum(total, count)
        return total[: self.size].astype(np.float64)  # below 2**52

    def _places(self) -> Iterator[tuple[slice, int]]:
        """Yield where each run is, and its limit."""
        start = 0
        for count, limit in self.runs:
            yield slice(start, start + count), limit
            start += count
