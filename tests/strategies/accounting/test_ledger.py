"""The ledger: monotone, refuses to overspend, survives and detects damage."""

from __future__ import annotations

import copy
import json
import math
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from strategies.accounting import pld
from strategies.accounting.calibrate import calibrate
from strategies.accounting.events import Release
from strategies.accounting.ledger import BudgetExceeded, Ledger
from strategies.accounting.sampling import Sampling

BODY = Release("gaussian", scale=1.0, sampling=Sampling("poisson", 0.1, 500))
COUNT = Release("staircase", epsilon0=0.2)
METRIC = Release("laplace", scale=8.0, sampling=Sampling("poisson", 0.1, 500))
BALL = Release("staircase-ball", epsilon0=0.1, dimension=5, delta_slack=1e-9)
WHOLE = Release("gaussian", scale=4.0)
KINDS = [BODY, COUNT, METRIC, BALL]


def spent_ledger(adaptive: bool = False, **options) -> Ledger:
    ledger = Ledger(6.0, 1e-5, adaptive, **options)
    ledger.charge(BODY, 20)
    ledger.charge(COUNT)
    ledger.charge(BODY, 5)
    return ledger


@pytest.mark.parametrize("adaptive", [False, True])
def test_it_refuses_what_would_overspend_and_counts_nothing_then(adaptive):
    ledger = Ledger(3.0, 1e-5, adaptive)
    while not ledger.would_exceed(BODY):
        ledger.charge(BODY)
    before = ledger.state()
    with pytest.raises(BudgetExceeded, match="would exceed epsilon 3"):
        ledger.charge(BODY)
    assert ledger.state() == before
    assert 2.5 < ledger.spent() <= ledger.guaranteed == 3.0
    assert ledger.claim() == (3.0 if adaptive else ledger.spent())
    assert ledger.claim(as_planned=False) == 3.0
    assert ledger.remaining(BODY) == 0
    assert sum(ledger.releases.values()) >= 5


def test_it_stops_at_the_last_release_that_fits():
    ledger = Ledger(3.0, 1e-5)
    ledger.charge(COUNT, 2)
    most = ledger.remaining(BODY)
    fits = pld.epsilon_at({COUNT: 2, BODY: most}, 1e-5)
    assert fits <= 3.0 < pld.epsilon_at({COUNT: 2, BODY: most + 1}, 1e-5)
    for _ in range(most):
        ledger.charge(BODY)
    assert ledger.would_exceed(BODY)
    assert ledger.spent() == pytest.approx(fits)


@pytest.mark.parametrize("adaptive", [False, True])
@pytest.mark.parametrize("mechanism", ["gaussian", "laplace", "staircase"])
def test_a_calibrated_run_fits_exactly(mechanism, adaptive):
    release = calibrate(mechanism, 2.0, 1e-5, 30, adaptive=adaptive)
    ledger = Ledger(2.0, 1e-5, adaptive)
    for _ in range(30):
        ledger.charge(release)
    assert ledger.would_exceed(release)
    assert 1.98 < ledger.spent() <= 2.0


def test_an_adaptive_ledger_costs_more_than_a_fixed_one():
    fixed, adaptive = spent_ledger(), spent_ledger(True)
    assert fixed.spent() < adaptive.spent() <= 6.0
    assert len(adaptive.orders) == 1


def test_asking_does_not_fix_the_orders_of_the_filter():
    ledger = Ledger(6.0, 1e-5, True)
    ledger.would_exceed(COUNT)
    ledger.remaining(COUNT)
    assert ledger.orders is None
    ledger.charge(BODY)
    assert ledger.orders == spent_ledger(True).orders


def test_equal_releases_are_composed_a_few_times_only(monkeypatch):
    release = calibrate("gaussian", 8.0, 1e-5, 1000, Sampling("poisson", 0.1))
    calls, composed = [], pld._composed
    monkeypatch.setattr(pld, "_composed", lambda *a: calls.append(1) or composed(*a))
    ledger, start = Ledger(8.0, 1e-5), time.perf_counter()
    for _ in range(1000):
        ledger.charge(release)
    assert ledger.would_exceed(release)
    assert len(calls) < 40
    # 0.4 ms each where this was written.
    assert (time.perf_counter() - start) / 1000 < 0.05


@settings(max_examples=8)
@given(st.lists(st.tuples(st.sampled_from(KINDS), st.integers(1, 30)), max_size=4))
def test_charging_more_never_lowers_what_was_spent(charges):
    ledger, before = Ledger(math.inf, 1e-5), 0.0
    for release, count in charges:
        ledger.charge(release, count)
        assert ledger.spent() >= before
        before = ledger.spent()
    fresh = Ledger(math.inf, 1e-5)
    fresh.load_state(json.loads(json.dumps(ledger.state())))
    assert fresh.spent() == pytest.approx(before, rel=1e-3)
    assert fresh.spent() >= before


def test_what_was_reported_is_never_taken_back(monkeypatch):
    """Also where finer discretisation would find less."""
    ledger = spent_ledger()
    before = ledger.spent()
    monkeypatch.setattr("strategies.accounting.ledger.epsilon_at", lambda r, d: 0.5)
    ledger.charge(COUNT)
    assert ledger.spent() == before


@pytest.mark.parametrize("adaptive", [False, True])
def test_state_round_trip(adaptive):
    ledger = spent_ledger(adaptive)
    state = json.loads(json.dumps(ledger.state(), allow_nan=False))
    again = Ledger(6.0, 1e-5, adaptive)
    again.load_state(state)
    assert again.state() == ledger.state()
    assert again.describe() == ledger.describe()
    for one in (ledger, again):
        one.charge(BODY, 3)
    assert again.spent() == ledger.spent()
    assert again.remaining(BODY) == ledger.remaining(BODY)


def test_a_full_ledger_can_be_loaded():
    """Also where a part of it alone is discretised more coarsely."""
    ledger = Ledger(2.0, 1e-5)
    for release in (BODY, Release("gaussian", scale=60.0)):
        ledger.charge(release, max(1, ledger.remaining(release) // 2))
    if ledger.remaining(BODY):
        ledger.charge(BODY, ledger.remaining(BODY))
    again = Ledger(2.0, 1e-5)
    again.load_state(ledger.state())
    assert again.would_exceed(BODY)


def tampered(**changes):
    def change(state):
        state.update(changes)

    return change


def fewer(state):
    state["releases"][0][1] -= 1


def quieter(state):
    state["releases"][0][0]["scale"] *= 2


DAMAGE = {
    "more spent than its releases cost": tampered(spent=4.0),
    "less spent than its releases cost": tampered(spent=0.1),
    "no number": tampered(spent="3"),
    "not a number": tampered(spent=math.nan),
    "a truth value": tampered(spent=True),
    "fewer releases": fewer,
    "more noise": quieter,
    "no releases": tampered(releases=[]),
    "no list": tampered(releases=None),
    "half an entry": tampered(releases=[[BODY.as_dict()]]),
    "negative count": tampered(releases=[[BODY.as_dict(), -1]]),
    "count that is no integer": tampered(releases=[[BODY.as_dict(), 20.0]]),
    "another version": tampered(version=2),
    "another relation": lambda state: state["terms"].update(relation="replace"),
    "a larger budget": lambda state: state["terms"].update(epsilon=60.0),
    "nothing spent": lambda state: state.pop("spent"),
    "no terms": lambda state: state.pop("terms"),
    "damaged release": lambda state: state["releases"][0][0].pop("mechanism"),
    "unknown mechanism": lambda s: s["releases"][0][0].update(mechanism="none"),
    "release of another relation": lambda s: s["releases"].append(
        [Release("gaussian", scale=50.0, relation="replace").as_dict(), 1]
    ),
}


@pytest.mark.parametrize("adaptive", [False, True])
@pytest.mark.parametrize("what", DAMAGE)
def test_a_tampered_state_is_refused_and_changes_nothing(what, adaptive):
    state = copy.deepcopy(spent_ledger(adaptive).state())
    DAMAGE[what](state)
    ledger = Ledger(6.0, 1e-5, adaptive)
    with pytest.raises(ValueError, match="Damaged"):
        ledger.load_state(state)
    assert ledger.state() == Ledger(6.0, 1e-5, adaptive).state()


def test_a_state_that_overspent_is_refused():
    big = Ledger(60.0, 1e-5)
    big.charge(BODY, 400)
    state = {**big.state(), "terms": spent_ledger().state()["terms"]}
    with pytest.raises(ValueError, match="spent of 6"):
        Ledger(6.0, 1e-5).load_state(state)


def test_other_orders_are_refused():
    """They would be a choice after the fact."""
    state = spent_ledger(True, orders=(4.0, 9.0)).state()
    with pytest.raises(ValueError, match="orders"):
        Ledger(6.0, 1e-5, True, orders=(5.0,)).load_state(state)
    again = Ledger(6.0, 1e-5, True, orders=(4.0, 9.0))
    again.load_state(state)
    assert again.orders == (4.0, 9.0)


def test_an_older_state_cannot_replace_a_newer_ledger():
    ledger = spent_ledger()
    older = ledger.state()
    ledger.charge(BODY, 20)
    ledger.spent()
    with pytest.raises(ValueError, match="cannot be taken back"):
        ledger.load_state(older)


def test_a_release_of_another_relation_is_refused():
    other = Release("gaussian", scale=9.0, relation="replace")
    for ask in (Ledger.charge, Ledger.would_exceed, Ledger.remaining):
        with pytest.raises(ValueError, match="do not add up"):
            ask(Ledger(1.0, 1e-5), other)
    Ledger(9.0, 1e-5, relation="replace").charge(other)


@pytest.mark.parametrize("count", [0, -1, 1.0, True])
def test_counts_are_whole_and_positive(count):
    with pytest.raises(ValueError, match="count"):
        Ledger(1.0, 1e-5).charge(COUNT, count)


@pytest.mark.parametrize(
    "values",
    [
        {"epsilon": 0.0},
        {"epsilon": math.nan},
        {"delta": 0.0},
        {"delta": 1.0},
        {"relation": "swap"},
        {"unit": "user"},
        {"trust": "nobody"},
        {"adaptive": True, "epsilon": math.inf},
        {"adaptive": True, "orders": (1.0,)},
    ],
)
def test_wrong_terms_are_refused(values):
    with pytest.raises(ValueError, match=r"expected|finite"):
        Ledger(**{"epsilon": 1.0, "delta": 1e-5, **values})


def test_a_ledger_without_a_budget_only_counts():
    ledger = Ledger(math.inf, 1e-5)
    ledger.charge(BODY, 300)
    assert ledger.guaranteed == ledger.spent() > 10
    json.dumps(ledger.state(), allow_nan=False)
    assert "budget" not in ledger.describe()


def test_the_samplers_slack_ends_a_run_too():
    loose = Release("gaussian", scale=500.0, delta_slack=1e-6)
    ledger = Ledger(math.inf, 1e-5)
    assert ledger.remaining(loose) in (9, 10)


def test_description_in_words():
    text = spent_ledger(unit="example").describe()
    for part in (
        "Unit: example",
        "add-remove",
        "delta = 1e-05, of a budget of 6",
        "25 x gaussian (noise multiplier 1; each of 500 takes part with probability",
        "1 x staircase (epsilon0 0.2; everyone takes part)",
        "Trust model: central (the server sees single updates",
        "exact composition",
    ):
        assert part in text
    assert "what may be claimed is the budget" in spent_ledger(True).describe()
    replaced = Ledger(1.0, 1e-5, relation="replace", trust="local").describe()
    assert "what any one client contributes" in replaced
    assert "Releases: none" in replaced


@pytest.mark.parametrize("adaptive", [False, True])
def test_a_reserve_counts_as_spent_and_is_not_given_out(adaptive):
    options = {"orders": (4.0,) if adaptive else None}
    plain = Ledger(6.0, 1e-5, adaptive, **options)
    kept = Ledger(6.0, 1e-5, adaptive, reserve=1.0, **options)
    less = Ledger(5.0, 1e-5, adaptive, **options)
    assert kept.spent() == 0
    assert kept.remaining(WHOLE) == less.remaining(WHOLE)
    for ledger in (plain, kept):
        ledger.charge(WHOLE, 10)
    assert kept.spent() == pytest.approx(plain.spent() + 1.0)
    again = Ledger(6.0, 1e-5, adaptive)
    again.load_state(json.loads(json.dumps(kept.state())))
    assert again.spent() == kept.spent()
    assert again.remaining(WHOLE) == kept.remaining(WHOLE) < plain.remaining(WHOLE)


def test_a_resumed_run_keeps_the_larger_reserve():
    kept = Ledger(6.0, 1e-5, reserve=1e-4)
    kept.charge(WHOLE)
    again = Ledger(6.0, 1e-5, reserve=2e-4)
    again.load_state(kept.state())
    assert again.reserve == 2e-4
    assert again.spent() == pytest.approx(kept.spent() + 1e-4, abs=1e-9)
    for reserve in (-0.1, 6.0, math.nan):
        with pytest.raises(ValueError, match="reserve"):
            Ledger(6.0, 1e-5, reserve=reserve)
