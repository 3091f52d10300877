"""Typed events: what was released, with which noise, about whom.

An event documents the whole mathematical behaviour of one noisy release, so that its
cost can be computed again from the event alone, by anybody, later. Fields are never
removed and never change their meaning; new ones get defaults.

Who is a neighbour, and how far apart are two neighbours
--------------------------------------------------------
Each *unit* (a client, or an example) adds a vector of norm <= C to a sum; C is the clip
and all scales are given in clips. The distance between the sums of two neighbouring
data sets follows from relation and sampling, never from the caller:

============  ============================  ========  =================================
sampling      who takes part                relation  distance (sensitivity), in clips
============  ============================  ========  =================================
``none``      everyone, every time          either    1 for add-remove, 2 for replace
``poisson``   each with probability q,      add-      1; amplified by the secrecy of
              independently                 remove    the cohort
``fixed``     exactly m of n, uniformly     replace   2; amplified, by less
============  ============================  ========  =================================

The other two combinations are refused: with a fixed size, adding a unit pushes another
out of the cohort, so that two neighbours differ in two units; and replacing is removing
and adding, which Poisson sampling covers with the guarantee for groups of two.

A value that is known to lie in an interval is released by its distance from the
middle: with C = half the length, one unit replaced moves it by 2 C, its length.

Lattice noise
-------------
Noise that is drawn as a real number, rounded to an integer lattice and added to
integers gives exactly the rounded output of the continuous mechanism, because rounding
commutes with adding an integer. It is post-processing, costs nothing more and needs no
event of its own, as long as the clip holds for the integers. What finite-precision
sampling adds is the probability of drawing from a wrong tail: ``delta_slack``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from .sampling import EVERYONE, RELATIONS, Sampling, check_neighbours, finite
from .staircase import best_gamma, iid_epsilon

__all__ = [
    "EVERYONE",
    "MECHANISMS",
    "PURE",
    "RELATIONS",
    "SCALED",
    "UNBOUNDED",
    "Release",
    "Sampling",
]

# Mechanisms of which the noise is given by a scale, and those given by epsilon0.
SCALED = ("gaussian", "laplace", "skellam")
PURE = ("staircase", "staircase-ball", "laplace-ball")
MECHANISMS = (*SCALED, *PURE)
# Of which the privacy loss has no bound.
UNBOUNDED = ("gaussian", "skellam")
# exp(-700) is about the smallest double.
MOST_LOSS = 700.0
# Noise of a smaller deviation than this part of the clip hides nothing.
LEAST_SCALE = 1e-3


@dataclass(frozen=True)
class Release:
    """One noisy release.

    Attributes
    ----------
    mechanism : str
        ``gaussian``: normal noise on every coordinate, clip in L2. DP-SGD is this, once
        a step, with Poisson sampling at the batch rate and examples as units.
        ``laplace``: Laplace noise on every coordinate, clip in **L1**; the worst
        neighbours differ in one coordinate.
        ``staircase``: a scalar with the noise of Geng and Viswanath, "The Optimal
        Noise-Adding Mechanism in Differential Privacy", IEEE Trans. Inf. Theory, 2016.
        ``staircase-ball``: a vector, clip in L2, with the staircase in an L2 ball
        (Kulesza, Suresh, Wang, "General Staircase Mechanisms", AISTATS 2025).
        ``laplace-ball``: a vector, clip in L2, density falling exponentially with the
        L2 norm (the K-norm mechanism; Hardt and Talwar, STOC 2010).
        ``skellam``: a vector of integers, clip in L2, with Skellam noise on every
        coordinate (:mod:`.skellam`). Everybody knows the cohort: no sampling.
    scale : float
        For ``gaussian`` and ``skellam`` the noise multiplier, standard deviation / C.
        For ``laplace`` the scale parameter / C. They do not depend on the relation: it
        is 1 clip, not the distance of neighbours, that they are given in. Otherwise 0.
    sampling, relation
        Who takes part, and who is a neighbour; see the module.
    dimension : int
        Coordinates of what is released.
    epsilon0 : float
        For staircases and ``laplace-ball``: the pure epsilon of this release without
        sampling. Their step is the distance of neighbours: C for add-remove, 2 C for
        replace. 0 otherwise.
    gamma : float
        For the staircases: part of a step that is high, in (0, 1). Left out, the one of
        least variance.
    delta_slack : float
        Added to delta for every such release: probability that the sampler leaves the
        distribution that is accounted for.
    units : float
        For ``skellam``: C in lattice steps. 0 otherwise.

    Raises
    ------
    ValueError
        For what has no guarantee or not this one, with reason and alternative.

    Examples
    --------
    >>> Release("gaussian", scale=1.0, sampling=Sampling("poisson", 0.1)).sensitivity
    1.0
    >>> Release("laplace", scale=1.0, relation="replace").pure_epsilon
    2.0
    """

    mechanism: str
    scale: float = 0.0
    sampling: Sampling = EVERYONE
    relation: str = "add-remove"
    dimension: int = 1
    epsilon0: float = 0.0
    gamma: float = 0.0
    delta_slack: float = 0.0
    units: float = 0.0

    def __post_init__(self) -> None:
        """Refuse what is not private, and fill in gamma."""
        if self.mechanism not in MECHANISMS:
            expected = ", ".join(MECHANISMS)
            raise ValueError(f"Unknown mechanism {self.mechanism!r}: one of {expected}")
        if not isinstance(self.sampling, Sampling):
            raise ValueError(f"sampling = {self.sampling!r}: expected a Sampling.")
        check_neighbours(self.relation, self.sampling)
        if isinstance(self.dimension, bool) or not isinstance(self.dimension, int):
            raise ValueError(f"dimension = {self.dimension!r}: expected an integer.")
        if self.dimension < 1:
            raise ValueError(f"dimension = {self.dimension}: expected >= 1.")
        _check_noise(self)
        stepped = self.mechanism.startswith("staircase")
        if stepped and self.gamma == 0:
            gamma = best_gamma(self.epsilon0, self.dimension)
            object.__setattr__(self, "gamma", gamma)
        if not (0 < self.gamma < 1 if stepped else self.gamma == 0):
            wanted = "in (0, 1)" if stepped else f"none for {self.mechanism}"
            raise ValueError(f"gamma = {self.gamma}: expected {wanted}.")
        if not 0 <= self.delta_slack < 1:
            raise ValueError(f"delta_slack = {self.delta_slack}: expected in [0, 1).")

    @property
    def sensitivity(self) -> float:
        """Distance of neighbours, in clips: 1 for add-remove, 2 for replace."""
        return 1.0 if self.relation == "add-remove" else 2.0

    @property
    def norm(self) -> str:
        """The norm that the clip bounds: ``l1`` for Laplace, otherwise ``l2``."""
        return "l1" if self.mechanism == "laplace" else "l2"

    @property
    def pure_epsilon(self) -> float:
        """Epsilon at delta 0 without sampling; infinite for Gaussian and Skellam."""
        if self.mechanism in UNBOUNDED:
            return math.inf
        return self.epsilon0 or self.sensitivity / self.scale

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Release:
        """Return what :meth:`as_dict` was made of.

        Raises
        ------
        ValueError
            For damaged values.
        """
        try:
            fields = dict(values)
            return cls(**{**fields, "sampling": Sampling(**fields["sampling"])})
        except (AttributeError, KeyError, TypeError) as error:
            raise ValueError(f"Not the record of a release: {error}.") from None


def _check_noise(release: Release) -> None:
    """Refuse a wrong noise parameter, and steps on every coordinate."""
    scaled = release.mechanism in SCALED
    used, unused = ("scale", "epsilon0") if scaled else ("epsilon0", "scale")
    value, other = getattr(release, used), getattr(release, unused)
    finite(**{used: value, unused: other}, gamma=release.gamma)
    finite(delta_slack=release.delta_slack, units=release.units)
    if value <= 0 or other != 0:
        raise ValueError(
            f"{release.mechanism} takes {used} > 0 and no {unused}; got "
            f"{used} = {value}, {unused} = {other}."
        )
    if release.mechanism in UNBOUNDED and release.scale < LEAST_SCALE:
        raise ValueError(f"scale = {value}: expected >= {LEAST_SCALE:g}.")
    if release.mechanism not in UNBOUNDED and release.pure_epsilon > MOST_LOSS:
        raise ValueError(f"{used} = {value}: a release of epsilon > {MOST_LOSS:g}.")
    _check_lattice(release)
    if release.mechanism == "staircase" and release.dimension > 1:
        raise ValueError(why_not_iid(value, release.gamma, release.dimension))


def _check_lattice(release: Release) -> None:
    """Refuse integers without a lattice, and a secret cohort that is none."""
    on_lattice = release.mechanism == "skellam"
    if not (release.units > 0 if on_lattice else release.units == 0):
        wanted = "> 0" if on_lattice else f"none for {release.mechanism}"
        raise ValueError(f"units = {release.units}: expected {wanted}.")
    if on_lattice and release.sampling.kind != "none":
        raise ValueError(
            "skellam with sampling: everybody knows who is in a secure sum, so no "
            "secrecy amplifies it. Use Sampling('none')."
        )


def why_not_iid(
    epsilon0: float, gamma: float, dimension: int, delta: float = 1e-5
) -> str:
    """Return why staircase noise is not added to every coordinate, and its cost.

    Parameters
    ----------
    gamma : float
        0: the one of least variance.
    """
    gamma = gamma or best_gamma(epsilon0)
    cost = iid_epsilon(epsilon0, gamma, dimension, delta)
    return (
        f"staircase on each of {dimension} coordinates costs epsilon >= {cost:.6g} at "
        f"delta {delta:g} for one release, not {epsilon0:g}: every coordinate can "
        "cross a step. Use staircase-ball, or gaussian."
    )
