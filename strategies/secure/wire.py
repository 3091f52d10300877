"""The one frame of all secure sums: a signed head, and a body that the head fixes.

Message format
--------------
A message or reply that takes part in a secure sum has a ConfigRecord ``"secure"``; its
entry ``"frame"`` is bytes::

    magic        8  b"TS-SUM-1"
    public key  32  of the node's identity (:mod:`.identity`)
    sizes       12  of header (uint32) and body (uint64), big-endian
    header          JSON, sorted keys, UTF-8: the fields of :class:`Header`
    signature   64  Ed25519 over all of the above
    body            its SHA-256 is in the header

Everything up to the signature, the signature included, is the *head*. It proves by
itself what was sent: who holds the heads of a round can check who took part, with which
model and settings, without the bodies. Nothing of a body is looked at before the
signature, every field of the header and the body's hash are found right.

The header ties a body to one run, round, cohort, model, message, key and set of
parameters: a frame that is replayed, swapped or made under another key is told by the
field that differs.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from flwr.app import ConfigRecord, RecordDict

from truststram.errors import ProtocolError

from .identity import Identity, Member, Roster

__all__ = [
    "FRAME",
    "SECURE",
    "Frame",
    "Header",
    "digest",
    "frame_of",
    "open_frame",
    "open_head",
    "seal",
    "with_frame",
]

SECURE, FRAME = "secure", "frame"
MAGIC = b"TS-SUM-1"
FIXED = struct.Struct(">8s32sIQ")
SIGNATURE = 64
MAX_HEADER = 64 * 2**10
MAX_TEXT = 128


@dataclass(frozen=True)
class Header:
    """What a body belongs to. Texts are at most 128 characters long.

    Attributes
    ----------
    scheme, job : str
        ``secure.scheme`` and the id of the Flower run.
    round : int
    stage : str
        What the body is: an update, a decrypted sum, shares of a key ...
    node : str
        The signer's name in the roster.
    cohort, model, content : str
        Hashes of who was asked in this round, of the model they were given and of
        everything they were given (:mod:`.given`).
    key : str
        Fingerprint of the encryption key; empty for schemes without one.
    parameters : str
        Hash of everything that all clients of the sum must have in common.
    body : str
        SHA-256 of the body, set by :func:`seal`.
    about : mapping
        What the stage needs besides, JSON values.
    """

    scheme: str
    job: str
    round: int
    stage: str
    node: str
    cohort: str
    model: str
    content: str
    key: str
    parameters: str
    body: str = ""
    about: Mapping[str, Any] = field(default_factory=dict)


# A field of the header that is not the expected one -> code and explanation.
MISMATCH = {
    "scheme": "the frame is of another scheme",
    "job": "the frame is of another run",
    "round": "the frame is of another round",
    "stage": "the frame is of another stage",
    "cohort": "the frame is for another set of nodes",
    "model": "the node was given another model",
    "content": "the node was given another configuration, or other records",
    "key": "the frame was made with another key: the key file is of another job",
    "parameters": "the frame was made with other parameters, or for another job",
}


@dataclass(frozen=True)
class Frame:
    """A frame whose signature, header and body hash are right."""

    member: Member
    header: Header
    head: bytes
    body: memoryview


def digest(*parts: bytes | memoryview) -> str:
    """Return the SHA-256 of parts, each with its length, in hexadecimal."""
    sha = hashlib.sha256()
    for part in parts:
        sha.update(len(part).to_bytes(8, "big"))
        sha.update(part)
    return sha.hexdigest()


def seal(identity: Identity, header: Header, body: bytes | memoryview) -> bytes:
    """Return the frame of ``body``, signed.

    Parameters
    ----------
    identity : Identity
    header : Header
        ``node`` and ``body`` are filled in.
    body : bytes, or a memoryview of bytes
    """
    name, sha = identity.member.name, hashlib.sha256(body).hexdigest()
    fields = asdict(replace(header, node=name, body=sha))
    text = json.dumps(fields, sort_keys=True, separators=(",", ":")).encode()
    if len(text) > MAX_HEADER:
        raise ValueError(f"a header of {len(text)} bytes")
    start = FIXED.pack(MAGIC, identity.member.public, len(text), len(body)) + text
    return b"".join((start, identity.sign(start), body))


def open_head(data: bytes, roster: Roster) -> Frame:
    """Return the frame of a head (or of a whole frame) with an empty body.

    Raises
    ------
    ProtocolError
        ``frame``, ``unknown-key``, ``signature`` or ``header``.
    """
    if len(data) < FIXED.size:
        raise ProtocolError("frame", "shorter than any frame")
    magic, public, length, _ = FIXED.unpack_from(data)
    end = FIXED.size + length
    if magic != MAGIC or length > MAX_HEADER or len(data) < end + SIGNATURE:
        raise ProtocolError("frame", "not a frame of this version, or cut off")
    member = roster.verify(public, data[end : end + SIGNATURE], data[:end])
    header = _parsed(data[FIXED.size : end])
    if header.node != member.name:
        raise ProtocolError("header", "the frame names another node than its signer")
    return Frame(member, header, bytes(data[: end + SIGNATURE]), memoryview(b""))


def open_frame(
    data: bytes, roster: Roster, expected: Mapping[str, str | int], most: int
) -> Frame:
    """Return a frame after checking all of it but the body's content.

    Parameters
    ----------
    data : bytes
        From outside.
    roster : Roster
        Whose signatures count.
    expected : mapping
        Field of the header -> its only right value.
    most : int
        Largest body that is accepted, in bytes.

    Raises
    ------
    ProtocolError
        As :func:`open_head`; the name of the field that differs; ``size`` or ``body``.
    """
    frame = open_head(data, roster)
    check_header(frame.header, expected)
    size = FIXED.unpack_from(data)[3]
    body = memoryview(data)[len(frame.head) :]
    if size != len(body) or size > most:
        raise ProtocolError("size", f"a body of {len(body)} bytes, at most {most}")
    if hashlib.sha256(body).hexdigest() != frame.header.body:
        raise ProtocolError("body", "the body is not the one that was signed")
    return replace(frame, body=body)


def check_header(header: Header, expected: Mapping[str, str | int]) -> None:
    """Refuse a header that differs from what is expected.

    Raises
    ------
    ProtocolError
        With the field's name as code.
    """
    for name, value in expected.items():
        if getattr(header, name) != value:
            raise ProtocolError(name, MISMATCH[name])


def with_frame(frame: bytes) -> RecordDict:
    """Return a reply that consists of a frame."""
    return RecordDict({SECURE: ConfigRecord({FRAME: frame})})


def frame_of(content: RecordDict) -> bytes:
    """Return the frame of a reply.

    Raises
    ------
    ProtocolError
        ``frame``, if there is none.
    """
    record = content.get(SECURE)
    frame = record.get(FRAME) if isinstance(record, ConfigRecord) else None
    if not isinstance(frame, bytes):
        raise ProtocolError("frame", "the reply has no frame")
    return frame


def _parsed(text: bytes) -> Header:
    try:
        fields = json.loads(text)
        header = Header(**fields)
    except (ValueError, TypeError, RecursionError):
        raise ProtocolError("header", "not a header") from None
    texts = [v for k, v in fields.items() if k not in ("round", "about")]
    if not all(isinstance(v, str) and len(v) <= MAX_TEXT for v in texts):
        raise ProtocolError("header", "a field that is not a short text")
    if type(header.round) is not int or not isinstance(header.about, dict):
        raise ProtocolError("header", "a field of the wrong type")
    return header
