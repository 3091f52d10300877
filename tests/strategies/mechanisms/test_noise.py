"""One door: what is drawn is what the accounting charges."""

from __future__ import annotations

import math

import numpy as np
import pytest

from strategies.accounting import staircase as accounting
from strategies.accounting.events import Release
from strategies.mechanisms import noise
from strategies.mechanisms.csprng import Source
from strategies.mechanisms.staircase import draw_staircase
from tests.strategies.mechanisms.checks import fits, staircase_cdf

UNITS = 2.0**20
RELEASES = [
    Release("gaussian", scale=0.6),
    Release("laplace", scale=0.125, relation="replace"),
    Release("staircase", epsilon0=8.0),
    Release("staircase", epsilon0=2.0, relation="replace"),
    Release("staircase-ball", epsilon0=8.0, dimension=10),
    Release("staircase-ball", epsilon0=1.0, dimension=3, relation="replace"),
    Release("laplace-ball", epsilon0=8.0, dimension=10),
    Release("laplace-ball", epsilon0=1.0, dimension=2, relation="replace"),
]


def name(release):
    return f"{release.mechanism}-{release.relation}"


@pytest.mark.parametrize("release", RELEASES, ids=name)
def test_every_mechanism_has_its_standard_deviation(release):
    d, n, source = release.dimension, 2_000, Source.insecure(1)
    x = np.array([noise.draw(release, UNITS, d, source) for _ in range(n)])
    assert x.dtype == np.int64
    assert x.shape == (n, d)
    expected = noise.std(release, UNITS, d)
    # A standard error of 1.6 % (Gaussian) to 7 % (scalar staircase of epsilon 8).
    scalar = release.mechanism == "staircase"
    assert math.isclose(x.std(), expected, rel_tol=0.3 if scalar else 0.1)
    assert abs(x).max() <= noise.support(release, UNITS, d)
    assert noise.delta_slack(release, d) < 1e-18


@pytest.mark.parametrize("release", RELEASES, ids=name)
def test_the_standard_deviation_is_the_accountings(release):
    d, step = release.dimension, release.sensitivity
    if release.mechanism.startswith("staircase"):
        variance = accounting.variance(release.epsilon0, release.gamma, d)
        expected = step * math.sqrt(variance)
    elif release.mechanism == "laplace-ball":
        expected = step / release.epsilon0 * math.sqrt(d + 1)
    else:
        expected = release.scale * (1 if release.mechanism == "gaussian" else 2**0.5)
    assert math.isclose(noise.std(release, UNITS, d) / UNITS, expected, rel_tol=1e-6)


# Standard deviations for sensitivity 1 of the scalar staircase, and of Laplace.
SCALARS = {
    0.5: (2.814, 2.828),
    1.0: (1.385, 1.414),
    2.0: (0.650, 0.707),
    4.0: (0.255, 0.354),
    8.0: (0.0581, 0.1768),
}
# Of vectors in an L2 ball, by epsilon and dimension.
DIMENSIONS = (1, 2, 5, 10, 20, 50, 100, 10**4, 10**6)
VECTORS = {
    8.0: (0.0581, 0.109, 0.240, 0.386, 0.569, 0.893, 1.26, 12.5, 125),
    4.0: (0.255, 0.369, 0.597, 0.828, 1.15, 1.79, 2.51, 25, 250),
    1.6: (0.838, 1.07, 1.53, 2.07, 2.86, 4.46, 6.28, 62.5, 625),
    0.8: (1.74, 2.16, 3.06, 4.15, 5.73, 8.93, 12.6, 125, 1250),
    0.2455: (5.75, 7.06, 9.98, 13.5, 18.7, 29.1, 40.9, 407, 4070),
}


def test_table_of_scalars():
    for epsilon, (stairs, plain) in SCALARS.items():
        release = Release("staircase", epsilon0=epsilon)
        assert math.isclose(noise.std(release, UNITS, 1) / UNITS, stairs, rel_tol=0.01)
        release = Release("laplace", scale=1 / epsilon)
        assert math.isclose(noise.std(release, UNITS, 1) / UNITS, plain, rel_tol=0.01)
    gaussian = Release("gaussian", scale=0.6)
    assert math.isclose(noise.std(gaussian, UNITS, 1) / UNITS, 0.6, rel_tol=0.01)


@pytest.mark.parametrize("epsilon", VECTORS)
def test_table_of_vectors(epsilon):
    for d, expected in zip(DIMENSIONS, VECTORS[epsilon], strict=True):
        release = Release("staircase-ball", epsilon0=epsilon, dimension=d)
        assert math.isclose(
            noise.std(release, UNITS, d) / UNITS, expected, rel_tol=0.01
        )


def test_the_place_of_the_steps_matters():
    release = Release("staircase-ball", epsilon0=8.0, dimension=2, gamma=0.1)
    assert math.isclose(noise.std(release, UNITS, 2) / UNITS, 0.119, rel_tol=0.01)


def outcomes(release, n):
    """Return ``n`` draws, the first coordinate of each, in clips."""
    source, step = Source.insecure(2), release.sensitivity * UNITS
    if release.mechanism == "laplace":  # independent: any number at once
        x = noise.draw(release, UNITS, n, source)
    elif release.dimension == 1:
        x = draw_staircase(release.epsilon0, release.gamma, step, n, source)
    else:
        draws = (noise.draw(release, UNITS, 2, source) for _ in range(n // 125))
        x = np.array([vector[0] for vector in draws])
    return x / UNITS


def loss(x, shift):
    """Return the largest log-ratio of the histograms of x and of x + shift.

    Less what chance may add in any bin, with an error rate of 1e-6.
    """
    edges = np.linspace(-4, 4, 81)
    a, b = (np.histogram(values, edges)[0] for values in (x, x + shift))
    used = (a > 20) & (b > 20)
    ratio = np.abs(np.log(a[used] / b[used]))
    error = 5.7 * np.sqrt(1 / a[used] + 1 / b[used])
    return float((ratio - error).max())


@pytest.mark.parametrize(
    "release",
    [
        Release("staircase", epsilon0=2.0),
        Release("staircase", epsilon0=1.0, relation="replace"),
        Release("laplace", scale=0.5),
        Release("staircase-ball", epsilon0=2.0, dimension=2),
        Release("laplace-ball", epsilon0=2.0, dimension=2),
    ],
    ids=name,
)
def test_no_outcome_tells_more_than_epsilon(release):
    x, neighbour = outcomes(release, 1_000_000), release.sensitivity
    for part in (1, 0.5, 0.1):
        assert loss(x, part * neighbour) <= release.pure_epsilon
    # It would be seen if neighbours were twice as far apart.
    if release.dimension == 1:
        assert loss(x, 2 * neighbour) > 1.5 * release.pure_epsilon


@pytest.mark.parametrize(("relation", "step"), [("add-remove", 1), ("replace", 2)])
def test_scalars_have_the_step_of_the_relation(relation, step):
    release = Release("staircase", epsilon0=2.0, relation=relation)
    source, n = Source.insecure(3), 5000
    x = np.concatenate([noise.draw(release, UNITS, 1, source) for _ in range(n)])
    assert fits(x, staircase_cdf(2.0, release.gamma, step * UNITS))
    assert not fits(x, staircase_cdf(2.0, release.gamma, 3 * UNITS / step))


def test_staircases_on_every_coordinate_are_refused():
    with pytest.raises(ValueError, match="staircase-ball"):
        noise.draw(Release("staircase", epsilon0=8.0), UNITS, 2, Source())
    for mechanism in ("staircase-ball", "laplace-ball"):
        release = Release(mechanism, epsilon0=8.0, dimension=3)
        with pytest.raises(ValueError, match="accounted for 3 values"):
            noise.draw(release, UNITS, 4, Source())
    for units in (0.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="units"):
            noise.draw(RELEASES[0], units, 1, Source())


def test_the_lattice_has_the_norm_of_the_release():
    assert noise.lattice_for(RELEASES[0], 2.0, 7).norm == "l2"
    assert noise.lattice_for(RELEASES[1], 2.0, 7).norm == "l1"
    assert noise.lattice_for(RELEASES[4], 2.0, 10).norm == "l2"


def test_the_noise_is_fresh_with_every_call():
    source = Source.insecure(4)
    first, second = (noise.draw(RELEASES[0], UNITS, 1000, source) for _ in range(2))
    assert (first != second).mean() > 0.99
    again = noise.draw(RELEASES[0], UNITS, 1000, Source.insecure(4))
    assert np.array_equal(first, again)


LEAK = 2.0**53  # outputs that are no multiples of 2**-53 betray a small secret


def off_grid(outputs):
    """Return the part of outputs that only a secret of 0 can have given."""
    return float((np.rint(outputs * LEAK) != outputs * LEAK).mean())


@pytest.mark.parametrize("mechanism", ["gaussian", "laplace"])
def test_least_significant_bits_betray_floats_but_not_the_lattice(mechanism):
    n, rng = 200_000, np.random.default_rng(5)
    floats = rng.laplace(size=n) if mechanism == "laplace" else rng.standard_normal(n)
    assert off_grid(0.0 + floats) > 0.2
    assert off_grid(1.0 + floats) == 0
    release = Release(mechanism, scale=1.0)
    on = noise.lattice_for(release, 1.0, n)
    added = noise.draw(release, on.units, n, Source.insecure(6)).astype(np.float64)
    for secret in (0.0, 1.0):
        assert off_grid((secret * on.units + added) * on.step) == 0
