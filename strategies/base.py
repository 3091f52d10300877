"""What every server layer is: a Flower Strategy around another Strategy.

A layer forwards what it does not change. On the way out it may add to messages
(``configure_train``); on the way back it sees replies before its inner strategy does
(``aggregate_train``) and hands on what it made of them.

The one-synthetic-reply contract: a layer that reduces the replies to one update
(a mean, a robust rule, a secure sum) hands its inner strategy exactly one reply. The
innermost strategy is then a server optimizer, and any stock Flower strategy can be it:
the average of one reply is that reply.

Any stock Flower strategy can also stand directly inside a layer that does not reduce;
it then gets the replies as stock clients would have sent them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from logging import INFO
from typing import Any, ClassVar

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.common.logger import log
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from truststram._flower import with_content
from truststram.records import pack, records_of

from .update import Model, to_weights

__all__ = [
    "NUM_EXAMPLES",
    "Emit",
    "StrategyLayer",
    "sole_reply",
    "synthetic_reply",
    "walk",
]

NUM_EXAMPLES = "num-examples"
Emit = Callable[..., object]


def log_event(kind: str, **data: Any) -> None:
    """Tell an event to Flower's log, for layers used outside our server."""
    log(INFO, "%s: %s", kind, data)


def _unknown(node: int) -> float | None:
    return None


class StrategyLayer(Strategy):
    """Forwards all of Strategy to ``inner``; subclasses override what they change.

    Parameters
    ----------
    inner : Strategy
        The next layer, or any stock Flower strategy.

    Attributes
    ----------
    reduces : bool
        Hands on exactly one reply (see the module's docstring).
    needs_plaintext : bool
        Must see single updates: cannot stand inside a secure sum.
    linear : bool
        Computes a linear function of the updates with weights that do not depend on
        them.
    always_releases : bool
        Must be called in every round, also without replies: under differential privacy
        an empty cohort is an outcome like others.
    secret_cohort : bool
        Who takes part in a round is not written to events: privacy is amplified by it.
    recorded : bool
        Is part of a run's record. A layer without state, which is there or not by more
        than the job says, is not: runs can be resumed either way.
    emit : callable
        ``emit(kind, **data)`` receives this layer's events; the server's round loop
        puts its log here.
    name_of : callable
        Node id -> stable name of the node, for events and per-node state.
    seconds_of : callable
        Node id -> seconds from sending this phase's messages to the node's reply, where
        the server's round loop can measure what a network takes; else None.
    """

    reads_delta: ClassVar[bool] = True
    reduces: ClassVar[bool] = False
    needs_plaintext: ClassVar[bool] = False
    linear: ClassVar[bool] = True
    always_releases: ClassVar[bool] = False
    secret_cohort: ClassVar[bool] = False
    recorded: ClassVar[bool] = True

    def __init__(self, inner: Strategy) -> None:
        self.inner = inner
        self.emit: Emit = log_event
        self.name_of: Callable[[int], str] = str
        self.seconds_of: Callable[[int], float | None] = _unknown
        self._model: Model | None = None

    @property
    def model(self) -> Model:
        """The global model of the current round."""
        if self._model is None:
            raise RuntimeError("configure_train must be called before aggregate_train")
        return self._model

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Remember the model and let ``inner`` choose and address the nodes."""
        # A copy of the record (not of its arrays): some strategies consume theirs.
        self._model = Model(ArrayRecord(dict(arrays)))
        return self.inner.configure_train(server_round, arrays, config, grid)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Hand the replies to ``inner``."""
        return self.hand_on(server_round, list(replies))

    def hand_on(
        self, server_round: int, replies: Sequence[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Give ``replies`` to ``inner`` in the form it understands."""
        if not getattr(self.inner, "reads_delta", False):
            key = getattr(self.inner, "arrayrecord_key", "arrays")
            for reply in replies:
                if reply.has_content():
                    reply.content = to_weights(reply.content, self.model, key)
        arrays, metrics = self.inner.aggregate_train(server_round, replies)
        return conformed(arrays, self.model), metrics

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Forward to ``inner``."""
        return self.inner.configure_evaluate(server_round, arrays, config, grid)

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """Forward to ``inner``."""
        return self.inner.aggregate_evaluate(server_round, replies)

    def observe(self, server_round: int, metrics: Mapping[str, float | None]) -> None:
        """Learn how good the server finds the model of a round, on public test data.

        Called before the round is recorded, so that what is learned can be part of
        :meth:`state`.
        """

    def heard(self, kind: str, **data: Any) -> None:
        """Hear of an event about a reply that a layer outside did not hand on."""

    def refusal(self, replies: int) -> str | None:
        """Return why this layer cannot work on so few replies, or None if it can."""
        return None

    def describe(self) -> str:
        """Return one line for the strategy summary."""
        return type(self).__name__

    def summary(self) -> None:
        """Log this layer, then what is inside it."""
        log(INFO, "\t├──> %s", self.describe())
        self.inner.summary()

    def state(self) -> dict[str, Any]:
        """Return what a resumed run needs, as JSON values and numpy arrays."""
        return {}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restore what :meth:`state` returned."""


def conformed(arrays: ArrayRecord | None, model: Model) -> ArrayRecord | None:
    """Return aggregated ``arrays`` with the dtypes that the model has.

    Flower's strategies average integer arrays into fractions and its adaptive ones turn
    float32 into float64; both would be sent to every client in the next round. Integer
    arrays keep the server's value.
    """
    if arrays is None or all(
        arrays[x.name].dtype == x.dtype for x in model.spec.leaves
    ):
        return arrays
    record = ArrayRecord()
    for leaf in model.spec.leaves:
        array = arrays[leaf.name]
        if not leaf.is_float:
            array = model.arrays[leaf.name]
        elif array.dtype != leaf.dtype:
            array = pack(array.numpy().astype(leaf.dtype))
        record[leaf.name] = array
    return record


def walk(strategy: Strategy) -> Iterable[Strategy]:
    """Yield a strategy and everything inside it, outermost first."""
    layer: Strategy | None = strategy
    while layer is not None:
        yield layer
        layer = getattr(layer, "inner", None)


def synthetic_reply(
    like: Message,
    update: RecordDict,
    metrics: Mapping[str, float],
    num_examples: float,
) -> Message:
    """Return the one reply that a reducing layer hands on.

    Parameters
    ----------
    like : Message
        A real reply of this round, whose metadata are used.
    update : RecordDict
        From :func:`strategies.update.blank_update`, filled. Whoever gets the reply may
        change the values in place.
    metrics : mapping
        Aggregated training metrics.
    num_examples : float
        Examples that the replies stand for.
    """
    update["metrics"] = MetricRecord({**metrics, NUM_EXAMPLES: num_examples})
    return with_content(like, update)


def sole_reply(replies: Iterable[Message], who: str, inside: str) -> RecordDict | None:
    """Return the content of the one reply that a reducing layer handed on, if any.

    For innermost strategies: ``who`` must stand ``inside`` a layer that reduces.

    Raises
    ------
    ValueError
        For more than one reply.
    """
    valid = [reply for reply in replies if reply.has_content()]
    if len(valid) > 1:
        raise ValueError(
            f"{who} takes one reply, not {len(valid)}: put it inside a layer that "
            f"makes one of them, such as {inside}."
        )
    return valid[0].content if valid else None


def sole_metrics(content: RecordDict) -> MetricRecord:
    """Return the one MetricRecord of a reply (an empty one if there is none)."""
    return next(iter(records_of(content, MetricRecord)), MetricRecord())


def average_metrics(
    replies: Sequence[Message], weights: Sequence[float]
) -> dict[str, float]:
    """Return the weighted average of every scalar metric that all replies have."""
    records = [sole_metrics(reply.content) for reply in replies]
    names = set(records[0]).intersection(*records) - {NUM_EXAMPLES}
    scalars = [n for n in sorted(names) if all(np.isscalar(r[n]) for r in records)]
    return {
        name: float(np.average([float(r[name]) for r in records], weights=weights))  # type: ignore[arg-type]  # scalars only
        for name in scalars
    }
