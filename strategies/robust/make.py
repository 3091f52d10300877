"""The rules by name, with an optional pre-aggregation."""

from __future__ import annotations

from typing import Any

import numpy as np

from .peers import PEERS, make_peer
from .preaggregators import NNM, Bucketing
from .rule import Rule
from .wfagg import WFAgg
from .wfagg_paper import WFAggPaper

__all__ = ["OF_CLIENTS", "PRE", "RULES", "make_rule"]

# Rules that judge each client by its own past: a mixed update is not one client's.
OF_CLIENTS = ("wfagg", "wfagg-paper")
RULES = (*OF_CLIENTS, *PEERS)
PRE = ("none", "nnm", "bucketing")


def make_rule(
    name: str,
    f: int,
    pre: str = "none",
    *,
    rng: np.random.Generator | None = None,
    **options: Any,
) -> Rule:
    """Return a fresh rule.

    Parameters
    ----------
    name : str
        One of :data:`RULES`.
    f : int
        Malicious clients assumed, >= 0.
    pre : str
        One of :data:`PRE`: what is done to the updates before the rule. ``none`` for
        the rules in :data:`OF_CLIENTS`.
    rng : Generator, optional
        For bucketing, which needs one to shuffle.
    **options
        Further arguments of ``wfagg`` and ``wfagg-paper``.

    Raises
    ------
    ValueError
        For an unknown name, a ``pre`` that the rule cannot have, or no ``rng``.

    Examples
    --------
    >>> make_rule("krum", f=2, pre="nnm").refusal(6)
    'krum needs at least 2 f + 3 = 7 updates with f = 2 and got 6'
    """
    if name in OF_CLIENTS and pre != "none":
        raise ValueError(f"{name} judges each client by its own past: no pre={pre!r}.")
    rule: Rule
    if name == "wfagg":
        rule = WFAgg(f, **options)
    elif name == "wfagg-paper":
        rule = WFAggPaper(f, **options)
    elif name in PEERS:
        rule = make_peer(name, f)
    else:
        raise ValueError(f"Unknown rule {name!r}: expected one of {', '.join(RULES)}.")
    if pre == "none":
        return rule
    if pre == "nnm":
        return NNM(rule)
    if pre == "bucketing":
        if rng is None:
            raise ValueError("bucketing shuffles: expected a generator as rng.")
        return Bucketing(rule, rng)
    raise ValueError(f"Unknown pre-aggregation {pre!r}: one of {', '.join(PRE)}.")
