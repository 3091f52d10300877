"""The codecs: an update as bytes, and back.

============= ======== ====== ========== ==============================================
name          unbiased linear fixed size what is sent
============= ======== ====== ========== ==============================================
``q8``        yes      no     yes        all values, 8 bits, a scale for 4096 of them
``topk``      no       no     no         the largest, float16, and their places
``topk-q8``   no       no     no         the largest, 8 bits and zstd, and their places
``topk-shared`` no     yes    yes        values at places that the server sent, float32
``randk``     no       yes    yes        values at places from the round's seed, float32
``eden-1``    yes      no     yes        all values, rotated, 1 bit
``eden-2``    yes      no     yes        all values, rotated, 2 bits
============= ======== ====== ========== ==============================================

*Unbiased*: the expectation of what is decoded is what was encoded. Biased ones lose
what they leave out unless it is added to the next update (error feedback; Stich et al.,
"Sparsified SGD with Memory", NeurIPS 2018). All but EDEN never make an update longer
than by rounding; ``randk`` sends its values as they are, not times d/k: unbiased that
way, its error would be d/k - 1 times the update.

*Linear*: with the same public selection for all, the sum of what is sent is what would
be sent for the sum, so these go into secure sums (:meth:`Selection.gather`).

Every codec is a function of its arguments. Decoding trusts nothing: sizes are checked
before memory is taken, what comes out is finite, everything else is a ProtocolError.
Numbers on the wire are little-endian.
"""

from __future__ import annotations

import math
import struct
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from truststram.errors import ProtocolError

from . import eden, rice, values
from .selection import Selection, count, largest

__all__ = ["CODECS", "Codec", "make_codec"]

Float32 = NDArray[np.float32]
Indices = NDArray[np.int64]


@dataclass(frozen=True)
class Codec(ABC):
    """What all codecs have in common.

    Parameters
    ----------
    ratio : float
        Coordinates sent, as a part of all, in (0, 1]; codecs that send all ignore it.
        Decoding does not need it.

    Attributes
    ----------
    name : str
    unbiased, linear, fixed_size : bool
        See the module.
    public : bool
        Needs a :class:`Selection` that both sides know.
    """

    ratio: float = 1.0

    name: ClassVar[str]
    unbiased: ClassVar[bool] = False
    linear: ClassVar[bool] = False
    fixed_size: ClassVar[bool] = True
    public: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not 0 < self.ratio <= 1:
            raise ValueError(f"Expected 0 < ratio={self.ratio} <= 1.")

    def encode(
        self, x: Float32, rng: np.random.Generator, shared: Selection | None = None
    ) -> bytes:
        """Return the payload.

        Parameters
        ----------
        x : float32 array of shape (d,)
            Not changed.
        rng : numpy.random.Generator
            For rounding and rotation. Not for privacy.
        shared : Selection
            For codecs with a public selection, of d coordinates.

        Raises
        ------
        ValueError
            If x is not float32 of one dimension or holds NaN or Inf, or if there is no
            selection where one is needed.
        """
        if x.ndim != 1 or x.dtype != np.float32:
            raise ValueError(
                f"Expected float32 of shape (d,), not {x.dtype} {x.shape}."
            )
        if not _finite(x):
            raise ValueError("Expected a finite update, not NaN or Inf.")
        return self._encode(np.ascontiguousarray(x), rng, self._known(shared, len(x)))

    def decode(
        self, payload: bytes | memoryview, d: int, shared: Selection | None = None
    ) -> Float32:
        """Return what a payload stands for, shape (d,): finite, and memory of its own.

        Raises
        ------
        ProtocolError
            If the payload is not one of this codec for d values: ``payload-size``,
            ``index``, ``scale``, ``value``, ``zstd`` or ``selection``.
        ValueError
            If there is no selection where one is needed.
        """
        known = self._known(shared, d)
        found = memoryview(payload).cast("B")
        if len(found) > self.largest_payload(d):
            raise ProtocolError("payload-size", f"{len(found)} bytes for {d} values")
        return self._decode(found, d, known)

    def _known(self, shared: Selection | None, d: int) -> Selection:
        if not self.public:
            return _NOTHING
        if shared is None or shared.d != d:
            raise ValueError(f"{self.name} needs the selection of {d} coordinates.")
        return shared

    @abstractmethod
    def _encode(
        self, x: Float32, rng: np.random.Generator, shared: Selection
    ) -> bytes: ...

    @abstractmethod
    def _decode(self, data: memoryview, d: int, shared: Selection) -> Float32: ...

    @abstractmethod
    def predicted_payload(self, d: int) -> float:
        """Return the expected bytes of a payload for d values.

        Of fixed size: exact. Others: for coordinates in random order and values with
        the tails of Student's t (4 degrees of freedom), which updates resemble.
        """

    @abstractmethod
    def max_payload(self, d: int) -> int:
        """Return the most bytes that a payload of this ratio can have."""

    def largest_payload(self, d: int) -> int:
        """Return the most bytes that a payload of any ratio can have."""
        return type(self)(1.0).max_payload(d)

    def predicted_bytes(self, d: int) -> float:
        """Return the expected bytes of a whole frame for d values."""
        return HEADER_BYTES + self.predicted_payload(d)

    def predicted_error(self, d: int) -> float | None:
        """Return E|x - decoded|**2 / |x|**2 where theory gives it, else None.

        For EDEN the limit for long vectors, for ``randk`` exact; for ``q8`` a bound
        that holds for every x.
        """
        return None


# The header of a frame, see `wire`.
HEADER_BYTES = 48
_NOTHING = Selection(np.empty(0, np.int64), 0)


def _finite(x: Float32) -> bool:
    # Adding is faster than looking at each; a sum of finite ones may overflow.
    with np.errstate(over="ignore", invalid="ignore"):
        total = float(x.sum())
    return math.isfinite(total) or bool(np.isfinite(x).all())


def _take(data: memoryview, layout: struct.Struct) -> tuple[list[int], memoryview]:
    """Return the numbers at the start of a payload, and the rest."""
    if len(data) < layout.size:
        raise ProtocolError("payload-size", f"{len(data)} bytes")
    return list(layout.unpack_from(data)), data[layout.size :]


def _exactly(data: memoryview, size: int) -> None:
    if len(data) != size:
        raise ProtocolError("payload-size", f"{len(data)} bytes, not {size}")


class Q8(Codec):
    """All values with 8 bits; payload: a float32 scale for 4096 values, the codes."""

    name = "q8"
    unbiased = True

    def _encode(self, x: Float32, rng: np.random.Generator, shared: Selection) -> bytes:
        scales = values.block_scales(x)
        codes = values.shuffled(x, scales, rng)
        return scales.astype("<f4").tobytes() + codes.tobytes()

    def _decode(self, data: memoryview, d: int, shared: Selection) -> Float32:
        _exactly(data, self.max_payload(d))
        cut = _scale_bytes(d)
        scales = values.checked_scales(data[:cut])
        return values.dequantise(values.unpack_codes(data[cut:], d, zstd=False), scales)

    def predicted_payload(self, d: int) -> float:
        """Return the bytes of every payload."""
        return self.max_payload(d)

    def max_payload(self, d: int) -> int:
        """Return the bytes of every payload."""
        return _scale_bytes(d) + d

    def predicted_error(self, d: int) -> float | None:
        """Return the bound B / (4 * 127**2) for blocks of B values.

        Rounding by chance has a variance of at most a quarter of a step squared, and a
        step is 1/127 of a block's largest value, which is at most the block's norm.
        """
        return min(d, values.BLOCK) / (4 * values.LEVELS**2)


def _scale_bytes(n: int) -> int:
    return 4 * -(-n // values.BLOCK)


class _TopK(Codec):
    """The largest magnitudes, each with its place.

    Payload: k (8 bytes), bytes in unary (8), the Rice code's b (1), form of the values
    (1), the indices (:mod:`.rice`), the values.
    """

    fixed_size = False
    layout: ClassVar[struct.Struct] = struct.Struct("<QQBB")

    def _encode(self, x: Float32, rng: np.random.Generator, shared: Selection) -> bytes:
        return self._send(x, largest(x, count(self.ratio, len(x))))

    def _send(self, x: Float32, places: Indices) -> bytes:
        code = rice.encode(places, len(x))
        form, body = self._encode_values(x[places])
        head = self.layout.pack(len(places), len(code.unary), code.shift, form)
        return b"".join((head, code.unary, code.low, body))

    def _decode(self, data: memoryview, d: int, shared: Selection) -> Float32:
        (k, unary, shift, form), data = _take(data, self.layout)
        cut = unary + shift * -(-k // 8)
        if k > d or shift > rice.MAX_SHIFT or cut > len(data):
            raise ProtocolError("index", f"{k} indices of {d} in {len(data)} bytes")
        found = self._decode_values(data[cut:], k, form)
        code = rice.Rice(shift, bytes(data[:unary]), bytes(data[unary:cut]))
        x = np.zeros(d, np.float32)
        x[rice.decode(code, k, d)] = found
        return x

    def predicted_payload(self, d: int) -> float:
        """Return the expected bytes, see :meth:`Codec.predicted_payload`."""
        k = count(self.ratio, d)
        index = rice.expected_bits(k, d, rice.best_shift(k, d)) / 8
        return self.layout.size + index + self._predicted_values(k)

    def max_payload(self, d: int) -> int:
        """Return the most bytes for this ratio, whatever is sent."""
        k = count(self.ratio, d)
        return self._bound(k, d, rice.best_shift(k, d))

    def largest_payload(self, d: int) -> int:
        """Return the most bytes for any ratio: all values sent and 2 bits a place.

        With the best b, a place never takes more bits than a value's own 8.
        """
        return self.layout.size + _scale_bytes(d) + 4 * d + 64

    def _bound(self, k: int, d: int, shift: int) -> int:
        index = rice.worst_bytes(k, d, shift)
        return self.layout.size + index + self._value_bytes(k)

    @abstractmethod
    def _encode_values(self, x: Float32) -> tuple[int, bytes]: ...

    @abstractmethod
    def _decode_values(self, data: memoryview, k: int, form: int) -> Float32: ...

    @abstractmethod
    def _value_bytes(self, k: int) -> int:
        """Return the most bytes of k values."""

    def _predicted_values(self, k: int) -> float:
        return self._value_bytes(k)


class TopK(_TopK):
    """The largest magnitudes as float16.

    Values: an exponent (2 bytes), then float16 of ``x * 2**(15 - exponent)``. The
    exponent puts the largest one below 2**15, so a value is within 2**-11 of itself
    unless it is 2**28 times smaller than the largest.
    """

    name = "topk"

    def _encode_values(self, x: Float32) -> tuple[int, bytes]:
        top = float(np.abs(x).max(initial=0))
        exponent = math.frexp(top)[1]
        half = np.ldexp(x, _HALF - exponent).astype("<f2")
        return 0, struct.pack("<h", exponent) + half.tobytes()

    def _decode_values(self, data: memoryview, k: int, form: int) -> Float32:
        (exponent,), data = _take(data, struct.Struct("<h"))
        _exactly(data, 2 * k)
        half = np.frombuffer(data, "<f2")
        if form or not np.isfinite(half).all():
            raise ProtocolError("value", "a value is not finite, or an unknown form")
        if not -148 <= exponent <= 128:
            raise ProtocolError("scale", "no float32 has such an exponent")
        with np.errstate(over="ignore"):  # rounding up next to float32's largest
            x = np.ldexp(half.astype(np.float32), exponent - _HALF)
        return np.clip(x, -_LARGEST, _LARGEST)

    def _value_bytes(self, k: int) -> int:
        return 2 + 2 * k


_HALF = 15
_LARGEST = float(np.finfo(np.float32).max)


class TopKQ8(_TopK):
    """The largest magnitudes with 8 bits.

    Values: a float32 scale for 4096 of them; codes, by zstd where it makes them
    smaller (form 1). Rounded to the nearest, a step is 1/127 of the block's largest
    value but no less than a quarter of the smallest value sent: finer steps would add
    a bit to every value for an error that is small beside what is left out.

    **Guarantee**: a payload is never larger than that of random places (six standard
    deviations above the mean) and values that zstd cannot shorten; at a ratio of 0.1
    and d of a million and more that is below 1/25 of float32. Where places in another
    arrangement would take more, the smallest values are left out, less than 3 % of them
    at this ratio.
    """

    name = "topk-q8"

    def _encode(self, x: Float32, rng: np.random.Generator, shared: Selection) -> bytes:
        d = len(x)
        places = largest(x, count(self.ratio, d))
        payload = self._send(x, places)
        if len(payload) > (most := self.max_payload(d)):
            payload = self._send(x, largest(x, self._surely(d, most)))
        return payload

    def max_payload(self, d: int) -> int:
        """Return the most bytes, see the class."""
        k = count(self.ratio, d)
        shift = rice.best_shift(k, d)
        bits = rice.expected_bits(k, d, shift) + 6 * rice.deviation_bits(k, d, shift)
        # Every plane ends with a whole byte.
        usual = self.layout.size + math.ceil(bits / 8) + shift + self._value_bytes(k)
        return min(usual, self._bound(k, d, shift))

    def _surely(self, d: int, most: int) -> int:
        """Return the largest k whose payload has at most ``most`` bytes, always."""
        low, high = 0, count(self.ratio, d)
        while low < high:
            k = (low + high + 1) // 2
            if self._bound(k, d, rice.best_shift(k, d)) <= most:
                low = k
            else:
                high = k - 1
        return low

    def _encode_values(self, x: Float32) -> tuple[int, bytes]:
        least = float(np.abs(x).min(initial=_LARGEST)) * values.LEVELS / _FINEST
        scales = np.maximum(values.block_scales(x), np.float32(min(least, _LARGEST)))
        zstd, body = values.pack_codes(values.rounded(x, scales))
        return int(zstd), scales.astype("<f4").tobytes() + body

    def _decode_values(self, data: memoryview, k: int, form: int) -> Float32:
        cut = _scale_bytes(k)
        if form > 1 or cut > len(data):
            raise ProtocolError("value", "an unknown form, or no room for the scales")
        scales = values.checked_scales(data[:cut])
        codes = values.unpack_codes(data[cut:], k, zstd=form == 1)
        return values.dequantise(codes, scales)

    def _value_bytes(self, k: int) -> int:
        return _scale_bytes(k) + k

    def _predicted_values(self, k: int) -> float:
        return _scale_bytes(k) + _VALUE_BITS / 8 * k


# A step of `topk-q8` is at least the smallest value divided by this.
_FINEST = 4
# What zstd leaves of 8 bits, measured: see `predicted_payload`.
_VALUE_BITS = 3.4


class _Public(Codec):
    """Values at a public selection.

    Payload: CRC-32 of the selection (4 bytes), float32 values.
    """

    linear = True
    public = True
    layout: ClassVar[struct.Struct] = struct.Struct("<I")

    def _encode(self, x: Float32, rng: np.random.Generator, shared: Selection) -> bytes:
        sent = shared.gather(x).astype("<f4").tobytes()
        return self.layout.pack(shared.digest) + sent

    def _decode(self, data: memoryview, d: int, shared: Selection) -> Float32:
        (digest,), data = _take(data, self.layout)
        if digest != shared.digest:
            raise ProtocolError("selection", "the values are of another selection")
        _exactly(data, 4 * shared.k)
        found = np.frombuffer(data, "<f4")
        if not np.isfinite(found).all():
            raise ProtocolError("value", "a value is not finite")
        return shared.scatter(found.astype(np.float32, copy=False))

    def predicted_payload(self, d: int) -> float:
        """Return the bytes for a selection of this ratio."""
        return self.max_payload(d)

    def max_payload(self, d: int) -> int:
        """Return the bytes for a selection of this ratio."""
        return self.layout.size + 4 * count(self.ratio, d)


class TopKShared(_Public):
    """Values at places that the server sent, such as those large in the last round."""

    name = "topk-shared"


class RandK(_Public):
    """Values at random places from the round's seed, :meth:`Selection.random`."""

    name = "randk"

    def predicted_error(self, d: int) -> float | None:
        """Return 1 - k/d, the part of the coordinates that is left out."""
        return 1 - count(self.ratio, d) / d if d else 0.0


class _Eden(Codec):
    """Payload: seed of the rotation (8 bytes), a float32 scale for a block, codes."""

    unbiased = True
    bits: ClassVar[int]
    layout: ClassVar[struct.Struct] = struct.Struct("<Q")

    def _encode(self, x: Float32, rng: np.random.Generator, shared: Selection) -> bytes:
        seed = int(rng.integers(2**64, dtype=np.uint64))
        scales, codes = eden.encode(x, self.bits, seed)
        sent = scales.astype("<f4").tobytes() + codes.tobytes()
        return self.layout.pack(seed) + sent

    def _decode(self, data: memoryview, d: int, shared: Selection) -> Float32:
        _exactly(data, self.max_payload(d))
        (seed,), data = _take(data, self.layout)
        cut = 4 * sum(number for number, _ in eden.blocks_of(d))
        scales = values.checked_scales(data[:cut])
        codes = np.frombuffer(data[cut:], np.uint8).reshape(self.bits, -1)
        return eden.decode(scales, codes, d, seed)

    def predicted_payload(self, d: int) -> float:
        """Return the bytes of every payload."""
        return self.max_payload(d)

    def max_payload(self, d: int) -> int:
        """Return the bytes of every payload."""
        scales = 4 * sum(number for number, _ in eden.blocks_of(d))
        return self.layout.size + scales + self.bits * eden.padded(d) // 8

    def predicted_error(self, d: int) -> float | None:
        """Return what theory gives for long vectors: 0.571 or 0.133."""
        return eden.error(self.bits)


class Eden1(_Eden):
    """All values, rotated, 1 bit each."""

    name = "eden-1"
    bits = 1


class Eden2(_Eden):
    """All values, rotated, 2 bits each."""

    name = "eden-2"
    bits = 2


CODECS: Mapping[str, type[Codec]] = {
    codec.name: codec for codec in (Q8, TopK, TopKQ8, TopKShared, RandK, Eden1, Eden2)
}


def make_codec(name: str, ratio: float) -> Codec:
    """Return a codec by name.

    Parameters
    ----------
    name : str
        One of :data:`CODECS`.
    ratio : float
        Coordinates sent, as a part of all, in (0, 1]; ignored by codecs that send all.

    Raises
    ------
    ValueError
        For an unknown name or another ratio.
    """
    if name not in CODECS:
        raise ValueError(f"Expected codec={name!r} of: {', '.join(CODECS)}.")
    return CODECS[name](ratio)
