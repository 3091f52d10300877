"""What a node remembers from one round to the next: entries that are whole or absent.

Where they are kept: :mod:`.stores`.

Entry format (a file, or two values of a ConfigRecord)::

    head   magic (8 bytes) | uint32 n | SHA-256 of what follows | description (n bytes)
    body   the parts, one after the other

The description is JSON: what the owner of the entry says about it, and size and SHA-256
of every part. Nothing is unpickled; sizes are compared with what is there before
anything is read, so that a damaged or hostile file costs no more than its own length.

Guarantees
----------
A damaged entry counts as absent, and :attr:`Store.damaged` names it.
"""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from truststram.errors import DataError, ProtocolError

__all__ = ["FIXED", "MALFORMED", "Entry", "Part", "Store", "description_size"]

MAGIC = b"TSNODE1\0"
FIXED = len(MAGIC) + 4 + 32
MAX_DESCRIPTION = 8 * 2**20
# What parsing a description of another structure raises.
MALFORMED = (KeyError, TypeError, ValueError, RecursionError)

Part = bytes | memoryview


@dataclass(frozen=True)
class Entry:
    """What was remembered: a description (JSON values) and its parts."""

    about: dict[str, Any]
    parts: tuple[memoryview, ...]


class Store(ABC):
    """Named entries of one node and one job.

    Attributes
    ----------
    damaged : list of str
        Names of entries that were there and not whole.
    """

    def __init__(self) -> None:
        self.damaged: list[str] = []

    @property
    def others(self) -> int:
        """How many other jobs this node remembers, where that can be seen."""
        return 0

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Let nobody else change entries in the block, in whatever process they are."""
        yield  # whoever has a context.state is alone with it

    def about(self, name: str) -> dict[str, Any] | None:
        """Return an entry's description without reading its parts; None if absent."""
        found = self._read(name, whole=False)
        return None if found is None else found.about

    def load(self, name: str) -> Entry | None:
        """Return an entry; None if it is absent or damaged."""
        return self._read(name, whole=True)

    def save(self, name: str, about: dict[str, Any], parts: Sequence[Part]) -> None:
        """Replace an entry.

        Raises
        ------
        DataError
            If it cannot be made durable; what is there then, see
            :func:`truststram.durable.replace`.
        """
        sizes = [[len(part), hashlib.sha256(part).hexdigest()] for part in parts]
        text = json.dumps({"about": about, "parts": sizes}).encode()
        if len(text) > MAX_DESCRIPTION:
            raise DataError(f"The description of {name} has {len(text)} bytes.")
        size = len(text).to_bytes(4, "little")
        head = b"".join((MAGIC, size, hashlib.sha256(text).digest(), text))
        self._write(name, head, parts)

    @abstractmethod
    def drop(self, name: str) -> None:
        """Forget an entry, which may be absent."""

    @abstractmethod
    def _head(self, name: str) -> tuple[bytes, int] | None:
        """Return the head and the length of the body; None if absent."""

    @abstractmethod
    def _body(self, name: str, start: int, size: int) -> bytes:
        """Return ``size`` bytes of an entry from ``start`` on."""

    @abstractmethod
    def _write(self, name: str, head: bytes, parts: Sequence[Part]) -> None:
        """Replace an entry at once."""

    def _read(self, name: str, whole: bool) -> Entry | None:
        try:
            found = self._head(name)
            if found is None:
                return None
            head, left = found
            about, sizes = _described(head)
            if sum(size for size, _ in sizes) != left:
                raise ProtocolError("state-size", "another length than described")
            parts = _cut(self._body(name, len(head), left), sizes) if whole else ()
        except (ProtocolError, OSError, *MALFORMED):
            self.damaged.append(name)
            return None
        return Entry(about, parts)


def description_size(start: bytes) -> int:
    """Return the length of the description, from the first FIXED bytes of a head.

    Raises
    ------
    ProtocolError
        ``state-magic`` or ``state-size``.
    """
    if len(start) != FIXED or not start.startswith(MAGIC):
        raise ProtocolError("state-magic", "not an entry of this version")
    size = int.from_bytes(start[len(MAGIC) : len(MAGIC) + 4], "little")
    if size > MAX_DESCRIPTION:
        raise ProtocolError("state-size", f"{size} bytes of description")
    return size


def _described(head: bytes) -> tuple[dict[str, Any], list[tuple[int, str]]]:
    """Return the description and the (size, SHA-256) of every part."""
    text = head[FIXED:]
    if len(text) != description_size(head[:FIXED]):
        raise ProtocolError("state-size", "the description is cut off")
    if hashlib.sha256(text).digest() != head[FIXED - 32 : FIXED]:
        raise ProtocolError("state-hash", "the description is damaged")
    content = json.loads(text)
    return content["about"], [(int(n), str(digest)) for n, digest in content["parts"]]


def _cut(body: bytes, sizes: list[tuple[int, str]]) -> tuple[memoryview, ...]:
    parts, start, whole = [], 0, memoryview(body)
    for size, digest in sizes:
        part = whole[start : start + size]
        if len(part) != size or hashlib.sha256(part).hexdigest() != digest:
            raise ProtocolError("state-hash", "a part is damaged")
        parts.append(part)
        start += size
    return tuple(parts)
