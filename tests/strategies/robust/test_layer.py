"""The layer around a rule: an f of its own choice, what it says, what it remembers."""

from __future__ import annotations

import json

import numpy as np
import pytest
from flwr.app import Message
from hypothesis import given
from hypothesis import strategies as st

from strategies.robust.layer import Robust, WFAgg
from strategies.robust.make import OF_CLIENTS, make_rule
from strategies.robust.rule import assume
from tests.support.federation import (
    adding_app,
    config,
    grid_of,
    model,
    plus,
    reply_content,
    weights,
)
from tests.support.robust import COMBINATIONS, make


class Rounds:
    """Rounds of one layer; every node adds what it is told to."""

    def __init__(self, layer: Robust) -> None:
        self.layer, self.number = layer, 0
        self.events: list[tuple[str, dict]] = []
        layer.emit = lambda kind, **data: self.events.append((kind, data))

    def play(self, steps):
        """Return the new model's mean (from 0), or None if it was kept."""
        self.number += 1
        grid, base = grid_of(adding_app(lambda p, r: 0.0), len(steps)), model(0.0)
        messages = self.layer.configure_train(self.number, base, config(), grid)
        replies = [
            Message(reply_content(plus(base, step)), reply_to=message)
            for message, step in zip(messages, steps, strict=True)
        ]
        arrays, _ = self.layer.aggregate_train(self.number, replies)
        return None if arrays is None else float(weights(arrays).mean())

    def told(self, kind):
        return [data for found, data in self.events if found == kind]


@pytest.mark.parametrize(("name", "pre"), COMBINATIONS)
@given(st.integers(1, 200))
def test_the_automatic_f_is_the_largest_allowed_up_to_30_percent(name, pre, k):
    rule = make(name, 0, pre)
    f = assume(rule, k)
    assert f == rule.f
    assert 0 <= f <= 0.3 * k
    assert f == 0 or rule.refusal(k) is None
    if f + 1 <= 0.3 * k:
        rule.f = f + 1
        assert rule.refusal(k) is not None


@pytest.mark.parametrize(
    ("name", "pre", "k", "f"),
    [
        ("wfagg", "none", 10, 3),
        ("wfagg", "none", 3, 0),
        ("median", "none", 20, 6),
        ("median", "bucketing", 10, 2),  # of 5 buckets
        ("krum", "none", 7, 2),
        ("krum", "nnm", 10, 3),
        ("bulyan", "none", 11, 2),
        ("bulyan", "bucketing", 10, 0),
    ],
)
def test_automatic_fs(name, pre, k, f):
    assert assume(make(name, 0, pre), k) == f


@pytest.mark.parametrize(("name", "pre"), COMBINATIONS)
def test_f_may_change_between_rounds(name, pre):
    """A rule whose f was raised is the rule that was made with it."""
    rows = list(np.random.default_rng(2).normal(size=(24, 30)).astype(np.float32))
    names = [str(i) for i in range(24)]
    raised = make(name, 0, pre)
    assert assume(raised, 24) > 0
    made = make(name, raised.f, pre)
    a, b = raised(rows, names), made(rows, names)
    np.testing.assert_array_equal(a.update, b.update)
    np.testing.assert_array_equal(a.shares, b.shares)


def test_the_assumed_f_is_said_when_it_changes_and_zero_too():
    rounds = Rounds(WFAgg())
    for k in (10, 10, 7, 3, 3, 12):
        assert rounds.play([1.0] * k) == pytest.approx(1.0)
    assert rounds.told("assumed-f") == [
        {"round": 1, "replies": 10, "f": 3},
        {"round": 3, "replies": 7, "f": 2},
        {"round": 4, "replies": 3, "f": 0},
        {"round": 6, "replies": 12, "f": 3},
    ]


def test_an_f_that_was_given_stays_and_is_not_an_event():
    rounds = Rounds(WFAgg(f=2))
    for k in (10, 5):
        assert rounds.play([1.0] * k) == pytest.approx(1.0)
    assert rounds.play([1.0] * 4) is None
    assert [kind for kind, _ in rounds.events] == ["rule-refused"]
    assert rounds.layer.rule.f == 2


def test_an_automatic_f_outvotes_30_percent():
    steps = [1.0 + i / 100 for i in range(7)] + [-5.0] * 3
    rounds = Rounds(Robust(make_rule("trimmed-mean", 0), auto_f=True))
    assert 0.9 < rounds.play(steps) < 1.1
    given_zero = Rounds(Robust(make_rule("trimmed-mean", 0)))
    assert given_zero.play(steps) < 0


def test_an_automatic_f_stops_at_the_most_that_is_given():
    rounds = Rounds(Robust(make_rule("trimmed-mean", 0), auto_f=True, most_f=2))
    for k in (10, 4, 20):
        rounds.play([1.0] * k)
    assert [told["f"] for told in rounds.told("assumed-f")] == [2, 1, 2]
    assert rounds.layer.describe().endswith("f = auto (30 %, at most 2)")


def test_what_a_rule_refuses_with_no_attacker_is_refused_with_an_automatic_f():
    rounds = Rounds(Robust(make_rule("krum", 0), auto_f=True))
    assert rounds.play([1.0] * 2) is None
    assert rounds.told("assumed-f") == [{"round": 1, "replies": 2, "f": 0}]
    (refused,) = rounds.told("rule-refused")
    assert "at least 2 f + 3 = 3 updates with f = 0 and got 2" in refused["reason"]


def test_the_layer_says_beforehand_which_number_of_replies_it_refuses():
    assert WFAgg(f=2).refusal(5) is None
    assert "more than 2 f = 4" in str(WFAgg(f=2).refusal(4))
    assert WFAgg().refusal(1) is None
    assert Robust(make_rule("bulyan", 0), auto_f=True).refusal(3) is None
    assert Robust(make_rule("bulyan", 0), auto_f=True).refusal(2) is not None


def test_a_question_about_another_number_does_not_change_the_round():
    rounds = Rounds(WFAgg())
    rounds.play([1.0] * 10)
    rounds.layer.refusal(3)
    rounds.play([1.0] * 10)
    assert [data["f"] for data in rounds.told("assumed-f")] == [3]


def test_a_restored_layer_does_not_say_its_f_again():
    one, two = Rounds(WFAgg()), Rounds(WFAgg())
    one.play([1.0] * 10)
    two.layer.load_state(one.layer.state())
    two.play([1.0] * 10)
    assert two.told("assumed-f") == []
    state = Robust(make_rule("median", 0), auto_f=True).state()
    assert json.loads(json.dumps(state)) == state


@pytest.mark.parametrize(
    ("layer", "line"),
    [
        (lambda: WFAgg(f=2), "WFAgg: WFAgg, f = 2"),
        (lambda: WFAgg(), "WFAgg: WFAgg, f = auto (30 %)"),
        (
            lambda: Robust(make_rule("krum", 1, "nnm")),
            "Robust: Krum after NNM, f = 1",
        ),
        (
            lambda: Robust(make("median", 0, "bucketing"), auto_f=True),
            "Robust: Median after Bucketing, f = auto (30 %)",
        ),
    ],
)
def test_the_summary_says_rule_and_f(layer, line):
    assert layer().describe() == line


def test_rules_that_cannot_be_made():
    for name in OF_CLIENTS:
        with pytest.raises(ValueError, match="its own past"):
            make_rule(name, 1, "nnm")
    with pytest.raises(ValueError, match="expected a generator"):
        make_rule("median", 1, "bucketing")
    with pytest.raises(ValueError, match="one of none, nnm, bucketing"):
        make_rule("median", 1, "mixing")
    with pytest.raises(ValueError, match="expected one of wfagg, wfagg-paper, median"):
        make_rule("mean", 1)
    with pytest.raises(ValueError, match="f=-2"):
        WFAgg(f=-2)


def test_asking_how_many_replies_would_do_changes_nothing():
    layer = WFAgg()
    before = layer.rule.f
    assert layer.refusal(10) is None
    assert layer.rule.f == before
