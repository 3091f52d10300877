"""How a node's memory of sums (:mod:`.journal`) is written: JSON, checked when read.

For each key an object of parts, each of which may be missing:

``trained``  list of str: what the node trained for, the latest last
``masked``,
``opened``   model -> list of str: hashes of sets of nodes
``recent``   ``masked`` or ``opened`` -> model -> list of sets of nodes, by name
``groups``   run -> list of sets of nodes that were together; null if forgotten
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

__all__ = ["FORGOTTEN", "PARTS", "Memory", "parsed"]

Memory = dict[str, Any]
FORGOTTEN = None  # the groups of a run


def parsed(data: bytes) -> dict[str, Memory] | None:
    """Return the memories by key, or None if ``data`` are damaged."""
    try:
        found = json.loads(data)
    except (ValueError, RecursionError):  # no text, no JSON, or too deep
        return None
    return found if _is_table(found, _is_memory) else None


def _is_table(found: object, is_value: Callable[[Any], bool]) -> bool:
    """Return whether this is an object of such values."""
    return isinstance(found, dict) and all(map(is_value, found.values()))


def _is_names(found: object) -> bool:
    return isinstance(found, list) and all(isinstance(name, str) for name in found)


def _is_sets(found: object) -> bool:
    return isinstance(found, list) and all(map(_is_names, found))


def _is_known(found: object) -> bool:
    return _is_table(found, _is_names)


def _is_recent(found: object) -> bool:
    return _is_table(found, lambda models: _is_table(models, _is_sets))


def _is_groups(found: object) -> bool:
    return _is_table(found, lambda run: run is FORGOTTEN or _is_sets(run))


# Of each part: how it begins, and whether something can be one.
PARTS: dict[str, tuple[Callable[[], Any], Callable[[object], bool]]] = {
    "trained": (list, _is_names),
    "masked": (dict, _is_known),
    "opened": (dict, _is_known),
    "recent": (dict, _is_recent),
    "groups": (dict, _is_groups),
}


def _is_memory(found: object) -> bool:
    """Return whether this can be the memory of one key."""
    if not isinstance(found, dict):
        return False
    return all(is_one(found[x]) for x, (_, is_one) in PARTS.items() if x in found)
