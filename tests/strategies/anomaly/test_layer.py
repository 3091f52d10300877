"""Evidence, incidents, quarantine: who is told, left out, and taken back, and when."""

from __future__ import annotations

import json

import numpy as np
import pytest
from flwr.app import Error, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAvg

from strategies.anomaly.layer import Anomaly
from strategies.base import StrategyLayer
from strategies.guard.layer import Guard
from strategies.mean.layer import WeightedMean
from tests.adversaries.replies import HOSTILE
from tests.strategies.anomaly.support import BASE, Case, Judge
from tests.support.federation import config, plus, reply_content, weights

EVERYBODY = {str(i) for i in range(10)}


# Evidence


def test_a_quiet_round_says_nothing():
    case = Case()
    for _ in range(5):
        case.play()
    assert case.events == []


def test_what_a_rule_inside_says_is_an_incident_with_its_evidence():
    case = Case()
    case.play(reject="3")
    assert [kind for kind, _ in case.events] == ["update-rejected", "incident"]
    assert case.told("incident") == [
        {
            "round": 1,
            "node": "3",
            "causes": ["rule"],
            "evidence": {"rule": {"distance": 9.5, "limit": 1.5}},
            "reputation": round(5 / 6, 4),
        }
    ]


def test_rejections_of_a_rule_that_rejects_anyway_are_no_evidence():
    case = Case(verdicts=False)
    case.play(reject="3")
    assert [kind for kind, _ in case.events] == ["update-rejected"]


def test_any_later_layer_joins_by_the_kind_of_its_event():
    class Later(StrategyLayer):
        def aggregate_train(self, server_round, replies):
            drop = {"phase": "train", "node": "4", "code": "clip", "detail": "x"}
            self.emit("reply-dropped", round=server_round, **drop)
            self.emit("update-rejected", round=server_round, node=5)  # not a name
            self.emit("phase-progress", round=server_round, node="6")
            return self.hand_on(server_round, list(replies))

    case = Case(inner=lambda: Later(WeightedMean()))
    case.play()
    [incident] = case.told("incident")
    assert (incident["node"], incident["causes"]) == ("4", ["guard"])
    assert incident["evidence"] == {"guard": {"code": "clip", "phase": "train"}}


def test_one_incident_a_round_with_all_causes():
    case = Case()
    case.play(reject="3", steps={"3": 50.0})
    [incident] = case.told("incident")
    assert incident["causes"] == ["norm", "rule"]
    norm = incident["evidence"]["norm"]
    assert norm["norm"] == pytest.approx(50 * np.sqrt(17), rel=1e-5)
    assert norm["limit"] < norm["norm"]
    json.dumps(incident, allow_nan=False)


def test_a_detector_changes_no_update():
    case = Case()
    _, (arrays, _) = case.play(steps={"3": 50.0})
    assert case.told("incident")[0]["causes"] == ["norm"]
    assert weights(arrays).max() == pytest.approx(0.5 + (9.42 + 50) / 10, rel=1e-5)


def test_a_jump_of_the_loss_is_told_once_there_is_a_past():
    case = Case()
    for number in range(5):
        case.play(losses={str(i): 2.0 * 0.6**number for i in range(10)})
    assert case.events == []
    case.play(losses={**{str(i): 0.15 for i in range(10)}, "8": 1.5})
    [incident] = case.told("incident")
    assert (incident["node"], incident["causes"]) == ("8", ["loss"])
    assert incident["evidence"]["loss"]["change"] == pytest.approx(np.log(10), rel=1e-5)


@pytest.mark.parametrize("name", HOSTILE)
def test_no_reply_stops_it_and_the_guard_makes_it_an_incident(name):
    make, code = HOSTILE[name]
    case = Case(inner=lambda: Guard(WeightedMean()), response="tighten")
    for number in range(5):
        case.layer.alert.level = number % 4
        honest = reply_content(plus(BASE, 1.07), 17)
        case.play(contents={"7": make(honest)})
    incidents = case.told("incident")
    assert [i["round"] for i in incidents] == [1, 2, 3, 4, 5]
    assert {i["node"] for i in incidents} == {"7"}
    codes = {i["evidence"].get("guard", {}).get("code") for i in incidents}
    # A finite update is shortened when the alert is on: nothing is left to drop.
    assert code in codes
    assert codes <= {code, None}
    json.dumps(case.layer.state(), allow_nan=False)


@pytest.mark.parametrize(
    "loss",
    [float("nan"), float("inf"), -1.0, 0.0, 10**400, [1.0], 1e308, None],
    ids=["nan", "inf", "negative", "zero", "huge integer", "list", "huge", "none"],
)
def test_no_reported_loss_stops_it(loss):
    class Deaf(StrategyLayer):
        def aggregate_train(self, server_round, replies):
            return None, None

    case = Case(inner=lambda: Deaf(WeightedMean()))
    content = reply_content(plus(BASE, 1.0))
    numbers = {"num-examples": 10}
    if loss is not None:
        numbers["train-loss"] = loss
    content["metrics"] = MetricRecord(numbers)
    for _ in range(6):
        case.play(contents={"2": content})
    assert {i["node"] for i in case.told("incident")} <= {"2"}


def test_faults_are_no_misbehaviour():
    case = Case(inner=lambda: Guard(WeightedMean()))
    asked = case.ask()
    replies = [
        Message(reply_content(plus(BASE, 1.0)), reply_to=m) for m in asked.values()
    ]
    replies[0] = Message(Error(2, "crashed"), reply_to=asked["0"])
    asked["1"].metadata.__dict__["_group_id"] = "77"
    replies[1] = Message(reply_content(plus(BASE, 1.0)), reply_to=asked["1"])
    case.layer.aggregate_train(1, replies)
    assert {d["code"] for d in case.told("reply-dropped")} == {
        "client-error",
        "stale-round",
    }
    assert case.told("incident") == []


def test_nodes_that_were_not_asked_are_ignored():
    case = Case(inner=lambda: Guard(WeightedMean()), fraction=1.0)
    stranger = Case(nodes=12).ask()["11"]
    asked = case.ask()
    replies = [
        Message(reply_content(plus(BASE, 1.0)), reply_to=m) for m in asked.values()
    ]
    replies.append(Message(reply_content(plus(BASE, 1e9)), reply_to=stranger))
    case.layer.aggregate_train(1, replies)
    assert [d["code"] for d in case.told("reply-dropped")] == ["unknown-node"]
    assert case.told("incident") == []


def test_the_first_of_two_replies_counts():
    case = Case()
    asked = case.ask()
    replies = [
        Message(reply_content(plus(BASE, 1.0)), reply_to=m) for m in asked.values()
    ]
    replies.append(Message(reply_content(plus(BASE, 1e9)), reply_to=asked["4"]))
    case.layer.aggregate_train(1, replies)
    assert case.told("incident") == []


def test_what_happens_in_the_evaluate_phase_is_judged_in_the_next_round():
    case = Case(inner=lambda: Guard(FedAvg(min_available_nodes=1)))
    case.play()
    messages = case.layer.configure_evaluate(1, BASE, config(), case.grid)
    good = {"loss": 1.0, "num-examples": 10}
    replies = []
    for message in messages:
        name = case.name_of(message.metadata.dst_node_id)
        numbers = {**good, "loss": float("nan")} if name == "6" else good
        content = RecordDict({"metrics": MetricRecord(numbers)})
        replies.append(Message(content, reply_to=message))
    case.layer.aggregate_evaluate(1, replies)
    assert case.told("incident") == []
    state = json.loads(json.dumps(case.layer.state()))
    case.layer.load_state(state)
    case.play()
    [incident] = case.told("incident")
    assert (incident["round"], incident["node"]) == (2, "6")
    assert incident["evidence"]["guard"] == {
        "code": "metric-value",
        "phase": "evaluate",
    }
    case.play()
    assert len(case.told("incident")) == 1


def test_listening_leaves_the_layers_as_they_were():
    class Failing(Judge):
        def aggregate_train(self, server_round, replies):
            self.emit("update-rejected", round=server_round, node="1", evidence={})
            raise ZeroDivisionError

    case = Case(inner=lambda: Failing(WeightedMean()))
    before = (case.judge.emit, case.judge.inner.emit)
    with pytest.raises(ZeroDivisionError):
        case.play()
    assert (case.judge.emit, case.judge.inner.emit) == before
    assert [kind for kind, _ in case.events] == ["update-rejected"]


# Quarantine


def test_a_repeat_offender_is_left_out_for_as_long_as_it_says():
    case = Case(quarantine=4)
    asked = [case.play(reject="3")[0] for _ in range(13)]
    [told, *_] = case.told("node-quarantined")
    assert (told["round"], told["node"], told["until"]) == (7, "3", 11)
    assert told["reputation"] < 0.5
    for number, names in enumerate(asked, start=1):
        assert names == (EVERYBODY - {"3"} if 8 <= number <= 11 else EVERYBODY)
    assert case.told("node-released") == [{"round": 12, "node": "3"}]


def test_it_is_not_asked_to_evaluate_either():
    case = Case(quarantine=4)
    for _ in range(7):
        case.play(reject="3")
    messages = case.layer.configure_evaluate(7, BASE, config(), case.grid)
    names = {case.name_of(m.metadata.dst_node_id) for m in messages}
    assert names == EVERYBODY - {"3"}


def test_after_its_release_three_bad_rounds_suffice():
    case = Case(quarantine=2)
    for _ in range(20):
        case.play(reject="3")
    assert [t["round"] for t in case.told("node-quarantined")] == [7, 12, 17]


def test_who_behaves_after_a_release_stays():
    case = Case(quarantine=2)
    for number in range(1, 30):
        case.play(reject="3" if number <= 7 else "")
    assert len(case.told("node-quarantined")) == 1
    assert case.layer.standings["3"].reputation > 0.8


def test_what_a_node_in_quarantine_sends_all_the_same_is_dropped():
    case = Case(quarantine=4)
    early = case.ask()["3"]
    case.round = 0
    for _ in range(7):
        case.play(reject="3")
    asked = case.ask()
    answers = [*asked.values(), early]
    replies = [Message(reply_content(plus(BASE, 1.0)), reply_to=m) for m in answers]
    case.layer.aggregate_train(8, replies)
    assert len(case.judge.seen) == 9
    [drop] = case.told("reply-dropped")
    assert (drop["node"], drop["code"], drop["phase"]) == ("3", "quarantined", "train")


def test_suspicions_of_detectors_never_lead_to_quarantine():
    case = Case()
    for _ in range(30):
        case.play(steps={"3": 50.0})
    assert len(case.told("incident")) == 30
    assert case.told("node-quarantined") == []
    assert case.told("incident")[-1]["reputation"] > 0.66


def test_zero_rounds_mean_never():
    case = Case(quarantine=0)
    for _ in range(20):
        asked, _ = case.play(reject="3")
        assert asked == EVERYBODY
    assert case.told("node-quarantined") == []


def test_fewer_than_half_are_left_out_and_the_rest_is_told_once():
    case = Case(nodes=6, quarantine=50, alert_fraction=1.0)
    for _ in range(12):
        case.play(reject="1 3 5")
    assert {t["node"] for t in case.told("node-quarantined")} == {"1", "3"}
    [refused] = case.told("quarantine-refused")
    assert (refused["round"], refused["node"]) == (7, "5")
    assert refused["reason"] == "3 of 6 nodes would be left out"


def test_a_layer_inside_gets_as_many_replies_as_it_needs():
    case = Case(quarantine=50)
    case.judge.needs = 9
    for _ in range(12):
        case.play(reject="2 3")
    assert [t["node"] for t in case.told("node-quarantined")] == ["2"]
    [refused] = case.told("quarantine-refused")
    assert (refused["node"], refused["reason"]) == ("3", "needs 9, got 8")


def test_nodes_that_may_be_sampled_in_place_of_usable_ones_are_counted():
    case = Case(nodes=20, quarantine=100, fraction=0.5)
    case.judge.needs = 9
    for _ in range(60):
        case.play(reject="2 3 5")
    assert len(case.told("node-quarantined")) == 1
    assert {r["reason"] for r in case.told("quarantine-refused")} == {"needs 9, got 8"}


def test_a_dropped_reply_is_no_loss_for_the_layers_inside():
    case = Case(nodes=4, inner=lambda: Guard(Judge(WeightedMean())), quarantine=5)
    case.judge.inner.needs = 3
    bad = reply_content(plus(BASE, float("nan")))
    for _ in range(7):
        case.play(contents={"1": bad})
    assert [t["node"] for t in case.told("node-quarantined")] == ["1"]


def test_contradictory_evidence_changes_no_reputation():
    case = Case(quarantine=3)
    for _ in range(20):
        case.play(reject="0 1 2 3 4 5")
    assert case.told("node-quarantined") == []
    assert {i["reputation"] for i in case.told("incident")} == {1.0}
    assert [a["fraction"] for a in case.told("alert")] == [0.6]


def test_the_state_continues_where_it_was():
    rounds = ["3", "3", "3 4", "3", "", "3", "3", "3", "", "3", "4", "4"]
    whole = Case(quarantine=2)
    for reject in rounds:
        whole.play(reject)
    first = Case(quarantine=2)
    for reject in rounds[:6]:
        first.play(reject)
    second = Case(quarantine=2)
    second.round = 6
    second.layer.load_state(json.loads(json.dumps(first.layer.state())))
    for reject in rounds[6:]:
        second.play(reject)
    assert first.events + second.events == whole.events
    assert json.dumps(second.layer.state()) == json.dumps(whole.layer.state())


@pytest.mark.parametrize(
    "wrong", [{"response": "panic"}, {"quarantine": -1}, {"alert_fraction": 1.5}]
)
def test_wrong_settings_are_refused(wrong):
    with pytest.raises(ValueError, match="Expected"):
        Anomaly(WeightedMean(), **wrong)


def test_its_capabilities():
    assert Anomaly.needs_plaintext
    assert not Anomaly.linear
    assert not Anomaly.reduces
    assert "quarantine 10 rounds" in Anomaly(WeightedMean()).describe()
