"""What an entry of the operator table is, and checks that operators share.

An operator is called with a :class:`tff_bridge.ops_tf.Run` and the arguments of its
ATen schema by name, defaults filled in; the arguments that ATen calls ``self`` or
``input`` are called ``x``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

__all__ = ["Operators", "UnsupportedOperator", "only", "pair", "static"]

Operators = dict[str, Callable[..., Any]]


class UnsupportedOperator(ValueError):
    """An operator, or a use of one, that has no translation."""


def only(**values: tuple[Any, Any]) -> None:
    """Raise unless every ``name=(found, supported)`` agrees."""
    for name, (found, supported) in values.items():
        if found != supported:
            raise UnsupportedOperator(f"{name} = {found!r} (only {supported!r})")


def pair(value: Sequence[int]) -> tuple[int, int]:
    """Return two sizes, of which torch may give one."""
    return (value[0], value[-1])


def static(x: Any) -> list[int | None]:
    """Return a tensor's sizes, None for the batch."""
    sizes: list[int | None] = x.shape.as_list()
    return sizes
