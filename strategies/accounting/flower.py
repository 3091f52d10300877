"""Our ledger behind Flower's ``PrivacyAccountant`` protocol.

For Flower's own strategies: ``DifferentialPrivacyServerSideFixedClipping(...,
accountant=LedgerAccountant(config))`` is then composed exactly instead of by Rényi
divergences, which allows more rounds in the same budget.
"""

from __future__ import annotations

import math
from typing import Any

from flwr.serverapp import (
    GaussianPrivacyEvent,
    NeighboringRelation,
    PrivacyConfig,
    PrivacySpent,
    SamplingMethod,
)

from .events import Release
from .ledger import Ledger
from .pld import delta_at, epsilon_at
from .sampling import Sampling

__all__ = ["LedgerAccountant"]

METHOD = "pld"
KINDS = {
    SamplingMethod.POISSON: "poisson",
    SamplingMethod.WITHOUT_REPLACEMENT: "fixed",
    SamplingMethod.NO_AMPLIFICATION: "none",
}


class LedgerAccountant:
    """Count Flower's Gaussian releases, composed exactly.

    An event's noise multiplier is the standard deviation over the clip of **one**
    client, as Flower's strategies set it. Under replace-one two sums then differ by two
    clips, which is counted here; Flower's ``RdpAccountant`` takes the multiplier as
    over that distance, so give it half as much when comparing.

    Parameters
    ----------
    config : PrivacyConfig
        Flower's terms. Without ``max_epsilon`` it counts and never refuses.
    """

    def __init__(self, config: PrivacyConfig) -> None:
        self._config = config
        self._ledger = self._fresh()

    @property
    def config(self) -> PrivacyConfig:
        """The terms."""
        return self._config

    @property
    def ledger(self) -> Ledger:
        """The ledger, for a report in words."""
        return self._ledger

    @property
    def num_releases(self) -> int:
        """Number of releases so far."""
        return sum(self._ledger.releases.values())

    def compose(self, event: GaussianPrivacyEvent, count: int = 1) -> None:
        """Count releases that were made, also beyond ``max_epsilon``.

        Raises
        ------
        ValueError
            For another population than the terms have, or count < 1.
        """
        self._ledger.charge(self._release(event), count)

    def get_epsilon(self, delta: float) -> float:
        """Return epsilon at delta."""
        return epsilon_at(self._ledger.releases, delta)

    def get_delta(self, epsilon: float) -> float:
        """Return delta at epsilon."""
        return delta_at(self._ledger.releases, epsilon)

    def get_privacy_spent(self, delta: float | None = None) -> PrivacySpent:
        """Return epsilon, delta and the number of releases."""
        at = self._config.target_delta if delta is None else delta
        return PrivacySpent(self.get_epsilon(at), at, self.num_releases, METHOD)

    def would_exceed(
        self,
        event: GaussianPrivacyEvent,
        max_epsilon: float | None = None,
        count: int = 1,
    ) -> bool:
        """Return whether more releases would exceed a limit.

        Raises
        ------
        ValueError
            Without a limit here or in the terms, and as :meth:`compose`.
        """
        limit = self._config.max_epsilon if max_epsilon is None else max_epsilon
        if limit is None or not (limit > 0 and math.isfinite(limit)):
            raise ValueError(f"max_epsilon = {limit}: expected > 0, here or in config.")
        if count < 1:
            raise ValueError(f"count = {count}: expected >= 1.")
        release, made = self._release(event), dict(self._ledger.releases)
        made[release] = made.get(release, 0) + count
        return epsilon_at(made, self._config.target_delta) > limit

    def state_dict(self) -> dict[str, object]:
        """Return terms and releases, as JSON values."""
        return {"backend": METHOD, "config": self._terms(), **self._ledger.state()}

    def load_state_dict(self, state: dict[str, object]) -> None:
        """Restore what :meth:`state_dict` returned.

        Raises
        ------
        ValueError
            For a state of another backend or other terms, or a damaged one.
        """
        if state.get("backend") != METHOD or state.get("config") != self._terms():
            raise ValueError("The state is of another accountant or of other terms.")
        ledger = self._fresh()
        ledger.load_state(state)
        self._ledger = ledger

    def _fresh(self) -> Ledger:
        """Return an empty ledger without a budget: the protocol never refuses."""
        replaced = self._config.neighboring_relation is NeighboringRelation.REPLACE_ONE
        relation = "replace" if replaced else "add-remove"
        return Ledger(math.inf, self._config.target_delta, relation=relation)

    def _terms(self) -> dict[str, Any]:
        """Return the terms as JSON values."""
        config = self._config
        return {
            "target_delta": config.target_delta,
            "population_size": config.population_size,
            "neighboring_relation": config.neighboring_relation.value,
            "sampling_method": config.sampling_method.value,
            "max_epsilon": config.max_epsilon,
        }

    def _release(self, event: GaussianPrivacyEvent) -> Release:
        """Return Flower's event as ours."""
        population = self._config.population_size
        if event.population_size != population:
            raise ValueError(
                f"An event of {event.population_size} clients, where the terms have "
                f"{population}."
            )
        kind = KINDS[self._config.sampling_method]
        rate = 1.0 if kind == "none" else event.sample_size / population
        return Release(
            "gaussian",
            scale=event.noise_multiplier,
            sampling=Sampling(kind, rate, population),
            relation=self._ledger.relation,
        )
