"""Attackers at any distance, as many as a rule bears, fewer and more; clients that go.

Runs on every rule, alone and after NNM or bucketing.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from strategies.robust.make import OF_CLIENTS, RULES
from tests.oracles import wfagg as oracle
from tests.support.robust import (
    ATTACKERS,
    FEW,
    MORE,
    ROUNDS,
    SEEDS,
    decide,
    least,
    make,
    random,
    rules,
)

# Rules for which zero is a special place.
FROM_ZERO = ("wfagg", "wfagg-paper", "centered-clipping")
# How far a result may be from the honest rows, in radii of their ball, with h honest
# ones of k. The ball is around their mean, for rules that start at zero around that.
# median, trimmed mean, bulyan: every coordinate is in the honest ones' range.
# geometric median: at distance D from the honest mean its sum of distances is larger by
# h (D - 2 R) at least for the honest rows, smaller by (k - h) D at most for the others.
# centered clipping: three steps, each at most a radius, which is at most doubled.
# wfagg: clipped to the median norm. NNM and buckets do not enlarge the ball, but there
# are fewer buckets than rows.
BOUND = {
    "median": lambda h, k: h**0.5,
    "trimmed-mean": lambda h, k: h**0.5,
    "bulyan": lambda h, k: h**0.5,
    "krum": lambda h, k: 1.0,
    "multi-krum": lambda h, k: 1.0,
    "geometric-median": lambda h, k: 2 * h / (2 * h - k),
    "centered-clipping": lambda h, k: 7.0,
    "wfagg": lambda h, k: 1.0,
    "wfagg-paper": lambda h, k: 1.0,
}
FAR = st.sampled_from([1e3, 1e6, 1e12, 1e18, 1e30])


def attacked(seed: int, k: int, bad: int, far: float, together: bool) -> np.ndarray:
    """Return rows of which the first ``bad`` are far away."""
    x = random(seed, k)
    x[:bad] = (1 if together else x[:bad]) * np.float32(far)
    return x


def outside(name: str, pre: str, update: np.ndarray, x: np.ndarray, bad: int) -> bool:
    """Return whether a result is farther from the honest rows than promised."""
    k, honest = len(x), x[bad:].astype(float)
    around = np.zeros(len(update)) if name in FROM_ZERO else honest.mean(axis=0)
    radius = np.linalg.norm(honest - around, axis=1).max()
    h = k - bad
    if pre == "bucketing":
        k = -(-k // 2)
        h = k - bad
    distance = np.linalg.norm(update.astype(float) - around)
    return bool(distance > BOUND[name](h, k) * radius * (1 + 1e-5) + 1e-5)


class TestBreakdown:
    @rules()
    @FEW
    @given(SEEDS, ATTACKERS, MORE, FAR, st.booleans())
    def test_f_rows_at_any_distance(self, name, pre, seed, f, more, far, together):
        k, rule = least(name, f, pre) + more, make(name, f, pre)
        for i in range(ROUNDS):
            x = attacked(seed + i, k, f, far, together)
            assert not outside(name, pre, decide(rule, x).update, x, f)

    @given(SEEDS, FAR)
    def test_the_mean_fails_that(self, seed, far):
        x = attacked(seed, 20, 1, far, True)
        assert all(outside(name, "none", x.mean(axis=0), x, 1) for name in RULES)

    @rules()
    @FEW
    @given(SEEDS, st.integers(1, 2), MORE)
    def test_so_does_every_rule_with_f_honest_rows(self, name, pre, seed, f, more):
        """The bounds are not out of reach."""
        k = least(name, f, pre) + more
        x = attacked(seed, k, k - f, 1e6, True)
        update = decide(make(name, f, pre), x).update
        assert outside(name, "none", update, x, k - f)

    @pytest.mark.parametrize("name", ["median", "trimmed-mean", "geometric-median"])
    @pytest.mark.parametrize("f", [1, 2, 4])
    def test_one_row_more_than_half_is_least(self, name, f):
        x = attacked(1, 2 * f + 1, f + 1, 1e6, True)
        assert np.abs(decide(make(name, f), x).update).min() > 1e4

    @rules()
    @FEW
    @given(SEEDS, st.integers(1, 3), MORE, FAR, st.booleans())
    def test_fewer_attackers_than_f(self, name, pre, seed, f, more, far, together):
        k, rule = least(name, f, pre) + more, make(name, f, pre)
        for bad in range(f):
            x = attacked(seed + bad, k, bad, far, together)
            assert not outside(name, pre, decide(rule, x).update, x, bad)

    @rules()
    @FEW
    @given(SEEDS, ATTACKERS, MORE, FAR, st.booleans())
    def test_more_attackers_than_f(self, name, pre, seed, f, more, far, together):
        """No guarantee; but the result is a number and the next round comes."""
        k, rule = least(name, f, pre) + more, make(name, f, pre)
        for bad in (f + 1, k, 0):
            decision = decide(rule, attacked(seed, k, min(bad, k), far, together))
            assert np.isfinite(decision.update).all()
            assert np.isfinite(decision.shares).all()

    def test_the_published_rule_has_no_bound_once_there_is_a_history(self):
        """A steady update in the honest direction passes C and T, however long."""
        rule = make("wfagg-paper", 2)
        for i in range(6):
            x = 3 + random(i, 12) / 8
            x[0] = 1e6
            update = decide(rule, x).update
            assert (np.abs(update).max() > 1e4) == (i >= 4)


@pytest.mark.parametrize("name", OF_CLIENTS)
class TestClientsComeAndGo:
    def cohorts(self, seed: int, f: int) -> Iterator[dict[str, np.ndarray]]:
        """Yield six rounds of random clients; the first of all clients attack."""
        rng = np.random.default_rng(seed)
        goal = rng.normal(size=30)
        for _ in range(6):
            size = int(rng.integers(2 * f + 3, 13))
            chosen = sorted(rng.permutation(12)[:size].tolist())
            yield {
                f"n{i}": ((goal if i >= f else -3 * goal) + rng.normal(size=30)).astype(
                    np.float32
                )
                for i in rng.permutation(chosen)
            }

    @given(SEEDS, ATTACKERS)
    def test_and_each_round_is_the_oracles(self, name, seed, f):
        rule, history = make(name, f), []
        literal = {"wfagg": oracle.wfagg, "wfagg-paper": oracle.wfagg_paper}[name]
        for cohort in self.cohorts(seed, f):
            decision = rule(list(cohort.values()), list(cohort))
            history.append({n: x.astype(float) for n, x in cohort.items()})
            update, shares = literal(history, f)
            np.testing.assert_allclose(decision.shares, shares, atol=1e-5)
            np.testing.assert_allclose(decision.update, update, atol=2e-5)

    def test_newcomers_only(self, name):
        rule = make(name, 1)
        for i in range(4):
            x = list(random(i, 7))
            decision = rule(x, [f"{i}-{j}" for j in range(7)])
            assert np.isfinite(decision.update).all()
            assert decision.shares.sum() == pytest.approx(1)
