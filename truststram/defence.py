"""What was done about nodes that misbehave: a projection of a run's events."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

from .events import Event

__all__ = ["Defence", "lines", "listed"]

# Reasons for a dropped reply that say nothing against the node.
FAULTS = ("client-error", "stale-round", "quarantined")
DETECTORS = {"norm", "loss"}
KINDS = {
    *("update-rejected", "reply-dropped", "incident", "adversary"),
    *("node-quarantined", "alert", "round-started"),
}
MOST_NAMES = 6

Pairs = set[tuple[int, str]]


class Defence:
    """Collects events of a run, in order, and tells what they amount to."""

    def __init__(self) -> None:
        self._events: list[Event] = []

    def add(self, event: Event) -> None:
        """Take in an event; what a resumed run repeats replaces what was."""
        if event["kind"] == "run-started":
            last = event.get("resumed_from", 0)
            self._events = [e for e in self._events if e["round"] <= last]
        elif event["kind"] in KINDS:
            self._events.append(event)

    def result(self) -> dict[str, Any]:
        """Return the defence of a run; empty if nothing happened.

        Returns
        -------
        dict
            ``nodes``: all names, in order. ``rejected`` (by the rule), ``dropped`` (by
            the guard), ``flagged`` (by a detector): node -> rounds. ``incidents``:
            their number. ``quarantined``: node -> list of [first, last] round.
            ``alerts``: rounds in which one began.

            In simulations of attacks also ``malicious`` (every node that attacked),
            ``honest_quarantined``, and ``detection_rate`` and ``false_positive_rate``:
            the fractions of attacking and of honest training updates that the rule
            rejected or the guard dropped; None if there were none. Nodes that attack
            in other rounds only count for neither.
        """
        rejected = self._pairs("update-rejected")
        drops = [e for e in self._of("reply-dropped") if e["code"] not in FAULTS]
        dropped = {(e["round"], e["node"]) for e in drops}
        flagged = {
            (e["round"], e["node"])
            for e in self._of("incident")
            if DETECTORS.intersection(e["causes"])
        }
        quarantined: dict[str, list[list[int]]] = {}
        for event in self._of("node-quarantined"):
            spans = quarantined.setdefault(event["node"], [])
            spans.append([event["round"] + 1, event["until"]])
        attacks = self._of("adversary")
        alerts = [e["round"] for e in self._of("alert")]
        incidents = self._pairs("incident")
        if not (rejected or dropped or incidents or quarantined or alerts or attacks):
            return {}
        found: dict[str, Any] = {
            "nodes": self._names(),
            "rejected": _by_node(rejected),
            "dropped": _by_node(dropped),
            "flagged": _by_node(flagged),
            "incidents": len(incidents),
            "quarantined": quarantined,
            "alerts": alerts,
        }
        if attacks:
            in_training = {
                (e["round"], e["node"]) for e in drops if e.get("phase") == "train"
            }
            found |= self._rates(attacks, rejected | in_training)
            bad = found["malicious"]
            found["honest_quarantined"] = [n for n in quarantined if n not in bad]
        return found

    def _rates(self, attacks: Sequence[Event], stopped: Pairs) -> dict[str, Any]:
        """Return what can be said because the simulation knows who attacks."""
        attacking = {(e["round"], node) for e in attacks for node in e["nodes"]}
        malicious = {node for _, node in attacking}
        errors = {
            (e["round"], e["node"])
            for e in self._of("reply-dropped")
            if e["code"] in FAULTS and e.get("phase") == "train"
        }
        asked = {
            (e["round"], n) for e in self._of("round-started") for n in e["cohort"]
        }
        honest = {pair for pair in asked - errors if pair[1] not in malicious}
        return {
            "malicious": _ordered(malicious),
            "detection_rate": _fraction(attacking & stopped, attacking),
            "false_positive_rate": _fraction(honest & stopped, honest),
        }

    def _of(self, kind: str) -> list[Event]:
        return [event for event in self._events if event["kind"] == kind]

    def _pairs(self, kind: str) -> Pairs:
        return {(event["round"], event["node"]) for event in self._of(kind)}

    def _names(self) -> list[str]:
        names = {name for e in self._of("round-started") for name in e["cohort"]}
        return _ordered(names | {e["node"] for e in self._events if "node" in e})


def lines(defence: Mapping[str, Any]) -> Iterator[str]:
    """Yield what a person wants to know, a line for each subject."""
    if not defence:
        return
    if rejected := defence["rejected"]:
        counts = {node: len(rounds) for node, rounds in rejected.items()}
        worst = sorted(counts, key=lambda node: -counts[node])
        told = [f"{node} ({counts[node]})" for node in worst]
        yield f"Rejected by the rule (in how many rounds): {listed(told)}"
    if quarantined := defence["quarantined"]:
        told = [f"{node} ({_spans(spans)})" for node, spans in quarantined.items()]
        yield f"Quarantined: {listed(told)}"
    if defence["alerts"]:
        yield f"Alerts began in rounds: {listed(map(str, defence['alerts']))}"
    if "malicious" in defence:
        bad = defence["malicious"]
        yield f"Attackers, which a simulation knows: {len(bad)} ({listed(bad)})"
        yield (
            f"Attacking updates stopped: {_percent(defence['detection_rate'])}; honest "
            f"ones: {_percent(defence['false_positive_rate'])}; honest nodes in "
            f"quarantine: {listed(defence['honest_quarantined']) or 'none'}"
        )


def listed(names: Iterable[str]) -> str:
    """Return names with commas, at most six of them."""
    names = list(names)
    more = [f"and {len(names) - MOST_NAMES} more"] if len(names) > MOST_NAMES else []
    return ", ".join([*names[:MOST_NAMES], *more])


def _by_node(pairs: Pairs) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {name: [] for name in _ordered(n for _, n in pairs)}
    for number, name in sorted(pairs):
        found[name].append(number)
    return found


def _ordered(names: Iterable[str]) -> list[str]:
    """Return names without repetitions, partitions by their number."""
    return sorted(set(names), key=lambda name: (len(name), name))


def _fraction(part: Collection[Any], whole: Collection[Any]) -> float | None:
    return round(len(part) / len(whole), 4) if whole else None


def _spans(spans: Sequence[Sequence[int]]) -> str:
    """Return the first of some spans of rounds, and how many there are."""
    more = f" and {len(spans) - 1} more" if len(spans) > 1 else ""
    return f"rounds {spans[0][0]}-{spans[0][1]}{more}"


def _percent(fraction: float | None) -> str:
    return "none were sent" if fraction is None else f"{fraction:.1%}"
