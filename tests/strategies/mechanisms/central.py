"""A federation with noise by the server, asked and answered by hand."""

from __future__ import annotations

from flwr.app import Message

from strategies.mechanisms.layer import CentralDP
from strategies.server_sgd import ServerSGD
from tests.support.federation import (
    adding_app,
    config,
    grid_of,
    model,
    plus,
    reply_content,
    weights,
)
from truststram.job import Job

D = 17
BASE = {
    "privacy.mechanism": "gaussian",
    "privacy.epsilon": 8.0,
    "privacy.insecure": True,
    "train.rounds": 2,
    "server.lr": 1.0,
}


class Federation:
    """A layer that has asked some nodes, and the replies they may give."""

    def __init__(self, nodes=10, shapes=None, **changes):
        given = {k.replace("__", ".").replace("_", "-"): v for k, v in changes.items()}
        self.job = Job.of({**BASE, **given})
        self.layer = CentralDP(self.job, ServerSGD(min_available_nodes=1))
        self.events = []
        self.layer.emit = lambda kind, **data: self.events.append((kind, data))
        self.model = model(0.5, shapes) if shapes else model(0.5)
        self.grid = grid_of(adding_app(lambda p, r: 1.0), nodes)

    def ask(self, number=1):
        self.messages = list(
            self.layer.configure_train(number, self.model, config(), self.grid)
        )
        return self.messages

    def release(self, steps, number=1):
        """Return the change of the model when node i sends ``steps[i]`` everywhere."""
        replies = [
            Message(reply_content(plus(self.model, step), 10 + i), reply_to=m)
            for i, (m, step) in enumerate(zip(self.messages, steps, strict=False))
        ]
        arrays, metrics = self.layer.aggregate_train(number, replies)
        self.metrics = metrics
        return None if arrays is None else weights(arrays) - 0.5

    def of(self, kind):
        return [data for name, data in self.events if name == kind]
