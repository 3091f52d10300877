"""Which public coordinates a round sends, for the codecs that are linear.

``randk``: random ones. ``topk-shared``: half of them where the model moved most the
last time they were sent, the others at random, so that every coordinate gets its turn
(a selection made of its own results would never change).

**Privacy**: the selection is a function of the server's models x_0, ..., x_t and of a
public seed. Under differential privacy these models are released, so the selection is
post-processing; nothing that a single node sent is looked at.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from truststram.records import Float32
from truststram.rng import derive_seed

from .selection import Selection, count

__all__ = ["LINEAR", "Selector"]

# Codecs whose coordinates are public: what they send can be summed unseen.
LINEAR = ("topk-shared", "randk")


class Selector:
    """Chooses the coordinates of every round.

    Parameters
    ----------
    ratio : float
        Part of the coordinates, in (0, 1].
    by_size : bool
        Whether half of them are those that moved most.
    seed : int
        Public.
    """

    def __init__(self, ratio: float, by_size: bool, seed: int) -> None:
        self._ratio, self._by_size, self._seed = ratio, by_size, seed
        self._last: Float32 | None = None  # the model before this one
        self._moves: Float32 | None = None  # of each coordinate, when last sent

    def select(self, server_round: int, x: Float32) -> Selection:
        """Return the selection of a round that starts from the server's model x (d,).

        To be called once a round.
        """
        d, k = len(x), count(self._ratio, len(x))
        seed = derive_seed(self._seed, "selection", server_round)
        if not self._by_size:
            return Selection.random(seed, k, d)
        if self._last is None or len(self._last) != d:
            self._moves = np.zeros(d, np.float32)
        else:
            assert self._moves is not None
            moved = np.abs(x - self._last)
            np.copyto(self._moves, moved, where=moved != 0)
        self._last = np.array(x, np.float32)
        assert self._moves is not None
        large = Selection.largest(self._moves, k // 2).indices
        others = np.delete(np.arange(d), large)
        drawn = Selection.random(seed, k - len(large), len(others)).indices
        return Selection(np.sort(np.concatenate([large, others[drawn]])), d)

    def state(self) -> dict[str, Any]:
        """Return the last model and the moves."""
        return {"last": self._last, "moves": self._moves}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restore what :meth:`state` returned."""
        for name in ("last", "moves"):
            value = state[name]
            found = None if value is None else np.array(value, np.float32)
            setattr(self, f"_{name}", found)
