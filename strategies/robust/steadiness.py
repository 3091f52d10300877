"""Filter T of the published WFAgg: whether a client changes as it used to.

Per client, exponentially weighted mean mu and variance of how far its model moved and
turned since the last round; it passes while both lie within ``mu +- beta sigma``.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .rows import Doubles

__all__ = ["Steadiness"]


class Steadiness:
    """The averages of every client, by name.

    Parameters
    ----------
    window : int
        Averaging window: the newest value counts ``2 / (window + 1)``.
    beta : float
        Width in deviations.
    transient : int
        Rounds of a client before it is judged.
    """

    def __init__(self, window: int, beta: float, transient: int) -> None:
        self._rate, self._beta, self._transient = 2 / (window + 1), beta, transient
        self._clients: dict[str, dict[str, Any]] = {}

    def judge(
        self, names: Sequence[str], changes: Doubles
    ) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Return who passes and who is judged at all, (K,) each; learn from the round.

        Parameters
        ----------
        names : K names
        changes : array of shape (K, 2)
            NaN for a client without a model before; it starts anew.
        """
        passed, judged = np.zeros((2, len(names)), bool)
        for i, (name, found) in enumerate(zip(names, changes, strict=True)):
            if np.isnan(found).any():
                self._clients.pop(name, None)
                continue
            client = self._clients.setdefault(name, {"rounds": 0})
            mean = np.asarray(client.get("mean", found))
            variance = np.asarray(client.get("variance", [0.0, 0.0]))
            if client["rounds"] >= self._transient:
                judged[i] = True
                width = self._beta * np.sqrt(variance)
                passed[i] = bool((np.abs(found - mean) <= width).all())
            step = found - mean
            client["mean"] = (mean + self._rate * step).tolist()
            moved = (1 - self._rate) * (variance + self._rate * step**2)
            client["variance"] = moved.tolist()
            client["rounds"] += 1
        return passed, judged

    def forget_all_but(self, names: Collection[str]) -> None:
        """Drop the averages of every other client."""
        self._clients = {n: c for n, c in self._clients.items() if n in names}

    def state(self) -> dict[str, Any]:
        """Return the averages."""
        return {name: dict(client) for name, client in self._clients.items()}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restore what :meth:`state` returned."""
        self._clients = {name: dict(client) for name, client in state.items()}
