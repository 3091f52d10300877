"""A float32 row per client, kept by the server between rounds, in bounded memory.

One matrix holds the rows, so that a whole cohort is read without copies. Clients are
known by their stable names; when memory runs out, the ones not seen for longest are
forgotten and start anew when they return.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .kernels import Floats

__all__ = ["ClientRows"]


class ClientRows:
    """Rows of length d by client name.

    Parameters
    ----------
    max_bytes : int
        Bound on the matrix.

    Attributes
    ----------
    matrix : float32 array of shape (slots, d)
    seen : int64 array of shape (slots,)
        Round in which the row was last used; 0: never, the row means nothing.
    now : int
        Current round, counted by :meth:`enter`.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.now = 0
        self.matrix: Floats = np.zeros((0, 0), np.float32)
        self.seen: NDArray[np.int64] = np.zeros(0, np.int64)
        self._slots: dict[str, int] = {}

    def enter(self, names: Sequence[str], d: int) -> list[int]:
        """Begin a round: return the slot of each name, making room for new ones.

        Raises
        ------
        ValueError
            If names repeat or the cohort does not fit into ``max_bytes``.
        """
        if len(set(names)) != len(names):
            raise ValueError("every row needs a name of its own")
        if self.matrix.shape[1] != d:
            self._forget_all(d)
        room = max(1, self.max_bytes // (4 * d)) if d else len(names)
        if len(names) > room:
            raise ValueError(
                f"the histories of {len(names)} clients take {4 * d * len(names)} "
                f"bytes, more than max_bytes = {self.max_bytes}"
            )
        self.now += 1
        new = [name for name in names if name not in self._slots]
        free = self._drop_oldest(len(self._slots) + len(new) - room, set(names))
        free += self._grown(len(new) - len(free))
        for name, slot in zip(new, free, strict=True):
            self._slots[name] = slot
            self.seen[slot] = 0
        return [self._slots[name] for name in names]

    @property
    def names(self) -> Collection[str]:
        """The clients that have a row."""
        return self._slots.keys()

    def block(self, slots: Sequence[int], block: slice) -> Floats:
        """Return (K, B) values of a block; a view if the slots are all, in order."""
        if self._is_all(slots):
            return self.matrix[:, block]
        return self.matrix[slots, block]

    def put(self, slots: Sequence[int], block: slice, values: Floats) -> None:
        """Store (K, B) values of a block; nothing to do for one from :meth:`block`."""
        if values.base is self.matrix:
            return  # a view of the block, changed in place
        if self._is_all(slots):
            self.matrix[:, block] = values  # faster than by index
        else:
            self.matrix[slots, block] = values

    def _is_all(self, slots: Sequence[int]) -> bool:
        return list(slots) == list(range(len(self.matrix)))

    def _drop_oldest(self, count: int, needed: set[str]) -> list[int]:
        """Forget ``count`` clients that are not needed; return their slots."""
        if count <= 0:
            return []
        idle = [name for name in self._slots if name not in needed]
        idle.sort(key=lambda name: int(self.seen[self._slots[name]]))
        return [self._slots.pop(name) for name in idle[:count]]

    def _grown(self, count: int) -> list[int]:
        """Add rows and return their slots."""
        first = len(self.matrix)
        if count > 0:
            rows = np.zeros((count, self.matrix.shape[1]), np.float32)
            self.matrix = np.concatenate([self.matrix, rows])
            self.seen = np.append(self.seen, np.zeros(count, np.int64))
        return list(range(first, len(self.matrix)))

    def _forget_all(self, d: int) -> None:
        self.matrix = np.zeros((0, d), np.float32)
        self.seen = np.zeros(0, np.int64)
        self._slots.clear()

    def state(self) -> dict[str, Any]:
        """Return everything, for the round record."""
        return {
            "matrix": self.matrix,
            "seen": self.seen,
            "slots": dict(self._slots),
            "now": self.now,
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restore what :meth:`state` returned."""
        self.matrix = np.array(state["matrix"], np.float32)
        self.seen = np.array(state["seen"], np.int64)
        self._slots = {name: int(slot) for name, slot in state["slots"].items()}
        self.now = int(state["now"])
