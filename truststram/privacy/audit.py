"""Does the server keep the guarantee that it claims? An audit of the real layers.

Thousands of canaries play (:mod:`.canaries`), their coins are guessed from what was
released, and the number of right guesses bounds epsilon from below (:mod:`.bounds`). An
honest implementation stays below its claim, but in a few of a hundred audits; the bound
of one with half the noise is above it. Beside the game:

* the noise of two runs is subtracted, which helps if it is the same noise; that of two
  rounds of a run is compared;
* a client that answers with zeros must change nothing: not one bit of the release may
  depend on how many answered;
* every released number must be a whole number of lattice steps: noise in floating point
  gives away in its last digits what it was added to.

An audit shows that a claim is false, or that this attack did not find it to be. It
proves nothing.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ..errors import ConfigError
from ..job import Job
from ..techniques import Plan
from .bounds import any_mechanism, same_mechanism
from .canaries import Bools, Doubles, Round, audited, coins_of, play
from .checks import dependence, off_lattice, repetition

__all__ = ["CANARIES", "Audit", "Bound", "audit"]

CANARIES = 20_000
LEAST = 100
# Part of the coins that are guessed: the ones that look clearest. Fixed before.
SHARES = (0.1, 0.3, 1.0)
# Noise that every coordinate gets on its own.
SCALED = ("gaussian", "laplace")


@dataclass(frozen=True)
class Bound:
    """One way to guess, and what it shows.

    Attributes
    ----------
    output : str
        What was looked at.
    assumption : str
        ``none``, or ``this mechanism`` (:func:`.bounds.same_mechanism`).
    right, guesses : int
    epsilon : float
        Lower bound.
    """

    output: str
    assumption: str
    right: int
    guesses: int
    epsilon: float


@dataclass(frozen=True)
class Audit:
    """What an audit found.

    Attributes
    ----------
    mechanism : str
    claim, delta : float
        Epsilon and delta that the released noise should give.
    relation : str
    canaries, dimension : int
        Canaries in all, and in one round.
    beta : float
        Probability with which an honest server fails the audit.
    bounds : tuple of Bound
    off_lattice : int
        Released numbers that are no whole number of steps.
    problems : tuple of str
        What is wrong whatever the bounds are.
    seconds : float
    """

    mechanism: str
    claim: float
    delta: float
    relation: str
    canaries: int
    dimension: int
    beta: float
    bounds: tuple[Bound, ...]
    off_lattice: int
    problems: tuple[str, ...]
    seconds: float

    @property
    def epsilon(self) -> float:
        """The best lower bound."""
        return max(bound.epsilon for bound in self.bounds)

    @property
    def ok(self) -> bool:
        """Whether nothing contradicts the claim."""
        return self.epsilon <= self.claim and not self.problems

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON values, with what follows from it."""
        result = {"epsilon": self.epsilon, "ok": self.ok, "verdict": self.verdict}
        return asdict(self) | result

    @property
    def verdict(self) -> str:
        """One sentence."""
        found = f"epsilon >= {self.epsilon:.3g}, claimed {self.claim:g}"
        if self.epsilon > self.claim:
            return f"FAILED: the claim is false ({found})."
        if self.problems:
            return f"FAILED: {' '.join(self.problems)} ({found}.)"
        return f"Passed: nothing contradicts the claim ({found})."


def audit(
    job: Job,
    *,
    canaries: int = CANARIES,
    dimension: int | None = None,
    beta: float = 0.05,
    seed: int | None = None,
) -> Audit:
    """Audit the server layers of a job.

    Parameters
    ----------
    job : Job
        Its ``privacy`` section: noise by the server, for clients.
    canaries : int
        m. To contradict an epsilon of 8 takes thousands.
    dimension : int, optional
        Values in the model, at most the number of canaries. By default one canary each;
        for staircase noise 1: spread over a ball of many dimensions, single coordinates
        show little of it.
    beta : float
        Probability with which an honest server fails, in (0, 1).
    seed : int, optional
        Of the coins, for tests; otherwise from the operating system.

    Raises
    ------
    ConfigError
        For a job without noise by the server, or arguments out of range.
    """
    begin = time.monotonic()
    if dimension is None and job.privacy.mechanism == "staircase":
        dimension = 1
    dimension = dimension or canaries
    _check(job, canaries, dimension, beta)
    job = audited(job)
    plan = Plan.of(job, dimension, dimension)
    coins = coins_of(canaries, seed)
    # Nobody takes part in the second run: it is noise, and tells nothing of the coins
    # unless the noise is that of the first.
    first = play(job, plan, coins, "first")
    second = play(job, plan, np.zeros_like(coins), "second")
    off = int(off_lattice(plan, first).sum())
    problems = [
        *dependence(job),
        *repetition(job, (first, second), coins),
        *_float_noise(off, canaries),
    ]
    if job.privacy.insecure:
        problems.append("privacy.insecure: the noise repeats with run.seed.")
    return Audit(
        mechanism=plan.release.mechanism,
        claim=job.privacy.epsilon,
        delta=job.privacy.delta,
        relation=plan.setting.relation,
        canaries=canaries,
        dimension=dimension,
        beta=beta,
        bounds=tuple(_bounds(job, plan, coins, (first, second), beta)),
        off_lattice=off,
        problems=tuple(problems),
        seconds=round(time.monotonic() - begin, 1),
    )


def _check(job: Job, canaries: int, dimension: int, beta: float) -> None:
    """Refuse what this audit is not about."""
    if not (job.privacy.central and job.privacy.unit == "client"):
        raise ConfigError(
            "The audit is about noise that the server adds for clients: expected "
            "privacy.mechanism = auto, gaussian, laplace or staircase with "
            "privacy.trust = central and privacy.unit = client."
        )
    if canaries < LEAST or not 1 <= dimension <= canaries or not 0 < beta < 1:
        raise ConfigError(
            f"canaries = {canaries}, dimension = {dimension}, confidence = "
            f"{1 - beta:g}: expected at least {LEAST}, from 1 to that, and above 0 and "
            "below 1."
        )


def _bounds(
    job: Job, plan: Plan, coins: Bools, runs: tuple[Round, Round], beta: float
) -> list[Bound]:
    """Return all bounds; together they accuse an honest server with ``beta``."""
    (first, second), m = runs, len(coins)
    clip, delta = plan.lattice_clip, job.privacy.delta
    absent = -clip if plan.setting.relation == "replace" else 0.0
    middle = (clip + absent) / 2
    looks = {
        "one release": first.sums - middle,
        "difference of two": first.sums - second.sums + absent - middle,
    }
    independent = plan.release.dimension == 1 or plan.release.mechanism in SCALED
    each = beta / (len(looks) * (len(SHARES) + independent))
    found = []
    for output, score in looks.items():
        if independent:
            right = _right(score, coins, m)
            epsilon = same_mechanism(plan.release, right, m, delta, each)
            found.append(Bound(output, "this mechanism", right, m, epsilon))
        for share in SHARES:
            guesses = round(share * m)
            right = _right(score, coins, guesses)
            epsilon = any_mechanism(right, guesses, m, delta, each)
            found.append(Bound(output, "none", right, guesses, epsilon))
    return found


def _right(score: Doubles, coins: Bools, guesses: int) -> int:
    """Return how many of the clearest scores have the sign of their coin."""
    clearest = np.argsort(-np.abs(score), kind="stable")[:guesses]
    return int(((score > 0) == coins)[clearest].sum())


def _float_noise(off: int, canaries: int) -> list[str]:
    if not off:
        return []
    return [
        f"{off} of {canaries} released numbers are off the lattice: their last digits "
        "can give away what noise was added to."
    ]
