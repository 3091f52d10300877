"""Untrusted JSON: each value is checked for type and range before it is used.

Every function returns the value it was given, or raises :class:`ProtocolError`
``plan-manifest`` (``plan-size`` for what is too long).
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any, TypeVar

from truststram.errors import ProtocolError

__all__ = [
    "MAX_ENTRIES",
    "a_list",
    "a_mapping",
    "a_text",
    "an_integer",
    "an_object",
    "canonical_json",
    "parsed",
    "typed",
    "wrong",
]

MAX_ENTRIES = 20_000
MAX_TEXT = 2000
Kind = TypeVar("Kind")


def parsed(content: bytes) -> Any:
    """Return the values in a JSON text."""
    try:
        return json.loads(content, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        raise wrong("it is not JSON") from None


def an_object(
    raw: Any, keys: Sequence[str], optional: Sequence[str] = ()
) -> dict[str, Any]:
    """Return an object that has all of ``keys`` and none but the optional ones."""
    found = a_mapping(raw)
    if not set(keys) <= set(found) <= {*keys, *optional}:
        raise wrong(f"expected the keys {', '.join(keys)}")
    return found


def a_mapping(raw: Any) -> dict[str, Any]:
    """Return an object with any keys."""
    return typed(raw, dict)


def a_list(raw: Any) -> list[Any]:
    """Return a list of bounded length."""
    found = typed(raw, list)
    if len(found) > MAX_ENTRIES:
        raise ProtocolError("plan-size", f"a list of more than {MAX_ENTRIES} entries")
    return found


def a_text(raw: Any, pattern: re.Pattern[str] | None = None) -> str:
    """Return a text without characters that could change what a terminal shows."""
    found = typed(raw, str)
    if len(found) > MAX_TEXT or not found.isprintable():
        raise wrong("a name or text is too long or not printable")
    if pattern and not pattern.fullmatch(found):
        raise wrong("a name or text is not as expected")
    return found


def an_integer(raw: Any, low: int, high: int) -> int:
    """Return an integer in [low, high]."""
    found = typed(raw, int)
    if not low <= found <= high:
        raise wrong(f"an integer outside [{low}, {high}]")
    return found


def typed(raw: Any, kind: type[Kind]) -> Kind:
    """Return a value of exactly one type."""
    if type(raw) is not kind:  # a bool is no int here
        raise wrong(f"expected {kind.__name__}, found {type(raw).__name__}")
    return raw


def _refuse_constant(name: str) -> Any:
    raise ValueError(name)


def wrong(detail: str) -> ProtocolError:
    """Return the error of a manifest that is not as expected."""
    return ProtocolError("plan-manifest", detail)


def canonical_json(value: object) -> bytes:
    """Return the one JSON text of a value, for hashes."""
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()
