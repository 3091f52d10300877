"""The server of a plan's evaluation: a layer directly around the plan's server.

Message format
--------------
The evaluate message is the ordinary one (the model under ``"arrays"``); its
``"config"`` has ``tff-plan``, the sha256 of the plan in hexadecimal. Silos that run the
plan and silos with torch answer alike: see :mod:`.evaluation`.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property
from typing import ClassVar, Protocol

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid

from truststram.errors import ConfigError, ProtocolError
from truststram.techniques import StrategyLayer

from .evaluation import Evaluation
from .leaves import Leaves
from .strategy import PLAN, TFFServer

__all__ = ["Finishing", "PlanEvaluation"]


class Finishing(Protocol):
    """The server's pieces of a plan: :class:`~.runtime.CoordinatorRuntime`."""

    def init(self) -> Leaves:
        """Return the state."""
        ...

    def prepare(self, state: Leaves) -> Leaves:
        """Return what the silos get."""
        ...

    def result(self, state: Leaves, total: Leaves) -> Leaves:
        """Return the metrics for the total of all silos."""
        ...


class PlanEvaluation(StrategyLayer):
    """Let silos evaluate with the plan, and make TFF's metrics of their sums.

    Stands inside :class:`strategies.guard.layer.Guard`, which lets one reply of each
    asked node through and bounds the number of examples that it claims.

    Parameters
    ----------
    inner : TFFServer
    evaluation : Evaluation
        Of the same plan.
    coordinator : Finishing
        Which executes it.
    metrics : tuple of str
        Which metrics are told, in this order.

    Guarantees
    ----------
    The metrics are those of the TFF computation on the held-out data of the silos that
    answered, to float32 rounding, unless the guard caps a silo (one with more than 10
    times the median number of examples). A reply that holds anything but one record of
    its three numbers, or numbers that no silo can have, has no part in them, and none
    ends the run. Numbers that a silo can have are believed, in proportion to the
    examples that it claims.

    Events
    ------
    ``reply-dropped`` (round, phase, node, code, detail).

    Raises
    ------
    ConfigError
        In ``configure_evaluate``, if the plan sends silos another model than it is
        given.
    """

    recorded: ClassVar[bool] = False  # no state

    def __init__(
        self,
        inner: TFFServer,
        evaluation: Evaluation,
        coordinator: Finishing,
        metrics: tuple[str, ...],
    ) -> None:
        super().__init__(inner)
        self._server, self._evaluation = inner, evaluation
        self._coordinator, self._metrics = coordinator, metrics

    def initial(self) -> ArrayRecord:
        """Return the model that the plan starts from."""
        return self._server.initial()

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Name the plan in the messages."""
        _ = self._state  # checked before a message goes out
        config[PLAN] = self._evaluation.plan.sha256
        return self.inner.configure_evaluate(server_round, arrays, config, grid)

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """Add up the valid replies and finish the metrics; None without any."""
        terms = []
        for reply in replies:
            try:
                terms.append(self._sums(reply))
            except ProtocolError as error:
                self.emit(
                    "reply-dropped",
                    round=server_round,
                    phase="evaluate",
                    node=self.name_of(reply.metadata.src_node_id),
                    code=error.code,
                    detail=error.detail,
                )
        if not terms:
            return None
        total = self._evaluation.total(terms)
        found = self._coordinator.result(self._state, total)
        places = self._evaluation.finished
        told = {name: found[places[name]].item() for name in self._metrics}
        return MetricRecord(told)

    def describe(self) -> str:
        """Return what evaluates."""
        return f"PlanEvaluation: {', '.join(self._metrics)}"

    @cached_property
    def _state(self) -> Leaves:
        """The state of every round: TFF adds up over rounds, which have other models.

        Raises
        ------
        ConfigError
            If what ``prepare`` sends is not the model in it.
        """
        state, plan = self._coordinator.init(), self._evaluation.plan
        places = self._evaluation.program.parameters
        for place, values in zip(places, plan.weights.values(), strict=True):
            state[place] = values
        sent = self._coordinator.prepare(state)
        if not all(map(np.array_equal, sent, plan.weights.values())):
            raise ConfigError(
                "tff.plan: the plan evaluates another model than it is given; plans "
                "that change the model on its way cannot be run."
            )
        return state

    def _sums(self, reply: Message) -> tuple[float, int, int]:
        """Return the sums in an untrusted reply."""
        records = list(reply.content.values())
        if len(records) != 1 or not isinstance(records[0], MetricRecord):
            raise ProtocolError("metric-records", "not one record, of metrics")
        return self._evaluation.sums(records[0])
