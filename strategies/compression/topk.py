"""Codecs that send the largest values of an update, and their places."""

from __future__ import annotations

import math
import struct
from abc import abstractmethod
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.special import entr, ndtr, ndtri

from truststram.errors import ProtocolError

from . import rice, values
from .codec import LARGEST, Codec, exactly, take
from .lossless import lengthen, shorten
from .selection import Selection, count, largest

__all__ = ["TopK", "TopKQ8"]

Float32 = NDArray[np.float32]
Indices = NDArray[np.int64]


class _TopK(Codec):
    """The largest magnitudes. Payload: their places (:mod:`.rice`), their values."""

    fixed_size = False

    def _encode(self, x: Float32, rng: np.random.Generator, shared: Selection) -> bytes:
        return self._send(x, largest(x, count(self.ratio, len(x))))

    def _send(self, x: Float32, places: Indices) -> bytes:
        return rice.encode(places, len(x)) + self._encode_values(x[places])

    def _decode(self, data: memoryview, d: int, shared: Selection) -> Float32:
        places, rest = rice.decode(data, d)
        x = np.zeros(d, np.float32)
        x[places] = self._decode_values(rest, len(places))
        return x

    def max_payload(self, d: int) -> int:
        """Return the most bytes for this ratio, whatever is sent."""
        return self._most(count(self.ratio, d), d)

    def largest_payload(self, d: int) -> int:
        """Return a bound for any ratio: all values, and two bits of every place."""
        return rice.HEADER.size + 64 + d // 4 + self._value_bytes(d)

    def _most(self, k: int, d: int) -> int:
        return rice.most_bytes(k, d) + self._value_bytes(k)

    @abstractmethod
    def _encode_values(self, x: Float32) -> bytes: ...

    @abstractmethod
    def _decode_values(self, data: memoryview, k: int) -> Float32: ...

    @abstractmethod
    def _value_bytes(self, k: int) -> int:
        """Return the most bytes of k values."""


class TopK(_TopK):
    """The largest magnitudes as float16.

    Values: an exponent (2 bytes), then float16 of ``x * 2**(15 - exponent)``. The
    exponent puts the largest one below 2**15, so a value is within 2**-11 of itself
    unless it is 2**28 times smaller than the largest.
    """

    name = "topk"

    def _encode_values(self, x: Float32) -> bytes:
        exponent = math.frexp(float(np.abs(x).max(initial=0)))[1]
        half = np.ldexp(x, _TOP - exponent).astype("<f2")
        return _EXPONENT.pack(exponent) + half.tobytes()

    def _decode_values(self, data: memoryview, k: int) -> Float32:
        (exponent,), data = take(data, _EXPONENT)
        exactly(data, 2 * k)
        half = np.frombuffer(data, "<f2")
        if not np.isfinite(half).all():
            raise ProtocolError("value", "a value is not finite")
        if not -148 <= exponent <= 128:
            raise ProtocolError("scale", "no float32 has such an exponent")
        with np.errstate(over="ignore"):  # rounded up next to float32's largest
            x = np.ldexp(half.astype(np.float32), exponent - _TOP)
        return np.clip(x, -LARGEST, LARGEST)

    def _value_bytes(self, k: int) -> int:
        return _EXPONENT.size + 2 * k

    def predicted_payload(self, d: int) -> float:
        """Return the expected bytes; the places of updates as measured."""
        k = count(self.ratio, d)
        return _INDEX_PART * rice.expected_bytes(k, d) + self._value_bytes(k)


_TOP = 15
_EXPONENT = struct.Struct("<h")


class TopKQ8(_TopK):
    """The largest magnitudes with 8 bits.

    Values: a float32 scale for 4096 of them; codes, by zstd where that shortens them.
    Rounded to the nearest, a step is 1/127 of the block's largest value but no less
    than half of the smallest value sent: finer steps would add a bit to every value for
    an error that is a hundredth of what is left out.

    **Guarantee**: a payload is never larger than that of random places (with a margin
    of two standard deviations of as many independent gaps) and of values that zstd
    cannot shorten; at a ratio of 0.1 and half a million values or more the whole frame
    is below 1/25 of float32. Where places in another arrangement would take more, the
    smallest values are left out, less than 4 % of them at this ratio.
    """

    name = "topk-q8"

    def _encode(self, x: Float32, rng: np.random.Generator, shared: Selection) -> bytes:
        d = len(x)
        payload = super()._encode(x, rng, shared)
        if len(payload) > (most := self.max_payload(d)):
            payload = self._send(x, largest(x, self._surely(d, most)))
        return payload

    def max_payload(self, d: int) -> int:
        """Return the most bytes, see the class."""
        k = count(self.ratio, d)
        index = rice.expected_bytes(k, d) + 2 * rice.deviation_bits(k, d) / 8
        # Every plane of low bits ends with a whole byte.
        usual = math.ceil(index) + rice.MAX_SHIFT + self._value_bytes(k)
        return min(usual, self._most(k, d))

    def _surely(self, d: int, most: int) -> int:
        """Return the largest k whose payload has at most ``most`` bytes, always."""
        low, high = 0, count(self.ratio, d)
        while low < high:
            k = (low + high + 1) // 2
            low, high = (k, high) if self._most(k, d) <= most else (low, k - 1)
        return low

    def _encode_values(self, x: Float32) -> bytes:
        least = float(np.abs(x).min(initial=LARGEST)) * values.LEVELS / _FINEST
        scales = np.maximum(values.block_scales(x), np.float32(min(least, LARGEST)))
        codes = shorten(values.nearest_codes(x, scales).tobytes())
        return scales.astype("<f4").tobytes() + codes

    def _decode_values(self, data: memoryview, k: int) -> Float32:
        cut = values.scale_bytes(k)
        if cut > len(data):
            raise ProtocolError("payload-size", f"{len(data)} bytes for {k} values")
        scales = values.checked_scales(data[:cut])
        codes = values.checked_codes(lengthen(data[cut:], k))
        return values.dequantise(codes, scales)

    def _value_bytes(self, k: int) -> int:
        return values.scale_bytes(k) + k

    def predicted_payload(self, d: int) -> float:
        """Return the expected bytes: places as measured, Gaussian values.

        That is what error feedback makes of updates: to 10 % for ratios from 0.1
        (`benchmarks.codecs`), to 15 % below. A single update is further off where its
        tails are heavy (more bytes) or whole rows are still (fewer).
        """
        k = count(self.ratio, d)
        if not k:
            return rice.HEADER.size
        codes = _TABLE_BYTES + k * _gaussian_bits(k / d, min(k, values.BLOCK)) / 8
        index = _INDEX_PART * rice.expected_bytes(k, d)
        return index + values.scale_bytes(k) + min(codes, k)


# A step of `topk-q8` is at least the smallest value sent divided by this.
_FINEST = 2
# Bytes of places beside random ones, measured; of zstd's frame with its table.
_INDEX_PART, _TABLE_BYTES = 0.92, 40


@lru_cache(maxsize=64)
def _gaussian_bits(part: float, block: int) -> float:
    """Return the entropy of the codes of the largest ``part`` of Gaussian values.

    Parameters
    ----------
    part : float
        In (0, 1].
    block : int
        Values that share a scale.
    """
    least, top = -ndtri(part / 2), -ndtri(part / 2 / (block + 1))
    step = max(least / _FINEST, top / values.LEVELS)
    # Values are rounded to the nearest multiple of a step; the first is cut by `least`.
    edges = np.arange(math.floor(least / step + 0.5) + 0.5, top / step + 1) * step
    beyond = ndtr(-np.concatenate([[least], edges])) * 2 / part
    chances = -np.diff(beyond, append=0.0)
    return 1 + float(entr(chances).sum()) / math.log(2)
