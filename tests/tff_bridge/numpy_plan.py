"""A plan whose pieces are numpy functions: federated SGD of a linear classifier.

The manifest is a real one, the graphs are empty. The server's step is SGD with
momentum, so there is state beside the model; ``prepare`` sends the silos' learning rate
beside the model.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from server_app.checkpoint import load_model
from tests.support.task import CLASSES, FEATURES, TinyTask
from tff_bridge import agreement, execution, server
from tff_bridge.manifest import Leaf, Piece, Program
from tff_bridge.plan import Plan
from truststram.job import Job

SHAPES = {"weight": (CLASSES, FEATURES), "bias": (CLASSES,)}
SEED = 3  # of the plan's weights
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
    evaluate: Program | None = None,
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
    model = TinyTask().model(Job(), SEED).state_dict()
    values = weights or {n: tensor.numpy() for n, tensor in model.items()}
    programs = {name: program} | ({"evaluate": evaluate} if evaluate else {})
    return Plan.of({**SPEC, **spec}, {"numpy": "2"}, programs, values, privacy)


SUMS = {"loss_sum": "float32", "correct": "int64", "examples": "int64"}


def evaluation(
    sums: Mapping[str, str] = SUMS,
    *,
    down: Sequence[Leaf] | None = None,
    metrics: Sequence[str] = ("loss", "accuracy", "examples"),
    elements: int = 2,
    **more: Any,
) -> Program:
    """Return the program of an evaluation; the options make it one of another kind."""
    parameters = [leaf(shape) for shape in SHAPES.values()]
    down = parameters if down is None else down
    out = [leaf((), kind, f"0/0/{n}", role="metric") for n, kind in sums.items()]
    total, state = bare(out), [*parameters, *bare(out)]
    batch = (leaf((None, FEATURES)), leaf((None,), "int64"))[:elements]
    data = Leaf(path="0", tensor="d:0", dtype="dataset", elements=batch)
    told = [
        leaf((), "int64" if name == "examples" else "float32", f"{group}/{name}")
        for group in ("eval/current_round_metrics", "eval/total_rounds_metrics")
        for name in metrics
    ]
    pieces = {
        "init": ([], state),
        "prepare": (state, down),
        "work": ([data, *down], out),
        "zero": ([], total),
        "accumulate": ([*total, *total], total),
        "merge": ([*total, *total], total),
        "report": (total, total),
        "update": ([*state, *total], [*state, *told]),
    }
    made = {n: Piece(inputs=tuple(i), outputs=tuple(o)) for n, (i, o) in pieces.items()}
    return Program(
        **{"pieces": made, "data": 1, "additive": True, "parameters": (0, 1), **more}
    )


def bare(leaves: list[Leaf]) -> list[Leaf]:
    """Return leaves without role and slot."""
    return [Leaf(x.path, x.tensor, x.dtype, x.shape, x.elements) for x in leaves]


class NumpyCoordinator:
    """The server's pieces of a training, or of an evaluation."""

    def __init__(self, program: object = None, lr: float = SPEC["train.lr"]) -> None:
        self.lr = np.float32(lr)
        self.trains = not is_evaluation(program)

    def init(self):
        return [np.zeros(s, np.float32) for s in (*SHAPES.values(), *SHAPES.values())]

    def prepare(self, state):
        return [*state[:2], np.asarray(self.lr)] if self.trains else state[:2]

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

    def result(self, state, total):
        loss_sum, correct, examples = total
        assert [x.dtype.name for x in total] == list(SUMS.values())
        one = [loss_sum / np.float32(examples), correct / np.float32(examples)]
        wrong = np.full((), 99, np.float32)  # of all rounds: not to be told
        return [*(np.asarray(x, np.float32) for x in one), examples, wrong, wrong]


def is_evaluation(program: object) -> bool:
    return isinstance(program, Program) and len(program.sent) == len(SUMS)


class NumpySilo:
    """The silo's piece: SGD on the mean cross-entropy of each batch."""

    calls = evaluations = 0

    def __init__(self, program: object = None) -> None:
        """Take the place of a runtime; what a program holds is written here."""
        self.trains = not is_evaluation(program)

    def work(self, x, y, order, batch_size, prepared, seconds=None):
        if not self.trains:
            return self._evaluate(x, y, order, prepared)
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

    def _evaluate(self, x, y, order, prepared):
        type(self).evaluations += 1
        assert order is None, "each row once"
        w, b = (np.array(leaf, np.float64) for leaf in prepared)
        scores = x @ w.T + b
        losses = np.log(np.exp(scores).sum(1)) - scores[np.arange(len(y)), y]
        found = [losses.sum(), (scores.argmax(1) == y).sum(), len(y)]
        return [np.asarray(a, k) for a, k in zip(found, SUMS.values(), strict=True)]


class Task(TinyTask):
    """Starts from the plan's weights, whatever the run's seed."""

    def model(self, job, seed):
        return super().model(job, SEED)


def weights(folder: Path, run_id: str) -> np.ndarray:
    """Return the model of a finished run as one vector."""
    model = load_model(folder / run_id / "model.safetensors")
    assert set(model) == set(SHAPES)
    return np.concatenate([model[name].numpy().ravel() for name in SHAPES])


def numpy_pieces(
    monkeypatch: pytest.MonkeyPatch,
    silo: Callable[..., object] = NumpySilo,
    coordinator: Callable[..., object] = NumpyCoordinator,
) -> Iterator[None]:
    """Let servers and silos execute plans with these classes, not with TensorFlow."""
    monkeypatch.setattr(execution, "find_spec", lambda name: "found")
    monkeypatch.setattr(agreement, "SiloRuntime", silo)
    monkeypatch.setattr(server, "CoordinatorRuntime", coordinator)
    agreement._runtime.cache_clear()
    yield
    agreement._runtime.cache_clear()


def noted_pieces(
    monkeypatch: pytest.MonkeyPatch,
    silo: Callable[..., object],
    coordinator: Callable[..., object],
) -> Iterator[list[Any]]:
    """As :func:`numpy_pieces`; give the list of the coordinators that are made."""
    made = []

    def noting(program: object) -> object:
        made.append(coordinator(program))
        return made[-1]

    for _ in numpy_pieces(monkeypatch, silo, noting):
        yield made


def events(folder: Path, kind: str) -> list[dict[str, Any]]:
    """Return the events of one kind of the run in a folder."""
    lines = (folder / "events.jsonl").read_text().splitlines()
    return [e for e in map(json.loads, lines) if e["kind"] == kind]
