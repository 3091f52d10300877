"""Frames: whatever was changed, swapped or replayed is told, before it is read."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from flwr.app import ConfigRecord, RecordDict
from hypothesis import given
from hypothesis import strategies as st

from strategies.secure.identity import Identity, Roster
from strategies.secure.wire import (
    MISMATCH,
    Header,
    check_header,
    frame_of,
    open_frame,
    open_head,
    seal,
    with_frame,
)
from truststram.errors import ProtocolError

A, B = (Identity(name, "client", bytes([i]) * 32) for i, name in ((1, "a"), (2, "b")))
ROSTER = Roster([A.member, B.member])
HEADER = Header(
    *("bfv", "7", 3, "update", "", "c", "m", "g", "k", "p"), about={"values": 4}
)
EXPECTED = {
    "scheme": "bfv",
    "job": "7",
    "round": 3,
    "stage": "update",
    "cohort": "c",
    "model": "m",
    "key": "k",
    "parameters": "p",
}
BODY = bytes(range(256)) * 40


def refused(data: bytes) -> str:
    with pytest.raises(ProtocolError) as error:
        open_frame(data, ROSTER, EXPECTED, len(BODY))
    return error.value.code


def test_a_frame_arrives_as_it_was_sealed():
    frame = open_frame(seal(A, HEADER, BODY), ROSTER, EXPECTED, len(BODY))
    assert (frame.member, bytes(frame.body)) == (A.member, BODY)
    assert frame.header == replace(HEADER, node="a", body=frame.header.body)
    assert open_head(frame.head, ROSTER).header == frame.header


def test_ten_thousand_random_bit_flips_are_all_rejected():
    data = bytearray(seal(A, HEADER, BODY))
    rng = np.random.default_rng(6)
    heads = rng.integers(0, 8 * (len(data) - len(BODY)), 5_000)
    anywhere = rng.integers(0, 8 * len(data), 5_000)
    for bit in np.concatenate([heads, anywhere]).tolist():
        data[bit // 8] ^= 1 << bit % 8
        refused(bytes(data))
        data[bit // 8] ^= 1 << bit % 8
    open_frame(bytes(data), ROSTER, EXPECTED, len(BODY))


@pytest.mark.parametrize("field", EXPECTED)
def test_every_field_of_the_header_counts(field):
    other = 4 if field == "round" else "other"
    data = seal(A, replace(HEADER, **{field: other}), BODY)
    assert refused(data) == field
    assert MISMATCH[field]


@given(st.binary(max_size=300))
def test_garbage_is_no_frame(data):
    assert refused(data) == "frame"
    assert refused(seal(A, HEADER, BODY)[:8] + data) in ("frame", "unknown-key")


def test_truncated_extended_and_too_long_frames_are_rejected():
    data = seal(A, HEADER, BODY)
    for cut in range(0, len(data), 97):
        refused(data[:cut])
    assert refused(data + b"x") == "size"
    assert refused(seal(A, HEADER, BODY + b"x")) == "size"


def test_bodies_cannot_be_swapped_between_nodes_nor_heads_reused():
    a, b = seal(A, HEADER, BODY), seal(B, HEADER, BODY[::-1])
    assert refused(a[: -len(BODY)] + BODY[::-1]) == "body"
    assert refused(b[: -len(BODY)] + BODY) == "body"


def test_unknown_signers_and_false_names_are_rejected():
    c = Identity("c", "client", bytes(32))
    assert refused(seal(c, HEADER, BODY)) == "unknown-key"
    liar = Identity("b", "client", bytes([1]) * 32)  # a's key, b's name
    assert refused(seal(liar, HEADER, BODY)) == "header"


@pytest.mark.parametrize(
    "text",
    [b"{}", b"[]", b"\xff", b"[" * 5_000, b'{"round": 3}', b"null", b"1" * 5_000],
)
def test_a_signed_header_may_be_nonsense(text):
    from strategies.secure.wire import FIXED, MAGIC

    start = FIXED.pack(MAGIC, A.member.public, len(text), 0) + text
    with pytest.raises(ProtocolError, match="header"):
        open_head(start + A.sign(start), ROSTER)


@pytest.mark.parametrize(
    "changes",
    [{"round": 3.0}, {"round": True}, {"job": 7}, {"job": "7" * 129}, {"about": []}],
)
def test_fields_have_types_and_bounds(changes):
    with pytest.raises(ProtocolError, match="header"):
        open_head(seal(A, replace(HEADER, **changes), b""), ROSTER)


def test_a_header_may_not_grow_without_bound():
    with pytest.raises(ValueError, match="header"):
        seal(A, replace(HEADER, about={"x": "y" * 70_000}), b"")


@pytest.mark.parametrize(
    "content",
    [
        RecordDict(),
        RecordDict({"secure": ConfigRecord()}),
        RecordDict({"secure": ConfigRecord({"frame": "text"})}),
    ],
)
def test_a_reply_without_a_frame_is_told(content):
    assert frame_of(with_frame(b"x")) == b"x"
    with pytest.raises(ProtocolError, match="frame"):
        frame_of(content)


def test_what_is_not_expected_is_not_compared():
    check_header(HEADER, {})
