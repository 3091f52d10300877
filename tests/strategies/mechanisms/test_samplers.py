"""The right distribution is accepted, 2/3 and 3/2 of its scale are rejected.

Every acceptance fails with probability ``LEVEL`` over all seeds; seeds are fixed.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from strategies.accounting.staircase import best_gamma
from strategies.mechanisms import gaussian, laplace, layers, rounding, staircase
from strategies.mechanisms.csprng import Source
from tests.strategies.mechanisms.checks import (
    LEVEL,
    ball_cdf,
    fits,
    follows,
    staircase_cdf,
)

MANY = 400_000
STEPS = 2.0**20
STAIRCASES = [(0.01, 0.5), (0.5, 0.0), (1.0, 0.9), (2.0, 0.0), (8.0, 0.0), (20.0, 0.3)]


def scalar(name):
    """Return ``draw(scale, n, source)`` and the distribution function at a scale."""
    if name == "gaussian":
        return gaussian.draw_gaussian, lambda s: stats.norm(scale=s).cdf
    if name == "laplace":
        return laplace.draw_laplace, lambda s: stats.laplace(scale=s).cdf
    epsilon, gamma = name
    gamma = gamma or best_gamma(epsilon)

    def draw(scale, n, source):
        return staircase.draw_staircase(epsilon, gamma, scale, n, source)

    return draw, lambda s: staircase_cdf(epsilon, gamma, s)


@pytest.mark.parametrize("steps", [10.0, STEPS])
@pytest.mark.parametrize("name", ["gaussian", "laplace", *STAIRCASES])
def test_scalars_follow_their_density_and_no_other_scale(name, steps):
    draw, cdf = scalar(name)
    samples = draw(steps, MANY, Source.insecure(1))
    assert samples.dtype == np.int64
    assert samples.shape == (MANY,)
    assert fits(samples, cdf(steps))
    for wrong in (2 / 3, 3 / 2):
        assert not fits(draw(steps * wrong, MANY, Source.insecure(2)), cdf(steps))


@pytest.mark.parametrize("name", ["gaussian", "laplace", (8.0, 0.0)])
@pytest.mark.parametrize("n", [0, 1, layers.BLOCK - 1, layers.BLOCK, 40_000])
def test_any_number_of_values(name, n):
    draw, _ = scalar(name)
    assert draw(STEPS, n, Source()).shape == (n,)


def test_the_tails_are_there():
    n, source, found = 4_000_000, Source.insecure(4), {4.1: 0, 4.6: 0, 5.2: 0}
    for _ in range(5):
        x = np.abs(gaussian.draw_floats(n, source))
        for edge in found:
            found[edge] += int((x > edge).sum())
    for edge, count in found.items():
        expected = 5 * n * 2 * stats.norm.sf(edge)
        assert stats.poisson.sf(count - 1, expected) > LEVEL
        assert stats.poisson.cdf(count, expected) > LEVEL
        assert count > 0


CURVES = [
    (gaussian.rectangles, stats.norm),
    (laplace.rectangles, stats.laplace),
]


@pytest.mark.parametrize(("make", "law"), CURVES)
def test_the_rest_follows_what_the_rectangles_leave(make, law):
    rectangles = make()
    halves = rectangles.halves[: rectangles.known]
    rest = 1 - rectangles.known / layers.LAYERS

    def cdf(x):
        x = np.atleast_1d(x)
        inside = np.clip((x[:, None] + halves) / (2 * halves), 0, 1).sum(axis=1)
        return (law.cdf(x) - inside / layers.LAYERS) / rest

    x = layers._rest(rectangles, 10_000, Source.insecure(5))
    assert follows(x, cdf)
    assert not follows(x * 2 / 3, cdf)
    assert not follows(x * 3 / 2, cdf)


@pytest.mark.parametrize(("make", "law"), CURVES)
def test_rectangles_lie_under_the_curve_and_boxes_above_the_rest(make, law):
    rectangles = make()
    halves = rectangles.halves[: rectangles.known]
    left, width, low, height = rectangles.boxes
    rises = 1 / (2 * layers.LAYERS * halves)
    assert np.all(np.cumsum(rises) <= law.pdf(halves) * (1 + 1e-12))
    assert np.allclose(np.cumsum(rises), low, rtol=1e-12)
    assert np.all(law.pdf(left) <= (low + height) * (1 + 1e-12))
    assert np.all(law.pdf(left + width) >= low * (1 - 1e-12))
    assert rectangles.known >= layers.LAYERS - 4


def test_a_step_gets_its_probability_to_what_epsilon_slack_says():
    rectangles = gaussian.rectangles()
    sigma = 2.0**22
    eta = sigma * 2.0**-50  # as in `epsilon_slack`
    halves = rectangles.halves[: rectangles.known] * sigma
    table = halves * 2.0**-53
    rng = np.random.default_rng(1)
    for step in [0, 1, *rng.integers(2, int(3.5 * sigma), 12)]:
        counts = _first(table, step + 1) - _first(table, step)
        edges = np.clip([step - 0.5, step + 0.5], -halves[:, None], halves[:, None])
        ideal = (edges[:, 1] - edges[:, 0]) / (2 * halves)
        wrong = abs((counts / 2**54 - ideal).sum()) / layers.LAYERS
        density = stats.norm.pdf(step, scale=sigma)
        assert wrong / density <= eta
        assert density * (1 + eta) >= ideal.sum() / layers.LAYERS


def _first(table, step):
    """Return the first point of each rectangle that rounds to ``step`` or more."""
    low, high = np.full(len(table), -(2**53)), np.full(len(table), 2**53)
    while np.any(low < high):
        middle = (low + high) >> 1
        y = middle.astype(np.float64) * table + rounding.MAGIC
        reached = y.view(np.int64) - rounding.MAGIC_BITS >= step
        low, high = np.where(reached, low, middle + 1), np.where(reached, middle, high)
    return low


def test_the_slack_is_small_and_grows_with_the_values():
    assert gaussian.delta_slack(10**9) < 1e-18
    assert laplace.delta_slack(10**9) < 1e-18
    assert gaussian.epsilon_slack(2.0**22, 100 * 10**6) < 1e-3
    assert gaussian.epsilon_slack(2.0**22, 4) < gaussian.epsilon_slack(2.0**22, 400)


@pytest.mark.parametrize(
    ("epsilon", "gamma", "d"),
    [
        (0.001, 0.5, 1),
        (0.5, 0.4, 1),
        (8.0, 0.05, 1),
        (100.0, 0.9, 1),
        (1.0, 0.4, 1000),
        (600.0, 0.5, 600),
        (0.2, 0.4, 10**6),
    ],
)
def test_left_out_balls_weigh_less_than_delta_slack(epsilon, gamma, d, monkeypatch):
    radii, weights = staircase._balls(epsilon, gamma, d)
    monkeypatch.setattr(staircase, "_DROP", 600.0)
    wider, all_weights = staircase._balls.__wrapped__(epsilon, gamma, d)
    inside = np.isin(wider, radii)
    assert np.allclose(all_weights[inside], weights, rtol=1e-9)
    assert 0 < all_weights[~inside].sum() < staircase.DELTA_SLACK
    # Sums in this order tell even the smallest apart.
    assert np.all(np.diff(np.cumsum(weights)) > 0)


# Lengths of vectors of more values differ less: fewer tell two scales apart.
DRAWS = {1: 800, 2: 800, 10: 400, 1000: 100}


@pytest.mark.parametrize("norm", ["l1", "l2"])
@pytest.mark.parametrize(("epsilon", "d"), [(8.0, 1), (2.0, 2), (8.0, 10), (1.0, 1000)])
def test_the_length_of_staircase_vectors(epsilon, d, norm):
    gamma, n = best_gamma(epsilon, d), DRAWS[d]

    def lengths(units, seed):
        source, order = Source.insecure(seed), 1 if norm == "l1" else 2
        draw = staircase.draw_staircase_ball
        vectors = (draw(epsilon, gamma, units, d, norm, source) for _ in range(n))
        return np.array([np.linalg.norm(v, order) for v in vectors]) / STEPS

    cdf = ball_cdf(epsilon, gamma, 1.0, d)
    assert follows(lengths(STEPS, 6), cdf)
    for wrong in (2 / 3, 3 / 2):
        assert not follows(lengths(STEPS * wrong, 7), cdf)


@pytest.mark.parametrize("d", [1, 2, 10, 1000])
def test_the_length_of_laplace_vectors(d):
    n = DRAWS[d]

    def lengths(scale):
        source = Source.insecure(8)
        vectors = (laplace.draw_laplace_ball(scale, d, "l2", source) for _ in range(n))
        return np.array([np.linalg.norm(v) for v in vectors]) / STEPS

    assert follows(lengths(STEPS), stats.gamma(d).cdf)
    for wrong in (2 / 3, 3 / 2):
        assert not follows(lengths(STEPS * wrong), stats.gamma(d).cdf)


def test_the_direction_of_vectors_is_uniform():
    n, source = 1000, Source.insecure(9)
    draw = staircase.draw_staircase_ball
    flat = np.array([draw(1.0, 0.4, STEPS, 2, "l2", source) for _ in range(n)])
    angle = np.arctan2(flat[:, 1], flat[:, 0])
    assert follows(angle, stats.uniform(-math.pi, 2 * math.pi).cdf)
    ball = np.array([draw(8.0, 0.4, STEPS, 10, "l2", source) for _ in range(n)])
    share = ball[:, 3] ** 2 / (ball.astype(float) ** 2).sum(axis=1)
    assert follows(share, stats.beta(0.5, 4.5).cdf)
    diamond = np.array([draw(8.0, 0.4, STEPS, 10, "l1", source) for _ in range(n)])
    share = np.abs(diamond[:, 3]) / np.abs(diamond).sum(axis=1)
    assert follows(share, stats.beta(1, 9).cdf)
    for vectors in (flat, ball, diamond):
        positive = int((vectors > 0).sum())
        assert stats.binomtest(positive, vectors.size).pvalue > LEVEL


def test_neighbouring_values_are_independent():
    for name in ("gaussian", "laplace", (1.0, 0.4)):
        draw, _ = scalar(name)
        x = draw(STEPS, MANY, Source.insecure(10)).astype(np.float64)
        for y in (x, np.abs(x)):
            correlation = np.corrcoef(y[:-1], y[1:])[0, 1]
            assert abs(correlation) * math.sqrt(MANY) < stats.norm.isf(LEVEL / 2)


REFUSED = [
    lambda s: gaussian.draw_gaussian(0.0, 3, s),
    lambda s: gaussian.draw_gaussian(math.nan, 3, s),
    lambda s: gaussian.draw_gaussian(2.0**48, 3, s),
    lambda s: laplace.draw_laplace(-1.0, 3, s),
    lambda s: laplace.draw_laplace(math.inf, 3, s),
    lambda s: laplace.draw_laplace_ball(2.0**40, 10**5, "l2", s),
    lambda s: staircase.draw_staircase(0.0, 0.5, 1.0, 3, s),
    lambda s: staircase.draw_staircase(1.0, 0.0, 1.0, 3, s),
    lambda s: staircase.draw_staircase(1.0, 0.5, 2.0**48, 3, s),
    lambda s: staircase.draw_staircase_ball(1.0, 0.5, 2.0**48, 99, "l2", s),
    lambda s: staircase.draw_staircase_ball(1e-4, 0.5, 1.0, 10**6, "l2", s),
]


@pytest.mark.parametrize("case", range(len(REFUSED)))
def test_what_cannot_be_drawn_is_refused(case):
    with pytest.raises(ValueError, match=r"Expected|fit|balls"):
        REFUSED[case](Source())
