"""Updates of a stock Flower app, many times smaller by two lines.

Run: ``python examples/compression_in_a_flower_app.py``. Stock FedAvg, stock clients:
the strategy is wrapped, the ClientApp gets a mod. What the codec leaves out of an
update is kept on the node and sent with later ones.
"""

from __future__ import annotations

import numpy as np
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from truststram.engine import run_apps
from truststram.techniques import Compression, Guard, compression_mod

SIZE, ROUNDS = 20_000, 25
TRUTH = np.random.default_rng(0).standard_t(4, SIZE).astype(np.float32)

client = ClientApp(mods=[compression_mod])


@client.train()
def train(message: Message, context: Context) -> Message:
    """Go half of the way to the truth, as every client sees it."""
    model = message.content["arrays"]["x"].numpy()
    seed = [context.node_id, int(message.content["config"]["server-round"])]
    noise = np.random.default_rng(seed).normal(0, 0.1, SIZE)
    model = (model + (TRUTH + noise - model) / 2).astype(np.float32)
    arrays = ArrayRecord({"x": Array(model)})
    numbers = MetricRecord({"num-examples": 1})
    return Message(RecordDict({"arrays": arrays, "metrics": numbers}), reply_to=message)


def example(codec: str = "topk-q8") -> tuple[float, float]:
    """Run stock FedAvg with small messages.

    Returns
    -------
    times : float
        How many times less the nodes sent.
    distance : float
        Of the model from the truth; 1 at the start.
    """
    server, told, models = ServerApp(), [], []

    def note(kind: str, **data: object) -> None:
        """Keep what the layer tells of bytes."""
        if kind == "compressed":
            told.append(data)

    @server.main()
    def main(grid: Grid, context: Context) -> None:
        strategy = Compression(Guard(FedAvg(fraction_evaluate=0)), codec=codec)
        strategy.emit = note
        start = ArrayRecord({"x": Array(np.zeros(SIZE, np.float32))})
        result = strategy.start(grid, start, num_rounds=ROUNDS)
        models.append(result.arrays["x"].numpy())

    run_apps(server, client, nodes=5)
    sent = sum(sum(data["nodes"].values()) for data in told)
    saved = sum(data["saved_up"] for data in told)
    distance = np.linalg.norm(models[0] - TRUTH) / np.linalg.norm(TRUTH)
    return (sent + saved) / sent, float(distance)


if __name__ == "__main__":
    for codec in ("none", "topk-q8", "q8"):
        times, distance = example(codec)
        print(f"{codec}: {times:.1f}x less from the nodes, distance {distance:.3f}")
