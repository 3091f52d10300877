"""The least noise that keeps a run within its budget."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache, lru_cache

import numpy as np
from scipy.optimize import brentq, minimize_scalar

from .events import MECHANISMS, SCALED, UNBOUNDED, Release
from .pld import LEAST_DELTA, epsilon_at
from .rdp import ORDERS, RESERVE, epsilon_of, rdp
from .sampling import EVERYONE, Sampling
from .staircase import atoms, compose, lattice_epsilon, variance

__all__ = ["calibrate", "least_noise", "noise_std"]

# Relative accuracy of the noise found.
CLOSE = 1e-5
# A first search discretises this much more coarsely.
COARSE = 8
# Stands for an infinite epsilon in the search.
HUGE = 1e9


@lru_cache(maxsize=256)
def calibrate(
    mechanism: str,
    epsilon: float,
    delta: float,
    rounds: int = 1,
    sampling: Sampling = EVERYONE,
    relation: str = "add-remove",
    dimension: int = 1,
    *,
    delta_slack: float = 0.0,
    adaptive: bool = False,
    units: float = 0.0,
) -> Release:
    """Return the release of least noise of which ``rounds`` fit into a budget.

    Parameters
    ----------
    mechanism : str
        One of :data:`~.events.MECHANISMS`; ``staircase`` means the ball for a dimension
        above 1.
    epsilon, delta : float
        Budget of the run.
    rounds : int
        Releases, all equal.
    sampling, relation, dimension, delta_slack, units
        As in :class:`~.events.Release`.
    adaptive : bool
        For a Rényi filter instead of exact composition (needs more noise).

    Returns
    -------
    Release
        Verified to stay within the budget, with noise at most 1e-4 above the least.
        For a staircase that is composed, gamma has the least variance for the run.

    Raises
    ------
    ValueError
        For what :class:`~.events.Release` refuses, a budget out of range or one that
        the samplers' slack uses up.
    """
    if mechanism not in MECHANISMS:
        raise ValueError(f"Unknown mechanism {mechanism!r}: one of {MECHANISMS}.")
    _check_budget(epsilon, delta, rounds, delta_slack, adaptive)
    if mechanism == "skellam":
        _check_orders(epsilon, delta)
    name = mechanism
    if name == "staircase" and dimension > 1:
        name = "staircase-ball"
    made = {
        "sampling": sampling,
        "relation": relation,
        "dimension": dimension,
        "delta_slack": delta_slack,
        "units": units,
    }
    target = _Target(epsilon, delta, rounds, adaptive)
    start = math.log(_guess(name, epsilon, delta, rounds, sampling))

    def make(log_noise: float, gamma: float = 0.0) -> Release:
        if name in SCALED:
            return Release(name, scale=math.exp(log_noise), **made)  # type: ignore[arg-type]  # fields of Release
        return Release(name, epsilon0=math.exp(-log_noise), gamma=gamma, **made)  # type: ignore[arg-type]  # fields of Release

    if name != "staircase" or (rounds == 1 and sampling.rate == 1):
        return make(least_noise(lambda x, coarse: target.cost(make(x), coarse), start))
    least = start

    def log_std(log_gamma: float) -> float:
        nonlocal least
        gamma = math.exp(log_gamma)
        least = _root(lambda x: target.quick(make(x, gamma)), least, 1e-4, 0.01)
        return math.log(noise_std(make(least, gamma)))

    bounds = (math.log(1e-4), math.log(0.5))
    found = minimize_scalar(
        log_std, bounds=bounds, method="bounded", options={"xatol": 0.03}
    )
    gamma = math.exp(float(found.x))
    return make(
        least_noise(lambda x, coarse: target.cost(make(x, gamma), coarse), least), gamma
    )


def noise_std(release: Release, clip: float = 1.0) -> float:
    """Return the standard deviation of the noise on each coordinate.

    Parameters
    ----------
    clip : float
        Bound C on the norm (``release.norm``) of what one unit contributes. Neighbours
        under ``replace`` differ by twice that; this is taken care of here.
    """
    if release.mechanism in UNBOUNDED:
        return release.scale * clip
    if release.mechanism == "laplace":
        return math.sqrt(2) * release.scale * clip
    if release.mechanism == "laplace-ball":
        unit = math.sqrt(release.dimension + 1) / release.epsilon0
    else:
        unit = math.sqrt(variance(release.epsilon0, release.gamma, release.dimension))
    return unit * release.sensitivity * clip


class _Target:
    """What ``rounds`` releases cost, against the budget."""

    def __init__(
        self, epsilon: float, delta: float, rounds: int, adaptive: bool
    ) -> None:
        self._epsilon, self._delta, self._rounds = epsilon, delta, rounds
        self._adaptive = adaptive

    def cost(self, release: Release, coarse: int) -> float:
        """Return log(cost / budget), with ``coarse`` 1 as the ledger computes it."""
        if not self._adaptive:
            made = {release: self._rounds}
            return self._log(epsilon_at(made, self._delta, coarse=coarse))
        curve = self._rounds * np.array(rdp(release))
        one_order = [
            epsilon_of([r], [a], (1 - RESERVE) * self._delta)
            for a, r in zip(ORDERS, curve.tolist(), strict=True)
        ]
        return self._log(min(one_order))

    def quick(self, release: Release) -> float:
        """Return the cost of scalar staircase noise, faster where that is possible."""
        if self._adaptive or release.sampling.rate < 1:
            return self.cost(release, COARSE)
        loss = atoms(release.epsilon0, release.gamma)
        p, first = compose(loss, self._rounds)
        left = self._delta - self._rounds * release.delta_slack
        return self._log(lattice_epsilon(p, first, release.epsilon0, left))

    def _log(self, cost: float) -> float:
        return math.log(min(max(cost, 1 / HUGE), HUGE) / self._epsilon)


def least_noise(excess: Callable[[float, int], float], start: float) -> float:
    """Return the least logarithm of the noise at which a cost is within its budget.

    Parameters
    ----------
    excess : callable
        Logarithm of cost over budget; falls with the first argument. The second is how
        coarsely it is computed (:func:`~.pld.epsilon_at`).
    start : float
        Where to begin; a better guess is faster.

    Returns
    -------
    float
        At most 1e-4 above the least, never below.
    """
    near = _root(lambda x: excess(x, COARSE), start, 1e-3, 0.05)
    return _root(lambda x: excess(x, 1), near, CLOSE, 0.002)


def _root(
    excess: Callable[[float], float], start: float, close: float, step: float
) -> float:
    """Return about the least x with excess(x) <= 0, on that side of it."""
    # The ends of the bracket are asked for again by brentq.
    excess = cache(excess)
    low = high = start
    # Costs fall at least about as fast as noise grows.
    step = max(step, min(1.2 * abs(excess(start)), 2.0))
    if excess(start) > 0:
        while excess(high) > 0:
            low, high, step = high, high + step, 2 * step
    else:
        while excess(low) <= 0:
            low, high, step = low - step, low, 2 * step
    found = float(brentq(excess, low, high, xtol=close / 2, rtol=1e-12))
    while excess(found) > 0:
        found += close / 2
    return found


def _guess(
    name: str, epsilon: float, delta: float, rounds: int, sampling: Sampling
) -> float:
    """Return noise of about the right size to start from."""
    many = math.sqrt(rounds)
    if name in UNBOUNDED:
        noise = math.sqrt(2 * math.log(1.25 / delta)) / epsilon
        return max(noise * many * sampling.rate, 0.3)
    amplified = math.log1p(math.expm1(min(epsilon, 500)) / sampling.rate)
    return many / amplified


def _check_orders(epsilon: float, delta: float) -> None:
    """Refuse an epsilon that no noise has by Rényi divergences, at any order."""
    least = epsilon_of([delta] * len(ORDERS), ORDERS, delta)
    if epsilon <= least:
        raise ValueError(
            f"epsilon = {epsilon:g}: Skellam noise is composed by Rényi divergences, "
            f"which show {least:.2g} at least at delta {delta:g}."
        )


def _check_budget(
    epsilon: float, delta: float, rounds: int, slack: float, adaptive: bool
) -> None:
    """Refuse a budget out of range."""
    if not (epsilon > 0 and math.isfinite(epsilon)):
        raise ValueError(f"epsilon = {epsilon}: expected > 0 and finite.")
    if not LEAST_DELTA <= delta < 1:
        raise ValueError(f"delta = {delta}: expected in [{LEAST_DELTA:g}, 1).")
    if isinstance(rounds, bool) or not isinstance(rounds, int) or rounds < 1:
        raise ValueError(f"rounds = {rounds!r}: expected an integer >= 1.")
    allowed = (RESERVE if adaptive else 0.5) * delta
    if slack * rounds > allowed:
        raise ValueError(
            f"delta_slack {slack:g} in {rounds} rounds uses {slack * rounds:g} of "
            f"delta {delta:g}; at most {allowed:g}. Sample with more bits."
        )
