"""Frames that are not what they should be are dropped, and the round goes on."""

from __future__ import annotations

from dataclasses import replace

import pytest
from flwr.app import ConfigRecord, RecordDict

from strategies.secure import automatic
from strategies.secure.keys import JobKey, parameters_of
from strategies.secure.terms import Request
from strategies.secure.wire import FRAME, SECURE, open_head, seal, with_frame
from tests.strategies.secure.support import JOBS, Round
from tests.support.federation import weights
from truststram.errors import ProtocolError


def swapped(replies, _):
    frame = replies[0].content[SECURE][FRAME]
    head = len(frame) - parameters_of(JOBS["bfv"]).most_bytes(30)
    other = replies[1].content[SECURE][FRAME]
    return frame[:head] + other[-(len(frame) - head) :]


def resealed(**changes):
    """Return the first node's own frame with other fields, signed by it."""

    def forge(replies, f):
        data = replies[0].content[SECURE][FRAME]
        head = open_head(data, f.layer.federation.roster)
        node = automatic.find(1).identity(head.member.name)
        return seal(node, replace(head.header, **changes), data[len(head.head) :])

    return forge


def of_body(change):
    def forge(replies, f):
        data = replies[0].content[SECURE][FRAME]
        head = open_head(data, f.layer.federation.roster)
        node = automatic.find(1).identity(head.member.name)
        return seal(node, head.header, change(data[len(head.head) :]))

    return forge


FORGED = {
    "frame": lambda replies, _: b"garbage",
    "size": lambda replies, _: replies[0].content[SECURE][FRAME][:-1],
    "body": swapped,
    "unknown-node": lambda replies, _: replies[1].content[SECURE][FRAME],
    "signature": lambda replies, _: flipped(replies[0].content[SECURE][FRAME], 400),
    "round": resealed(round=7),
    "job": resealed(job="8"),
    "scheme": resealed(scheme="ckks"),
    "cohort": resealed(cohort="0" * 64),
    "model": resealed(model="0" * 64),
    "parameters": resealed(parameters="0" * 64),
    "stage": resealed(stage="sum"),
    "key": resealed(key="0" * 32),
    "header": resealed(about={"values": -1, "metrics": []}),
    "ciphertext": of_body(lambda body: body[:-1]),
}


def flipped(data, place):
    return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]


@pytest.mark.parametrize("code", FORGED)
def test_a_forged_frame_is_dropped_and_the_round_goes_on_without_it(code):
    f = Round(JOBS["bfv"], 4)
    f.run()  # ties nodes to identities
    before = weights(f.base)
    replies = f.replies()
    replies[0].content = with_frame(FORGED[code](replies, f))
    arrays, _ = f.finish(replies)
    assert f.codes == [code]
    assert f.told("reply-dropped")[0]["node"] == f.layer.name_of(
        replies[0].metadata.src_node_id
    )
    assert f.told("secure-sum")[1]["clients"] == 3
    mean = 0.01 * (2 + 3 + 4) / 3
    assert weights(arrays) - before == pytest.approx(mean, abs=1e-4)


def test_replayed_and_doubled_frames_are_dropped():
    f = Round(JOBS["bfv"], 4)
    old = f.replies()
    f.finish(old)
    replies = f.replies()
    f.finish([old[0], *replies[1:], replies[1]])
    assert f.codes == ["round", "duplicate"]
    assert f.told("secure-sum")[1]["clients"] == 3


def test_a_frame_under_another_key_is_dropped():
    f = Round(JOBS["bfv"], 4)
    messages = f.ask()
    # Node 0 kept the key of an earlier job.
    made = automatic.find(1)
    old = automatic.Automatic(4, JobKey.generate(made.key.parameters), made.secret)
    reply = [None] * 4
    for i, message in enumerate(messages):
        automatic._RUNS[1] = old if i == 0 else made
        [reply[i]] = f.grid.send_and_receive([message])
    f.finish(reply)
    assert f.codes == ["key"]
    assert f.told("secure-sum")[0]["clients"] == 3


def test_requests_are_typed():
    good = Request("update", 1, ("1",), "m").record()
    assert Request.of(RecordDict({SECURE: good})).cohort == ("1",)
    bad = [{"stage": "other"}, {"round": "1"}, {"cohort": [1]}, {"model": 3}]
    for change in [*bad, {"heads": ["x"]}, {"sum": "x"}, {"frames": 1}]:
        record = ConfigRecord({**good, **change})
        with pytest.raises(ProtocolError, match="request"):
            Request.of(RecordDict({SECURE: record}))
    with pytest.raises(ProtocolError, match="request"):
        Request.of(RecordDict())
