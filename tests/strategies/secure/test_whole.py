"""Whole numbers pass a secure sum exactly, or are refused."""

from __future__ import annotations

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, RecordDict
from hypothesis import given
from hypothesis import strategies as st

from strategies.secure.integers import (
    read_integers,
    read_sums,
    runs_of,
    with_integers,
)
from strategies.secure.masks import word
from strategies.secure.slots import Slots
from strategies.secure.whole import WholeNumbers
from strategies.server_sgd import ServerSGD
from strategies.tail_average import TailAverage
from strategies.update import INTEGERS, delta_mod
from tests.support.federation import model
from truststram.errors import ProtocolError
from truststram.records import pack

RUNS = ((2, 2), (3, 1000), (4, 2**32))
LIMITS = np.repeat([2, 1000, 2**32], [2, 3, 4])
RNG = np.random.default_rng(1)


@st.composite
def sums(draw):
    """A coder, and what so many clients as it allows at most may send."""
    limits = draw(st.lists(st.integers(1, 2**32), min_size=1, max_size=5))
    runs = tuple((draw(st.integers(1, 4)), limit) for limit in limits)
    most = draw(st.integers(1, 1000))
    clients = draw(st.integers(1, min(most, 5)))
    seed = draw(st.integers(0, 2**32))
    rng = np.random.default_rng(seed)
    each = np.repeat(limits, [count for count, _ in runs])
    values = rng.integers(0, each, (clients, len(each)))
    values[0] = each - 1  # the largest of all
    return WholeNumbers(runs, most), values


@given(sums())
def test_a_sum_of_slots_is_exact_in_its_words(found):
    coder, values = found
    slots = Slots(coder, coder.size, checked=False)
    dtype = word(coder.width)
    total = np.zeros(slots.size, dtype)
    for row in values:
        total += slots.fill(row, 1, {}, "", RNG).astype(dtype)
    read = slots.read(total, len(values), "")
    np.testing.assert_array_equal(read.values.astype(np.int64), values.sum(0))
    assert (read.clients, read.examples, read.clipped) == (len(values),) * 2 + (0,)


@given(sums())
def test_the_largest_cohort_fits_the_words(found):
    coder, _ = found
    limits = np.repeat(*zip(*[(limit, n) for n, limit in coder.runs], strict=True))
    largest = (limits.astype(object) - 1) * coder.most
    assert max(largest.max(), 1023 * coder.most) < 2**coder.width <= 2**53
    total = largest.astype(np.int64)
    np.testing.assert_array_equal(coder.decode_sum(total, coder.most), largest)


def test_every_value_is_in_its_own_range():
    coder, most = WholeNumbers(RUNS, 10), LIMITS - 1
    assert (coder.size, coder.bits, coder.width) == (9, 32, 36)
    np.testing.assert_array_equal(coder.encode(most), most)
    for i in range(coder.size):
        for wrong in (LIMITS[i], -1, np.iinfo(np.int64).min):
            values = most.copy()
            values[i] = wrong
            with pytest.raises(ValueError, match="outside"):
                coder.encode(values)


@pytest.mark.parametrize(
    "values", [np.zeros(8, int), np.zeros(10, int), np.zeros((9, 1), int), np.zeros(9)]
)
def test_another_form_is_not_encoded(values):
    with pytest.raises(ValueError, match="not 9 integers"):
        WholeNumbers(RUNS, 10).encode(values)


def test_a_sum_that_no_clients_can_make_is_refused():
    coder = WholeNumbers(RUNS, 10)
    largest = (LIMITS - 1) * 7
    coder.check_sum(largest, 7)
    for i in range(coder.size):
        total = largest.copy()
        total[i] += 1
        with pytest.raises(ProtocolError, match="sum-range"):
            coder.check_sum(total, 7)
        total[i] = -1
        with pytest.raises(ProtocolError, match="sum-range"):
            coder.decode_sum(total, 7)
    for count in (0, 11):
        with pytest.raises(ProtocolError, match="sum-range"):
            coder.check_sum(largest * 0, count)
    with pytest.raises(ProtocolError, match="sum-range"):
        coder.check_sum(largest[:-1], 7)


@pytest.mark.parametrize(
    ("runs", "most"),
    [
        ((), 10),
        (((0, 2),), 10),
        (((-1, 2),), 10),
        (((2**31, 2),), 10),
        (((2**30, 2), (2**30, 2), (1, 2)), 10),
        (((1, 0),), 10),
        (((1, 2**32 + 1),), 10),
        (((1, 2),) * (2**14 + 1), 10),
        (((1, 2),), 0),
        (((1, 2),), 2**20 + 1),
    ],
)
def test_runs_that_make_no_sense(runs, most):
    WholeNumbers(((1, 2**32), (2**30, 1)), 2**20)
    with pytest.raises(ValueError, match="Expected"):
        WholeNumbers(runs, most)


def test_both_sides_know_the_same_ranges_by_their_digest():
    assert WholeNumbers(RUNS, 10).digest == WholeNumbers(RUNS, 20).digest
    assert WholeNumbers(RUNS[:2], 10).digest != WholeNumbers(RUNS, 10).digest


def test_messages_hold_integers_and_runs():
    values = np.arange(9)
    found, coder = read_integers(with_integers(values, RUNS), 10)
    np.testing.assert_array_equal(found, values)
    assert coder == WholeNumbers(RUNS, 10)
    np.testing.assert_array_equal(read_sums(with_integers(values)), values)
    assert read_integers(RecordDict({"arrays": model()}), 10) is None


@pytest.mark.parametrize(
    "record",
    [
        ConfigRecord({"values": b"", "runs": b""}),
        ArrayRecord({"values": pack(np.zeros(3, np.int64))}),
        ArrayRecord(
            {n: pack(np.ones((1, 2), np.int64)) for n in ("values", "runs", "more")}
        ),
        {"values": np.zeros((3, 1), np.int64), "runs": np.array([[3, 2]])},
        {"values": np.zeros(3, np.float32), "runs": np.array([[3, 2]])},
        {"values": np.zeros(3, np.int64), "runs": np.array([3, 2])},
        {"values": np.zeros(3, np.int64), "runs": np.array([[3, 2, 1]])},
        {"values": np.zeros(3, np.int64), "runs": np.zeros((0, 2), np.int64)},
        {"values": np.zeros(3, np.int64), "runs": np.ones((2**14 + 1, 2), np.int64)},
        {"values": np.zeros(3, np.int64), "runs": np.array([[3, 0]])},
        {"values": np.zeros(3, np.int64), "runs": np.array([[3.0, 2.0]])},
    ],
    ids=range(11),
)
def test_records_that_hold_something_else_are_refused(record):
    if isinstance(record, dict):
        record = ArrayRecord({n: pack(v) for n, v in record.items()})
    with pytest.raises(ProtocolError):
        read_integers(RecordDict({INTEGERS: record}), 10)


@pytest.mark.parametrize("content", [RecordDict(), RecordDict({"arrays": model()})])
def test_a_content_without_sums_is_refused(content):
    with pytest.raises(ProtocolError, match="no sums"):
        read_sums(content)


def test_a_strategy_says_what_it_takes():
    class Taking(ServerSGD):
        integers = RUNS

    assert runs_of(TailAverage(Taking(), 1)) == RUNS
    assert runs_of(TailAverage(ServerSGD(), 1)) == ()


def test_integers_are_no_update_to_be_computed():
    from flwr.app import Message

    asked = Message(RecordDict({"arrays": model()}), 7, "train")
    content = with_integers(np.arange(9), RUNS)
    reply = delta_mod(asked, None, lambda m, c: Message(content, reply_to=m))
    assert list(reply.content) == [INTEGERS]
