"""A federation around the layer: a judge inside, replies as a test wants them."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping

import numpy as np
from flwr.app import Message, RecordDict

from strategies.anomaly.layer import Anomaly
from strategies.base import StrategyLayer
from strategies.mean.layer import WeightedMean
from strategies.server_sgd import ServerSGD
from tests.support.federation import (
    adding_app,
    config,
    grid_of,
    model,
    plus,
    reply_content,
)

BASE = model(0.5)


class Judge(StrategyLayer):
    """Stands for a rule: rejects the nodes it is told to, and may need many replies."""

    reject: frozenset[str] = frozenset()
    needs = 0

    def refusal(self, replies):
        return f"needs {self.needs}, got {replies}" if replies < self.needs else None

    def aggregate_train(self, server_round, replies):
        self.seen = list(replies)
        for reply in self.seen:
            name = self.name_of(reply.metadata.src_node_id)
            if name in self.reject:
                data = {"node": name, "evidence": {"distance": 9.5, "limit": 1.5}}
                self.emit("update-rejected", round=server_round, **data)
        return self.hand_on(server_round, self.seen)


class Case:
    """Rounds of ``nodes`` nodes, named "0", "1", ...

    Parameters
    ----------
    inner : callable, optional
        Makes the strategy inside; a :class:`Judge` by default.
    """

    def __init__(
        self, nodes=10, inner: Callable | None = None, fraction=1.0, **options
    ):
        optimizer = ServerSGD(
            fraction_train=fraction, min_train_nodes=1, min_available_nodes=1
        )
        self.judge = inner() if inner else Judge(WeightedMean(optimizer))
        self.layer = Anomaly(self.judge, **options)
        self.events: list[tuple[str, dict]] = []
        layer = self.layer
        while isinstance(layer, StrategyLayer):
            layer.emit, layer.name_of = self.emit, self.name_of
            layer = layer.inner
        self.grid = grid_of(adding_app(lambda p, r: 1.0), nodes)
        self.round = 0

    @staticmethod
    def name_of(node: int) -> str:
        return str(node // 1_000_003 - 1)

    def emit(self, kind, **data):
        self.events.append((kind, data))

    def ask(self) -> dict[str, Message]:
        """Begin a round; return name -> message to that node."""
        self.round += 1
        before = random.getstate()
        random.seed(self.round)  # stock sampling
        messages = list(
            self.layer.configure_train(self.round, BASE, config(), self.grid)
        )
        random.setstate(before)
        asked = {self.name_of(m.metadata.dst_node_id): m for m in messages}
        return dict(sorted(asked.items(), key=lambda item: int(item[0])))

    def play(
        self,
        reject: str = "",
        contents: Mapping[str, RecordDict] = {},
        steps: Mapping[str, float] = {},
        losses: Mapping[str, float] = {},
    ):
        """Play a round; ``reject`` names nodes, separated by spaces."""
        if isinstance(self.judge, Judge):
            self.judge.reject = frozenset(reject.split())
        asked = self.ask()
        replies = []
        for name, message in asked.items():
            step = steps.get(name, 1 + int(name) / 100)
            metrics = {"train-loss": losses.get(name, 1.0)}
            content = contents.get(name, reply_content(plus(BASE, step), **metrics))
            replies.append(Message(content, reply_to=message))
        result = self.layer.aggregate_train(self.round, replies)
        return set(asked), result

    def told(self, kind: str) -> list[dict]:
        return [data for name, data in self.events if name == kind]

    def norms(self) -> list[float]:
        """Return the norms of the updates that the judge saw."""
        from strategies.update import read_delta

        return [
            float(np.linalg.norm(read_delta(reply.content, self.layer.model)))
            for reply in self.judge.seen
        ]
