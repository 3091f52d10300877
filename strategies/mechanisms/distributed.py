"""Distributed differential privacy: every client adds a share of the noise.

Each client shortens its update to the clip C, on a lattice of integers, and adds
Skellam noise of variance ``V / h``. A secure sum of n clients then has the noise of all
of them, so at least V if at least h of them are honest: nobody, the server included,
needs to be trusted with more than to see the sum alone (Agarwal, Kairouz and Liu,
NeurIPS 2021; the same for discrete Gaussian noise, which is not closed under addition:
Kairouz, Liu and Steinke, "The Distributed Discrete Gaussian Mechanism for Federated
Learning with Secure Aggregation", ICML 2021).

Differences to the papers: coordinates are rounded toward zero instead of at random, so
that the clip holds for the integers exactly, with no correction for what rounding adds
and no second draw, at the price of being off by less than a step toward zero (all of a
dense update together by at most C / 64); no rotation, since the modulus is chosen so
wide that nothing wraps around; shares are sized for the smallest number of honest
survivors instead of all clients.

Mathematics (per coordinate, in lattice steps; C is ``units`` of them)
----------------------------------------------------------------------
``q_i = clip(x_i) + Skellam(V / h) + half``, in ``[0, 2 half]``.
``sum q_i - n half = sum clip(x_i) + Skellam(n V / h)``; the mean is that over n. The
cohort is announced, so neighbours differ in what one client contributes (``replace``):
by 2 C in L2. V is calibrated to that by :mod:`..accounting.skellam`.

Survivors and colluders: with ``secure.min-cohort`` the least number of clients in a sum
and ``secure.colluders`` those that tell the server their own updates and noise,
``h = min-cohort - colluders``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from truststram.errors import ConfigError
from truststram.job import Job

from ..accounting.calibrate import calibrate
from ..accounting.events import Release
from ..accounting.ledger import Ledger
from .lattice import CLIP_BITS, MOST_BITS, Lattice
from .skellam import LEAST_VARIANCE, delta_slack, epsilon_slack, tail

__all__ = ["DistributedPlan", "distributed_plan"]

# Rounding toward zero moves a dense update of norm C by at most C * 2**-FINER.
FINER = 6
LEAST_BITS = 10
# A value that does not fit is drawn less often than this in a round of all clients.
OVERFLOW = 2.0**-64
# The samplers' error in delta grows with exp(epsilon).
MOST_EPSILON = 20.0


@dataclass(frozen=True)
class DistributedPlan:
    """The noise of a run: what every round is charged as, and each client's share.

    Attributes
    ----------
    release : Release
        Of every round. Its scale is the least standard deviation of the honest
        clients' noise in a sum, in clips: ``sqrt(V) / units``.
    rounds : int
    on : Lattice
        Of updates: C and the step.
    honest : int
        h, honest clients that every sum has at least.
    most : int
        Clients that a sum has at most: what samplers and overflow cost is reckoned for
        so many.
    reserve : float
        Part of epsilon that the finite bits of the samplers take.
    """

    release: Release
    rounds: int
    on: Lattice
    honest: int
    most: int
    reserve: float

    @property
    def share(self) -> float:
        """Variance of one client's noise on each coordinate, in steps squared."""
        return (self.release.scale * self.on.units) ** 2 / self.honest

    @property
    def half(self) -> int:
        """What is added to every integer so that it is not negative.

        Clip and noise together exceed it with probability :data:`OVERFLOW` in a round,
        which is part of ``release.delta_slack``.
        """
        draws = self.most * self.release.dimension
        return math.ceil(self.on.units + _reach(self.share, draws))

    def charges(self, _: Job) -> dict[Release, int]:
        """Return all releases of a run, and how many times each is made."""
        return {self.release: self.rounds}

    def std(self, clients: int) -> float:
        """Return the standard deviation of the noise in a sum, in clips."""
        return math.sqrt(clients * self.share) / self.on.units

    def levels(self, clients: int) -> list[dict[str, Any]]:
        """Return the noise in sums of so many clients as JSON values, for events."""
        std = float(f"{self.std(clients):.6g}")
        scale = self.release.scale
        return [{"rounds": self.rounds, "scale": scale, "epsilon0": None, "std": std}]

    def ledger(self, job: Job) -> Ledger:
        """Return an empty ledger with the job's budget."""
        return Ledger(
            *(job.privacy.epsilon, job.privacy.delta),
            relation=self.release.relation,
            unit="client",
            trust="distributed",
            reserve=self.reserve,
        )


@lru_cache(maxsize=8)
def distributed_plan(job: Job, dimension: int) -> DistributedPlan:
    """Calibrate a job's noise, from public numbers only: the same on every node.

    Parameters
    ----------
    job : Job
        Its ``privacy`` section, ``train.rounds``, ``secure.min-cohort``,
        ``secure.max-cohort`` and ``secure.colluders``.
    dimension : int
        Values in an update, d.

    Raises
    ------
    ConfigError
        If there is no such guarantee, with the reason.
    """
    try:
        return _planned(job, dimension)
    except ValueError as error:
        raise ConfigError(f"privacy: {error}") from None


def _planned(job: Job, d: int) -> DistributedPlan:
    """Return the plan on the coarsest lattice that serves."""
    honest = job.secure.min_cohort - job.secure.colluders
    if honest < 1:
        raise ValueError(f"{honest} honest clients in a sum: expected some.")
    if not 2.0**-CLIP_BITS <= job.privacy.clip <= 2.0**CLIP_BITS:
        raise ValueError(f"clip {job.privacy.clip:g} is out of range.")
    if job.privacy.epsilon > MOST_EPSILON:
        raise ValueError(f"epsilon {job.privacy.epsilon:g}: expected <= 20.")
    bits = max(LEAST_BITS, FINER + math.ceil(math.log2(d) / 2))
    for more in range(bits, MOST_BITS["l2"] + 1):
        on = _lattice(job.privacy.clip, more)
        plan = _calibrated(job, d, on, honest)
        if plan.share >= LEAST_VARIANCE:
            if plan.half >= 2**30:
                raise ValueError(
                    f"noise of {math.sqrt(plan.share):.3g} steps does not fit 31 bits: "
                    "raise privacy.epsilon or secure.min-cohort, or use fewer rounds."
                )
            return plan
    raise ValueError(f"{d} values and {honest} honest clients need a finer lattice.")


def _lattice(clip_: float, bits: int) -> Lattice:
    """Return a lattice with at least ``2**bits`` steps to the clip."""
    exponent = math.frexp(clip_)[1] - 1  # 2**exponent <= clip
    return Lattice(float(clip_), 2.0 ** (exponent - bits), "l2")


def _calibrated(job: Job, d: int, on: Lattice, honest: int) -> DistributedPlan:
    """Return the least noise on a lattice; finite bits are taken off epsilon first."""
    keys, rounds, most = job.privacy, job.train.rounds, job.secure.max_cohort
    slack = delta_slack(LEAST_VARIANCE, most * d) + OVERFLOW
    slack *= 1 + math.exp(keys.epsilon)
    reserve = 2.0**-14 * keys.epsilon
    while reserve < keys.epsilon / 2:
        release = calibrate(
            *("skellam", keys.epsilon - reserve, keys.delta, rounds),
            relation=keys.neighbours,
            dimension=d,
            delta_slack=slack,
            units=on.units,
        )
        plan = DistributedPlan(release, rounds, on, honest, most, reserve)
        needed = epsilon_slack(math.sqrt(plan.share), most * d * rounds)
        if needed <= reserve:
            return plan
        reserve = 1.1 * needed
    raise ValueError(
        f"epsilon {keys.epsilon:g} is too small for {d:.3g} values in {rounds} rounds: "
        "use fewer rounds or a smaller model."
    )


def _reach(share: float, draws: int) -> float:
    """Return how far none of ``draws`` goes, but for :data:`OVERFLOW`."""
    # Of normal numbers; Skellam noise goes a little further.
    reach = math.sqrt(-2 * share * math.log(OVERFLOW / (2 * draws)))
    while draws * tail(share, reach) > OVERFLOW:
        reach *= 1.01
    return reach
