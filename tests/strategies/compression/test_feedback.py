"""Error feedback: what was left out is sent later, once, whatever happens between."""

from __future__ import annotations

import numpy as np
import pytest
from flwr.app import ConfigRecord, MetricRecord, RecordDict
from hypothesis import given
from hypothesis import strategies as st

from strategies.compression.codecs import make_codec
from strategies.compression.feedback import SLOTS, Feedback
from strategies.stores import ContextStore, FolderStore
from truststram._flower import become_task, make_context

JOB, SPEC, D = "0" * 32, b"s" * 16, 50
RECORDS = RecordDict(
    {
        "metrics": MetricRecord({"num-examples": 3, "loss": 0.1, "list": [1.5, 2.5]}),
        "config": ConfigRecord({"hash": b"\xff\0", "flag": True, "names": ["a", "b"]}),
    }
)


@pytest.fixture
def node():
    become_task(1)
    return make_context(7, {"simulated": True}, {})


def feedback(node, spec=SPEC, job=JOB, d=D):
    return Feedback(ContextStore(node, job), spec, d)


def name(number, attempt=0):
    return bytes([number, attempt]) * 8


def play(node, number, update, attempt=0):
    """One round of a node; return what it sent."""
    memory = feedback(node)
    x = update + memory.residual(number)
    codec = make_codec("topk", 0.1)
    body = codec.encode(x, np.random.default_rng(0))
    sent = codec.decode(body, D)
    memory.commit(number, name(number, attempt), x - sent, RECORDS, body)
    return sent


def update(number):
    return np.random.default_rng(number).normal(size=D).astype(np.float32)


def left(node, number):
    return feedback(node).residual(number)


@given(st.lists(st.integers(1, 4), min_size=1, max_size=6))
def test_nothing_is_lost_or_sent_twice(gaps):
    """Sum of what was sent plus the residual is the sum of the updates."""
    become_task(1)
    node = make_context(7, {"simulated": True}, {})
    number, sent, made = 0, 0.0, 0.0
    for gap in gaps:  # a node may sit rounds out
        number += gap
        sent = sent + play(node, number, update(number))
        made = made + update(number)
    np.testing.assert_allclose(sent + left(node, number + 1), made, atol=1e-4)


def test_a_repeated_round_has_its_first_reply(node):
    play(node, 1, update(1))
    play(node, 2, update(2))
    before = left(node, 3)
    records, body = feedback(node).repeated(2, name(2))
    assert records == RECORDS
    assert body == feedback(node).repeated(2, name(2))[1]
    assert feedback(node).repeated(1, name(1)) is not None
    np.testing.assert_array_equal(left(node, 3), before)
    for number, model in ((2, name(2, 1)), (3, name(2)), (0, name(0))):
        assert feedback(node).repeated(number, model) is None


def test_a_round_that_begins_again_begins_from_the_same_residual(node):
    play(node, 1, update(1))
    start = left(node, 2).copy()
    assert start.any()
    play(node, 2, update(2), attempt=0)
    np.testing.assert_array_equal(left(node, 2), start)
    second = play(node, 2, update(9), attempt=1)  # from another model
    np.testing.assert_allclose(
        second + left(node, 3), start + update(9), rtol=1e-5, atol=1e-6
    )
    assert feedback(node).repeated(2, name(2, 0)) is None  # it was undone


def test_a_residual_of_a_later_round_is_never_used(node):
    for number in (5, 6):
        play(node, number, update(number))
    memory = feedback(node)
    assert not memory.residual(5).any()
    assert memory.fresh
    play(node, 5, update(5), attempt=1)
    # The ends of rounds that were undone are gone.
    assert feedback(node).repeated(6, name(6)) is None
    memory = feedback(node)
    assert memory.residual(7).any()
    assert not memory.fresh


@pytest.mark.parametrize("other", [{"spec": b"t" * 16}, {"job": "1" * 32}])
def test_a_residual_of_another_model_or_job_is_never_used(node, other):
    play(node, 1, update(1))
    memory = feedback(node, **other)
    assert memory.repeated(1, name(1)) is None
    assert not memory.residual(2).any()
    assert memory.fresh


def test_a_new_node_begins_with_nothing(node):
    memory = feedback(node)
    np.testing.assert_array_equal(memory.residual(1), np.zeros(D, np.float32))
    assert memory.fresh
    assert not memory.damaged


@pytest.mark.parametrize("which", SLOTS)
def test_damage_means_nothing_is_left_and_is_said(tmp_path, which):
    def memory():
        return Feedback(FolderStore(tmp_path, "7", JOB), SPEC, D)

    for number in (1, 2):
        last = memory()
        last.residual(number)
        last.commit(number, name(number), update(number), RECORDS, b"body")
    path = tmp_path / "7" / JOB / which
    path.write_bytes(path.read_bytes()[:-3] + b"xyz")
    # The older residual would be added a second time: none is used.
    found = memory()
    residual = found.residual(3)
    if found.damaged:
        assert found.fresh
        assert not residual.any()
    else:  # the older one is damaged, which nobody needs
        np.testing.assert_array_equal(residual, update(2))
    found.commit(3, name(3), update(3), RECORDS, b"body")
    again = memory()
    np.testing.assert_array_equal(again.residual(4), update(3))
    assert not again.fresh


def test_the_commit_before_is_intact_if_this_one_fails(tmp_path, monkeypatch):
    store = FolderStore(tmp_path, "7", JOB)
    memory = Feedback(store, SPEC, D)
    memory.residual(1)
    memory.commit(1, name(1), update(1), RECORDS, b"body")
    memory = Feedback(FolderStore(tmp_path, "7", JOB), SPEC, D)
    memory.residual(2)
    monkeypatch.setattr(
        type(store), "_write", lambda *a: (_ for _ in ()).throw(OSError)
    )
    with pytest.raises(OSError):  # noqa: PT011  # it has no text
        memory.commit(2, name(2), update(2), RECORDS, b"body")
    monkeypatch.undo()
    again = Feedback(FolderStore(tmp_path, "7", JOB), SPEC, D)
    np.testing.assert_array_equal(again.residual(2), update(1))
