"""Threshold secret sharing: any t of n shares give the secret, t - 1 give nothing.

Shamir, "How to Share a Secret", Communications of the ACM 22(11), 1979.

Mathematics
-----------
A random polynomial q of degree t - 1 over the integers modulo a prime p with q(0) the
secret; the share of holder x = 1 ... n is q(x). ``q(0) = sum_x y_x L_x`` with
``L_x = prod_(z != x) z / (z - x)``. Given t - 1 shares, every secret fits to exactly
one polynomial, and all polynomials are equally likely.

A secret is a 256-bit key, so p is the first prime above 2^256. Python integers do: the
work is per key, not per value of an update.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Callable, Mapping
from functools import lru_cache

__all__ = ["PRIME", "SHARE_BYTES", "reconstruct", "share"]

PRIME = 2**256 + 297
SHARE_BYTES = 33


def share(
    secret: int,
    threshold: int,
    holders: int,
    *,
    prime: int = PRIME,
    below: Callable[[int], int] = secrets.randbelow,
) -> list[int]:
    """Return the shares of holders 1 ... ``holders``.

    Parameters
    ----------
    secret : int
        In [0, prime).
    threshold : int
        Shares that give the secret, in [1, holders].
    holders : int
        Below ``prime``.
    prime : int
    below : callable
        ``below(m)`` draws uniformly from [0, m): the operating system's generator.

    Raises
    ------
    ValueError
        For numbers outside these ranges.
    """
    if not (0 <= secret < prime and 1 <= threshold <= holders < prime):
        raise ValueError(f"cannot share so: {threshold} of {holders}")
    coefficients = [secret, *(below(prime) for _ in range(threshold - 1))]
    return [_value(coefficients, x, prime) for x in range(1, holders + 1)]


def reconstruct(shares: Mapping[int, int], *, prime: int = PRIME) -> int:
    """Return the secret from at least as many shares as the threshold.

    ``shares`` maps the holder's number to its share. With fewer, or with a wrong one,
    the result is some other number: check it against something public.
    """
    weights = _weights(tuple(sorted(shares)), prime)
    total = sum(shares[x] * weight for x, weight in weights)
    return total % prime


def _value(coefficients: list[int], x: int, prime: int) -> int:
    value = 0
    for coefficient in reversed(coefficients):
        value = (value * x + coefficient) % prime
    return value


# The same holders give all shares of a round: two sets of them are usual.
@lru_cache(maxsize=256)
def _weights(holders: tuple[int, ...], prime: int) -> tuple[tuple[int, int], ...]:
    """Return (x, Lagrange's weight at zero) for each holder x."""
    product = math.prod(holders) % prime
    weights = []
    for x in holders:
        below = x
        for z in holders:
            if z != x:
                below = below * (z - x) % prime
        weights.append((x, product * pow(below, -1, prime) % prime))
    return tuple(weights)
