"""EDEN: its error is the theory's, its rotation is one, its centroids are optimal."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import integrate, linalg, stats

from strategies.compression import eden
from tests.strategies.compression.updates import LARGEST, heavy


def lloyd_max(bits):
    """Return magnitudes of the best centroids of N(0, 1), and the error, by iteration.

    Centroids are the means of their cells, cells end halfway between centroids.
    """
    n = 2 ** (bits - 1)
    centres = (np.arange(n) + 0.5) / n * 2
    for _ in range(200):
        edges = np.concatenate([[0], (centres[1:] + centres[:-1]) / 2, [np.inf]])
        mass = np.diff(stats.norm.cdf(edges))
        centres = -np.diff(stats.norm.pdf(edges)) / mass
    error = 1 - 2 * float((mass * centres**2).sum())
    return centres, error


@pytest.mark.parametrize(("bits", "known"), [(1, math.pi / 2 - 1), (2, 0.1331)])
def test_centroids_and_distortion_are_the_optimal_ones(bits, known):
    centres, distortion = lloyd_max(bits)
    assert eden.CENTROIDS[bits] == pytest.approx(centres, abs=1e-4)
    assert eden.DISTORTION[bits] == pytest.approx(distortion, abs=1e-6)
    assert eden.error(bits) == pytest.approx(1 / (1 - distortion) - 1, rel=1e-5)
    assert eden.error(bits) == pytest.approx(known, abs=1e-4)


def test_the_distortion_by_integration():
    (low, high), edge = eden.CENTROIDS[2], sum(eden.CENTROIDS[2]) / 2
    parts = [
        integrate.quad(lambda v, c=c: (v - c) ** 2 * stats.norm.pdf(v), *span)[0]
        for c, span in ((low, (0, edge)), (high, (edge, np.inf)))
    ]
    assert 2 * sum(parts) == pytest.approx(eden.DISTORTION[2], abs=1e-6)


def far(d):
    """Return a few large values among many zeros."""
    x = np.zeros(d, np.float32)
    x[::997] = heavy(len(x[::997]))
    return x


@pytest.mark.parametrize("make", [heavy, far, np.ones])
@pytest.mark.parametrize("bits", [1, 2])
def test_the_error_is_the_theory_s_to_2_percent(bits, make):
    """262,144 values: the error of one encoding spreads by about 0.3 %."""
    x = make(2**18).astype(np.float32)
    y = eden.decode(*eden.encode(x, bits, 12345), len(x), 12345)
    error = float(((x - y).astype(np.float64) ** 2).sum() / (x.astype("f8") ** 2).sum())
    assert error == pytest.approx(eden.error(bits), rel=0.02)
    assert abs(error / eden.error(3 - bits) - 1) > 0.02


def test_one_rotation_would_lose_the_smaller_of_two_values(monkeypatch):
    """The reason for the second one: (2, 1) among zeros comes back without its 1."""
    x = np.zeros(128, np.float32)
    x[[3, 70]] = 2, 1

    def mean():
        found = [eden.decode(*eden.encode(x, 1, s), 128, s) for s in range(300)]
        return np.mean(found, axis=0)[[3, 70]]

    # 10 standard errors of 300 draws: sqrt(0.57 * 5 / 128 / 300) = 0.009 each.
    assert mean() == pytest.approx([2, 1], abs=0.1)
    groups = eden._groups

    def once(d, seed):
        return ((p, rows, signs[:1]) for p, rows, signs in groups(d, seed))

    transform = eden._transform
    monkeypatch.setattr(eden, "_groups", once)
    # Normalised for two transforms.
    monkeypatch.setattr(eden, "_transform", lambda v: transform(v) * 128**0.5)
    assert mean() == pytest.approx([2.5, 0], abs=0.1)


@pytest.mark.parametrize("n", [128, 256, 1024, 16_384])
def test_the_transform_is_hadamard_s(n):
    x = heavy(2 * n).reshape(2, n)
    found = eden._transform(x)
    if n <= 1024:
        assert found == pytest.approx(x @ linalg.hadamard(n), abs=1e-2)
    assert eden._transform(found) / n == pytest.approx(x, abs=1e-4)
    assert np.linalg.norm(found) == pytest.approx(
        np.linalg.norm(x) * math.sqrt(n), rel=1e-5
    )


@given(st.integers(0, 200_000))
def test_blocks_hold_all_values_with_little_room_left(d):
    blocks = eden.blocks_of(d)
    assert eden.padded(d) == sum(n * size for n, size in blocks)
    assert d <= eden.padded(d) < d + (1024 if d > 1024 else max(d, 128) + 1)
    for _, size in blocks:
        assert 128 <= size <= eden.BLOCK
        assert size & (size - 1) == 0
    assert sorted((size for _, size in blocks), reverse=True) == [s for _, s in blocks]


@pytest.mark.parametrize("bits", [1, 2])
def test_the_rotation_is_the_seed_s(bits):
    x = heavy(40_000)
    scales, codes = eden.encode(x, bits, 7)
    right = eden.decode(scales, codes, len(x), 7)
    wrong = eden.decode(scales, codes, len(x), 8)
    assert float(right @ x) == pytest.approx(float(x @ x), rel=1e-4)
    assert abs(float(wrong @ x)) < 0.1 * float(x @ x)


def test_the_signs_are_the_documented_ones():
    """The format: words of PCG64, lowest bit first, groups of four blocks."""
    words = np.random.PCG64(7).random_raw(5 * 16_384 // 32 + 4)
    bits = (words[:, None] >> np.arange(64, dtype=np.uint64) & np.uint64(1)).reshape(-1)
    (place, rows, signs), second, third = eden._groups(5 * 16_384 + 1, 7)
    assert (place, rows) == (0, (4, 16_384))
    assert np.array_equal(np.concatenate(signs).reshape(-1), bits[: 8 * 16_384])
    assert second[:2] == (4 * 16_384, (1, 16_384))
    assert third[:2] == (5 * 16_384, (1, 128))
    last = np.concatenate([second[2][0], second[2][1]]).reshape(-1)
    assert np.array_equal(last, bits[8 * 16_384 : 10 * 16_384])


@pytest.mark.parametrize("scale", [0.0, 1e-45, LARGEST])
def test_any_codes_and_finite_scales_are_finite(scale):
    d = 20_000
    codes = np.random.default_rng(1).integers(0, 256, (2, eden.padded(d) // 8))
    scales = np.full(sum(n for n, _ in eden.blocks_of(d)), scale, np.float32)
    assert np.isfinite(eden.decode(scales, codes.astype(np.uint8), d, 1)).all()
