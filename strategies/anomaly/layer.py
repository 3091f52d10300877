"""Server half of anomaly detection (there is no client half).

``Anomaly(Guard(WFAgg(f=2)))`` in any Flower app tells which nodes misbehave, leaves
those out that do so again and again, and raises an alert when too many do.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from truststram.errors import RunError

from ..base import StrategyLayer
from .alert import RESPONSES, Alert, stop_reason, tighten
from .evidence import Found, Observed, judge_losses, judge_norms, listening, observe
from .gate import Gate
from .standing import Standings, ordered

__all__ = ["Anomaly"]


class Anomaly(StrategyLayer):
    """Tell incidents of nodes, keep their reputation, quarantine repeat offenders.

    Stands outside the guard, so that what the guard drops is evidence too.

    Parameters
    ----------
    inner : Strategy
        Such as ``Guard(WFAgg(f=2))``. Every layer of ours in it is listened to.
    quarantine : int
        Rounds that a repeat offender is left out; 0: never.
    alert_fraction : float
        Fraction of the nodes, in [0, 1], above which a round is alerted: nodes with an
        incident and nodes in quarantine.
    response : str
        To an alert. ``"log"``: the event only. ``"stop"``: the run fails after two
        alerted rounds in a row. ``"tighten"``: longer updates are shortened to
        ``0.5 ** level`` of the median norm, with a level that grows by one in every
        alerted round up to 3, and falls by one in every other.
    verdicts : bool
        Whether a rejection by a rule inside counts against the node. False for rules
        that reject a fixed number of updates whatever comes (Krum, Bulyan, ...).
    loss_key : str
        Metric in which clients report their training loss; may be absent.

    Guarantees
    ----------
    No content of a reply stops the run. A node has at most one incident a round;
    incidents change no update. Detectors alone (causes ``norm``, ``loss``) never lead
    to a quarantine: honest norms and losses differ with the data. If more than half of
    the judged nodes have an incident, the evidence is contradictory and no reputation
    changes. A quarantine leaves more than half of the connected nodes, and the replies
    that the layers inside need; else the node stays and an event says why. What a node
    does in the evaluate phase is judged in the next round.

    Events
    ------
    ``incident`` (round, node, causes, evidence, reputation), ``node-quarantined``
    (round, node, until, reputation), ``node-released`` (round, node),
    ``quarantine-refused`` (round, node, reason), ``alert`` (round, fraction, limit,
    nodes, response), ``alert-ended`` (round, fraction).

    Raises
    ------
    RunError
        With ``response="stop"``, after two alerted rounds in a row.
    """

    needs_plaintext = True
    linear = False

    def __init__(
        self,
        inner: Strategy,
        *,
        quarantine: int = 10,
        alert_fraction: float = 0.3,
        response: str = "log",
        verdicts: bool = True,
        loss_key: str = "train-loss",
    ) -> None:
        super().__init__(inner)
        if response not in RESPONSES:
            expected = ", ".join(RESPONSES)
            raise ValueError(f"Expected response={response!r} to be one of {expected}.")
        if quarantine < 0:
            raise ValueError(f"Expected quarantine={quarantine} >= 0.")
        if not 0 <= alert_fraction <= 1:
            raise ValueError(f"Expected 0 <= alert_fraction={alert_fraction} <= 1.")
        self.quarantine, self.response = quarantine, response
        self.verdicts, self.loss_key = verdicts, loss_key
        self.standings, self.alert = Standings(), Alert(alert_fraction)
        self._pending = Found()  # from the last evaluate phase
        self._gate = Gate(self.standings)

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Release whose time is over; let ``inner`` choose; leave out the others."""
        messages = super().configure_train(server_round, arrays, config, grid)
        for name in self.standings.release(server_round):
            self.emit("node-released", round=server_round, node=name)
        self._gate.connected = len(set(grid.get_node_ids()))
        return self._gate.allowed("train", messages, self.name_of)

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Leave out nodes in quarantine."""
        messages = super().configure_evaluate(server_round, arrays, config, grid)
        return self._gate.allowed("evaluate", messages, self.name_of)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Hand on the replies and judge the nodes by what is seen and heard."""
        replies = self._admitted(server_round, "train", replies)
        asked = self._gate.asked["train"]
        seen = observe(replies, asked, self.model, self.loss_key, self.name_of)
        found = Found()
        judge_norms(seen, found)
        losses = judge_losses(seen, self.standings, found)
        if self.response == "tighten":
            tighten(seen.values(), self.alert.level, self.model)
        with listening(self.inner, found.hearing(self.verdicts)):
            result = self.hand_on(server_round, replies)
        self._judge(server_round, seen, found)
        for name, loss in losses.items():
            self.standings.judged(name, server_round).remember(loss)
        self.standings.trim()
        return result

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """Hand on the replies; what is heard counts in the next round."""
        found = Found()
        replies = self._admitted(server_round, "evaluate", replies)
        with listening(self.inner, found.hearing(self.verdicts)):
            metrics = super().aggregate_evaluate(server_round, replies)
        asked = self._gate.asked["evaluate"]
        self._pending = found.about({self.name_of(node) for node in asked})
        return metrics

    def heard(self, kind: str, **data: Any) -> None:
        """Count what a layer outside says of a node that was asked as evidence."""
        asked = self._gate.asked.get(str(data.get("phase")), ())
        if data.get("node") in {self.name_of(node) for node in asked}:
            self._pending.hearing(self.verdicts)(kind, data)

    def describe(self) -> str:
        """Return one line for the strategy summary."""
        return (
            f"Anomaly (quarantine {self.quarantine} rounds, alert above "
            f"{self.alert.limit:g}: {self.response})"
        )

    def state(self) -> dict[str, Any]:
        """Return the standings of all nodes, the alert and what is pending."""
        return {
            "nodes": self.standings.state(),
            "alert": self.alert.state(),
            "pending": self._pending.nodes,
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restore what :meth:`state` returned."""
        self.standings.load_state(state["nodes"])
        self.alert.load_state(state["alert"])
        self._pending = Found(state["pending"])

    def _admitted(
        self, server_round: int, phase: str, replies: Iterable[Message]
    ) -> list[Message]:
        """Drop what nodes in quarantine send all the same: they were not asked."""
        kept = []
        for reply in replies:
            name = self.name_of(reply.metadata.src_node_id)
            if self._gate.admits(phase, reply, name):
                kept.append(reply)
                continue
            self.emit(
                "reply-dropped",
                round=server_round,
                phase=phase,
                node=name,
                code="quarantined",
                detail="the node is in quarantine",
            )
        return kept

    def _judge(
        self, server_round: int, seen: Mapping[str, Observed], found: Found
    ) -> None:
        """Turn the evidence about a round's nodes into incidents and what follows."""
        usable = {name for name in seen if "guard" not in found.nodes.get(name, {})}
        found = found.about(seen).merged(self._pending)
        self._pending = Found()
        judged = ordered({*seen, *found.nodes})
        absent = self.standings.quarantined()
        contradictory = 2 * len(found.nodes) > len(judged)
        for name in judged:
            standing = self.standings.judged(name, server_round)
            if not contradictory:
                standing.mark(found.weight(name))
            if name in found.nodes:
                self.emit(
                    "incident",
                    round=server_round,
                    node=name,
                    causes=sorted(found.nodes[name]),
                    evidence=found.nodes[name],
                    reputation=round(standing.reputation, 4),
                )
        if self.quarantine and not contradictory:
            until = server_round + self.quarantine
            for name in self.standings.due(judged):
                objection = self._gate.objection(name, seen, usable, self.inner)
                self._leave_out(server_round, name, until, objection)
        nodes, of = [*found.nodes, *absent], len(judged) + len(absent)
        if judged:
            self._alarm(server_round, nodes, of)

    def _leave_out(self, number: int, name: str, until: int, why: str | None) -> None:
        """Put a node into quarantine, or say once why it cannot be."""
        standing = self.standings[name]
        if why is None:
            standing.until, standing.spared = until, False
            self.emit(
                "node-quarantined",
                round=number,
                node=name,
                until=until,
                reputation=round(standing.reputation, 4),
            )
        elif not standing.spared:
            standing.spared = True
            self.emit("quarantine-refused", round=number, node=name, reason=why)

    def _alarm(self, server_round: int, nodes: list[str], of: int) -> None:
        """Raise or end the alert; stop the run if that is the response."""
        kind = self.alert.turn(len(nodes) / of)
        data: dict[str, Any] = {"round": server_round, "fraction": len(nodes) / of}
        if kind == "alert":
            data |= {"limit": self.alert.limit, "response": self.response}
            data["nodes"] = ordered(nodes)
        if kind:
            self.emit(kind, **{**data, "fraction": round(data["fraction"], 4)})
        if self.response == "stop" and self.alert.stops:
            raise RunError(stop_reason(server_round, len(nodes), of, self.alert.limit))
