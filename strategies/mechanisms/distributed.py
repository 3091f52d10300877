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
and ``secure.colluders`` those that add no noise or tell the server theirs, and their
updates, ``h = min-cohort - colluders``.

Sums inside groups
------------------
With ``secure.group-size`` a round has several sums, each with the noise above: h is
then the least number of honest survivors of a *group*. The account is that of one sum a
round. A client is in one group in a round, and which one follows from public names, so
neighbours (``replace``) differ in one term of one sum. The other sums have the same
distribution for both, and what is independent of where they differ adds no divergence:
parallel composition over disjoint groups (McSherry, "Privacy Integrated Queries",
SIGMOD 2009). It needs no bound on the number of groups. Groups may be others in every
round if they follow from public names and from what was released before: so do those
of ``secure.regroup``, which are drawn from the model, and a model is computed from the
sums of the rounds before it (post-processing; each round's account holds whatever was
seen before, as that of adaptive composition does). Drawn from anything else about the
data they would not be covered. Who drops out is public, here as in one sum, and taken
not to depend on data. Everything behind the sums (groups that are discarded, the rule
across their means, the guard) reads nothing but them.

Malicious nodes may leave their noise out, and all of them may be in one group. They
count among ``secure.colluders``: groups, whose only use is against such nodes, are
refused without any, a ``robust.f`` above it is refused, and an automatic one assumes no
more. With more malicious nodes than that the epsilon shown does not hold.

What groups cost is noise: the variance of the mean of all group means, of K clients, is
``V / (h K)``, with h at most the size of a group; in one sum h may be K. What they are
good for is one thing. Updates from poisoned data are clipped like any other. But a
malicious node need not clip what it sends: there is room for 13 standard deviations of
its noise on every coordinate, and in one sum nobody can tell that from noise. Across
groups WFAgg can, unless their means are all noise. The accuracy with 0, 1 and 2 nodes
of 200 that send the largest integers against their own update, without noise (softmax
regression on digits, IID, 10 rounds, delta 1e-5, all nodes must answer, two colluders
and ``robust.f`` = 2; ``benchmarks.noisy_groups``):

=======  =================  =================  =================
epsilon  one sum            5 groups of 40     10 groups of 20
=======  =================  =================  =================
8        .897, .456, .318   .777, .691, .641   .617, .481, .344
20       .930, .903, .736   .894, .887, .884   .862, .850, .838
=======  =================  =================  =================

The noise of a group's mean was 2.6 and 5.4 times the longest mean there can be at
epsilon 8, and 1.3 and 2.7 times at epsilon 20. Where it was up to 2.7, WFAgg left out
77 to 100 % of the spoilt groups, at 5.4 62 to 80 %; of the other groups up to 13 % of
five and 4 % of ten. So groups up to about 2.5 are of use against such nodes, and
without them one sum of all is better in any case.
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

__all__ = ["DistributedPlan", "distributed_plan", "groups_of", "warning"]

# Rounding toward zero moves a dense update of norm C by at most C * 2**-FINER.
FINER = 6
LEAST_BITS = 10
# A value that does not fit is drawn less often than this in a round of all clients.
OVERFLOW = 2.0**-64
# With more noise than so many times the longest mean, in the mean of a group, robust
# rules miss malicious nodes: measured, see above.
JUDGED = 2.5
# The samplers' error in delta grows with exp(epsilon).
MOST_EPSILON = 20.0


@dataclass(frozen=True)
class DistributedPlan:
    """The noise of a run: what every round is charged as, and each client's share.

    Attributes
    ----------
    release : Release
        Of every round. Its scale is the least standard deviation of the honest
        clients' noise in a sum (of one group, where there are groups), in clips:
        ``sqrt(V) / units``.
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

    def mean_std(self, clients: int, groups: int = 1) -> float:
        """Return the standard deviation of the noise in the clients' mean, in clips.

        With ``groups`` that is the mean of the means of so many, whose sizes differ by
        at most one. Rules hand on other things, but none that is unbiased has less.
        """
        size, larger = divmod(clients, groups)
        inverse = (groups - larger) / size + larger / (size + 1)
        return math.sqrt(self.share * inverse) / groups / self.on.units

    def ratio(self, clients: int, groups: int = 1) -> float:
        """Return the length of that noise over the longest mean that there can be."""
        return self.mean_std(clients, groups) * math.sqrt(self.release.dimension)

    def group_for(self, ratio: float, colluders: int) -> int:
        """Return the smallest group whose mean has at most this :meth:`ratio`.

        If all its clients must answer: ``secure.min-cohort`` is its size, n, and
        ``n (n - colluders) >= scale^2 d / ratio^2``.
        """
        least = self.release.scale**2 * self.release.dimension / ratio**2
        return math.ceil(colluders / 2 + math.sqrt(colluders**2 / 4 + least))

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


def groups_of(job: Job, nodes: int) -> int:
    """Return how many sums a round of so many nodes has."""
    size = job.secure.group_size
    return max(1, nodes // size) if size else 1


def warning(plan: DistributedPlan, job: Job, nodes: int) -> str:
    """Return what makes groups useless under this noise, or an empty text."""
    found = plan.ratio(nodes // groups_of(job, nodes))
    if not job.secure.group_size or found <= JUDGED:
        return ""
    size = plan.group_for(JUDGED, job.secure.colluders)
    return (
        f"The noise in the mean of a group is {found:.3g} times the longest mean there "
        f"can be; robust rules miss malicious nodes above {JUDGED:g}. Groups of {size} "
        f"that all answer (secure.group-size = secure.min-cohort = {size}) have that; "
        "fewer rounds or a larger privacy.epsilon need less, and one sum of all nodes "
        "(secure.group-size = 0) is the least noisy."
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
