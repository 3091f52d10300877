"""How a key of a run is declared: its default, what it accepts, and its help."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Rule", "Value", "key"]

Value = bool | int | float | str


@dataclass(frozen=True)
class Rule:
    """Which values a key accepts.

    ``choices`` are available now; ``planned`` ones are refused by name. ``low`` and
    ``high`` bound numbers, inclusively unless ``open_low``/``open_high``.
    """

    low: float = -math.inf
    high: float = math.inf
    open_low: bool = False
    open_high: bool = False
    choices: tuple[str, ...] = ()
    planned: tuple[str, ...] = ()

    def expected(self) -> str:
        """Say in words what is accepted."""
        if self.choices:
            return "one of " + ", ".join(self.choices)
        low = f"{'>' if self.open_low else '>='} {self.low:g}"
        high = f"{'<' if self.open_high else '<='} {self.high:g}"
        bounds = [low] * (self.low > -math.inf) + [high] * (self.high < math.inf)
        return " and ".join(bounds) or "any value"

    def accepts(self, value: Value) -> bool:
        """Return whether ``value`` (of the right type) is accepted."""
        if self.choices:
            return value in self.choices
        if isinstance(value, (bool, str)):
            return True
        above = value > self.low if self.open_low else value >= self.low
        below = value < self.high if self.open_high else value <= self.high
        return above and below


def key(
    default: Value, help_: str, *choices: str, planned: str = "", **rule: Any
) -> Any:
    """Declare one key of a section: default, help, accepted values."""
    checked = Rule(choices=choices, planned=tuple(planned.split()), **rule)
    return field(default=default, metadata={"help": help_, "rule": checked})
