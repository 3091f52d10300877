"""One rule against one attack: what happens to the updates of a round."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from benchmarks._robust_data import CLIENTS
from benchmarks._robust_grid import ATTACKERS, CHOICES
from strategies.adversary.core import ATTACKS, Memory
from strategies.anomaly.standing import Standings
from strategies.robust.rule import Rule
from strategies.secure.groups import Groups
from truststram.records import Float32
from truststram.rng import derive

__all__ = ["Run"]

# From this round on (counted from 0) every filter of every rule has a vote.
COUNTED = 3


@dataclass
class Run:
    """A rule against an attack, in the middle of its training."""

    name: str
    attack: str
    rule: Rule
    groups: Groups | None = None
    memory: Memory = field(default_factory=dict)
    broken: bool = False  # the model is no longer finite
    counts: np.ndarray = field(default_factory=lambda: np.zeros((2, 2)))
    standings: Standings = field(default_factory=Standings)
    quarantined: set[int] = field(default_factory=set)  # ever

    def cohort(self, number: int, clients: Sequence[int]) -> list[int]:
        """Return those of the clients that are not in quarantine."""
        self.standings.release(number)
        out = self.standings.quarantined()
        return [i for i in clients if str(i) not in out]

    def step(
        self, rows: Float32, names: list[int], truth: list[int], flat: Float32, key: int
    ) -> Float32:
        """Attack, aggregate and return the update.

        Parameters
        ----------
        rows : array of shape (K, d)
            Changed.
        names, truth : lists of int
            The K clients, and all malicious ones.
        flat : array of shape (d,)
        key : int
            Seed.
        """
        bad = [i for i, name in enumerate(names) if name in truth]
        honest = [i for i, name in enumerate(names) if name not in truth]
        nothing = np.zeros_like(flat)
        number = self.memory["round"]
        self.memory["names"] = [str(names[i]) for i in honest]
        if not np.isfinite(rows[honest]).all():
            self.broken = True
            return nothing
        if bad:
            self._attack(rows, honest, bad, names, flat, key)
        if not np.isfinite(rows).all():
            self.broken = True
            return nothing
        if self.groups is not None:
            rows, honest, bad = self._means(rows, names, bad)
            names = list(range(len(rows)))
        if self.rule.refusal(len(rows)):
            return nothing
        shares, update = self._decide(self.rule, rows, names, flat)
        for name, share in zip(names, shares, strict=True):
            self.standings.judged(str(name), number).mark(float(share == 0))
        if number > COUNTED:
            for kind, members in enumerate((honest, bad)):
                self.counts[kind] += (shares[members] == 0).sum(), len(members)
        return update if shares.any() else nothing

    def _means(
        self, rows: Float32, names: list[int], bad: list[int]
    ) -> tuple[Float32, list[int], list[int]]:
        """Return the groups' means, the groups of honest clients only, and the others.

        What a secure sum inside each group shows.
        """
        assert self.groups is not None
        place = {str(name): row for row, name in enumerate(names)}
        members = [[place[n] for n in group] for group in self.groups.members]
        means = np.stack([rows[group].mean(axis=0) for group in members])
        spoiled = [i for i, group in enumerate(members) if set(group) & set(bad)]
        return means, [i for i in range(len(members)) if i not in spoiled], spoiled

    def leave_out(self, number: int, rounds: int) -> None:
        """Put the repeat offenders into quarantine, fewer than half of the clients."""
        for name in self.standings.due([str(i) for i in range(CLIENTS)]):
            if 2 * (len(self.standings.quarantined()) + 1) < CLIENTS:
                self.standings.judged(name, number).until = number + rounds
                self.quarantined.add(int(name))

    def _decide(
        self, rule: Rule, rows: Float32, names: list[int], flat: Float32
    ) -> tuple[Any, Float32]:
        if hasattr(rule, "base"):
            rule.base = flat
        decision = rule(list(rows), [str(i) for i in names])
        return decision.shares, decision.update

    def _attack(
        self,
        rows: Float32,
        honest: list[int],
        bad: list[int],
        names: list[int],
        flat: Float32,
        seed: int,
    ) -> None:
        """Write what the malicious clients send to their rows."""
        kind, strength = ATTACKERS[self.attack]
        if kind == "none":
            return
        known, own = list(rows[honest]), list(rows[bad])
        rng = derive(seed, "robust-accuracy", "attack", self.memory["round"])
        if kind == "noise10":
            length = strength * np.mean([np.linalg.norm(x) for x in known])
            noise = rng.standard_normal(rows[bad].shape, np.float32)
            noise /= np.linalg.norm(noise, axis=1, keepdims=True)
            rows[bad] = noise * np.float32(length)
        elif kind == "adaptive":
            self._adapt(rows, honest, bad, names, flat)
        else:
            rows[bad] = ATTACKS[kind](known, own, strength, rng, self.memory)

    def _adapt(
        self,
        rows: Float32,
        honest: list[int],
        bad: list[int],
        names: list[int],
        flat: Float32,
    ) -> None:
        """Send what turns this round's update most against the honest mean."""
        known, own = list(rows[honest]), list(rows[bad])
        mean = np.mean(known, axis=0)
        worst, rng = float("inf"), np.random.default_rng(0)  # no choice draws from it
        best = rows[bad]
        for kind, strength in CHOICES:
            memory = self.memory if kind == "mimic" else {}
            candidate = ATTACKS[kind](known, own, strength, rng, memory)
            rows[bad] = candidate
            _, update = self._decide(copy.deepcopy(self.rule), rows, names, flat)
            if (progress := float(np.dot(update, mean))) < worst:
                worst, best = progress, candidate
        rows[bad] = best
