"""WFAgg, as we ship it: weighted filters around a robust centre.

Cajaraville-Aboy et al., "Byzantine-Robust Aggregation for Securing Decentralized
Federated Learning", arXiv 2409.17754 (2024): a model counts if it passes at least two
of three filters (distance, cosine, change over time), weighted 0.4, 0.4, 0.2.
``wfagg-paper`` (:mod:`.wfagg_paper`) is that. Differences here, each measured in
``benchmarks/robust_accuracy.py``:

- Updates instead of models: on models the cosine is about 1 for everybody.
- The filters look at each client's average update over the last rounds (EMA, kept by
  the server), in which the noise of single rounds is small; the current update is what
  is aggregated.
- Gates at median + c * MAD instead of "the K - f - 1 best": with no attacker nearly
  nobody is thrown away (the published rule always drops at least f + 1).
- The centre is the trimmed mean of nearest-neighbour mixed, normalised updates (NNM:
  Allouah et al., "Fixing by Mixing", AISTATS 2023) instead of the median, which fails
  when clients differ.
- The distance is that of the update shortened to the median norm: clients with more, or
  other, data send longer updates. Only :data:`LONG` times the median is far by itself.
- Updates are clipped to the median norm, and weighted by their agreement with the
  centre, ``((1 + cos) / 2) ** h``.

Mathematics (K rows, shape (d,))
--------------------------------
``E_j <- b^g E_j + (1 - b) U_j``, bias-corrected; g is the number of rounds since the
client was last seen. ``n_j = |E_j|``, ``s = median n``.
``m = CWTM_f(NNM_f(s E / n))``.
D: ``|min(1, s / n_j) E_j - m|``, and ``|U_j| <= 8 median |U|``; C: ``1 - cos(E_j, m)``;
T: ``1 - cos(E_j, E_j before)`` and ``|E_j - E_j before|``. A gate passes ``x <=
median(x) + c * 1.4826 * MAD(x)``; for D and C the bound is wider for a client with a
shorter history than the median one.
``w_j = [at least two pass] (0.4 D + 0.4 C + 0.2 T) ((1 + cos(E_j, m)) / 2)^h``.
``update = sum w_j U_j min(1, median|U| / |U_j|) / sum w_j``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from truststram.vectors import one_blas_thread, weighted_sum

from .history import History, Seen
from .kernels import Doubles, Rows, blocks, middle_sorter, middle_sum
from .preaggregators import nearest_mixing
from .rule import Decision

__all__ = ["WFAgg"]

# What is measured, and the filter that it belongs to.
FILTERS = {
    "distance": "distance",
    "norm": "distance",
    "cosine": "cosine",
    "change-cosine": "temporal",
    "change-distance": "temporal",
}
TAU = (0.4, 0.4, 0.2)
# A median absolute deviation of a normal variable times this is its standard deviation.
MAD_TO_SIGMA = 1.4826
# An update so many times as long as the median one is far, whatever its direction.
LONG = 8.0
# Spreads below these parts of the scale are rounding, not disagreement.
FLAT = {"distance": 1e-3, "cosine": 1e-6}


class WFAgg:
    """Weighted-filter aggregation; see the module's docstring.

    Parameters
    ----------
    f : int
        Largest number of malicious clients assumed.
    c : float
        Width of the gates in robust standard deviations.
    h : float
        Power of the agreement weight; 0 switches it off.
    ema : float
        Memory of a client's average update, in [0, 1); 0: only the current one.
    temporal : bool
        Whether the filter T votes. False where a row is the mean of a group of clients:
        it changes with who of them answers. A row then needs both D and C.
    max_bytes : int
        Bound on the memory for histories; the clients not seen for longest are
        forgotten first.

    Notes
    -----
    Without a history a client has no vote of T: it needs both D and C. All clients
    count the same, whatever number of examples they claim.
    """

    def __init__(
        self,
        f: int,
        *,
        c: float = 3.5,
        h: float = 1.0,
        ema: float = 0.8,
        temporal: bool = True,
        max_bytes: int = 8 * 2**30,
    ) -> None:
        if f < 0:
            raise ValueError(f"Expected f={f} >= 0.")
        if not 0 <= ema < 1:
            raise ValueError(f"Expected 0 <= ema={ema} < 1.")
        self.f, self.c, self.h, self.temporal = f, c, h, temporal
        self._history = History(ema, max_bytes)

    def refusal(self, k: int) -> str | None:
        """Return why ``k`` rows are too few: fewer than half may be malicious."""
        if k > 2 * self.f:
            return None
        return f"wfagg needs more than 2 f = {2 * self.f} updates and got {k}"

    def __call__(self, rows: Rows, names: Sequence[str]) -> Decision:
        """Aggregate one round; see :class:`strategies.robust.rule.Rule`."""
        reason = self.refusal(len(rows)) if len(rows) else "no updates"
        if reason:
            raise ValueError(reason)
        with one_blas_thread():
            return self._aggregate(rows, names)

    def _aggregate(self, rows: Rows, names: Sequence[str]) -> Decision:
        seen = self._history.update(rows, names)
        scale = float(np.median(seen.norms))
        if scale == 0:
            return _unmoved(rows, seen.norms)
        unit = np.divide(1.0, seen.norms, where=seen.norms > 0, out=seen.norms * 0)
        cosines = seen.products * np.outer(unit, unit)
        mixing = nearest_mixing(scale**2 * _square_distances(cosines, unit > 0), self.f)
        along, centre = _centre_products(
            seen, mixing * (scale * unit * seen.correction), self.f
        )
        along = along * seen.correction
        found = _statistics(seen, along, centre, unit, scale)
        if self.temporal:
            found["change-cosine"] = seen.change_cosines
            found["change-distance"] = seen.change_distances
        filters = self._filters(found, scale, seen.variance)
        keep, votes = filters.sum(axis=0) >= 2, np.array(TAU) @ filters
        agreement = (1 + along * unit / max(np.sqrt(centre), 1e-300)) / 2
        weights = keep * votes * np.clip(agreement, 0, 1) ** self.h
        decision = self._decision(rows, seen.update_norms, weights)
        return replace(decision, evidence=_evidence(found))

    def _filters(
        self, statistics: dict[str, Doubles], scale: float, variance: Doubles
    ) -> NDArray[np.bool_]:
        """Return which filters (distance, cosine, temporal) each row passes, (3, K).

        The thresholds are added to ``statistics``. A client with a shorter history has
        a noisier average: its distance may be larger by the ratio of the deviations,
        its cosine distance by that of the variances.
        """
        norms = statistics["norm"]
        statistics["norm-limit"] = np.full_like(norms, LONG * np.median(norms))
        passed = {"norm": norms <= statistics["norm-limit"]}
        noisier = np.maximum(variance / np.median(variance), 1.0)
        allowance = {"distance": np.sqrt(noisier), "cosine": noisier}
        for name in [n for n in FILTERS if n in statistics and n not in passed]:
            flat = FLAT["cosine"] if "cosine" in name else FLAT["distance"] * scale
            limit = _gate(statistics[name], self.c, flat) * allowance.get(name, 1.0)
            statistics[f"{name}-limit"] = np.broadcast_to(limit, noisier.shape)
            with np.errstate(invalid="ignore"):  # NaN is no vote
                passed[name] = statistics[name] <= limit
        temporal = np.zeros(len(norms), bool)
        if self.temporal:
            temporal = passed["change-cosine"] & passed["change-distance"]
        near = passed["distance"] & passed["norm"]
        return np.stack([near, passed["cosine"], temporal])

    def _decision(self, rows: Rows, norms: Doubles, weights: Doubles) -> Decision:
        total = float(weights.sum())
        shares = weights / total if total > 0 else weights * 0
        bound = float(np.median(norms))
        clip = np.minimum(1, np.divide(bound, norms, where=norms > 0, out=norms + 1))
        update = np.empty(len(rows[0]), np.float32)
        weighted_sum(rows, list(shares * clip), update)
        return Decision(update, shares)

    def state(self) -> dict[str, Any]:
        """Return the clients' histories."""
        return self._history.state()

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restore the clients' histories."""
        self._history.load_state(state)


def _statistics(
    seen: Seen, along: Doubles, centre: float, unit: Doubles, scale: float
) -> dict[str, Doubles]:
    """Return what the gates of D and C judge, (K,) each."""
    norms = np.minimum(seen.norms, scale)
    square = norms**2 - 2 * norms * unit * along + centre
    return {
        "norm": seen.update_norms,
        "distance": np.sqrt(np.maximum(square, 0)),
        "cosine": 1 - along * unit / max(np.sqrt(centre), 1e-300),
    }


def _evidence(statistics: dict[str, Doubles]) -> list[dict[str, Any]]:
    """Return each row's statistics and limits, and the filters that spoke against it.

    Without a past the temporal filter says nothing.
    """
    return [
        {
            "failed": sorted(
                {
                    filtered
                    for name, filtered in FILTERS.items()
                    if name in statistics
                    and statistics[name][i] > statistics[f"{name}-limit"][i]
                }
            ),
            **{name: _number(values[i]) for name, values in statistics.items()},
        }
        for i in range(len(statistics["distance"]))
    ]


def _gate(values: Doubles, c: float, flat: float) -> float:
    """Return median + c * 1.4826 * MAD of the values that are there.

    NaN (nobody passes, nobody votes) for fewer than three values: they have no spread.
    """
    known = values[~np.isnan(values)]
    if len(known) < min(3, len(values)):
        return float("nan")
    middle = float(np.median(known))
    spread = MAD_TO_SIGMA * float(np.median(np.abs(known - middle)))
    return middle + c * max(spread, flat)


def _square_distances(cosines: Doubles, nonzero: Any) -> Doubles:
    """Return |a - b|^2 of unit vectors (or zeros) from their cosines, shape (K, K)."""
    ones = nonzero.astype(float)
    square: Doubles = ones[:, None] + ones[None, :] - 2 * cosines
    np.fill_diagonal(square, 0)
    np.maximum(square, 0, out=square)
    return square


def _centre_products(seen: Seen, mixing: Doubles, f: int) -> tuple[Doubles, float]:
    """Return ``rows . m`` (K,) and ``m . m`` for the centre ``m``, which is not kept.

    ``m`` is the coordinate-wise f-trimmed mean of the rows of ``mixing @ rows``.
    """
    k = len(mixing)
    along, square = np.zeros(k), 0.0
    weights = mixing.astype(np.float32)
    width = next(blocks(seen.size, 2 * k), slice(0, 0)).stop
    sorter = middle_sorter(k, f, k - f, width)
    middle = np.empty(width, np.float32)
    for block in blocks(seen.size, 2 * k):
        part = seen.block(block)  # (K, B)
        centre = middle[: part.shape[1]]
        np.matmul(weights, part, out=sorter.room(len(centre)))
        middle_sum(sorter, centre)
        centre *= np.float32(1 / (k - 2 * f))
        along += part @ centre
        square += float(np.dot(centre, centre))
    return along, square


def _unmoved(rows: Rows, norms: Doubles) -> Decision:
    """Return a zero update: most clients did not move."""
    still = (norms == 0).astype(float)
    return Decision(np.zeros(len(rows[0]), np.float32), still / still.sum())


def _number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
