"""A phase ends at the quorum or the deadline, and late replies are never used."""

from __future__ import annotations

import pytest
from flwr.app import Error, Message

from tests.support.federation import adding_app, grid_of, model, reply_content
from truststram._flower import set_message_id
from truststram.exchange import Exchange


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds


class SlowGrid:
    """Nodes answer after ``delays[node]`` seconds of a fake clock (None: never)."""

    def __init__(self, delays, clock, errors=()):
        self.delays, self.clock, self.errors = delays, clock, errors
        self.due = {}

    def push_messages(self, messages):
        ids = []
        for message in messages:
            message_id = set_message_id(message)
            node = message.metadata.dst_node_id
            if self.delays[node] is not None:
                self.due[message_id] = (self.clock() + self.delays[node], message)
            ids.append(message_id)
        return ids

    def pull_messages(self, message_ids):
        ready = []
        for message_id in message_ids:
            due, message = self.due.get(message_id, (float("inf"), None))
            if due <= self.clock():
                del self.due[message_id]
                node = message.metadata.dst_node_id
                answer = (
                    Error(2, "boom")
                    if node in self.errors
                    else reply_content(model(1.0))
                )
                ready.append(Message(answer, reply_to=message))
        return ready


def messages(nodes):
    from flwr.app import RecordDict

    return [Message(RecordDict({"arrays": model(0.0)}), n, "train") for n in nodes]


def exchange(delays, deadline=10.0, quorum=1.0, errors=()):
    clock = Clock()
    grid = SlowGrid(delays, clock, errors)
    wait = (deadline, quorum, lambda node: (node, ""))
    return Exchange(grid, *wait, clock, clock.sleep), clock


def nodes_of(phase):
    return [m.metadata.src_node_id for m in phase.replies]


def test_all_replies_in_the_order_of_names():
    run, _ = exchange({1: 3.0, 2: 1.0, 3: 2.0})
    phase = run(messages([3, 1, 2]), lambda *_: None)
    assert nodes_of(phase) == [1, 2, 3]
    assert (phase.lost, phase.late) == (0, 0)
    assert phase.bytes_up > 3 * 17 * 4
    assert phase.bytes_down > 3 * 17 * 4


def test_deadline_ends_the_phase_and_late_replies_are_counted_once():
    run, clock = exchange({1: 1.0, 2: 12.0, 3: None})
    first = run(messages([1, 2, 3]), lambda *_: None)
    assert nodes_of(first) == [1]
    assert first.lost == 2
    assert clock.now == pytest.approx(10.0, abs=0.21)
    run._grid.delays = {1: 5.0}
    second = run(messages([1]), lambda *_: None)
    assert nodes_of(second) == [1]
    assert (second.late, second.lost) == (1, 0)
    third = run(messages([1]), lambda *_: None)
    assert third.late == 0


def test_quorum_ends_the_phase_early():
    run, clock = exchange({i: float(i) for i in range(1, 11)}, quorum=0.6, deadline=100)
    phase = run(messages(range(1, 11)), lambda *_: None)
    assert nodes_of(phase) == [1, 2, 3, 4, 5, 6]
    assert phase.lost == 4
    assert clock.now < 6.3


def test_error_replies_are_replies():
    run, _ = exchange({1: 0.0, 2: 0.0}, errors={2})
    phase = run(messages([1, 2]), lambda *_: None)
    assert [m.has_error() for m in phase.replies] == [False, True]
    assert phase.lost == 0


def test_nobody_answers():
    run, clock = exchange({1: None, 2: None}, deadline=3)
    phase = run(messages([1, 2]), lambda *_: None)
    assert (phase.replies, phase.lost) == ([], 2)
    assert clock.now < 3.3


def test_nothing_to_send():
    run, clock = exchange({})
    assert run([], lambda *_: None).replies == []
    assert clock.now == 0


def test_progress_is_told_as_replies_arrive():
    seen = []
    run, _ = exchange({1: 0.0, 2: 1.0, 3: 2.0})
    run(messages([1, 2, 3]), lambda *state: seen.append(state))
    assert seen == [(1, 3), (2, 3), (3, 3)]


def test_a_content_shared_by_all_messages_counts_for_each():
    from flwr.app import RecordDict

    shared = RecordDict({"arrays": model(0.0)})
    app = adding_app(lambda p, r: 0.0)
    grid = grid_of(app, 3)
    run = Exchange(grid, 10, 1.0, lambda n: (n, ""))
    one = run([Message(shared, grid.get_node_ids()[0], "query")], lambda *_: None)
    three = run(
        [Message(shared, n, "query") for n in grid.get_node_ids()], lambda *_: None
    )
    assert three.bytes_down == 3 * one.bytes_down


def test_it_says_when_each_reply_was_there():
    clock = Clock()
    grid = SlowGrid({1: 0.0, 2: 1.0, 3: None}, clock)
    exchange = Exchange(grid, 5.0, 1.0, lambda n: (n, ""), clock, clock.sleep)
    exchange(messages([1, 2, 3]), lambda *_: None)
    assert exchange.seconds == {1: 0.0, 2: pytest.approx(1.0, abs=0.2)}
    exchange(messages([1]), lambda *_: None)
    assert exchange.seconds == {1: 0.0}
