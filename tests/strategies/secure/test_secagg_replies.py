"""Replies that are not what they should be, and servers that lie to a node."""

from __future__ import annotations

import numpy as np
import pytest
from flwr.app import ConfigRecord, Message, RecordDict

from strategies.secure.graph import MALICIOUS
from strategies.secure.secagg_mod import secagg_mod
from strategies.secure.secagg_wire import Request
from strategies.secure.wire import SECURE
from tests.strategies.secure.masked import (
    CLOSE,
    STEPS,
    federation,
)
from tests.support.federation import model
from truststram.errors import ConfigError
from truststram.job import Job


def flipped(frame, place):
    data = bytearray(frame)
    data[place] ^= 1
    return bytes(data)


BAD = {
    "frame": lambda frame, f: flipped(frame, 0),
    "frame ": lambda frame, f: b"",
    "unknown-key": lambda frame, f: flipped(frame, 10),
    "signature": lambda frame, f: flipped(frame, 60),
    "size": lambda frame, f: frame[:-4],
    "size ": lambda frame, f: frame + bytes(4),
    "body": lambda frame, f: flipped(frame, len(frame) - 1),
    # Of another stage of its own.
    "stage": lambda frame, f: f.frames["shares", 2],
}


@pytest.mark.parametrize("code", BAD)
def test_bad_masked_updates_are_dropouts(code):
    f = federation()
    change = BAD[code]
    f.answer = lambda stage, node, frame: (
        change(frame, f) if (stage, node) == ("mask", 2) else frame
    )
    found, _ = f.round()
    assert f.codes() == [code.strip()]
    np.testing.assert_allclose(found, f.expected([2]), **CLOSE)


def test_the_frame_of_another_node_is_a_dropout():
    f, last = federation(), []

    def swapped(stage, node, frame):
        first, *others = [n for at, n, _ in f.sent if at == stage]
        if stage != "mask" or len(others) < 6:
            return frame
        last.append(node)
        return f.frames["mask", first]

    f.answer = swapped
    found, _ = f.round()
    assert f.codes() == ["unknown-node"]
    np.testing.assert_allclose(found, f.expected(last), **CLOSE)


@pytest.mark.parametrize("stage", ["keys", "shares", "consent", "unmask"])
def test_bad_answers_of_other_stages_are_dropouts(stage):
    f = federation(threat=MALICIOUS)
    f.answer = lambda at, node, frame: (
        flipped(frame, len(frame) - 1) if (at, node) == (stage, 2) else frame
    )
    found, _ = f.round()
    assert f.codes() == ["body"]
    out = [2] if stage in ("keys", "shares") else []
    np.testing.assert_allclose(found, f.expected(out), **CLOSE)


def test_a_frame_of_an_earlier_round_is_dropped():
    f = federation()
    f.round()
    old = f.frames
    f.arrays = model(0.6)
    f.answer = lambda stage, node, frame: old[stage, node] if node == 2 else frame
    found, _ = f.round()
    assert f.codes() == ["round"]
    np.testing.assert_allclose(found, 0.1 + f.expected([2]), **CLOSE)


def test_an_update_of_another_form_is_a_dropout():
    f = federation()

    def another_metric(node, reply):
        if node == 2:
            reply.content["metrics"]["extra"] = 1.0
        return reply

    f.report = another_metric
    found, _ = f.round()
    assert f.codes() == ["header"]
    np.testing.assert_allclose(found, f.expected([2]), **CLOSE)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_an_update_that_is_not_a_number_is_a_dropout(value, monkeypatch):
    f = federation()
    with monkeypatch.context() as patch:
        patch.setitem(STEPS, 2, value)
        found, _ = f.round()
    if np.isnan(value):
        assert f.codes() == ["client-error"]
        np.testing.assert_allclose(found, f.expected([2]), **CLOSE)
    else:  # counts as the clip
        np.testing.assert_allclose(found, f.expected() + (1 - STEPS[2]) / 7, **CLOSE)
        assert f.of("secure-sum")[0]["clipped"] == pytest.approx(1 / 7, abs=1e-6)


def with_request(message, **changes):
    record = ConfigRecord({**message.content[SECURE], **changes})
    content = RecordDict({**message.content, SECURE: record})
    message.content = content
    return message


def refusal(f):
    """Return what the nodes said that refused to answer."""
    f.round()
    return {e["detail"].split("ProtocolError(")[-1] for e in f.of("reply-dropped")}


def lies(f, stage, change):
    f.ask = lambda at, node, message: (
        change(message) if (at, node) == (stage, 2) else message
    )
    return f


def other_arrays(message):
    content = RecordDict({**message.content, "arrays": model(9.0)})
    message.content = content
    return message


@pytest.mark.parametrize(
    ("text", "stage", "change"),
    [
        ("model: the model is not", "mask", other_arrays),
        ("another sum", "mask", lambda m: with_request(m, model="0" * 64)),
        ("another sum", "shares", lambda m: with_request(m, round=9)),
        ("malformed", "keys", lambda m: with_request(m, model="x")),
        ("malformed", "keys", lambda m: with_request(m, stage="update")),
        ("malformed", "unmask", lambda m: with_request(m, body="text")),
        ("is next", "unmask", lambda m: with_request(m, stage="shares")),
    ],
    ids=range(7),
)
def test_a_node_refuses_what_is_not_the_sum_that_it_joined(text, stage, change):
    [said] = refusal(lies(federation(), stage, change))
    assert text in said


def test_nodes_that_were_told_of_another_model_are_not_in_the_sum():
    f = lies(federation(), "keys", lambda m: with_request(m, model="0" * 64))
    found, _ = f.round()
    assert f.codes() == ["model"]
    np.testing.assert_allclose(found, f.expected([2]), **CLOSE)


@pytest.mark.parametrize("stage", ["shares", "mask", "unmask"])
def test_a_stage_is_answered_once(stage):
    f = federation()
    kept = {}

    def keep(at, node, message):
        if (at, node) == (stage, 2):
            kept["message"] = message
        return message

    f.ask = keep
    f.round()
    again = kept["message"]
    node = f.grid.get_node_ids()[2]
    content = RecordDict(dict(again.content))
    content[SECURE] = Request.of(content).at(stage, Request.of(content).body).record()
    message = Message(content, node, "train", group_id="1")
    [reply] = f.grid.send_and_receive([message])
    assert "in no sum" in reply.error.reason


def test_nothing_is_told_of_how_training_failed():
    f = federation()

    def broken(node, reply):
        if node == 2:
            raise ValueError("a secret")
        return reply

    f.report = broken
    f.round()
    [dropped] = f.of("reply-dropped")
    assert "the reason stays on the node" in dropped["detail"]
    assert "secret" not in dropped["detail"]


def test_accuracies_do_not_leave_and_other_messages_pass():
    f = federation(4)
    f.begin()
    messages = f.layer.configure_evaluate(1, f.arrays, ConfigRecord(), f.grid)
    replies = f.grid.send_and_receive(messages)
    assert all("not released" in reply.error.reason for reply in replies)
    with pytest.raises(ConfigError, match="secagg"):
        secagg_mod(Job())


def test_a_message_without_a_request_is_refused():
    f = federation(4)
    f.begin()
    node = f.grid.get_node_ids()[0]
    message = Message(RecordDict({"arrays": f.arrays}), node, "train", group_id="1")
    [reply] = f.grid.send_and_receive([message])
    assert "no secure sum" in reply.error.reason
