"""The codec of each node follows the tolerance, its errors and its speed."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from strategies.compression.adaptive import RUNGS, Adaptive, Rung, expected_error
from strategies.compression.codecs import make_codec

D = 100_000
SIZES = {r: make_codec(r.codec, r.ratio).predicted_bytes(D) for r in RUNGS}


@pytest.mark.parametrize("rung", RUNGS, ids=str)
def test_the_expected_error_is_that_of_gaussian_values(rung):
    x = np.random.default_rng(1).normal(size=D).astype(np.float32)
    codec, rng = make_codec(rung.codec, rung.ratio), np.random.default_rng(2)
    lost = x - codec.decode(codec.encode(x, rng), D)
    error = np.square(lost).sum() / np.square(x).sum()
    assert error == pytest.approx(expected_error(rung, D), rel=0.15)


@given(st.floats(0.001, 1.0))
def test_without_a_target_the_smallest_within_the_tolerance(tolerance):
    rung, told = Adaptive(tolerance, 0.0).choose("a", D)
    fit = [r for r in RUNGS if expected_error(r, D) <= tolerance]
    assert SIZES[rung] == min(SIZES[r] for r in fit)
    assert told["codec"] == rung.codec
    assert told["error"] <= tolerance
    assert "speed" not in told


def test_if_none_is_within_the_tolerance_the_most_exact():
    rung, told = Adaptive(1e-9, 0.0).choose("a", D)
    assert rung == min(RUNGS, key=lambda r: expected_error(r, D))
    assert told["error"] > 1e-9  # and the event says what it is


def test_a_decision_is_told_once():
    adaptive = Adaptive(0.2, 0.0)
    assert adaptive.choose("a", D)[1] is not None
    assert adaptive.choose("a", D)[1] is None
    assert adaptive.choose("b", D)[1] is not None


def test_measured_errors_count_for_the_codec_that_made_them():
    adaptive = Adaptive(0.9, 0.0)
    first, _ = adaptive.choose("a", D)
    adaptive.learn("a", 0.95, 1000, None)  # more than is accepted
    second, told = adaptive.choose("a", D)
    assert SIZES[second] > SIZES[first]
    assert told["error"] <= 0.9
    assert adaptive.choose("b", D)[0] == first  # of another node nothing is known
    adaptive.learn("a", math.nan, 1000, None)
    assert adaptive.choose("a", D)[0] == second


def test_with_a_target_the_most_exact_that_arrives_in_time():
    seconds = 2.0
    for rung in RUNGS:
        adaptive = Adaptive(1.0, seconds)
        start, _ = adaptive.choose("a", D)
        assert SIZES[start] == min(SIZES.values())  # nothing is known of its speed
        speed = SIZES[rung] / seconds * 1.01
        adaptive.learn("a", math.nan, 1000, 1000 / speed)
        chosen, told = adaptive.choose("a", D)
        in_time = [r for r in RUNGS if SIZES[r] <= speed * seconds]
        assert rung in in_time
        assert chosen == min(in_time, key=lambda r: expected_error(r, D))
        assert told is None or told["speed"] == pytest.approx(speed, abs=1)


def test_too_slow_for_all_gets_the_smallest_within_the_tolerance():
    adaptive = Adaptive(0.2, 1.0)
    before, _ = adaptive.choose("a", D)
    adaptive.learn("a", math.nan, 10, 1000.0)
    assert adaptive.choose("a", D)[0] == before


@given(
    st.floats(allow_nan=True),
    st.integers(0, 2**60),
    st.one_of(st.none(), st.floats(allow_nan=False)),
)
def test_nothing_a_node_says_leads_beyond_the_rungs(error, count, rest):
    adaptive = Adaptive(0.5, 1.0)
    adaptive.choose("a", D)
    adaptive.learn("a", error, count, rest)
    rung, told = adaptive.choose("a", D)
    assert rung in RUNGS
    numbers = [v for v in (told or {}).values() if not isinstance(v, str)]
    assert all(0 <= v < math.inf for v in numbers)


def test_a_speed_beyond_numbers_is_a_speed():
    adaptive = Adaptive(0.5, 1.0)
    adaptive.choose("a", D)
    adaptive.learn("a", 0.1, 2**60, 5e-324)
    _, told = adaptive.choose("a", D)
    assert told is not None
    assert told["speed"] == 10**15


def test_what_is_known_survives_a_restart():
    adaptive = Adaptive(0.9, 1.0)
    adaptive.choose("a", D)
    adaptive.learn("a", 0.95, 1000, 0.01)
    adaptive.choose("b", D)
    again = Adaptive(0.9, 1.0)
    again.load_state(adaptive.state())
    assert again.state() == adaptive.state()
    assert again.choose("a", D) == adaptive.choose("a", D)
    assert again.choose("b", D)[1] is None


def test_names_of_rungs():
    assert [str(r) for r in (Rung("q8"), Rung("topk-q8", 0.1))] == ["q8", "topk-q8 0.1"]
    assert len({str(r) for r in RUNGS}) == len(RUNGS)
