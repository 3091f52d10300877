"""A silo's arrays as the data set that a plan's ``work`` takes.

Memory
------
TensorFlow keeps a copy of the arrays while the data set is used, and a second one for a
moment when it takes them; a pass in an order of its own is a copy of its rows. Passes
of up to :data:`AT_ONCE` bytes are copied all together, others one after the other, and
only then is their order drawn. So beside the data there are at most three times their
bytes, however many passes there are; 600,000 digits of 151 MiB took 467 MiB at most for
one pass and 423 MiB for 20.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import reduce
from itertools import count
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .execution import guarded, tensorflow

__all__ = ["Batches"]

# Bytes and number of passes that are copied together. Copying each when its turn comes
# costs TensorFlow as long as a small silo trains (about 10 ms). But a function of more
# passes is traced longer, in every process: 0.9 s for 4, 1.8 s for 8, on 2 cores.
AT_ONCE, PASSES = 1 << 25, 4

Array = NDArray[np.generic]
Order = Sequence[NDArray[np.int64]]


class Batches:
    """Makes data sets.

    The functions that do it are traced when they are first used: once for any number of
    rows, and of passes that are copied together once for each number of passes, of
    which a plan has one.
    """

    def __init__(self) -> None:
        self._orders: dict[int, Order | None] = {}  # of the data sets in use
        self._numbers = count()
        self._traced: dict[Callable[..., Any], Any] = {}

    @contextmanager
    def of(self, x: Array, y: Array, order: Order | None, size: int) -> Iterator[Any]:
        """Give the variant of a data set, for use inside the ``with`` block.

        Parameters
        ----------
        x, y : arrays of n rows
        order : sequence of int64 arrays of shape (n,), or None
            Of the rows in each pass; None is one pass in the order of the arrays.
        size : int
            Rows of a batch. The last one of a pass has what is left.

        Raises
        ------
        RunError
            If TensorFlow cannot do it.
        """
        number = next(self._numbers)
        self._orders[number] = order
        try:
            yield guarded("work", lambda: self._variant(x, y, number, size))
        finally:
            del self._orders[number]

    def _variant(self, x: Array, y: Array, number: int, size: int) -> Any:
        order, rows = self._orders[number], np.int64(size)
        if order is None:
            return self._made(_in_order, x, y, rows)
        if _fit(x, y, len(order)):
            return self._made(_together, x, y, tuple(order), rows)
        passes = (np.int64(number), np.int64(len(order)))
        return self._made(self._in_turn, x, y, *passes, rows)

    def _made(self, batches: Callable[..., Any], *given: Any) -> Any:
        """Return the variant of what ``batches`` makes of arrays."""
        if batches not in self._traced:
            self._traced[batches] = _traced(batches, given)
        return self._traced[batches](*given)

    def _in_turn(self, x: Any, y: Any, number: Any, passes: Any, size: Any) -> Any:
        tf = tensorflow()

        def one(i: Any) -> Any:
            rows = tf.numpy_function(self._rows, [number, i], tf.int64)
            return _one_pass(x, y, tf.ensure_shape(rows, [None]), size)

        return tf.data.Dataset.range(passes).flat_map(one)

    def _rows(self, number: int, i: int) -> NDArray[np.int64]:
        order = self._orders[int(number)]
        assert order is not None  # or the data set would not ask
        return order[int(i)]


def _fit(x: Array, y: Array, passes: int) -> bool:
    """Return whether all passes may be in memory at once."""
    small = passes * (x.nbytes + y.nbytes) <= AT_ONCE
    return passes == 1 or (passes <= PASSES and small)


def _in_order(x: Any, y: Any, size: Any) -> Any:
    return _one_pass(x, y, None, size)


def _together(x: Any, y: Any, order: tuple[Any, ...], size: Any) -> Any:
    passes = (_one_pass(x, y, rows, size) for rows in order)
    return reduce(lambda first, other: first.concatenate(other), passes)


def _traced(batches: Callable[..., Any], given: tuple[Any, ...]) -> Any:
    """Return a function that makes the variant of what ``batches`` makes.

    It is traced here, for any number of rows, and not again.
    """
    tf = tensorflow()
    # Rewriting the pipeline before each pass takes longer than small silos train.
    options = tf.data.Options()
    options.experimental_optimization.apply_default_optimizations = False
    options.autotune.enabled = False
    options.deterministic = True

    def variant(*given: Any) -> Any:
        return tf.data.experimental.to_variant(batches(*given).with_options(options))

    def any_rows(values: Any) -> Any:
        shape = (None, *values.shape[1:]) if values.shape else ()
        return tf.TensorSpec(shape, values.dtype)

    made = tf.function(variant, autograph=False, reduce_retracing=True)
    made.get_concrete_function(*tf.nest.map_structure(any_rows, given))
    return made


def _one_pass(x: Any, y: Any, rows: Any, size: Any) -> Any:
    """Return the batches of one pass, as slices of whole batches and of the rest."""
    tf = tensorflow()
    pairs = [
        _cut(values if rows is None else tf.gather(values, rows), size)
        for values in (x, y)
    ]
    whole, rest = map(tf.data.Dataset.from_tensor_slices, zip(*pairs, strict=True))
    return whole.concatenate(rest)


def _cut(values: Any, size: Any) -> tuple[Any, Any]:
    """Return (k, size, ...) whole batches, and (1, rest, ...) or (0, 0, ...)."""
    tf = tensorflow()
    shape = tf.shape(values, out_type=tf.int64)
    whole = shape[0] // size
    left = shape[0] - whole * size
    rest = tf.minimum(left, 1)
    return tuple(
        tf.reshape(part, tf.concat([[batches, rows], shape[1:]], 0))
        for part, batches, rows in (
            (values[: whole * size], whole, size),
            (values[whole * size :], rest, left),
        )
    )
