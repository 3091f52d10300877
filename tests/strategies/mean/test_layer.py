"""The mean layer equals FedAvg, with any client, and serves any optimizer."""

from __future__ import annotations

import numpy as np
import pytest
from flwr.app import ArrayRecord, Message
from flwr.serverapp.strategy import FedAdam, FedAvg, FedAvgM, FedYogi, Krum

from strategies.update import Model, read_delta, with_delta
from tests.support.federation import (
    adding_app,
    config,
    grid_of,
    model,
    reply_content,
    weights,
)
from truststram.records import pack
from truststram.techniques import Guard, ServerSGD, StrategyLayer, WeightedMean

RNG = np.random.default_rng(3)
BASE = model(0.25)
TRAINED = [
    ArrayRecord(
        {
            k: pack(a.numpy() + RNG.normal(size=a.shape).astype("f4"))
            for k, a in BASE.items()
        }
    )
    for _ in range(6)
]
COUNTS = [3, 10, 50, 7, 7, 23]


def contents(form: str):
    stock = [reply_content(a, n) for a, n in zip(TRAINED, COUNTS, strict=True)]
    ours = [with_delta(c, read_delta(c, Model(BASE))) for c in stock]
    mixed = [
        o if i % 2 else s for i, (o, s) in enumerate(zip(ours, stock, strict=True))
    ]
    return {"stock": stock, "delta": ours, "mixed": mixed}[form]


def aggregate(strategy, found, rounds: int = 1):
    """Run rounds in which the clients always send ``found``; return the last model."""
    grid = grid_of(adding_app(lambda p, r: 0.0), len(found))
    arrays = BASE
    for number in range(1, rounds + 1):
        messages = list(strategy.configure_train(number, arrays, config(), grid))
        messages.sort(key=lambda m: m.metadata.dst_node_id)
        replies = [Message(c, reply_to=m) for c, m in zip(found, messages, strict=True)]
        arrays, metrics = strategy.aggregate_train(number, replies)
    return arrays, metrics


@pytest.mark.parametrize("form", ["stock", "delta", "mixed"])
def test_equal_to_fedavg(form):
    ours, metrics = aggregate(WeightedMean(), contents(form))
    theirs, their_metrics = aggregate(FedAvg(), contents("stock"))
    np.testing.assert_allclose(weights(ours), weights(theirs), atol=1e-6)
    assert metrics == their_metrics
    assert list(ours) == list(theirs)


def test_uniform_weights_ignore_the_number_of_examples():
    ours, _ = aggregate(WeightedMean(weighted=False), contents("delta"))
    expected = np.mean([weights(a) for a in TRAINED], axis=0)
    np.testing.assert_allclose(weights(ours), expected, atol=1e-6)


@pytest.mark.parametrize("form", ["stock", "delta"])
@pytest.mark.parametrize(
    "make",
    [
        lambda: FedAdam(eta=0.1, beta_1=0.9, beta_2=0.99),
        lambda: FedYogi(eta=0.1, beta_1=0.9, beta_2=0.99),
        lambda: FedAvgM(server_learning_rate=0.5, server_momentum=0.9),
    ],
    ids=["FedAdam", "FedYogi", "FedAvgM"],
)
def test_stock_optimizers_take_the_one_synthetic_reply(make, form):
    ours, _ = aggregate(WeightedMean(make()), contents(form))
    theirs, _ = aggregate(make(), contents("stock"))
    np.testing.assert_allclose(weights(ours), weights(theirs), rtol=1e-5, atol=1e-6)


def test_a_stock_rule_directly_inside_a_layer_sees_every_reply():
    ours, _ = aggregate(Guard(Krum(num_malicious_nodes=1)), contents("delta"))
    theirs, _ = aggregate(Krum(num_malicious_nodes=1), contents("stock"))
    np.testing.assert_allclose(weights(ours), weights(theirs), atol=1e-6)


def test_the_inner_strategy_gets_exactly_one_reply():
    seen = []

    class Spy(StrategyLayer):
        def aggregate_train(self, server_round, replies):
            replies = list(replies)
            seen.append(len(replies))
            return self.hand_on(server_round, replies)

    aggregate(WeightedMean(Spy(ServerSGD())), contents("delta"))
    aggregate(WeightedMean(Spy(FedAvg())), contents("stock"))
    assert seen == [1, 1]


def test_server_momentum_matches_its_definition():
    strategy = WeightedMean(ServerSGD(lr=0.5, momentum=0.9))
    arrays, _ = aggregate(strategy, contents("delta"), rounds=1)
    step = np.average([weights(a) for a in TRAINED], axis=0, weights=COUNTS) - weights(
        BASE
    )
    np.testing.assert_allclose(weights(arrays), weights(BASE) + 0.5 * step, atol=1e-6)
    twice, _ = aggregate(
        WeightedMean(ServerSGD(lr=0.5, momentum=0.9)), contents("delta"), rounds=2
    )
    expected = weights(BASE) + 0.5 * step + 0.5 * (0.9 * step + step)
    np.testing.assert_allclose(weights(twice), expected, atol=1e-5)


def test_server_sgd_refuses_several_replies():
    with pytest.raises(ValueError, match="takes one reply, not 6"):
        aggregate(ServerSGD(), contents("delta"))


@pytest.mark.parametrize("wrong", [{"lr": 0.0}, {"lr": -1.0}, {"momentum": 1.0}])
def test_server_sgd_checks_its_arguments(wrong):
    with pytest.raises(ValueError, match="Expected"):
        ServerSGD(**wrong)


def test_no_reply_keeps_the_model():
    strategy = WeightedMean()
    grid = grid_of(adding_app(lambda p, r: 0.0), 3)
    strategy.configure_train(1, BASE, config(), grid)
    assert strategy.aggregate_train(1, []) == (None, None)


def test_state_survives_a_round_trip():
    strategy = ServerSGD(momentum=0.9)
    aggregate(WeightedMean(strategy), contents("delta"))
    other = ServerSGD(momentum=0.9)
    other.load_state(strategy.state())
    np.testing.assert_array_equal(other._velocity, strategy._velocity)


def test_integer_arrays_survive_every_rule():
    base = ArrayRecord({**BASE, "n": pack(np.array([3]))})
    trained = [ArrayRecord({**a, "n": pack(np.array([9]))}) for a in TRAINED]
    found = [reply_content(a, 10) for a in trained]
    for strategy in (WeightedMean(), Guard(FedAvg()), WeightedMean(FedAdam())):
        grid = grid_of(adding_app(lambda p, r: 0.0), len(found))
        messages = list(strategy.configure_train(1, base, config(), grid))
        replies = [Message(c, reply_to=m) for c, m in zip(found, messages, strict=True)]
        arrays, _ = strategy.aggregate_train(1, replies)
        assert arrays["n"].numpy() == [3]
        assert arrays["n"].dtype == "int64"
