"""Every robust rule with everything that may come before it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st

from strategies.robust.make import OF_CLIENTS, PRE, RULES, make_rule
from strategies.robust.rule import Decision, Rule

# (rule, pre), such as ("krum", "nnm").
COMBINATIONS = [
    (name, pre) for name in RULES for pre in (("none",) if name in OF_CLIENTS else PRE)
]

# Many rules, so a fifth of the examples each.
FEW = settings(max_examples=settings().max_examples // 5)
SEEDS = st.integers(0, 2**31)
ATTACKERS = st.integers(0, 2)
MORE = st.integers(0, 3)
ROUNDS = 3


def make(name: str, f: int, pre: str = "none", seed: int = 1) -> Rule:
    return make_rule(name, f, pre, rng=np.random.default_rng(seed))


def names(k: int) -> list[str]:
    return [f"n{i}" for i in range(k)]


def decide(rule: Rule, rows: np.ndarray) -> Decision:
    """Return what the rule says of rows that nobody may write to."""
    rows.flags.writeable = False
    return rule(list(rows), names(len(rows)))


def least(name: str, f: int, pre: str = "none") -> int:
    """Return the smallest number of rows that the rule accepts."""
    rule, k = make(name, f, pre), 1
    while rule.refusal(k) is not None:
        k += 1
    return k


def rules(without=()) -> pytest.MarkDecorator:
    """Run a test for every (rule, pre) but the rules or pairs ``without``."""
    chosen = [
        pair for pair in COMBINATIONS if pair[0] not in without and pair not in without
    ]
    ids = [f"{name}, {pre}" for name, pre in chosen]
    return pytest.mark.parametrize(("name", "pre"), chosen, ids=ids)


def random(seed: int, k: int, d: int = 12) -> np.ndarray:
    """Rows on a grid: sums and differences of a few are exact in float32."""
    x = np.random.default_rng(seed).integers(-4096, 4096, (k, d))
    return (x / 1024).astype(np.float32)
