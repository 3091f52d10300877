"""Quantised sums: exact integers, unbiased values, nothing outside its range."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from strategies.secure.quantise import Quantiser
from truststram.errors import ProtocolError


@given(
    bits=st.integers(2, 31),
    clip=st.floats(1e-3, 1e3),
    seed=st.integers(0, 2**32),
    count=st.integers(1, 5),
)
def test_a_sum_is_off_by_less_than_a_step_for_each_client(bits, clip, seed, count):
    quantiser = Quantiser(clip, bits, 8)
    rng = np.random.default_rng(seed)
    x = rng.uniform(-clip, clip, (count, 50)).astype(np.float32)
    x = np.clip(x, -clip, clip)
    q = [quantiser.encode(row, rng) for row in x]
    assert all(row.max() <= 2 * quantiser.half for row in q)
    total = np.sum(q, axis=0, dtype=np.int64)
    error = quantiser.decode_sum(total, count) - x.astype(np.float64).sum(0)
    assert np.abs(error).max() <= count * quantiser.step * (1 + 1e-6)
    assert total.max() < 2**quantiser.width


@pytest.mark.parametrize("bits", [2, 12, 20])
def test_rounding_is_right_on_average(bits):
    # Mean of n Bernoulli values: 5 standard deviations, once in 1.7 million.
    quantiser, n = Quantiser(1.0, bits, 1), 200_000
    for value in (0.3, -0.77):
        q = quantiser.encode(np.full(n, value), np.random.default_rng(3))
        mean = quantiser.decode_sum(q, 1).mean()
        assert abs(mean - value) < 5 * quantiser.step / 2 / np.sqrt(n)


def test_zero_and_the_clip_are_exact_and_what_is_beyond_is_counted():
    quantiser = Quantiser(0.5, 16, 3)
    x = np.array([0.0, 0.5, -0.5, 7.0, -np.inf], np.float32)
    q = quantiser.encode(x, np.random.default_rng(1))
    np.testing.assert_array_equal(
        quantiser.decode_sum(q, 1), np.array([0, 0.5, -0.5, 0.5, -0.5])
    )
    assert quantiser.clipped(x) == 2


def test_not_a_number_is_refused_wherever_it_is():
    quantiser = Quantiser(1.0, 16, 3)
    for place in (0, 70_000):
        x = np.zeros(80_000, np.float32)
        x[place] = np.nan
        with pytest.raises(ValueError, match="not a number"):
            quantiser.encode(x, np.random.default_rng(1))


@pytest.mark.parametrize(
    ("total", "count"), [([-1], 1), ([2 * 2047 + 1], 1), ([0], 0), ([0], 4)]
)
def test_what_is_no_sum_is_refused(total, count):
    quantiser = Quantiser(1.0, 12, 3)
    quantiser.check_sum(np.array([0, 2 * 2047]), 1)
    with pytest.raises(ProtocolError, match="sum-range"):
        quantiser.decode_sum(np.array(total), count)


@pytest.mark.parametrize("bad", [{"clip": 0.0}, {"bits": 1}, {"bits": 32}, {"most": 0}])
def test_parameters_are_checked(bad):
    with pytest.raises(ValueError, match="Expected"):
        Quantiser(**{"clip": 1.0, "bits": 12, "most": 3, **bad})
