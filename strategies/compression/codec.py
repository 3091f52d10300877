"""What all codecs have in common: an update as bytes, and back.

Every codec is a function of its arguments. Decoding trusts nothing: sizes are checked
before memory is taken, what comes out is finite, everything else is a ProtocolError.
Numbers on the wire are little-endian.
"""

from __future__ import annotations

import struct
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from truststram.errors import ProtocolError

from .rice import MOST_VALUES
from .selection import Selection

__all__ = ["HEADER_BYTES", "LARGEST", "Codec", "exactly", "take"]

Float32 = NDArray[np.float32]

# Of a frame, see `wire`.
HEADER_BYTES = 48
# Of float32.
LARGEST = float(np.finfo(np.float32).max)


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
    unbiased : bool
        The expectation of what is decoded is what was encoded.
    linear : bool
        With the same public selection for all, the sum of what is sent is what would be
        sent for the sum.
    fixed_size : bool
        The size of a payload depends on d and the ratio only.
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
        if len(x) > MOST_VALUES:
            raise ValueError(f"Expected at most {MOST_VALUES} values, not {len(x)}.")
        if not np.isfinite(x).all():
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

        Exact for codecs of fixed size.
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
        """Return ``E |x - decoded|**2 / |x|**2`` where theory gives it, else None."""
        return None


_NOTHING = Selection(np.empty(0, np.int64), 0)


def take(data: memoryview, layout: struct.Struct) -> tuple[list[int], memoryview]:
    """Return the numbers at the start of a payload, and the rest."""
    if len(data) < layout.size:
        raise ProtocolError("payload-size", f"{len(data)} bytes")
    return list(layout.unpack_from(data)), data[layout.size :]


def exactly(data: memoryview, size: int) -> None:
    """Raise ProtocolError unless there are ``size`` bytes."""
    if len(data) != size:
        raise ProtocolError("payload-size", f"{len(data)} bytes, not {size}")
