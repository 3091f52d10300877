"""The detectors: what moves their limits, and how often they are wrong."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from strategies.anomaly.core import changes, norm_limit, relative_losses
from truststram.rng import derive

NORMS = arrays(float, st.integers(3, 30), elements=st.floats(1e-6, 1e6))
SCALES = st.sampled_from([1e-20, 1e-3, 1.0, 7.0, 1e20])


@given(NORMS, SCALES)
def test_the_limit_grows_with_the_norms(norms, scale):
    assert norm_limit(norms * scale) == pytest.approx(
        norm_limit(norms) * scale, rel=1e-9
    )


@given(NORMS, st.randoms(use_true_random=False))
def test_the_order_of_nodes_does_not_matter(norms, random):
    shuffled = norms.copy()
    random.shuffle(shuffled)
    assert norm_limit(shuffled) == norm_limit(norms)


@given(
    arrays(float, st.integers(6, 30), elements=st.floats(0.5, 2.0)),
    st.floats(1e-12, 1e12),
)
def test_two_fifths_of_attackers_keep_the_limit_near_the_honest_norms(honest, evil):
    """Whatever they send: not below the smallest honest norm, not far above all.

    Median and MAD of a majority of honest values lie within their range.
    """
    attackers = int(len(honest) * 2 / 3)  # 40 % of all
    limit = norm_limit(np.append(honest, np.full(attackers, evil)))
    low, high = math.log(honest.min()), math.log(honest.max())
    width = max(math.log(3), 4.5 * 1.4826 * (high - low))
    assert low + math.log(3) - 1e-9 <= math.log(limit) <= high + width + 1e-9


def test_a_percentile_of_the_same_round_would_be_moved():
    """The limit that ours replaces: 6 % of attackers decide it."""
    honest = derive(1, "honest").normal(1.0, 0.05, 94)
    everybody = np.append(honest, np.full(6, 1e6))
    assert 2 * np.percentile(everybody, 95) > 1e4
    assert norm_limit(everybody) < 5


@pytest.mark.parametrize("norms", [[], [1.0], [1.0, 100.0], [0.0, 0.0, 1.0, 9.0]])
def test_two_positive_norms_say_nothing(norms):
    assert norm_limit(np.array(norms)) == math.inf


def test_norms_up_to_the_largest_float():
    assert norm_limit(np.array([1.0, 1e308, 1e308])) == math.inf
    assert norm_limit(np.full(5, 5e-324)) > 0


@pytest.mark.parametrize("losses", [[], [0.0], [0.0, 0.0, 1.0]])
def test_there_must_be_a_loss_to_compare_with(losses):
    assert relative_losses(np.array(losses)) is None


@given(arrays(float, st.integers(3, 20), elements=st.floats(0, 1e9)), SCALES)
def test_relative_losses_have_no_unit_and_a_floor(losses, scale):
    found, scaled = relative_losses(losses), relative_losses(losses * scale)
    if found is None or scaled is None:
        return
    np.testing.assert_allclose(scaled, found, atol=1e-9)
    assert found.min() >= math.log(0.01)
    assert np.isfinite(found).all()


def flagged(rounds: list[np.ndarray]) -> list[tuple[int, int]]:
    """Return (round, node) of every loss that stands out; NaN: nobody asked."""
    histories: list[list[float]] = [[] for _ in rounds[0]]
    found = []
    for number, losses in enumerate(rounds):
        here = np.flatnonzero(~np.isnan(losses))
        relative = relative_losses(losses[here])
        past = [histories[i] for i in here]
        changed, limits, shift = changes(relative, past)
        found += [(number, int(i)) for i in here[changed > limits]]
        for i, value in zip(here, relative - shift, strict=True):
            histories[i] = [*histories[i], float(value)][-10:]
    return found


def falling(rounds: int, nodes: int, sd: float, seed: int) -> list[np.ndarray]:
    """Losses that fall from 2.3 by a tenth each round, each node at its own level."""
    rng = derive(seed, "falling")
    levels = rng.lognormal(0, 0.5, nodes)
    return [2.3 * 0.9**t * levels * rng.lognormal(0, sd, nodes) for t in range(rounds)]


def test_a_loss_that_falls_for_everybody_is_no_anomaly():
    assert flagged(falling(40, 10, 0.05, seed=1)) == []


def test_also_not_for_nodes_that_are_asked_now_and_then():
    rounds = falling(60, 20, 0.05, seed=2)
    rng = derive(2, "asked")
    for losses in rounds:
        losses[rng.permutation(20)[:12]] = np.nan
    assert flagged(rounds) == []


@pytest.mark.parametrize("factor", [5.0, 100.0, 1e12])
def test_a_jump_is_found_when_it_happens_and_not_for_ever(factor):
    rounds = falling(30, 10, 0.05, seed=3)
    for losses in rounds[12:]:
        losses[4] *= factor
    found = flagged(rounds)
    assert found[0] == (12, 4)
    assert {node for _, node in found} == {4}
    assert max(number for number, _ in found) <= 16


def test_a_loss_that_falls_alone_is_learning():
    rounds = falling(20, 10, 0.05, seed=4)
    for losses in rounds[8:]:
        losses[4] /= 20
    assert flagged(rounds) == []


@pytest.mark.parametrize("evil", [0.0, 1e300])
def test_liars_hide_no_jump_and_frame_nobody(evil):
    """Three liars, who push the median loss about, and the jump are four of ten."""
    rounds = falling(20, 10, 0.05, seed=5)
    for number, losses in enumerate(rounds):
        losses[7:] = evil if number % 2 else 1.0
        losses[0] *= 30 if number == 15 else 1
    honest = [(number, node) for number, node in flagged(rounds) if node < 7]
    assert honest == [(15, 0)]


def test_restless_losses_of_small_nodes_are_usual_for_them():
    """Without the node's own spread, one in twenty of these would stand out."""
    rounds = falling(200, 20, 0.05, seed=6)
    rng = derive(6, "restless")
    for losses in rounds:
        losses[3] *= rng.lognormal(0, 0.7)
    assert len(flagged(rounds)) <= 4  # 2 % of the 200


def test_false_alarms_on_normal_norms_and_losses_are_rare():
    """Lognormal norms (sd 0.3) and losses (sd 0.2): below 1 in 1000.

    20,000 norms and 19,400 losses; 5 or fewer are an upper 99 % confidence bound of
    6.7e-4 on the rate (Poisson).
    """
    rng = derive(7, "norms")
    norms = rng.lognormal(0, 0.3, (1000, 20))
    assert sum(int((row > norm_limit(row)).sum()) for row in norms) <= 5
    assert len(flagged(falling(973, 20, 0.2, seed=7))) <= 5
