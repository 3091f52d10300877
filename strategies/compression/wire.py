"""One self-describing frame for every codec, and for selections.

Little-endian, 48 bytes of header and the payload:

====== ===== ====================================================================
offset bytes
====== ===== ====================================================================
0      4     ``TSUC``
4      1     version, 1
5      1     codec: place in :data:`FRAMES`, from 1
6      2     flags, 0
8      8     d, number of values
16     16    first half of the model's :attr:`truststram.records.Spec.digest`
32     8     bytes of the payload
40     4     reserved, 0
44     4     CRC-32 of everything else
48           payload, see the codec
====== ===== ====================================================================

The checksum finds accidents; it does not stop anybody from sending a frame of his own
making. That is what :func:`unpack` is for: whatever the bytes, it returns a finite
vector of the model's length or raises a ProtocolError, in time and memory of the order
of the model and of the frame.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Collection

import numpy as np

from truststram.errors import ProtocolError
from truststram.records import Float32, Spec

from . import rice
from .codec import HEADER_BYTES, Codec
from .codecs import CODECS
from .selection import Selection

__all__ = [
    "FRAMES",
    "max_frame_bytes",
    "pack",
    "pack_selection",
    "spec_hash",
    "unpack",
    "unpack_selection",
]

MAGIC, VERSION = b"TSUC", 1
# Numbers of codecs on the wire: append, never reorder.
SELECTION = "selection"
FRAMES = (
    *("q8", "topk", "topk-q8", "topk-shared", "randk", "eden-1", "eden-2"),
    SELECTION,
)
_HEADER = struct.Struct("<4sBBHQ16sQI")
_CHECKSUM = struct.Struct("<I")
assert _HEADER.size + _CHECKSUM.size == HEADER_BYTES


def spec_hash(spec: Spec) -> bytes:
    """Return the 16 bytes by which a frame names its model."""
    return bytes.fromhex(spec.digest)[:16]


def max_frame_bytes(codec: Codec, d: int) -> int:
    """Return the most bytes of a frame: to be checked before one is read."""
    return HEADER_BYTES + codec.max_payload(d)


def pack(
    codec: Codec,
    x: Float32,
    *,
    spec_hash: bytes,
    rng: np.random.Generator,
    shared: Selection | None = None,
) -> bytes:
    """Return an update as a frame; parameters and errors as :meth:`Codec.encode`."""
    return _frame(codec.name, len(x), spec_hash, codec.encode(x, rng, shared))


def unpack(
    frame: bytes | memoryview,
    *,
    d: int,
    spec_hash: bytes,
    allowed: Collection[str],
    shared: Selection | None = None,
) -> Float32:
    """Return the update of a received frame, shape (d,): finite, memory of its own.

    Parameters
    ----------
    frame : bytes
    d : int
        Number of values of the model.
    spec_hash : bytes
        :func:`spec_hash` of the model.
    allowed : collection of str
        Names of the codecs that the sender may use.
    shared : Selection
        Of d coordinates; without one, codecs with a public selection are refused.

    Raises
    ------
    ProtocolError
        ``frame-size``, ``frame-format``, ``frame-codec``, ``frame-model``,
        ``frame-checksum``, or a code of :meth:`Codec.decode`.
    """
    name, payload = _opened(frame, d, spec_hash)
    if name not in allowed or name not in CODECS:
        raise ProtocolError("frame-codec", "the codec is not one of those agreed on")
    codec = CODECS[name]()
    if codec.public and shared is None:
        raise ProtocolError("selection", "no selection was agreed on")
    return codec.decode(payload, d, shared)


def pack_selection(selection: Selection, *, spec_hash: bytes) -> bytes:
    """Return a selection as a frame; its payload is that of :mod:`.rice`."""
    payload = rice.encode(selection.indices, selection.d)
    return _frame(SELECTION, selection.d, spec_hash, payload)


def unpack_selection(
    frame: bytes | memoryview, *, d: int, spec_hash: bytes, most: int
) -> Selection:
    """Return a received selection of at most ``most`` of d coordinates.

    Raises
    ------
    ProtocolError
        As :func:`unpack`; ``index`` also for more than ``most``.
    """
    name, payload = _opened(frame, d, spec_hash)
    if name != SELECTION:
        raise ProtocolError("frame-codec", "not a selection")
    indices, rest = rice.decode(payload, d)
    if len(rest) or len(indices) > most:
        raise ProtocolError("index", f"more than {most} indices, or bytes after them")
    return Selection(indices, d)


def _frame(name: str, d: int, spec_hash: bytes, payload: bytes) -> bytes:
    if len(spec_hash) != 16:
        raise ValueError("Expected 16 bytes of spec_hash.")
    number = FRAMES.index(name) + 1
    head = _HEADER.pack(MAGIC, VERSION, number, 0, d, spec_hash, len(payload), 0)
    check = zlib.crc32(payload, zlib.crc32(head))
    return b"".join((head, _CHECKSUM.pack(check), payload))


def _opened(
    frame: bytes | memoryview, d: int, spec_hash: bytes
) -> tuple[str, memoryview]:
    """Return the codec's name and the payload of a frame for this model."""
    data = memoryview(frame).cast("B")
    if len(data) < HEADER_BYTES:
        raise ProtocolError("frame-size", f"{len(data)} bytes, less than a header")
    head = data[: _HEADER.size]
    magic, version, number, flags, count, model, size, rest = _HEADER.unpack(head)
    if (magic, version, flags, rest) != (MAGIC, VERSION, 0, 0):
        raise ProtocolError("frame-format", "not a frame of this version")
    if not 1 <= number <= len(FRAMES):
        raise ProtocolError("frame-codec", "no such codec")
    if count != d or model != spec_hash:
        raise ProtocolError("frame-model", "the frame is of another model")
    payload = data[HEADER_BYTES:]
    if len(payload) != size:
        raise ProtocolError("frame-size", f"{len(payload)} bytes, not as declared")
    (check,) = _CHECKSUM.unpack(data[_HEADER.size : HEADER_BYTES])
    if check != zlib.crc32(payload, zlib.crc32(head)):
        raise ProtocolError("frame-checksum", "the frame was damaged")
    return FRAMES[number - 1], payload
