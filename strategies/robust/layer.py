"""Server half of the robust rules (there is no client half).

``WFAgg()`` in any Flower app replaces FedAvg; ``Robust(rule)`` does the same for any
rule of this folder, around any server optimizer.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, Message, MetricRecord
from flwr.serverapp.strategy import Strategy

from ..base import (
    NUM_EXAMPLES,
    StrategyLayer,
    average_metrics,
    sole_metrics,
    synthetic_reply,
)
from ..server_sgd import ServerSGD
from ..update import blank_update, read_delta
from .make import make_rule
from .rule import AUTO, AUTO_PERCENT, Decision, Rule, assume

__all__ = ["Robust", "WFAgg"]


class Robust(StrategyLayer):
    """Reduce the updates to one with a robust rule and hand that on.

    Parameters
    ----------
    rule : Rule
        Such as ``make_rule("krum", f=2)``.
    inner : Strategy, optional
        Server optimizer: any Flower strategy. Default: :class:`ServerSGD`.
    auto_f : bool
        Set ``rule.f`` anew in every round: 30 % of the replies, rounded down, and less
        where the rule's precondition allows less (:func:`~.rule.assume`).
    most_f : int, optional
        What ``auto_f`` does not go beyond.

    Guarantees
    ----------
    Those of the rule, for at most ``rule.f`` malicious clients among those that
    replied; with ``auto_f`` that number is an event, and 0 (no guarantee) if the
    replies are too few to outvote anybody. If the rule's precondition does not hold for
    the number of replies, or it rejects everybody, the model is kept and an event says
    why. Clients count equally, whatever number of examples they claim.

    Events
    ------
    ``update-rejected`` (round, node, evidence), ``rule-refused`` (round, reason);
    ``assumed-f`` (round, replies, f): with ``auto_f``, whenever f is another than in
    the round before.
    """

    reduces = True
    needs_plaintext = True
    linear = False

    def __init__(
        self,
        rule: Rule,
        inner: Strategy | None = None,
        *,
        auto_f: bool = False,
        most_f: int | None = None,
    ) -> None:
        super().__init__(inner or ServerSGD())
        self.rule, self.auto_f, self.most_f = rule, auto_f, most_f
        self._assumed: int | None = None  # f of the last round, if it is automatic

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Reduce the replies; without a usable result the model stays as it is."""
        valid = [reply for reply in replies if reply.has_content()]
        if valid and self.auto_f:
            assume(self.rule, len(valid), self.most_f)
            self._tell_f(server_round, len(valid))
        reason = self.rule.refusal(len(valid)) if valid else "no valid reply"
        if reason:
            self.emit("rule-refused", round=server_round, reason=reason)
            return None, None
        names = [self.name_of(reply.metadata.src_node_id) for reply in valid]
        decision = self._decide(valid, names)
        self._tell(server_round, names, decision)
        if not decision.shares.any():
            reason = "every update was rejected"
            self.emit("rule-refused", round=server_round, reason=reason)
            return None, None
        metrics = average_metrics(valid, [1.0] * len(valid))
        counts = [float(sole_metrics(r.content)[NUM_EXAMPLES]) for r in valid]  # type: ignore[arg-type]  # scalar
        update, values = blank_update(self.model.spec)
        values[:] = decision.update
        reply = synthetic_reply(valid[0], update, metrics, sum(counts))
        return self.hand_on(server_round, [reply])

    def refusal(self, replies: int) -> str | None:
        """Return why the rule cannot be used on so few replies, or None if it can."""
        if not self.auto_f:
            return self.rule.refusal(replies)
        before = self.rule.f
        try:
            assume(self.rule, replies, self.most_f)
            return self.rule.refusal(replies)
        finally:
            self.rule.f = before

    def _decide(self, replies: list[Message], names: list[str]) -> Decision:
        rows = [
            np.ascontiguousarray(read_delta(reply.content, self.model))
            for reply in replies
        ]
        if hasattr(self.rule, "base"):
            self.rule.base = self.model.flat
        return self.rule(rows, names)

    def _tell(self, server_round: int, names: list[str], decision: Decision) -> None:
        for row in decision.rejected:
            evidence = decision.evidence[row] if decision.evidence else {}
            self.emit(
                "update-rejected",
                round=server_round,
                node=names[row],
                evidence={k: _rounded(v) for k, v in evidence.items()},
            )

    def _tell_f(self, server_round: int, replies: int) -> None:
        """Say which f this round has if the last one had another."""
        if self.rule.f != self._assumed:
            self._assumed = self.rule.f
            self.emit("assumed-f", round=server_round, replies=replies, f=self.rule.f)

    def describe(self) -> str:
        """Return the rule, what comes before it, and its f."""
        most = "" if self.most_f is None else f", at most {self.most_f}"
        f = f"auto ({AUTO_PERCENT} %{most})" if self.auto_f else str(self.rule.f)
        return f"{type(self).__name__}: {_title(self.rule)}, f = {f}"

    def state(self) -> dict[str, Any]:
        """Return the rule's memory and the last round's automatic f."""
        return {"rule": self.rule.state(), "assumed": self._assumed}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restore both."""
        self.rule.load_state(state["rule"])
        self._assumed = state["assumed"]


class WFAgg(Robust):
    """WFAgg (:mod:`strategies.robust.wfagg`) as a strategy of its own.

    Parameters
    ----------
    inner : Strategy, optional
        Server optimizer; default :class:`ServerSGD`.
    f : int
        Largest number of malicious clients assumed; -1: 30 % of the replies of each
        round, rounded down.
    **options
        ``c``, ``h``, ``ema``, ``temporal``, ``max_bytes`` of the rule.

    Examples
    --------
    >>> WFAgg(f=2).describe()
    'WFAgg: WFAgg, f = 2'
    >>> WFAgg().describe()
    'WFAgg: WFAgg, f = auto (30 %)'
    """

    def __init__(
        self, inner: Strategy | None = None, *, f: int = AUTO, **options: Any
    ) -> None:
        auto = f == AUTO
        rule = make_rule("wfagg", 0 if auto else f, **options)
        super().__init__(rule, inner, auto_f=auto)


def _title(rule: Rule) -> str:
    """Return the name of a rule, such as "Krum" or "Krum after NNM"."""
    name, before = type(rule).__name__, getattr(rule, "rule", None)
    return f"{_title(before)} after {name}" if before is not None else name


def _rounded(value: Any) -> Any:
    """Return a value for an event, which has no NaN and no infinity: None there."""
    if not isinstance(value, float):
        return value
    return float(f"{value:.6g}") if math.isfinite(value) else None
