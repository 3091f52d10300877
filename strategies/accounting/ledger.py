"""The ledger: every release of a run, what they cost together, and the end of it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from .events import Release
from .pld import LEAST_DELTA, epsilon_at
from .rdp import RdpFilter, best_order
from .room import Room, most
from .sampling import RELATIONS
from .words import TRUST, UNITS, paragraph

__all__ = ["BudgetExceeded", "Ledger"]

VERSION = 1
# A state is damaged if its spend differs by more from what its releases cost; smaller
# differences come from discretisation and from other versions of the libraries.
TOLERANCE = 1e-3


class BudgetExceeded(ValueError):
    """A release that the budget does not allow. It was not counted: do not make it."""


class Ledger:
    """What was released, composed; refuses a release that would overspend.

    Guarantees: with all releases charged here before they are made, the run is
    (epsilon, delta)-private for one ``unit`` more, less or replaced (``relation``).
    Releases may depend on earlier outputs in what they compute. In *which* release
    comes next and how noisy it is only with ``adaptive=True``; without it, the sequence
    is fixed beforehand, and to stop early is the only choice left.

    Without ``adaptive`` composition is exact (privacy loss distributions). With it, a
    Rényi filter decides (:class:`~.rdp.RdpFilter`), which allows fewer releases.

    Parameters
    ----------
    epsilon : float
        Budget, > 0; ``math.inf`` only counts.
    delta : float
        Budget, in [1e-10, 1).
    adaptive : bool
        Noise may depend on earlier outputs. Needs a finite epsilon.
    relation : {"add-remove", "replace"}
        Neighbouring relation; releases with the other one are refused.
    unit : {"client", "example"}
        What is protected.
    trust : {"central", "local", "distributed"}
        Who is trusted with what; words only.
    reserve : float
        Part of epsilon, in [0, epsilon), that counts as spent from the first release
        on: for what is not a release, such as the finite bits of the samplers. A
        restored state can raise it.
    orders : sequence of float, optional
        Of the filter. By default the one order that is best for the first release,
        which depends on no output.

    Raises
    ------
    ValueError
        For values out of range.

    Examples
    --------
    >>> ledger = Ledger(epsilon=1.0, delta=1e-5)
    >>> ledger.charge(Release("staircase", epsilon0=0.5), count=2)
    >>> round(ledger.spent(), 3), ledger.would_exceed(Release("laplace", scale=2.0))
    (1.0, True)
    """

    def __init__(
        self,
        epsilon: float,
        delta: float,
        adaptive: bool = False,
        *,
        relation: str = "add-remove",
        unit: str = "client",
        trust: str = "central",
        reserve: float = 0.0,
        orders: Sequence[float] | None = None,
    ) -> None:
        if not epsilon > 0:
            raise ValueError(f"epsilon = {epsilon}: expected > 0.")
        if not LEAST_DELTA <= delta < 1:
            raise ValueError(f"delta = {delta}: expected in [{LEAST_DELTA:g}, 1).")
        if adaptive and math.isinf(epsilon):
            raise ValueError("An adaptive ledger needs a finite epsilon to stop at.")
        if not 0 <= reserve < epsilon:
            raise ValueError(f"reserve = {reserve}: expected in [0, {epsilon:g}).")
        for value, known in ((relation, RELATIONS), (unit, UNITS), (trust, TRUST)):
            if value not in known:
                raise ValueError(f"{value!r}: expected one of {', '.join(known)}.")
        self.epsilon, self.delta, self.adaptive = epsilon, delta, adaptive
        self.relation, self.unit, self.trust = relation, unit, trust
        self.reserve = reserve
        self.orders = None if orders is None else tuple(float(a) for a in orders)
        self._releases: dict[Release, int] = {}
        self._filter: RdpFilter | None = None
        if adaptive and self.orders is not None:
            self._filter = RdpFilter(epsilon - reserve, delta, self.orders)
        # Highest epsilon ever reported, and whether it covers all releases.
        self._spent, self._known = 0.0, True
        self._room = Room(self._after, epsilon - reserve)

    @property
    def releases(self) -> Mapping[Release, int]:
        """How many of each release were charged, in order of their first."""
        return dict(self._releases)

    def charge(self, release: Release, count: int = 1) -> None:
        """Count releases, before they are made.

        Raises
        ------
        BudgetExceeded
            If they do not fit; nothing is counted then.
        ValueError
            For a release with another relation, or count < 1.
        """
        if self.would_exceed(release, count):
            raise BudgetExceeded(
                f"{count} more {release.mechanism} release(s) would exceed epsilon "
                f"{self.epsilon:g} at delta {self.delta:g}; {self.spent():.4g} spent."
            )
        if self.adaptive:
            self._filter = self._filter or self._new_filter(release)
            self._filter.add(release, count)
            self.orders = self._filter.orders
        self._releases[release] = self._releases.get(release, 0) + count
        self._known = False
        self._room.charged(release, count)

    def would_exceed(self, release: Release, count: int = 1) -> bool:
        """Return whether ``count`` more such releases do not fit into the budget.

        What fits is remembered, so that a run of equal rounds is composed a few times
        only.

        Raises
        ------
        ValueError
            For a release with another relation, or count < 1.
        """
        if isinstance(count, bool) or not isinstance(count, int) or count < 1:
            raise ValueError(f"count = {count!r}: expected an integer >= 1.")
        if release.relation != self.relation:
            raise ValueError(
                f"The ledger counts for {self.relation!r} neighbours, the release for "
                f"{release.relation!r}: their costs do not add up."
            )
        if self.adaptive:
            found = self._filter or self._new_filter(release)
            return found.would_exceed(release, count)
        made = self._releases.get(release, 0)
        return not self._room.fits_for_long(release, count, made)

    def remaining(self, release: Release) -> int:
        """Return how many more such releases fit, at most 100,000."""
        if self.would_exceed(release) or self.adaptive:
            return most(lambda count: not self.would_exceed(release, count))
        return most(lambda count: self._room.fits(release, count))

    def spent(self) -> float:
        """Return epsilon at the ledger's delta; it never decreases.

        It is a guarantee for a run that ends here because it was planned to. A run that
        ended because of its outputs may claim :attr:`guaranteed`.
        """
        if not self._known:
            if self._filter is not None:
                found = self._filter.spent()
            else:
                found = epsilon_at(self._releases, self.delta)
            found += self.reserve if self._releases else 0.0
            self._spent, self._known = max(self._spent, found), True
        return self._spent

    @property
    def guaranteed(self) -> float:
        """The epsilon that holds however the run came to its end: the budget.

        Without a budget (infinite epsilon), what was spent.
        """
        return self.spent() if math.isinf(self.epsilon) else self.epsilon

    def claim(self, *, as_planned: bool = True) -> float:
        """Return the epsilon that may be claimed.

        What was spent if the sequence of releases was fixed before the run and ended
        where that was planned; otherwise :attr:`guaranteed`.
        """
        fixed = as_planned and not self.adaptive
        return self.spent() if fixed else self.guaranteed

    def state(self) -> dict[str, Any]:
        """Return everything, as JSON values."""
        return {
            "version": VERSION,
            "terms": self._terms(),
            "orders": None if self.orders is None else list(self.orders),
            "releases": [[r.as_dict(), n] for r, n in self._releases.items()],
            "reserve": self.reserve,
            "spent": self.spent(),
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restore what :meth:`state` returned; the spend is computed again.

        Raises
        ------
        ValueError
            For a state that is damaged, of other terms (budget, relation, unit, trust),
            whose releases do not cost what it says, or with less spent than this
            ledger has reported already. The ledger is unchanged then.
        """
        loaded = self._read(state)
        found, recorded = loaded.spent(), state.get("spent")
        if isinstance(recorded, bool) or not isinstance(recorded, int | float):
            raise ValueError(f"Damaged ledger: spent = {recorded!r}.")
        if not math.isclose(found, recorded, rel_tol=TOLERANCE, abs_tol=1e-9):
            raise ValueError(
                f"Damaged ledger: it says {recorded:.6g} spent, its releases cost "
                f"{found:.6g}. Releases were added, lost or changed."
            )
        if found > self.epsilon * (1 + TOLERANCE):
            raise ValueError(f"Damaged ledger: {found:.6g} spent of {self.epsilon:g}.")
        if found < self._spent * (1 - TOLERANCE):
            raise ValueError(
                f"The state has {found:.6g} spent, but {self._spent:.6g} was reported "
                "already: what was released cannot be taken back."
            )
        self.orders, self._filter = loaded.orders, loaded._filter
        self._releases = loaded._releases
        self.reserve = max(self.reserve, loaded.reserve)
        if self._filter is not None:
            self._filter.epsilon = self.epsilon - self.reserve
        self._room = Room(self._after, self.epsilon - self.reserve)
        self._spent = max(found, float(recorded), self._spent)
        self._known = self.reserve == loaded.reserve

    def describe(self) -> str:
        """Return the guarantee in one paragraph, for people."""
        return paragraph(self)

    def _terms(self) -> dict[str, Any]:
        """Return what a state and its ledger have in common, as JSON values."""
        return {
            "epsilon": None if math.isinf(self.epsilon) else self.epsilon,
            "delta": self.delta,
            "adaptive": self.adaptive,
            "relation": self.relation,
            "unit": self.unit,
            "trust": self.trust,
        }

    def _read(self, state: Mapping[str, Any]) -> Ledger:
        """Return a ledger of the same terms with the releases of a state."""
        try:
            for name, mine in (("version", VERSION), ("terms", self._terms())):
                if state[name] != mine:
                    raise ValueError(f"{name} {state[name]}, expected {mine}")
            if self.orders and state["orders"] != list(self.orders):
                raise ValueError(f"orders {state['orders']}, expected {self.orders}")
            loaded = Ledger(
                *(self.epsilon, self.delta, self.adaptive),
                relation=self.relation,
                unit=self.unit,
                trust=self.trust,
                reserve=state["reserve"],
                orders=state["orders"],
            )
            for values, count in state["releases"]:
                loaded._restore(Release.from_dict(values), count)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"Damaged ledger, or of another run: {error}.") from None
        return loaded

    def _restore(self, release: Release, count: int) -> None:
        """Count releases of a state; whether they fit is checked for all of them."""
        if self.adaptive or type(count) is not int or count < 1:
            self.charge(release, count)
            return
        if release.relation != self.relation:
            raise ValueError(f"relation {release.relation}")
        self._releases[release] = self._releases.get(release, 0) + count
        self._known = False

    def _new_filter(self, first: Release) -> RdpFilter:
        """Return the filter of a run whose first release is given."""
        left = self.epsilon - self.reserve
        orders = self.orders or (best_order(first, left, self.delta),)
        return RdpFilter(left, self.delta, orders)

    def _after(self, release: Release, count: int) -> float:
        """Return epsilon after ``count`` more releases."""
        total = self._releases.get(release, 0) + count
        return epsilon_at({**self._releases, release: total}, self.delta)
