"""What a job's privacy settings mean for a run: which noise in which round.

Everything here is computed from public numbers before anything is released: settings,
the number of registered nodes and the size of the model.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from truststram.errors import ConfigError
from truststram.job import Job

from ..accounting.calibrate import noise_std
from ..accounting.events import Release
from ..accounting.ledger import Ledger
from .budget import scheduled
from .evaluation import accuracy_release
from .setting import Setting, setting

__all__ = ["Plan", "planned"]

# Noise on the count of unclipped updates, in expected cohorts (Andrew et al.,
# "Differentially Private Learning with Adaptive Clipping", NeurIPS 2021, section 3).
COUNT_NOISE = 1 / 20
# The least noise on that count, in noise multipliers of the whole round.
COUNT_SHARE = 3.0
# See Plan.server_rate.
RATE, MOST_RATE = 0.012, 3.0


@dataclass(frozen=True)
class Plan:
    """The releases of a run at the level of clients.

    Attributes
    ----------
    schedule : tuple of (Release, int)
        What is charged, and in how many rounds, in order. With ``privacy.schedule =
        on-plateau`` that of a run that meets no plateau.
    clip : float
        L2 bound C of one update; of the first round, if it follows a quantile.
    cohort : float
        m, the expected number of nodes in a round: what the sum is divided by.
    setting : Setting
    reserve : float
        Part of epsilon that the finite bits of the samplers take.
    evaluation : Release or None
        What every accuracy is charged as that a node tells.
    evaluations : int
        How many of them in a run.
    adaptive : bool
        The noise will depend on what came out before.
    counts : bool
        A part of every round pays for the count of unclipped updates (:meth:`split`).
    """

    schedule: tuple[tuple[Release, int], ...]
    clip: float
    cohort: float
    setting: Setting
    reserve: float = 0.0
    evaluation: Release | None = None
    evaluations: int = 0
    adaptive: bool = False
    counts: bool = False

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
        keys, chosen = job.privacy, setting(job, nodes)
        try:
            schedule, reserve = scheduled(job, nodes, dimension)
        except ValueError as error:
            raise ConfigError(f"privacy: {error}") from None
        part = job.round.fraction
        if keys.sampling == "fixed":  # of a whole size
            part = chosen.sampling.rate
        return cls(
            tuple(schedule),
            keys.clip,
            cohort=nodes * part if chosen.trust == "central" else 1.0,
            setting=chosen,
            reserve=reserve,
            evaluation=accuracy_release(job),
            evaluations=keys.evaluations(job.train.rounds),
            adaptive=keys.schedule == "on-plateau",
            counts=keys.clip_quantile > 0,
        )

    @property
    def release(self) -> Release:
        """What the first round is charged as; none has more noise."""
        return self.schedule[0][0]

    @property
    def rounds(self) -> int:
        """Number of rounds."""
        return sum(count for _, count in self.schedule)

    def at(self, number: int) -> Release:
        """Return what round ``number``, from 1, is charged as.

        After the last planned round what that was: the ledger will refuse it.
        """
        for release, count in self.schedule:
            if number <= count:
                return release
            number -= count
        return self.schedule[-1][0]

    def charges(self, job: Job, done: int | None = None) -> dict[Release, int]:
        """Return what a run has released after ``done`` rounds, and how many times.

        By default after all of them.
        """
        done = left = self.rounds if done is None else min(done, self.rounds)
        found: dict[Release, int] = {}
        for release, count in self.schedule:
            if made := min(left, count):
                found[release] = found.get(release, 0) + made
            left -= made
        times = job.privacy.evaluations(self.rounds, done)
        if self.evaluation and times:
            found[self.evaluation] = found.get(self.evaluation, 0) + times
        return found

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
        """Standard deviation of the noise on each coordinate of the sum, in clips.

        The root of its mean square over the rounds.
        """
        squares = (n * self.std_of(release) ** 2 for release, n in self.schedule)
        return math.sqrt(sum(squares) / self.rounds)

    def std_of(self, release: Release) -> float:
        """Return the standard deviation of one round's noise, as :attr:`std`.

        Of the noise on the update, which has more if a count shares the round.
        """
        if self.counts:
            release, _ = self.split(release)
        return noise_std(release, self.in_norm(1.0))

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

    def split(self, release: Release) -> tuple[Release, Release]:
        """Return noise for the update and for the count of unclipped ones.

        Both Gaussian. Together they are one Gaussian mechanism whose noise multiplier z
        has ``z^-2 = z_update^-2 + z_count^-2``: that of ``release``, a round's.
        """
        z = release.scale
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
            self.adaptive,
            reserve=self.reserve,
            relation=self.setting.relation,
            unit=self.setting.unit,
            trust=self.setting.trust,
        )

    def described(self, job: Job) -> dict[str, Any]:
        """Return the plan as JSON values, for events and reports."""
        keys = job.privacy
        return {
            "mechanism": self.release.mechanism,
            "levels": [
                {
                    "rounds": count,
                    "scale": release.scale or None,
                    "epsilon0": release.epsilon0 or None,
                    "std": float(f"{self.std_of(release):.6g}"),
                }
                for release, count in self.schedule
            ],
            "unit": self.setting.unit,
            "relation": self.setting.relation,
            "trust": self.setting.trust,
            "epsilon": keys.epsilon,
            "delta": keys.delta,
            "rounds": self.rounds,
            "schedule": keys.schedule,
            "evaluations": self.evaluations,
            "sampling": str(self.release.sampling),
            "clip": self.clip,
            "cohort": self.cohort,
            "server-rate": job.server.lr or float(f"{self.server_rate:.4g}"),
            "noise-to-signal": float(f"{self.noise_to_signal:.4g}"),
        }


@lru_cache(maxsize=8)
def planned(job: Job, nodes: int, dimension: int) -> Plan:
    """Return :meth:`Plan.of`, computed once: a calibration takes a moment."""
    return Plan.of(job, nodes, dimension)
