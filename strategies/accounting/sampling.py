"""Who takes part in a release, and which neighbours that allows.

The table of combinations, and why two of them are refused, is in :mod:`.events`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

__all__ = ["EVERYONE", "RELATIONS", "Sampling", "check_neighbours", "finite"]

RELATIONS = ("add-remove", "replace")
SAMPLINGS = ("none", "poisson", "fixed")


def finite(**values: Any) -> None:
    """Refuse what is no finite number."""
    for name, value in values.items():
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not math.isfinite(value):
            raise ValueError(f"{name} = {value!r}: expected a finite number.")


@dataclass(frozen=True)
class Sampling:
    """Who takes part in a release.

    Attributes
    ----------
    kind : {"none", "poisson", "fixed"}
        Everyone; each independently with probability ``rate``; or a uniformly random
        subset of exactly ``rate * population`` units. Who took part stays secret: if
        the adversary sees the cohort, the honest kind is ``none``.
    rate : float
        In (0, 1]; 1 for ``none``.
    population : int
        Number of registered units; needed by ``fixed``, otherwise only told (0: not
        known).

    Raises
    ------
    ValueError
        For an unknown kind, a rate or population out of range, or a fixed size that is
        no whole number.
    """

    kind: str = "none"
    rate: float = 1.0
    population: int = 0

    def __post_init__(self) -> None:
        """Refuse what cannot be sampled."""
        if self.kind not in SAMPLINGS:
            expected = ", ".join(SAMPLINGS)
            raise ValueError(f"Unknown sampling {self.kind!r}: one of {expected}.")
        finite(rate=self.rate)
        if not 0 < self.rate <= 1:
            raise ValueError(f"rate = {self.rate}: expected in (0, 1].")
        if isinstance(self.population, bool) or not isinstance(self.population, int):
            raise ValueError(f"population = {self.population!r}: expected an integer.")
        if self.population < 0:
            raise ValueError(f"population = {self.population}: expected >= 0.")
        if self.kind == "none" and self.rate != 1:
            raise ValueError(f"Without sampling the rate is 1, not {self.rate}.")
        size = self.rate * self.population
        if self.kind == "fixed" and not (
            round(size) >= 1 and math.isclose(size, round(size), rel_tol=1e-9)
        ):
            raise ValueError(
                f"A fixed sample has a whole size: rate {self.rate} of population "
                f"{self.population} is {size:g}. Give both."
            )

    def __str__(self) -> str:
        """Return it in words."""
        of = f" of {self.population}" if self.population else ""
        if self.kind == "none":
            return f"everyone{of} takes part"
        if self.kind == "poisson":
            return f"each{of} takes part with probability {self.rate:g}, independently"
        size = round(self.rate * self.population)
        return f"exactly {size}{of} take part, drawn without replacement"


EVERYONE = Sampling()


def check_neighbours(relation: str, sampling: Sampling) -> None:
    """Refuse a relation that the sampling has no guarantee for.

    Raises
    ------
    ValueError
        With the reason and what to choose instead.
    """
    if relation not in RELATIONS:
        raise ValueError(f"Unknown relation {relation!r}: one of {RELATIONS}.")
    if sampling.kind == "fixed" and relation == "add-remove":
        raise ValueError(
            "fixed-size sampling with add-remove: a unit more pushes another out of "
            "the cohort. Use relation='replace', or Poisson sampling."
        )
    if sampling.kind == "poisson" and relation == "replace":
        raise ValueError(
            "Poisson sampling with replace: the size of the cohort depends on the "
            "data. Use relation='add-remove', or fixed-size sampling."
        )
