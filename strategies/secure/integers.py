"""How a client's whole numbers, and their sums, stand in messages.

Message format
--------------
What a client's app replies to a train message, and what a secure sum hands on to the
strategy inside it, in the place of an update: an ArrayRecord ``"integers"``
(:data:`strategies.update.INTEGERS`) with

``values``  int64, shape (n,): a client's, or the exact sums
``runs``    int64, shape (r, 2), from a client only: see :mod:`.whole`

The innermost strategy says which runs it takes by an attribute ``integers``. Between
client and server the values travel masked, as :mod:`.secagg_wire` says.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from flwr.app import ArrayRecord, RecordDict
from flwr.serverapp.strategy import Strategy
from numpy.typing import NDArray

from truststram.errors import ProtocolError
from truststram.records import pack, view

from ..base import walk
from ..update import INTEGERS
from .whole import MAX_RUNS, Runs, WholeNumbers

__all__ = ["Int64", "read_integers", "read_sums", "runs_of", "with_integers"]

Int64 = NDArray[np.int64]
VALUES, RUNS = "values", "runs"


def runs_of(strategy: Strategy) -> Runs:
    """Return the runs that a strategy, or one inside it, takes; empty for none."""
    found = (getattr(one, "integers", ()) for one in walk(strategy))
    return next((tuple(runs) for runs in found if runs), ())


def with_integers(values: Int64, runs: Iterable[tuple[int, int]] = ()) -> RecordDict:
    """Return the content of a reply: integers, and (from a client) their runs.

    Parameters
    ----------
    values : int64 array of shape (n,)
    runs : iterable of (int, int)
        Empty for sums.
    """
    record = ArrayRecord({VALUES: pack(np.ascontiguousarray(values, np.int64))})
    if pairs := list(runs):
        record[RUNS] = pack(np.array(pairs, np.int64))
    return RecordDict({INTEGERS: record})


def read_integers(content: RecordDict, most: int) -> tuple[Int64, WholeNumbers] | None:
    """Return a client's integers and their coder; None for a reply without.

    Parameters
    ----------
    content : RecordDict
        Of a reply of the app on the same node.
    most : int
        Largest number of clients in a sum.

    Raises
    ------
    ProtocolError
        For a record that holds something else.
    """
    record = content.get(INTEGERS)
    if record is None:
        return None
    if not isinstance(record, ArrayRecord) or set(record) != {VALUES, RUNS}:
        raise ProtocolError("array-keys", f"integers have {VALUES} and {RUNS}")
    shape = tuple(record[RUNS].shape)
    if len(shape) != 2 or not 1 <= shape[0] <= MAX_RUNS:
        raise ProtocolError("shape", "runs of integers are pairs of numbers")
    pairs = view(record[RUNS], "int64", (shape[0], 2)).tolist()
    try:
        coder = WholeNumbers(tuple((count, limit) for count, limit in pairs), most)
    except ValueError:
        raise ProtocolError("runs", "the runs of integers make no sense") from None
    return _values(record), coder


def read_sums(content: RecordDict) -> Int64:
    """Return the sums that a secure sum handed on, shape (n,).

    Raises
    ------
    ProtocolError
        For a content without them.
    """
    record = content.get(INTEGERS)
    if not isinstance(record, ArrayRecord) or VALUES not in record:
        raise ProtocolError("array-keys", "no sums of integers")
    return _values(record)


def _values(record: ArrayRecord) -> Int64:
    array = record[VALUES]
    if len(array.shape) != 1:
        raise ProtocolError("shape", "integers are one vector")
    values: Int64 = view(array, "int64", tuple(array.shape)).view(np.int64)
    return values
