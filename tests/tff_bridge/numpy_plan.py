"""A plan whose pieces are numpy functions: federated SGD of a linear classifier.

The manifest is a real one, the graphs are empty. The server's step is SGD with
momentum, so there is state beside the model; ``prepare`` sends the silos' learning rate
beside the model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tests.support.task import CLASSES, FEATURES, TinyTask
from tff_bridge.manifest import Leaf, Piece, Program
from tff_bridge.plan import Plan
from truststram.job import Job

SHAPES = {"weight": (CLASSES, FEATURES), "bias": (CLASSES,)}
MOMENTUM = 0.5
SPEC = {
    "task.name": "tiny",
    "train.local-epochs": 2,
    "train.batch-size": 8,
    "train.lr": 0.1,
    "train.momentum": 0.0,
    "server.optimizer": "sgd",
    "server.lr": 1.0,
    "server.momentum": MOMENTUM,
    "tff.algorithm": "fed-avg",
    "tff.weighting": "examples",
    "tff.aggregator": "mean",
}


def leaf(shape=(), dtype="float32", path="x", **more: Any) -> Leaf:
    return Leaf(path=path, tensor="t:0", dtype=dtype, shape=tuple(shape), **more)


def sent(more: Sequence[Leaf] = ()) -> list[Leaf]:
    """What ``work`` returns: metrics first, as TFF has them."""
    made = [
        leaf(role="metric", path="loss_sum"),
        leaf(role="metric", path="examples", dtype="int64"),
        *(leaf(shape, role="update") for shape in SHAPES.values()),
        leaf(role="weight"),
    ]
    return [*made, *more]


def plan_of(
    spec: Mapping[str, Any] = {},
    *,
    more: Sequence[Leaf] = (),
    leaves: list[Leaf] | None = None,
    privacy: Mapping[str, Any] | None = None,
    weights: Mapping[str, np.ndarray] | None = None,
    name: str = "train",
    prepared: list[Leaf] | None = None,
) -> Plan:
    """Return a plan; the options make it one that is refused, or a richer one."""
    parameters = [leaf(shape) for shape in SHAPES.values()]
    state = [*parameters, *parameters]
    out = sent(more) if leaves is None else leaves
    clear = [x for x in out if x.slot == "accumulate"]
    sealed = [x for x in out if x.slot != "accumulate"]
    total = [leaf(x.shape, x.dtype) for x in clear]
    down = [*parameters, leaf()] if prepared is None else prepared
    batch = (leaf((None, FEATURES)), leaf((None,), "int64"))
    data = Leaf(path="0", tensor="d:0", dtype="dataset", elements=batch)
    metrics = [leaf(path="metrics/client_work/train/loss")]
    pieces = {
        "init": ([], state),
        "prepare": (state, down),
        "work": ([data, *down], out),
        "zero": ([], total),
        "accumulate": ([*total, *clear], total),
        "merge": ([*total, *total], total),
        "report": (total, total),
        "update": ([*state, *total, *bare(sealed)], [*state, *metrics]),
    }
    program = Program(
        pieces={
            name: Piece(inputs=tuple(bare(given)), outputs=tuple(result))
            for name, (given, result) in pieces.items()
        },
        data=1,
        additive=True,
        parameters=(0, 1),
    )
    model = TinyTask().model(Job(), seed=3).state_dict()
    values = weights or {n: tensor.numpy() for n, tensor in model.items()}
    return Plan.of({**SPEC, **spec}, {"numpy": "2"}, {name: program}, values, privacy)


def bare(leaves: list[Leaf]) -> list[Leaf]:
    """Return leaves without role and slot."""
    return [Leaf(x.path, x.tensor, x.dtype, x.shape, x.elements) for x in leaves]


class NumpyCoordinator:
    """The server's pieces."""

    def __init__(self, program: object = None, lr: float = SPEC["train.lr"]) -> None:
        self.lr = np.float32(lr)

    def init(self):
        return [np.zeros(s, np.float32) for s in (*SHAPES.values(), *SHAPES.values())]

    def prepare(self, state):
        return [*state[:2], np.asarray(self.lr)]

    def report(self, sums):
        return sums

    def update(self, state, report):
        loss_sum, examples, w, b, weight = report
        mean = [-x / weight for x in (w, b)]
        velocity = [
            np.float32(MOMENTUM) * v + m for v, m in zip(state[2:], mean, strict=True)
        ]
        model = [x + v for x, v in zip(state[:2], velocity, strict=True)]
        loss = float(loss_sum / examples) if examples else 0.0  # as TFF divides
        return [*model, *velocity], {"train-loss": loss}


class NumpySilo:
    """The silo's piece: SGD on the mean cross-entropy of each batch."""

    calls = 0

    def __init__(self, program: object = None) -> None:
        pass

    def work(self, x, y, order, batch_size, prepared, seconds=None):
        type(self).calls += 1
        w, b, lr = (np.array(leaf, np.float64) for leaf in prepared)
        loss_sum = examples = 0
        for rows in order:
            for start in range(0, len(rows), batch_size):
                batch = rows[start : start + batch_size]
                scores = x[batch] @ w.T + b
                scores -= scores.max(1, keepdims=True)
                shares = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
                picked = np.arange(len(batch)), y[batch]
                loss_sum -= np.log(shares[picked]).sum()
                examples += len(batch)
                shares[picked] -= 1
                w -= lr * shares.T @ x[batch] / len(batch)
                b -= lr * shares.mean(0)
        update = [x * examples for x in (prepared[0] - w, prepared[1] - b)]
        leaves = [loss_sum, examples, *update, examples]
        kinds = ["float32", "int64", *["float32"] * 3]
        return [np.asarray(a, k) for a, k in zip(leaves, kinds, strict=True)]
