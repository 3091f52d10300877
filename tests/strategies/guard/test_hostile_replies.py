"""No reply stops a run or moves the model outside the honest replies' hull."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from flwr.app import Error, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import (
    Bulyan,
    FedAdagrad,
    FedAdam,
    FedAvg,
    FedAvgM,
    FedMedian,
    FedTrimmedAvg,
    FedYogi,
    Krum,
    MultiKrum,
    QFedAvg,
)

from tests.adversaries.replies import HOSTILE, PICKLE
from tests.support.federation import (
    adding_app,
    config,
    grid_of,
    model,
    plus,
    reply_content,
    weights,
)
from truststram.errors import ProtocolError
from truststram.techniques import Guard, WeightedMean

NODES, BAD = 10, 7
STRATEGIES = {
    "mean": lambda: WeightedMean(),
    "uniform mean": lambda: WeightedMean(weighted=False),
    "mean into FedAdam": lambda: WeightedMean(FedAdam(eta=0.5)),
    "FedAvg": FedAvg,
    "FedAvgM": lambda: FedAvgM(server_momentum=0.5),
    "FedAdam": lambda: FedAdam(eta=0.5),
    "FedYogi": lambda: FedYogi(eta=0.5),
    "FedAdagrad": lambda: FedAdagrad(eta=0.5),
    "FedMedian": FedMedian,
    "FedTrimmedAvg": FedTrimmedAvg,
    "Krum": lambda: Krum(num_malicious_nodes=1),
    "MultiKrum": lambda: MultiKrum(num_malicious_nodes=1, num_nodes_to_select=5),
    "Bulyan": lambda: Bulyan(num_malicious_nodes=1),
    "QFedAvg": lambda: QFedAvg(client_learning_rate=0.1, train_loss_key="train-loss"),
}


@pytest.fixture(autouse=True)
def _no_forced_collection(monkeypatch):
    """QFedAvg collects garbage after every reply: seconds in a process like this."""
    monkeypatch.setattr("flwr.app.message.arrayrecord.gc.collect", lambda: 0)


class Round:
    """One round with honest replies near +1 and a place for a hostile one."""

    def __init__(self, strategy, nodes=NODES, number=1):
        self.events = []
        self.strategy = Guard(strategy)
        self.strategy.emit = lambda kind, **data: self.events.append((kind, data))
        self.grid = grid_of(adding_app(lambda p, r: 1.0), nodes)
        self.model = model(0.5)
        self.number = number
        self.messages = list(
            self.strategy.configure_train(number, self.model, config(), self.grid)
        )
        self.honest = [
            reply_content(plus(self.model, 1 + i / 100), 10 + i) for i in range(nodes)
        ]

    def replies(self, bad=None, at=BAD):
        contents = [
            c if i != at or bad is None else bad for i, c in enumerate(self.honest)
        ]
        return [
            Message(c, reply_to=m) for c, m in zip(contents, self.messages, strict=True)
        ]

    def aggregate(self, replies):
        return self.strategy.aggregate_train(self.number, replies)

    @property
    def codes(self):
        return [data["code"] for kind, data in self.events if kind == "reply-dropped"]


@pytest.mark.parametrize("case", HOSTILE)
@pytest.mark.parametrize("name", STRATEGIES)
def test_hostile_reply_is_dropped_and_has_no_influence(name, case):
    make, code = HOSTILE[case]
    attacked = Round(STRATEGIES[name]())
    arrays, _ = attacked.aggregate(attacked.replies(make(attacked.honest[BAD])))
    assert attacked.codes == [code]

    # The same federation in which the hostile node had reported an error.
    without = Round(STRATEGIES[name]())
    replies = without.replies()
    replies[BAD] = Message(Error(2, "lost"), reply_to=without.messages[BAD])
    expected, _ = without.aggregate(replies)
    assert without.codes == ["client-error"]
    assert list(arrays) == list(expected) == list(attacked.model)
    np.testing.assert_array_equal(weights(arrays), weights(expected))
    assert all(a.dtype == "float32" for a in arrays.values())


@pytest.mark.parametrize("name", STRATEGIES)
def test_honest_replies_all_pass_and_change_the_model(name):
    honest = Round(STRATEGIES[name]())
    arrays, metrics = honest.aggregate(honest.replies())
    assert honest.events == []
    assert weights(arrays).min() > 0.5
    assert metrics is not None


def test_pickle_is_never_loaded():
    assert b"unpickled-by-truststram-test" in PICKLE
    assert not Path("/tmp/unpickled-by-truststram-test").exists()


def test_second_reply_of_a_node_is_dropped():
    case = Round(FedAvg())
    replies = case.replies()
    twice = Message(reply_content(plus(case.model, 9.0)), reply_to=case.messages[2])
    arrays, _ = case.aggregate([*replies, twice])
    assert case.codes == ["duplicate"]
    assert weights(arrays).max() < 2


def test_reply_of_a_node_that_was_not_asked_is_dropped():
    case = Round(FedAvg())
    others = Round(FedAvg(), nodes=11).messages
    asked = {m.metadata.dst_node_id for m in case.messages}
    [stranger] = [m for m in others if m.metadata.dst_node_id not in asked]
    reply = Message(reply_content(plus(case.model, 1.0)), reply_to=stranger)
    case.aggregate([*case.replies(), reply])
    assert case.codes == ["unknown-node"]


def test_reply_to_another_round_is_dropped():
    case, old = Round(FedAvg(), number=2), Round(FedAvg(), number=1)
    replies = case.replies()
    replies[3] = Message(old.honest[3], reply_to=old.messages[3])
    case.aggregate(replies)
    assert case.codes == ["stale-round"]


def test_all_replies_bad_keeps_the_model():
    case = Round(FedAvg())
    make, code = HOSTILE["nan"]
    replies = [
        Message(make(c), reply_to=m)
        for c, m in zip(case.honest, case.messages, strict=True)
    ]
    assert case.aggregate(replies) == (None, None)
    assert case.codes == [code] * NODES
    assert case.strategy.aggregate_train(1, []) == (None, None)


@pytest.mark.parametrize("bad", [-1, 0, 10**18, float("nan"), [1, 2], None])
def test_hostile_evaluate_reply_is_dropped(bad):
    case = Round(FedAvg())
    messages = list(
        case.strategy.configure_evaluate(1, case.model, config(), case.grid)
    )
    contents = [
        RecordDict({"metrics": MetricRecord({"loss": 1.0, "num-examples": 10})})
        for _ in messages
    ]
    hostile = MetricRecord({"loss": 99.0})
    if bad is not None:
        hostile["num-examples"] = bad
    contents[4] = RecordDict({"metrics": hostile})
    replies = [Message(c, reply_to=m) for c, m in zip(contents, messages, strict=True)]
    metrics = case.strategy.aggregate_evaluate(1, replies)
    assert case.codes == ["num-examples"]
    assert metrics["loss"] == pytest.approx(1.0)


def test_claimed_examples_count_at_most_ten_times_the_median():
    case = Round(FedAvg())
    greedy = reply_content(plus(case.model, 3.0), 10**8)
    arrays, _ = case.aggregate(case.replies(greedy))
    [(kind, data)] = case.events
    assert (kind, data["found"]) == ("reply-capped", 10**8)
    assert data["used"] == 145  # ten times the median of 10..19
    shares = np.array([10 + i for i in range(NODES)], float)
    shares[BAD] = 145
    steps = np.array([1 + i / 100 for i in range(NODES)])
    steps[BAD] = 3.0
    expected = 0.5 + np.average(steps, weights=shares)
    np.testing.assert_allclose(weights(arrays), expected, rtol=1e-6)


def test_a_static_guard_judges_every_reply_by_itself():
    """Under differential privacy no client may decide what becomes of another."""
    case = Round(FedAvg())
    case.strategy = guard = Guard(FedAvg(), static=True)
    guard.emit = lambda kind, **data: case.events.append((kind, data))
    case.messages = list(guard.configure_train(1, case.model, config(), case.grid))
    replies = case.replies(reply_content(plus(case.model, 1e4), num_examples=10**8))
    name = next(iter(replies[0].content.metric_records))
    replies[0].content[name]["another-metric"] = 1.0
    seen = []
    guard.inner.aggregate_train = lambda r, found: (seen.extend(found), (None, None))[1]
    guard.aggregate_train(1, replies)
    assert len(seen) == NODES
    assert case.events == []
    assert guard.state() == {"medians": []}


@pytest.mark.parametrize("releases", [False, True])
def test_a_layer_that_always_releases_is_called_without_replies(releases):
    case = Round(FedAvg())
    calls = []
    case.strategy.inner.aggregate_train = lambda r, found: (
        calls.append(list(found)),
        (None, None),
    )[1]
    case.strategy.inner.always_releases = releases
    case.strategy.aggregate_train(1, [])
    assert calls == ([[]] if releases else [])


def test_norm_bound_uses_history_when_few_reply():
    case = Round(FedAvg(min_train_nodes=2, min_available_nodes=2))
    case.aggregate(case.replies())
    state = case.strategy.state()
    assert state["medians"] == [pytest.approx(1.045 * np.sqrt(17), rel=1e-5)]
    again = Round(FedAvg(), nodes=2, number=2)
    again.strategy.load_state(state)
    bad = reply_content(plus(again.model, 1e4))
    again.aggregate(again.replies(bad, at=1))
    assert again.codes == ["norm"]


def test_the_table_of_codes_is_complete():
    from strategies.guard.core import REASONS

    assert {code for _, code in HOSTILE.values()} <= set(REASONS)
    with pytest.raises(ProtocolError, match="shape"):
        raise ProtocolError("shape", "text")
