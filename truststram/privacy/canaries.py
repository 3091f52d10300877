"""The game of the audit: thousands of canary clients in one round of the real server.

Client i sends ``2 C e_i`` or, by a fair coin, nothing at all (its opposite, if
neighbours replace). Twice the clip, so that a server that forgets to clip is found out
as well. What is played against is the strategy that :func:`strategies.stack.build`
makes of the job: guard, clip, noise, division and server optimizer, with real messages.

In a model of d values one round holds d canaries. With fewer values than canaries the
round is played again with others; each canary is in one round only, so the rounds
together are as private as one.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from flwr.app import (
    Array,
    ArrayRecord,
    ConfigRecord,
    Message,
    MetricRecord,
    RecordDict,
)
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import Strategy
from numpy.typing import NDArray

from .._logs import quiet
from ..engine import LocalGrid
from ..job import Job
from ..records import pack
from ..rng import derive_seed
from ..techniques import Plan, stack

__all__ = [
    "Round",
    "audited",
    "coins_of",
    "play",
    "play_round",
    "release",
    "server_of",
]

# How many clips a canary sends.
EXCESS = 2.0

Bools = NDArray[np.bool_]
Doubles = NDArray[np.float64]


@dataclass(frozen=True)
class Round:
    """What the server released.

    Attributes
    ----------
    values : array of float32, shape (m,)
        The released model at the place of each canary; the model was zero before.
    cohort : float
        What the server should have divided by.
    """

    values: NDArray[np.float32]
    cohort: float

    @property
    def sums(self) -> Doubles:
        """The noisy sums before the division, shape (m,)."""
        return self.values.astype(np.float64) * self.cohort


def audited(job: Job) -> Job:
    """Return the job of one audited round: the privacy settings, and nothing else.

    One round, everyone asked: what sampling and composition add to the guarantee is
    mathematics, not something to be found in an output.
    """
    keys = {k: v for k, v in job.config().items() if k.startswith("privacy.")}
    return Job.of(
        {
            **keys,
            "privacy.schedule": "constant",
            "privacy.evaluate-epsilon": 0.0,
            "privacy.evaluate-every": 0,
            "run.seed": job.run.seed,
            "train.rounds": 1,
            "round.min-nodes": 1,
            "round.fraction": 1.0,
            "server.lr": 1.0,
            "server.average": 0.0,
        }
    )


def coins_of(canaries: int, seed: int | None) -> Bools:
    """Return fair coins, shape (m,); from the operating system if there is no seed."""
    return np.random.default_rng(seed).random(canaries) < 0.5


def play(job: Job, plan: Plan, coins: Bools, label: str = "") -> Round:
    """Release one noisy sum, or as many as the canaries need.

    Parameters
    ----------
    job : Job
        From :func:`audited`.
    plan : Plan
        Of one of its rounds, for d values.
    coins : array of bool, shape (m,)
        Which canaries take part.
    label : str
        Names this game among others, for jobs whose noise repeats with the seed.
    """
    d, size = plan.release.dimension, EXCESS * plan.lattice_clip
    absent = -size if plan.setting.relation == "replace" else None
    parts = []
    with quiet(logging.ERROR):
        grid = LocalGrid(ClientApp(), d)
        for start in range(0, len(coins), d):
            part = coins[start : start + d].tolist()
            sent = {i: size if coin else absent for i, coin in enumerate(part)}
            spikes = {i: value for i, value in sent.items() if value is not None}
            one = _seeded(job, label, start)
            parts.append(release(one, grid, d, spikes)[: len(part)])
    return Round(np.concatenate(parts), plan.cohort)


def _seeded(job: Job, label: str, start: int) -> Job:
    """Return the job; with a seed for each round, if its noise repeats with the seed.

    Rounds of one run have different noise as well.
    """
    if not job.privacy.insecure:
        return job
    seed = derive_seed(job.run.seed, "audit", label, start)
    return job.replace({"run.seed": seed})


def release(
    job: Job, grid: LocalGrid, d: int, spikes: Mapping[int, float]
) -> NDArray[np.float32]:
    """Play one round on a new server; return the model that it makes of d zeros.

    Parameters
    ----------
    grid : LocalGrid
        With at least as many nodes as there are spikes.
    spikes : mapping
        Node, and the place of its one value -> that value. Others do not answer.
    """
    return play_round(server_of(job), 1, grid, d, spikes)


def server_of(job: Job) -> Strategy:
    """Return the server's layers, as a run builds them; they tell nobody of events."""
    strategy: Strategy = stack.build(job)
    for layer in stack.walk(strategy):
        if hasattr(layer, "emit"):
            layer.emit = _ignore
    return strategy


def play_round(
    server: Strategy, number: int, grid: LocalGrid, d: int, spikes: Mapping[int, float]
) -> NDArray[np.float32]:
    """Play round ``number`` on a server; see :func:`release`."""
    model = ArrayRecord({"model": pack(np.zeros(d, np.float32))})
    config = ConfigRecord({"server-round": number})
    asked = list(server.configure_train(number, model, config, grid))
    replies = (_reply(asked[i], Spike(d, i, size)) for i, size in spikes.items())
    released, _ = server.aggregate_train(number, replies)
    if released is None:
        raise RuntimeError("the server released nothing")
    return released["model"].numpy()


def _reply(message: Message, update: Array) -> Message:
    """Return a client's reply, as privacy's own mod makes it."""
    record = ArrayRecord()
    record["delta"] = update  # the constructor would make another Array
    numbers = MetricRecord({"num-examples": 1})
    return Message(RecordDict({"update": record, "metrics": numbers}), reply_to=message)


class Spike(Array):
    """A float32 vector of zeros but for one value, whose bytes are made when read.

    Twenty thousand vectors of as many values would fill 1.6 GB.
    """

    def __init__(self, d: int, place: int, size: float) -> None:
        zeros = _zeros(d)
        self.dtype, self.shape, self.stype = zeros.dtype, zeros.shape, zeros.stype
        self._place, self._size = place, size

    @property
    def data(self) -> bytes:  # type: ignore[override]  # where Array has an attribute
        """The vector in NumPy's format."""
        content = bytearray(_zeros(self.shape[0]).data)
        begin = len(content) - 4 * self.shape[0]
        np.frombuffer(content, np.float32, offset=begin)[self._place] = self._size
        return bytes(content)


@lru_cache(maxsize=1)
def _zeros(d: int) -> Array:
    return pack(np.zeros(d, np.float32))


def _ignore(kind: str, **data: Any) -> None:
    """Events of these rounds are nobody's."""
