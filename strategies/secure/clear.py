"""Values that travel in clear beside a frame: what ``secure.layers`` leaves out."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from flwr.app import ArrayRecord, RecordDict

from truststram.errors import ProtocolError
from truststram.records import Float32, view

from .selection import Selection
from .wire import Frame

__all__ = ["CLEAR", "VALUES", "clear_mean"]

CLEAR, VALUES = "clear", "values"


def clear_mean(
    replies: Sequence[tuple[RecordDict, Frame]], selection: Selection, clip: float
) -> Float32:
    """Return the mean of the values in clear, each within ``+-clip``, shape (m,).

    Raises
    ------
    ProtocolError
        For values that are missing, not finite, of another length or not those whose
        hash was signed.
    """
    total = np.zeros(selection.clear_size)
    for content, frame in replies:
        total += np.clip(_values(content, frame, selection.clear_size), -clip, clip)
    return (total / len(replies)).astype(np.float32)


def _values(content: RecordDict, frame: Frame, size: int) -> Float32:
    if size == 0:
        return np.empty(0, np.float32)
    record = content.get(CLEAR)
    if not isinstance(record, ArrayRecord) or list(record) != [VALUES]:
        raise ProtocolError("clear", "the values in clear are missing")
    values = view(record[VALUES], "float32", (size,))
    signed = frame.header.about.get(CLEAR)
    if hashlib.sha256(np.ascontiguousarray(values).tobytes()).hexdigest() != signed:
        raise ProtocolError("clear", "not the values in clear that were signed")
    if not np.isfinite(values).all():
        raise ProtocolError("not-finite", "values in clear that are not finite")
    return values  # type: ignore[return-value]  # view() checked float32
