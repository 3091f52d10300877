"""What is done to updates before a rule.

NNM, nearest-neighbour mixing: Allouah et al., "Fixing by Mixing: A Recipe for Optimal
Byzantine ML under Heterogeneity", AISTATS 2023, Section 3: every update is replaced by
the mean of its K - f nearest updates, itself included.

Bucketing: Karimireddy, He, Jaggi, "Byzantine-Robust Learning on Heterogeneous Datasets
via Bucketing", ICLR 2022, Algorithm 1: updates in random order, the mean of every s.

Both are a matrix W: the rule sees ``W @ X``, which is never stored (:mod:`.rows`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .kernels import Doubles, Mixture, Rows, squared_distances
from .rule import Decision, Rule

__all__ = ["NNM", "Bucketing", "bucket_mixing", "nearest_mixing"]


def nearest_mixing(square_distances: Doubles, f: int) -> Doubles:
    """Return the matrix W of NNM: row i of ``W @ X`` is the mean of i's neighbours.

    Parameters
    ----------
    square_distances : float64 array of shape (K, K)
        Between the rows of X, zeros on the diagonal.
    f : int
        ``0 <= f < K``; of equally distant rows the first ones are taken.

    Returns
    -------
    float64 array of shape (K, K)
        Rows sum to 1 and have K - f entries that are not zero.
    """
    k = len(square_distances)
    mixing = np.zeros((k, k))
    nearest = np.argsort(square_distances, axis=1, kind="stable")[:, : k - f]
    np.put_along_axis(mixing, nearest, 1.0 / (k - f), axis=1)
    return mixing


def bucket_mixing(k: int, s: int, rng: np.random.Generator) -> Doubles:
    """Return the matrix W of Bucketing, shape (ceil(k / s), k).

    The last bucket is smaller if s does not divide k.
    """
    bucket = np.arange(k) // s
    mixing = np.zeros((-(-k // s), k))
    mixing[bucket, rng.permutation(k)] = 1 / np.bincount(bucket)[bucket]
    return mixing


class _Before:
    """What both have in common: a rule, whose f is theirs."""

    def __init__(self, rule: Rule) -> None:
        self.rule = rule

    @property
    def f(self) -> int:
        """Malicious rows assumed, the rule's own."""
        return self.rule.f

    @f.setter
    def f(self, value: int) -> None:
        self.rule.f = value


class NNM(_Before):
    """A rule on nearest-neighbour means; the number of rows stays.

    Shares are those of the original rows. Evidence i is what the rule says of the mean
    around row i.

    Parameters
    ----------
    rule : Rule
        With its f, which is also that of the mixing.
    """

    def refusal(self, k: int) -> str | None:
        """Return why the rule cannot be used, or ``k`` rows are too few to mix."""
        if k <= 2 * self.f:
            return f"nnm needs more than 2 f = {2 * self.f} updates and got {k}"
        return self.rule.refusal(k)

    def __call__(self, rows: Rows, names: Sequence[str]) -> Decision:
        """Aggregate one round; see :class:`strategies.robust.rule.Rule`."""
        if reason := self.refusal(len(rows)):
            raise ValueError(reason)
        distances = squared_distances(rows)
        mixing = nearest_mixing(distances, self.f)
        decision = self.rule(Mixture(rows, mixing, distances), names)
        return Decision(decision.update, decision.shares @ mixing, decision.evidence)

    def state(self) -> dict[str, Any]:
        """Return the rule's memory."""
        return self.rule.state()

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restore the rule's memory."""
        self.rule.load_state(state)


class Bucketing(_Before):
    """A rule on the means of random buckets of ``s`` rows, new ones every round.

    f malicious rows spoil up to f buckets, so the rule must bear f of ceil(K / s).
    Shares are those of the original rows. Evidence i is what the rule says of row i's
    bucket, and its number.

    Parameters
    ----------
    rule : Rule
        Without memory of single clients: buckets have no history.
    rng : numpy Generator
        Orders the rows. It goes on from round to round; :meth:`state` holds where it
        is, so that a round that runs again after a restart has the same buckets.
    s : int
        Rows a bucket.
    """

    def __init__(self, rule: Rule, rng: np.random.Generator, s: int = 2) -> None:
        if s < 1:
            raise ValueError(f"Expected s={s} >= 1.")
        super().__init__(rule)
        self.rng, self.s = rng, s

    def refusal(self, k: int) -> str | None:
        """Return why the rule cannot be used on the buckets of ``k`` rows."""
        reason = self.rule.refusal(-(-k // self.s))
        return reason and f"{reason} (buckets of {self.s} of {k} updates)"

    def __call__(self, rows: Rows, names: Sequence[str]) -> Decision:
        """Aggregate one round; see :class:`strategies.robust.rule.Rule`."""
        if reason := self.refusal(len(rows)):
            raise ValueError(reason)
        mixing = bucket_mixing(len(rows), self.s, self.rng)
        buckets = [f"bucket-{i}" for i in range(len(mixing))]
        decision = self.rule(Mixture(rows, mixing), buckets)
        evidence = [
            {"bucket": int(i), **decision.evidence[i]}
            for i in mixing.argmax(axis=0)
            if decision.evidence
        ]
        return Decision(decision.update, decision.shares @ mixing, evidence)

    def state(self) -> dict[str, Any]:
        """Return the rule's memory and the generator's state."""
        return {"rule": self.rule.state(), "rng": self.rng.bit_generator.state}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restore both."""
        self.rule.load_state(state["rule"])
        self.rng.bit_generator.state = state["rng"]
