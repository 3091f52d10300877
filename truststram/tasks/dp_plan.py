"""How much noise a node's DP-SGD needs, and what it costs: computed by the node itself.

A run has ``train.rounds * train.local-epochs * ceil(n / batch-size)`` noisy steps at a
node with n examples; each is a Gaussian release with Poisson sampling at the rate
``batch-size / n``. The noise is the least for which all of them fit into the budget,
beside the accuracies that the node is to tell (``privacy.evaluate-epsilon``).
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from .. import techniques
from .._locate import app_module
from ..errors import ConfigError
from ..job import Job

if TYPE_CHECKING:
    from strategies.accounting.events import Release
    from strategies.accounting.ledger import Ledger
    from strategies.mechanisms.lattice import Lattice

__all__ = ["MARGIN", "node_ledger", "planned_release", "steps_per_round", "sum_lattice"]

# Part of the clip that rounding takes: half for the lattice, half for float32.
MARGIN = 2.0**-9
_FINER = 10
# Clips at which squares in float32 neither vanish nor overflow.
_CLIPS = 2.0**-30, 2.0**30


def steps_per_round(job: Job, n: int) -> int:
    """Return the number of noisy steps in a node's round, for n examples."""
    return job.train.local_epochs * math.ceil(n / job.train.batch_size)


def planned_release(job: Job, n: int, dimension: int) -> Release:
    """Return what one step is charged as: the least noise for a whole run.

    Parameters
    ----------
    n : int
        Training examples of the node, > 0.
    dimension : int
        Trained values of the model, d.

    Returns
    -------
    Release
        Gaussian with noise multiplier z, Poisson sampling at rate ``batch-size / n``
        (everyone if that is 1 or more), for examples.

    Raises
    ------
    ConfigError
        If there is no such guarantee, with the reason.
    """
    keys = job.privacy
    if not _CLIPS[0] <= keys.clip <= _CLIPS[1]:
        raise ConfigError(
            f"privacy.clip = {keys.clip:g}: dp-sgd expects 1e-9 to 1e9, the norm of an "
            "example's gradient."
        )
    rate = min(1.0, job.train.batch_size / n)
    steps = job.train.rounds * steps_per_round(job, n)
    budget = keys.training_epsilon, keys.delta, keys.neighbours
    return _calibrated(*budget, rate, steps, dimension, *_told(job, job.train.rounds))


def _told(job: Job, done: int) -> tuple[Release | None, int]:
    """Return what an accuracy costs, and how many a node tells in ``done`` rounds."""
    release = app_module("strategies.mechanisms.evaluation").accuracy_release(job)
    return release, job.privacy.evaluations(job.train.rounds, done)


# Simulated nodes share a process and differ in n.
@lru_cache(maxsize=256)
def _calibrated(
    epsilon: float,
    delta: float,
    relation: str,
    rate: float,
    steps: int,
    dimension: int,
    told: Release | None,
    times: int,
) -> Release:
    """Return the release; what the sampler's finite bits cost is taken off first."""
    gaussian = app_module("strategies.mechanisms.gaussian")
    pld = app_module("strategies.accounting.pld")
    sampling = techniques.Sampling("poisson" if rate < 1 else "none", rate)
    draws = dimension * steps
    slack = gaussian.delta_slack(draws) * (1 + math.exp(min(epsilon, 700.0))) / steps
    # A clip has fewer than twice the steps of one that is a power of two.
    units = 2 * sum_lattice(1.0, dimension).units
    bits = 2.0**-12 * epsilon
    whole, others = epsilon, dict[Any, int]()
    if told is not None:
        whole, others = epsilon + times * told.epsilon0, {told: times}
        delta -= times * told.delta_slack
    try:
        while bits < epsilon / 2:
            release = techniques.calibrate(
                *("gaussian", epsilon - bits, delta, steps, sampling, relation),
                dimension=dimension,
                delta_slack=slack,
            )
            needed = gaussian.epsilon_slack(release.scale * units, draws)
            if others:  # both budgets add up, but for what is lost by rounding up
                cost = pld.epsilon_at({release: steps, **others}, delta)
                needed += max(0.0, cost - (whole - bits))
            if needed <= bits:
                return release
            bits = 1.1 * needed
    except ValueError as error:
        raise ConfigError(f"privacy.mechanism = dp-sgd: {error}") from None
    raise ConfigError(
        f"privacy.epsilon = {epsilon:g}: too small for {draws:.2g} random numbers of "
        "54 bits. Use fewer rounds, larger batches or a smaller model."
    )


def node_ledger(job: Job, n: int, dimension: int, rounds: int | None = None) -> Ledger:
    """Return the ledger of a node after some rounds; all of them by default.

    Parameters
    ----------
    n, dimension
        As in :func:`planned_release`.
    rounds : int, optional
        Rounds in which the node trained, and evaluated where it was to.

    Returns
    -------
    Ledger
        Its ``spent()`` is the epsilon at ``privacy.delta``, never above
        ``privacy.epsilon``; ``describe()`` says it in words.

    Raises
    ------
    ConfigError
        As :func:`planned_release`.
    ValueError
        For more rounds than the budget allows.
    """
    ledger = techniques.Ledger(
        *(job.privacy.epsilon, job.privacy.delta),
        relation=job.privacy.neighbours,
        unit="example",
        trust="local",
    )
    made = job.train.rounds if rounds is None else rounds
    if made:
        release = planned_release(job, n, dimension)
        ledger.charge(release, made * steps_per_round(job, n))
    told, times = _told(job, made)
    if told is not None and times:
        ledger.charge(told, times)
    return ledger


def sum_lattice(clip: float, dimension: int) -> Lattice:
    """Return the lattice for a sum of clipped gradients.

    Rounding moves two sums apart by at most a step in each of d values, ``sqrt(d)
    step`` together: at most ``clip * MARGIN / 2``. Finer steps would take more random
    bits.
    """
    bits = _FINER + math.ceil(math.log2(dimension) / 2)
    exponent = math.frexp(clip)[1] - 1  # 2**exponent <= clip
    made: Lattice = app_module("strategies.mechanisms.lattice").Lattice(
        clip, 2.0 ** (exponent - bits), "l2"
    )
    return made
