"""What the halves say to each other: read as it was written, and nothing believed."""

from __future__ import annotations

import math

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, RecordDict
from hypothesis import given
from hypothesis import strategies as st

from strategies.compression import wire
from strategies.compression.feedback import Feedback
from strategies.compression.messages import (
    FRAME,
    RECORD,
    Answer,
    Ask,
    frame_of,
    framed,
    is_framed,
)
from strategies.compression.mod import compression_mod
from strategies.stores import store_of
from strategies.update import Model
from tests.strategies.compression.updates import LARGEST
from tests.support.federation import model, reply_content
from truststram._flower import become_task, make_context
from truststram.errors import DataError, ProtocolError
from truststram.records import pack

JOB = "0" * 32
HASH = b"h" * 16
FULL = Ask(JOB, 3, "topk", 0.5, 7, True, False, b"s", HASH, True, (HASH, HASH), "w")
FULL_ANSWER = Answer(HASH, True, True, True, True, 1.5, 0.5)


@pytest.mark.parametrize("ask", [Ask(JOB, 1), FULL])
def test_an_ask_is_read_as_it_was_written(ask):
    assert Ask.of(RecordDict({RECORD: ask.record()})) == ask
    assert Ask.of(RecordDict({"config": ConfigRecord({"x": 1})})) is None


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"job": JOB},
        {"job": 1, "round": 1},
        {"job": JOB, "round": "1"},
        {"job": JOB, "round": True},
        {"job": JOB, "round": 1, "surprise": 1},
        {"job": JOB, "round": 1, "ratio": 1},
        {"job": JOB, "round": 1, "model": b"short"},
        {"job": JOB, "round": 1, "versions": [b"short"]},
        {"job": JOB, "round": 1, "versions": 5},
        {"job": JOB, "round": 1, "versions": ["text" * 4]},
    ],
)
def test_a_malformed_ask_is_an_error(values):
    with pytest.raises(ProtocolError, match="ask"):
        Ask.of(RecordDict({RECORD: ConfigRecord(values)}))


@pytest.mark.parametrize("answer", [Answer(), FULL_ANSWER])
def test_an_answer_is_read_as_it_was_written(answer):
    found = Answer.of(RecordDict({RECORD: answer.record()}))
    assert repr(found) == repr(answer)  # NaN is not equal to itself
    assert Answer.of(RecordDict()) is None


SCALARS = st.one_of(
    *(st.booleans(), st.integers(-(2**63), 2**63 - 1), st.floats()),
    *(st.text(max_size=20), st.binary(max_size=20)),
)
NAMES = st.sampled_from(
    ["held", "missing", "differs", "fresh", "damaged", "seconds", "error", "x"]
)


@given(st.dictionaries(NAMES, SCALARS | st.lists(st.floats(), max_size=3)))
def test_any_answer_can_be_read(values):
    found = Answer.of(RecordDict({RECORD: ConfigRecord(values)}))
    assert len(found.held) in (0, 16)
    for flag in (found.missing, found.differs, found.fresh, found.damaged):
        assert type(flag) is bool
    for number in (found.seconds, found.error):
        assert math.isnan(number) or 0 <= number < math.inf


def test_frames_replace_arrays_and_nothing_else():
    content = framed(reply_content(model(1.0)), b"bytes")
    assert set(content) == {FRAME, "metrics"}
    assert is_framed(content)
    assert frame_of(content[FRAME]) == b"bytes"
    assert not is_framed(reply_content(model(1.0)))
    with pytest.raises(ProtocolError, match="frame-record"):
        frame_of(ArrayRecord())


def message(ask, arrays=None, kind="train"):
    become_task(1)
    content = RecordDict({"arrays": arrays or model(0.0)})
    if ask is not None:
        content[RECORD] = ask.record() if isinstance(ask, Ask) else ask
    return Message(content, 7, kind)


def context() -> Context:
    become_task(1)
    return make_context(7, {"simulated": True, "partition-id": 0}, {})


def reply_with(value):
    def train(request, context):
        assert RECORD not in request.content
        return Message(reply_content(model(value)), reply_to=request)

    return train


@pytest.mark.parametrize("kind", ["train", "query"])
def test_a_server_that_asks_for_nothing_gets_a_stock_reply(kind):
    found = compression_mod(message(None, kind=kind), context(), reply_with(1.0))
    assert set(found.content) == {"arrays", "metrics"}


@pytest.mark.parametrize(
    "ask",
    [
        Ask(JOB, 1, codec="zip"),
        Ask(JOB, 1, codec="topk", ratio=0.0),
        Ask(JOB, 1, codec="topk", ratio=float("nan")),
        Ask(JOB, 1, codec="randk", ratio=0.5),
        Ask(JOB, 1, codec="randk", ratio=0.5, selection=b"junk"),
        Ask("../../x", 1, codec="q8"),
    ],
)
def test_a_node_refuses_the_impossible(ask):
    with pytest.raises(ProtocolError):
        compression_mod(message(ask), context(), reply_with(1.0))


def test_an_update_that_is_not_finite_stays_on_the_node():
    ask = Ask(JOB, 1, codec="topk", feedback=True)
    node = context()
    with pytest.raises(DataError, match="not finite"):
        compression_mod(message(ask), node, reply_with(float("nan")))
    found = compression_mod(message(ask), node, reply_with(1.0))
    assert is_framed(found.content)  # and did not spoil what is remembered


@pytest.mark.filterwarnings("error")
def test_a_residual_that_would_make_the_sum_overflow_is_left_out():
    node, value = context(), 0.6 * LARGEST
    found = []
    for number, update in ((1, value), (2, value), (3, 0.0)):
        ask = Ask(JOB, number, codec="topk", ratio=0.5, feedback=True)
        reply = compression_mod(message(ask), node, reply_with(update)).content
        assert is_framed(reply)
        found.append(Answer.of(reply).fresh)
    assert found == [True, True, False]  # new; too much; goes on


@pytest.mark.filterwarnings("error")
def test_an_error_beyond_float32_is_not_remembered():
    """A bit a value can be wrong by more than twice the largest value of an update."""
    start = model(0.0, {"w": (500,)})
    spec, node = Model(start).spec, context()
    rng = np.random.default_rng(1)
    update = rng.choice([1, -1], 500) * rng.uniform(0.5, 1, 500) * LARGEST

    def train(request, context):
        arrays = ArrayRecord({"w": pack(update.astype(np.float32))})
        return Message(reply_content(arrays), reply_to=request)

    ask = Ask(JOB, 1, codec="eden-1", feedback=True)
    found = compression_mod(message(ask, start), node, train).content
    frame, name = frame_of(found[FRAME]), wire.spec_hash(spec)
    sent = wire.unpack(frame, d=500, spec_hash=name, allowed=["eden-1"])
    assert np.abs(update - sent).max() > LARGEST  # in float64
    memory = Feedback(store_of(node, JOB), name, 500)
    assert not memory.residual(2).any()
    assert memory.fresh  # as the server will hear
    again = compression_mod(message(ask, start), node, reply_with(1.0)).content
    assert frame_of(again[FRAME]) == frame  # the round has its reply all the same


def test_an_update_of_zeros_can_be_sent():
    for codec in ("q8", "topk", "topk-q8", "eden-1"):
        ask = Ask(JOB, 1, codec=codec)
        found = compression_mod(message(ask), context(), reply_with(0.0))
        assert is_framed(found.content)
