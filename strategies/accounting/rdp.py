"""Rényi differential privacy, and the filter for noise that depends on earlier outputs.

Sources: Mironov, "Rényi Differential Privacy", CSF 2017; Mironov, Talwar, Zhang, "Rényi
Differential Privacy of the Sampled Gaussian Mechanism", arXiv 1908.10530; Feldman and
Zrnic, "Individual Privacy Accounting via a Rényi Filter", NeurIPS 2021, Theorem 3.1
(:class:`RdpFilter`); Canonne, Kamath, Steinke, "The Discrete Gaussian for Differential
Privacy", NeurIPS 2020, Proposition 12 (to epsilon and delta, by dp-accounting).
Differences: sampled releases are computed from their dominating pair, in both
directions and for every mechanism, instead of bounded.

Mathematics
-----------
``D_a(P || Q) = log E_Q[(P/Q)**a] / (a - 1)`` at order a; it adds up under composition.
The scalar staircase has three terms: ``p0 + p1 exp((a-1) e) + p2 exp(-(a-1) e)``.

Why a filter has few orders
---------------------------
While noise is chosen by what came out before, the order at which a run looks cheapest
is a choice by the outputs too. One order that is fixed before the run needs no
correction. With k of them, a run goes on while any is below its budget, so each gets
``delta / k``: where the run ends, some order holds, and their failures add up. (The sum
of the releases may be data-dependent; the orders may not.)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from dp_accounting import rdp as dp

from . import skellam
from .events import Release
from .pairs import pairs, renyi

__all__ = ["ORDERS", "RdpFilter", "best_order", "delta_of", "epsilon_of", "rdp"]

ORDERS = (
    *(1.1, 1.2, 1.35, 1.5, 1.75, 2.0, 2.25, 2.5, 2.75, 3.0, 3.5, 4.0, 4.5, 5.0, 6.0),
    *(7.0, 8.0, 9.0, 10.0, 12.0, 14.0, 16.0, 20.0, 24.0, 28.0, 32.0, 40.0, 48.0, 64.0),
    *(96.0, 128.0, 192.0, 256.0),
)
# A sampled Gaussian is integrated up to order times shift; beyond, it has no value.
MOST_REACH = 400.0
# Part of delta that a filter keeps for what its samplers may take.
RESERVE = 0.01


@lru_cache(maxsize=1024)
def rdp(release: Release, orders: tuple[float, ...] = ORDERS) -> tuple[float, ...]:
    """Return the Rényi divergence of one release.

    Parameters
    ----------
    orders : tuple of float
        Each > 1.

    Returns
    -------
    tuple of float
        One for each order, exact to about 1e-9; infinite where it is not computed
        (sampled Gaussian noise at high orders); for ``skellam`` an upper bound.
    """
    if min(orders) <= 1:
        raise ValueError(f"Orders {orders}: expected > 1.")
    if release.mechanism == "skellam":
        variance = (release.scale * release.units) ** 2
        l1, l2 = skellam.sensitivities(release)
        return tuple(skellam.divergence(variance, l1, l2, a) for a in orders)
    if release.mechanism != "gaussian":
        found = pairs(release)
        return tuple(max(renyi(pair, a) for pair in found) for a in orders)
    shift = release.sensitivity / release.scale
    if release.sampling.rate == 1:
        return tuple(a * shift**2 / 2 for a in orders)
    covered = [a for a in orders if a * shift <= MOST_REACH]
    if not covered:
        return (math.inf,) * len(orders)
    found = pairs(release, max(covered) * shift)
    return tuple(
        max(renyi(pair, a) for pair in found) if a in covered else math.inf
        for a in orders
    )


def epsilon_of(curve: Sequence[float], orders: Sequence[float], delta: float) -> float:
    """Return epsilon at delta of a curve, minimised over the orders.

    For a composition that was fixed beforehand: the curve is the sum of its releases.
    """
    if not any(curve):
        return 0.0
    known = [(a, r) for a, r in zip(orders, curve, strict=True) if math.isfinite(r)]
    if not known:
        return math.inf
    epsilon, _ = dp.compute_epsilon(*zip(*known, strict=True), delta)
    return float(epsilon)


def delta_of(curve: Sequence[float], orders: Sequence[float], epsilon: float) -> float:
    """Return delta at epsilon of a curve, minimised over the orders.

    See :func:`epsilon_of`.
    """
    if not any(curve):
        return 0.0
    known = [(a, r) for a, r in zip(orders, curve, strict=True) if math.isfinite(r)]
    if not known:
        return 1.0
    delta, _ = dp.rdp_privacy_accountant.compute_delta(
        *zip(*known, strict=True), epsilon
    )
    return float(delta)


def best_order(release: Release, epsilon: float, delta: float) -> float:
    """Return the order at which most such releases fit into a budget.

    The one to fix for a :class:`RdpFilter` whose run is planned around ``release``.
    """
    left = (1 - RESERVE) * delta
    budget = np.array([_budget(a, epsilon, left) for a in ORDERS])
    cost = np.maximum(np.array(rdp(release)), 1e-300)
    return ORDERS[int(np.argmax(budget / cost))]


class RdpFilter:
    """A stopping rule for releases that depend on earlier outputs in every respect.

    Guarantees: as long as :meth:`add` returned without error, everything that was
    released is (epsilon, delta)-private, however each release (mechanism, noise,
    sampling) was chosen from the outputs before it. The guarantee is the budget, not
    what :meth:`spent` shows.

    Parameters
    ----------
    epsilon, delta : float
        Budget.
    orders : sequence of float
        Fixed before the first release, each > 1; one that fits the plan
        (:func:`best_order`) is better than many.

    Raises
    ------
    ValueError
        For no order, an order <= 1, or a budget that no order could ever meet.
    """

    def __init__(self, epsilon: float, delta: float, orders: Sequence[float]) -> None:
        if not orders or min(orders) <= 1 or not all(map(math.isfinite, orders)):
            raise ValueError(f"Orders {orders}: expected one or more, each > 1.")
        self.epsilon, self.delta = epsilon, delta
        self.orders = tuple(float(a) for a in orders)
        self._each = delta * (1 - RESERVE) / len(self.orders)
        if max(_budget(a, epsilon, self._each) for a in self.orders) <= 0:
            raise ValueError(
                f"epsilon {epsilon:g} at delta {delta:g} leaves nothing at orders "
                f"{self.orders}: give higher orders."
            )
        self._releases: dict[Release, int] = {}

    def would_exceed(self, release: Release, count: int = 1) -> bool:
        """Return whether ``count`` such releases would leave the budget."""
        releases = self._after(release, count)
        slack = sum(r.delta_slack * n for r, n in releases.items())
        return self._epsilon(releases) > self.epsilon or slack > RESERVE * self.delta

    def add(self, release: Release, count: int = 1) -> None:
        """Count releases.

        Raises
        ------
        ValueError
            If they would leave the budget; nothing is counted then.
        """
        if self.would_exceed(release, count):
            raise ValueError("The release would leave the budget of the filter.")
        self._releases = self._after(release, count)

    def spent(self) -> float:
        """Return how far it is to the budget, as an epsilon at delta.

        What these releases would cost had they been fixed beforehand. Of a run that
        chose by its outputs, only the budget may be claimed.
        """
        return self._epsilon(self._releases)

    def _after(self, release: Release, count: int) -> dict[Release, int]:
        """Return the releases with more of one."""
        return {**self._releases, release: self._releases.get(release, 0) + count}

    def _epsilon(self, releases: dict[Release, int]) -> float:
        """Return epsilon: the least over the orders, each at its part of delta."""
        curve = np.zeros(len(self.orders))
        for release, count in releases.items():
            curve += count * np.array(rdp(release, self.orders))
        return epsilon_of(curve.tolist(), self.orders, self._each)


def _budget(order: float, epsilon: float, delta: float) -> float:
    """Return the divergence at an order that is within epsilon at delta."""
    return (
        epsilon - math.log1p(-1 / order) + math.log(delta * order) / (order - 1)
        if order > 1.01
        else 0.0
    )
