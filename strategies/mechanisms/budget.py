"""From a budget to noise: which mechanism, and how much in every round.

The harmonizer's side of a plan (:mod:`..accounting.compare`): everything that a budget
pays for is taken off before the noise is calibrated to the rest, namely evaluations by
the nodes (:mod:`.evaluation`) and the finite bits of the samplers (:mod:`.noise`).
"""

from __future__ import annotations

import math
from collections.abc import Callable

from truststram.errors import ConfigError
from truststram.job import Job

from ..accounting.compare import Choice, best, compare
from ..accounting.events import Release, Sampling
from ..accounting.pld import epsilon_at
from ..accounting.schedule import Schedule, before_plateau, constant, increasing
from .evaluation import accuracy_release
from .noise import delta_slack, epsilon_slack
from .setting import setting

__all__ = ["choices", "scheduled"]

# The samplers' error in delta grows with exp(epsilon); here it is about 1e-9 a round.
MOST_EPSILON = 20.0
# What privacy.schedule means.
SCHEDULES: dict[str, Callable[..., Schedule]] = {
    "constant": constant,
    "increasing": increasing,
    "on-plateau": before_plateau,
}
Target = tuple[float, float, int, Sampling, str, int]


def scheduled(job: Job, nodes: int, dimension: int) -> tuple[Schedule, float]:
    """Return the releases of training, and the part of epsilon left to finite bits.

    Raises
    ------
    ConfigError, ValueError
        If there is no such guarantee, with the reason.
    """
    keys, evaluation = job.privacy, accuracy_release(job)
    draws = dimension * job.train.rounds
    told = (
        {} if evaluation is None else {evaluation: keys.evaluations(job.train.rounds)}
    )
    most = keys.training_epsilon
    bits = 2.0**-14 * most
    while bits < most / 2:
        target, slack = _target(job, nodes, dimension, most - bits)
        mechanism = keys.mechanism
        if mechanism == "auto":
            gaussian = keys.clip_quantile > 0
            mechanism = "gaussian" if gaussian else _best(target, slack)
        schedule = SCHEDULES[keys.schedule](mechanism, *target, delta_slack=slack)
        slacks = [epsilon_slack(release, dimension, draws) for release, _ in schedule]
        reserve = needed = max(slacks)
        if told:  # both budgets add up, but for what is lost by rounding losses up
            cost = epsilon_at({**dict(schedule), **told}, keys.delta)
            needed += max(0.0, cost - (keys.epsilon - bits))
        if needed <= bits:
            return schedule, reserve
        bits = 1.1 * needed
    raise ValueError(
        f"epsilon {keys.epsilon:g} is too small for {draws:.2g} random numbers of 54 "
        "bits: use fewer rounds or a smaller model"
    )


def choices(job: Job, nodes: int, dimension: int) -> list[Choice]:
    """Return every mechanism at the job's budget, least noise first.

    For equal noise in every round.
    """
    target, slack = _target(job, nodes, dimension, job.privacy.training_epsilon)
    return compare(*target, delta_slack=slack)


def _best(target: Target, slack: float) -> str:
    """Return the mechanism with the least noise, if it is equal in every round."""
    return best(*target, delta_slack=slack).mechanism


def _target(
    job: Job, nodes: int, dimension: int, epsilon: float
) -> tuple[Target, float]:
    """Return the arguments of calibration, and the slack of the samplers in delta."""
    keys, chosen = job.privacy, setting(job, nodes)
    if keys.epsilon > MOST_EPSILON:
        raise ConfigError(
            f"privacy.epsilon = {keys.epsilon:g}: expected <= {MOST_EPSILON:g}. So "
            "weak a promise is finer than the samplers' precision, and no privacy."
        )
    probes = (
        Release("gaussian", scale=1.0, dimension=dimension),
        Release("laplace-ball", epsilon0=1.0, dimension=dimension),
    )
    slack = max(delta_slack(release, dimension) for release in probes)
    told = accuracy_release(job)
    delta = keys.delta
    if told is not None:
        delta -= told.delta_slack * keys.evaluations(job.train.rounds)
    budget = epsilon, delta, job.train.rounds
    what = chosen.sampling, chosen.relation, dimension
    return (*budget, *what), slack * (1 + math.exp(keys.epsilon))
