"""Order statistics and distances by blocks equal NumPy's on the whole matrix."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from threadpoolctl import threadpool_limits

from strategies.robust import kernels, rows, sorting
from strategies.robust.preaggregators import nearest_mixing
from strategies.robust.rows import Mixture
from tests.oracles import robust as oracle


def random(seed: int, k: int, d: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(k, d)).astype(np.float32)


def brute_distances(x: np.ndarray) -> np.ndarray:
    x = x.astype(np.float64)
    return np.array([((x - row) ** 2).sum(axis=1) for row in x])


@given(st.integers(0, 2**31), st.integers(1, 70), st.integers(0, 300))
def test_median_is_numpys(seed, k, d):
    x = random(seed, k, d)
    before = x.copy()
    np.testing.assert_array_equal(kernels.median(list(x)), np.median(x, axis=0))
    np.testing.assert_array_equal(x, before)


@given(st.integers(0, 2**31), st.integers(1, 70), st.data())
def test_trimmed_mean_is_the_mean_of_the_sorted_middle(seed, k, data):
    f = data.draw(st.integers(0, (k - 1) // 2))
    x = random(seed, k, 50)
    expected = oracle.trimmed_mean(x, f)
    np.testing.assert_allclose(kernels.trimmed_mean(list(x), f), expected, atol=1e-6)


def middle_sum(x, low, high, out):
    sorter = kernels.middle_sorter(len(x), low, high, len(out))
    sorter.room(len(out))[:] = x
    kernels.middle_sum(sorter, out)


@pytest.mark.parametrize("k", [*range(1, 41), 48, 50, 52, 64, 67])
def test_the_network_finds_every_single_order_statistic(k):
    """The 0-1 principle, on random columns."""
    x = (np.random.default_rng(k).random((k, 300)) < 0.5).astype(np.float32)
    ordered = np.sort(x, axis=0)
    out = np.empty(300, np.float32)
    for low in range(k):
        middle_sum(x, low, low + 1, out)
        np.testing.assert_array_equal(out, ordered[low])


@pytest.mark.parametrize("k", [5, 48, 53, 100, sorting.NETWORK_ROWS + 1])
def test_all_order_statistics_at_once(k):
    x = random(k, k, 100)
    found = sorting.Sorter(k, 0, k, 100)(list(x))
    np.testing.assert_array_equal(np.array(found), np.sort(x, axis=0))


@pytest.mark.parametrize("k", [48, 100, sorting.NETWORK_ROWS + 3])
@pytest.mark.parametrize("f", [0, 1, 20])
def test_many_rows(k, f):
    x = random(1, k, 200)
    expected = np.sort(x.astype(float), axis=0)[f : k - f].mean(axis=0)
    np.testing.assert_allclose(kernels.trimmed_mean(list(x), f), expected, atol=1e-6)
    np.testing.assert_array_equal(kernels.median(list(x)), np.median(x, axis=0))


def test_a_sum_of_all_rows_compares_nothing():
    (stage,) = sorting._stages(20, 0, 20, True, 1)
    assert stage.comparisons == []


def test_huge_values_that_are_trimmed_leave_no_trace():
    x = random(2, 9, 100)
    x[0], x[1] = 3e38, -3e38
    expected = np.sort(x.astype(float), axis=0)[2:7].mean(axis=0)
    np.testing.assert_allclose(kernels.trimmed_mean(list(x), 2), expected, atol=1e-6)


def test_ties_equal_rows_one_row_and_no_columns():
    same = np.ones((7, 10), np.float32)
    np.testing.assert_array_equal(kernels.median(list(same)), 1)
    np.testing.assert_array_equal(kernels.trimmed_mean(list(same), 2), 1)
    np.testing.assert_array_equal(kernels.mean_around_median(list(same), 3), 1)
    np.testing.assert_array_equal(kernels.squared_distances(list(same)), 0)
    one = random(3, 1, 10)
    np.testing.assert_array_equal(kernels.median(list(one)), one[0])
    np.testing.assert_array_equal(kernels.squared_distances(list(one)), [[0]])
    none = np.empty((3, 0), np.float32)
    assert kernels.median(list(none)).shape == (0,)
    np.testing.assert_array_equal(
        kernels.squared_distances(list(none)), np.zeros((3, 3))
    )
    np.testing.assert_array_equal(kernels.gram(list(none)), np.zeros((3, 3)))
    with pytest.raises(ValueError, match="no rows"):
        kernels.median([])


def test_blocks_cover_every_coordinate_once():
    for d in (0, 1, 255, 256, 257, 10_000):
        found = [i for b in kernels.blocks(d, 500) for i in range(b.start, b.stop)]
        assert found == list(range(d))


@pytest.mark.parametrize("k", [7, 48])
def test_blocks_join_without_a_seam(monkeypatch, k):
    x = list(random(4, k, 1000))
    mixing = nearest_mixing(kernels.squared_distances(x), 2)

    def everything():
        out = np.empty(1000, np.float32)
        for block in kernels.blocks(1000, k):
            middle_sum([row[block] for row in x], 2, 5, out[block])
        return (
            out,
            kernels.median(x),
            kernels.mean_around_median(x, 3),
            kernels.mixed_trimmed_mean(x, mixing, 2),
            kernels.squared_distances(x),
        )

    whole = everything()
    monkeypatch.setattr(rows, "BLOCK_COLUMNS", 48)
    for a, b in zip(whole, everything(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_read_only_views_and_threads():
    data = random(5, 6, 5000).tobytes()
    x = [np.frombuffer(data, np.float32, 5000, 20_000 * i) for i in range(6)]
    expected = np.median(x, axis=0)
    found: list[np.ndarray] = []

    def work() -> None:
        for _ in range(20):
            out = np.empty(5000, np.float32)
            middle_sum(x, 2, 4, out)
            found.append(out / 2)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 80
    assert all(np.array_equal(out, expected) for out in found)


def test_same_bits_whatever_the_number_of_blas_threads():
    x = list(random(6, 20, 100_001))
    mixing = nearest_mixing(kernels.squared_distances(x), 4)
    results = set()
    for threads in (1, 2):
        with threadpool_limits(threads, "blas"):
            results.add(
                kernels.squared_distances(x).tobytes()
                + kernels.gram(x).tobytes()
                + kernels.mixed_trimmed_mean(x, mixing, 4).tobytes()
            )
    assert len(results) == 1


@given(st.integers(0, 2**31), st.integers(1, 20))
def test_gram_is_the_matrix_product(seed, k):
    x = random(seed, k, 700)
    exact = x.astype(float) @ x.T.astype(float)
    np.testing.assert_allclose(kernels.gram(list(x)), exact, rtol=1e-5, atol=1e-3)


@given(
    st.integers(0, 2**31),
    st.integers(2, 25),
    st.sampled_from([1.0, 1e-3, 1e-5]),
    st.sampled_from([1e-18, 1.0, 1e18]),
)
def test_distances_keep_their_digits_when_rows_are_close(seed, k, spread, scale):
    """Rows that differ by ``spread`` of their norm."""
    x = random(seed, 1, 2000) + np.float32(spread) * random(seed + 1, k, 2000)
    x *= np.float32(scale)
    found = kernels.squared_distances(list(x))
    np.testing.assert_allclose(found, brute_distances(x), rtol=1e-5)
    np.testing.assert_array_equal(found, found.T)
    np.testing.assert_array_equal(found.diagonal(), 0)


@pytest.mark.parametrize("far", [0, 5, 11])
def test_distances_keep_their_digits_in_clusters_within_clusters(far):
    """One row is 1e9 away; the others are pairs in groups in two camps."""
    levels = [10.0 ** -(2 * i) for i in range(3)]
    x = np.zeros((12, 3000), np.float32)
    for size, level in zip((6, 3, 1), levels, strict=True):
        x += np.repeat(np.float32(level) * random(size, 12 // size, 3000), size, axis=0)
    x[far] = 1e9
    found = kernels.squared_distances(list(x))
    np.testing.assert_allclose(found, brute_distances(x), rtol=1e-5)


def test_copies_have_distance_zero():
    x = random(7, 8, 3000)
    x[5:] = x[4] + 100
    found = kernels.squared_distances(list(x))
    np.testing.assert_array_equal(found[5:, 5:], 0)
    np.testing.assert_allclose(found, brute_distances(x), rtol=1e-5)


@given(st.integers(0, 2**31), st.integers(1, 12), st.data())
def test_mixing_is_nearest_neighbour_mixing(seed, k, data):
    f = data.draw(st.integers(0, k - 1))
    x = random(seed, k, 20)
    mixing = nearest_mixing(brute_distances(x), f)
    np.testing.assert_allclose(mixing.sum(axis=1), 1)
    np.testing.assert_allclose(mixing @ x, oracle.nnm(x, f), atol=1e-9)


@given(st.integers(0, 2**31), st.integers(2, 30), st.data())
def test_a_mixture_is_the_rows_it_stands_for(seed, k, data):
    m = data.draw(st.integers(1, k))
    f = data.draw(st.integers(0, (m - 1) // 2))
    x = random(seed, k, 400)
    mixing = np.random.default_rng(seed).dirichlet(np.ones(k), m)
    mixed = Mixture(list(x), mixing)
    y = (mixing @ x).astype(np.float32)
    assert len(mixed) == m
    for found, plain in (
        (mixed[m - 1], y[m - 1]),
        (mixed[:1][:], y[:1]),
        (kernels.median(mixed), kernels.median(y)),
        (kernels.mixed_trimmed_mean(x, mixing, f), kernels.trimmed_mean(y, f)),
        (kernels.mean_around_median(mixed, m), y.mean(axis=0)),
        (kernels.combination(mixed, np.ones(m)), y.sum(axis=0)),
        (rows.take(mixed, [0]), y[:1]),
        (rows.append(mixed, x[0]), [*y, x[0]]),
        (kernels.median(rows.append(mixed, x[0])), np.median([*y, x[0]], axis=0)),
    ):
        np.testing.assert_allclose(np.array(list(found)), plain, atol=1e-5)
    for points, same in ((mixed, y), (rows.append(mixed, x[0]), [*y, x[0]])):
        exact = brute_distances(np.array(same))
        found = kernels.squared_distances(points)
        np.testing.assert_allclose(found, exact, rtol=1e-4, atol=1e-4)
