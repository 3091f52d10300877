"""The k largest are the k largest; public selections are the same everywhere."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from strategies.compression import selection
from strategies.compression.selection import Selection, count, largest
from tests.strategies.compression.updates import clustered, finite, heavy


def oracle(x, k):
    """Return the places of the k largest magnitudes that are not 0, by sorting."""
    order = np.argsort(-np.abs(x), kind="stable")[:k]
    return np.sort(order[x[order] != 0])


@given(finite, st.integers(0, 310))
def test_the_largest_of_few(x, k):
    assert np.array_equal(largest(x, k), oracle(x, k))


@pytest.mark.parametrize("k", [1, 50, 10_000, 60_000, 99_999, 100_000, 200_000])
@pytest.mark.parametrize("make", [heavy, clustered, lambda d: np.round(heavy(d))])
def test_the_largest_of_many(make, k):
    x = make(100_000).astype(np.float32)
    assert np.array_equal(largest(x, k), oracle(x, k))


@pytest.mark.parametrize("guess", [0.0, 1e-30, 2.0, 1e30])
def test_a_wrong_guess_changes_nothing(monkeypatch, guess):
    x = heavy(50_000)
    monkeypatch.setattr(selection, "_guess", lambda x, k: guess)
    assert np.array_equal(largest(x, 5000), oracle(x, 5000))


def test_the_guess_is_a_little_low():
    """A sample of 20,000 errs by 4 of its standard deviations once in 30,000 times."""
    x = np.abs(heavy(400_000))
    reach = int((x >= selection._guess(x, 40_000)).sum())
    assert 40_000 < reach < 46_000


@pytest.mark.parametrize(
    ("ratio", "d", "k"), [(0.1, 0, 0), (0.1, 1, 1), (0.1, 99, 10), (1.0, 7, 7)]
)
def test_count(ratio, d, k):
    assert count(ratio, d) == k


def test_a_seed_names_one_selection():
    """These numbers are the format: another generator would be another selection."""
    found = Selection.random(2026, 5, 100)
    assert found.indices.tolist() == [23, 58, 66, 78, 84]
    assert Selection.random(2027, 5, 100).indices.tolist() != [23, 58, 66, 78, 84]
    keys = np.random.PCG64(2026).random_raw(100)
    assert np.array_equal(found.indices, np.sort(np.argsort(keys)[:5]))


@pytest.mark.parametrize(("k", "d"), [(0, 0), (0, 9), (9, 9), (12, 9), (-1, 9)])
def test_all_or_none(k, d):
    assert Selection.random(1, k, d).k == min(max(k, 0), d)


def test_every_coordinate_is_as_likely():
    """chi-square over 50 coordinates, 2000 seeds; both tails 10^-6."""
    counts = np.zeros(50)
    for seed in range(2000):
        counts[Selection.random(seed, 10, 50).indices] += 1
    # Draws without replacement vary less than the binomial's: 1 - k/d of it.
    statistic = ((counts - 400) ** 2).sum() / (400 * 0.8) * 49 / 50
    assert 1e-6 < stats.chi2.sf(statistic, 49) < 1 - 1e-6


def test_gather_and_scatter_are_inverse_and_linear():
    x, y = heavy(500), heavy(500, seed=2)
    chosen = Selection.random(1, 50, 500)
    assert np.array_equal(
        chosen.gather(x) + chosen.gather(y), chosen.gather((x + y).astype(np.float32))
    )
    back = chosen.scatter(chosen.gather(x))
    assert np.array_equal(back[chosen.indices], x[chosen.indices])
    assert np.count_nonzero(back) == 50


@pytest.mark.parametrize("indices", [[3, 3], [4, 3], [-1, 2], [2, 10]])
def test_wrong_indices_are_refused(indices):
    with pytest.raises(ValueError, match="increasing indices below 10"):
        Selection(np.array(indices, np.int64), 10)


def test_other_lengths_are_refused():
    chosen = Selection.random(1, 5, 10)
    with pytest.raises(ValueError, match="10 values"):
        chosen.gather(heavy(11))
    with pytest.raises(ValueError, match="5 values"):
        chosen.scatter(heavy(10))


def test_the_digest_tells_selections_apart():
    digests = {Selection.random(seed, 5, 100).digest for seed in range(100)}
    assert len(digests) == 100
    one = Selection(np.array([1], np.int64), 10)
    assert one.digest != Selection(np.array([1], np.int64), 11).digest
    assert one.digest == Selection(np.array([1], np.int64), 10).digest
