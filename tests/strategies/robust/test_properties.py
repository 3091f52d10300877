"""What every robust rule keeps, alone and after NNM or bucketing.

Every test runs on every rule for which the property holds; where it does not, the
table says why and a test shows it.
"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from strategies.robust.make import RULES
from tests.support.robust import (
    ATTACKERS,
    FEW,
    MORE,
    ROUNDS,
    SEEDS,
    decide,
    least,
    make,
    names,
    random,
    rules,
)

NOT_TRANSLATED = {
    "wfagg": "cosines are seen from zero and updates clipped to a norm",
    "wfagg-paper": "cosines are seen from zero",
    "centered-clipping": "starts at zero; from then on at its last result",
}
NOT_TURNED = {
    "wfagg": "its centre is a trimmed mean per coordinate",
    "wfagg-paper": "its centre is a median per coordinate",
    "median": "per coordinate",
    "trimmed-mean": "per coordinate",
    "bulyan": "ends with a mean per coordinate",
}
# Two mixtures differ by the rows that they leave out, so many are equal or equally far
# from each other, and rules that rank rows by distances may take either.
RANKED = ("krum", "multi-krum", "bulyan")
# The k-th row of the shuffle is another one after a permutation: the result is the same
# in distribution only. (The server's replies come in the order of names.)
ORDERED = [(name, "nnm") for name in RANKED] + [(name, "bucketing") for name in RULES]


def play(rule, seed: int, k: int, change=lambda x: x) -> list[np.ndarray]:
    """Return the updates of some rounds; rules with a memory use it."""
    return [decide(rule, change(random(seed + i, k))).update for i in range(ROUNDS)]


class TestSymmetry:
    @rules(without=ORDERED)
    @FEW
    @given(SEEDS, ATTACKERS, MORE)
    def test_the_order_of_clients_does_not_matter(self, name, pre, seed, f, more):
        # Two models are equally far from their median: the published D takes one.
        k = least(name, f, pre) + more + (name == "wfagg-paper")
        order = np.random.default_rng(seed).permutation(k)
        one, two = make(name, f, pre), make(name, f, pre)
        for i in range(ROUNDS):
            x = random(seed + i, k)
            a = one(list(x), names(k))
            b = two(list(x[order]), [names(k)[j] for j in order])
            np.testing.assert_allclose(b.update, a.update, atol=2e-5)
            np.testing.assert_allclose(b.shares, a.shares[order], atol=1e-5)

    @rules(without=[*NOT_TRANSLATED, ("bulyan", "nnm")])
    @FEW
    @given(SEEDS, ATTACKERS, MORE, st.integers(-100, 100))
    def test_results_move_with_the_rows(self, name, pre, seed, f, more, shift):
        k = least(name, f, pre) + more
        here = play(make(name, f, pre), seed, k)
        there = play(make(name, f, pre), seed, k, lambda x: x + np.float32(shift))
        np.testing.assert_allclose(np.array(there) - shift, here, atol=1e-4)

    @pytest.mark.parametrize("name", NOT_TRANSLATED)
    def test_where_they_do_not(self, name):
        here = play(make(name, 2), 1, 12)
        there = play(make(name, 2), 1, 12, lambda x: x + 1)
        assert np.abs(np.array(there) - 1 - here).max() > 1e-3

    @rules()
    @FEW
    @given(SEEDS, ATTACKERS, MORE, st.sampled_from([-20, -1, 2, 20]))
    def test_results_scale_with_the_rows_bit_for_bit(
        self, name, pre, seed, f, more, power
    ):
        k, scale = least(name, f, pre) + more, np.float32(2.0**power)
        plain = play(make(name, f, pre), seed, k)
        scaled = play(make(name, f, pre), seed, k, lambda x: x * scale)
        np.testing.assert_array_equal(scaled, np.array(plain) * scale)

    @rules(without=[*NOT_TURNED, ("krum", "nnm"), ("multi-krum", "nnm")])
    @FEW
    @given(SEEDS, ATTACKERS, MORE)
    def test_results_turn_with_the_rows(self, name, pre, seed, f, more):
        k, turn = least(name, f, pre) + more, turned(seed)
        plain = play(make(name, f, pre), seed, k)
        found = play(make(name, f, pre), seed, k, lambda x: f32(x @ turn))
        np.testing.assert_allclose(found, plain @ turn, atol=5e-5)

    @pytest.mark.parametrize("name", NOT_TURNED)
    def test_where_they_do_not_turn(self, name):
        plain = play(make(name, 2), 1, 12)
        found = play(make(name, 2), 1, 12, lambda x: f32(x @ turned(1)))
        assert np.abs(found - plain @ turned(1)).max() > 1e-3


def f32(x: np.ndarray) -> np.ndarray:
    return x.astype(np.float32)


def turned(seed: int, d: int = 12) -> np.ndarray:
    """Return an orthogonal matrix."""
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(d, d)))[0]


class TestEdges:
    @rules()
    @FEW
    @given(SEEDS, ATTACKERS, MORE)
    def test_equal_rows_give_that_row(self, name, pre, seed, f, more):
        k, rule = least(name, f, pre) + more, make(name, f, pre)
        row = random(seed, 1)
        for _ in range(5):
            decision = decide(rule, np.repeat(row, k, axis=0))
            np.testing.assert_allclose(decision.update, row[0], rtol=2e-6, atol=1e-6)
            assert decision.shares.sum() == pytest.approx(1)

    @rules()
    @pytest.mark.parametrize("f", [0, 1, 3])
    def test_zeros_give_zero(self, name, pre, f):
        k, rule = least(name, f, pre) + 1, make(name, f, pre)
        for _ in range(ROUNDS):
            decision = decide(rule, np.zeros((k, 5), np.float32))
            np.testing.assert_array_equal(decision.update, 0)
            assert decision.shares.sum() == pytest.approx(1)

    @rules()
    @pytest.mark.parametrize("f", [0, 1, 3])
    def test_zeros_among_others_are_no_obstacle(self, name, pre, f):
        k, rule = least(name, f, pre) + 2, make(name, f, pre)
        for i in range(ROUNDS):
            x = random(i, k)
            x[:2] = 0
            assert np.isfinite(decide(rule, x).update).all()

    @rules()
    def test_one_client_is_followed_or_refused(self, name, pre):
        rule, x = make(name, 0, pre), random(1, 1)
        if rule.refusal(1):
            assert name in ("krum", "multi-krum", "bulyan", "wfagg-paper")
            return
        for i in range(ROUNDS):
            x = random(i, 1)
            np.testing.assert_allclose(decide(rule, x).update, x[0], rtol=2e-6)

    @rules(without=ORDERED)
    @FEW
    @given(SEEDS, st.integers(0, 1), MORE)
    def test_of_two_equal_rows_it_does_not_matter_which(self, name, pre, seed, f, more):
        k = least(name, f, pre) + more + 1
        x = random(seed, k)
        x[1] = x[0]
        order = np.random.default_rng(seed).permutation(k)
        a, b = (decide(make(name, f, pre), rows) for rows in (x.copy(), x[order]))
        np.testing.assert_allclose(b.update, a.update, atol=2e-5)

    @rules()
    @pytest.mark.parametrize("d", [0, 1, 300])
    def test_float32_in_float32_out_and_the_rows_are_as_they_were(self, name, pre, d):
        k, rule = least(name, 1, pre) + 1, make(name, 1, pre)
        for i in range(ROUNDS):
            x = random(i, k, d)
            before = x.tobytes()
            update = decide(rule, x).update  # whose rows nobody may write to
            assert (update.dtype, update.shape) == (np.float32, (d,))
            assert update.flags.writeable
            assert not np.shares_memory(update, x)
            update[:] = np.nan  # a server optimizer may: the memory is not the rule's
            assert x.tobytes() == before
