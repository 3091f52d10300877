"""What server and nodes say to each other about compression, beside the frames.

Message format
--------------
To a node (train and evaluate), a ConfigRecord ``"compression"``: :class:`Ask`. With a
downlink codec the model's ArrayRecord is there, or an ArrayRecord ``"steps"`` whose
frames (``"0"``, ``"1"``, ...) lead from the model that the node has to this one.

From a node, a ConfigRecord ``"compression"``: :class:`Answer`, and instead of the
update an ArrayRecord ``"frame"`` with one array of bytes, ``"frame"``. Arrays of bytes
have a type of their own (stype), so that nobody takes them for values; and they are
arrays because Flower sends large arrays in pieces.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

from truststram.errors import ProtocolError

__all__ = [
    "FRAME",
    "RECORD",
    "STEPS",
    "Answer",
    "Ask",
    "frame_of",
    "framed",
    "is_framed",
    "wrapped",
]

RECORD, FRAME, STEPS = "compression", "frame", "steps"
STYPE = "truststram.frame"
HASH_BYTES = 16
FLAGS = ("missing", "differs", "fresh", "damaged")


@dataclass(frozen=True)
class Ask:
    """What the server asks of a node.

    Attributes
    ----------
    job : str
        32 hexadecimal digits drawn by the server for this run: what a node remembers
        belongs to it.
    round : int
    codec : str
        Of the reply; ``"none"`` on evaluate messages.
    ratio : float
    seed : int
        Of stochastic rounding and rotations; public.
    feedback : bool
        Whether a biased codec's error is remembered.
    reduced : bool
        The reply is the values at the selection, shape (k,), as an update: for a layer
        outside that sums it without seeing it.
    selection : bytes
        Public coordinates, encoded; empty: the codec needs none.
    model : bytes
        Hash of the model of this message; empty: no downlink codec.
    stepwise : bool
        The model is not in the message, but steps that lead to it.
    versions : tuple of bytes
        Hashes of the models that these steps start from, oldest first.
    key : str
        Name of the model's ArrayRecord.
    """

    job: str
    round: int
    codec: str = "none"
    ratio: float = 1.0
    seed: int = 0
    feedback: bool = False
    reduced: bool = False
    selection: bytes = b""
    model: bytes = b""
    stepwise: bool = False
    versions: tuple[bytes, ...] = ()
    key: str = "arrays"

    def record(self) -> ConfigRecord:
        """Return the ConfigRecord; empty values, which Flower refuses, are left out."""
        values: dict[str, Any] = {**vars(self), "versions": list(self.versions)}
        return ConfigRecord({k: v for k, v in values.items() if v not in (b"", [])})

    @classmethod
    def of(cls, content: RecordDict) -> Ask | None:
        """Read a server's message; None if it asks for nothing.

        Raises
        ------
        ProtocolError
            ``ask``: a value is missing or of another type.
        """
        record = content.get(RECORD)
        if not isinstance(record, ConfigRecord):
            return None
        values: dict[str, Any] = dict(record)
        versions = values.pop("versions", [])
        try:
            ask = cls(**values, versions=tuple(versions))
        except TypeError:
            raise ProtocolError("ask", "unknown or missing values") from None
        default = cls("", 0)
        for name, value in vars(ask).items():
            if type(value) is not type(getattr(default, name)):
                raise ProtocolError("ask", f"{name} has another type")
        hashes = (*ask.versions, *([ask.model] if ask.model else []))
        if any(type(h) is not bytes or len(h) != HASH_BYTES for h in hashes):
            raise ProtocolError("ask", f"a hash has {HASH_BYTES} bytes")
        return ask


@dataclass(frozen=True)
class Answer:
    """What a node says beside its reply; the server believes nothing of it.

    Attributes
    ----------
    held : bytes
        Hash of the model that the node has now; empty: it keeps none.
    missing : bool
        The node cannot make the model from the steps and did nothing.
    differs : bool
        Because they led it to another model; else it had none that they start from.
    fresh : bool
        It had nothing left of earlier rounds to add to its update.
    damaged : bool
        What it had was damaged.
    seconds : float
        Time from the message's arrival in the app to the reply.
    error : float
        Part of the squared length of what was to be sent that the codec lost.
    """

    held: bytes = b""
    missing: bool = False
    differs: bool = False
    fresh: bool = False
    damaged: bool = False
    seconds: float = math.nan
    error: float = math.nan

    def record(self) -> ConfigRecord:
        """Return the ConfigRecord; only what differs from the defaults."""
        given: dict[str, Any] = {
            name: value
            for name, value in vars(self).items()
            if value and not (isinstance(value, float) and math.isnan(value))
        }
        return ConfigRecord(given)

    @classmethod
    def of(cls, content: RecordDict) -> Answer | None:
        """Read a reply; None if the node knows nothing of compression.

        Whatever is not of the right type has its default.
        """
        record = content.get(RECORD)
        if not isinstance(record, ConfigRecord):
            return None
        held = record.get("held")
        return cls(
            held if isinstance(held, bytes) and len(held) == HASH_BYTES else b"",
            *(record.get(name) is True for name in FLAGS),
            *(_number(record.get(name)) for name in ("seconds", "error")),
        )


def _number(value: Any) -> float:
    good = isinstance(value, float) and math.isfinite(value) and value >= 0
    return value if good else math.nan


def wrapped(frame: bytes) -> Array:
    """Return a frame as an array of bytes."""
    return Array("uint8", (len(frame),), STYPE, frame)


def framed(content: RecordDict, frame: bytes) -> RecordDict:
    """Return a reply with ``frame`` instead of its arrays; other records stay."""
    record = RecordDict({FRAME: ArrayRecord({FRAME: wrapped(frame)})})
    for name, other in content.items():
        if not isinstance(other, ArrayRecord):
            record[name] = other
    return record


def is_framed(content: RecordDict) -> bool:
    """Return whether a reply has a frame instead of an update."""
    return isinstance(content.get(FRAME), ArrayRecord)


def frame_of(record: ArrayRecord, name: str = FRAME) -> bytes:
    """Return the bytes of a frame.

    Raises
    ------
    ProtocolError
        ``frame-record``: no such array, or one of another type.
    """
    array = record.get(name)
    if array is None or array.stype != STYPE:
        raise ProtocolError("frame-record", "no frame of this format")
    return array.data
