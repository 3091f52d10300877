"""The alert of a run, and the three responses to it."""

from __future__ import annotations

import json

import numpy as np
import pytest

from strategies.anomaly.alert import Alert
from tests.strategies.anomaly.support import Case
from truststram.errors import RunError

LENGTH = np.sqrt(17)  # of an update by 1


def test_it_is_told_when_it_begins_and_when_it_ends():
    case = Case(alert_fraction=0.3)
    for reject in ["", "1 2 3", "1 2 3 4", "5 6 7 8", "1", "", "1 2 3 4"]:
        case.play(reject)
    assert case.told("alert") == [
        {
            "round": 3,
            "fraction": 0.4,
            "limit": 0.3,
            "response": "log",
            "nodes": ["1", "2", "3", "4"],
        },
        {
            "round": 7,
            "fraction": 0.4,
            "limit": 0.3,
            "response": "log",
            "nodes": ["1", "2", "3", "4"],
        },
    ]
    assert case.told("alert-ended") == [{"round": 5, "fraction": 0.1}]


def test_nodes_in_quarantine_count():
    case = Case(alert_fraction=0.3, quarantine=5)
    for _ in range(7):
        case.play("1 2 3")
    assert case.told("alert") == []
    case.play("4")
    [alert] = case.told("alert")
    assert alert["nodes"] == ["1", "2", "3", "4"]
    assert alert["fraction"] == 0.4


def test_suspicions_count_too():
    case = Case(alert_fraction=0.2)
    case.play(steps={"1": 90.0, "2": 90.0, "3": 90.0})
    assert case.told("alert")[0]["fraction"] == 0.3


def test_a_round_without_replies_changes_nothing():
    case = Case(alert_fraction=0.3)
    case.play("1 2 3 4")
    case.ask()
    assert case.layer.aggregate_train(2, []) == (None, None)
    assert case.told("alert-ended") == []


def test_stop_waits_for_a_second_round():
    case = Case(alert_fraction=0.3, response="stop")
    case.play("1 2 3 4")
    case.play("")
    case.play("1 2 3 4")
    with pytest.raises(RunError, match=r"4 of 10 nodes .* round 4 \(40%") as error:
        case.play("1 2 3 4")
    assert "anomaly.response" in str(error.value)
    assert "last recorded round is kept" in str(error.value)


def test_stop_counts_on_after_a_resume():
    case = Case(alert_fraction=0.3, response="stop")
    case.play("1 2 3 4")
    again = Case(alert_fraction=0.3, response="stop")
    again.layer.load_state(json.loads(json.dumps(case.layer.state())))
    with pytest.raises(RunError):
        again.play("1 2 3 4")


def test_log_never_stops():
    case = Case(alert_fraction=0.3)
    for _ in range(10):
        case.play("1 2 3 4")
    assert len(case.told("alert")) == 1


def test_tighten_shortens_more_while_it_lasts_and_less_afterwards():
    case = Case(alert_fraction=0.3, response="tighten")
    longest = []
    for reject in ["1 2 3 4"] * 5 + [""] * 4:
        case.play(reject, steps={str(i): 1.0 + (i > 6) for i in range(10)})
        longest.append(max(case.norms()) / LENGTH)
    assert longest == pytest.approx(
        [2, 1 / 2, 1 / 4, 1 / 8, 1 / 8, 1 / 8, 1 / 4, 1 / 2, 2]
    )


def test_tighten_keeps_directions_and_short_updates():
    case = Case(alert_fraction=0.3, response="tighten")
    steps = {"0": 0.25, "1": -8.0}
    case.play("1 2 3 4", steps=steps)
    case.play("", steps=steps)
    assert case.norms()[0] == pytest.approx(0.25 * LENGTH)
    from strategies.update import read_delta

    backwards = read_delta(case.judge.seen[1].content, case.layer.model)
    middle = np.median([0.25, 8.0, *(1 + i / 100 for i in range(2, 10))])
    np.testing.assert_allclose(backwards, -middle / 2, rtol=1e-5)
    assert case.judge.seen[1].content["metrics"]["num-examples"] == 10


def test_tighten_does_nothing_to_updates_that_it_cannot_read():
    case = Case(alert_fraction=0.3, response="tighten")
    case.layer.alert.level = 3
    case.play(steps={"1": float("nan")})
    assert np.isnan(case.norms()[1])


def test_levels_stay_between_none_and_three():
    alert = Alert(0.5)
    kinds = [alert.turn(f) for f in (1.0,) * 6 + (0.5,) * 6]
    assert [k for k in kinds if k] == ["alert", "alert-ended"]
    assert alert.level == 0
    assert Alert(1.0).turn(1.0) == ""
    assert Alert(0.0).turn(0.01) == "alert"
