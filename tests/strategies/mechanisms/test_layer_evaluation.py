"""Accuracies of nodes: summed with noise, charged, and refused when they overspend."""

from __future__ import annotations

import numpy as np
import pytest
from flwr.app import Message, MetricRecord, RecordDict

from strategies.guard.layer import Guard
from tests.strategies.mechanisms.central import Federation
from tests.support.federation import config

TOLD = {
    "privacy__evaluate_epsilon": 2.0,
    "round__evaluate": "clients",
    "train__rounds": 1,
}


class TestEvaluation:
    def evaluate(self, federation, values):
        federation.ask()
        federation.release([])
        messages = list(
            federation.layer.configure_evaluate(
                1, federation.model, config(), federation.grid
            )
        )
        replies = [
            Message(
                RecordDict({"m": MetricRecord({"accuracy": v, "num-examples": 1})}),
                reply_to=m,
            )
            for v, m in zip(values, messages, strict=False)
        ]
        return federation.layer.aggregate_evaluate(1, replies)

    def test_the_mean_over_all_nodes_with_a_charge(self, monkeypatch):
        monkeypatch.setattr(
            "strategies.mechanisms.evaluation.draw",
            lambda r, u, d, s: np.zeros(d, np.int64),
        )
        federation = Federation(nodes=4, **TOLD)
        found = self.evaluate(federation, [1.0, 0.8, 7.0])  # one does not answer
        assert dict(found) == {"accuracy": pytest.approx(2.8 / 4 + 0.5 / 4)}
        assert federation.layer.ledger.releases[federation.layer.plan.evaluation] == 1
        first, second = federation.of("privacy-spent")
        assert first["epsilon"] < second["epsilon"] <= 8.0
        assert second["round"] == 1

    def test_it_has_noise_also_of_nobody(self):
        found = self.evaluate(Federation(nodes=4, **TOLD), [])
        assert found["accuracy"] != 0.5

    def test_a_second_one_would_overspend_and_is_not_released(self):
        federation = Federation(nodes=4, privacy__epsilon=2.1, **TOLD)
        assert self.evaluate(federation, [0.5]) is not None
        spent = federation.layer.ledger.spent()
        assert federation.layer.aggregate_evaluate(1, []) is None
        assert federation.layer.ledger.spent() == spent
        assert len(federation.of("privacy-exhausted")) == 1

    def test_behind_the_guard_nobody_counts_twice_and_an_empty_round_is_one(self):
        federation = Federation(nodes=4, **TOLD)
        guard = Guard(federation.layer, static=True)
        guard.emit = federation.layer.emit
        federation.layer._nodes = 0
        ask = (1, federation.model, config(), federation.grid)
        list(guard.configure_train(*ask))
        guard.aggregate_train(1, [])
        list(guard.configure_evaluate(*ask))
        assert guard.aggregate_evaluate(1, []) is not None
