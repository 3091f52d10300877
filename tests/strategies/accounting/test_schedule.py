"""Schedules keep within the budget; what looks at outputs needs the filter."""

from __future__ import annotations

import json

import pytest

from strategies.accounting.calibrate import calibrate
from strategies.accounting.events import Release
from strategies.accounting.ledger import Ledger
from strategies.accounting.pld import epsilon_at
from strategies.accounting.sampling import Sampling
from strategies.accounting.schedule import (
    OnPlateau,
    constant,
    increasing,
    scaled,
)


def test_constant_is_the_calibrated_release():
    assert constant("laplace", 2.0, 1e-5, 9) == [
        (calibrate("laplace", 2.0, 1e-5, 9), 9)
    ]


@pytest.mark.parametrize(
    ("mechanism", "rounds", "sampling"),
    [
        ("gaussian", 30, Sampling()),
        ("staircase", 3, Sampling()),
        ("laplace", 1, Sampling()),
    ],
)
def test_increasing_spends_the_budget_and_no_more(mechanism, rounds, sampling):
    found = increasing(mechanism, 4.0, 1e-5, rounds, sampling, ratio=0.5)
    assert sum(count for _, count in found) == rounds
    assert 3.96 < epsilon_at(dict(found), 1e-5) <= 4.0
    noise = [r.scale or 1 / r.epsilon0 for r, _ in found]
    assert noise == sorted(noise, reverse=True)
    if rounds > 1:
        assert noise[-1] / noise[0] == pytest.approx(0.5)
    ledger = Ledger(4.0, 1e-5)
    for release, count in found:
        ledger.charge(release, count)


@pytest.mark.parametrize("ratio", [0.0, 1.0, -1.0])
def test_noise_has_to_fall(ratio):
    with pytest.raises(ValueError, match="ratio"):
        increasing("gaussian", 1.0, 1e-5, 10, ratio=ratio)


def test_on_plateau_waits_then_takes_less_noise():
    plan = OnPlateau(Release("gaussian", scale=8.0), factor=0.5, patience=2, least=0.3)
    noise = []
    for score in (5.0, 4.0, 4.0, 4.5, 3.0, 3.0, float("nan"), 3.5):
        plan.observe(score)
        noise.append(plan.release.scale)
    assert noise == pytest.approx([8, 8, 8, 4, 4, 4, 2.4, 2.4])
    again = OnPlateau(plan.first, factor=0.5, patience=2, least=0.3)
    again.load_state(json.loads(json.dumps(plan.state())))
    for one in (plan, again):
        one.observe(9.0)
    assert again.state() == plan.state()
    assert again.release == plan.release


def test_on_plateau_is_stopped_by_the_filter():
    first = calibrate("gaussian", 4.0, 1e-5, 40, adaptive=True)
    plan, ledger = OnPlateau(first, patience=1), Ledger(4.0, 1e-5, adaptive=True)
    while not ledger.would_exceed(plan.release):
        ledger.charge(plan.release)
        plan.observe(1.0)
    assert 1 < sum(ledger.releases.values()) < 40
    assert epsilon_at(ledger.releases, 1e-5) < ledger.spent() <= 4.0


def test_steps_are_scaled_by_their_epsilon():
    release = scaled(Release("staircase", epsilon0=1.0), 0.5)
    assert release.epsilon0 == 2.0
    assert release == Release("staircase", epsilon0=2.0)


@pytest.mark.parametrize(
    "values", [{"factor": 1.0}, {"least": 0.0}, {"patience": 0}, {"factor": 0.0}]
)
def test_wrong_plans_are_refused(values):
    with pytest.raises(ValueError, match="expected"):
        OnPlateau(Release("gaussian", scale=1.0), **values)
