"""The codecs by name.

=============== ======== ====== ========== ============================================
name            unbiased linear fixed size what is sent
=============== ======== ====== ========== ============================================
``q8``          yes      no     yes        all values, 8 bits, a scale for 4096 of them
``topk``        no       no     no         the largest, float16, and their places
``topk-q8``     no       no     no         the largest, 8 bits, zstd, and their places
``topk-shared`` no       yes    yes        values at places that the server sent
``randk``       no       yes    yes        values at places from the round's seed
``eden-1``      yes      no     yes        all values, rotated, 1 bit
``eden-2``      yes      no     yes        all values, rotated, 2 bits
=============== ======== ====== ========== ============================================

Biased codecs lose what they leave out unless it is added to the next update (error
feedback; Stich et al., "Sparsified SGD with Memory", NeurIPS 2018). ``randk`` sends
values as they are, not times d/k, which would make it unbiased with an error of d/k - 1
times the update: as it is, it never makes an update longer, and error feedback makes up
for the rest.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from truststram.errors import ProtocolError

from . import eden, values
from .codec import Codec, exactly, take
from .selection import Selection, count
from .topk import TopK, TopKQ8

__all__ = ["CODECS", "Codec", "make_codec"]

Float32 = NDArray[np.float32]


class Q8(Codec):
    """All values with 8 bits; payload: a float32 scale for 4096 values, the codes."""

    name = "q8"
    unbiased = True

    def _encode(self, x: Float32, rng: np.random.Generator, shared: Selection) -> bytes:
        scales = values.block_scales(x)
        codes = values.stochastic_codes(x, scales, rng)
        return scales.astype("<f4").tobytes() + codes.tobytes()

    def _decode(self, data: memoryview, d: int, shared: Selection) -> Float32:
        exactly(data, self.max_payload(d))
        cut = values.scale_bytes(d)
        scales = values.checked_scales(data[:cut])
        return values.dequantise(values.checked_codes(data[cut:]), scales)

    def predicted_payload(self, d: int) -> float:
        """Return the bytes of every payload."""
        return self.max_payload(d)

    def max_payload(self, d: int) -> int:
        """Return the bytes of every payload."""
        return values.scale_bytes(d) + d

    def predicted_error(self, d: int) -> float | None:
        """Return the bound B / (4 * 127**2) for blocks of B values.

        Rounding by chance has a variance of at most a quarter of a step squared, and a
        step is 1/127 of a block's largest value, which is at most the block's norm.
        """
        return min(d, values.BLOCK) / (4 * values.LEVELS**2)


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
        (digest,), data = take(data, self.layout)
        if digest != shared.digest:
            raise ProtocolError("selection", "the values are of another selection")
        exactly(data, 4 * shared.k)
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
        exactly(data, self.max_payload(d))
        (seed,), data = take(data, self.layout)
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
