"""The staircase's closed forms against integration, search and enumeration."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.optimize import minimize_scalar

from strategies.accounting.staircase import (
    atoms,
    best_gamma,
    compose,
    iid_epsilon,
    lattice_epsilon,
    shift_losses,
    variance,
)

from .tables import BALL, DIMENSIONS, staircase_density, three_point_delta

SETTINGS = [(0.3, 0.45), (1.0, 0.2), (4.0, 0.7), (8.0, 0.05), (8.0, 0.999)]


@pytest.mark.parametrize(("epsilon0", "gamma"), SETTINGS)
def test_variance_is_that_of_the_density(epsilon0, gamma):
    x = (np.arange(300_000) + 0.5) * (60 / epsilon0 + 4) / 300_000
    f = staircase_density(x, epsilon0, gamma)
    integral = (f @ x**2) / f.sum()
    assert variance(epsilon0, gamma) == pytest.approx(integral, rel=1e-3)


@pytest.mark.parametrize("key", BALL)
def test_the_table_of_the_norm_ball(key):
    _, epsilon0 = key
    for d, std in zip(DIMENSIONS, BALL[key], strict=True):
        found = math.sqrt(variance(epsilon0, best_gamma(epsilon0, d), d))
        assert found == pytest.approx(std, rel=0.01), d


def test_the_ball_of_one_dimension_is_the_scalar():
    for epsilon0, gamma in SETTINGS:
        j = np.arange(10_000)
        log_weight = np.log(j + gamma) - epsilon0 * j
        w = np.exp(log_weight - log_weight.max())
        mixture = w @ (j + gamma) ** 2 / w.sum() / 3
        assert variance(epsilon0, gamma) == pytest.approx(mixture, rel=1e-9)


def test_fine_steps_are_the_k_norm_mechanism():
    coarse, fine = variance(0.15, 0.5, 200), variance(0.13, 0.5, 200)
    assert coarse == pytest.approx(201 / 0.15**2, rel=1e-6)
    assert fine == pytest.approx(201 / 0.13**2, rel=1e-12)


@pytest.mark.parametrize("epsilon0", [0.01, 0.5, 1.0, 2.0, 4.0, 8.0, 20.0])
def test_best_gamma_has_the_least_variance(epsilon0):
    found = minimize_scalar(
        lambda g: variance(epsilon0, g), bounds=(1e-9, 1), method="bounded"
    )
    gamma = best_gamma(epsilon0)
    assert variance(epsilon0, gamma) <= found.fun * (1 + 1e-9)
    assert best_gamma(epsilon0, moment="l1") == 1 / (1 + math.exp(epsilon0 / 2))


@pytest.mark.parametrize(("d", "epsilon0"), [(2, 8.0), (7, 3.0), (30, 12.0)])
def test_best_gamma_of_a_ball_is_not_beaten_on_a_grid(d, epsilon0):
    least = variance(epsilon0, best_gamma(epsilon0, d), d)
    grid = [variance(epsilon0, g, d) for g in np.linspace(1e-3, 0.999, 700)]
    assert least <= min(grid) * (1 + 1e-9)


@pytest.mark.parametrize("gamma", [1e-9, 1e-4, 0.05, 0.3, 0.5, 0.6, 0.95])
@pytest.mark.parametrize("epsilon0", [0.05, 1.0, 8.0])
def test_one_step_dominates_every_smaller_distance(epsilon0, gamma):
    """Losses are -e, 0, e, so the more probable the loss e, the easier to tell."""
    far = atoms(epsilon0, gamma)
    assert far == pytest.approx(shift_losses(epsilon0, gamma, 1.0), abs=1e-9)
    for shift in np.linspace(0.01, 0.99, 25):
        assert shift_losses(epsilon0, gamma, shift)[2] <= far[2]


@pytest.mark.parametrize(("epsilon0", "gamma"), SETTINGS)
@pytest.mark.parametrize("shift", [0.1, 0.5, 1.0])
def test_losses_are_those_of_the_density(epsilon0, gamma, shift):
    n, most = 200_000, 40 / epsilon0 + 4
    x = ((np.arange(n) + 0.5) / n * 2 - 1) * most
    p = staircase_density(x, epsilon0, gamma)
    q = staircase_density(x - shift, epsilon0, gamma)
    loss = np.round(np.log(p / q) / epsilon0)
    found = [p[loss == k].sum() / p.sum() for k in (-1, 0, 1)]
    assert shift_losses(epsilon0, gamma, shift) == pytest.approx(found, abs=1e-3)


@pytest.mark.parametrize("rounds", [1, 2, 7, 60])
def test_lattice_epsilon_is_that_of_the_enumeration(rounds):
    p = atoms(0.6, 0.3)
    total, first = compose(p, rounds)
    epsilon = lattice_epsilon(total, first, 0.6, 1e-4)
    assert total.sum() == pytest.approx(1, abs=1e-12)
    assert three_point_delta(p[::-1], p, rounds, epsilon) == pytest.approx(1e-4)


def test_long_compositions_are_those_of_short_ones():
    p = shift_losses(2.0, 0.3, 0.02)
    exact, first = compose(p, 4096)
    a = lattice_epsilon(exact, first, 2.0, 1e-6)
    longer, first = compose(p, 4097)
    b = lattice_epsilon(longer, first, 2.0, 1e-6)
    assert a < b < a * 1.001


def test_what_steps_on_every_coordinate_really_cost():
    """ "eps=8, L2 clip 1, per coordinate" at the gamma of least expected size."""
    gamma = best_gamma(8.0, moment="l1")
    for d, cost in ((1_000, 7_256), (10_000, 23_360), (1_000_000, 223_902)):
        assert iid_epsilon(8.0, gamma, d, 1e-5) == pytest.approx(cost, rel=1e-3)
    assert iid_epsilon(8.0, gamma, 1, 1e-5) == pytest.approx(8.0, rel=1e-4)
