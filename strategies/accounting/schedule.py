"""How a budget is spent over the rounds.

``constant`` and ``increasing`` are fixed before the run and composed exactly.
:class:`OnPlateau` looks at what came out, so it needs an adaptive ledger, and a first
release that leaves room for better ones (:func:`before_plateau`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from .calibrate import calibrate, least_noise
from .events import SCALED, Release
from .pld import epsilon_at
from .sampling import EVERYONE, Sampling

__all__ = [
    "OnPlateau",
    "Schedule",
    "before_plateau",
    "constant",
    "increasing",
    "scaled",
]

# Releases and how many rounds each is made, in order.
Schedule = list[tuple[Release, int]]

# Different noise levels cost a convolution each; nobody needs more.
LEVELS = 6
# A run that waits for a plateau begins as if it had this many times its rounds.
SPARE = 2


def constant(
    mechanism: str,
    epsilon: float,
    delta: float,
    rounds: int,
    sampling: Sampling = EVERYONE,
    relation: str = "add-remove",
    dimension: int = 1,
    *,
    delta_slack: float = 0.0,
) -> Schedule:
    """Return equal noise in every round; see :func:`~.calibrate.calibrate`."""
    release = calibrate(
        *(mechanism, epsilon, delta, rounds, sampling, relation, dimension),
        delta_slack=delta_slack,
    )
    return [(release, rounds)]


def increasing(
    mechanism: str,
    epsilon: float,
    delta: float,
    rounds: int,
    sampling: Sampling = EVERYONE,
    relation: str = "add-remove",
    dimension: int = 1,
    *,
    delta_slack: float = 0.0,
    ratio: float = 0.5,
) -> Schedule:
    """Return noise that falls geometrically: late rounds get more of the budget.

    Parameters
    ----------
    ratio : float
        Noise of the last rounds to that of the first, in (0, 1). It has at most six
        levels, of about equally many rounds.

    Returns
    -------
    Schedule
        Verified to stay within the budget, with noise at most 1e-4 above the least.

    Raises
    ------
    ValueError
        As :func:`~.calibrate.calibrate`, and for a ratio out of range.
    """
    if not 0 < ratio < 1:
        raise ValueError(f"ratio = {ratio}: expected in (0, 1).")
    [(middle, _)] = constant(
        *(mechanism, epsilon, delta, rounds, sampling, relation, dimension),
        delta_slack=delta_slack,
    )
    levels = min(LEVELS, rounds)
    counts = [(i + 1) * rounds // levels - i * rounds // levels for i in range(levels)]
    falls = [ratio ** (i / max(levels - 1, 1) - 0.5) for i in range(levels)]

    def make(log_factor: float) -> Schedule:
        factor = math.exp(log_factor)
        found = [scaled(middle, factor * fall) for fall in falls]
        return list(zip(found, counts, strict=True))

    def excess(log_factor: float, coarse: int) -> float:
        cost = epsilon_at(dict(make(log_factor)), delta, coarse=coarse)
        return math.log(min(max(cost, 1e-9), 1e9) / epsilon)

    return make(least_noise(excess, 0.0))


def before_plateau(
    mechanism: str,
    epsilon: float,
    delta: float,
    rounds: int,
    sampling: Sampling = EVERYONE,
    relation: str = "add-remove",
    dimension: int = 1,
    *,
    delta_slack: float = 0.0,
) -> Schedule:
    """Return the noise of all rounds of a run that meets no plateau.

    Twice as many rounds would fit into the budget of a filter: what they would cost is
    left for less noise after a plateau (:class:`OnPlateau`). A run that meets none does
    not spend it.
    """
    release = calibrate(
        *(mechanism, epsilon, delta, SPARE * rounds, sampling, relation, dimension),
        delta_slack=delta_slack,
        adaptive=True,
    )
    return [(release, rounds)]


def scaled(release: Release, factor: float) -> Release:
    """Return the release with ``factor`` times the noise (for pure epsilon, about)."""
    if release.mechanism in SCALED:
        return replace(release, scale=release.scale * factor)
    return replace(release, epsilon0=release.epsilon0 / factor, gamma=0.0)


class OnPlateau:
    """Less noise once a score no longer improves. Needs ``Ledger(adaptive=True)``.

    The noise depends on scores, so a Rényi filter has to decide when the budget is
    spent; exact composition would not be a guarantee. The score itself must be public
    or a charged release.

    Parameters
    ----------
    first : Release
        Of the first rounds, such as that of :func:`before_plateau`.
    factor : float
        What noise is multiplied by, in (0, 1).
    patience : int
        Rounds without improvement before that, >= 1.
    least : float
        Noise is not multiplied below this part of the first, in (0, 1].

    Raises
    ------
    ValueError
        For values out of range.
    """

    def __init__(
        self,
        first: Release,
        *,
        factor: float = 0.7,
        patience: int = 3,
        least: float = 0.25,
    ) -> None:
        if not 0 < factor < 1 or not 0 < least <= 1 or patience < 1:
            raise ValueError(
                f"factor = {factor}, least = {least}, patience = {patience}: expected "
                "in (0, 1), in (0, 1] and >= 1."
            )
        self.first, self.factor = first, factor
        self.patience, self.least = patience, least
        self._best, self._waited, self._part = math.inf, 0, 1.0

    @property
    def release(self) -> Release:
        """The release of the next round."""
        return self.first if self._part == 1 else scaled(self.first, self._part)

    def observe(
        self, score: float, affords: Callable[[Release], bool] = lambda _: True
    ) -> None:
        """Learn from a round; smaller scores are better, NaN counts as no better.

        Parameters
        ----------
        score : float
        affords : callable
            Whether the budget allows a release in all rounds that are left; if not, the
            noise stays as it is. By default the end of the budget is the caller's
            business.
        """
        if score < self._best:
            self._best, self._waited = score, 0
            return
        self._waited += 1
        if self._waited < self.patience:
            return
        self._waited = 0
        part = max(self._part * self.factor, self.least)
        if part < self._part and affords(scaled(self.first, part)):
            self._part = part

    def state(self) -> dict[str, Any]:
        """Return what the next round depends on, as JSON values."""
        best = None if math.isinf(self._best) else self._best
        return {"best": best, "waited": self._waited, "part": self._part}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restore what :meth:`state` returned."""
        best = state["best"]
        self._best = math.inf if best is None else float(best)
        self._waited, self._part = int(state["waited"]), float(state["part"])
