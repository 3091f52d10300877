"""WFAgg as published: three filters that each keep or drop a fixed part.

Cajaraville-Aboy et al., "Byzantine-Robust Aggregation for Securing Decentralized
Federated Learning", arXiv 2409.17754 (2024). ``theta_j`` are models, m their
coordinate-wise median, K models, f malicious ones assumed.

- D: keep the K - f - 1 models of smallest ``|theta_j - m|``.
- C: keep the K - f - 1 models of smallest ``1 - cos(theta_j, m)``.
- T: per client, ``|theta_j - theta_j before|^2`` and ``1 - cos(theta_j, theta_j
  before)`` must both lie within ``mu +- beta sigma`` of their own exponentially
  weighted mean and deviation, after a transient of three rounds.
- ``w_j = 0.4 D + 0.4 C + 0.2 T`` if at least two filters pass, else 0;
  ``theta <- (1 - alpha) theta + alpha sum w_j theta_j / sum w_j``.

Differences and reconstructions: the published text that we could read fixes D, C, the
two-filter rule, the weights and the transient; the averaging of T (window 3, beta 2)
is reconstructed and therefore an argument. In the paper every node mixes its own model;
here the server's model takes that place (alpha 1: not at all). In the transient, and
for a client without history, T gives no vote instead of a pass.

This rule never changes silently; :mod:`.wfagg` is the one we recommend.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from truststram.vectors import one_blas_thread, weighted_sum

from .clients import ClientRows
from .kernels import Doubles, Floats, Rows, blocks, middle_sorter, middle_sum
from .rule import Decision
from .steadiness import Steadiness

__all__ = ["WFAggPaper"]

FILTERS = ("distance", "cosine", "temporal")
TAU = (0.4, 0.4, 0.2)
# In place of an inner product beyond float32: such an update is far from every other.
HUGE = 1e100


class WFAggPaper:
    """The published filters on models; see the module's docstring.

    Parameters
    ----------
    f : int
        Malicious clients assumed; f + 1 rows fail D, and as many fail C, in any case.
    alpha : float
        Part of the aggregate in the new model, in (0, 1].
    window, beta, transient : int, float, int
        Filter T: averaging window, width, and rounds without a vote.
    max_bytes : int
        Bound on the memory; the clients not seen for longest are forgotten.

    Attributes
    ----------
    base : float32 array of shape (d,) or None
        The global model. Set it before a call and the rows become models, as published;
        None judges the updates themselves.
    """

    def __init__(
        self,
        f: int,
        *,
        alpha: float = 1.0,
        window: int = 3,
        beta: float = 2.0,
        transient: int = 3,
        max_bytes: int = 8 * 2**30,
    ) -> None:
        if f < 0 or not 0 < alpha <= 1:
            raise ValueError(f"Expected f={f} >= 0 and 0 < alpha={alpha} <= 1.")
        self.f, self.alpha = f, alpha
        self._steadiness = Steadiness(window, beta, transient)
        self.base: Floats | None = None
        self._clients = ClientRows(max_bytes)  # last update of each client
        self._last_base: Floats | None = None
        self._past: dict[str, dict[str, Any]] = {}

    def refusal(self, k: int) -> str | None:
        """Return why ``k`` rows are too few: D and C must keep at least one."""
        if k >= max(2 * self.f + 1, self.f + 2):
            return None
        return (
            f"wfagg-paper keeps K - f - 1 updates and needs an honest majority: got "
            f"K = {k} with f = {self.f}"
        )

    def __call__(self, rows: Rows, names: Sequence[str]) -> Decision:
        """Aggregate one round; see :class:`strategies.robust.rule.Rule`."""
        reason = self.refusal(len(rows)) if len(rows) else "no updates"
        if reason:
            raise ValueError(reason)
        with one_blas_thread(), np.errstate(over="ignore", invalid="ignore"):
            measured = self._measure(rows, names)
        k = len(rows)
        changes = np.stack([measured["change"], measured["change-cosine"]], axis=1)
        steady, judged = self._steadiness.judge(names, changes)
        passed = np.stack(
            [
                _smallest(measured["distance"], k - self.f - 1),
                _smallest(measured["cosine"], k - self.f - 1),
                steady,
            ]
        )
        always = np.ones(k, bool)
        failed = ~passed & np.stack([always, always, judged])
        weights = np.where(passed.sum(axis=0) >= 2, np.array(TAU) @ passed, 0.0)
        total = float(weights.sum())
        shares = weights / total if total > 0 else weights * 0
        update = np.empty(len(rows[0]), np.float32)
        weighted_sum(rows, list(self.alpha * shares), update)
        evidence = [
            {
                "failed": [
                    n for n, no in zip(FILTERS, failed[:, i], strict=True) if no
                ],
                **{name: _number(values[i]) for name, values in measured.items()},
            }
            for i in range(k)
        ]
        return Decision(update, shares, evidence)

    def _measure(self, rows: Rows, names: Sequence[str]) -> dict[str, Doubles]:
        """Return all statistics, (K,) each; keep the updates for the next round.

        One pass over the coordinates gathers inner products of the updates x, their
        median m, the updates before p, the global model b and its last step c.
        Distances of models are differences of updates, and ``1 - cos(u, v) =
        (|u - v|^2 - (|u| - |v|)^2) / (2 |u| |v|)``: nothing cancels.
        """
        k, d = len(rows), len(rows[0])
        slots = self._clients.enter(names, d)
        known = self._clients.seen[slots] > 0
        self._clients.seen[slots] = self._clients.now
        base, step = self._frame(d)
        xx, xm, xp, pc = (np.zeros(k) for _ in range(4))
        along = np.zeros((k, 2))  # x.b, x.c
        mm = bm = 0.0
        width = next(blocks(d, 2 * k), slice(0, 0)).stop
        low, high = (k - 1) // 2, k // 2 + 1
        sorter = middle_sorter(k, low, high, width)
        middle = np.empty(width, np.float32)
        for block in blocks(d, 2 * k):
            m = middle[: block.stop - block.start]
            x = sorter.room(len(m))  # (K, B), lost when sorted
            np.stack([row[block] for row in rows], out=x)
            xx += np.vecdot(x, x)
            p = self._clients.block(slots, block)
            if known.any():
                xp += np.vecdot(x, p)
            if base is not None and step is not None:
                along[:, 0] += x @ base[block]
                along[:, 1] += x @ step[block]
                pc += p @ step[block]
            self._clients.put(slots, block, x)
            middle_sum(sorter, m)
            m *= np.float32(1 / (high - low))
            xm += self._clients.block(slots, block) @ m
            mm += float(np.dot(m, m))
            if base is not None:
                bm += float(np.dot(base[block], m))
        products = [
            np.nan_to_num(p, nan=HUGE, posinf=HUGE, neginf=-HUGE)
            for p in (xx, xm, xp, pc, along, mm, bm)
        ]
        found = self._statistics(names, base, step, known, products)
        self._last_base = None if base is None else base.copy()
        self._past = {n: self._past[n] for n in self._clients.names}
        self._steadiness.forget_all_but(self._clients.names)
        return found

    def _frame(self, d: int) -> tuple[Floats | None, Floats | None]:
        """Return the global model and its last step (zeros at first), or None, None."""
        if self.base is None:
            return None, None
        if self._last_base is None or len(self._last_base) != d:
            return self.base, np.zeros(d, np.float32)
        return self.base, self.base - self._last_base

    def _statistics(
        self,
        names: Sequence[str],
        base: Floats | None,
        step: Floats | None,
        known: NDArray[np.bool_],
        products: Sequence[Any],
    ) -> dict[str, Doubles]:
        """Turn inner products into distances and cosine distances, (K,) each."""
        xx, xm, xp, pc, along, mm, bm = products
        bb = cc = cb = 0.0
        if base is not None and step is not None:
            bb, cc = float(np.dot(base, base)), float(np.dot(step, step))
            cb = float(np.dot(step, base))
        pp = np.array([self._past.get(n, {}).get("square", 0.0) for n in names])
        past_along = np.array([self._past.get(n, {}).get("along", 0.0) for n in names])
        square = xx - 2 * xm + mm
        size, middle = (
            bb + 2 * along[:, 0] + xx,
            bb + 2 * bm + mm,
        )  # |b + x|^2, |b + m|^2
        change = cc + xx + pp - 2 * xp + 2 * along[:, 1] - 2 * pc
        # |b + x|^2 - |b before + p|^2, b before = b - c
        grown = 2 * cb - cc + 2 * along[:, 0] + xx - 2 * past_along - pp
        for i, name in enumerate(names):
            client = self._past.setdefault(name, {})
            client |= {"square": float(xx[i]), "along": float(along[i, 0])}
        return {
            "distance": np.sqrt(np.maximum(square, 0)),
            "cosine": _angle(square, size, size - middle),
            "change": np.where(known, np.maximum(change, 0), np.nan),
            "change-cosine": np.where(known, _angle(change, size, grown), np.nan),
        }

    def state(self) -> dict[str, Any]:
        """Return the clients' last updates and averages, and the model they were to."""
        return {
            "clients": self._clients.state(),
            "steadiness": self._steadiness.state(),
            "past": {name: dict(client) for name, client in self._past.items()},
            "base": self._last_base,
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restore what :meth:`state` returned."""
        self._clients.load_state(state["clients"])
        self._past = {name: dict(client) for name, client in state["past"].items()}
        self._steadiness.load_state(state["steadiness"])
        base = state["base"]
        self._last_base = None if base is None else np.array(base, np.float32)


def _angle(square: Doubles, size: Doubles, grown: Doubles) -> Doubles:
    """Return 1 - cos of two vectors u, v; 1 if one of them is zero.

    Parameters
    ----------
    square : ``|u - v|^2``
    size : ``|u|^2``
    grown : ``|u|^2 - |v|^2``
    """
    u, v = np.sqrt(np.maximum(size, 0)), np.sqrt(np.maximum(size - grown, 0))
    product = u * v
    apart = np.divide(grown, u + v, where=u + v > 0, out=np.zeros_like(u))
    turn = np.maximum(square, 0) - apart**2
    angle: Doubles = np.ones_like(u)
    np.divide(turn, 2 * product, where=product > 0, out=angle)
    return angle


def _number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def _smallest(values: Doubles, count: int) -> NDArray[np.bool_]:
    """Return which values are among the ``count`` smallest; of equal ones the first."""
    kept = np.zeros(len(values), bool)
    kept[np.argsort(values, kind="stable")[:count]] = True
    return kept
