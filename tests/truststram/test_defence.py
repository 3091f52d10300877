"""What the events say about nodes that misbehave, counted as a person would."""

from __future__ import annotations

from pathlib import Path

import pytest

from truststram.defence import lines, listed
from truststram.result import RunResult

NODES = ["0", "1", "2", "10"]


def event(kind: str, number: int, **data) -> dict:
    return {"kind": kind, "round": number, **data}


def rejected(number: int, node: str) -> dict:
    return event("update-rejected", number, node=node, evidence={})


def dropped(number: int, node: str, code: str = "norm", phase: str = "train") -> dict:
    return event("reply-dropped", number, node=node, code=code, phase=phase, detail="")


def incident(number: int, node: str, *causes: str) -> dict:
    return event("incident", number, node=node, causes=list(causes))


def asked(number: int, nodes=NODES) -> dict:
    return event("round-started", number, cohort=nodes)


def defence(*log: dict) -> dict:
    return RunResult.of(log, Path("x")).defence


def test_a_quiet_run_has_none():
    assert (
        defence({"kind": "run-started"}, asked(1), dropped(1, "0", "client-error"))
        == {}
    )


def test_who_was_rejected_dropped_flagged_and_left_out():
    found = defence(
        {"kind": "run-started"},
        asked(1),
        rejected(1, "10"),
        incident(1, "10", "rule", "norm"),
        dropped(1, "2", phase="evaluate"),
        dropped(1, "0", "stale-round"),
        asked(2),
        rejected(2, "10"),
        rejected(2, "1"),
        incident(2, "10", "rule"),
        incident(2, "1", "loss"),
        event("node-quarantined", 2, node="10", until=12, reputation=0.4),
        event("alert", 2, fraction=0.5, limit=0.3, nodes=["1", "10"], response="log"),
    )
    assert found == {
        "nodes": NODES,
        "rejected": {"1": [2], "10": [1, 2]},
        "dropped": {"2": [1]},
        "flagged": {"1": [2], "10": [1]},
        "incidents": 3,
        "quarantined": {"10": [[3, 12]]},
        "alerts": [2],
    }
    assert list(found["rejected"]) == ["1", "10"]


def test_what_a_resumed_run_repeats_counts_once():
    first = [asked(2), rejected(2, "1"), event("alert", 2, fraction=1.0)]
    again = [asked(2), rejected(2, "1"), asked(3), rejected(3, "1")]
    found = defence(
        {"kind": "run-started", "resumed_from": 0},
        asked(1),
        rejected(1, "1"),
        *first,
        {"kind": "run-started", "resumed_from": 1},
        *again,
    )
    assert found["rejected"] == {"1": [1, 2, 3]}
    assert found["alerts"] == []


def simulated() -> dict:
    """Nodes 1 and 2 are malicious; 2 attacks in round 2 only."""
    return defence(
        {"kind": "run-started"},
        asked(1),
        event("adversary", 1, attack="drift", nodes=["1"]),
        rejected(1, "1"),
        rejected(1, "2"),
        dropped(1, "10", "client-error"),
        asked(2),
        event("adversary", 2, attack="drift", nodes=["1", "2"]),
        dropped(2, "1"),
        dropped(2, "0", phase="evaluate"),
        rejected(2, "10"),
        event("node-quarantined", 2, node="10", until=4, reputation=0.4),
        event("node-quarantined", 2, node="1", until=4, reputation=0.4),
    )


def test_a_simulation_knows_how_good_it_was():
    found = simulated()
    assert found["malicious"] == ["1", "2"]
    assert found["detection_rate"] == pytest.approx(2 / 3, abs=1e-4)
    # Honest: 0 twice, 10 once (its first reply was an error).
    assert found["false_positive_rate"] == pytest.approx(1 / 3, abs=1e-4)
    assert found["honest_quarantined"] == ["10"]


def test_rates_of_nothing_are_unknown():
    found = defence(asked(1, ["1"]), event("adversary", 1, attack="drift", nodes=[]))
    assert found["detection_rate"] is None
    assert found["malicious"] == []
    assert found["false_positive_rate"] == 0
    all_bad = defence(asked(1, ["1"]), event("adversary", 1, attack="x", nodes=["1"]))
    assert all_bad["false_positive_rate"] is None


def test_what_a_person_reads():
    assert list(lines({})) == []
    assert list(lines(simulated())) == [
        "Rejected by the rule (in how many rounds): 1 (1), 2 (1), 10 (1)",
        "Quarantined: 10 (rounds 3-4), 1 (rounds 3-4)",
        "Attackers, which a simulation knows: 2 (1, 2)",
        "Attacking updates stopped: 66.7%; honest ones: 33.3%; honest nodes in "
        "quarantine: 10",
    ]


def test_long_lists_are_cut():
    assert listed(map(str, range(6))) == "0, 1, 2, 3, 4, 5"
    assert listed(map(str, range(8))) == "0, 1, 2, 3, 4, 5, and 2 more"
    assert listed([]) == ""
