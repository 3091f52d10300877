"""A federation under secure aggregation in this process, with faults at any stage."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from types import MappingProxyType

import numpy as np
import pytest
from flwr.app import Message
from flwr.clientapp import ClientApp

from strategies.secure.graph import MALICIOUS, SEMI_HONEST
from strategies.secure.secagg_layer import SecAggSum
from strategies.secure.secagg_mod import secagg_mod
from strategies.secure.wire import FRAME, SECURE
from strategies.server_sgd import ServerSGD
from tests.support.federation import adding_app, config, model, weights
from truststram.engine import LocalGrid
from truststram.job import Job

Gone = Mapping[str, Collection[int]]
NOBODY: Gone = MappingProxyType({})
STEPS = {node: 0.01 * (node + 1) for node in range(50)}
THREATS = pytest.mark.parametrize("threat", [SEMI_HONEST, MALICIOUS])
# One step of 25 bits and the float32 of the model.
CLOSE = {"rtol": 0, "atol": 1e-6}


def job_of(**changes) -> Job:
    return Job.of({"secure.scheme": "secagg", "round.min-nodes": 3, **changes})


def stage_of(message: Message) -> str:
    return str(message.content[SECURE]["stage"])


class Federation:
    """Nodes that add ``STEPS[node]`` to every weight, a layer, and what was sent.

    ``gone`` maps a stage to the nodes whose answer to it is an error. ``ask`` may
    change the message that reaches a node, ``report`` the app's reply to it, and
    ``answer`` the frame that reaches the server.
    """

    def __init__(
        self,
        nodes: int,
        gone: Gone = MappingProxyType({}),
        inner=ServerSGD,
        clear=False,
        **changes,
    ):
        self.job, self.gone = job_of(**changes), gone
        self.sent: list[tuple[str, int, bytes]] = []
        self.events: list[tuple[str, dict]] = []
        self.ask: Callable = lambda stage, node, message: message
        self.answer: Callable = lambda stage, node, frame: frame
        self.report: Callable = lambda node, reply: reply
        self.clear = clear
        app = adding_app(lambda node, number: STEPS[node])
        self.app = ClientApp(mods=[self._mod])
        self.app.train()(lambda message, context: app(message, context))
        self.app.evaluate()(lambda message, context: app(message, context))
        self.grid = LocalGrid(self.app, nodes)
        self.layer = SecAggSum(self.job, inner())
        self.layer.emit = lambda kind, **data: self.events.append((kind, data))
        self.arrays = model(0.5)
        self.number = 0

    def _mod(self, message, context, call_next):
        if self.clear:  # as a deployment does when a SuperNode is started again
            context.state.clear()
        node = int(context.node_config["partition-id"])
        stage = stage_of(message) if SECURE in message.content else ""
        if node in self.gone.get(stage, ()):
            raise RuntimeError("this node is gone")
        message = self.ask(stage, node, message)
        reply = secagg_mod(self.job)(
            message, context, lambda m, c: self.report(node, call_next(m, c))
        )
        frame = bytes(reply.content[SECURE][FRAME])
        self.sent.append((stage, node, frame))
        reply.content[SECURE][FRAME] = self.answer(stage, node, frame)
        return reply

    @property
    def frames(self) -> dict[tuple[str, int], bytes]:
        """What was sent last, by stage and node."""
        return {(stage, node): frame for stage, node, frame in self.sent}

    def begin(self):
        self.number += 1
        return list(
            self.layer.configure_train(self.number, self.arrays, config(), self.grid)
        )

    def round(self):
        """Run one round; return the weights (None if the model is kept) and metrics."""
        replies = self.grid.send_and_receive(self.begin())
        arrays, metrics = self.layer.aggregate_train(self.number, replies)
        return (None if arrays is None else weights(arrays)), metrics

    def of(self, kind: str) -> list[dict]:
        return [data for found, data in self.events if found == kind]

    def codes(self) -> list[str]:
        return [data["code"] for data in self.of("reply-dropped")]

    def expected(self, without: Collection[int] = ()) -> float:
        nodes = range(len(self.grid.get_node_ids()))
        return 0.5 + np.mean([STEPS[i] for i in nodes if i not in without])


def federation(nodes=7, threat=SEMI_HONEST, **options):
    return Federation(nodes, **{"secure.threat": threat}, **options)
