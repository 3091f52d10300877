"""What the server remembers while a model stays: which sums of it may have been told.

A round under homomorphic encryption can fail after its sum was decrypted: one of two
answers is late, or they differ. The model is unchanged then, and a next sum over almost
the same nodes would show by subtraction what those gave that are in one of them only. A
server that follows the protocol therefore asks for sums over equal sets of nodes, or
over sets that have nobody in common, until the model changes. The memory is part of the
run's record, so a resumed run has it too. A sum that all who were asked for it refused
was not told, and other nodes may be asked.

A server that dies between an answer and the record has forgotten that one sum, and the
nodes that hold the key have not (:mod:`.journal`): they are the ones that it asks
again, and of the first model after each start one of them is believed that says so.
That node could lie. It can hold up this one model, if it is one of the two that are
asked; later ones it cannot.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Told"]


@dataclass
class Told:
    """The sums of the current model.

    Attributes
    ----------
    model : str
        Its hash.
    sets : list of dict
        Of each sum that may have been told, who was in it: name in the roster -> the
        server's name of the node, by which it can be asked again.
    turn : int
        Rounds that failed for this model, each of which lets others decrypt the next.
    complete : bool
        No sum of this model can be missing: the server was there when it began.
    """

    model: str = ""
    sets: list[dict[str, str]] = field(default_factory=list)
    turn: int = 0
    complete: bool = False
    _begun: bool = False

    def begin(self, model: str) -> None:
        """Forget what was about another model."""
        if model != self.model:
            self.model, self.sets, self.turn = model, [], 0
            self.complete = self._begun
        self._begun = True

    def allows(self, members: Collection[str]) -> bool:
        """Return whether no node could be told by subtraction from this sum."""
        new = set(members)
        return all(new == set(one) or new.isdisjoint(one) for one in self.sets)

    def add(self, members: Mapping[str, str]) -> None:
        """Remember a sum."""
        if all(set(members) != set(one) for one in self.sets):
            self.sets.append(dict(members))

    def cohort(self, asked: Collection[str], connected: Collection[str]) -> list[str]:
        """Return whom to ask in the place of ``asked``; all are the server's names.

        The set of the last sum again, if all of it is connected; otherwise who was in
        no sum yet.
        """
        if not self.sets:
            return list(asked)
        if set(self.sets[-1].values()) <= set(connected):
            return sorted(self.sets[-1].values())
        known = {name for one in self.sets for name in one.values()}
        return [name for name in asked if name not in known]

    def state(self) -> dict[str, Any]:
        """Return this as JSON values, for a resumed run."""
        return {"model": self.model, "sets": self.sets, "turn": self.turn}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Told:
        """Return what :meth:`state` was made of."""
        sets = [{str(k): str(v) for k, v in one.items()} for one in state["sets"]]
        return cls(str(state["model"]), sets, int(state["turn"]))
