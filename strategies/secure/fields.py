"""Byte strings one after another: the only grammar of messages between clients.

A list of byte strings is written as each one's length (4 bytes, big endian) and its
bytes. Different lists give different bytes, so the same form serves for what is hashed,
signed and used as a key's purpose.
"""

from __future__ import annotations

from collections.abc import Iterable

from truststram.errors import ProtocolError

__all__ = ["join", "split"]

PREFIX = 4


def join(parts: Iterable[bytes]) -> bytes:
    """Return ``parts`` as one byte string that :func:`split` takes apart."""
    return b"".join(len(part).to_bytes(PREFIX, "big") + part for part in parts)


def split(body: bytes, most: int, least: int = 0) -> list[bytes]:
    """Return the byte strings of an untrusted ``body``, from ``least`` to ``most``.

    Raises
    ------
    ProtocolError
        ``fields``: too few, too many, or a length that points beyond the end.
    """
    parts: list[bytes] = []
    place = 0
    while place < len(body):
        end = place + PREFIX
        size = int.from_bytes(body[place:end], "big")
        if len(parts) == most or end + size > len(body):
            raise ProtocolError("fields", f"not a list of at most {most} byte strings")
        parts.append(body[end : end + size])
        place = end + size
    if len(parts) < least:
        raise ProtocolError("fields", f"fewer than {least} byte strings")
    return parts
