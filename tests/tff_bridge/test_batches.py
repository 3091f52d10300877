"""The batches that ``work`` gets of a silo's arrays."""

from __future__ import annotations

import numpy as np
import pytest

from tff_bridge import batches
from tff_bridge.batches import Batches
from tff_bridge.execution import tensorflow
from tff_bridge.silo_data import Passes
from truststram.errors import RunError

# TensorFlow's own code, when functions are traced.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

MADE = Batches()


def read(variant, x, y):
    """Return the batches of a data set."""
    tf = tensorflow()
    kinds = [tf.TensorSpec((None, *v.shape[1:]), v.dtype) for v in (x, y)]
    found = tf.data.experimental.from_variant(variant, tuple(kinds))
    return [(a.numpy(), b.numpy()) for a, b in found]


def arrays(rows):
    x = np.arange(6 * rows, dtype=np.float32).reshape(rows, 2, 3)
    return x, np.arange(rows)


def check(found, x, y, passes, size):
    expected = [
        (x[rows[start : start + size]], y[rows[start : start + size]])
        for rows in passes
        for start in range(0, len(rows), size)
    ]
    assert len(found) == len(expected)
    for ours, theirs in zip(found, expected, strict=True):
        assert ours[0].dtype == np.float32
        np.testing.assert_array_equal(ours[0], theirs[0])
        np.testing.assert_array_equal(ours[1], theirs[1])


SIZES = [(1, 1, 2), (5, 2, 2), (6, 2, 3), (3, 9, 2), (33, 32, 3)]


@pytest.mark.parametrize("fits", [True, False])
@pytest.mark.parametrize(("rows", "size", "passes"), SIZES)
def test_batches_are_cut_from_each_pass(rows, size, passes, fits, monkeypatch):
    """Copied together or one pass after the other, the batches are the same."""
    monkeypatch.setattr(batches, "_fit", lambda x, y, passes: fits)
    x, y = arrays(rows)
    order = Passes(3, rows, passes)
    with MADE.of(x, y, order, size) as variant:
        found = read(variant, x, y)
    check(found, x, y, order, size)


@pytest.mark.parametrize(("rows", "size"), [(1, 1), (5, 2), (6, 2), (3, 9)])
def test_without_an_order_rows_come_as_they_are(rows, size):
    x, y = arrays(rows)
    with MADE.of(x, y, None, size) as variant:
        check(read(variant, x, y), x, y, [np.arange(rows)], size)


class Told(Passes):
    """Notes which passes are asked for."""

    def __init__(self, *arguments):
        self.asked = []
        super().__init__(*arguments)

    def __getitem__(self, i):
        self.asked.append(i)
        return super().__getitem__(i)


def test_passes_that_do_not_fit_are_drawn_when_their_turn_comes():
    rows = 1 << 20
    x, y = np.zeros((rows, 4), np.float32), np.zeros(rows, np.int64)
    order = Told(1, rows, 3)
    with MADE.of(x, y, order, rows // 2) as variant:
        assert order.asked == []
        assert len(read(variant, x, y)) == 6
    assert order.asked == [0, 1, 2]
    assert not MADE._orders, "nothing is kept of a data set that is not used any more"


@pytest.mark.parametrize(("passes", "at_once"), [(4, True), (5, False), (999, False)])
def test_many_passes_are_drawn_in_turn_however_small(passes, at_once):
    """A function of all of them would be traced for longer than silos train."""
    x, y = arrays(3)
    order = Told(1, 3, passes)
    with MADE.of(x, y, order, 2):
        assert bool(order.asked) == at_once


def test_a_data_set_may_be_read_twice(monkeypatch):
    """As mime-lite does: a gradient of all data, then training."""
    monkeypatch.setattr(batches, "_fit", lambda x, y, passes: False)
    x, y = arrays(7)
    with MADE.of(x, y, Passes(5, 7, 2), 3) as variant:
        first, second = read(variant, x, y), read(variant, x, y)
    check(first, x, y, Passes(5, 7, 2), 3)
    check(second, x, y, Passes(5, 7, 2), 3)


def test_rows_that_are_not_there_are_an_error():
    x, y = arrays(3)
    wrong = MADE.of(x, y, [np.array([0, 9])], 2)
    with pytest.raises(RunError, match="could not run work"), wrong:
        pass  # entering fails
