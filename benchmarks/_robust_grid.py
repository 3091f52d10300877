"""What is compared: the rules, the attacks and the federations of the grid."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks._robust_data import CLIENTS
from strategies.adversary.core import COLUMNS
from strategies.robust.make import make_rule
from strategies.robust.peers import make_peer
from strategies.robust.preaggregators import NNM, Bucketing
from strategies.robust.rule import Decision, Rule, equal_shares
from truststram.records import Float32
from truststram.rng import derive

__all__ = [
    "ATTACKERS",
    "CHOICES",
    "RULES",
    "TRAINING",
    "Federation",
    "Outcome",
    "rule_of",
]

ROUNDS = 30

# Name -> (rule, pre-aggregation, options).
RULES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "mean": ("mean", "none", {}),
    "median": ("median", "none", {}),
    "trimmed-mean": ("trimmed-mean", "none", {}),
    "multi-krum": ("multi-krum", "none", {}),
    "geometric-median": ("geometric-median", "none", {}),
    "centered-clipping": ("centered-clipping", "none", {}),
    "nnm+trimmed-mean": ("trimmed-mean", "nnm", {}),
    "nnm+krum": ("krum", "nnm", {}),
    "bucketing+centered-clipping": ("centered-clipping", "bucketing", {}),
    "wfagg-paper": ("wfagg-paper", "none", {}),
    "wfagg ema=0": ("wfagg", "none", {"ema": 0.0}),
    "wfagg": ("wfagg", "none", {}),
    # Under secure sums inside groups.
    "wfagg of groups": ("wfagg", "none", {"temporal": False}),
}
# Name -> (kind, strength). Two kinds are only here: noise of ten times the honest norm,
# and an attacker that knows the rule and its state.
ATTACKERS: dict[str, tuple[str, float]] = {
    "none": ("none", 0.0),
    **COLUMNS,
    "ALIE-opt": ("alie", 0.0),
    "noise10": ("noise10", 10.0),
    "adaptive": ("adaptive", 0.0),
    # Honest until the middle of a run of 30 rounds.
    "sleeper": ("drift", 15.0),
}
# Attacks whose malicious clients train.
TRAINING = ("LF", "sleeper")
# What the adaptive attacker chooses from.
CHOICES = (
    *(("ipm", s) for s in (0.25, 0.5, 1.0, 2.0, 4.0, 100.0)),
    *(("alie", s) for s in (0.5, 1.0, 1.5, 3.0)),
    *(("min-max", 1.0), ("min-max-sd", 1.0), ("min-max-sign", 1.0), ("mimic", 1.0)),
)


@dataclass(frozen=True)
class Federation:
    """One cell of the grid and its seed.

    Attributes
    ----------
    alpha : float or None
        Of the Dirichlet distribution of labels; None: IID.
    f : int
        Malicious clients.
    assumed : int or None
        The rule's f; None: the true one.
    participation : float
        Part of the clients in every round, drawn anew.
    unequal : bool
        Clients have 74 to 296 examples, and as many more steps, instead of 300.
    quarantine : int
        Rounds that clients which are rejected again and again are left out; 0: never.
    clients : int
    group : int
        The rule judges the means of fixed groups of so many clients; 0: the clients.
    """

    alpha: float | None
    f: int
    seed: int
    network: str = "mlp"
    validation: bool = False
    rounds: int = ROUNDS
    assumed: int | None = None
    participation: float = 1.0
    unequal: bool = False
    quarantine: int = 0
    clients: int = CLIENTS
    group: int = 0

    @property
    def cell(self) -> str:
        """Name of the cell, which the seeds share."""
        data = "IID" if self.alpha is None else f"Dirichlet {self.alpha:g}"
        return f"{data}, f = {self.f}"


class Mean:
    """The plain mean, in the form of a robust rule."""

    def __init__(self, f: int) -> None:
        self.f = f

    def refusal(self, k: int) -> str | None:
        """Return None: it always works."""
        return None

    def __call__(self, rows: Sequence[Float32], names: Sequence[str]) -> Decision:
        """Return the mean of the rows."""
        return Decision(np.mean(rows, axis=0), equal_shares(len(rows)))

    def state(self) -> dict[str, Any]:
        """Return nothing: it remembers nothing."""
        return {}

    def load_state(self, state: object) -> None:
        """Restore nothing."""


@dataclass
class Outcome:
    """What came out of one rule under one attack.

    ``false`` and ``true`` are the parts of honest and malicious updates that were
    rejected from round 3 on; NaN if there were none. ``quarantined``: how many honest
    and malicious clients were ever left out.
    """

    federation: Federation
    rule: str
    attack: str
    accuracy: float
    false: float
    true: float
    quarantined: tuple[int, int] = (0, 0)


def rule_of(name: str, f: int) -> Rule:
    """Return a fresh rule by its name in :data:`RULES`."""
    kind, pre, options = RULES[name]
    if kind == "mean":
        return Mean(f)
    make = make_rule if kind.startswith("wfagg") else make_peer
    rule: Rule = make(kind, f, **options)
    if pre == "nnm":
        return NNM(rule)
    if pre == "bucketing":
        return Bucketing(rule, derive(0, "robust-accuracy", "bucketing"))
    return rule
