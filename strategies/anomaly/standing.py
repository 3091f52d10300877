"""How a node stands: a reputation from its rounds, and who is left out until when.

Source: Jøsang and Ismail, "The Beta Reputation System", 15th Bled Electronic Commerce
Conference (2002): reputation is the mean of a Beta distribution over good and bad
rounds, and the past fades ("forgetting"). Differences: a prior of five good rounds
instead of one good and one bad.

Mathematics
-----------
In every round in which a node is judged, ``s <- 0.9 s + good``, ``b <- 0.9 b + bad``
and the two sum to 1. ``reputation = (5 + s) / (5 + s + b)``; below 0.5 quarantine is
due. So it takes a new node 7 bad rounds in a row, one that was always good 14, and a
node with less than three quarters of bad rounds is not left out in the long run. A
round that is half bad every time leaves a reputation of 2/3.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from .core import HISTORY

__all__ = ["DUE", "Standing", "Standings"]

# A round of n judgements ago counts 0.9 ** n: about the last ten are remembered.
MEMORY = 0.9
# Good rounds that a node is trusted to have had before it was known.
PRIOR = 5.0
# Below this reputation a node is left out.
DUE = 0.5
# Bad rounds that a released node starts with: three more and it is left out again.
PROBATION = 3.5
MOST_NODES = 100_000


@dataclass
class Standing:
    """One node.

    Attributes
    ----------
    good, bad : float
        Faded counts of rounds.
    seen : int
        Last round in which it was judged.
    until : int
        Last round of its quarantine; 0: not in quarantine.
    spared : bool
        Quarantine is due, but not possible; this was told.
    losses : list of float
        Relative losses of its last ten rounds, oldest first.
    """

    good: float = 0.0
    bad: float = 0.0
    seen: int = 0
    until: int = 0
    spared: bool = False
    losses: list[float] = field(default_factory=list)

    @property
    def reputation(self) -> float:
        """Between 0 and 1; 1 for a node that never misbehaved."""
        return (PRIOR + self.good) / (PRIOR + self.good + self.bad)

    def mark(self, bad: float) -> None:
        """Count a round that was bad (1), good (0) or between."""
        self.good = MEMORY * self.good + 1 - bad
        self.bad = MEMORY * self.bad + bad
        self.spared &= self.reputation < DUE

    def remember(self, loss: float) -> None:
        """Add a relative loss to the history."""
        self.losses = [*self.losses, loss][-HISTORY:]


class Standings:
    """All nodes that were ever judged, in bounded memory.

    Parameters
    ----------
    most : int
        Nodes remembered. The ones not seen for longest are forgotten first, those in
        quarantine last.
    """

    def __init__(self, most: int = MOST_NODES) -> None:
        self.most = most
        self._nodes: dict[str, Standing] = {}

    def __getitem__(self, name: str) -> Standing:
        """Return a node's standing, that of a new node if it is not known."""
        return self._nodes.get(name) or Standing()

    def __len__(self) -> int:
        """Return the number of nodes remembered."""
        return len(self._nodes)

    def judged(self, name: str, number: int) -> Standing:
        """Return the standing of a node that is judged in round ``number``."""
        standing = self._nodes.setdefault(name, Standing())
        standing.seen = number
        return standing

    def quarantined(self) -> list[str]:
        """Return the nodes in quarantine, in order."""
        return ordered(n for n, standing in self._nodes.items() if standing.until)

    def due(self, names: Iterable[str]) -> list[str]:
        """Return those of ``names`` whose quarantine is due, the worst first."""
        bad = [n for n in ordered(names) if self[n].reputation < DUE]
        return sorted(bad, key=lambda name: self[name].reputation)

    def release(self, number: int) -> list[str]:
        """End the quarantines that are over in round ``number``; return whose.

        A released node is on probation. What its loss used to be is forgotten: the
        model went on without its data.
        """
        over = [n for n in self.quarantined() if self._nodes[n].until < number]
        for name in over:
            self._nodes[name] = Standing(bad=PROBATION, seen=number)
        return over

    def trim(self) -> None:
        """Forget the nodes that are too many."""
        many = len(self._nodes) - self.most
        if many > 0:
            nodes = self._nodes

            def age(name: str) -> tuple[bool, int]:
                return nodes[name].until > 0, nodes[name].seen

            for name in heapq.nsmallest(many, nodes, key=age):
                del nodes[name]

    def state(self) -> dict[str, Any]:
        """Return everything, as JSON values."""
        return {
            name: [s.good, s.bad, s.seen, s.until, s.spared, list(s.losses)]
            for name, s in self._nodes.items()
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restore what :meth:`state` returned."""
        self._nodes = {
            name: Standing(good, bad, seen, until, spared, list(losses))
            for name, (good, bad, seen, until, spared, losses) in state.items()
        }


def ordered(names: Iterable[str]) -> list[str]:
    """Return names in a fixed order: partitions by their number."""
    return sorted(names, key=lambda name: (len(name), name))
