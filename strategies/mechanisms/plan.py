"""What a job's privacy settings mean: who is protected, by which noise, how much.

Everything here is computed from public numbers before anything is released: settings,
the number of registered nodes and the size of the model.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

from truststram.errors import ConfigError
from truststram.job import Job

from ..accounting.calibrate import calibrate, noise_std
from ..accounting.compare import Choice, best, compare
from ..accounting.events import EVERYONE, Release, Sampling
from ..accounting.ledger import Ledger
from .noise import delta_slack, epsilon_slack

__all__ = ["Plan", "Setting", "choices", "planned", "setting"]

# Noise on the count of unclipped updates, in expected cohorts (Andrew et al.,
# "Differentially Private Learning with Adaptive Clipping", NeurIPS 2021, section 3).
COUNT_NOISE = 1 / 20
# The least noise on that count, in noise multipliers of the whole round.
COUNT_SHARE = 3.0
# See Plan.server_rate.
RATE, MOST_RATE = 0.012, 3.0
# The samplers' error in delta grows with exp(epsilon); here it is about 1e-9 a round.
MOST_EPSILON = 20.0


@dataclass(frozen=True)
class Setting:
    """The resolved settings: no ``auto`` but that of the mechanism.

    Attributes
    ----------
    unit : {"client", "example"}
    trust : {"central", "local"}
    relation : {"add-remove", "replace"}
    sampling : Sampling
        Of the units into a release, without the population.
    """

    unit: str
    trust: str
    relation: str
    sampling: Sampling


def setting(job: Job) -> Setting:
    """Resolve ``auto`` in a job's privacy settings."""
    keys = job.privacy
    sampled = keys.sampling == "poisson" and job.round.fraction < 1 and keys.central
    sampling = Sampling("poisson", job.round.fraction) if sampled else EVERYONE
    trust = "central" if keys.central else "local"
    return Setting(keys.unit, trust, keys.neighbours, sampling)


@dataclass(frozen=True)
class Plan:
    """The releases of a run at the level of clients.

    Attributes
    ----------
    release : Release
        What every round is charged as.
    rounds : int
    clip : float
        L2 bound C of one update; of the first round, if it follows a quantile.
    cohort : float
        m, the expected number of nodes in a round: what the sum is divided by.
    setting : Setting
    """

    release: Release
    rounds: int
    clip: float
    cohort: float
    setting: Setting

    @classmethod
    def of(cls, job: Job, nodes: int, dimension: int) -> Plan:
        """Calibrate a job's mechanism to its budget.

        Parameters
        ----------
        nodes : int
            Registered nodes, N.
        dimension : int
            Values in an update, d.

        Raises
        ------
        ConfigError
            If there is no such guarantee, with the reason.
        """
        keys, chosen = job.privacy, setting(job)
        try:
            release = _calibrated(job, dimension)
        except ValueError as error:
            raise ConfigError(f"privacy: {error}") from None
        cohort = nodes * job.round.fraction if chosen.trust == "central" else 1.0
        return cls(release, job.train.rounds, keys.clip, cohort, chosen)

    @property
    def lattice_clip(self) -> float:
        """The clip in the norm that the mechanism needs."""
        return self.in_norm(self.clip)

    def in_norm(self, clip: float) -> float:
        """Return an L2 clip as the bound in the release's norm: nothing is cut more."""
        wide = math.sqrt(self.release.dimension) if self.release.norm == "l1" else 1.0
        return clip * wide

    @property
    def std(self) -> float:
        """Standard deviation of the noise on each coordinate of the sum, in clips."""
        return noise_std(self.release, self.in_norm(1.0))

    @property
    def noise_to_signal(self) -> float:
        """Length of the noise over the longest possible sum of a cohort's updates."""
        return self.std * math.sqrt(self.release.dimension) / self.cohort

    @property
    def server_rate(self) -> float:
        """The usual server learning rate, with momentum 0.9: less with more noise.

        ``0.012 m / z``, at most 3; chosen on validation data of another federation
        (``benchmarks/privacy_accuracy.py``, seed 0), for clips of about 0.45 of the
        usual norm.
        """
        return min(MOST_RATE, RATE * self.cohort / self.std)

    def split(self) -> tuple[Release, Release]:
        """Return noise for the update and for the count of unclipped ones.

        Both Gaussian. Together they are one Gaussian mechanism whose noise multiplier z
        has ``z^-2 = z_update^-2 + z_count^-2``: that of ``release``.
        """
        z = self.release.scale
        # A count of +-1/2 has half a clip of 1 as its bound.
        count = max(COUNT_NOISE * self.cohort / 0.5, COUNT_SHARE * z)
        update = (z**-2 - count**-2) ** -0.5
        return self._gaussian(update, self.release.dimension), self._gaussian(count, 1)

    def _gaussian(self, scale: float, dimension: int) -> Release:
        return Release(
            "gaussian",
            scale=scale,
            sampling=self.release.sampling,
            relation=self.release.relation,
            dimension=dimension,
        )

    def ledger(self, job: Job) -> Ledger:
        """Return an empty ledger with the job's budget."""
        return Ledger(
            job.privacy.epsilon,
            job.privacy.delta,
            relation=self.setting.relation,
            unit=self.setting.unit,
            trust=self.setting.trust,
        )


@lru_cache(maxsize=8)
def planned(job: Job, nodes: int, dimension: int) -> Plan:
    """Return :meth:`Plan.of`, computed once: a calibration takes a moment."""
    return Plan.of(job, nodes, dimension)


def _calibrated(job: Job, dimension: int) -> Release:
    """Return the release; what the samplers' finite bits cost is taken off first."""
    keys = job.privacy
    draws = dimension * job.train.rounds
    bits = 2.0**-14 * keys.epsilon
    while bits < keys.epsilon / 2:
        target, slack = _target(job, dimension, keys.epsilon - bits)
        if keys.mechanism == "auto" and not keys.clip_quantile:
            release = best(*target, delta_slack=slack)
        else:
            name = "gaussian" if keys.mechanism == "auto" else keys.mechanism
            release = calibrate(name, *target, delta_slack=slack)
        needed = epsilon_slack(release, dimension, draws)
        if needed <= bits:
            return release
        bits = 1.1 * needed
    raise ValueError(
        f"epsilon {keys.epsilon:g} is too small for {draws:.2g} random numbers of 54 "
        "bits: use fewer rounds or a smaller model"
    )


def choices(job: Job, dimension: int) -> list[Choice]:
    """Return every mechanism at the job's budget, least noise first."""
    target, slack = _target(job, dimension, job.privacy.epsilon)
    return compare(*target, delta_slack=slack)


def _target(
    job: Job, dimension: int, epsilon: float
) -> tuple[tuple[float, float, int, Sampling, str, int], float]:
    """Return the arguments of calibration, and the slack of the samplers in delta."""
    keys, chosen = job.privacy, setting(job)
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
    budget = epsilon, keys.delta, job.train.rounds
    what = chosen.sampling, chosen.relation, dimension
    return (*budget, *what), slack * (1 + math.exp(keys.epsilon))
