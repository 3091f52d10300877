"""Exact composition against closed forms, enumeration and other accountants."""

from __future__ import annotations

import itertools
import math

import dp_accounting
import numpy as np
import pytest
from opacus.accountants import PRVAccountant
from scipy.stats import norm

from strategies.accounting.events import Release
from strategies.accounting.pld import delta_at, epsilon_at, interval
from strategies.accounting.sampling import Sampling
from strategies.accounting.staircase import atoms

from .tables import MULTIPLIERS, gaussian_delta, three_point_delta


def poisson(rate: float) -> Sampling:
    return Sampling("poisson", rate)


def gaussian(z: float, rate: float = 1.0) -> Release:
    return Release("gaussian", scale=z, sampling=poisson(rate))


@pytest.mark.parametrize(("z", "rounds"), [(0.6, 1), (6.0, 100), (50.0, 3), (0.1, 2)])
def test_gaussian_is_its_closed_form(z, rounds):
    epsilon = epsilon_at({gaussian(z): rounds}, 1e-5)
    assert gaussian_delta(z, rounds, epsilon) <= 1e-5 * (1 + 1e-9)
    assert gaussian_delta(z, rounds, epsilon * 0.998) > 1e-5


@pytest.mark.parametrize(("z", "q", "rounds"), [(1.0, 0.01, 1000), (2.0, 0.2, 50)])
def test_sampled_gaussian_is_that_of_two_other_accountants(z, q, rounds):
    found = epsilon_at({gaussian(z, q): rounds}, 1e-5)
    google = dp_accounting.pld.PLDAccountant(value_discretization_interval=1e-3)
    event = dp_accounting.GaussianDpEvent(z)
    google.compose(dp_accounting.PoissonSampledDpEvent(q, event), rounds)
    assert found == pytest.approx(google.get_epsilon(1e-5), rel=1e-3)
    opacus = PRVAccountant()
    opacus.history = [(z, q, rounds)]
    assert found == pytest.approx(opacus.get_epsilon(1e-5, eps_error=0.01), rel=0.01)
    assert found <= opacus.get_epsilon(1e-5, eps_error=0.01)


@pytest.mark.parametrize(("q", "rounds"), MULTIPLIERS)
def test_noise_multipliers_of_client_level_privacy(q, rounds):
    for epsilon, z in list(zip((1, 2, 4, 8), MULTIPLIERS[q, rounds], strict=True))[::3]:
        assert epsilon_at({gaussian(z * 1.005, q): rounds}, 1e-5) < epsilon
        assert epsilon_at({gaussian(z * 0.995, q): rounds}, 1e-5) > epsilon


def test_laplace_is_that_of_dp_accounting():
    release = Release("laplace", scale=5.0)
    google = dp_accounting.pld.PLDAccountant()
    google.compose(dp_accounting.LaplaceDpEvent(5.0), 60)
    assert epsilon_at({release: 60}, 1e-5) == pytest.approx(
        google.get_epsilon(1e-5), rel=1e-3
    )


@pytest.mark.parametrize("split", [(0.5, 0.5), (0.9, 0.1)])
def test_laplace_neighbours_that_differ_in_one_coordinate_are_the_worst(split):
    """Over a grid of losses: two coordinates against one, at the same L1 distance."""

    def losses(shift: float) -> tuple[np.ndarray, np.ndarray]:
        edges = np.linspace(-shift, shift, 801)
        inner = np.diff(np.exp((edges - shift) / 2) / 2)
        middle = (edges[1:] + edges[:-1]) / 2
        values = np.concatenate([[-shift], middle, [shift]])
        return values, np.concatenate([[math.exp(-shift) / 2], inner, [0.5]])

    def delta(loss: np.ndarray, p: np.ndarray, epsilon: float) -> float:
        return float((p * np.clip(-np.expm1(epsilon - loss), 0, None)).sum())

    for shift in (0.4, 2.0, 8.0):
        one = losses(shift)
        (a, p), (b, q) = losses(shift * split[0]), losses(shift * split[1])
        both, mass = (a[:, None] + b).ravel(), np.outer(p, q).ravel()
        for epsilon in np.linspace(0, shift, 9):
            assert delta(both, mass, epsilon) <= delta(*one, epsilon) + 1e-6


@pytest.mark.parametrize("rounds", [1, 3, 40])
@pytest.mark.parametrize("rate", [1.0, 0.3, 0.01])
@pytest.mark.parametrize(("epsilon0", "gamma"), [(0.37, 0.4), (3.0, 0.1)])
def test_staircase_is_the_enumeration_of_its_outcomes(epsilon0, gamma, rate, rounds):
    p = atoms(epsilon0, gamma)
    with_one, without = p[::-1], p
    mixed = rate * with_one + (1 - rate) * without
    release = Release(
        "staircase", epsilon0=epsilon0, gamma=gamma, sampling=poisson(rate)
    )
    epsilon = epsilon_at({release: rounds}, 1e-4)

    def exact(epsilon: float) -> float:
        removed = three_point_delta(mixed, without, rounds, epsilon)
        return max(removed, three_point_delta(without, mixed, rounds, epsilon))

    assert exact(epsilon) <= 1e-4 * (1 + 1e-9)
    assert exact(epsilon * 0.998 - 1e-6) > 1e-4 or epsilon == 0


def test_many_sampled_staircases_are_the_enumeration_too():
    p, q = atoms(3.321, 0.3), 0.01
    mixed = q * p[::-1] + (1 - q) * p
    release = Release("staircase", epsilon0=3.321, gamma=0.3, sampling=poisson(q))
    epsilon = epsilon_at({release: 1000}, 1e-5)
    assert three_point_delta(mixed, p, 1000, epsilon) <= 1e-5
    assert three_point_delta(mixed, p, 1000, epsilon * 0.998) > 1e-5


def test_a_ball_costs_what_randomized_response_costs():
    release = Release("staircase-ball", epsilon0=0.2455, dimension=9)
    high = 1 / (1 + math.exp(-0.2455))
    pair = np.array([high, 1 - high, 1e-300])
    epsilon = epsilon_at({release: 50}, 1e-5)
    assert epsilon == pytest.approx(8.0, rel=1e-3)
    other = pair[[1, 0, 2]]
    assert three_point_delta(pair, other, 50, epsilon) == pytest.approx(1e-5, rel=0.01)


def fixed(rate: float, population: int = 1000) -> dict[str, object]:
    return {
        "sampling": Sampling("fixed", rate, population),
        "relation": "replace",
    }


@pytest.mark.parametrize("others", [-1.0, 0.3])
def test_a_fixed_sample_is_never_understated(others):
    """Two of two units, one is drawn: whatever the other one sends, in two rounds."""
    z, q = 0.8, 0.5
    release = Release("gaussian", scale=z, **fixed(q, 2))
    x = np.arange(-9.0, 9.0, 0.02)
    p = (norm.pdf(x, 1, z) + norm.pdf(x, others, z)) / 2
    r = (norm.pdf(x, -1, z) + norm.pdf(x, others, z)) / 2
    for rounds, (one, two) in enumerate(
        ((p, r), (np.outer(p, p).ravel() * 0.02, np.outer(r, r).ravel() * 0.02)), 1
    ):
        for epsilon in (0.1, 0.5, 1.0, 2.0):
            true = 0.02 * np.clip(one - math.exp(epsilon) * two, 0, None).sum()
            # The sum over a grid is right to 1e-4; with others = -1 it is the bound.
            assert true <= delta_at({release: rounds}, epsilon) * 1.0002


def test_a_fixed_sample_is_the_theorem_for_one_round():
    """Balle et al. 2018, Theorem 9, with the closed form of the Gaussian."""
    z, q = 2.0, 0.1
    release = Release("gaussian", scale=z, **fixed(q))
    for epsilon in (0.05, 0.3, 1.0):
        inner = math.log1p(math.expm1(epsilon) / q)
        theorem = q * gaussian_delta(z / 2, 1, inner)
        assert delta_at({release: 1}, epsilon) == pytest.approx(theorem, rel=2e-3)


def test_a_fixed_sample_is_below_the_known_bound_and_above_poisson():
    z, q, rounds = 4.0, 0.1, 100
    found = epsilon_at({Release("gaussian", scale=z, **fixed(q)): rounds}, 1e-5)
    relation = dp_accounting.NeighboringRelation.REPLACE_ONE
    google = dp_accounting.rdp.RdpAccountant(neighboring_relation=relation)
    event = dp_accounting.GaussianDpEvent(z / 2)
    google.compose(
        dp_accounting.SampledWithoutReplacementDpEvent(1000, 100, event), rounds
    )
    assert epsilon_at({gaussian(z / 2, q): rounds}, 1e-5) < found
    assert found < google.get_epsilon(1e-5)


def test_a_fixed_sample_with_hardly_any_noise_costs_a_lot():
    release = Release("gaussian", scale=0.05, **fixed(0.1))
    assert epsilon_at({release: 1}, 1e-5) > 600
    assert delta_at({release: 1}, 10.0) == pytest.approx(0.1, rel=1e-3)


def test_all_of_a_fixed_sample_is_everyone():
    one = Release("gaussian", scale=3.0, **fixed(1.0))
    other = Release("gaussian", scale=3.0, relation="replace")
    half = Release("gaussian", scale=1.5)
    found = [epsilon_at({r: 5}, 1e-5) for r in (one, other, half)]
    assert found == pytest.approx([found[0]] * 3, rel=1e-9)


def test_different_releases_compose_exactly():
    """Gaussians add up as 1 / z**2."""
    groups = {gaussian(2.0): 3, gaussian(5.0): 10, gaussian(1.0): 1}
    z = sum(n / r.scale**2 for r, n in groups.items()) ** -0.5
    together = epsilon_at(groups, 1e-6)
    assert together == pytest.approx(epsilon_at({gaussian(z): 1}, 1e-6), rel=1e-3)
    staircase = Release("staircase", epsilon0=0.37)
    mixed = epsilon_at({**groups, staircase: 4}, 1e-6)
    assert together < mixed < together + 4 * 0.37


def test_the_order_of_releases_does_not_matter():
    groups = [(gaussian(2.0), 3), (Release("laplace", scale=3.0), 2), (gaussian(9), 7)]
    found = {epsilon_at(dict(g), 1e-5) for g in itertools.permutations(groups)}
    assert len(found) == 1


@pytest.mark.parametrize(
    "release",
    [
        gaussian(1.1, 0.01),
        gaussian(0.5, 0.01),
        Release("laplace", scale=0.2, sampling=poisson(0.01)),
        Release("staircase", epsilon0=1.0, sampling=poisson(0.1)),
    ],
)
def test_the_interval_is_fine_enough(release, monkeypatch):
    coarse = epsilon_at({release: 200}, 1e-5)
    monkeypatch.setattr("strategies.accounting.pld.interval", lambda r: interval(r) / 2)
    fine = epsilon_at({release: 200}, 1e-5)
    assert fine <= coarse <= fine * 1.002


def test_slack_of_the_sampler_is_taken_from_delta():
    exact, loose = (
        Release("gaussian", scale=5.0, delta_slack=slack) for slack in (0.0, 1e-7)
    )
    assert epsilon_at({loose: 50}, 1e-5) == pytest.approx(
        epsilon_at({exact: 50}, 5e-6), rel=1e-6
    )
    assert epsilon_at({loose: 101}, 1e-5) == math.inf
    assert delta_at({loose: 50}, 3.0) == pytest.approx(
        delta_at({exact: 50}, 3.0) + 5e-6, rel=1e-6
    )


def test_pure_epsilon_holds_at_any_delta():
    release = Release("staircase", epsilon0=0.5)
    assert epsilon_at({release: 3}, 1e-10) <= 1.5
    assert delta_at({release: 3}, 1.5) == 0.0
    assert delta_at({release: 3}, 1.4) > 0.0


def test_nothing_costs_nothing():
    assert epsilon_at({}, 1e-5) == epsilon_at({gaussian(1.0): 0}, 1e-5) == 0.0
    assert delta_at({}, 0.0) == 0.0


def test_what_cannot_be_composed_is_refused():
    other = Release("gaussian", scale=1.0, relation="replace")
    with pytest.raises(ValueError, match="different relations"):
        epsilon_at({gaussian(1.0): 1, other: 1}, 1e-5)
    for delta in (0.0, 1e-11, 1.0, math.nan):
        with pytest.raises(ValueError, match="delta"):
            epsilon_at({gaussian(1.0): 1}, delta)
