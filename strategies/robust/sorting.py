"""Sorting K long vectors against each other, column by column.

A sorting network (Batcher, "Sorting networks and their applications", AFIPS 1968) on
whole rows: one comparison is ``np.minimum`` and ``np.maximum`` of two rows, which are
vectorised. The network is odd-even merge sort by halves for any K, without the
comparisons that the asked-for order statistics do not depend on (1,678 instead of 9,900
row operations for the median of 100).

With many rows a block in cache is narrow, and the calls cost most. So the first stages
of a large network sort the quarters of the rows side by side, in rows four times as
long, then merge halves. Above :data:`NETWORK_ROWS` a transposed block and NumPy's sort.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from .rows import Floats, Rows

__all__ = ["Sorter"]

# Above this many rows a sort is faster than a network.
NETWORK_ROWS = 112
# From this many rows on, parts of the rows are sorted side by side.
STACKED_ROWS = 48


class Comparison(NamedTuple):
    """Two rows, and whether the smaller and the larger value are needed."""

    a: int
    b: int
    low: bool
    high: bool


class Stage(NamedTuple):
    """Comparisons in order, and where they leave the sorted rows."""

    comparisons: list[Comparison]
    order: list[int]


class Sorter:
    """Finds the sorted rows ``low`` to ``high - 1`` of block after block.

    Parameters
    ----------
    k : int
        Rows.
    low, high : int
        ``0 <= low < high <= k``.
    width : int
        Largest number of columns of a block.
    summed : bool
        Only the sum of the returned rows matters: fewer comparisons.
    """

    def __init__(
        self, k: int, low: int, high: int, width: int, *, summed: bool = False
    ) -> None:
        self.k, self.low, self.high = k, low, high
        self.width, self.summed = width, summed
        self._network = k <= NETWORK_ROWS
        self._parts = _side_by_side(k)
        slots = k // self._parts + 1  # the last one is spare
        self._work = np.empty(slots * self._parts * width, np.float32)
        self._bound: dict[int, _Program] = {}

    def fits(self, k: int, low: int, high: int, width: int) -> bool:
        """Return whether this sorter does the same for blocks of ``width`` columns."""
        same = (k, low, high) == (self.k, self.low, self.high)
        return same and width <= self.width

    def __call__(self, rows: Rows) -> list[Floats]:
        """Return rows ``low`` to ``high - 1``, valid until the next call.

        Parameters
        ----------
        rows : k arrays of shape (B,)
            Finite, ``B <= width``. Not changed.
        """
        room = self.room(len(rows[0]))
        for target, row in zip(room, rows, strict=True):
            target[:] = row
        return self.sort(room.shape[1])

    def room(self, width: int) -> Floats:
        """Return the (k, ``width``) array whose rows :meth:`sort` sorts.

        Whoever makes the rows can write them there, in any order, and save a copy.
        """
        return self._work[: self.k * width].reshape(self.k, width)

    def sort(self, width: int) -> list[Floats]:
        """Return rows ``low`` to ``high - 1`` of the sorted :meth:`room`.

        What was in the room is lost; the result is valid until it is filled again.
        """
        if not self._network:
            return self._sorted(self.room(width))
        if width not in self._bound:
            if len(self._bound) > 1:  # all blocks but the last have one width
                self._bound.clear()
            self._bound[width] = self._bind(width)
        steps, outputs = self._bound[width]
        for operation, x, y, out in steps:
            operation(x, y, out=out)
        return outputs

    def _sorted(self, rows: Floats) -> list[Floats]:
        """Do the same by a sort of every column."""
        columns = np.ascontiguousarray(rows.T)  # (B, k)
        columns.sort(axis=1)
        middle = columns[:, self.low : self.high]
        if self.summed:
            return [middle.sum(axis=1, dtype=np.float32)]
        return list(np.ascontiguousarray(middle.T))

    def _bind(self, width: int) -> _Program:
        """Return the network as calls on pieces of the work space."""
        parts = self._parts
        size = parts * width
        slots = self._work[: (self.k // parts + 1) * size].reshape(-1, size)
        *places, spare = list(slots)
        steps: list[_Step] = []
        stages = _stages(self.k, self.low, self.high, self.summed, parts)
        for number, stage in enumerate(stages):
            if number:  # what was side by side now meets
                half = len(spare) // 2
                places = [p[:half] for p in places] + [p[half:] for p in places]
                spare = spare[:half]
            for a, b, low, high in stage.comparisons:
                x, y = places[a], places[b]
                if low and high:
                    steps += [(np.minimum, x, y, spare), (np.maximum, x, y, y)]
                    places[a], spare = spare, x
                elif low:
                    steps.append((np.minimum, x, y, x))
                else:
                    steps.append((np.maximum, x, y, y))
            places = [places[i] for i in stage.order]
        return steps, places[self.low : self.high]


_Step = tuple[np.ufunc, Floats, Floats, Floats]
_Program = tuple[list[_Step], list[Floats]]


def _side_by_side(k: int) -> int:
    """Return into how many equal parts ``k`` rows are cut at first."""
    if k < STACKED_ROWS or k > NETWORK_ROWS:
        return 1
    return 4 if k % 4 == 0 else 2 if k % 2 == 0 else 1


@lru_cache(maxsize=64)
def _stages(k: int, low: int, high: int, summed: bool, parts: int) -> list[Stage]:
    """Return the network: one part sorted, then equal parts merged two by two.

    Backwards from the outputs, a comparison is dropped if neither result is used, or if
    both are used only in the sum (the sum of both does not change).
    """
    size = k // parts
    networks = [_sort(range(size))]
    while size < k:
        networks.append(_merge(list(range(size)), list(range(size, 2 * size))))
        size *= 2
    middle = set(range(low, high))
    exact, added = (set[int](), middle) if summed else (middle, set[int]())
    stages = []
    for pairs, order in reversed(networks):
        stage, exact, added = _pruned(
            pairs, order, {order[i] for i in exact}, {order[i] for i in added}
        )
        stages.append(stage)
        half = len(order) // 2  # row i + half was the second part of row i
        used = {row % half for row in exact | added} if half else set()
        added = {row for row in range(half) if {row, row + half} <= added}
        exact = used - added
    return stages[::-1]


def _pruned(
    pairs: list[tuple[int, int]], order: list[int], exact: set[int], added: set[int]
) -> tuple[Stage, set[int], set[int]]:
    """Return the needed comparisons, and which rows these need."""
    kept = []
    for a, b in reversed(pairs):
        low, high = (row in exact or row in added for row in (a, b))
        if not (low or high) or (a in added and b in added):
            continue
        kept.append(Comparison(a, b, low, high))
        exact, added = exact | {a, b}, added - {a, b}
    return Stage(kept[::-1], order), exact, added


_Network = tuple[list[tuple[int, int]], list[int]]


def _sort(rows: Iterable[int]) -> _Network:
    """Return the comparisons that sort ``rows``, and the rows in sorted order."""
    rows = list(rows)
    if len(rows) < 2:
        return [], rows
    half = len(rows) // 2
    first, left = _sort(rows[:half])
    second, right = _sort(rows[half:])
    merging, order = _merge(left, right)
    return first + second + merging, order


def _merge(left: list[int], right: list[int]) -> _Network:
    """Return the same for two sorted lists: Batcher's odd-even merge."""
    if not left or not right:
        return [], left + right
    if len(left) == len(right) == 1:
        return [(left[0], right[0])], left + right
    first, even = _merge(left[::2], right[::2])
    second, odd = _merge(left[1::2], right[1::2])
    last = list(zip(odd, even[1:], strict=False))
    rest = odd[len(last) :] + even[1 + len(last) :]
    order = [even[0], *(row for pair in last for row in pair), *rest]
    return first + second + last, order
