"""Federations with compressed messages, through the real mod, layer and frames.

A small CNN (32,842 parameters) on Fashion-MNIST in 14 x 14 pixels, 20 clients with 300
examples each and label proportions from Dir(0.5). All federations of a seed begin with
the same model and draw the same minibatches, so their differences are the codecs'.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from flwr.app import (
    ArrayRecord,
    ConfigRecord,
    Context,
    Message,
    MetricRecord,
    RecordDict,
)
from flwr.clientapp import ClientApp

from benchmarks._robust_data import CLASSES, CLIENTS, EXAMPLES, split
from benchmarks._robust_training import Network
from truststram._flower import become_task
from truststram.engine import LocalGrid
from truststram.records import content_bytes, pack
from truststram.rng import derive
from truststram.techniques import Compression, Guard, WeightedMean, compression_mod

__all__ = ["CNN", "Cell", "Outcome", "simulate"]

CNN = Network(kernel=5, stride=1, features=32)
ALPHA, STEPS, BATCH, RATE = 0.5, 8, 32, 0.1
# Rounds whose models are tested: the mean of the last ones varies less than the last.
LAST = 5


@dataclass(frozen=True)
class Cell:
    """What is sent how: codec up with its ratio, codec down."""

    codec: str = "none"
    ratio: float = 0.1
    downlink: str = "none"

    def __str__(self) -> str:
        ratio = f" {self.ratio:g}" if "k" in self.codec else ""
        down = f" / {self.downlink}" if self.downlink != "none" else ""
        return f"{self.codec}{ratio}{down}"


@dataclass(frozen=True)
class Outcome:
    """A finished federation: accuracy in percent, bytes of all messages each way."""

    cell: Cell
    seed: int
    accuracy: float
    up: int
    down: int


def simulate(cell: Cell, seed: int, rounds: int, validation: bool) -> Outcome:
    """Train one federation.

    Parameters
    ----------
    cell : Cell
    seed : int
        Of data, model, minibatches and codecs.
    rounds : int
    validation : bool
        Test on training images that no client has, as in development.
    """
    become_task(1)
    data = split(ALPHA, seed, validation)
    guard = Guard(WeightedMean())
    strategy = Compression(
        guard,
        codec=cell.codec,
        ratio=cell.ratio,
        downlink=cell.downlink,
        seed=seed,
    )
    guard.emit = strategy.emit = _refuse_drops
    model = ArrayRecord({"w": pack(CNN.initial(derive(seed, "model")))})
    grid, up, down, found = LocalGrid(_client(seed), CLIENTS), 0, 0, []
    for number in range(1, rounds + 1):
        messages = list(strategy.configure_train(number, model, ConfigRecord(), grid))
        down += sum(content_bytes(message.content) for message in messages)
        replies = grid.send_and_receive(messages)
        # Strategies ask in random order.
        replies.sort(key=lambda reply: reply.metadata.src_node_id)
        up += sum(content_bytes(reply.content) for reply in replies)
        arrays, _ = strategy.aggregate_train(number, replies)
        assert arrays is not None
        model = arrays
        if number > rounds - LAST:
            flat = torch.from_numpy(model["w"].numpy().copy())[None]
            found += CNN.accuracy(flat, data.test_x, data.test_y)
    return Outcome(cell, seed, 100 * float(np.mean(found)), up, down)


def _refuse_drops(kind: str, **values: object) -> None:
    if kind == "reply-dropped":
        raise RuntimeError(f"a reply of an honest client was dropped: {values}")


def _client(seed: int) -> ClientApp:
    app = ClientApp(mods=[compression_mod])
    data = split(ALPHA, seed, False)
    patches = [CNN.cut(images) for images in data.x]
    one_hot = torch.nn.functional.one_hot(data.y, CLASSES).float()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        client = int(context.node_config["partition-id"])
        number = int(message.content["config"]["server-round"])  # type: ignore[arg-type]  # an int
        model = message.content["arrays"]["w"].numpy()  # type: ignore[union-attr]  # one Array
        rows = torch.stack(list(_batches(seed, client, number)))
        x, y = patches[client][rows], one_hot[client][rows][:, None]
        start = torch.from_numpy(model.copy())[None]
        change = CNN.train(start, x, y, RATE)[0].numpy()
        arrays = ArrayRecord({"w": pack(model + change)})
        metrics = MetricRecord({"num-examples": EXAMPLES})
        content = RecordDict({"arrays": arrays, "metrics": metrics})
        return Message(content, reply_to=message)

    return app


def _batches(seed: int, client: int, number: int) -> Iterator[torch.Tensor]:
    rng = derive(seed, "batches", client, number)
    for _ in range(STEPS):
        yield torch.from_numpy(rng.choice(EXAMPLES, BATCH, replace=False))
