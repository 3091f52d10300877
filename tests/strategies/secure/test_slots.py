"""A client's vector: everything in it comes out of the sum, and accidents are told."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from strategies.secure.quantise import Quantiser
from strategies.secure.slots import Slots
from truststram.errors import ProtocolError

SLOTS = Slots(Quantiser(1.0, 12, 100), 40, ("acc", "loss"))
RNG = np.random.default_rng


def vectors(count, slots=SLOTS, label="round 1"):
    rng = RNG(count)
    updates = rng.uniform(-1.2, 1.2, (count, slots.values)).astype(np.float32)
    filled = [
        slots.fill(x, 10 + i, {"acc": i / 8, "loss": 2.5 * i}, label, rng)
        for i, x in enumerate(updates)
    ]
    return updates, np.array(filled)


@given(st.integers(1, 100))
def test_what_was_put_in_comes_out_of_the_sum(count):
    updates, filled = vectors(count)
    assert filled.max() <= 2 * SLOTS.quantiser.half
    found = SLOTS.read(filled.sum(0, dtype=np.int64), count, "round 1")
    kept = np.clip(updates, -1, 1).astype(np.float64)
    error = np.abs(found.values - kept.sum(0)).max()
    assert error <= count * SLOTS.quantiser.step
    assert found.clients == count
    assert found.examples == sum(10 + i for i in range(count))
    assert found.clipped == np.count_nonzero(np.abs(updates) > 1)
    mean = np.mean(range(count))
    assert found.metrics["acc"] == pytest.approx(mean / 8, abs=2e-6)
    assert found.metrics["loss"] == pytest.approx(2.5 * mean, abs=2e-6)


@given(st.integers(1, 100))
def test_what_is_told_is_sums_only(count):
    _, filled = vectors(count)
    total = filled.sum(0, dtype=np.int64)
    before = total.copy()
    told = SLOTS.told(total)
    np.testing.assert_array_equal(total, before)
    np.testing.assert_array_equal(told[:41], total[:41])
    assert not told[47:51].any()  # the checksum
    for at in (41, 44, 51, 54):  # three digits each, the last as large as it must be
        base = 1024 ** np.arange(3)
        assert told[at : at + 3] @ base == total[at : at + 3] @ base
        assert (told[at : at + 2] < 1024).all()
    plain = Slots(SLOTS.quantiser, 40, SLOTS.metrics, checked=False)
    one, other = SLOTS.read(total, count, "round 1"), plain.read(told, count, "")
    np.testing.assert_array_equal(one.values, other.values)
    assert (one.examples, one.clipped) == (other.examples, other.clipped)
    assert one.metrics == other.metrics


def test_two_sets_of_clients_with_the_same_sums_are_told_alike():
    x, rng = np.zeros((2, 40), np.float32), RNG(1)
    x[0, 3], x[1, 3] = 1, -1
    sums = []
    for pairs in ([(x[0], 1024), (x[1], 1024)], [(x[1], 2000), (x[0], 48)]):
        filled = [
            SLOTS.fill(v, n, {"acc": n / 4096, "loss": 1 - n / 4096}, "r", rng)
            for v, n in pairs
        ]
        sums.append(np.sum(filled, 0, dtype=np.int64))
    assert (sums[0] != sums[1]).any()
    np.testing.assert_array_equal(SLOTS.told(sums[0])[:47], SLOTS.told(sums[1])[:47])


@pytest.mark.parametrize(
    ("place", "change"), [(0, 1), (39, -1), (40, 1), (44, 1), (50, 1), (-1, 4000)]
)
def test_a_changed_place_is_told(place, change):
    _, filled = vectors(3)
    total = filled.sum(0, dtype=np.int64)
    SLOTS.read(total, 3, "round 1")
    total[place] += change
    # Numbers of examples and metrics have no checksum, only a range.
    if 41 <= place < 47:
        SLOTS.read(total, 3, "round 1")
        return
    with pytest.raises(ProtocolError, match=r"checksum|sum-range"):
        SLOTS.read(total, 3, "round 1")


def test_another_round_or_another_number_of_clients_is_told():
    _, filled = vectors(3)
    total = filled.sum(0, dtype=np.int64)
    for count, label, code in ((3, "round 2", "checksum"), (2, "round 1", "sum-range")):
        with pytest.raises(ProtocolError, match=code):
            SLOTS.read(total, count, label)
    with pytest.raises(ProtocolError, match="size"):
        SLOTS.read(total[:-1], 3, "round 1")


def test_large_numbers_of_examples_and_metrics_are_capped():
    x = np.zeros(40, np.float32)
    q = SLOTS.fill(x, 10**15, {"acc": -np.inf, "loss": 1e9}, "r", RNG(1))
    found = SLOTS.read(q.astype(np.int64), 1, "r")
    assert found.examples == 2**30 - 1
    assert found.metrics == {"acc": -1000.0, "loss": 1000.0}


@pytest.mark.parametrize("bad", ["update", "metric"])
def test_what_is_not_a_number_is_refused(bad):
    x = np.full(40, np.nan if bad == "update" else 0, np.float32)
    metrics = {"acc": np.nan if bad == "metric" else 0.0, "loss": 0.0}
    with pytest.raises(ValueError, match="not a number"):
        SLOTS.fill(x, 1, metrics, "r", RNG(1))


@pytest.mark.parametrize(
    "names", [("b", "a"), ("a", "a"), ("x" * 65,), tuple(f"m{i:03}" for i in range(65))]
)
def test_names_of_metrics_are_bounded_and_ordered(names):
    with pytest.raises(ValueError, match="metrics"):
        Slots(SLOTS.quantiser, 4, names)


def test_a_value_must_have_room_for_a_digit():
    with pytest.raises(ValueError, match="bits"):
        Slots(Quantiser(1.0, 10, 3), 4)
