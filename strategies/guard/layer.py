"""Server half of the guard (there is no client half): put it around any strategy.

``Guard(FedAvg())`` in any Flower app makes the run survive malformed and absurd
replies: each one is dropped with a reason code and the others are aggregated.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from truststram._flower import set_group
from truststram.errors import ProtocolError

from ..base import NUM_EXAMPLES, StrategyLayer, sole_metrics
from .core import NormBound, majority
from .wire import Checked, check_evaluate, check_train

__all__ = ["Guard"]


class Guard(StrategyLayer):
    """Drop replies that are malformed, not finite or absurdly large.

    Parameters
    ----------
    inner : Strategy
        Any Flower strategy; it sees only valid replies.
    norm_factor : float
        A reply is dropped when its update is longer than this many times the median.
    static : bool
        Judge every reply by itself: no bound relative to the median norm, no majority
        of metric names, no cap relative to other clients. Required under differential
        privacy, where one client must not decide about another; the layer inside clips.
    max_examples : int
        Largest believable number of examples of one client.
    weight_cap : float
        A client's number of examples counts at most this many times the median.

    Guarantees
    ----------
    For any content of any reply: ``aggregate_train`` and ``aggregate_evaluate`` do not
    raise because of it, and a dropped reply has no influence on the model. What passes
    has the model's names, dtypes and shapes, finite values, a norm within the bound and
    an integer weight. Unless ``static`` the bound is relative: fewer than half
    hostile replies cannot move it, and with fewer than three replies in the first
    round there is none. A reply within all bounds may still be malicious: that is the
    business of a robust rule.

    Events
    ------
    ``reply-dropped`` (round, phase, node, code, detail), ``reply-capped`` (round, node,
    found, used).
    """

    def __init__(
        self,
        inner: Strategy,
        *,
        norm_factor: float = 10.0,
        static: bool = False,
        max_examples: int = 10**9,
        weight_cap: float = 10.0,
    ) -> None:
        super().__init__(inner)
        self.max_examples, self.weight_cap = max_examples, weight_cap
        self._static = static
        self._bound = NormBound(norm_factor, math.inf if static else None)
        self._asked: dict[str, set[int]] = {"train": set(), "evaluate": set()}

    @property
    def _key(self) -> str:
        return str(getattr(self.inner, "weighted_by_key", NUM_EXAMPLES))

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Note who is asked, and mark the messages with the round."""
        messages = super().configure_train(server_round, arrays, config, grid)
        return self._note("train", server_round, messages)

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Note who is asked, and mark the messages with the round."""
        messages = super().configure_evaluate(server_round, arrays, config, grid)
        return self._note("evaluate", server_round, messages)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Hand on the valid replies; without any, the model stays as it is."""
        fit: list[tuple[Message, Checked]] = []
        for reply in self._addressed("train", server_round, replies):
            try:
                content = reply.content
                checked = check_train(content, self.model, self.max_examples, self._key)
                fit.append((reply, checked))
            except ProtocolError as error:
                self._drop(server_round, "train", reply, error)
        fit = self._consistent("train", server_round, fit)
        fit = self._bounded(server_round, fit)
        if not fit and not getattr(self.inner, "always_releases", False):
            return None, None
        self._cap_weights(server_round, fit)
        return self.hand_on(server_round, [reply for reply, _ in fit])

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """Hand on the valid replies; None without any."""
        fit: list[tuple[Message, Checked]] = []
        for reply in self._addressed("evaluate", server_round, replies):
            try:
                checked = check_evaluate(reply.content, self.max_examples, self._key)
                fit.append((reply, checked))
            except ProtocolError as error:
                self._drop(server_round, "evaluate", reply, error)
        fit = self._consistent("evaluate", server_round, fit)
        if not fit and not getattr(self.inner, "always_releases", False):
            return None
        self._cap_weights(server_round, fit)
        return self.inner.aggregate_evaluate(server_round, [reply for reply, _ in fit])

    def state(self) -> dict[str, Any]:
        """Return the remembered medians."""
        return {"medians": list(self._bound.medians)}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restore the remembered medians."""
        self._bound.medians.clear()
        self._bound.medians.extend(float(m) for m in state["medians"])

    def _note(
        self, phase: str, server_round: int, messages: Iterable[Message]
    ) -> list[Message]:
        noted = list(messages)
        for message in noted:
            set_group(message, str(server_round))
        self._asked[phase] = {m.metadata.dst_node_id for m in noted}
        return noted

    def _addressed(
        self, phase: str, server_round: int, replies: Iterable[Message]
    ) -> Iterable[Message]:
        """Yield the first reply of each node that was asked, if it has content."""
        seen: set[int] = set()
        for reply in replies:
            node = reply.metadata.src_node_id
            try:
                if reply.has_error():
                    text = f"{reply.error.code}: {reply.error.reason or ''}"
                    raise ProtocolError("client-error", text[:300])
                if node not in self._asked[phase]:
                    raise ProtocolError("unknown-node", "the node was not asked")
                if reply.metadata.group_id != str(server_round):
                    raise ProtocolError("stale-round", "the reply is to another round")
                if node in seen:
                    raise ProtocolError("duplicate", "the node has replied already")
                seen.add(node)
            except ProtocolError as error:
                self._drop(server_round, phase, reply, error)
            else:
                yield reply

    def _consistent(
        self, phase: str, server_round: int, fit: list[tuple[Message, Checked]]
    ) -> list[tuple[Message, Checked]]:
        """Keep the replies whose metrics have the names that most replies have."""
        if self._static:
            return fit
        expected = majority([checked.signature for _, checked in fit])
        kept = []
        for reply, checked in fit:
            if checked.signature == expected:
                kept.append((reply, checked))
            else:
                error = ProtocolError("metric-keys", "not the metrics that others sent")
                self._drop(server_round, phase, reply, error)
        return kept

    def _bounded(
        self, server_round: int, fit: list[tuple[Message, Checked]]
    ) -> list[tuple[Message, Checked]]:
        """Keep the replies whose update is not longer than the bound."""
        bound = self._bound.bound([checked.norm for _, checked in fit])
        kept = []
        for reply, checked in fit:
            if checked.norm <= bound and math.isfinite(checked.norm):
                kept.append((reply, checked))
            else:
                text = f"norm {checked.norm:.4g} is above {bound:.4g}"
                error = ProtocolError("norm", text)
                self._drop(server_round, "train", reply, error)
        if not self._static:
            self._bound.accept([checked.norm for _, checked in kept])
        return kept

    def _cap_weights(
        self, server_round: int, fit: list[tuple[Message, Checked]]
    ) -> None:
        """Reduce claimed numbers of examples to ``weight_cap`` times the median."""
        if self._static or not fit:
            return
        most = int(self.weight_cap * np.median([c.count for _, c in fit]))
        for reply, checked in fit:
            if checked.count > most:
                sole_metrics(reply.content)[self._key] = most
                self.emit(
                    "reply-capped",
                    round=server_round,
                    node=self.name_of(reply.metadata.src_node_id),
                    found=checked.count,
                    used=most,
                )

    def _drop(
        self, server_round: int, phase: str, reply: Message, error: ProtocolError
    ) -> None:
        self.emit(
            "reply-dropped",
            round=server_round,
            phase=phase,
            node=self.name_of(reply.metadata.src_node_id),
            code=error.code,
            detail=error.detail,
        )
