"""Lower bounds on epsilon from one run in which many coins were guessed.

The game: each of m canaries takes part or not by a fair coin of its own; somebody who
sees the output guesses r of the coins and is right about v of them. Privacy limits how
often that can happen.

* :func:`any_mechanism`: Steinke, Nasr, Jagielski, "Privacy Auditing with One (1)
  Training Run", NeurIPS 2023, Theorem 5.2. Assumes nothing but the claim (epsilon,
  delta). Cannot exceed about log(r / 3), and is far below epsilon for Gaussian noise,
  whose epsilon comes from outputs as rare as delta.
* :func:`same_mechanism`: assumes that the noise is of the kind that is claimed and that
  canaries are noised independently, and asks how much of it there is. As tight as the
  number of canaries allows. The idea is that of Nasr et al., "Tight Auditing of
  Differentially Private Machine Learning", USENIX Security 2023, section 5;
  difference: all coins are guessed, so that the number of right ones is binomial.

Mathematics of the second: the best test between two equally likely inputs is right with
probability ``A = 1/2 + TV/2``, TV their distance in total variation. v of m independent
coins are guessed right with probability at most ``P(Bin(m, A) >= v)``; if that is below
beta, the noise is refuted. A grows as noise falls, so there is a largest noise refuted.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from scipy.special import ndtr
from scipy.stats import binom

from .. import techniques
from .._locate import app_module

if TYPE_CHECKING:
    from strategies.accounting.events import Release

__all__ = ["accuracy", "any_mechanism", "epsilon_of", "same_mechanism"]

# Beyond that, a lower bound has no more to say.
MOST_EPSILON = 60.0
# Noise is looked for between these multiples of the claimed.
NOISE = 2.0**-7, 2.0**10
HALVINGS = 20


def any_mechanism(
    right: int, guesses: int, canaries: int, delta: float, beta: float
) -> float:
    """Return the largest epsilon that the guesses refute, whatever the mechanism.

    Parameters
    ----------
    right, guesses, canaries : int
        v of r guesses about m coins; which r was fixed before the coins were known.
    delta : float
        Of the claim.
    beta : float
        Probability with which a mechanism that keeps its claim is accused.

    Examples
    --------
    >>> round(any_mechanism(9000, 9000, 20000, 0.0, 0.05), 2)
    8.01
    """

    def is_refuted(epsilon: float) -> bool:
        p = 1 / (1 + math.exp(-epsilon))
        likely = float(binom.sf(right - 1, guesses, p))
        if likely >= beta or right == 0:
            return False
        # P(v > right guesses >= v - i) / i, for i = 1 ... v.
        terms = binom.pmf(np.arange(right - 1, -1, -1), guesses, p)
        most = float(np.max(np.cumsum(terms) / np.arange(1, right + 1)))
        return likely + 2 * canaries * delta * most < beta

    if not is_refuted(0.0):
        return 0.0
    return _last(is_refuted, 0.0, MOST_EPSILON)


def same_mechanism(
    release: Release, right: int, canaries: int, delta: float, beta: float
) -> float:
    """Return the largest epsilon at which this kind of noise is refuted.

    Parameters
    ----------
    release : Release
        The claim, without sampling.
    right, canaries, delta, beta
        As in :func:`any_mechanism`; every coin was guessed.

    Returns
    -------
    float
        Epsilon at ``delta`` of the same mechanism with just so much noise that the
        guesses still refute it; 0 if they refute nothing.
    """

    def is_refuted(log_less: float) -> bool:
        best = accuracy(release, math.exp(-log_less))
        return float(binom.sf(right - 1, canaries, best)) < beta

    low, high = -math.log(NOISE[1]), -math.log(NOISE[0])
    if not is_refuted(low):
        return 0.0
    return epsilon_of(release, delta, math.exp(-_last(is_refuted, low, high)))


def accuracy(release: Release, noise: float = 1.0) -> float:
    """Return how often the best test tells a canary from its absence.

    Parameters
    ----------
    release : Release
        Noise that is independent for every canary.
    noise : float
        Factor on the noise.
    """
    if release.mechanism == "gaussian":
        return float(ndtr(release.sensitivity / (release.scale * noise) / 2))
    loss = release.pure_epsilon / noise
    if release.mechanism == "laplace":
        return 1 - math.exp(-loss / 2) / 2
    if release.mechanism == "staircase":
        core = app_module("strategies.accounting.staircase")
        _, same, up = core.atoms(loss, core.best_gamma(loss)).tolist()
        return float(up + same / 2)
    return 1 / (1 + math.exp(-loss))


def epsilon_of(release: Release, delta: float, noise: float = 1.0) -> float:
    """Return epsilon of a release, or of it with ``noise`` times as much noise."""
    if release.pure_epsilon / noise > MOST_EPSILON and release.mechanism != "gaussian":
        return MOST_EPSILON
    if release.epsilon0:
        scaled = replace(release, epsilon0=release.epsilon0 / noise, gamma=0.0)
    else:
        scaled = replace(release, scale=release.scale * noise)
    ledger = techniques.Ledger(math.inf, delta, relation=release.relation)
    ledger.charge(scaled)
    return min(ledger.spent(), MOST_EPSILON)


def _last(is_refuted: Callable[[float], bool], low: float, high: float) -> float:
    """Return about the largest number that is refuted; the smallest is known to be."""
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if is_refuted(middle) else (low, middle)
    return low
