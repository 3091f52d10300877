"""The closed form: its integral, and what dp-accounting comes near from above."""

from __future__ import annotations

import math

import pytest
from dp_accounting.pld import privacy_loss_distribution as dp
from hypothesis import given
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.stats import norm

from strategies.accounting.events import Release
from strategies.accounting.gaussian import (
    delta_of_distance,
    distance,
    epsilon_of_distance,
)
from strategies.accounting.pld import delta_at, epsilon_at
from strategies.accounting.sampling import Sampling


@pytest.mark.parametrize("mu", [0.05, 0.7, 3.0])
@pytest.mark.parametrize("epsilon", [0.0, 0.4, 5.0])
def test_delta_is_the_integral_of_what_one_density_has_over_the_other(mu, epsilon):
    def excess(x):
        return norm.pdf(x, mu) - math.exp(epsilon) * norm.pdf(x)

    begin = epsilon / mu + mu / 2  # where it becomes positive
    expected, _ = quad(excess, begin, begin + 30)
    found = delta_of_distance(mu, epsilon)
    assert found == pytest.approx(expected, rel=1e-6, abs=1e-13)


@given(st.floats(1e-3, 300), st.floats(1e-11, 0.9))
def test_epsilon_is_the_least_one_at_its_delta(mu, delta):
    epsilon = epsilon_of_distance(mu, delta)
    assert delta_of_distance(mu, epsilon) <= delta
    if epsilon:
        less = epsilon * (1 - 1e-6) - 1e-9 * mu
        assert less <= 0 or delta_of_distance(mu, less) > delta


@pytest.mark.parametrize(
    ("scale", "rounds"), [(0.3, 1), (1.0, 10), (5.0, 50), (40.0, 3)]
)
@pytest.mark.parametrize("delta", [1e-9, 1e-5, 0.01])
def test_it_is_what_discretisation_comes_near_from_above(scale, rounds, delta):
    peer = dp.from_gaussian_mechanism(scale, value_discretization_interval=1e-3)
    # We set a little of delta aside for rounding errors.
    judged = peer.self_compose(rounds).get_epsilon_for_delta(delta - 1e-12)
    found = epsilon_at({Release("gaussian", scale=scale): rounds}, delta)
    assert found <= judged + 1e-9
    assert found == pytest.approx(judged, rel=2e-3, abs=2e-3)


def test_different_noise_adds_up_by_the_squares_of_its_inverse():
    made = {
        Release("gaussian", scale=2.0, relation="replace"): 3,
        Release("gaussian", scale=4.0, relation="replace", dimension=9): 4,
    }
    assert distance(made) == pytest.approx(math.sqrt(3 * 1 + 4 * 0.25))
    one = {Release("gaussian", scale=1.0, relation="replace"): 1}
    assert epsilon_at(made, 1e-6) == pytest.approx(epsilon_at(one, 1e-6))
    assert delta_at(made, 1.0) == pytest.approx(delta_at(one, 1.0))


@pytest.mark.parametrize(
    "other",
    [
        Release("laplace", scale=9.0),
        Release("gaussian", scale=9.0, sampling=Sampling("poisson", 0.5)),
    ],
)
def test_it_is_for_gaussian_noise_on_everyone_only(other):
    alone = {Release("gaussian", scale=1.0): 2}
    assert distance({**alone, other: 1}) == 0
    assert distance({}) == 0
    assert distance({**alone, other: 0}) == distance(alone) > 0
    # A release more never costs less, however it is computed.
    assert epsilon_at({**alone, other: 1}, 1e-5) > epsilon_at(alone, 1e-5)


def test_there_is_none_without_delta():
    assert epsilon_of_distance(1.0, 0.0) == math.inf
    loose = Release("gaussian", scale=1.0, delta_slack=1e-6)
    assert epsilon_at({loose: 10}, 1e-5) == math.inf
