"""Rounds of a compressed federation: clients that add fixed vectors, and its events."""

from __future__ import annotations

import numpy as np
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from strategies.compression.layer import Compression
from strategies.compression.mod import compression_mod
from strategies.guard.layer import Guard
from strategies.mean.layer import WeightedMean
from tests.support.federation import config, model, reply_content, weights

SHAPES = {"w": (40, 30), "b": (16,)}
SIZE = 1216


def start_model(value=0.5):
    return model(value, SHAPES)


def target(partition):
    """Return what a client adds to the model, shape (SIZE,); long tails."""
    return np.random.default_rng(partition).standard_t(4, SIZE).astype(np.float32)


def app(mods=(compression_mod,), amount=target):
    """Clients that add a fixed vector to the model."""
    found = ClientApp(mods=list(mods))

    @found.train()
    def train(message: Message, context: Context) -> Message:
        assert set(message.content) == {"arrays", "config"}
        assert next(iter(message.content)) == "arrays"
        vector = amount(int(context.node_config["partition-id"]))
        arrays, place = {}, 0
        for name, array in message.content["arrays"].items():
            values = array.numpy()
            step = vector[place : place + values.size].reshape(values.shape)
            arrays[name] = Array((values + step).astype(np.float32))
            place += values.size
        return Message(reply_content(ArrayRecord(arrays), 10), reply_to=message)

    @found.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        value = float(weights(message.content["arrays"]).mean())
        record = MetricRecord({"loss": value, "num-examples": 10})
        return Message(RecordDict({"metrics": record}), reply_to=message)

    return found


def made(inner=None, **options):
    """Return a layer, and the list of events that it and its inner one emit."""
    layer = Compression(inner or Guard(WeightedMean()), **options)
    events = []
    for one in [layer, layer.inner]:
        one.emit = lambda kind, **data: events.append((kind, data))
    return layer, events


def round_of(layer, grid, number, arrays, change=lambda replies: replies):
    """Return the model after a round in which ``change`` is made to the replies."""
    messages = list(layer.configure_train(number, arrays, config(), grid))
    # Strategies ask in random order.
    replies = grid.send_and_receive(messages)
    replies.sort(key=lambda reply: reply.metadata.src_node_id)
    replies = change(replies)
    return layer.aggregate_train(number, replies)[0] or arrays


def codes(events):
    """Return why replies were dropped, in order."""
    return [data["code"] for kind, data in events if kind == "reply-dropped"]
