"""Exact composition: privacy loss distributions through dp-accounting.

Sources: Sommer, Meiser, Mohammadi, "Privacy Loss Classes", PoPETs 2019 (composition is
convolution); Doroshenko, Ghazi, Kamath, Kumar, Manurangsi, "Connect the Dots", PoPETs
2022 (discretisation that never understates). Differences: atoms are connected as well,
a fixed-size sample is composed through its own dominating pair (:mod:`.pairs`), and
Gaussian noise on everyone in closed form (:mod:`.gaussian`).

Discretisation
--------------
Losses live on multiples of an interval that is a power of two. An atom between two
multiples is split so that both its probabilities, under P and under Q, are kept: that
can only make P and Q easier to tell apart, and the error is of second order in the
interval. So the interval need not divide epsilon0, and releases of different epsilon0
share one. A finer interval never costs more.

What is computed in floating point is trusted to 1e-12 of delta, which is set aside.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from functools import lru_cache, reduce

import numpy as np
from dp_accounting.pld import privacy_loss_distribution as dp

from .events import MOST_LOSS, Release
from .gaussian import delta_of_distance, distance, epsilon_of_distance
from .pairs import Doubles, deviation, pairs
from .rdp import ORDERS, delta_of, epsilon_of, rdp

__all__ = [
    "LEAST_DELTA",
    "by_rdp",
    "delta_at",
    "distribution",
    "epsilon_at",
    "interval",
]

# Set aside from delta for rounding errors of the Fourier transforms, and the smallest
# delta at which that does not matter.
ROUNDING = 1e-12
LEAST_DELTA = 1e-10
# A loss that is exceeded with this probability is counted as a breach.
UNLIKELY = 1e-16


def epsilon_at(
    releases: Mapping[Release, int], delta: float, *, coarse: int = 1
) -> float:
    """Return the least epsilon of a composition that was fixed beforehand.

    Parameters
    ----------
    releases : mapping of releases to their number
        All of one relation. What is computed may depend on earlier outputs; which
        release comes next, and its noise, may not.
    delta : float
        At least 1e-10.
    coarse : int
        A power of two: discretise that many times more coarsely, for a first look. The
        result is still an upper bound.

    Returns
    -------
    float
        Infinite where no epsilon holds at ``delta``.

    Raises
    ------
    ValueError
        For a smaller delta or different relations.
    """
    _check(releases, delta)
    left = delta - _slack(releases)
    if left < 0:
        return math.inf
    if by_rdp(releases):
        return epsilon_of(_curve(releases), ORDERS, left) if left else math.inf
    if apart := distance(releases):
        return epsilon_of_distance(apart, left - ROUNDING)
    composed, pure = _composed(releases, coarse), _pure(releases)
    if composed is None:
        return 0.0
    if left <= ROUNDING:
        return pure
    return min(pure, float(composed.get_epsilon_for_delta(left - ROUNDING)))


def delta_at(releases: Mapping[Release, int], epsilon: float) -> float:
    """Return the least delta of a composition at an epsilon >= 0.

    See :func:`epsilon_at`; never below 1e-12 unless pure composition gives 0.
    """
    _check(releases, LEAST_DELTA)
    slack = _slack(releases)
    if by_rdp(releases):
        return min(1.0, delta_of(_curve(releases), ORDERS, epsilon) + slack)
    if apart := distance(releases):
        return min(1.0, delta_of_distance(apart, epsilon) + slack + ROUNDING)
    composed = _composed(releases)
    if composed is None or _pure(releases) <= epsilon:
        return slack
    delta = float(composed.get_delta_for_epsilon(epsilon))
    return min(1.0, delta + slack + ROUNDING)


def by_rdp(releases: Iterable[Release]) -> bool:
    """Return whether Rényi divergences compose these: some have no exact distribution.

    For Skellam noise on a vector it is not known which neighbours are worst.
    """
    return any(release.mechanism == "skellam" for release in releases)


def interval(release: Release) -> float:
    """Return a discretisation interval at which epsilon is exact to about 0.1 %."""
    spread = deviation(release)
    wanted = min(spread / 16, max(spread, 1.0) / 512)
    return 2.0 ** math.floor(math.log2(max(wanted, 2.0**-20)))


@lru_cache(maxsize=64)
def distribution(release: Release, interval: float) -> dp.PrivacyLossDistribution:
    """Return the privacy loss distribution of one release.

    Parameters
    ----------
    interval : float
        Discretisation, in nats.
    """
    sampling = release.sampling
    if release.mechanism in ("gaussian", "laplace"):
        make = dp.from_gaussian_mechanism
        if release.mechanism == "laplace":
            make = dp.from_laplace_mechanism
        fixed = sampling.kind == "fixed" and sampling.rate < 1
        found = make(
            release.scale,
            sensitivity=release.sensitivity,
            value_discretization_interval=interval,
            sampling_prob=1.0 if fixed else sampling.rate,
        )
        return _fixed_size(found, sampling.rate, interval) if fixed else found
    upper_lower = pairs(release)
    masses = [_split(np.exp(up), up - low, interval) for up, low in upper_lower]
    return _from_masses(masses, [0.0] * len(masses), interval)


def _split(mass: Doubles, loss: Doubles, interval: float) -> dict[int, float]:
    """Return atoms moved to multiples of the interval, keeping both probabilities."""
    below = np.floor(loss / interval)
    above = mass * np.expm1(below * interval - loss) / math.expm1(-interval)
    result: dict[int, float] = {}
    for place, all_of_it, up in zip(below.astype(int), mass, above, strict=True):
        for at, part in ((place, all_of_it - up), (place + 1, up)):
            if part > 0:
                result[int(at)] = result.get(int(at), 0.0) + float(part)
    return result


def _fixed_size(
    base: dp.PrivacyLossDistribution, rate: float, interval: float
) -> dp.PrivacyLossDistribution:
    """Return the distribution of a fixed-size sample from that of its mechanism.

    Balle et al., Theorem 9: ``delta'(log(1 + q (e^eps - 1))) = q delta(eps)``. Between
    multiples of the interval delta is interpolated linearly in e^eps, its upper bound
    since it is convex.
    """
    steps, most = 1024, int(MOST_LOSS / interval)
    while base.get_delta_for_epsilon(steps * interval) > UNLIKELY and steps < most:
        steps *= 2
    steps = min(steps, most)
    epsilon = np.arange(steps + 1) * interval
    delta = rate * np.asarray(
        base.get_delta_for_epsilon(np.log1p(np.expm1(epsilon) / rate))
    )
    # Slopes of delta over e^eps are the masses of Q beyond; ratio is e^eps.
    ratio = np.exp(epsilon)
    slopes = np.append(np.diff(delta) / (ratio[:-1] * math.expm1(interval)), 0.0)
    mass = np.clip(ratio[1:] * np.diff(slopes), 0, None)
    found = {i + 1: float(m) for i, m in enumerate(mass) if m > 0}
    mirrored = {-i: m * math.exp(-i * interval) for i, m in found.items()}
    beyond = float(delta[-1])
    rest = 1 - sum(found.values()) - sum(mirrored.values()) - beyond
    return _from_masses([{**found, **mirrored, 0: max(0.0, rest)}], [beyond], interval)


def _from_masses(
    masses: list[dict[int, float]], beyond: list[float], interval: float
) -> dp.PrivacyLossDistribution:
    """Return the distribution for one symmetric pair, or for (removed, added)."""
    create = dp.PrivacyLossDistribution.create_from_rounded_probability
    if len(masses) == 1:
        return create(masses[0], beyond[0], interval)
    return create(
        *(masses[0], beyond[0], interval, True),
        rounded_probability_mass_function_add=masses[1],
        infinity_mass_add=beyond[1],
        symmetric=False,
    )


@lru_cache(maxsize=8)
def _power(release: Release, interval: float, count: int) -> dp.PrivacyLossDistribution:
    """Return the distribution of ``count`` equal releases."""
    return distribution(release, interval).self_compose(count)


def _composed(
    releases: Mapping[Release, int], coarse: int = 1
) -> dp.PrivacyLossDistribution | None:
    """Return the distribution of all releases, None for no release."""
    groups = [(release, count) for release, count in releases.items() if count]
    if not groups:
        return None
    width = coarse * min(interval(release) for release, _ in groups)
    # In a fixed order: equal sets of releases have bit for bit equal results.
    groups.sort(key=lambda group: repr(group[0]))
    powers = [_power(release, width, count) for release, count in groups]
    return reduce(lambda one, other: one.compose(other), powers)


def _curve(releases: Mapping[Release, int]) -> list[float]:
    """Return the Rényi divergences of a composition at all orders."""
    curve = np.zeros(len(ORDERS))
    for release, count in releases.items():
        if count:
            curve += count * np.array(rdp(release))
    return curve.tolist()


def _pure(releases: Mapping[Release, int]) -> float:
    """Return epsilon at delta 0."""
    return sum(
        count * math.log1p(release.sampling.rate * math.expm1(release.pure_epsilon))
        if release.mechanism != "gaussian"
        else math.inf
        for release, count in releases.items()
        if count
    )


def _slack(releases: Mapping[Release, int]) -> float:
    """Return what the samplers take from delta."""
    return sum(release.delta_slack * count for release, count in releases.items())


def _check(releases: Mapping[Release, int], delta: float) -> None:
    """Refuse different relations and a delta below the resolution."""
    if not LEAST_DELTA <= delta < 1:
        raise ValueError(f"delta = {delta}: expected in [{LEAST_DELTA:g}, 1).")
    relations = {release.relation for release in releases}
    if len(relations) > 1:
        raise ValueError("Releases of different relations have no common guarantee.")
