"""WFAgg written down literally, slowly, in float64: what the fast code must equal."""

from __future__ import annotations

import numpy as np


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))


def nnm(rows: np.ndarray, f: int) -> np.ndarray:
    """Replace every row by the mean of its K - f nearest rows, itself included."""
    k = len(rows)
    mixed = []
    for row in rows:
        distances = [np.linalg.norm(row - other) for other in rows]
        nearest = np.argsort(distances, kind="stable")[: k - f]
        mixed.append(np.mean([rows[i] for i in nearest], axis=0))
    return np.array(mixed)


def trimmed_mean(rows: np.ndarray, f: int) -> np.ndarray:
    return np.sort(rows, axis=0)[f : len(rows) - f].mean(axis=0)


def gate(values, c: float, flat: float, wider=None) -> list[bool]:
    """Pass values up to (median + c * 1.4826 * MAD) * wider; None never passes."""
    wider = np.ones(len(values)) if wider is None else wider
    known = [v for v in values if v is not None]
    if len(known) < min(3, len(values)):
        return [False] * len(values)
    middle = np.median(known)
    spread = 1.4826 * np.median([abs(v - middle) for v in known])
    limit = middle + c * max(spread, flat)
    return [
        v is not None and v <= limit * w for v, w in zip(values, wider, strict=True)
    ]


def wfagg(
    history: list[dict[str, np.ndarray]], f: int, c=3.5, h=1.0, ema=0.8
) -> tuple[np.ndarray, np.ndarray]:
    """Return (update, shares) of the last round of ``history``.

    ``history`` holds the updates of each round by client name, oldest first.
    """
    average: dict[str, np.ndarray] = {}
    weight: dict[str, float] = {}
    last: dict[str, int] = {}
    squares: dict[str, float] = {}
    previous: dict[str, np.ndarray] = {}
    for number, updates in enumerate(history):
        for name, update in updates.items():
            if name in average:
                previous[name] = average[name] / weight[name]
                gap = ema ** (number - last[name])
            else:
                previous.pop(name, None)
                gap = 0.0
                average[name], weight[name] = np.zeros_like(update), 0.0
                squares[name] = 0.0
            average[name] = gap * average[name] + (1 - ema) * update
            weight[name] = gap * weight[name] + (1 - ema)
            squares[name] = gap**2 * squares[name] + (1 - ema) ** 2
            last[name] = number
    names = list(history[-1])
    current = [history[-1][name] for name in names]
    seen = [average[name] / weight[name] for name in names]
    norms = [np.linalg.norm(e) for e in seen]
    scale = np.median(norms)
    units = np.array([scale * e / n for e, n in zip(seen, norms, strict=True)])
    centre = trimmed_mean(nnm(units, f), f)
    far = [
        np.linalg.norm(e * min(1.0, scale / n) - centre)
        for e, n in zip(seen, norms, strict=True)
    ]
    angle = [1 - cosine(e, centre) for e in seen]
    turn = [
        1 - cosine(e, previous[n]) if n in previous else None
        for e, n in zip(seen, names, strict=True)
    ]
    move = [
        float(np.linalg.norm(e - previous[n])) if n in previous else None
        for e, n in zip(seen, names, strict=True)
    ]
    variance = np.array([squares[n] / weight[n] ** 2 for n in names])
    wider = np.maximum(variance / np.median(variance), 1)
    lengths = [np.linalg.norm(u) for u in current]
    distance = [
        near and length <= 8 * np.median(lengths)
        for near, length in zip(
            gate(far, c, 1e-3 * scale, np.sqrt(wider)), lengths, strict=True
        )
    ]
    direction = gate(angle, c, 1e-6, wider)
    change = [
        a and b
        for a, b in zip(gate(turn, c, 1e-6), gate(move, c, 1e-3 * scale), strict=True)
    ]
    weights = []
    for i in range(len(names)):
        votes = (distance[i], direction[i], change[i])
        value = 0.4 * votes[0] + 0.4 * votes[1] + 0.2 * votes[2]
        agreement = (1 + cosine(seen[i], centre)) / 2
        weights.append(value * agreement**h if sum(votes) >= 2 else 0.0)
    bound = np.median([np.linalg.norm(u) for u in current])
    clipped = [u * min(1.0, bound / np.linalg.norm(u)) for u in current]
    shares = np.array(weights) / sum(weights)
    return sum(s * v for s, v in zip(shares, clipped, strict=True)), shares


def wfagg_paper(
    history: list[dict[str, np.ndarray]], f: int, window=3, beta=2.0, transient=3
) -> tuple[np.ndarray, np.ndarray]:
    """Return (aggregate, shares) of the last round; rows are what is judged."""
    rate = 2 / (window + 1)
    state: dict[str, dict] = {}
    for rows in history:
        names, values = list(rows), np.array(list(rows.values()))
        k = len(names)
        median = np.median(values, axis=0)
        far = np.argsort([np.linalg.norm(v - median) for v in values], kind="stable")
        angle = np.argsort([1 - cosine(v, median) for v in values], kind="stable")
        passes_d, passes_c = set(far[: k - f - 1]), set(angle[: k - f - 1])
        weights = []
        for i, name in enumerate(names):
            client = state.setdefault(name, {"rounds": 0})
            passes_t = False
            if "last" in client:
                before = client["last"]
                found = np.array(
                    [np.sum((values[i] - before) ** 2), 1 - cosine(values[i], before)]
                )
                mean = client.get("mean", found)
                variance = client.get("variance", np.zeros(2))
                if client["rounds"] >= transient:
                    width = beta * np.sqrt(variance)
                    passes_t = bool((np.abs(found - mean) <= width).all())
                step = found - mean
                client["mean"] = mean + rate * step
                client["variance"] = (1 - rate) * (variance + rate * step**2)
                client["rounds"] += 1
            client["last"] = values[i]
            votes = (i in passes_d, i in passes_c, passes_t)
            value = 0.4 * votes[0] + 0.4 * votes[1] + 0.2 * votes[2]
            weights.append(value if sum(votes) >= 2 else 0.0)
    total = sum(weights)
    shares = np.array(weights) / total if total else np.zeros(k)
    return shares @ values, shares
