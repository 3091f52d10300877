"""When misbehaviour is widespread: the alert of a run, and what tightening does to it.

No source: a threshold on a fraction, and a response that grows while it lasts.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..update import Model, read_delta, with_delta
from .evidence import Observed

__all__ = ["RESPONSES", "Alert", "stop_reason", "tighten"]

RESPONSES = ("log", "stop", "tighten")
# One round may be chance: a run is stopped after two in a row.
PATIENCE = 2
MOST_LEVEL = 3


@dataclass
class Alert:
    """The state of a run.

    Attributes
    ----------
    limit : float
        Fraction of nodes above which a round is alerted.
    streak : int
        Alerted rounds in a row until now.
    level : int
        How much updates are shortened, 0 to 3: one more for every alerted round, one
        less for every other.
    """

    limit: float
    streak: int = 0
    level: int = 0

    def turn(self, fraction: float) -> str:
        """Take in a round; return the kind of the event that it is worth, or ``""``."""
        before, on = self.streak, fraction > self.limit
        self.streak = before + 1 if on else 0
        self.level = min(MOST_LEVEL, self.level + 1) if on else max(0, self.level - 1)
        if on != (before > 0):
            return "alert" if on else "alert-ended"
        return ""

    @property
    def stops(self) -> bool:
        """Whether it has lasted long enough to stop a run."""
        return self.streak >= PATIENCE

    def state(self) -> dict[str, Any]:
        """Return everything, as JSON values."""
        return {"streak": self.streak, "level": self.level}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restore what :meth:`state` returned."""
        self.streak, self.level = int(state["streak"]), int(state["level"])


def stop_reason(number: int, bad: int, of: int, limit: float) -> str:
    """Return what a stopped run says."""
    return (
        f"{bad} of {of} nodes misbehaved or were in quarantine in round {number} "
        f"({bad / of:.0%}, anomaly.alert-fraction is {limit:g}), the second alerted "
        "round in a row. The model of the last recorded round is kept. See the "
        "incidents in events.jsonl; disconnect these nodes and resume, or start again "
        "with anomaly.response = tighten or log."
    )


def tighten(seen: Collection[Observed], level: int, model: Model) -> None:
    """Scale updates down to ``0.5 ** level`` of the median norm, where they are longer.

    Direction and metrics stay; shorter updates and unreadable ones are not touched. An
    attacker's update counts no more than an honest one of that length, and the median
    is not an attacker's as long as fewer than half of the nodes are.
    """
    norms = [one.norm for one in seen if math.isfinite(one.norm)]
    if not level or not norms:
        return
    bound = float(np.median(norms)) * 0.5**level
    for one in _longer(seen, bound):
        delta = read_delta(one.reply.content, model)
        shorter = (delta * (bound / one.norm)).astype(np.float32)
        one.reply.content = with_delta(one.reply.content, shorter)


def _longer(seen: Iterable[Observed], bound: float) -> list[Observed]:
    return [one for one in seen if bound < one.norm < math.inf]
