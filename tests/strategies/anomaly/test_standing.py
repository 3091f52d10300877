"""Reputations: how long it takes to lose one, and to get it back."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from strategies.anomaly.standing import DUE, Standing, Standings, ordered


def rounds_until_due(standing: Standing, bad: float = 1.0, most: int = 1000) -> int:
    for number in range(1, most + 1):
        standing.mark(bad)
        if standing.reputation < DUE:
            return number
    return most + 1


def after(*marks: float) -> Standing:
    standing = Standing()
    for bad in marks:
        standing.mark(bad)
    return standing


def test_a_new_node_is_left_out_after_seven_bad_rounds():
    assert rounds_until_due(Standing()) == 7


def test_a_node_that_was_always_good_after_fourteen():
    assert rounds_until_due(after(*[0] * 1000)) == 14


def test_suspicion_alone_never_suffices():
    standing = Standing()
    assert rounds_until_due(standing, bad=0.5) == 1001
    assert standing.reputation == pytest.approx(2 / 3)


@pytest.mark.parametrize("pattern", [(1, 0), (1, 1, 0), (1, 0, 0, 0)])
def test_nor_do_false_rejections_now_and_then(pattern):
    standing = Standing()
    for _ in range(200):
        for bad in pattern:
            standing.mark(bad)
            assert standing.reputation >= DUE


@given(st.lists(st.sampled_from([0.0, 0.5, 1.0]), max_size=60))
def test_a_reputation_is_a_fraction_and_good_rounds_raise_it(marks):
    standing = after(*marks)
    assert 0 < standing.reputation <= 1
    better, worse = after(*marks, 0), after(*marks, 1)
    assert worse.reputation < better.reputation
    assert better.reputation >= standing.reputation


def quarantined(name="7", until=12) -> Standings:
    standings = Standings()
    standings.judged(name, 2).until = until
    return standings


def test_release_is_after_the_last_round():
    standings = quarantined(until=12)
    assert standings.release(12) == []
    assert standings.quarantined() == ["7"]
    assert standings.release(13) == ["7"]
    assert standings.quarantined() == []


def test_probation_lasts_three_bad_rounds():
    standings = quarantined()
    standings.release(13)
    assert rounds_until_due(standings["7"]) == 3


def test_good_rounds_end_probation():
    standings = quarantined()
    standings.release(13)
    for _ in range(40):
        standings["7"].mark(0)
    assert standings["7"].reputation > 0.99
    assert rounds_until_due(standings["7"]) == 14


def test_what_the_loss_was_is_forgotten():
    standings = quarantined()
    standings["7"].remember(0.3)
    standings.release(13)
    assert standings["7"].losses == []


def test_ten_losses_are_remembered():
    standing = Standing()
    for i in range(30):
        standing.remember(i)
    assert standing.losses == list(range(20, 30))


def test_the_worst_is_due_first_and_names_are_in_order():
    standings = Standings()
    for name, count in {"10": 9, "9": 9, "2": 12, "3": 1}.items():
        for _ in range(count):
            standings.judged(name, 1).mark(1)
    assert standings.due(["10", "9", "2", "3", "unknown"]) == ["2", "9", "10"]
    assert ordered(["10", "9", "x", "2"]) == ["2", "9", "x", "10"]


def test_memory_is_bounded_and_quarantines_are_kept():
    standings = Standings(most=3)
    standings.judged("evil", 1).until = 50
    for number in range(2, 8):
        standings.judged(f"n{number}", number)
    standings.trim()
    assert len(standings) == 3
    assert standings.quarantined() == ["evil"]
    assert [standings[n].seen for n in ("n5", "n6", "n7")] == [0, 6, 7]


def test_a_look_at_an_unknown_node_remembers_nothing():
    standings = Standings()
    assert standings["x"].reputation == 1
    assert len(standings) == 0


def test_the_state_is_json_and_comes_back():
    standings = quarantined()
    standings.judged("1", 3).mark(1)
    standings["1"].remember(0.1)
    standings["1"].spared = True
    text = json.dumps(standings.state(), allow_nan=False)
    again = Standings()
    again.load_state(json.loads(text))
    assert json.dumps(again.state()) == text
    assert again["1"] == standings["1"]
