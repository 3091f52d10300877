"""Flower's protocol, and Flower's own strategy with our accountant."""

from __future__ import annotations

import inspect
import json
from dataclasses import replace

import pytest
from flwr.serverapp import (
    GaussianPrivacyEvent,
    NeighboringRelation,
    PrivacyAccountant,
    PrivacyConfig,
    RdpAccountant,
    SamplingMethod,
)
from flwr.serverapp.strategy import DifferentialPrivacyServerSideFixedClipping, FedAvg

from strategies.accounting.flower import LedgerAccountant
from strategies.accounting.pld import epsilon_at

EVERYONE = PrivacyConfig(
    target_delta=1e-5,
    population_size=100,
    neighboring_relation=NeighboringRelation.ADD_OR_REMOVE_ONE,
    sampling_method=SamplingMethod.NO_AMPLIFICATION,
    max_epsilon=8.0,
)
POISSON = replace(EVERYONE, sampling_method=SamplingMethod.POISSON)
FIXED = replace(
    EVERYONE,
    sampling_method=SamplingMethod.WITHOUT_REPLACEMENT,
    neighboring_relation=NeighboringRelation.REPLACE_ONE,
)
EVENT = GaussianPrivacyEvent(1.0, 10, 100)


def test_it_has_what_the_protocol_declares():
    ours: PrivacyAccountant = LedgerAccountant(EVERYONE)
    for name, declared in vars(PrivacyAccountant).items():
        if name.startswith("_"):
            continue
        found = getattr(LedgerAccountant, name)
        if inspect.isfunction(declared):
            wanted = inspect.signature(declared).parameters
            assert list(inspect.signature(found).parameters) == list(wanted)
    assert ours.config is EVERYONE


@pytest.mark.parametrize("config", [EVERYONE, POISSON, FIXED])
def test_it_never_needs_more_than_flowers_own(config):
    orders = tuple(float(a) for a in (*range(2, 12), 16, 24))
    ours, flowers = LedgerAccountant(config), RdpAccountant(config, orders)
    ours.compose(EVENT, 3)
    ours.compose(replace(EVENT, noise_multiplier=2.0))
    # Flower's multiplier is over the distance of neighbours.
    distance = 2.0 if config is FIXED else 1.0
    for multiplier, count in ((1.0, 3), (2.0, 1)):
        event = replace(EVENT, noise_multiplier=multiplier / distance)
        flowers.compose(event, count)
    assert ours.num_releases == flowers.num_releases == 4
    ratio = ours.get_epsilon(1e-5) / flowers.get_epsilon(1e-5)
    assert 0.6 < ratio < 1
    assert ours.get_delta(4.0) <= flowers.get_delta(4.0)
    spent = ours.get_privacy_spent()
    assert (spent.epsilon, spent.delta) == (ours.get_epsilon(1e-5), 1e-5)
    assert (spent.num_releases, spent.accounting_method) == (4, "pld")
    assert ours.get_privacy_spent(1e-3).epsilon < spent.epsilon
    assert spent.epsilon == epsilon_at(ours.ledger.releases, 1e-5)


@pytest.mark.parametrize("config", [EVERYONE, POISSON, FIXED])
def test_state_round_trip(config):
    ours, again = LedgerAccountant(config), LedgerAccountant(config)
    ours.compose(EVENT, 3)
    state = json.loads(json.dumps(ours.state_dict(), allow_nan=False))
    again.load_state_dict(state)
    assert again.state_dict() == ours.state_dict()
    again.compose(EVENT)
    assert again.get_epsilon(1e-5) > ours.get_epsilon(1e-5)
    again.load_state_dict(state)
    assert again.num_releases == 3


def test_states_of_others_are_refused():
    ours = LedgerAccountant(POISSON)
    ours.compose(EVENT, 3)
    state, flowers = ours.state_dict(), RdpAccountant(POISSON).state_dict()
    other = LedgerAccountant(replace(POISSON, population_size=99))
    damaged = {**state, "releases": []}
    for accountant, wrong in ((other, state), (ours, flowers), (ours, damaged)):
        with pytest.raises(ValueError, match=r"other terms|Damaged"):
            accountant.load_state_dict(wrong)
    assert ours.num_releases == 3


def test_limits():
    ours = LedgerAccountant(EVERYONE)
    assert ours.would_exceed(EVENT, count=5)
    assert not ours.would_exceed(EVENT)
    assert ours.would_exceed(EVENT, max_epsilon=1.0)
    assert ours.num_releases == 0
    ours.compose(EVENT, 50)
    assert ours.get_epsilon(1e-5) > 8.0
    unlimited = LedgerAccountant(replace(EVERYONE, max_epsilon=None))
    with pytest.raises(ValueError, match="max_epsilon"):
        unlimited.would_exceed(EVENT)
    with pytest.raises(ValueError, match="count"):
        ours.would_exceed(EVENT, count=0)
    with pytest.raises(ValueError, match="99 clients"):
        ours.compose(replace(EVENT, population_size=99))


def test_flowers_strategy_takes_it():
    accountant = LedgerAccountant(EVERYONE)
    strategy = DifferentialPrivacyServerSideFixedClipping(
        FedAvg(), 1.0, 1.0, 10, accountant=accountant
    )
    accountant.compose(EVENT)
    assert strategy.privacy_spent() == accountant.get_privacy_spent()
