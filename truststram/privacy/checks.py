"""What must hold exactly, whatever the noise is: checks of single bits of a release."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
from flwr.clientapp import ClientApp

from .._locate import app_module
from .._logs import quiet
from ..engine import LocalGrid
from ..job import Job
from ..techniques import Plan
from .canaries import Bools, Round, play_round, release, server_of

__all__ = ["dependence", "off_lattice", "repetition"]

# Nodes of the rounds that are compared bit by bit, and values of their model.
FEW, WIDTH = 8, 64
# Part of values that agree by chance once in a million comparisons at most.
MANY = 0.25
# Beyond 24 bits float32 has rounded the lattice away, which reveals nothing.
FLOAT_BITS = 24


def off_lattice(plan: Plan, released: Round) -> Bools:
    """Return which released numbers are no whole number of steps, divided by m."""
    noise = app_module("strategies.mechanisms.noise")
    on = noise.lattice_for(plan.release, plan.lattice_clip, plan.release.dimension)
    steps = np.rint(released.sums / on.step)
    again = (steps * (on.step / released.cohort)).astype(np.float32)
    off: Bools = (np.abs(steps) < 2**FLOAT_BITS) & (again != released.values)
    return off


def dependence(job: Job) -> list[str]:
    """Return what the release says about who answered, beyond the sum.

    The noise repeats with the seed here, so that nothing else differs.
    """
    job = job.replace({"privacy.insecure": True})
    some = range(FEW // 2)
    without, again = _small(job, some, ()), _small(job, some, ())
    if not np.array_equal(without, again):
        return ["The noise does not come from the layer's source of randomness."]
    if not np.array_equal(without, _small(job, some, range(FEW // 2, FEW))):
        return ["Clients that answered with zeros changed the release: it counts them."]
    return []


def repetition(job: Job, runs: tuple[Round, Round], coins: Bools) -> list[str]:
    """Return where noise repeats: in two runs, or in two rounds of one.

    Parameters
    ----------
    runs : tuple of Round
        In the second, nobody took part.
    coins : array of bool, shape (m,)
        Who took part in the first.
    """
    found = []
    first, second = (run.values[~coins] for run in runs)
    if np.mean(first == second) > MANY:
        found.append("Two runs had the same noise: their difference is in the clear.")
    with quiet(logging.ERROR):
        server = server_of(job.replace({"train.rounds": 2}))
        grid = LocalGrid(ClientApp(), FEW)
        one, two = (play_round(server, r, grid, WIDTH, {}) for r in (1, 2))
    if np.mean(one == two) > MANY:
        found.append("Two rounds had the same noise: their difference is in the clear.")
    return found


def _small(job: Job, ones: Sequence[int], zeros: Sequence[int]) -> Any:
    """Return the release of a few nodes, some with an update, some with zeros."""
    spikes = {**dict.fromkeys(ones, job.privacy.clip), **dict.fromkeys(zeros, 0.0)}
    with quiet(logging.ERROR):
        return release(job, LocalGrid(ClientApp(), FEW), WIDTH, spikes)
