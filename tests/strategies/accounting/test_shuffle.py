"""Shuffling: the bound is the sum over all outcomes, and never below a real attack."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom

from strategies.accounting.shuffle import amplified, shuffled_delta


def enumerated(epsilon0: float, n: int, epsilon: float) -> float:
    """The divergence of Theorem 3.2, outcome by outcome."""
    own = math.exp(epsilon0) / (1 + math.exp(epsilon0))
    total = 0.0
    for c in range(n):
        k = np.arange(c + 2)
        plain, more = binom.pmf(k, c, 0.5), binom.pmf(k - 1, c, 0.5)
        p, q = own * more + (1 - own) * plain, (1 - own) * more + own * plain
        excess = np.clip(p - math.exp(epsilon) * q, 0, None).sum()
        total += binom.pmf(c, n - 1, math.exp(-epsilon0)) * excess
    return total


@pytest.mark.parametrize(
    ("epsilon0", "n", "epsilon"),
    [(1.0, 1, 0.3), (1.0, 20, 0.5), (2.0, 100, 0.8), (0.5, 50, 0.1), (3.0, 60, 1.0)],
)
def test_tails_are_the_sum_over_outcomes(epsilon0, n, epsilon):
    expected = enumerated(epsilon0, n, epsilon)
    assert shuffled_delta(epsilon0, n, epsilon) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(
    ("epsilon0", "n", "epsilon"), [(1.0, 20, 0.3), (2.0, 40, 0.4), (3.0, 30, 1.0)]
)
def test_shuffled_randomized_response_is_within_the_bound(epsilon0, n, epsilon):
    """Counting ones is all that a server can do; the others send any bits."""
    keep = math.exp(epsilon0) / (1 + math.exp(epsilon0))
    bound = shuffled_delta(epsilon0, n, epsilon)
    for ones in range(n):
        rest = np.convolve(
            binom.pmf(np.arange(ones + 1), ones, keep),
            binom.pmf(np.arange(n - ones), n - 1 - ones, 1 - keep),
        )
        p = np.convolve(rest, [1 - keep, keep])
        q = np.convolve(rest, [keep, 1 - keep])
        for one, two in ((p, q), (q, p)):
            assert np.clip(one - math.exp(epsilon) * two, 0, None).sum() <= bound


@pytest.mark.parametrize(
    ("epsilon0", "n", "least", "most"),
    [
        (1, 100, 0.5, 0.58),
        (2, 100, 1.9, 1.99),
        (1, 1000, 0.14, 0.161),
        (2, 1000, 0.4, 0.493),
        (4, 1000, 3.5, 4.0),
        (2, 10_000, 0.11, 0.133),
        (4, 10_000, 0.4, 0.759),
        (4, 100_000, 0.1, 0.208),
    ],
)
def test_at_most_what_a_coarser_sum_gives(epsilon0, n, least, most):
    """Upper values: a public implementation that sums over blocks of outcomes."""
    assert least < amplified(epsilon0, n, 1e-5) <= most


def test_below_the_closed_form():
    """Theorem 3.1, where it applies."""
    for epsilon0, n in ((1.0, 10_000), (2.0, 100_000), (4.0, 100_000)):
        root = 8 * math.sqrt(math.exp(epsilon0) * math.log(4 / 1e-5) / n)
        slope = math.expm1(epsilon0) / (math.exp(epsilon0) + 1)
        closed = math.log1p(slope * (root + 8 * math.exp(epsilon0) / n))
        assert amplified(epsilon0, n, 1e-5) < closed


def test_no_gain_at_a_local_epsilon_of_eight():
    for n in (1, 20, 1000, 10_000):
        assert amplified(8.0, n, 1e-5) == pytest.approx(8.0, rel=1e-4)


def test_one_report_is_not_hidden_by_anybody():
    assert amplified(0.7, 1, 1e-5) == pytest.approx(0.7, rel=1e-4)


@given(st.floats(0.01, 6.0), st.integers(1, 3000), st.floats(1e-9, 0.1))
def test_never_above_local_and_better_with_more_clients(epsilon0, n, delta):
    one, many = amplified(epsilon0, n, delta), amplified(epsilon0, 4 * n, delta)
    assert 0 <= many <= one * (1 + 1e-5) + 1e-5
    assert one <= epsilon0
    if 0 < one < epsilon0:
        assert shuffled_delta(epsilon0, n, one) <= delta


@pytest.mark.parametrize(
    "values", [(0.0, 5, 0.1), (math.inf, 5, 0.1), (1.0, 0, 0.1), (1.0, 5, 0.0)]
)
def test_values_out_of_range_are_refused(values):
    with pytest.raises(ValueError, match="expected"):
        amplified(*values)
