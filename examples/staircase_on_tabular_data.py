"""Staircase noise where it wins: five hospitals that trust nobody, one release each.

Every hospital learns to tell malignant from benign tumours by 10 measurements, and
sends its 11 weights once, with noise that hides all of its patients: epsilon 8 towards
everybody, the server included. The server averages. How good the model is depends on
the noise: Gaussian noise has no answer to a single release, independent Laplace noise
grows with the number of weights, Staircase noise in a ball is the least of these.

The apps are stock Flower apps but for ``private_mod``, which adds the noise on the
node, and ``WeightedMean``, which averages what it sends. Everything is repeated for 40
divisions of the patients, because one model tells little about noise. Run it with
``python examples/staircase_on_tabular_data.py``.
"""

from __future__ import annotations

import logging
from functools import cache

import numpy as np
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from numpy.typing import NDArray
from sklearn.datasets import load_breast_cancer
from sklearn.linear_model import LogisticRegression

from truststram import Job
from truststram.engine import run_apps
from truststram.techniques import Plan, WeightedMean, private_mod

HOSPITALS, FEATURES, DIVISIONS = 5, 10, 40
MECHANISMS = ("auto", "laplace", "gaussian")
Matrix = NDArray[np.float64]


def job(mechanism: str, division: int = 0) -> Job:
    return Job.of(
        {
            "privacy.mechanism": mechanism,
            "privacy.trust": "local",  # noise is added before anything leaves a node
            "privacy.epsilon": 8.0,
            "privacy.clip": 1.0,
            "train.rounds": 1,
            # So that you see the figures that the text names. The data are public
            # here; with real patients this line would give their privacy away.
            "privacy.insecure": True,
            "run.seed": division,
        }
    )


@cache
def patients() -> tuple[Matrix, NDArray[np.int64]]:
    """Return standardised measurements and a constant 1, and who has a benign tumour.

    Mean and deviation of all patients are public here; hospitals would have to agree on
    such constants beforehand.
    """
    x, y = load_breast_cancer(return_X_y=True)
    x = x[:, :FEATURES]
    x = (x - x.mean(axis=0)) / x.std(axis=0)
    return np.column_stack([x, np.ones(len(x))]), y


@cache
def shares(division: int) -> list[NDArray[np.int64]]:
    """Return the test patients, then those of every hospital."""
    order = np.random.default_rng(division).permutation(len(patients()[1]))
    return [order[:171], *np.array_split(order[171:], HOSPITALS)]


@cache
def learned(division: int, hospital: int) -> Matrix:
    """Return a hospital's weights, of length 1: only their direction matters."""
    x, y = (part[shares(division)[1 + hospital]] for part in patients())
    model = LogisticRegression(C=0.3, solver="newton-cholesky").fit(x[:, :-1], y)
    weights = np.append(model.coef_[0], model.intercept_)
    return np.asarray(weights / np.linalg.norm(weights))


def client(mechanism: str, division: int) -> ClientApp:
    private = mechanism != "no noise"
    app = ClientApp(mods=[private_mod(job(mechanism, division))] if private else [])

    @app.train()
    def train(message: Message, context: Context) -> Message:
        hospital = int(context.node_config["partition-id"])
        weights = learned(division, hospital).astype(np.float32)
        arrays = ArrayRecord({"weights": Array(weights)})
        content = RecordDict(
            {"arrays": arrays, "metrics": MetricRecord({"num-examples": 1})}
        )
        return Message(content, reply_to=message)

    return app


def accuracy(mechanism: str, division: int) -> float:
    """Return how many of the test patients one federation gets right."""
    found: list[Matrix] = []
    server = ServerApp()

    @server.main()
    def main(grid: Grid, context: Context) -> None:
        zeros = np.zeros(FEATURES + 1, np.float32)
        start = ArrayRecord({"weights": Array(zeros)})
        strategy = WeightedMean(FedAvg(fraction_evaluate=0.0))
        result = strategy.start(grid, start, num_rounds=1)
        found.append(result.arrays["weights"].numpy())

    run_apps(server, client(mechanism, division), nodes=HOSPITALS)
    x, y = (part[shares(division)[0]] for part in patients())
    return float(np.mean((x @ found[0] > 0) == y))


def noise(mechanism: str) -> tuple[str, float]:
    """Return what a mechanism, or auto, comes to, and its noise on each weight."""
    plan = Plan.of(job(mechanism), HOSPITALS, FEATURES + 1)
    return plan.release.mechanism, plan.std


def main() -> dict[str, float]:
    return {
        name: float(np.mean([accuracy(name, d) for d in range(DIVISIONS)]))
        for name in ("no noise", *MECHANISMS)
    }


if __name__ == "__main__":
    logging.getLogger("flwr").setLevel(logging.ERROR)  # 160 runs would say the same
    print(
        f"{HOSPITALS} hospitals, {FEATURES} measurements, weights of length 1, one "
        "release each.\nEpsilon 8: whatever a hospital's patients are, nothing it "
        "sends is more than\ne^8 times as likely as with any other patients (with "
        f"Gaussian noise: almost\nnothing, delta 1e-5). Mean of {DIVISIONS} divisions "
        "of the patients.\n\nnoise             on each weight   patients right"
    )
    for name, value in main().items():
        what, std = ("none", 0.0) if name == "no noise" else noise(name)
        chosen = f"{what} (auto)" if name == "auto" else what
        print(f"{chosen:24} {std:7.2f}   {value:14.1%}")
