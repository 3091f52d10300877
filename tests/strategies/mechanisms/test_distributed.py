"""Noise in shares: enough of it in every sum that is allowed, and a clip that holds."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy import stats

from strategies.accounting.ledger import BudgetExceeded
from strategies.accounting.pld import epsilon_at
from strategies.mechanisms import encoder as encoder_module
from strategies.mechanisms.distributed import OVERFLOW, distributed_plan
from strategies.mechanisms.encoder import SkellamEncoder, encoder_for
from strategies.mechanisms.skellam import LEAST_VARIANCE, tail
from tests.strategies.mechanisms.checks import fits
from truststram.errors import ConfigError, ProtocolError
from truststram.job import Job

BASE = {
    "privacy.mechanism": "skellam",
    "privacy.trust": "distributed",
    "secure.scheme": "secagg",
    "train.rounds": 5,
}
D = 1000


def job(**changes) -> Job:
    given = {k.replace("__", ".").replace("_", "-"): v for k, v in changes.items()}
    return Job.of({**BASE, **given})


def rng():
    return np.random.default_rng(1)


@pytest.fixture
def silent(monkeypatch):
    """Encode without noise."""
    monkeypatch.setattr(
        encoder_module, "draw_skellam", lambda v, d, source: np.zeros(d, np.int64)
    )


COHORTS = [(3, 0), (5, 2), (10, 0), (10, 4), (60, 20)]


@pytest.mark.parametrize(("least", "colluders"), COHORTS)
def test_honest_survivors_of_any_allowed_sum_have_all_the_noise(least, colluders):
    asked = job(secure__min_cohort=least, secure__colluders=colluders)
    plan = distributed_plan(asked, D)
    needed = (plan.release.scale * plan.on.units) ** 2
    for survivors in range(least, 101):
        honest = survivors - colluders
        assert honest * plan.share >= needed * (1 - 1e-12)
        assert plan.std(honest) >= plan.release.scale * (1 - 1e-12)
    # Not more than needed: the smallest sum has just that.
    assert (least - colluders) * plan.share == pytest.approx(needed)
    assert (least - colluders - 1) * plan.share < needed


@pytest.mark.parametrize(("least", "colluders"), [(3, 0), (7, 2)])
def test_a_sum_of_the_fewest_honest_nodes_has_the_noise_of_the_account(
    least, colluders
):
    asked = job(secure__min_cohort=least, secure__colluders=colluders)
    plan = distributed_plan(asked, 100_000)
    encoder, honest = SkellamEncoder(plan, insecure=True), least - colluders
    zero, generator = np.zeros(100_000, np.float32), rng()
    total = sum(encoder.encode(zero, generator).astype(np.int64) for _ in range(honest))
    noise = total - honest * encoder.half
    needed = plan.release.scale * plan.on.units
    assert fits(noise, stats.norm(scale=needed).cdf)
    for wrong in (2 / 3, 3 / 2):
        assert not fits(noise, stats.norm(scale=wrong * needed).cdf)


UPDATES = arrays.arrays(
    np.float32,
    60,
    elements=st.floats(width=32, allow_nan=False, allow_infinity=False)
    | st.floats(-1, 1, width=32),
)


@given(UPDATES, st.sampled_from([2.0**-30, 0.3, 1.0, 1e6]))
def test_the_integers_of_any_update_are_within_the_clip_exactly(update, clip):
    encoder = encoder_for(job(privacy__clip=clip), len(update))
    plan = encoder.plan
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            encoder_module, "draw_skellam", lambda v, d, source: np.zeros(d, np.int64)
        )
        integers = encoder.encode(update, rng()).astype(np.int64) - encoder.half
    square = sum(int(x) ** 2 for x in integers)  # of any size, exactly
    assert square <= plan.on.bound
    # What the release says of two neighbours: each has at most `units`.
    assert plan.release.units == plan.on.units
    assert plan.release.sensitivity == 2.0
    assert plan.on.bound <= plan.on.units**2


@pytest.mark.usefixtures("silent")
def test_a_dense_update_loses_little_to_rounding():
    for d in (650, 10_000, 1_000_000):
        update = rng().normal(size=d).astype(np.float32)
        update *= np.float32(0.999 / np.linalg.norm(update))
        encoder = encoder_for(job(), d)
        found = encoder.decode_sum(encoder.encode(update, rng()), 1)
        assert np.abs(found).max() <= np.abs(update).max()
        assert np.linalg.norm(found - update) <= 1 / 64


@pytest.mark.usefixtures("silent")
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_an_update_that_is_not_finite_counts_as_zero(bad):
    update = np.ones(D, np.float32)
    update[7] = bad
    encoder = encoder_for(job(), D)
    assert not encoder.decode_sum(encoder.encode(update, rng()), 1).any()


def test_sums_are_sums_of_clipped_updates_with_noise_of_the_stated_size():
    encoder, clients = encoder_for(job(train__rounds=1, privacy__epsilon=20.0), D), 50
    generator = rng()
    updates = generator.normal(size=(clients, D)).astype(np.float32)
    clipped = updates / np.linalg.norm(updates, axis=1, keepdims=True)
    total = np.zeros(D, np.uint64)
    for update in updates:
        total += encoder.encode(update, generator)
    found = encoder.decode_sum(total, clients)
    noise = (found - clipped.sum(axis=0)) / encoder.plan.std(clients)
    assert stats.kstest(noise, "norm").pvalue > 1e-6
    assert stats.kstest(noise / 1.5, "norm").pvalue < 1e-6


def test_every_call_has_fresh_noise_and_the_insecure_one_repeats():
    update = np.zeros(D, np.float32)
    encoder = encoder_for(job(), D)
    assert not np.array_equal(
        encoder.encode(update, rng()), encoder.encode(update, rng())
    )
    tests = encoder_for(job(privacy__insecure=True), D)
    again, other = tests.encode(update, rng()), np.random.default_rng(2)
    np.testing.assert_array_equal(tests.encode(update, rng()), again)
    assert not np.array_equal(tests.encode(update, other), again)


@pytest.mark.parametrize("most", [3, 100, 10_000])
def test_integers_and_sums_fit_their_bits(most):
    encoder = encoder_for(job(secure__max_cohort=most), D)
    q = encoder.encode(np.full(D, 1e9, np.float32), rng())
    assert q.dtype == np.uint32
    assert q.max() <= 2 * encoder.half < 2**encoder.bits
    assert encoder.most == most
    assert most * 2 * encoder.half < 2**encoder.width <= 2**62
    plan = encoder.plan
    reach = plan.half - plan.on.units
    assert most * D * tail(plan.share, reach) <= OVERFLOW
    assert most * D * tail(plan.share, 0.9 * reach) > OVERFLOW


@pytest.mark.parametrize(
    ("total", "count"),
    [([0], 0), ([0], 101), ([-1], 1), ([1 << 40], 1)],
)
def test_what_is_no_sum_is_refused(total, count):
    encoder = encoder_for(job(), D)
    with pytest.raises(ProtocolError, match="sum-range"):
        encoder.decode_sum(np.array(total), count)
    encoder.check_sum(np.array([0, 2 * encoder.half * 3]), 3)


def test_another_length_than_planned_is_refused():
    with pytest.raises(ValueError, match="planned for 1000"):
        encoder_for(job(), D).encode(np.zeros(D + 1, np.float32), rng())


def test_nothing_that_tells_of_one_node_is_counted():
    encoder = encoder_for(job(), D)
    assert encoder.clipped(np.full(D, 1e9, np.float32)) == 0
    assert encoder.noised


@pytest.mark.parametrize("epsilon", [0.5, 8.0, 20.0])
@pytest.mark.parametrize("rounds", [1, 50])
@pytest.mark.parametrize("d", [1, 650, 1_000_000])
def test_the_plan_keeps_the_budget_to_the_last_round(epsilon, rounds, d):
    asked = job(privacy__epsilon=epsilon, train__rounds=rounds)
    plan = distributed_plan(asked, d)
    assert plan.release.relation == "replace"
    assert plan.share >= LEAST_VARIANCE
    ledger = plan.ledger(asked)
    for _ in range(rounds):
        ledger.charge(plan.release)
    assert 0.98 * epsilon < ledger.spent() <= epsilon
    with pytest.raises(BudgetExceeded):
        ledger.charge(plan.release)
    assert plan.charges(asked) == {plan.release: rounds}
    # The reserve for finite bits is taken off first.
    spent = epsilon_at({plan.release: rounds}, asked.privacy.delta)
    assert spent <= epsilon - plan.reserve + 1e-9


def test_both_sides_have_the_same_plan():
    assert distributed_plan(job(), D) == distributed_plan(job(), D)
    assert encoder_for(job(), D) == encoder_for(job(), D)
    assert hash(encoder_for(job(), D)) == hash(encoder_for(job(), D))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"privacy__epsilon": 0.1, "train__rounds": 2000}, "too small for"),
        ({"privacy__epsilon": 21.0}, "<= 20"),
        ({"privacy__epsilon": 0.01}, "Rényi divergences"),
        ({"privacy__clip": 1e300}, "out of range"),
        (
            {"privacy__delta": 1e-10, "privacy__epsilon": 20.0, "train__rounds": 100},
            "delta",
        ),
        ({"secure__colluders": 3}, "honest"),
    ],
)
def test_what_has_no_guarantee_is_refused(changes, reason):
    with pytest.raises(ConfigError, match=reason):
        distributed_plan(job(**changes), 10**6)


def test_noise_beyond_31_bits_is_refused():
    with pytest.raises(ConfigError, match="does not fit 31 bits"):
        distributed_plan(
            job(privacy__epsilon=0.035, train__rounds=10**6, secure__max_cohort=3),
            1,
        )
