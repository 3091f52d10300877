"""Who takes part: nodes in quarantine get no messages, and how many can be left out.

No source: counting.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable

from flwr.app import Message
from flwr.serverapp.strategy import Strategy

from ..base import StrategyLayer, walk
from .standing import Standings

__all__ = ["Gate"]


class Gate:
    """Filters the messages of each phase and remembers who was asked.

    Parameters
    ----------
    standings : Standings
        Who is in quarantine.

    Attributes
    ----------
    asked : dict
        Phase (``train``, ``evaluate``) -> ids of the nodes that got a message.
    connected : int
        Nodes connected in this round.
    """

    def __init__(self, standings: Standings) -> None:
        self._standings = standings
        self.asked: dict[str, set[int]] = {"train": set(), "evaluate": set()}
        self.connected = 0
        self._withheld: dict[str, set[str]] = {}  # chosen, but in quarantine

    def allowed(
        self, phase: str, messages: Iterable[Message], name_of: Callable[[int], str]
    ) -> list[Message]:
        """Return the messages to nodes that are not in quarantine."""
        out = set(self._standings.quarantined())
        named = [(name_of(m.metadata.dst_node_id), m) for m in messages]
        allowed = [message for name, message in named if name not in out]
        self.asked[phase] = {m.metadata.dst_node_id for m in allowed}
        self._withheld[phase] = {name for name, _ in named if name in out}
        return allowed

    def admits(self, phase: str, reply: Message, name: str) -> bool:
        """Return whether a reply is of a node that is not in quarantine.

        A node that was put into quarantine after it was asked may still answer.
        """
        if reply.metadata.src_node_id in self.asked[phase]:
            return True
        return not self._standings[name].until

    def objection(
        self, name: str, seen: Collection[str], usable: Collection[str], inner: Strategy
    ) -> str | None:
        """Return why a node cannot be left out of the next rounds, or None.

        Parameters
        ----------
        name : str
        seen, usable : collections of str
            Nodes whose training reply came in this round, and those of them whose reply
            the layers inside can use.
        inner : Strategy
            Its layers say how many replies they need.
        """
        out = set(self._standings.quarantined())
        if 2 * (len(out) + 1) >= self.connected:
            return f"{len(out) + 1} of {self.connected} nodes would be left out"
        # Nodes in quarantine that were not chosen this time may be chosen the next time
        # in the place of usable ones.
        elsewhere = out - self._withheld.get("train", set()) - set(seen)
        left = len(set(usable) - out - {name}) - len(elsewhere)
        if left < 1:
            return "no usable reply would be left"
        layers = (x for x in walk(inner) if isinstance(x, StrategyLayer))
        reasons = (layer.refusal(left) for layer in layers)
        return next((reason for reason in reasons if reason), None)
