"""Federated training under client-level privacy, with the software's own release."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks._privacy_attack import attack
from benchmarks._privacy_data import Clients, Images, clients_of, load
from benchmarks._privacy_training import LINEAR, MLP, Network
from strategies.mechanisms.budget import choices
from strategies.mechanisms.clip import clip
from strategies.mechanisms.csprng import Source
from strategies.mechanisms.lattice import from_lattice, lattice
from strategies.mechanisms.noise import draw, lattice_for, support
from strategies.mechanisms.plan import MOST_RATE, Plan
from truststram.job import Job
from truststram.records import Float32
from truststram.rng import derive, derive_seed

__all__ = ["Outcome", "Setting", "predicted", "simulate"]

ROUNDS, FRACTION, CLIP, DELTA = 100, 0.1, 0.2, 1e-5
STEPS, BATCH, LR, MOMENTUM = 5, 20, 0.1, 0.9
# A large federation can pay for the noise of a larger model.
NETWORKS = {500: LINEAR, 2000: MLP}


@dataclass(frozen=True)
class Setting:
    """What is trained, and under which guarantee.

    Attributes
    ----------
    clients : int
        Registered ones, N.
    epsilon : float
        Infinite: no noise, but the same clip and cohorts.
    mechanism : str
        As in the job's ``privacy.mechanism``.
    validation : bool
        Test on held-out training images, as in development.
    rounds : int
    """

    clients: int
    epsilon: float
    mechanism: str = "gaussian"
    validation: bool = False
    rounds: int = ROUNDS

    @property
    def network(self) -> Network:
        """The network of a federation of this size."""
        return NETWORKS[self.clients]

    @property
    def cohort(self) -> float:
        """How many clients a round has on average, m = q N."""
        return self.clients * FRACTION

    @property
    def job(self) -> Job:
        """The job that a user writes for it."""
        return Job.of(
            {
                "privacy.mechanism": self.mechanism,
                "privacy.epsilon": self.epsilon,
                "privacy.delta": DELTA,
                "privacy.clip": CLIP,
                "round.fraction": FRACTION,
                "train.rounds": self.rounds,
                "train.lr": LR,
                "train.batch-size": BATCH,
                "server.momentum": MOMENTUM,
            }
        )


@dataclass(frozen=True)
class Outcome:
    """What one run came to.

    Attributes
    ----------
    setting : Setting
    seed : int
    noise : float
        Standard deviation of each value's noise in the sum, in clips.
    rate : float
        Server learning rate.
    spent : float
        The ledger's epsilon at the end.
    accuracy, last : float
        Of the averaged model, which is the result, and of the last round's.
    examples, members : float
        Areas of :func:`~benchmarks._privacy_attack.attack`, against single examples and
        against whole clients.
    """

    setting: Setting
    seed: int
    noise: float
    rate: float
    spent: float
    accuracy: float
    last: float
    examples: float
    members: float


@lru_cache(maxsize=4)
def planned(setting: Setting) -> Plan:
    """Return the plan of a run with a finite epsilon."""
    return Plan.of(setting.job, setting.clients, setting.network.size)


def predicted(setting: Setting) -> dict[str, float]:
    """Return every mechanism's noise, least first, in the unit of ``Outcome.noise``.

    Without those that give no such guarantee; the first is what ``auto`` takes.
    """
    found = choices(setting.job, setting.clients, setting.network.size)
    return {choice.mechanism: choice.std for choice in found if choice.admissible}


def simulate(setting: Setting, seed: int, rate: float = 0.0) -> Outcome:
    """Train one federation; ``rate`` is the server's, 0: ``Plan.server_rate``."""
    images, network = load(setting.validation), setting.network
    clients = clients_of(seed, setting.clients, images.y, "clients")
    server = Server(setting, seed)
    rate = rate or server.rate
    labels = "privacy-accuracy", setting.clients
    model = network.initial(derive(seed, *labels, "model"))
    velocity, total = np.zeros_like(model), np.zeros(network.size)
    for number in range(setting.rounds):
        rng = derive(seed, *labels, "batches", number)
        updates = trained(network, model, images, clients, server.drawn(), rng)
        velocity = np.float32(MOMENTUM) * velocity + server.released(updates)
        model = model + np.float32(rate) * velocity
        if number >= setting.rounds // 2:
            total += model
    final = (total / (setting.rounds - setting.rounds // 2)).astype(np.float32)
    outsiders = clients_of(seed, setting.clients, images.other_y, "outsiders")
    return Outcome(
        *(setting, seed, server.noise, rate, server.spent()),
        accuracy(network, final, images),
        accuracy(network, model, images),
        *attack(network, final, images, clients, outsiders),
    )


class Server:
    """Draws cohorts and releases noisy means, as ``CentralDP`` does with messages.

    The source of noise is the shipped one under a key made from the seed, so that a
    result can be repeated.
    """

    def __init__(self, setting: Setting, seed: int) -> None:
        self.setting = setting
        what = setting.clients, setting.mechanism, str(setting.epsilon)
        self._source = Source.insecure(derive_seed(seed, "privacy-accuracy", *what))
        size = setting.network.size
        self._plan: Plan | None = None
        self.noise, self._lattice, self.rate = 0.0, lattice(CLIP, size), MOST_RATE
        if math.isinf(setting.epsilon):
            return
        self._plan = plan = planned(setting)
        self._ledger = plan.ledger(setting.job)
        self.noise, self.rate = plan.std, plan.server_rate
        self._lattice = on = lattice_for(plan.release, plan.lattice_clip, size)
        on.check_sum(setting.clients, support(plan.release, on.units, size))

    def drawn(self) -> NDArray[np.int64]:
        """Return the cohort: each client with probability q, independently."""
        uniforms = self._source.uniforms(self.setting.clients)
        return np.flatnonzero(uniforms <= FRACTION)

    def released(self, updates: Float32) -> Float32:
        """Return the noisy mean, shape (d,), of updates (R, d); it is charged first."""
        size, on = self.setting.network.size, self._lattice
        total = np.zeros(size, np.int64)
        if self._plan is not None:
            self._ledger.charge(self._plan.release)
            total += draw(self._plan.release, on.units, size, self._source)
        for update in updates:
            total += clip(update, on).integers
        return from_lattice(total, on, self.setting.cohort)

    def spent(self) -> float:
        """Return the ledger's epsilon; it is within the budget."""
        if self._plan is None:
            return math.inf
        spent = self._ledger.spent()
        assert spent <= self.setting.epsilon, f"{spent} of {self.setting.epsilon}"
        return spent


def trained(
    network: Network,
    model: Float32,
    images: Images,
    clients: Clients,
    cohort: NDArray[np.int64],
    rng: np.random.Generator,
) -> Float32:
    """Return the updates of a cohort, shape (R, d)."""
    if not len(cohort):
        return np.zeros((0, network.size), np.float32)
    rows = torch.tensor(clients.batches(cohort, STEPS * BATCH, rng))
    rows = rows.reshape(-1, STEPS, BATCH).transpose(0, 1)
    x, y = images.x[rows], images.y[rows]
    updates: Float32 = network.train(torch.tensor(model), x, y, LR).numpy()
    return updates


def accuracy(network: Network, flat: Float32, images: Images) -> float:
    """Return the part of the test images that a model gets right."""
    right = network.scores(flat, images.test_x).argmax(1) == images.test_y
    return float(right.float().mean())
