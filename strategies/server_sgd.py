"""The innermost strategy by default: SGD on the server with the aggregated update.

Reddi et al., "Adaptive Federated Optimization", ICLR 2021, Algorithm 2 with SERVEROPT =
SGD with momentum. With learning rate 1 and no momentum it is federated averaging.

Mathematics: ``v <- momentum * v + delta``; ``x <- x + lr * v``; shapes (d,).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg

from truststram.records import Float32, flat_leaves, unflatten
from truststram.validate import in_range, positive

from .base import sole_reply
from .update import Model, read_delta

__all__ = ["ServerSGD"]


class ServerSGD(FedAvg):
    """Add the one update that a reducing layer hands on to the model.

    Parameters
    ----------
    lr : float
        Server learning rate, > 0.
    momentum : float
        In [0, 1).
    **fedavg
        Sampling and record keys as in :class:`flwr.serverapp.strategy.FedAvg`.

    Raises
    ------
    ValueError
        In ``aggregate_train``, for more than one reply: put a rule around it.
    """

    reads_delta: ClassVar[bool] = True

    def __init__(
        self, *, lr: float = 1.0, momentum: float = 0.0, **fedavg: Any
    ) -> None:
        super().__init__(**fedavg)
        positive(lr=lr)
        in_range(0, 1, momentum=momentum)
        self.lr, self.momentum = lr, momentum
        self._model: Model | None = None
        self._velocity: Float32 | None = None

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Remember the model and sample nodes as FedAvg does."""
        self._model = Model(ArrayRecord(dict(arrays)))
        return super().configure_train(server_round, arrays, config, grid)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Take one step with the update of the single reply."""
        content = sole_reply(replies, "ServerSGD", "WeightedMean(ServerSGD())")
        if content is None:
            return None, None
        model = self._model
        assert model is not None, "configure_train comes first"
        step = self._step(read_delta(content, model))
        metrics = self.train_metrics_aggr_fn([content], self.weighted_by_key)
        return _moved(model, step), metrics

    def _step(self, delta: Float32) -> Float32:
        """Return ``lr * velocity`` in memory that may be changed."""
        if self.momentum:
            if self._velocity is None:
                self._velocity = np.zeros_like(delta)
            self._velocity *= np.float32(self.momentum)
            self._velocity += delta
            return self._velocity * np.float32(self.lr)
        if not delta.flags.writeable:
            return delta * np.float32(self.lr)
        if self.lr != 1.0:
            delta *= np.float32(self.lr)
        return delta

    def state(self) -> dict[str, Any]:
        """Return the velocity (None before the first round)."""
        return {"velocity": self._velocity}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restore the velocity."""
        velocity = state["velocity"]
        self._velocity = None if velocity is None else np.array(velocity, np.float32)


def _moved(model: Model, step: Float32) -> ArrayRecord:
    """Return ``model + step``; ``step`` is used as memory, no other is needed."""
    for place, values in flat_leaves(model.arrays, model.spec):
        np.add(step[place], values, out=step[place], casting="same_kind")
    return unflatten(step, model.spec, model.arrays)
