"""The harmonizer: every mechanism at one budget, and the one with the least noise.

The idea is that of Feng et al., "Universally Harmonizing Differential Privacy
Mechanisms for Federated Learning", arXiv 2407.14710. Differences: exact composition
instead of Rényi divergences; staircase noise only where it has a guarantee, with gamma
chosen for the whole run; the choice is the mechanism of least noise, whichever that is.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from .calibrate import calibrate, noise_std
from .events import Release, why_not_iid
from .sampling import EVERYONE, Sampling

__all__ = ["Choice", "best", "compare"]


@dataclass(frozen=True)
class Choice:
    """A mechanism, calibrated.

    Attributes
    ----------
    mechanism : str
        Its name; ``staircase-iid`` stands for independent staircase noise on every
        coordinate, which is never admissible.
    std : float
        Standard deviation of the noise on each coordinate, for an L2 clip of 1.
    ratio : float
        To the least std of the admissible ones.
    admissible : bool
        Whether the noise gives the guarantee that it was calibrated to.
    why : str
        Why not; empty if it is.
    release : Release
        The event to charge; for ``staircase-iid`` the one that would be claimed.
    """

    mechanism: str
    std: float
    ratio: float
    admissible: bool
    why: str
    release: Release


def compare(
    epsilon: float,
    delta: float,
    rounds: int = 1,
    sampling: Sampling = EVERYONE,
    relation: str = "add-remove",
    dimension: int = 1,
    *,
    delta_slack: float = 0.0,
) -> list[Choice]:
    """Return all mechanisms at the same budget, least noise first.

    The clip is 1 in L2 for all. ``laplace`` then has an L1 clip of sqrt(dimension),
    which no vector of L2 norm 1 exceeds.

    See :func:`calibrate` for parameters and errors.
    """
    terms = epsilon, delta, rounds, sampling, relation
    found = _admissible(*terms, dimension, delta_slack)
    least = min(std for std, _ in found)
    choices = [Choice(r.mechanism, std, std / least, True, "", r) for std, r in found]
    if dimension > 1:
        claimed = calibrate("staircase", *terms, 1, delta_slack=delta_slack)
        std = noise_std(claimed)
        why = why_not_iid(claimed.epsilon0, claimed.gamma, dimension, delta)
        choices.append(Choice("staircase-iid", std, std / least, False, why, claimed))
    return sorted(choices, key=lambda choice: choice.std)


def best(
    epsilon: float,
    delta: float,
    rounds: int = 1,
    sampling: Sampling = EVERYONE,
    relation: str = "add-remove",
    dimension: int = 1,
    *,
    delta_slack: float = 0.0,
) -> Release:
    """Return the admissible release of least noise: ``mechanism = "auto"``.

    The clip is in L2 (:func:`compare`); a ``laplace`` release is charged and clipped in
    L1, at sqrt(dimension) times that.

    Examples
    --------
    >>> best(8.0, 1e-5).mechanism, best(8.0, 1e-5, dimension=1000).mechanism
    ('staircase', 'gaussian')
    """
    found = _admissible(
        epsilon, delta, rounds, sampling, relation, dimension, delta_slack
    )
    return min(found, key=lambda one: one[0])[1]


def _admissible(
    epsilon: float,
    delta: float,
    rounds: int,
    sampling: Sampling,
    relation: str,
    dimension: int,
    delta_slack: float,
) -> list[tuple[float, Release]]:
    """Return (std, release) of every mechanism that gives its guarantee."""
    names = ["gaussian", "laplace", "staircase"]
    found = []
    for name in names if dimension == 1 else [*names, "laplace-ball"]:
        release = calibrate(
            *(name, epsilon, delta, rounds, sampling, relation, dimension),
            delta_slack=delta_slack,
        )
        clip = math.sqrt(dimension) if release.norm == "l1" else 1.0
        found.append((noise_std(release, clip), release))
    return found
