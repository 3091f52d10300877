"""OpenDP as a judge: its maps and conversions are proven by hand and written in Rust.

It covers pure epsilon (Laplace, composition, samples of a fixed size) and zero-
concentrated privacy (Gaussian, composition, conversion to epsilon and delta).
"""

from __future__ import annotations

import opendp.prelude as dp
import pytest

from strategies.accounting.calibrate import calibrate
from strategies.accounting.events import Release
from strategies.accounting.pld import epsilon_at
from strategies.accounting.rdp import ORDERS, epsilon_of, rdp
from strategies.accounting.sampling import Sampling

dp.enable_features("contrib", "honest-but-curious")

DELTA = 1e-5
# The clip, in steps of OpenDP's integers.
CLIP = 1000
INTEGERS = dp.vector_domain(dp.atom_domain(T=int))


def gaussian(scale, rounds=1):
    one = (INTEGERS, dp.l2_distance(T=float)) >> dp.m.then_gaussian(scale * CLIP)
    return dp.c.make_composition([one] * rounds)


def laplace(scale, rounds=1):
    one = (INTEGERS, dp.l1_distance(T=int)) >> dp.m.then_laplace(scale * CLIP)
    return dp.c.make_composition([one] * rounds)


def epsilon_by_opendp(scale, rounds):
    made = dp.c.make_zCDP_to_approxDP(gaussian(scale, rounds))
    return made.map(float(CLIP)).epsilon(DELTA)


@pytest.mark.parametrize("scale", [0.5, 1.0, 4.0, 20.0])
def test_the_divergence_of_gaussian_noise(scale):
    """Zero-concentrated: a Rényi divergence of at most rho times the order."""
    rho = gaussian(scale).map(float(CLIP))
    orders = (2.0, 8.0, 64.0)
    found = rdp(Release("gaussian", scale=scale), orders)
    assert [x / a for x, a in zip(found, orders, strict=True)] == pytest.approx(
        [rho] * 3
    )


CASES = [(0.5, 1), (1.0, 10), (4.0, 1), (4.0, 100), (20.0, 50)]


@pytest.mark.parametrize(("scale", "rounds"), CASES)
def test_epsilon_of_composed_gaussian_noise(scale, rounds):
    """By divergences the same; exact composition finds less, never more."""
    judged = epsilon_by_opendp(scale, rounds)
    release = Release("gaussian", scale=scale)
    curve = [rounds * x for x in rdp(release)]
    assert epsilon_of(curve, ORDERS, DELTA) == pytest.approx(judged, rel=0.01)
    assert 0.88 * judged < epsilon_at({release: rounds}, DELTA) < judged


@pytest.mark.parametrize(("epsilon", "rounds"), [(1.0, 1), (8.0, 10), (2.0, 100)])
def test_calibrated_gaussian_noise(epsilon, rounds):
    """What the filter is calibrated to; a fixed schedule needs a little less."""
    judged = dp.binary_search(
        lambda scale: epsilon_by_opendp(scale, rounds) <= epsilon, (0.05, 1000.0)
    )
    adaptive = calibrate("gaussian", epsilon, DELTA, rounds, adaptive=True)
    assert adaptive.scale == pytest.approx(judged, rel=0.01)
    fixed = calibrate("gaussian", epsilon, DELTA, rounds)
    assert 0.9 * judged < fixed.scale < judged


@pytest.mark.parametrize(("scale", "rounds"), [(0.5, 1), (2.0, 7), (10.0, 3)])
def test_epsilon_of_composed_laplace_noise(scale, rounds):
    """Without delta, the sum; with one as small as ours may be, hardly less."""
    judged = laplace(scale, rounds).map(CLIP)
    release = Release("laplace", scale=scale)
    assert rounds * release.pure_epsilon == pytest.approx(judged)
    assert 0.99 * judged < epsilon_at({release: rounds}, 1e-10) <= judged * (1 + 1e-9)


@pytest.mark.parametrize("epsilon", [0.5, 2.0])
def test_calibrated_laplace_noise(epsilon):
    judged = dp.binary_search(
        lambda scale: laplace(scale).map(CLIP) <= epsilon, (0.01, 100.0)
    )
    found = calibrate("laplace", epsilon, 1e-10)
    assert found.scale == pytest.approx(judged, rel=0.01)


@pytest.mark.parametrize("scale", [0.4, 1.0, 3.0])
def test_a_sample_of_a_fixed_size(scale):
    """A fifth of the population, in which one unit is replaced."""
    sized = dp.vector_domain(dp.atom_domain(T=int, bounds=(-1, 1)), size=20)
    total = dp.t.make_sum(sized, dp.symmetric_distance())
    sampled = dp.c.make_population_amplification(
        total >> dp.m.then_laplace(scale), population_size=100
    )
    # One replaced is one removed and one added.
    judged = sampled.map(2)
    fifth = Sampling("fixed", 0.2, 100)
    release = Release("laplace", scale=scale, sampling=fifth, relation="replace")
    assert epsilon_at({release: 1}, 1e-10) == pytest.approx(judged, rel=0.01)
    assert judged < laplace(scale / 2).map(CLIP)
