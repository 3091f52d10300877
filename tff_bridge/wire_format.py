"""Protobuf's wire format (protobuf.dev, "Encoding"), as far as a ``GraphDef`` needs it.

The walk must not see another message than protobuf's own parser does. Fields that a
message below does not have, and groups, are therefore refused, rather than skipped.

The field numbers are those of tensorflow/core/framework/{graph, node_def, function,
attr_value, tensor, tensor_shape}.proto.
"""

from __future__ import annotations

from collections.abc import Iterator

from truststram.errors import ProtocolError

__all__ = ["Reader", "Span", "wrong"]

MAX_FIELDS = 1 << 23

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5

# Where a message's bytes begin and end.
Span = tuple[int, int]

# Allowed fields of each message: number -> wire type.
MESSAGES: dict[str, dict[int, int]] = {
    "graph": {1: _BYTES, 2: _BYTES, 3: _VARINT, 4: _BYTES},
    "library": {1: _BYTES},
    "function": {1: _BYTES, 3: _BYTES, 4: _BYTES, 5: _BYTES, 6: _BYTES, 7: _BYTES},
    "signature": {
        1: _BYTES,
        2: _BYTES,
        3: _BYTES,
        4: _BYTES,
        5: _BYTES,
        6: _BYTES,
        16: _VARINT,
        17: _VARINT,
        18: _VARINT,
        19: _VARINT,
        20: _BYTES,
        21: _VARINT,
    },
    "node": dict.fromkeys(range(1, 8), _BYTES),
    "entry": {1: _BYTES, 2: _BYTES},
    "attr": {
        1: _BYTES,
        2: _BYTES,
        3: _VARINT,
        4: _FIXED32,
        5: _VARINT,
        6: _VARINT,
        7: _BYTES,
        8: _BYTES,
        9: _BYTES,
        10: _BYTES,
    },
    "list": dict.fromkeys(range(2, 10), _BYTES),
    "func": {1: _BYTES, 2: _BYTES},
    "tensor": {1: _VARINT, 2: _BYTES, 3: _VARINT} | dict.fromkeys(range(4, 18), _BYTES),
    "shape": {2: _BYTES, 3: _VARINT},
    "dim": {1: _VARINT, 2: _BYTES},
}


class Reader:
    """Reads the fields of messages in untrusted bytes.

    Parameters
    ----------
    data : bytes
        Time is linear in its length.
    """

    def __init__(self, data: bytes) -> None:
        self._data, self._fields = memoryview(data), 0

    @property
    def whole(self) -> Span:
        """All of the bytes."""
        return 0, len(self._data)

    def fields(self, span: Span, message: str) -> Iterator[tuple[int, Span]]:
        """Yield (number, value) of each field of a message in ``span``.

        A value is the span of its bytes; of a varint it is (number, 0).

        Raises
        ------
        ProtocolError
            ``graph-format`` for a field that the message does not have or that does not
            end in it, ``graph-size`` for too many fields.
        """
        allowed = MESSAGES[message]
        at, end = span
        while at < end:
            self._fields += 1
            if self._fields > MAX_FIELDS:
                raise wrong("size", f"more than {MAX_FIELDS} fields")
            key, at = self._varint(at, end)
            number, wire = key >> 3, key & 7
            if allowed.get(number) != wire:
                raise wrong("format", f"field {number} of type {wire} in a {message}")
            if wire == _VARINT:
                value, at = self._varint(at, end)
                yield number, (value, 0)
                continue
            size = 4 if wire == _FIXED32 else 8
            if wire == _BYTES:
                size, at = self._varint(at, end)
            if size > end - at:
                raise wrong("format", f"a field of a {message} ends after its message")
            yield number, (at, at + size)
            at += size

    def text(self, span: Span) -> str:
        """Return the ASCII text in ``span``."""
        try:
            return bytes(self._data[span[0] : span[1]]).decode("ascii")
        except UnicodeDecodeError:
            raise wrong("format", "a name is not ASCII") from None

    def _varint(self, at: int, end: int) -> tuple[int, int]:
        """Return an unsigned varint and the place after it."""
        value = 0
        for shift in range(0, 70, 7):
            if at >= end:
                break
            byte = self._data[at]
            at += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                if value >= 1 << 64:
                    break
                return value, at
        raise wrong("format", "a number does not end")


def wrong(code: str, detail: str) -> ProtocolError:
    """Return the error of a graph that is not accepted."""
    return ProtocolError(f"graph-{code}", detail)
