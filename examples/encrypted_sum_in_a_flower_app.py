"""Encrypted sums in an otherwise stock Flower app: FedAvg that sees no single update.

``SecureSum`` around Flower's strategy and ``secure_mod`` on the clients, both made from
the same settings, are all it takes: the server adds BFV ciphertexts, two clients
decrypt the sum, and FedAvg gets one reply, the mean. Put the same two apps into any
Flower project; here they run in one process, with keys that are made for the run. In a
deployment ``truststram keys`` makes them.
"""

from __future__ import annotations

import numpy as np
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from truststram.engine import run_apps
from truststram.job import Job
from truststram.techniques import SecureSum, secure_mod

JOB = Job.of({"secure.scheme": "bfv", "secure.max-cohort": 10})

client = ClientApp(mods=[secure_mod(JOB)])


@client.train()
def train(message: Message, context: Context) -> Message:
    step = 0.1 * (int(context.node_config["partition-id"]) + 1)
    value = message.content["arrays"]["w"].numpy() + step
    trained = ArrayRecord({"w": Array(value.astype(np.float32))})
    metrics = MetricRecord({"num-examples": 10, "loss": step})
    return Message(
        RecordDict({"arrays": trained, "metrics": metrics}), reply_to=message
    )


def server(results: list[np.ndarray]) -> ServerApp:
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        start = ArrayRecord({"w": Array(np.zeros(3, np.float32))})
        strategy = SecureSum(JOB, FedAvg(fraction_evaluate=0.0))
        result = strategy.start(grid, start, num_rounds=2)
        results.append(result.arrays["w"].numpy())

    return app


def main() -> np.ndarray:
    results: list[np.ndarray] = []
    run_apps(server(results), client, nodes=4)
    return results[0]


if __name__ == "__main__":
    print(main().round(4))  # [0.5 0.5 0.5]: twice the mean of 0.1, 0.2, 0.3, 0.4
