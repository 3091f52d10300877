"""A plan of mime-lite whose pieces are numpy functions.

As in TFF the gradient has the update's weight.
"""

from __future__ import annotations

import numpy as np

from tests.tff_bridge.numpy_plan import SHAPES, leaf, plan_of

BETA = np.float32(0.5)
LR = np.float32(0.1)
PARAMETERS = [leaf(shape) for shape in SHAPES.values()]
LEAVES = [
    *(leaf(shape, role="gradient") for shape in SHAPES.values()),
    leaf(role="weight"),
    leaf(role="metric", path="loss_sum"),
    leaf(role="metric", path="examples", dtype="int64"),
    *(leaf(shape, role="update") for shape in SHAPES.values()),
    leaf(role="weight"),
]
SPEC = {"tff.algorithm": "mime-lite"}


def mime_plan(leaves=LEAVES, **options):
    prepared = [*PARAMETERS, leaf(), *PARAMETERS]
    return plan_of(SPEC, leaves=leaves, prepared=prepared, **options)


def gradient(x, y, w, b):
    """Of the mean cross-entropy; and the sum of losses."""
    scores = x @ w.T + b
    scores -= scores.max(1, keepdims=True)
    shares = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
    picked = np.arange(len(y)), y
    loss = -np.log(shares[picked]).sum()
    shares[picked] -= 1
    return [shares.T @ x / len(y), shares.mean(0)], loss


class MimeSilo:
    def __init__(self, program: object = None) -> None:
        """Take the place of a runtime; what a program holds is written here."""

    def work(self, x, y, order, batch_size, prepared, seconds=None):
        w, b, lr, *momentum = (np.array(leaf, np.float64) for leaf in prepared)
        full, _ = gradient(x, y, w, b)
        weight, loss = 0, 0.0
        for rows in order:
            for start in range(0, len(rows), batch_size):
                batch = rows[start : start + batch_size]
                found, more = gradient(x[batch], y[batch], w, b)
                step = [g + BETA * m for g, m in zip(found, momentum, strict=True)]
                w, b = w - lr * step[0], b - lr * step[1]
                weight, loss = weight + len(batch), loss + more
        update = [(prepared[0] - w) * weight, (prepared[1] - b) * weight]
        both = [*(g * weight for g in full), weight]
        leaves = [*both, loss, weight, *update, weight]
        pairs = zip(leaves, LEAVES, strict=True)
        return [np.asarray(value, form.dtype) for value, form in pairs]


class MimeCoordinator:
    def __init__(self, program: object = None) -> None:
        self.sums: list[list[np.ndarray]] = []

    def init(self):
        return [np.zeros(s, np.float32) for s in (*SHAPES.values(), *SHAPES.values())]

    def prepare(self, state):
        return [*state[:2], np.asarray(LR), *state[2:]]

    def report(self, sums):
        return sums

    def update(self, state, report):
        self.sums.append(report)
        *full, other, loss, examples, w, b, weight = report
        momentum = [
            BETA * m + (1 - BETA) * g / other
            for m, g in zip(state[2:], full, strict=True)
        ]
        model = [x - u / weight for x, u in zip(state[:2], (w, b), strict=True)]
        return [*model, *momentum], {"train-loss": float(loss / examples)}
