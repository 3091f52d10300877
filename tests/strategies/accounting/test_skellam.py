"""The cost of Skellam noise against divergences computed from its probabilities."""

from __future__ import annotations

import itertools
import math

import mpmath
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import logsumexp

from strategies.accounting.calibrate import calibrate, noise_std
from strategies.accounting.events import Release
from strategies.accounting.ledger import BudgetExceeded, Ledger
from strategies.accounting.pld import delta_at, epsilon_at
from strategies.accounting.rdp import ORDERS, rdp
from strategies.accounting.sampling import Sampling
from strategies.accounting.skellam import divergence, sensitivities

VARIANCES = (4.0, 16.0, 100.0, 1000.0)
WHOLE = (2, 3, 8, 32)


def log_probabilities(variance, last):
    """Return ln f(0), ..., ln f(last): the three-term recurrence, run backwards."""
    with mpmath.workdps(40):
        top = last + 200 + int(10 * math.sqrt(variance))
        f = [mpmath.mpf(0)] * (top + 2)
        f[top] = mpmath.mpf(1)
        for k in range(top, 0, -1):
            f[k - 1] = f[k + 1] + 2 * k / mpmath.mpf(variance) * f[k]
        total = f[0] + 2 * mpmath.fsum(f[1:])
        return np.array([float(mpmath.log(x / total)) for x in f[: last + 1]])


@pytest.fixture(scope="module")
def logs():
    return {v: log_probabilities(v, int(400 * math.sqrt(v))) for v in VARIANCES}


def exact(log_f, shift, order):
    """Return the divergence of noise shifted by an integer, summed term by term."""
    span = len(log_f) - 1 - shift
    x = np.arange(-span, span + 1)
    terms = order * log_f[np.abs(x)] + (1 - order) * log_f[np.abs(x - shift)]
    assert terms[0] < terms.max() - 60  # nothing is cut off
    return float(logsumexp(terms)) / (order - 1)


@pytest.mark.parametrize("order", [*WHOLE, 1.1, 1.5, 2.5, 6.25])
@pytest.mark.parametrize("variance", VARIANCES)
def test_the_bound_holds_for_one_number(variance, order, logs):
    std = math.sqrt(variance)
    for shift in {1, 2, 3, round(std), round(2 * std), round(3 * std)}:
        true = exact(logs[variance], shift, order)
        bound = divergence(variance, shift, shift, order)
        assert bound >= true
        # Little is lost where noise is wide; between orders the line is above.
        if variance >= 100 and order in WHOLE and order * shift <= std:
            assert bound <= 1.03 * true


@pytest.mark.parametrize("order", WHOLE)
@pytest.mark.parametrize("l2", [2.0, 3.0, 5.0])
def test_the_bound_holds_for_the_worst_pair_of_numbers(l2, order, logs):
    """All pairs of shifts within an L2 distance, not only those along an axis."""
    variance = 16.0
    by_shift = [0.0] + [
        exact(logs[variance], k, order) for k in range(1, math.floor(l2) + 1)
    ]
    reach = range(math.floor(l2) + 1)
    inside = [
        p for p in itertools.product(reach, reach) if math.hypot(*p) <= l2 and any(p)
    ]
    worst = max(by_shift[a] + by_shift[b] for a, b in inside)
    l1 = max(a + b for a, b in inside)
    assert l1 <= min(math.sqrt(2) * l2, l2**2)
    assert divergence(variance, min(math.sqrt(2) * l2, l2**2), l2, order) >= worst
    if order <= 8:  # half the variance is not covered
        assert divergence(2 * variance, l1, l2, order) < worst


@pytest.mark.parametrize("variance", VARIANCES)
def test_second_differences_are_largest_at_0(variance, logs):
    """Without which the derivation in the module would not give the theorem."""
    log_f = logs[variance][: int(40 * math.sqrt(variance))]
    steps = np.diff(np.concatenate([log_f[1:2], log_f]))
    second = -np.diff(steps)
    assert second.argmax() == 0
    assert np.all(second <= second[0])
    assert second[0] <= 1 / variance + (2 * 2 - 1) / (2 * 2 * variance**2)


@pytest.mark.parametrize("order", ORDERS)
def test_wide_noise_costs_what_gaussian_noise_costs(order):
    skellam = Release("skellam", scale=3.0, dimension=10**6, units=2.0**16)
    gaussian = Release("gaussian", scale=3.0)
    [ours], [limit] = rdp(skellam, (order,)), rdp(gaussian, (order,))
    if order == int(order):
        assert limit <= ours <= (1 + 1e-6) * limit
    else:  # (a - 1) D_a is at most a line there, a parabola in truth
        low = math.floor(order)
        line = (low * (low - 1) + 2 * low * (order - low)) / (order - 1) / order
        assert limit <= ours <= (line + 1e-6) * limit


@given(st.floats(2.0, 1e6), st.floats(1.0, 1e4), st.floats(1.001, 300.0))
def test_more_noise_and_lower_orders_never_cost_more(variance, l2, order):
    l1 = l2**2
    cost = divergence(variance, l1, l2, order)
    assert cost > 0
    assert divergence(1.1 * variance, l1, l2, order) < cost
    assert divergence(variance, 1.1 * l1, 1.1 * l2, order) > cost
    # (a - 1) D_a is convex and starts at 0, so D_a rises.
    assert divergence(variance, l1, l2, order * 1.01) >= cost * (1 - 1e-12)


def test_distances_follow_from_the_clip():
    one = Release("skellam", scale=3.0, dimension=100, units=50.0)
    both = Release("skellam", scale=3.0, dimension=100, units=50.0, relation="replace")
    assert sensitivities(one) == (500.0, 50.0)
    assert sensitivities(both) == (1000.0, 100.0)
    # Integers of a small square have few nonzero coordinates.
    few = Release("skellam", scale=3.0, dimension=10**6, units=5.0)
    assert sensitivities(few) == (25.0, 5.0)


@pytest.mark.parametrize("relation", ["add-remove", "replace"])
@pytest.mark.parametrize(("epsilon", "rounds"), [(8.0, 50), (1.0, 10), (0.5, 1)])
def test_calibrated_noise_fits_and_less_does_not(epsilon, rounds, relation):
    made = {"relation": relation, "dimension": 1000, "units": 2.0**12}
    release = calibrate("skellam", epsilon, 1e-5, rounds, **made)
    assert epsilon_at({release: rounds}, 1e-5) <= epsilon
    assert delta_at({release: rounds}, epsilon) <= 1e-5 * (1 + 1e-6)
    less = Release("skellam", scale=0.999 * release.scale, **made)
    assert epsilon_at({less: rounds}, 1e-5) > epsilon
    # Exact composition of Gaussian noise is a little cheaper than Rényi divergences.
    gaussian = calibrate("gaussian", epsilon, 1e-5, rounds, relation=relation)
    assert 1 < noise_std(release) / noise_std(gaussian) < 1.2


def test_a_ledger_counts_them_says_by_which_theorem_and_comes_back():
    ledger = Ledger(2.0, 1e-5, relation="replace", trust="distributed")
    release = calibrate(
        *("skellam", 2.0, 1e-5, 3), relation="replace", dimension=9, units=4096.0
    )
    count = Release("gaussian", scale=900.0, relation="replace")
    for _ in range(3):
        ledger.charge(release)
    with pytest.raises(BudgetExceeded):
        ledger.charge(release)
    assert 1.99 < ledger.spent() <= 2.0
    assert "Theorem 3.5" in ledger.describe()
    assert "server sees only sums" in ledger.describe()
    again = Ledger(2.0, 1e-5, relation="replace", trust="distributed")
    again.load_state(ledger.state())
    assert again.spent() == ledger.spent()
    assert epsilon_at({release: 3, count: 1}, 1e-5) > ledger.spent()


def test_events_of_other_versions_have_no_units():
    values = Release("gaussian", scale=2.0).as_dict()
    del values["units"]
    assert Release.from_dict(values) == Release("gaussian", scale=2.0)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"units": 0.0}, "units"),
        ({"units": -1.0}, "units"),
        ({"units": math.nan}, "finite"),
        ({"scale": 1e-4}, "scale"),
        ({"epsilon0": 1.0}, "no epsilon0"),
        ({"sampling": Sampling("poisson", 0.1)}, "everybody knows who"),
        ({"mechanism": "gaussian"}, "none for gaussian"),
    ],
)
def test_what_has_no_guarantee_is_refused(changes, reason):
    fields = {"mechanism": "skellam", "scale": 2.0, "dimension": 5, "units": 64.0}
    assert Release(**fields).norm == "l2"
    with pytest.raises(ValueError, match=reason):
        Release(**{**fields, **changes})
