"""The server of a plan: the innermost strategy, in the place of the server optimizer.

It gets the one synthetic reply that the layers around it made of the replies, restores
the sums that TFF expects (:mod:`.leaves`), runs the plan's ``report`` and ``update``,
and returns the model that is in the new state. What else is in the state (moments of a
server optimizer, clips that follow quantiles) stays here and is part of the round's
record.

Message format
--------------
The train message is the ordinary one (the model under ``"arrays"``), and its
``"config"`` has

``tff-plan``
    sha256 of the plan, in hexadecimal: a silo runs no other plan than this one.
``tff-prepared``
    bytes: the leaves of ``prepare`` after the model (learning rates, optimizer state)
    one after the other, little-endian, C order; left out if there are none. Their
    dtypes and shapes are the plan's, which the silo has.

The reply is the ordinary one of :mod:`strategies.update`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from logging import INFO, WARNING
from typing import Any, ClassVar, Protocol

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.common.logger import log
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg

from truststram.errors import CheckpointError, ConfigError
from truststram.records import pack, records_of, view
from truststram.techniques import Model, read_delta, sole_reply

from .leaves import Leaves
from .training import Training

__all__ = ["PLAN", "PREPARED", "Coordinator", "TFFServer"]

PLAN, PREPARED = "tff-plan", "tff-prepared"


class Coordinator(Protocol):
    """The server's pieces of a plan: :class:`~.runtime.CoordinatorRuntime`."""

    def init(self) -> Leaves:
        """Return the first state; the model in it is not read."""
        ...

    def prepare(self, state: Leaves) -> Leaves:
        """Return what the silos get."""
        ...

    def report(self, sums: Leaves) -> Leaves:
        """Return the report on the summed results of ``work``."""
        ...

    def update(self, state: Leaves, report: Leaves) -> tuple[Leaves, dict[str, float]]:
        """Return the next state and the round's metrics."""
        ...


class TFFServer(FedAvg):
    """Take TFF's server step with the update of the single reply.

    Parameters
    ----------
    training : Training
        Of the plan.
    coordinator : Coordinator
        Which executes it.
    **fedavg
        Sampling as in :class:`flwr.serverapp.strategy.FedAvg`.

    Guarantees
    ----------
    Inside :class:`strategies.mean.layer.WeightedMean` the model after a round is that
    of the TFF computation on the same data, to float32 rounding, unless the guard caps
    a silo (one with more than 10 times the median number of examples). Inside another
    layer TFF's server step is applied to what that layer made of the updates. A step to
    a state that is not finite (model, moments of an optimizer, clips) is not taken: the
    round is refused, and model and state stay as they are.

    Raises
    ------
    ConfigError
        In ``configure_train``, if the plan sends the silos another model than the one
        in its state.
    ValueError
        In ``aggregate_train``, for more than one reply: put a rule around it.
    """

    reads_delta: ClassVar[bool] = True

    def __init__(
        self, training: Training, coordinator: Coordinator, **fedavg: Any
    ) -> None:
        super().__init__(**fedavg)
        self._training, self._coordinator = training, coordinator
        # Parameter's name -> its leaf in the state, which holds the round's model.
        self._places = dict(
            zip(training.plan.parameters, training.program.parameters, strict=True)
        )
        self._state = coordinator.init()
        self._model: Model | None = None

    def initial(self) -> ArrayRecord:
        """Return the model that the plan starts from."""
        return ArrayRecord({n: pack(x) for n, x in self._training.plan.weights.items()})

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Send the model and what else ``prepare`` makes of the state."""
        self._model = Model(ArrayRecord(dict(arrays)))
        for leaf in self._model.spec.leaves:
            values = view(arrays[leaf.name], leaf.dtype, leaf.shape)
            self._state[self._places[leaf.name]] = values
        prepared = self._coordinator.prepare(self._state)
        config[PLAN] = self._training.plan.sha256
        if beside := self._beside_the_model(prepared):  # Flower has no empty bytes
            config[PREPARED] = beside
        return super().configure_train(server_round, arrays, config, grid)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Step with the single reply; without one, model and state stay as they are."""
        content = sole_reply(replies, "TFFServer", "WeightedMean(TFFServer(...))")
        if content is None:
            return None, None
        assert self._model is not None, "configure_train comes first"
        layout = self._training.layout
        [metrics] = records_of(content, MetricRecord)
        examples = float(metrics[self.weighted_by_key])  # type: ignore[arg-type]  # a scalar
        delta = read_delta(content, self._model)
        report = self._coordinator.report(layout.sums_of(delta, examples, metrics))
        state, found = self._coordinator.update(self._state, report)
        # Without the sums that privacy withholds, metrics mean nothing.
        told = {} if layout.withheld(metrics) else found
        return self._stepped(server_round, state, told)

    def _stepped(
        self, server_round: int, state: Leaves, metrics: Mapping[str, float]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Keep the state; return the model in it, and what can be told of a round.

        Of a state that is not finite nothing is kept: no later round would mend it.
        """
        if not all(np.isfinite(leaf).all() for leaf in state if leaf.dtype.kind == "f"):
            log(WARNING, "Round %d: the plan's step is not finite", server_round)
            return None, None
        self._state = state
        told = MetricRecord({n: v for n, v in metrics.items() if np.isfinite(v)})
        return self._model_of(state), told

    def summary(self) -> None:
        """Log the plan, then Flower's summary of the sampling."""
        log(INFO, "\t├──> TFFServer: plan %s", self._training.plan.sha256[:16])
        super().summary()

    def state(self) -> dict[str, Any]:
        """Return the plan's hash and the leaves of the state that are not the model."""
        leaves = {str(i): leaf for i, leaf in self._others().items()}
        return {"sha256": self._training.plan.sha256, "leaves": leaves}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restore the leaves.

        Raises
        ------
        CheckpointError
            If the run had another plan.
        """
        ours, theirs = self._training.plan.sha256, str(state["sha256"])
        if ours != theirs:
            raise CheckpointError(
                f"tff.plan: the run was started with plan {theirs[:16]}, the file is "
                f"now plan {ours[:16]}. Put the old file back, or start a new run."
            )
        for i, leaf in self._others().items():
            self._state[i] = np.array(state["leaves"][str(i)], leaf.dtype)

    def _others(self) -> dict[int, np.ndarray[Any, Any]]:
        models = set(self._places.values())
        return {i: leaf for i, leaf in enumerate(self._state) if i not in models}

    def _model_of(self, state: Leaves) -> ArrayRecord:
        record = ArrayRecord()
        for name, place in self._places.items():
            record[name] = pack(state[place])
        return record

    def _beside_the_model(self, prepared: Leaves) -> bytes:
        """Return the leaves after the model, which must be the state's own."""
        for (name, place), sent in zip(self._places.items(), prepared, strict=False):
            if not np.array_equal(sent, self._state[place], equal_nan=True):
                raise ConfigError(
                    f"tff.plan: the plan sends another {name} to the silos than its "
                    "model has; plans that change the model on its way cannot be run."
                )
        rest = prepared[len(self._places) :]
        return b"".join(leaf.tobytes() for leaf in rest)
