"""The norm of a clipped update in exact integers, whatever the update."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from strategies.mechanisms.clip import clip
from strategies.mechanisms.lattice import (
    BLOCK,
    Lattice,
    from_lattice,
    lattice,
    to_lattice,
)

NORMS = ["l1", "l2"]
ANY = st.floats(width=32)
FINITE = st.floats(width=32, allow_nan=False, allow_infinity=False)
CLIPS = st.one_of(
    st.floats(1e-3, 1e3), st.sampled_from([1.0, 0.1, 2.0**-60, 2.0**60, 1e-18])
)


def updates(values, size=20):
    return arrays(np.float32, st.integers(1, size), elements=values)


def exact_norm(integers, norm):
    """The norm, squared for L2, by Python's integers."""
    values = [abs(int(i)) for i in integers]
    return sum(values) if norm == "l1" else sum(v * v for v in values)


def within(clipped, on):
    limit = Fraction(on.clip) / Fraction(on.step)
    return exact_norm(clipped.integers, on.norm) <= (
        limit if on.norm == "l1" else limit * limit
    )


@pytest.mark.parametrize("norm", NORMS)
@given(x=updates(ANY), bound=CLIPS)
@example(x=np.zeros(3, np.float32), bound=1.0)
@example(x=np.full(20, 3e38, np.float32), bound=1.0)
@example(x=np.full(20, 1e-45, np.float32), bound=2.0**-60)
@example(x=np.array([0.1], np.float32), bound=0.1)
@example(x=np.array([1.0, np.nan, np.inf], np.float32), bound=1.0)
def test_the_norm_is_at_most_the_clip_in_exact_integers(x, bound, norm):
    on = lattice(bound, len(x), norm)
    clipped = clip(x, on)
    assert clipped.integers.dtype == np.int64
    assert within(clipped, on)
    assert clipped.finite == np.isfinite(x).all()
    if not clipped.finite:
        assert not clipped.integers.any()
        assert math.isnan(clipped.norm)


@pytest.mark.parametrize("norm", NORMS)
@given(x=updates(FINITE), bound=CLIPS)
def test_the_direction_is_kept_to_the_lattice(x, bound, norm):
    on = lattice(bound, len(x), norm)
    clipped = clip(x, on)
    exact = x.astype(np.float64) * (clipped.factor / on.step)
    assert np.abs(exact - clipped.integers).max() <= 1
    assert (np.abs(clipped.integers) <= np.abs(exact)).all()  # toward zero
    length = np.linalg.norm(x.astype(np.float64), 1 if norm == "l1" else 2)
    if length > bound * 1.01:  # shortened, and not more than needed
        assert math.isclose(clipped.factor, bound / length, rel_tol=1e-4)
    elif length < bound * (1 - 1e-5):
        assert clipped.factor == 1


@pytest.mark.parametrize("norm", NORMS)
@given(x=updates(FINITE), bound=CLIPS)
def test_clipping_again_changes_nothing(x, bound, norm):
    on = lattice(bound, len(x), norm)
    once = clip(x, on).integers
    again = clip(from_lattice(once, on), on)
    assert np.array_equal(again.integers, once)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("kind", ["dense", "sparse", "equal", "steep"])
def test_long_updates(norm, kind):
    d = 2 * BLOCK + 17
    rng = np.random.default_rng(1)
    x = rng.standard_normal(d).astype(np.float32)
    if kind == "sparse":
        x[rng.random(d) < 0.999] = 0
    elif kind == "equal":
        x[:] = 0.1
    elif kind == "steep":
        x *= np.logspace(-30, 30, d).astype(np.float32)
    on = lattice(0.7, d, norm)
    clipped = clip(x, on)
    assert within(clipped, on)
    share = exact_norm(clipped.integers, norm) / on.bound
    assert share > 1 - 2e-3  # what rounding and safety take is little
    assert not clip(np.append(x, np.float32(np.nan)), on).finite


def test_a_wrong_norm_is_caught_by_the_integers(monkeypatch):
    x = np.random.default_rng(1).standard_normal(1000).astype(np.float32)
    on = lattice(1.0, 1000)
    for wrong in (0.0, 1.0, 20.0):
        monkeypatch.setattr(
            "strategies.mechanisms.clip._norm", lambda *_, wrong=wrong: wrong
        )
        assert within(clip(x, on), on)


def test_without_the_check_the_bound_would_be_passed():
    x = np.full(3, 0.57736, np.float32)
    on = lattice(1.0, 3)
    _, size = to_lattice(x, on)
    assert size > on.bound


@given(bound=st.floats(2.0**-60, 2.0**60), d=st.integers(1, 10**10))
def test_the_lattice_is_public_and_exact(bound, d):
    for norm in NORMS:
        on = lattice(bound, d, norm)
        assert math.frexp(on.step)[0] == 0.5  # a power of two
        assert Fraction(on.units) == Fraction(on.clip) / Fraction(on.step)
        assert on.units >= 2**20
        assert on.bound < 2**53  # see `to_lattice`: sums are exact
        lost = d if norm == "l1" else math.sqrt(d)
        if d <= 2**24:
            assert lost / on.units <= 2.0**-12  # one step of every value
    assert lattice(bound, d) == lattice(bound, d)


@pytest.mark.parametrize("size", [2**53, 2**53 + 1])
def test_a_norm_beyond_exact_sums_is_seen_as_too_long(size):
    on = Lattice(1.0, 2.0**-48, "l1")
    x = np.full(2**10, size / 2**10 * on.step)
    _, found = to_lattice(x, on)
    assert found >= 2**53 > on.bound


def test_sums_that_may_not_fit_are_refused():
    on = lattice(1.0, 10)
    on.check_sum(10**6, noise=2.0**40)
    with pytest.raises(ValueError, match="may not fit"):
        on.check_sum(10**6, noise=2.0**62)
    with pytest.raises(ValueError, match="may not fit"):
        on.check_sum(2**43, noise=0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0.0, 5), "clip"),
        ((math.nan, 5), "clip"),
        ((math.inf, 5), "clip"),
        ((1e30, 5), "clip"),
        ((1.0, 0), "d=0"),
        ((1.0, 5, "linf"), "norm"),
    ],
)
def test_refused_lattices(arguments, message):
    with pytest.raises(ValueError, match=message):
        lattice(*arguments)


def test_decoding_divides():
    on = lattice(1.0, 4)
    integers = np.array([0, 1, -3, 2**20], np.int64)
    assert from_lattice(integers, on).tolist() == (integers * on.step).tolist()
    assert from_lattice(integers, on, 4.0).tolist() == (integers * on.step / 4).tolist()
