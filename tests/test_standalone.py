"""Each layer works alone in somebody else's Flower app, with stock parts around it."""

from __future__ import annotations

import numpy as np
import pytest
from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import FedAdam, FedAvg

from tests.support.federation import adding_app, model, plus, reply_content, weights
from truststram.engine import run_apps
from truststram.techniques import Anomaly, Guard, WeightedMean, WFAgg, delta_mod


def server(strategy, results, rounds):
    """A stock ServerApp as in Flower's documentation."""
    app = ServerApp()

    @app.main()
    def main(grid, context: Context) -> None:
        result = strategy.start(grid, model(0.0), num_rounds=rounds)
        results.append(weights(result.arrays))

    return app


def run(strategy, client, nodes=4, rounds=3):
    results = []
    run_apps(server(strategy, results, rounds), client, nodes=nodes)
    return results[0]


@pytest.mark.parametrize("delta", [False, True], ids=["stock client", "with delta_mod"])
@pytest.mark.parametrize(
    "make",
    [
        WeightedMean,
        lambda: Guard(FedAvg()),
        lambda: Guard(WeightedMean()),
        lambda: WeightedMean(FedAvg()),
        lambda: Anomaly(FedAvg()),
    ],
    ids=[
        "WeightedMean()",
        "Guard(FedAvg())",
        "Guard(WeightedMean())",
        "WeightedMean(FedAvg())",
        "Anomaly(FedAvg())",
    ],
)
def test_strategies_start_as_flowers_do(make, delta):
    client = adding_app(lambda p, r: p + r, delta=delta)
    expected = run(FedAvg(), adding_app(lambda p, r: p + r))
    np.testing.assert_allclose(run(make(), client), expected, rtol=1e-6)


def test_the_guard_saves_a_stock_app_from_a_nan_client():
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        bad = context.node_config["partition-id"] == 2
        arrays = plus(message.content["arrays"], float("nan") if bad else 1.0)
        return Message(reply_content(arrays), reply_to=message)

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        return Message(reply_content(model(0.0)), reply_to=message)

    assert np.isnan(run(FedAvg(), app)).any()
    np.testing.assert_allclose(run(Guard(FedAvg()), app), 3.0, rtol=1e-6)
    assert np.isfinite(run(Guard(WeightedMean(FedAdam())), app)).all()


def test_wfagg_outvotes_attackers_in_an_otherwise_stock_app():
    """Seven honest clients, two that send the opposite, stock Flower around them."""
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        partition = int(context.node_config["partition-id"])
        step = -2.0 if partition in (2, 5) else 1.0 + partition / 100
        arrays = plus(message.content["arrays"], step)
        return Message(reply_content(arrays), reply_to=message)

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        return Message(reply_content(model(0.0)), reply_to=message)

    assert run(FedAvg(), app, nodes=9).mean() < 1.2
    assert 2.9 < run(WFAgg(f=2), app, nodes=9).mean() < 3.3
    assert 2.9 < run(Guard(WFAgg(FedAvg(), f=2)), app, nodes=9).mean() < 3.3


def test_repeat_offenders_are_left_out_of_an_otherwise_stock_app():
    """Two of nine send the opposite: after seven rounds they are not asked any more."""
    app, asked = ClientApp(), []

    @app.train()
    def train(message: Message, context: Context) -> Message:
        partition = int(context.node_config["partition-id"])
        asked.append(partition)
        step = -2.0 if partition in (2, 5) else 1.0 + partition / 100
        arrays = plus(message.content["arrays"], step)
        return Message(reply_content(arrays), reply_to=message)

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        return Message(reply_content(model(0.0)), reply_to=message)

    run(Anomaly(Guard(WFAgg(f=2))), app, nodes=9, rounds=9)
    assert [asked.count(i) for i in range(9)] == [9, 9, 7, 9, 9, 7, 9, 9, 9]


def test_the_mod_goes_into_a_stock_app_per_function():
    app = ClientApp()

    @app.train(mods=[delta_mod])
    def train(message: Message, context: Context) -> Message:
        return Message(
            reply_content(plus(message.content["arrays"], 2.0)), reply_to=message
        )

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        return Message(reply_content(model(0.0)), reply_to=message)

    np.testing.assert_allclose(run(WeightedMean(), app), 6.0, rtol=1e-6)
