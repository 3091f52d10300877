"""The final model as the average of the last rounds' models.

Polyak and Juditsky, "Acceleration of Stochastic Approximation by Averaging", SIAM J.
Control and Optimization 30 (1992); over the tail only, as in Shamir and Zhang,
"Stochastic Gradient Descent for Non-smooth Optimization", ICML 2013. It takes away most
of the noise that every single round's model carries, above all the noise of
differential privacy, of whose releases it is post-processing: it costs no budget.

Mathematics: ``mean <- mean + (x_t - mean) / n`` for the n-th model of the tail, (d,).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, Message, MetricRecord
from flwr.serverapp.strategy import Strategy

from truststram.records import Float32, Spec, flatten, unflatten

from .base import StrategyLayer

__all__ = ["TailAverage"]


class TailAverage(StrategyLayer):
    """Average the models from one round on; the rounds themselves do not change.

    Parameters
    ----------
    inner : Strategy
    first : int
        Round of the first model in the average.

    Guarantees
    ----------
    A function of the released models only. Rounds that kept their model are not
    counted. Integer arrays of the final model are those of the last round.
    """

    def __init__(self, inner: Strategy, first: int) -> None:
        super().__init__(inner)
        self.first = first
        self._mean: Float32 | None = None
        self._count = 0

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Hand on, and take the new model into the average."""
        arrays, metrics = self.hand_on(server_round, list(replies))
        if arrays is not None and server_round >= self.first:
            flat = flatten(arrays, Spec.of(arrays))
            self._count += 1
            if self._mean is None:
                self._mean = np.array(flat, np.float32)
            else:
                self._mean += (flat - self._mean) / np.float32(self._count)
        return arrays, metrics

    def final(self, arrays: ArrayRecord) -> ArrayRecord:
        """Return the average in the form of ``arrays``, the last round's model."""
        if self._mean is None:
            return arrays
        return unflatten(self._mean.copy(), Spec.of(arrays), arrays)

    def describe(self) -> str:
        """Return one line for the strategy summary."""
        return f"TailAverage of the models from round {self.first} on"

    def state(self) -> dict[str, Any]:
        """Return the average so far."""
        return {"mean": self._mean, "count": self._count}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restore the average."""
        mean = state["mean"]
        self._mean = None if mean is None else np.array(mean, np.float32)
        self._count = int(state["count"])
