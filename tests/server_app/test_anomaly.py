"""In-process runs in which misbehaving nodes are told, left out, or stop the run."""

from __future__ import annotations

import pytest

from tests.support.runs import run
from truststram import events
from truststram.errors import RunError
from truststram.result import RunResult

FLIP = {
    "adversary.kind": "sign-flip",
    "adversary.fraction": 0.2,
    "adversary.strength": 4.0,
    "round.min-nodes": 10,
}
WFAGG = {"robust.rule": "wfagg", "robust.f": 2}


@pytest.fixture(scope="module")
def attacked(tmp_path_factory):
    folder = tmp_path_factory.mktemp("attacked")
    return run(folder, "run", {**FLIP, **WFAGG, "train.rounds": 12}, nodes=10)


def log_of(result):
    return events.read(result.dir / "events.jsonl")


def test_attackers_are_quarantined_and_honest_nodes_are_not(attacked):
    defence = attacked.defence
    assert len(defence["malicious"]) == 2
    assert sorted(defence["quarantined"]) == defence["malicious"]
    assert defence["honest_quarantined"] == []
    assert defence["detection_rate"] > 0.9
    assert defence["false_positive_rate"] < 0.05


def test_who_is_in_quarantine_is_not_asked(attacked):
    [until] = {e["until"] for e in log_of(attacked) if e["kind"] == "node-quarantined"}
    bad = set(attacked.defence["malicious"])
    for event in log_of(attacked):
        if event["kind"] == "round-started" and 8 <= event["round"] <= until:
            assert not bad & set(event["cohort"])
            assert len(event["cohort"]) == 8
    assert attacked.rounds[-1].cohort == 8


def test_an_alert_can_stop_a_run_and_keeps_the_last_round(tmp_path):
    stop = {"anomaly.response": "stop", "anomaly.alert-fraction": 0.1}
    with pytest.raises(RunError, match=r"anomaly\.alert-fraction is 0\.1"):
        run(tmp_path, "run", {**FLIP, **WFAGG, **stop}, nodes=10)
    result = RunResult.read(tmp_path / "run")
    assert result.status == "failed"
    assert "second alerted round" in result.reason
    assert [r.round for r in result.rounds] == [1]
    assert result.defence["alerts"] == [1]


def test_it_can_be_switched_off_and_on(tmp_path):
    off = run(tmp_path, "off", {**FLIP, **WFAGG, "anomaly.enabled": "off"}, nodes=10)
    assert off.defence["incidents"] == 0
    assert off.defence["rejected"]
    on = run(tmp_path, "on", {**FLIP, "anomaly.enabled": "on"}, nodes=10)
    assert set(on.defence["flagged"]) <= set(on.defence["malicious"])


def test_a_run_without_any_of_it_says_nothing(tmp_path):
    assert run(tmp_path).defence == {}
