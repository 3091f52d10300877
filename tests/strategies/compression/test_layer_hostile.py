"""What cannot be decoded is dropped with its code and counted; the others count."""

from __future__ import annotations

import numpy as np
import pytest
from flwr.app import (
    Array,
    ArrayRecord,
    ConfigRecord,
    Context,
    Error,
    Message,
    RecordDict,
)
from flwr.clientapp import ClientApp

from strategies.anomaly.layer import Anomaly
from strategies.compression import wire
from strategies.compression.codecs import make_codec
from strategies.compression.messages import FRAME, RECORD, framed, wrapped
from strategies.compression.mod import compression_mod
from strategies.guard.layer import Guard
from strategies.mean.layer import WeightedMean
from strategies.update import Model, read_delta
from tests.adversaries.replies import HOSTILE
from tests.strategies.compression.rounds import (
    app,
    codes,
    made,
    round_of,
    start_model,
    target,
)
from tests.support.federation import (
    config,
    grid_of,
    model,
    plus,
    reply_content,
    weights,
)


def frame(values, codec="topk-q8", arrays=None):
    spec = Model(arrays or start_model()).spec
    values = np.full(spec.size, values, np.float32)
    rng = np.random.default_rng(0)
    name = wire.spec_hash(spec)
    return wire.pack(make_codec(codec, 0.1), values, spec_hash=name, rng=rng)


def with_frame(data, stype="truststram.frame", key=FRAME):
    array = Array("uint8", (len(data),), stype, data)
    return lambda content: RecordDict(
        {FRAME: ArrayRecord({key: array}), "metrics": content["metrics"]}
    )


def flipped(place):
    data = bytearray(frame(1.0))
    data[place] ^= 1
    return bytes(data)


HOSTILE_FRAMES = {
    "empty": (with_frame(b""), "frame-size"),
    "garbage": (with_frame(b"\x01" * 500), "frame-format"),
    "truncated": (with_frame(frame(1.0)[:-1]), "frame-size"),
    "extended": (with_frame(frame(1.0) + b"\0"), "frame-size"),
    "bit flip": (with_frame(flipped(-3)), "frame-checksum"),
    "another codec": (with_frame(frame(1.0, "q8")), "frame-codec"),
    "another model": (with_frame(frame(1.0, arrays=model(0.0))), "frame-model"),
    "numpy array": (with_frame(frame(1.0), stype="numpy.ndarray"), "frame-record"),
    "another key": (with_frame(frame(1.0), key="x"), "frame-record"),
    "64 MB of nothing": (with_frame(bytes(64 * 2**20)), "frame-format"),
}


@pytest.mark.parametrize("name", HOSTILE_FRAMES)
def test_a_hostile_frame_is_dropped_and_the_others_count(name):
    change, code = HOSTILE_FRAMES[name]
    layer, events = made(codec="topk-q8", ratio=1.0)

    def attack(replies):
        replies[1].content = change(replies[1].content)
        return replies

    base = start_model()
    arrays = round_of(layer, grid_of(app(), 3), 1, base, attack)
    assert codes(events) == [code]
    mean = np.mean([target(p) for p in (0, 2)], axis=0)
    moved = weights(arrays) - weights(base)
    assert np.linalg.norm(moved - mean) < 0.3 * np.linalg.norm(mean)


@pytest.mark.parametrize(
    "record",
    [
        {"seconds": -1.0, "error": float("nan"), "held": b"x"},
        {"seconds": "text", "missing": 1, "fresh": [1, 2], "error": 1e308},
        {"held": [b"a", b"b"], "surprise": b"\0" * 100},
    ],
)
def test_hostile_answers_change_nothing(record):
    expected = None
    for hostile in (False, True):
        layer, events = made(codec="topk-q8", downlink="q8")

        def change(replies, hostile=hostile):
            if hostile:
                replies[0].content[RECORD] = ConfigRecord(record)
            return replies

        grid = grid_of(app(), 3)
        arrays = round_of(layer, grid, 1, start_model(), change)
        arrays = round_of(layer, grid, 2, arrays)
        assert codes(events) == []
        expected = weights(arrays) if expected is None else expected
        np.testing.assert_array_equal(weights(arrays), expected)


@pytest.mark.parametrize("twice", [False, True])
def test_only_the_first_reply_of_a_node_that_was_asked_is_decoded(twice):
    layer, events = made(codec="q8")

    def change(replies):
        return [*replies, replies[0]] if twice else replies

    round_of(layer, grid_of(app(), 3), 1, start_model(), change)
    assert codes(events) == (["unknown-node"] if twice else [])


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_plain_replies_are_the_guards_business(name):
    change, code = HOSTILE[name]
    layer, events = made(codec="q8")
    base = model(0.5)
    grid = grid_of(small_app(), 4)
    messages = list(layer.configure_train(1, base, config(), grid))
    replies = grid.send_and_receive(messages)
    replies[3].content = change(reply_content(plus(base, 1.0)))
    arrays, _ = layer.aggregate_train(1, replies)
    assert codes(events) == [code]
    np.testing.assert_allclose(weights(arrays), 1.5, rtol=0.02)


def small_app():
    found = ClientApp(mods=[compression_mod])

    @found.train()
    def train(message: Message, context: Context) -> Message:
        arrays = plus(message.content["arrays"], 1.0)
        return Message(reply_content(arrays), reply_to=message)

    return found


def test_bad_frames_are_evidence_for_the_anomaly_layer():
    layer, events = made(Anomaly(Guard(WeightedMean()), quarantine=9), codec="topk-q8")

    grid, arrays = grid_of(app(), 6), start_model()
    node = grid.get_node_ids()[1]

    def attack(replies):
        for reply in replies:
            if reply.metadata.src_node_id == node:
                reply.content = with_frame(b"junk")(reply.content)
        return replies

    for number in range(1, 13):
        arrays = round_of(layer, grid, number, arrays, attack)
    guilty = layer.name_of(node)
    told = [data for kind, data in events if kind == "incident"]
    assert guilty in {data["node"] for data in told}
    [first, *_] = [data for data in told if data["node"] == guilty]
    assert first["evidence"]["guard"]["code"] == "frame-size"
    left_out = [data["node"] for kind, data in events if kind == "node-quarantined"]
    assert left_out == [guilty]


def test_a_fault_is_no_evidence():
    layer, events = made(Anomaly(Guard(WeightedMean())), codec="q8", downlink="q8")

    def crash(replies):
        node = replies[0]
        lost = RecordDict({RECORD: ConfigRecord({"missing": True})})
        replies[0] = Message(lost, metadata=node.metadata)
        return [*replies[:2], *replies[2:]]

    round_of(layer, grid_of(app(), 6), 1, start_model(), crash)
    assert codes(events) == ["model-missing"]
    assert [kind for kind, _ in events if kind == "incident"] == []


def test_error_replies_go_on_to_the_guard():
    layer, events = made(codec="q8")

    def fail(replies):
        metadata = replies[0].metadata
        replies[0] = Message(Error(2, "crash"), metadata=metadata)
        return replies

    round_of(layer, grid_of(app(), 3), 1, start_model(), fail)
    assert codes(events) == ["client-error"]


def test_frames_are_read_from_frames_only():
    content = reply_content(start_model())
    assert list(framed(content, b"x")[FRAME]) == [FRAME]
    assert wrapped(b"abc").data == b"abc"
    delta = read_delta(content, Model(start_model()))
    assert not delta.any()
