"""WFAgg instead of FedAvg in an otherwise stock Flower app.

Ten clients learn to read handwritten digits; two of them send the opposite of what
they learned, four times over. ``FedAvg()`` learns nothing, ``WFAgg(f=2)`` hardly
notices. The strategy is the only difference: the clients know nothing of it, the
messages are Flower's own. Put the same two apps into any Flower project; here they run
in one process. Run it with ``python examples/wfagg_in_a_flower_app.py``.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg, Strategy
from numpy.typing import NDArray
from sklearn.datasets import load_digits

from truststram.engine import run_apps
from truststram.techniques import WFAgg

NODES, ROUNDS, ATTACKERS = 10, 15, (3, 7)
PIXELS, CLASSES = 64, 10
Matrix = NDArray[np.float64]
Split = tuple[Matrix, NDArray[np.int64]]


@cache
def data(partition: int) -> tuple[Split, Split]:
    """Return a node's images for training and, one of five, for testing."""
    x, y = load_digits(return_X_y=True)
    order = np.random.default_rng(1).permutation(len(y))[partition::NODES]
    x, y = x[order] / 16, y[order]
    tested = np.arange(len(y)) % 5 == 0
    return (x[~tested], y[~tested]), (x[tested], y[tested])


def trained(weights: Matrix, x: Matrix, y: NDArray[np.int64]) -> Matrix:
    """Return the weights of a softmax regression after five passes over the data."""
    for _ in range(5):
        for i in range(0, len(y), 16):
            scores = x[i : i + 16] @ weights
            odds = np.exp(scores - scores.max(axis=1, keepdims=True))
            odds /= odds.sum(axis=1, keepdims=True)
            odds -= np.eye(CLASSES)[y[i : i + 16]]
            weights = weights - 0.1 * x[i : i + 16].T @ odds / len(odds)
    return weights


def clients(attackers: tuple[int, ...]) -> ClientApp:
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        partition = int(context.node_config["partition-id"])
        start = message.content["arrays"]["weights"].numpy()
        (x, y), _ = data(partition)
        step = trained(start, x, y) - start
        if partition in attackers:
            step *= -4
        arrays = ArrayRecord({"weights": Array((start + step).astype(np.float32))})
        metrics = MetricRecord({"num-examples": len(y)})
        content = RecordDict({"arrays": arrays, "metrics": metrics})
        return Message(content, reply_to=message)

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        weights = message.content["arrays"]["weights"].numpy()
        _, (x, y) = data(int(context.node_config["partition-id"]))
        right = float(np.mean((x @ weights).argmax(axis=1) == y))
        metrics = MetricRecord({"accuracy": right, "num-examples": len(y)})
        return Message(RecordDict({"metrics": metrics}), reply_to=message)

    return app


def accuracy(strategy: Strategy, attackers: tuple[int, ...]) -> float:
    """Return the last round's accuracy over the test images of all nodes."""
    found: list[float] = []
    server = ServerApp()

    @server.main()
    def main(grid: Grid, context: Context) -> None:
        start = ArrayRecord({"weights": Array(np.zeros((PIXELS, CLASSES), np.float32))})
        result = strategy.start(grid, start, num_rounds=ROUNDS)
        metrics = result.evaluate_metrics_clientapp[ROUNDS]
        found.append(float(metrics["accuracy"]))

    run_apps(server, clients(attackers), nodes=NODES)
    return found[0]


def main() -> dict[str, float]:
    return {
        "FedAvg, no attack": accuracy(FedAvg(), ()),
        "FedAvg": accuracy(FedAvg(), ATTACKERS),
        "WFAgg": accuracy(WFAgg(f=2), ATTACKERS),
    }


if __name__ == "__main__":
    for name, value in main().items():
        print(f"{name:18} {value:6.1%}")
