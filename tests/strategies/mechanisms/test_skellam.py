"""Skellam noise: the right distribution, and what finite bits leave of it.

Every acceptance of samples fails with probability ``LEVEL`` over all seeds; seeds are
fixed.
"""

from __future__ import annotations

import math

import mpmath
import numpy as np
import pytest
from scipy import stats

from strategies.mechanisms import skellam
from strategies.mechanisms.csprng import Source
from strategies.mechanisms.layers import LAYERS
from strategies.mechanisms.skellam import LEAST_VARIANCE, draw_skellam
from tests.strategies.mechanisms.checks import LEVEL, fits

MANY = 400_000


def exact(variance, reach=30.0):
    """Return f(0), f(1), ... by the three-term recurrence, run backwards (Miller).

    ``f(k - 1) = f(k + 1) + (2 k / v) f(k)``, and all of f sums to 1.
    """
    with mpmath.workdps(40):
        last = int(reach * math.sqrt(variance))
        f = [mpmath.mpf(0)] * (last + 2)
        f[last] = mpmath.mpf(1)
        for k in range(last, 0, -1):
            f[k - 1] = f[k + 1] + 2 * k / mpmath.mpf(variance) * f[k]
        total = f[0] + 2 * mpmath.fsum(f[1:])
        return [x / total for x in f]


@pytest.fixture(scope="module")
def probabilities():
    return exact(LEAST_VARIANCE)


def law(variance):
    """Return the distribution function at half integers."""
    if variance > 2.0**20:  # nobody tells it from a normal one
        return stats.norm(scale=math.sqrt(variance)).cdf
    half = np.array([float(p) for p in exact(variance, reach=12.0)])
    f = np.concatenate([half[:0:-1], half])
    return lambda x: np.interp(x, np.arange(len(f)) - len(half) + 1.5, np.cumsum(f))


@pytest.mark.parametrize("variance", [2.0**18, 2.0**36])
def test_samples_follow_the_law_and_no_other_scale(variance):
    cdf = law(variance)
    samples = draw_skellam(variance, MANY, Source.insecure(1))
    assert samples.dtype == np.int64
    assert samples.shape == (MANY,)
    assert fits(samples, cdf)
    for wrong in (2 / 3, 3 / 2):
        assert not fits(
            draw_skellam(variance * wrong**2, MANY, Source.insecure(2)), cdf
        )


@pytest.mark.parametrize("shares", [1, 7])
def test_sums_of_shares_have_the_sum_of_the_variances(shares):
    variance, source = 2.0**20, Source.insecure(3)
    total = sum(draw_skellam(variance / shares, MANY, source) for _ in range(shares))
    assert fits(total, stats.norm(scale=math.sqrt(variance)).cdf)
    for wrong in (2 / 3, 3 / 2):
        assert not fits(total, stats.norm(scale=wrong * math.sqrt(variance)).cdf)


@pytest.mark.parametrize("n", [0, 1, 16_383, 16_384, 40_000])
def test_any_number_of_values(n):
    assert draw_skellam(2.0**20, n, Source()).shape == (n,)


def test_every_integer_near_0_is_drawn_as_often_as_it_should_be(probabilities):
    """Chi-square over single integers: layers end at integers, and 0 has one sign."""
    n, near = 4_000_000, 400
    samples = draw_skellam(LEAST_VARIANCE, n, Source.insecure(4))
    inside = samples[np.abs(samples) <= near] + near
    counts = np.bincount(inside, minlength=2 * near + 1)
    half = np.array([float(p) for p in probabilities[: near + 1]])
    expected = n * np.concatenate([half[:0:-1], half])
    statistic = ((counts - expected) ** 2 / expected).sum()
    assert stats.chi2.sf(statistic, 2 * near) > LEVEL
    doubled = expected + np.eye(1, 2 * near + 1, near)[0] * expected[near]
    statistic = ((counts - doubled) ** 2 / doubled).sum()
    assert stats.chi2.sf(statistic, 2 * near) < LEVEL  # it would be seen


def test_logarithms_of_probabilities_are_exact(probabilities):
    std = math.sqrt(LEAST_VARIANCE)
    k = np.unique(np.r_[0:20, np.rint(np.linspace(0, 16 * std, 300))])
    found = skellam.log_probability(k, LEAST_VARIANCE)
    true = [float(mpmath.log(probabilities[int(i)])) for i in k]
    np.testing.assert_allclose(found, true, rtol=0, atol=1e-13)


def test_layers_lie_under_the_probabilities_and_boxes_above_the_rest():
    layers = skellam._layers(LEAST_VARIANCE)
    assert layers.known >= LAYERS - 8
    ends = layers.halves[: layers.known]
    heights = np.cumsum(1 / (LAYERS * (2 * ends + 1)))
    k = np.arange(0, 30 * 256.0)
    f = layers.probability(k)
    # How many layers there are at k: those that end at k or later.
    there = np.searchsorted(-ends, -k, side="right")
    covered = np.append(0.0, heights)[there]
    assert np.all(covered <= f * (1 + 1e-12))
    rest = f - covered
    left, width, low, height = layers.boxes
    assert width.sum() == ends[0] + 1
    for i in np.flatnonzero(width > 0):
        inside = slice(int(left[i]), int(left[i] + width[i]))
        assert np.all(rest[inside] <= height[i] * (1 + 1e-9))
        np.testing.assert_allclose(covered[inside], low[i], rtol=1e-12)
    # Layers and rest together are everything.
    mass = layers.known / LAYERS + 2 * rest.sum() - rest[0]
    assert mass == pytest.approx(1, abs=1e-12)
    outside = np.arange(ends[0] + 1, 30 * 256.0)
    envelope = layers.edge * layers.ratio ** (outside - outside[0])
    assert np.all(layers.probability(outside) <= envelope * (1 + 1e-12))


def test_the_rest_follows_what_the_layers_leave(probabilities):
    layers = skellam._layers(LEAST_VARIANCE)
    n, top = 200_000, 8 * 256
    x = skellam._rest(layers, n, Source.insecure(5))
    ends = layers.halves[: layers.known]
    heights = np.append(0.0, np.cumsum(1 / (LAYERS * (2 * ends + 1))))
    k = np.arange(top)
    f = np.array([float(p) for p in probabilities[:top]])
    rest = (f - heights[np.searchsorted(-ends, -k, side="right")]).clip(0)
    rest[1:] *= 2
    expected = n * rest / rest.sum()

    def likely(numbers):
        counts = np.bincount(numbers.clip(0, top - 1), minlength=top)
        groups = np.minimum(np.cumsum(expected), n - 26).astype(int) // 25
        seen, wanted = (np.bincount(groups, c) for c in (counts, expected))
        used = wanted > 0
        statistic = ((seen - wanted)[used] ** 2 / wanted[used]).sum()
        return stats.chi2.sf(statistic, used.sum() - 1) > LEVEL

    assert likely(np.abs(x))
    for wrong in (2 / 3, 3 / 2):
        assert not likely(np.rint(np.abs(x) * wrong).astype(int))
    positive = int((x > 0).sum())
    assert stats.binomtest(positive, int((x != 0).sum())).pvalue > LEVEL


@pytest.mark.parametrize("reach", [1.0, 4.0, 12.0])
def test_the_tail_bound_holds_and_is_not_far_off(reach, probabilities):
    at = math.ceil(reach * math.sqrt(LEAST_VARIANCE))
    beyond = float(2 * mpmath.fsum(probabilities[at:]))
    bound = skellam.tail(LEAST_VARIANCE, at)
    assert beyond <= bound <= 60 * beyond
    assert skellam.tail(LEAST_VARIANCE, 0) == 1.0


def test_no_draw_is_beyond_the_support_and_the_slack_is_small():
    assert 16 < skellam.support(2.0**40) / 2.0**20 < 32
    assert np.abs(draw_skellam(2.0**40, MANY, Source())).max() < 2.0**20 * 16
    assert skellam.delta_slack(2.0**20, 10**9) < 1e-18
    assert skellam.epsilon_slack(2.0**20, 100 * 10**6) < 1e-3


@pytest.mark.parametrize(
    "variance", [0.0, -1.0, math.nan, math.inf, LEAST_VARIANCE * 0.99, 2.0**96]
)
def test_what_cannot_be_drawn_is_refused(variance):
    with pytest.raises(ValueError, match=r"Expected|fit"):
        draw_skellam(variance, 3, Source())
