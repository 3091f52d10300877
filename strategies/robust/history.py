"""Each client's average update over the last rounds, and how much it changed.

Exponential moving averages with bias correction: ``E <- b^g E + (1 - b) U``, ``g`` the
rounds since the client was last seen, divided by the sum of the weights. What is stored
is ``S = E / scale``: then ``S <- S + (1 - b) / scale U`` touches the old values once.
One pass over the coordinates updates all averages and gathers every inner product that
the filters need, over blocks that are added in float64.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .clients import ClientRows
from .kernels import Doubles, Floats, Rows, blocks

__all__ = ["History", "Seen"]

# A longer piece of an update enters the history as one of this length: float32 squares
# end at 1e38, and whoever sends it is as far away from the others as can be.
LONGEST = 1e15
# Scales below this are multiplied into the stored row.
SMALLEST_SCALE = 1e-3
# An average that would count less than this is dropped: it may be no float32 any more.
NOTHING = 1e-20


@dataclass(frozen=True)
class Seen:
    """A cohort as its averages, (K, ``size``).

    Columns ``b`` of average i are ``block(b)[i] * correction[i]``.

    ``norms`` (K,), ``products`` (K, K) and the changes (K,) are of the averages;
    ``update_norms`` (K,) of the updates of this round. A change is NaN without a past.
    ``variance`` (K,) is that of an average whose updates have variance 1: 1 for a
    client seen once, about (1 - b) / (1 + b) for one that is always there.
    """

    size: int
    block: Callable[[slice], Floats]
    correction: Doubles
    norms: Doubles
    products: Doubles
    update_norms: Doubles
    change_cosines: Doubles
    change_distances: Doubles
    variance: Doubles


class History:
    """Exponential moving averages of updates, one row a client.

    Parameters
    ----------
    ema : float
        Weight of the past, in [0, 1); 0: the update of the round before is the past.
    max_bytes : int
        Bound on the memory.
    """

    def __init__(self, ema: float, max_bytes: int) -> None:
        self.ema = ema
        self._clients = ClientRows(max_bytes)
        self._scale: Doubles = np.zeros(0)  # E = scale * the stored row, by slot
        self._weight: Doubles = np.zeros(0)  # sum of the averaging weights, by slot
        self._square: Doubles = np.zeros(0)  # squared norm of E, by slot
        self._noise: Doubles = np.zeros(0)  # sum of the squared weights, by slot

    def update(self, rows: Rows, names: Sequence[str]) -> Seen:
        """Take in one round and return the cohort's averages and how they changed.

        Raises
        ------
        ValueError
            If names repeat or the cohort does not fit into memory.
        """
        clients = self._clients
        slots = clients.enter(names, len(rows[0]))
        for name in ("_scale", "_weight", "_square", "_noise"):
            setattr(self, name, _resized(getattr(self, name), len(clients.matrix)))
        known = clients.seen[slots] > 0
        gap = clients.now - clients.seen[slots]
        before = np.where(known, self._weight[slots], 0.0)
        keep = np.where(known, self.ema**gap, 0.0)
        keep[keep < NOTHING] = 0.0
        new = 1 - self.ema
        after = keep * before + new
        sizes, uu, ue, products = self._absorb(rows, slots, known, keep, new)
        ee = np.where(known, self._square[slots], 0.0)
        square = np.diag(products)
        self._weight[slots], self._square[slots] = after, square
        noise = keep**2 * np.where(known, self._noise[slots], 0.0) + new**2
        self._noise[slots] = noise
        clients.seen[slots] = clients.now
        cosines, distances = _changes(uu, ue, ee, keep, new, before, after)
        return Seen(
            size=len(rows[0]),
            block=partial(clients.block, slots),
            correction=self._scale[slots] / after,
            norms=np.sqrt(square) / after,
            products=products / np.outer(after, after),
            update_norms=np.sqrt(sizes),
            change_cosines=cosines,
            change_distances=distances,
            variance=noise / after**2,
        )

    def _absorb(
        self,
        rows: Rows,
        slots: Sequence[int],
        known: NDArray[np.bool_],
        keep: Doubles,
        new: float,
    ) -> tuple[Doubles, Doubles, Doubles, Doubles]:
        """Update the averages in one pass: ``E <- keep E + new U``.

        Returns U.U as sent and as taken in (K,), U.E with the averages before (K,), and
        the inner products between the new ones (K, K).
        """
        k, clients = len(rows), self._clients
        old, scale = self._rescaled(slots, keep)
        self._scale[slots] = scale
        factors = (new / scale).astype(np.float32)
        sizes, uu, ue, products = *np.zeros((3, k)), np.zeros((k, k))
        width = next(blocks(len(rows[0]), 2 * k), slice(0, 0)).stop
        room = np.empty((k, width), np.float32)  # new memory a block costs a pass
        for block in blocks(len(rows[0]), 2 * k):
            u = room[:, : block.stop - block.start]
            with np.errstate(over="ignore"):
                for scaled, row, factor in zip(u, rows, factors, strict=True):
                    np.multiply(row[block], factor, out=scaled)
            whole, taken = _shortened(u, [row[block] for row in rows], factors)
            sizes += whole
            uu += taken
            s = clients.block(slots, block)
            if known.any():
                ue += np.vecdot(u, s)
            if not keep.all():  # nothing of these is kept
                s[keep == 0] = 0
            s += u
            clients.put(slots, block, s)
            products += s @ s.T
        ue = np.where(known, ue * old / factors, 0.0)
        back = 1.0 / np.square(factors, dtype=np.float64)
        return sizes * back, uu * back, ue, products * np.outer(scale, scale)

    def _rescaled(self, slots: Sequence[int], keep: Doubles) -> tuple[Doubles, Doubles]:
        """Return the scales to read the stored rows by, and those to write by, (K,)."""
        old = self._scale[slots]
        scale = np.where(keep > 0, keep * old, 1.0)
        for i in np.flatnonzero(scale < SMALLEST_SCALE).tolist():
            self._clients.matrix[slots[i]] *= np.float32(scale[i])
            old[i], scale[i] = old[i] / scale[i], 1.0
        return old, scale

    def state(self) -> dict[str, Any]:
        """Return everything, for the round record."""
        return {
            "clients": self._clients.state(),
            "scale": self._scale,
            "weight": self._weight,
            "square": self._square,
            "noise": self._noise,
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restore what :meth:`state` returned."""
        self._clients.load_state(state["clients"])
        self._scale = np.array(state["scale"], np.float64)
        self._weight = np.array(state["weight"], np.float64)
        self._square = np.array(state["square"], np.float64)
        self._noise = np.array(state["noise"], np.float64)


def _shortened(u: Floats, rows: Rows, factors: Floats) -> tuple[Doubles, Doubles]:
    """Cut ``u = factors * rows`` to LONGEST; return squared lengths before and after.

    Both (K,).
    """
    with np.errstate(over="ignore", invalid="ignore"):
        whole: Doubles = np.vecdot(u, u).astype(np.float64)
    taken = np.minimum(whole, LONGEST**2)
    for i in np.flatnonzero(~(whole <= LONGEST**2)).tolist():
        exact = factors[i] * rows[i].astype(np.float64)
        whole[i], taken[i] = np.vecdot(exact, exact), LONGEST**2
        u[i] = exact * (LONGEST / np.sqrt(whole[i]))
    return whole, taken


def _resized(values: Doubles, size: int) -> Doubles:
    """Return ``values`` cut or filled with zeros to ``size``."""
    return np.append(values[:size], np.zeros(max(0, size - len(values))))


def _changes(
    uu: Doubles,
    ue: Doubles,
    ee: Doubles,
    keep: Doubles,
    new: float,
    before: Doubles,
    after: Doubles,
) -> tuple[Doubles, Doubles]:
    """Return cosine distance and distance between averages now and before, (K,) each.

    All from inner products: with ``E' = keep E + new U``, ``E'.E = keep E.E + new U.E``
    and so on.
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        now = keep**2 * ee + 2 * keep * new * ue + new**2 * uu
        cross = keep * ee + new * ue
        cosines = 1 - cross / np.sqrt(now * ee)
        square = now / after**2 - 2 * cross / (after * before) + ee / before**2
    known = (before > 0) & (ee > 0) & (now > 0)
    distances = np.sqrt(np.maximum(square, 0))
    return np.where(known, cosines, np.nan), np.where(known, distances, np.nan)
