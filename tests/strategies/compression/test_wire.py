"""Frames: what was packed comes out; everything else ends with a reason code."""

from __future__ import annotations

import struct
import time
import tracemalloc

import numpy as np
import pytest
import zstandard
from flwr.app import Array, ArrayRecord
from hypothesis import given
from hypothesis import strategies as st

from strategies.compression import rice, wire
from strategies.compression.codecs import CODECS, make_codec
from strategies.compression.selection import Selection
from tests.strategies.compression.hostile import (
    SHARED,
    D,
    forged,
    good_frames,
    judge,
    sealed,
)
from tests.strategies.compression.updates import MODEL, both_ways, frame_of, heavy
from truststram.errors import ProtocolError
from truststram.records import Spec

NAMES = list(CODECS)
FRAMES = good_frames()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("d", [0, 1, 5000])
def test_frames_come_back(name, d):
    codec = make_codec(name, 0.1)
    frame, known = frame_of(codec, heavy(d))
    assert len(frame) == wire.HEADER_BYTES + len(both_ways(codec, heavy(d))[0])
    found = wire.unpack(memoryview(frame), **known)
    assert np.array_equal(found, both_ways(codec, heavy(d))[1])


@given(st.sets(st.integers(0, D - 1)))
def test_selections_come_back(places):
    chosen = Selection(np.array(sorted(places), np.int64), D)
    frame = wire.pack_selection(chosen, spec_hash=MODEL)
    again = wire.unpack_selection(frame, d=D, spec_hash=MODEL, most=D)
    assert np.array_equal(again.indices, chosen.indices)
    assert again.digest == chosen.digest


def test_a_selection_larger_than_agreed_is_refused():
    with pytest.raises(ProtocolError, match="index"):
        wire.unpack_selection(FRAMES["selection"], d=D, spec_hash=MODEL, most=29)


def test_every_codec_has_a_number_of_its_own_for_ever():
    assert wire.FRAMES[:7] == (
        *("q8", "topk", "topk-q8", "topk-shared", "randk", "eden-1", "eden-2"),
    )
    assert set(wire.FRAMES) == {*CODECS, "selection"}


def test_a_model_is_named_by_its_digest():
    spec, other = (
        Spec.of(ArrayRecord({"a": Array(np.zeros(n, np.float32))})) for n in (3, 4)
    )
    assert len(wire.spec_hash(spec)) == 16
    assert wire.spec_hash(spec) != wire.spec_hash(other)


def field(offset, layout, value):
    """Return a function that writes a number into a frame, checksum and all."""

    def write(frame):
        changed = bytearray(frame)
        struct.pack_into(layout, changed, offset, value)
        return bytes(changed)

    return write


# What is done to a good frame -> the code it is refused with.
CHANGES = {
    "nothing left": (lambda f: b"", "frame-size"),
    "half a header": (lambda f: f[:40], "frame-size"),
    "a byte less": (lambda f: f[:-1], "frame-size"),
    "a byte more": (lambda f: f + b"\0", "frame-size"),
    "another length": (field(32, "<Q", 2**63), "frame-size"),
    "no magic": (field(0, "<B", 0), "frame-format"),
    "a later version": (lambda f: sealed(field(4, "<B", 2)(f)), "frame-format"),
    "a flag": (lambda f: sealed(field(6, "<H", 1)(f)), "frame-format"),
    "reserved bytes": (lambda f: sealed(field(40, "<I", 1)(f)), "frame-format"),
    "codec 0": (lambda f: sealed(field(5, "<B", 0)(f)), "frame-codec"),
    "codec 200": (lambda f: sealed(field(5, "<B", 200)(f)), "frame-codec"),
    "another d": (lambda f: sealed(field(8, "<Q", D + 1)(f)), "frame-model"),
    "a giant d": (lambda f: sealed(field(8, "<Q", 2**64 - 1)(f)), "frame-model"),
    "another model": (lambda f: sealed(field(16, "<Q", 5)(f)), "frame-model"),
    "a flipped bit": (lambda f: f[:-1] + bytes([f[-1] ^ 1]), "frame-checksum"),
    "a wrong checksum": (field(44, "<I", 0), "frame-checksum"),
}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("change", CHANGES)
def test_changed_frames_are_refused(name, change):
    how, code = CHANGES[change]
    assert judge(FRAMES[name]) == "ok"
    assert judge(how(FRAMES[name])) == code


@pytest.mark.parametrize("name", NAMES)
def test_codecs_that_were_not_agreed_on_are_refused(name):
    others = [n for n in NAMES if n != name]
    with pytest.raises(ProtocolError, match="frame-codec"):
        wire.unpack(FRAMES[name], d=D, spec_hash=MODEL, allowed=others, shared=SHARED)


@pytest.mark.parametrize("name", ["randk", "topk-shared"])
def test_values_of_a_selection_that_nobody_made_are_refused(name):
    with pytest.raises(ProtocolError, match="selection"):
        wire.unpack(FRAMES[name], d=D, spec_hash=MODEL, allowed=NAMES)


def scale(value):
    return struct.pack("<f", value)


def top(indices, body):
    """Return a payload of top-k: ``indices`` of D, then ``body``."""
    return rice.encode(np.array(indices, np.int64), D) + body


half = np.ones(3, np.float16).tobytes()
codes = bytes([1, 2, 3])
# What a hostile client writes where the frame itself is right -> codec, payload, code.
PAYLOADS = {
    "no payload": ("q8", b"", "payload-size"),
    "too short": ("q8", bytes(D + 3), "payload-size"),
    "NaN scale": ("q8", scale(np.nan) + bytes(D), "scale"),
    "Inf scale": ("q8", scale(np.inf) + bytes(D), "scale"),
    "negative scale": ("q8", scale(-1.0) + bytes(D), "scale"),
    "code -128": ("q8", scale(1.0) + b"\x80" + bytes(D - 1), "value"),
    "no values": ("topk", top([1, 2, 3], b""), "payload-size"),
    "half the values": ("topk", top([1, 2, 3], b"\0\0" + half[:3]), "payload-size"),
    "trailing bytes": ("topk", top([1, 2, 3], b"\0\0" + half + b"x"), "payload-size"),
    "Inf value": ("topk", top([1], b"\0\0\x00\x7c"), "value"),
    "NaN value": ("topk", top([1], b"\0\0\x00\x7e"), "value"),
    "exponent": ("topk", top([1, 2, 3], struct.pack("<h", 129) + half), "scale"),
    "low exponent": ("topk", top([1, 2, 3], struct.pack("<h", -149) + half), "scale"),
    "index beyond d": (
        "topk",
        rice.encode(np.array([D]), D + 1) + b"\0\0" + half[:2],
        "index",
    ),
    "too large": ("topk", bytes(4 * D + 200), "payload-size"),
    "no scales": ("topk-q8", top([1, 2, 3], b"\0"), "payload-size"),
    "too few codes": ("topk-q8", top([1, 2, 3], scale(1.0) + codes[:2]), "zstd"),
    "too many codes": ("topk-q8", top([1, 2, 3], scale(1.0) + codes + b"1"), "zstd"),
    "bad scale": ("topk-q8", top([1, 2, 3], scale(np.nan) + codes), "scale"),
    "low code": ("topk-q8", top([1], scale(1.0) + b"\x80"), "value"),
    "a bomb": (
        "topk-q8",
        top(range(D), scale(1.0) + zstandard.compress(bytes(2**24))[:290]),
        "zstd",
    ),
    "another selection": ("randk", bytes(124), "selection"),
    "a value less": (
        "randk",
        struct.pack("<I", SHARED.digest) + bytes(116),
        "payload-size",
    ),
    "not finite": (
        "topk-shared",
        struct.pack("<I", SHARED.digest) + scale(np.inf) * 30,
        "value",
    ),
    "NaN rotation": (
        "eden-1",
        bytes(8) + scale(np.nan) * 1 + bytes(64),
        "scale",
    ),
    "short rotation": ("eden-2", bytes(8) + scale(1.0) + bytes(64), "payload-size"),
}


@pytest.mark.parametrize("what", PAYLOADS)
def test_hostile_payloads_are_refused_with_their_code(what):
    name, payload, code = PAYLOADS[what]
    assert judge(forged(name, payload)) == code


def test_a_refusal_says_nothing_of_what_was_received():
    secret = b"SECRETSECRETSECRET"
    for name in NAMES:
        with pytest.raises(ProtocolError) as caught:
            wire.unpack(
                forged(name, secret),
                d=D,
                spec_hash=MODEL,
                allowed=NAMES,
                shared=SHARED,
            )
        assert "SECRET" not in str(caught.value)


@pytest.mark.parametrize("name", [*NAMES, "selection"])
@given(data=st.data())
def test_mutated_frames_are_updates_or_refused(name, data):
    """Bytes changed, cut out and put in; half of the frames get a right checksum."""
    frame = bytearray(FRAMES[name])
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, max(len(frame) - 1, 0)))
        patch = data.draw(st.binary(max_size=8))
        frame[at : at + data.draw(st.integers(0, 8))] = patch
    mended = data.draw(st.booleans()) and len(frame) >= wire.HEADER_BYTES
    judge(sealed(bytes(frame)) if mended else bytes(frame))


@pytest.mark.parametrize("name", [*NAMES, "selection"])
@given(payload=st.binary(max_size=600))
def test_any_payload_is_an_update_or_refused(name, payload):
    judge(forged(name, payload))


@given(st.binary(max_size=200))
def test_any_bytes_are_refused(data):
    assert judge(data) != "ok"


def read(name, frame, d):
    if name == "selection":
        wire.unpack_selection(frame, d=d, spec_hash=MODEL, most=d)
    else:
        wire.unpack(frame, d=d, spec_hash=MODEL, allowed=NAMES)


def test_sizes_are_checked_before_memory_is_taken():
    """Frames that declare giants, and bombs, cost less than 40 bytes a value."""
    d = 200_000
    giant = struct.pack("<IIIIB", d, 2**32 - 1, 2**32 - 1, 2**32 - 1, 31)
    bomb = zstandard.compress(bytes(2**28))
    places = rice.encode(np.arange(d), d)
    payloads = [
        ("topk", giant + bytes(100)),
        ("topk-q8", giant),
        ("topk-q8", places + bytes(4 * -(-d // 4096)) + bomb[: d - 1]),
        ("selection", struct.pack("<IIIIB", d, d // 8, len(bomb), 0, 0) + bomb),
        ("q8", bytes(10)),
        ("eden-2", bytes(10)),
    ]
    for name, payload in payloads:
        frame = forged(name, payload, d)
        tracemalloc.start()
        begin = time.monotonic()
        try:
            with pytest.raises(ProtocolError):
                read(name, frame, d)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert peak < 40 * d + 2**16
        assert time.monotonic() - begin < 5


def test_a_wrong_hash_is_the_caller_s_mistake():
    with pytest.raises(ValueError, match="16 bytes"):
        wire.pack(
            make_codec("q8", 1.0),
            heavy(3),
            spec_hash=b"short",
            rng=np.random.default_rng(0),
        )
