"""How many more releases fit, composing as few times as possible."""

from __future__ import annotations

import math
from collections.abc import Callable

from .events import Release

__all__ = ["MOST_ROUNDS", "Room", "most"]

MOST_ROUNDS = 100_000
UNKNOWN = (0, 10 * MOST_ROUNDS)


class Room:
    """What is known about how many more of each release fit into a budget.

    Cost grows with the count: what fits once answers for every smaller count, and what
    does not for every larger one.

    Parameters
    ----------
    cost : callable
        Epsilon after ``count`` more of a release.
    budget : float
        Largest epsilon; an infinite cost never fits.
    """

    def __init__(self, cost: Callable[[Release, int], float], budget: float) -> None:
        self._cost, self._budget = cost, budget
        self._known: dict[Release, tuple[int, int]] = {}

    def fits(self, release: Release, count: int) -> bool:
        """Return whether ``count`` more fit."""
        fits, too_many = self._known.get(release, UNKNOWN)
        if fits < count < too_many:
            cost = self._cost(release, count)
            if cost <= self._budget and math.isfinite(cost):
                fits = count
            else:
                too_many = count
            self._known[release] = fits, too_many
        return count <= fits

    def fits_for_long(self, release: Release, count: int, made: int) -> bool:
        """Return whether ``count`` more fit, and find out about more on the way.

        With ``made`` of them charged, as many again are tried first, or half of what is
        not known to be too many: n rounds are composed about 2 log2(n) times.
        """
        fits, too_many = self._known.get(release, UNKNOWN)
        if fits < count:
            self.fits(release, min(made + 2 * count, (count + too_many) // 2))
        return self.fits(release, count)

    def charged(self, release: Release, count: int) -> None:
        """Note that there is less room; what is known of other releases is void."""
        fits, too_many = self._known.get(release, UNKNOWN)
        self._known = {release: (max(fits - count, 0), max(too_many - count, 1))}


def most(fits: Callable[[int], bool]) -> int:
    """Return the largest count that fits, between 0 and 100,000."""
    if not fits(1):
        return 0
    low, high = 1, 2
    while high <= MOST_ROUNDS and fits(high):
        low, high = high, 2 * high
    high = min(high, MOST_ROUNDS + 1)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low
