"""The server of a computation: a strategy of one exchange, with no layer around it.

Message format
--------------
A Flower query ``query.compute`` has

``"config"``
    ``tff-plan``: sha256 of the plan, in hexadecimal.
``"prepared"``
    ArrayRecord with the leaves of ``prepare``, named by their number ("0", ...).

and the reply

``"sums"``
    ArrayRecord with the leaves of ``work``, named by their number.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg
from numpy.typing import NDArray

from truststram.errors import ProtocolError, RunError
from truststram.records import pack, view
from truststram.techniques import StrategyLayer

from .analytics import Analytics
from .leaves import Leaves
from .manifest import Leaf
from .strategy import PLAN

__all__ = ["COMPUTE", "AnalyticsServer", "Summing", "numbered", "unnumbered"]

COMPUTE = "query.compute"
PREPARED, SUMS = "prepared", "sums"


class Summing(Protocol):
    """The server's pieces of a plan: :class:`~.runtime.CoordinatorRuntime`."""

    def init(self) -> Leaves:
        """Return the state."""
        ...

    def prepare(self, state: Leaves) -> Leaves:
        """Return what the silos get."""
        ...

    def zero(self) -> Leaves:
        """Return the total of no silos."""
        ...

    def accumulate(self, total: Leaves, sent: Leaves) -> Leaves:
        """Return the total with one more silo."""
        ...

    def result(self, state: Leaves, total: Leaves) -> Leaves:
        """Return the result of the computation for the total of all silos."""
        ...


class AnalyticsServer(StrategyLayer):
    """Ask the nodes for their sums, add them up, and make the result.

    What the round loop takes for the model is the result: ``model.safetensors`` has its
    arrays, by name.

    Parameters
    ----------
    analytics : Analytics
        Of the plan.
    coordinator : Summing
        Which executes it.
    **fedavg
        Sampling as in :class:`flwr.serverapp.strategy.FedAvg`.

    Guarantees
    ----------
    The result is that of the TFF computation on the data of the silos that answered, in
    the order of their names. A reply that does not fit the plan or is not finite has no
    part in it.

    Events
    ------
    ``reply-dropped`` (round, phase, node, code, detail); ``tff-result`` (round, silos:
    how many were added up, result: numbers and lists by name, None for NaN and
    infinity).

    Raises
    ------
    RunError
        In ``aggregate_train``, if there is no valid reply.
    """

    reduces = True

    def __init__(
        self, analytics: Analytics, coordinator: Summing, **fedavg: Any
    ) -> None:
        super().__init__(FedAvg(**fedavg))
        self._analytics, self._coordinator = analytics, coordinator
        self._state = coordinator.init()
        self._asked: set[int] = set()

    def initial(self) -> ArrayRecord:
        """Return the model before the exchange: none."""
        return ArrayRecord()

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Ask the nodes that the sampling chooses for their sums."""
        config[PLAN] = self._analytics.plan.sha256
        chosen = self.inner.configure_train(server_round, arrays, config, grid)
        nodes = [message.metadata.dst_node_id for message in chosen]
        self._asked = set(nodes)
        prepared = numbered(self._coordinator.prepare(self._state))
        content = RecordDict({PREPARED: prepared, "config": config})
        return [Message(content, node, COMPUTE) for node in nodes]

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Add up the valid replies and return the result."""
        total, silos = self._coordinator.zero(), 0
        for reply in replies:
            try:
                sent = self._sent(reply)
            except ProtocolError as error:
                self.emit(
                    "reply-dropped",
                    round=server_round,
                    phase="train",
                    node=self.name_of(reply.metadata.src_node_id),
                    code=error.code,
                    detail=error.detail,
                )
            else:
                total, silos = self._coordinator.accumulate(total, sent), silos + 1
        if silos == 0:
            raise RunError(
                "tff.plan: no silo sent a valid result. The events reply-dropped say "
                "why."
            )
        leaves = self._coordinator.result(self._state, total)
        result = dict(zip(self._analytics.names, leaves, strict=True))
        told = {name: plain(values) for name, values in result.items()}
        self.emit("tff-result", round=server_round, silos=silos, result=told)
        made = ArrayRecord({name: pack(values) for name, values in result.items()})
        return made, MetricRecord()

    def describe(self) -> str:
        """Return the plan."""
        return f"AnalyticsServer: plan {self._analytics.plan.sha256[:16]}"

    def _sent(self, reply: Message) -> Leaves:
        """Return the leaves of an untrusted reply, one a node."""
        node = reply.metadata.src_node_id
        if reply.has_error():
            text = f"{reply.error.code}: {reply.error.reason or ''}"
            raise ProtocolError("client-error", text[:300])
        if node not in self._asked:
            raise ProtocolError("unknown-node", "not asked, or answered already")
        self._asked.remove(node)
        leaves = unnumbered(reply.content.get(SUMS), self._analytics.program.sent)
        if not all(np.isfinite(x).all() for x in leaves if x.dtype.kind == "f"):
            raise ProtocolError("not-finite", "a sum is not a finite number")
        return leaves


def numbered(leaves: Leaves) -> ArrayRecord:
    """Return leaves as arrays on the wire."""
    return ArrayRecord({str(i): pack(values) for i, values in enumerate(leaves)})


def unnumbered(record: object, expected: tuple[Leaf, ...]) -> Leaves:
    """Return the leaves of an untrusted record.

    Raises
    ------
    ProtocolError
        ``array-records``, ``array-keys``, or as :func:`truststram.records.view`.
    """
    if not isinstance(record, ArrayRecord):
        raise ProtocolError("array-records", "the leaves are missing")
    if set(record) != {str(i) for i in range(len(expected))}:
        raise ProtocolError("array-keys", f"expected {len(expected)} leaves")
    return [
        view(record[str(i)], leaf.dtype, tuple(n or 0 for n in leaf.shape))
        for i, leaf in enumerate(expected)
    ]


def plain(values: NDArray[np.generic]) -> Any:
    """Return an array as JSON has it: NaN and infinity, which it has not, as None."""
    finite = np.isfinite(values)
    if finite.all():
        return values.tolist()
    listed: Any = values.astype(object)
    listed[~finite] = None
    return listed.tolist()
