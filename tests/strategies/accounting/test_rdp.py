"""Rényi curves against closed forms and other accountants; the filter."""

from __future__ import annotations

import math

import dp_accounting
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from opacus.accountants.analysis.rdp import compute_rdp
from scipy.integrate import quad

from strategies.accounting.events import Release
from strategies.accounting.pld import epsilon_at
from strategies.accounting.rdp import (
    ORDERS,
    RdpFilter,
    best_order,
    epsilon_of,
    rdp,
)
from strategies.accounting.sampling import Sampling

WHOLE = tuple(a for a in ORDERS if a == int(a))
POISSON = Sampling("poisson", 0.1)
FIXED = {"sampling": Sampling("fixed", 0.1, 100), "relation": "replace"}

EVERY_KIND = [
    Release("gaussian", scale=2.0),
    Release("gaussian", scale=1.0, sampling=POISSON),
    Release("gaussian", scale=3.0, **FIXED),
    Release("laplace", scale=3.0),
    Release("laplace", scale=1.0, sampling=POISSON),
    Release("laplace", scale=4.0, **FIXED),
    Release("staircase", epsilon0=0.5),
    Release("staircase", epsilon0=2.0, sampling=POISSON),
    Release("staircase", epsilon0=1.0, **FIXED),
    Release("staircase-ball", epsilon0=0.5, dimension=4),
    Release("laplace-ball", epsilon0=1.0, dimension=4, sampling=POISSON),
]


@pytest.mark.parametrize(("z", "q"), [(1.0, 0.01), (0.936, 0.1), (2.0, 0.2), (4, 1)])
def test_sampled_gaussian_is_that_of_opacus(z, q):
    release = Release("gaussian", scale=z, sampling=Sampling("poisson", q))
    opacus = compute_rdp(q=q, noise_multiplier=z, steps=1, orders=list(WHOLE))
    assert rdp(release, WHOLE) == pytest.approx(opacus, rel=1e-9)


@pytest.mark.parametrize("order", [1.1, 1.75, 3.5])
@pytest.mark.parametrize(("z", "q"), [(0.5, 0.01), (1.1, 0.3)])
def test_orders_that_are_no_whole_numbers_are_integrals(z, q, order):
    release = Release("gaussian", scale=z, sampling=Sampling("poisson", q))

    def integrand(x: float) -> float:
        ratio = 1 - q + q * math.exp(x / z - 1 / (2 * z * z))
        return math.exp(-x * x / 2) / math.sqrt(2 * math.pi) * ratio**order

    total = sum(
        quad(integrand, a, a + 1, epsabs=1e-14)[0]
        for a in range(-12, 12 + int(order / z))
    )
    assert rdp(release, (order,))[0] == pytest.approx(
        math.log(total) / (order - 1), rel=1e-6
    )


def test_laplace_is_mironovs_closed_form():
    b, orders = 1.7, np.array(ORDERS)
    up = orders / (2 * orders - 1) * np.exp((orders - 1) / b)
    down = (orders - 1) / (2 * orders - 1) * np.exp(-orders / b)
    closed = np.log(up + down) / (orders - 1)
    assert rdp(Release("laplace", scale=b)) == pytest.approx(closed.tolist(), rel=1e-9)


@pytest.mark.parametrize("release", EVERY_KIND)
def test_renyi_never_promises_more_than_exact_composition(release):
    for rounds in (1, 40):
        curve = [rounds * r for r in rdp(release)]
        loose = epsilon_of(curve, ORDERS, 1e-5)
        exact = epsilon_at({release: rounds}, 1e-5)
        assert exact <= loose <= 1.6 * exact + 0.2


def test_fixed_samples_are_below_the_bound_of_dp_accounting():
    """Wang, Balle, Kasiviswanathan (2019); equal at high orders."""
    release = Release("gaussian", scale=4.0, **FIXED)
    google = dp_accounting.rdp.RdpAccountant(
        WHOLE, dp_accounting.NeighboringRelation.REPLACE_ONE
    )
    event = dp_accounting.GaussianDpEvent(2.0)
    google.compose(dp_accounting.SampledWithoutReplacementDpEvent(100, 10, event))
    curve = rdp(release, WHOLE)
    for delta in (1e-3, 1e-5, 1e-8):
        assert epsilon_of(curve, WHOLE, delta) <= google.get_epsilon(delta) * (1 + 1e-6)


def test_orders_out_of_reach_have_no_value():
    release = Release("gaussian", scale=0.1, sampling=POISSON)
    curve = dict(zip(ORDERS, rdp(release), strict=True))
    assert math.isfinite(curve[32.0])
    assert math.isinf(curve[64.0])
    nothing = Release("gaussian", scale=0.002, sampling=POISSON)
    assert set(rdp(nothing)) == {math.inf}
    assert epsilon_of(rdp(nothing), ORDERS, 1e-5) == math.inf
    with pytest.raises(ValueError, match="Orders"):
        rdp(release, (1.0, 2.0))


@pytest.mark.parametrize("release", EVERY_KIND)
def test_the_best_order_lets_the_most_rounds_pass(release):
    order = best_order(release, 8.0, 1e-5)
    filters = {a: RdpFilter(8.0, 1e-5, [a]) for a in (order, *ORDERS[12:30:3])}

    def rounds(a: float) -> int:
        n = 1
        while not filters[a].would_exceed(release, n):
            n += 1
        return n

    counts = {a: rounds(a) for a in filters}
    assert counts[order] == max(counts.values())


def spend(found: RdpFilter, choose, most: int = 3000) -> dict[Release, int]:
    """Let an adversary choose until nothing fits."""
    made: dict[Release, int] = {}
    for number in range(most):
        release = choose(number)
        if found.would_exceed(release):
            with pytest.raises(ValueError, match="leave the budget"):
                found.add(release)
            return made
        found.add(release)
        made[release] = made.get(release, 0) + 1
    raise AssertionError("the filter never stopped")


@pytest.mark.parametrize("orders", [(6.0,), (3.0, 6.0, 12.0)])
@pytest.mark.parametrize("fall", [1.0, 0.97])
def test_the_filter_stops_before_exceeding(orders, fall):
    found = RdpFilter(4.0, 1e-5, orders)
    made = spend(found, lambda i: Release("gaussian", scale=8.0 * fall ** min(i, 60)))
    assert found.spent() <= 4.0
    assert epsilon_at(made, 1e-5) <= 4.0
    assert sum(made.values()) > 10


def test_orders_that_are_of_no_use_cost_delta():
    """Each of k orders gets delta / k."""
    one, many = RdpFilter(4.0, 1e-5, (6.0,)), RdpFilter(4.0, 1e-5, (1.2, 1.3, 6.0))
    release = Release("gaussian", scale=10.0)
    one.add(release)
    many.add(release)
    assert many.spent() > one.spent()


def test_slack_has_its_own_part_of_delta():
    found = RdpFilter(4.0, 1e-5, (6.0,))
    loose = Release("gaussian", scale=100.0, delta_slack=3e-8)
    found.add(loose, 3)
    assert found.would_exceed(loose)
    assert not found.would_exceed(Release("gaussian", scale=100.0))


@pytest.mark.parametrize("orders", [(), (1.0,), (math.inf,), (1.5,)])
def test_useless_orders_are_refused(orders):
    with pytest.raises(ValueError, match=r"[Oo]rders"):
        RdpFilter(1.0, 1e-5, orders)


@given(st.lists(st.sampled_from(EVERY_KIND[:2] + EVERY_KIND[3:5]), max_size=12))
def test_spending_more_never_lowers_what_was_spent(releases):
    found, before = RdpFilter(50.0, 1e-5, (2.0, 5.0)), 0.0
    for release in releases:
        if not found.would_exceed(release):
            found.add(release)
        assert before <= found.spent() <= 50.0
        before = found.spent()
