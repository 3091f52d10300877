"""Sorted indices in about as few bits as there are: Rice codes, as Elias-Fano lays out.

k of d coordinates in increasing order are k gaps; a gap g >= 0 counts the coordinates
that are left out before one. Rice codes (R. F. Rice, JPL publication 79-22, 1979) cut a
gap in two: the low b bits as they are, the rest ``g >> b`` in unary. As in P. Elias,
"Efficient storage and retrieval by content and address of static files", J. ACM 21,
1974, the two halves are stored apart, so that numpy packs and unpacks all of them at
once.

Differences from the papers: low bits lie in planes (bit 0 of all gaps, then bit 1, ...)
instead of side by side, which packs several times as fast; b is the one that is
smallest for the gaps at hand; each half is shortened by zstd where that helps. For k
random coordinates of d the code is 1 to 4 % above the entropy
``log2(binomial(d, k))``; no arrangement takes more than :func:`most_bytes`, and those
of real updates, where whole rows move together, take less than random ones.

Format, little-endian: k, bytes of the unary half before zstd, the same after, bytes of
the low half after zstd (4 bytes each), b (1 byte); the unary half, for each gap
``g >> b`` zeros and a one, lowest bit of a byte first; the low half, b planes of
``ceil(k / 8)`` bytes.
"""

from __future__ import annotations

import math
import struct

import numpy as np
from numpy.typing import NDArray

from truststram.errors import ProtocolError

from .lossless import lengthen, shorten

__all__ = [
    "best_shift",
    "decode",
    "deviation_bits",
    "encode",
    "expected_bytes",
    "most_bytes",
]

Indices = NDArray[np.int64]
HEADER = struct.Struct("<IIIIB")
# Of vectors; then all numbers of the header fit their places.
MOST_VALUES = 2**32 - 1
MAX_SHIFT = 31


def best_shift(k: int, d: int) -> int:
    """Return the b of least expected length for k random coordinates of d."""
    return min(range(MAX_SHIFT + 1), key=lambda b: _expected_bits(k, d, b))


def _expected_bits(k: int, d: int, shift: int) -> float:
    if k == 0:
        return 0.0
    stay = (1 - k / d) ** (1 << shift)
    return k * (shift + 1 + stay / (1 - stay))


def expected_bytes(k: int, d: int) -> float:
    """Return the expected bytes for k random coordinates of d, without zstd.

    Gaps are then close to geometric: ``g >> b`` is at least j with probability
    ``(1 - k/d)**(j * 2**b)``.
    """
    return HEADER.size + _expected_bits(k, d, best_shift(k, d)) / 8


def deviation_bits(k: int, d: int) -> float:
    """Return the standard deviation of the bits of k independent gaps.

    Those of k random coordinates of d, which add up to about d, spread less.
    """
    if k == 0:
        return 0.0
    stay = (1 - k / d) ** (1 << best_shift(k, d))
    return math.sqrt(k * stay) / (1 - stay)


def most_bytes(k: int, d: int) -> int:
    """Return the most bytes of any k coordinates of d."""
    shift = best_shift(k, d)
    return HEADER.size + _unary_bytes(k, d, shift) + _low_bytes(k, shift)


def _unary_bytes(k: int, d: int, shift: int) -> int:
    return math.ceil((k + ((d - k) >> shift)) / 8) if k else 0


def _low_bytes(k: int, shift: int) -> int:
    return shift * math.ceil(k / 8)


def encode(indices: Indices, d: int) -> bytes:
    """Return strictly increasing ``indices``, shape (k,), of [0, d) as bytes."""
    k = len(indices)
    if not k:
        return HEADER.pack(0, 0, 0, 0, 0)
    gaps = np.diff(indices, prepend=-1)
    gaps -= 1
    shift = _shift_for(gaps, d)
    ones = np.cumsum(gaps >> shift)
    ones += np.arange(k)
    bits = np.zeros(int(ones[-1]) + 1, np.uint8)
    bits[ones] = 1
    unary = np.packbits(bits, bitorder="little").tobytes()
    low = b"".join(
        np.packbits((gaps >> b).astype(np.uint8) & 1, bitorder="little").tobytes()
        for b in range(shift)
    )
    short, short_low = shorten(unary), shorten(low)
    head = HEADER.pack(k, len(unary), len(short), len(short_low), shift)
    return b"".join((head, short, short_low))


def _shift_for(gaps: Indices, d: int) -> int:
    """Return the b that is best for these gaps, next to the one for random ones."""
    k = len(gaps)
    usual = best_shift(k, d)
    near = range(max(usual - 1, 0), min(usual + 1, MAX_SHIFT) + 1)
    return min(near, key=lambda b: 8 * _low_bytes(k, b) + int((gaps >> b).sum()))


def decode(data: memoryview, d: int) -> tuple[Indices, memoryview]:
    """Return strictly increasing indices of [0, d), and the bytes after them.

    Allocates less than 40 bytes for each of d coordinates, after all sizes were
    checked.

    Raises
    ------
    ProtocolError
        ``index``: sizes that do not fit k and d, not k ones, or an index beyond d;
        ``zstd``.
    """
    if len(data) < HEADER.size:
        raise ProtocolError("index", f"{len(data)} bytes, less than a header")
    k, size, stored, stored_low, shift = HEADER.unpack_from(data)
    body = data[HEADER.size :]
    end = stored + stored_low
    if k > d or shift > MAX_SHIFT or size > _unary_bytes(k, d, shift):
        raise ProtocolError("index", f"no {k} indices of {d} have such sizes")
    if end > len(body):
        raise ProtocolError("index", f"{len(body)} bytes, not {end}")
    unary = lengthen(body[:stored], size)
    low = lengthen(body[stored:end], _low_bytes(k, shift))
    bits = np.unpackbits(np.frombuffer(unary, np.uint8), bitorder="little")
    ones = np.flatnonzero(bits.view(np.bool_))
    if len(ones) != k:
        raise ProtocolError("index", f"{len(ones)} indices, not {k}")
    gaps = np.diff(ones, prepend=-1)
    gaps -= 1
    gaps <<= shift
    for b, plane in enumerate(np.frombuffer(low, np.uint8).reshape(shift, -(-k // 8))):
        part = np.unpackbits(plane, count=k, bitorder="little").astype(np.int64)
        gaps |= part << b
    gaps += 1
    indices = np.cumsum(gaps)
    indices -= 1
    if k and indices[-1] >= d:
        raise ProtocolError("index", f"an index beyond {d} coordinates")
    return indices, body[end:]
