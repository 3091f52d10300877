"""What one client puts into a sum: its update, and all else that it would report.

Mathematics
-----------
The vector of integers has the n quantised values of the update, then exact counters: 1
(the number of clients), the number of examples, the number of values that were clipped,
a checksum, and one counter for each training metric. A counter is written in base 1024,
one digit a place, because a place has only ``bits`` bits; the sum of the digits at each
place still gives the exact sum of the counters. Sums of digits say a little more than
the counters' sum (the low digits' part of it): under homomorphic encryption only
whoever decrypts sees them, and carries them before it tells (:meth:`Slots.told`); under
secure aggregation the server sees them.

The checksum is ``sum_j w_j q_j mod p`` with ``p = 2**31 - 1`` and public weights drawn
for the round, so that of the sum follows from those of the clients. It catches
accidents (a wrong key, a lane that overflowed) and nobody with intent, because whoever
can change a sum can change its checksum. A client's checksum is reduced modulo p before
it is added, which no sum of updates tells, so the server never sees it: whoever
decrypts compares it and leaves it out. Where the server itself opens the sum, and for
integers with a share of noise, there is none.

A metric in ``[-1000, 1000]`` is a multiple of about 2e-6; the mean counts all clients
alike.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from truststram.errors import ConfigError, ProtocolError
from truststram.validate import in_range

from .quantise import Coder

__all__ = ["Slots", "Summed"]

Float32 = NDArray[np.float32]
BASE = 1024
DIGITS = 3
METRIC_RANGE = 1000.0
LARGEST: int = BASE**DIGITS - 1
PRIME = 2**31 - 1
CHECK_DIGITS = 4
MAX_METRICS = 64
MAX_NAME = 64
BLOCK = 65_536


@dataclass(frozen=True)
class Summed:
    """A sum, read.

    Attributes
    ----------
    values : float64 array of shape (n,)
        Sum of the updates.
    clients : int
    examples : int
    clipped : int
        Values that were beyond the clip, over all clients.
    metrics : mapping
        Mean over the clients.
    """

    values: NDArray[np.float64]
    clients: int
    examples: int
    clipped: int
    metrics: Mapping[str, float]


@dataclass(frozen=True)
class Slots:
    """Places of the vector.

    Parameters
    ----------
    quantiser : Coder
        Of the update; from 11 to 32 bits.
    values : int
        Length of the update, n.
    metrics : tuple of str
        Names of the metrics, sorted.
    checked : bool
        With the checksum; otherwise its places are 0.
    """

    quantiser: Coder
    values: int
    metrics: tuple[str, ...] = ()
    checked: bool = True

    def __post_init__(self) -> None:
        in_range(11, 33, bits=self.quantiser.bits)
        names = self.metrics
        if len(names) > MAX_METRICS or any(len(n) > MAX_NAME for n in names):
            raise ValueError("too many metrics, or a name that is too long")
        if list(names) != sorted(set(names)):
            raise ValueError("the names of metrics are not sorted")

    @classmethod
    def of(
        cls, about: Any, coder: Callable[[int], Coder], *, checked: bool = True
    ) -> Slots:
        """Return the places of a vector that a signed header describes.

        Parameters
        ----------
        about : mapping
            ``values`` and ``metrics``; from outside.
        coder : callable
            What makes integers of updates of so many values.
        checked : bool

        Raises
        ------
        ProtocolError
            ``header``, for a description that makes no sense.
        """
        try:
            values, names = about["values"], about["metrics"]
            if type(values) is not int or not 0 <= values < 2**31:
                raise ValueError
            if not all(isinstance(name, str) for name in names):
                raise ValueError
            return cls(coder(values), values, tuple(names), checked)
        except (ConfigError, KeyError, TypeError, ValueError):
            raise ProtocolError("header", "no description of an update") from None

    @property
    def size(self) -> int:
        """Length of the vector."""
        return self.values + 1 + CHECK_DIGITS + DIGITS * (2 + len(self.metrics))

    def fill(
        self,
        update: Float32 | NDArray[np.int64],
        examples: int,
        metrics: Mapping[str, float],
        label: str,
        rng: np.random.Generator,
    ) -> NDArray[np.uint32]:
        """Return one client's vector, shape (size,).

        Parameters
        ----------
        update : array of shape (n,)
        examples : int
            Numbers above 2**30 - 1 count as that.
        metrics : mapping
            A value for each name; beyond +-1000 it counts as that.
        label : str
            Fixes the weights of the checksum; the same for all clients of the round.
        rng : numpy Generator
            Rounds the update.

        Raises
        ------
        ValueError
            For an update or a metric that is not a number.
        """
        out = np.empty(self.size, np.uint32)
        q = out[: self.values]
        q[:] = self.quantiser.encode(update, rng)
        clipped = min(self.quantiser.clipped(update), LARGEST)
        counters = [1, *_digits(min(examples, LARGEST)), *_digits(clipped)]
        counters += _digits(self._checksum(q, label), CHECK_DIGITS)
        for name in self.metrics:
            counters += _digits(_metric(metrics[name]))
        out[self.values :] = counters
        return out

    def read(self, total: NDArray[np.integer], count: int, label: str) -> Summed:
        """Return what the sum of ``count`` clients says.

        Parameters
        ----------
        total : integer array of shape (size,)
        count : int
            Clients whose vectors were added.
        label : str
            As in :meth:`fill`.

        Raises
        ------
        ProtocolError
            ``sum-range`` or ``checksum``: this is not such a sum.
        """
        if len(total) != self.size:
            raise ProtocolError("size", f"a sum of {len(total)} places")
        self.quantiser.check_sum(total, count)
        q, rest = total[: self.values], [int(x) for x in total[self.values :]]
        if rest.pop(0) != count or any(not 0 <= x < BASE * count for x in rest):
            raise ProtocolError("sum-range", "the counters do not fit the clients")
        examples, clipped = _number(rest[:DIGITS]), _number(rest[DIGITS : 2 * DIGITS])
        del rest[: 2 * DIGITS]
        if _number(rest[:CHECK_DIGITS]) % PRIME != self._checksum(q, label):
            raise ProtocolError("checksum", "the sum does not fit its checksum")
        del rest[:CHECK_DIGITS]
        means = {}
        for i, name in enumerate(self.metrics):
            number = _number(rest[DIGITS * i : DIGITS * (i + 1)])
            means[name] = (2 * number / count / LARGEST - 1) * METRIC_RANGE
        values = self.quantiser.decode_sum(q, count)
        return Summed(values, count, examples, clipped, means)

    def told(self, total: NDArray[np.integer]) -> NDArray[np.integer]:
        """Return a sum that :meth:`read` accepted with nothing in it but sums.

        The digits of each counter are carried into those of the counter's sum, and the
        checksum is 0: to be read with ``checked = False``.
        """
        out = total.copy()
        check = self.values + 1 + 2 * DIGITS
        after = check + CHECK_DIGITS
        counters = (self.values + 1, check - DIGITS, *range(after, len(out), DIGITS))
        for start in counters:
            number = _number([int(x) for x in out[start : start + DIGITS]])
            low, top = _digits(number, DIGITS - 1), number // BASE ** (DIGITS - 1)
            out[start : start + DIGITS] = [*low, top]
        out[check:after] = 0
        return out

    def _checksum(self, q: NDArray[np.integer], label: str) -> int:
        if self.quantiser.noised or not self.checked:
            return 0
        return _checksum(q, label)


def _metric(value: float) -> int:
    if math.isnan(value):
        raise ValueError("a metric is not a number")
    inside = min(max(value / METRIC_RANGE, -1.0), 1.0)
    return round((inside + 1) / 2 * LARGEST)


def _digits(number: int, count: int = DIGITS) -> list[int]:
    return [number // BASE**i % BASE for i in range(count)]


def _number(digits: list[int]) -> int:
    number = 0
    for digit in reversed(digits):
        number = number * BASE + digit
    return number


def _checksum(q: NDArray[np.integer], label: str) -> int:
    """Return ``sum_j w_j q_j mod p`` for q below 2**32."""
    seed = int.from_bytes(hashlib.sha256(label.encode()).digest()[:16], "big")
    stream, total = np.random.PCG64(seed), 0
    for start in range(0, len(q), BLOCK):
        part = q[start : start + BLOCK].astype(np.uint64)
        raw = stream.random_raw((len(part) + 1) // 2).view(np.uint32)
        # Weights below 2**31, products below 2**63: their halves can be added up.
        part *= raw[: len(part)] >> np.uint32(1)
        total += int((part & np.uint64(2**32 - 1)).sum())
        part >>= np.uint64(32)
        total += int(part.sum()) << 32
    return total % PRIME
