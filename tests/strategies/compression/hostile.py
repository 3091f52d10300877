"""Frames that were tampered with, for the quick tests and the fuzzer."""

from __future__ import annotations

import struct
import zlib

import numpy as np

from strategies.compression import wire
from strategies.compression.codecs import CODECS, make_codec
from strategies.compression.selection import Selection
from tests.strategies.compression.updates import MODEL, heavy
from truststram.errors import ProtocolError

D = 300
SHARED = Selection.random(3, 30, D)


def sealed(frame):
    """Return a frame whose lengths and checksum are right, whatever its content."""
    head = bytearray(frame[: wire._HEADER.size])
    payload = frame[wire.HEADER_BYTES :]
    head[32:40] = struct.pack("<Q", len(payload))
    check = zlib.crc32(payload, zlib.crc32(head))
    return bytes(head) + struct.pack("<I", check) + payload


def forged(name, payload, d=D):
    """Return a well-formed frame with any payload."""
    return wire._frame(name, d, MODEL, bytes(payload))


def judge(frame):
    """Assert that a frame is an update or a selection, or is refused.

    Returns
    -------
    str
        The reason code, or "ok".
    """
    codes = []
    try:
        x = wire.unpack(
            frame, d=D, spec_hash=MODEL, allowed=list(CODECS), shared=SHARED
        )
        assert x.shape == (D,)
        assert x.dtype == np.float32
        assert np.isfinite(x).all()
        codes.append("ok")
    except ProtocolError as error:
        codes.append(error.code)
    try:
        chosen = wire.unpack_selection(frame, d=D, spec_hash=MODEL, most=60)
        assert chosen.k <= 60
        codes.append("ok")
    except ProtocolError as error:
        codes.append(error.code)
    return "ok" if "ok" in codes else codes[0]


def good_frames():
    """Return one frame of each kind, by name."""
    frames = {}
    for name in CODECS:
        codec = make_codec(name, 0.1)
        rng = np.random.default_rng(1)
        shared = SHARED if codec.public else None
        frames[name] = wire.pack(
            codec, heavy(D), spec_hash=MODEL, rng=rng, shared=shared
        )
    frames["selection"] = wire.pack_selection(SHARED, spec_hash=MODEL)
    return frames
