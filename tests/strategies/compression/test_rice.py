"""Sorted indices: back as they were, next to the entropy, and nothing else."""

from __future__ import annotations

import math
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from strategies.compression import rice
from strategies.compression.lossless import lengthen, shorten
from tests.strategies.compression.updates import clustered
from truststram.errors import ProtocolError

some_indices = st.integers(0, 400).flatmap(
    lambda d: st.tuples(st.just(d), st.sets(st.integers(0, max(d - 1, 0)), max_size=d))
)


def random_places(k, d, seed=1):
    return np.sort(np.random.default_rng(seed).permutation(d)[:k])


def entropy_bytes(k, d):
    """Return log2(binomial(d, k)) / 8."""
    nats = math.lgamma(d + 1) - math.lgamma(k + 1) - math.lgamma(d - k + 1)
    return nats / math.log(2) / 8


@given(some_indices)
def test_indices_come_back(case):
    d, found = case
    found = {i for i in found if i < d}
    indices = np.array(sorted(found), np.int64)
    data = rice.encode(indices, d)
    assert len(data) <= rice.most_bytes(len(indices), d)
    again, rest = rice.decode(memoryview(data + b"rest"), d)
    assert np.array_equal(again, indices)
    assert bytes(rest) == b"rest"


@pytest.mark.parametrize("d", [1, 7, 8, 9, 2**20, 2**32 - 1])
def test_the_first_and_the_last_coordinate(d):
    indices = np.unique(np.array([0, d - 1], np.int64))
    again, _ = rice.decode(memoryview(rice.encode(indices, d)), d)
    assert np.array_equal(again, indices)


@pytest.mark.parametrize("part", [0.001, 0.01, 0.1, 0.3])
def test_random_places_take_their_entropy_and_5_percent(part):
    d = 300_000
    k = int(part * d)
    size = len(rice.encode(random_places(k, d), d))
    assert 1 < (size - rice.HEADER.size) / entropy_bytes(k, d) < 1.05
    assert size == pytest.approx(rice.expected_bytes(k, d), rel=0.01)


def test_clustered_places_take_less():
    x = clustered(200_000)
    places = np.sort(np.argsort(-np.abs(x))[:20_000])
    assert len(rice.encode(places, len(x))) < 0.8 * entropy_bytes(20_000, len(x))


def test_lengths_of_random_places_spread_less_than_independent_gaps():
    d, k = 20_000, 2000
    sizes = [8 * len(rice.encode(random_places(k, d, seed), d)) for seed in range(100)]
    assert 0.1 < np.std(sizes) / rice.deviation_bits(k, d) < 0.5
    assert np.max(sizes) < 8 * rice.expected_bytes(k, d) + rice.deviation_bits(k, d)


def test_the_longest_arrangement_is_the_bound():
    """Every gap a multiple of 2**b: the low bits say nothing."""
    d, k = 10_000, 1000
    shift = rice.best_shift(k, d)
    gaps = np.full(k, 1 << shift)
    gaps[-((d - k) >> shift) % k :] = 0
    places = np.cumsum(gaps + 1) - 1
    places = places[places < d]
    assert len(rice.encode(places, d)) <= rice.most_bytes(len(places), d)


def header(k=0, size=0, stored=0, low=0, shift=0):
    return struct.pack("<IIIIB", k, size, stored, low, shift)


BROKEN = {
    "no header": header()[:-1],
    "more indices than coordinates": header(k=101),
    "no such shift": header(k=1, shift=32),
    "more in unary than k and d allow": header(k=1, size=2**31, stored=1, shift=3),
    "beyond the data": header(k=8, size=1, stored=200),
    "too few ones": header(k=2, size=1, stored=1) + b"\x01",
    "too many ones": header(k=1, size=1, stored=1) + b"\x03",
    "an index beyond d": header(k=1, size=2, stored=2, low=3, shift=3)
    + b"\x00\x80\x01\x01\x01",
    "low bits that are missing": header(k=1, size=1, stored=1, low=0, shift=3)
    + b"\x01",
    "low bits too many": header(k=1, size=1, stored=1, low=2, shift=1) + b"\x01\0\0",
    "unary with too many bytes": header(k=1, size=1, stored=2) + b"\x01\x00",
    "not a zstd frame": header(k=1, size=2, stored=1) + b"\x01",
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_indices_are_refused(name):
    with pytest.raises(ProtocolError) as caught:
        rice.decode(memoryview(BROKEN[name]), 100)
    assert caught.value.code in {"index", "zstd"}


@given(st.binary(max_size=200), st.integers(0, 300))
def test_any_bytes_are_increasing_indices_or_refused(data, d):
    try:
        indices, _ = rice.decode(memoryview(data), d)
    except ProtocolError:
        return
    assert np.all(np.diff(indices) > 0)
    assert not len(indices) or 0 <= indices[0] <= indices[-1] < d


@given(st.binary(max_size=300))
def test_shortened_bytes_come_back(raw):
    short = shorten(raw)
    assert len(short) <= len(raw)
    assert bytes(lengthen(memoryview(short), len(raw))) == raw


@pytest.mark.parametrize("size", [2**20 - 1, 2**20 + 1, 2**40])
def test_a_frame_that_declares_another_size_is_not_unpacked(size):
    bomb = shorten(bytes(2**20))
    assert len(bomb) < 100
    with pytest.raises(ProtocolError, match="zstd"):
        lengthen(memoryview(bomb), size)
    assert len(lengthen(memoryview(bomb), 2**20)) == 2**20


def test_two_frames_or_half_of_one_are_refused():
    frame = shorten(bytes(1000))
    for data in (frame + frame, frame[:-2], frame + b"x", b""):
        with pytest.raises(ProtocolError, match="zstd"):
            lengthen(memoryview(data), 1000)
