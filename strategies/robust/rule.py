"""What a robust rule is: many updates in, one update and the reasons out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from .kernels import Doubles, Floats, Rows

__all__ = ["AUTO", "AUTO_PERCENT", "Decision", "Rule", "assume", "equal_shares"]

# In place of a number of malicious clients: AUTO_PERCENT of the replies of each round.
AUTO = -1
AUTO_PERCENT = 30


@dataclass(frozen=True)
class Decision:
    """The result of a rule.

    Attributes
    ----------
    update : float32 array of shape (d,)
        The aggregated update.
    shares : float64 array of shape (K,)
        Part of the result that comes from each row; they sum to 1, and 0 means
        rejected. For rules that mix coordinates of all rows (medians) all are 1/K.
    evidence : list of dict
        For each row, the numbers that decided: statistics, thresholds, filters passed.
        Empty for rules that judge no row.
    """

    update: Floats
    shares: Doubles
    evidence: list[dict[str, Any]] = field(default_factory=list)

    @property
    def rejected(self) -> list[int]:
        """Rows without any share."""
        return [int(i) for i in np.flatnonzero(self.shares == 0)]


class Rule(Protocol):
    """A robust aggregation rule.

    Attributes
    ----------
    f : int
        Largest number of malicious rows assumed; may be changed between rounds.
    """

    f: int

    def refusal(self, k: int) -> str | None:
        """Return why the rule cannot be used on ``k`` rows, or None if it can.

        A precondition of the rule's guarantee, such as ``k >= 2 f + 3``.
        """
        ...

    def __call__(self, rows: Rows, names: Sequence[str]) -> Decision:
        """Aggregate one round.

        Parameters
        ----------
        rows : K float32 arrays of shape (d,)
            Updates (client model minus global model), finite, read-only.
        names : K stable names
            For rules that remember clients between rounds.

        Raises
        ------
        ValueError
            If :meth:`refusal` says why, or for no rows.
        """
        ...

    def state(self) -> dict[str, Any]:
        """Return what the next round depends on, as JSON values and arrays."""
        ...

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restore what :meth:`state` returned."""
        ...


def equal_shares(k: int) -> Doubles:
    """Return ``k`` equal shares."""
    return np.full(k, 1.0 / k)


def assume(rule: Rule, k: int, most: int | None = None) -> int:
    """Set ``rule.f`` for ``k`` rows and return it.

    It is :data:`AUTO_PERCENT` of ``k``, rounded down, or ``most`` if that is less,
    lowered until the rule's precondition holds. 0 if that is what is left, also where
    the rule refuses even that.
    """
    rule.f = AUTO_PERCENT * k // 100
    if most is not None:
        rule.f = min(rule.f, most)
    while rule.f > 0 and rule.refusal(k) is not None:
        rule.f -= 1
    return rule.f
