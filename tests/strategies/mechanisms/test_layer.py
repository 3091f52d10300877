"""The server's half: what is released, what it costs, and when it ends."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from flwr.app import Message

from server_app.checkpoint import _packed, _unpacked
from strategies.accounting.ledger import Ledger
from strategies.guard.layer import Guard
from strategies.mechanisms.layer import CentralDP
from strategies.mechanisms.plan import Plan
from strategies.server_sgd import ServerSGD
from strategies.update import Model, read_delta, with_delta
from tests.adversaries.replies import HOSTILE
from tests.support.federation import (
    adding_app,
    config,
    grid_of,
    model,
    plus,
    reply_content,
    weights,
)
from truststram.errors import ConfigError, RunError
from truststram.job import Job

D = 17
BASE = {
    "privacy.mechanism": "gaussian",
    "privacy.epsilon": 8.0,
    "privacy.insecure": True,
    "train.rounds": 2,
    "server.lr": 1.0,
}


class Federation:
    """A layer that has asked some nodes, and the replies they may give."""

    def __init__(self, nodes=10, shapes=None, **changes):
        given = {k.replace("__", ".").replace("_", "-"): v for k, v in changes.items()}
        self.job = Job.of({**BASE, **given})
        self.layer = CentralDP(self.job, ServerSGD(min_available_nodes=1))
        self.events = []
        self.layer.emit = lambda kind, **data: self.events.append((kind, data))
        self.model = model(0.5, shapes) if shapes else model(0.5)
        self.grid = grid_of(adding_app(lambda p, r: 1.0), nodes)

    def ask(self, number=1):
        self.messages = list(
            self.layer.configure_train(number, self.model, config(), self.grid)
        )
        return self.messages

    def release(self, steps, number=1):
        """Return the change of the model when node i sends ``steps[i]`` everywhere."""
        replies = [
            Message(reply_content(plus(self.model, step), 10 + i), reply_to=m)
            for i, (m, step) in enumerate(zip(self.messages, steps, strict=False))
        ]
        arrays, metrics = self.layer.aggregate_train(number, replies)
        self.metrics = metrics
        return None if arrays is None else weights(arrays) - 0.5

    def of(self, kind):
        return [data for name, data in self.events if name == kind]


@pytest.fixture
def silent(monkeypatch):
    monkeypatch.setattr(
        "strategies.mechanisms.sums.draw", lambda r, u, d, s: np.zeros(d, np.int64)
    )


def test_the_sum_of_clipped_updates_over_the_expected_cohort(silent):
    """Two short updates, one of ten times the clip, seven nodes that do not answer."""
    federation = Federation(nodes=10)
    federation.ask()
    change = federation.release([0.1, -0.05, 10 / math.sqrt(D)])
    expected = (0.1 - 0.05 + 1 / math.sqrt(D)) / 10
    np.testing.assert_allclose(change, expected, rtol=1e-4)


@pytest.mark.parametrize("answers", [0, 1, 10])
def test_the_divisor_does_not_tell_how_many_answered(silent, answers):
    federation = Federation(nodes=10)
    federation.ask()
    change = federation.release([0.1] * answers)
    np.testing.assert_allclose(change, 0.1 * answers / 10, rtol=1e-4, atol=1e-9)


def test_nothing_that_clients_report_is_handed_on(silent):
    federation = Federation()
    federation.ask()
    federation.release([0.1] * 10)
    assert dict(federation.metrics) == {}
    assert "train-loss" not in json.dumps(federation.events)


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e38])
def test_a_broken_or_huge_update_counts_as_any_other(silent, bad):
    federation = Federation(nodes=4)
    messages = federation.ask()
    delta = np.zeros(D, np.float32)
    delta[3] = bad
    content = with_delta(reply_content(federation.model), delta)
    arrays, _ = federation.layer.aggregate_train(
        1, [Message(content, reply_to=messages[0])]
    )
    change = weights(arrays) - 0.5
    assert np.abs(change).max() <= 1 / 4 + 1e-6
    assert np.isfinite(change).all()
    assert len(federation.of("update-zeroed")) == (0 if np.isfinite(bad) else 1)


@pytest.mark.parametrize("mechanism", ["gaussian", "laplace", "staircase", "auto"])
def test_the_noise_has_the_planned_scale(mechanism):
    """20,000 draws; a scale of 2/3 or 3/2 is ten standard errors away."""
    federation = Federation(
        nodes=5,
        shapes={"w": (20_000,)} if mechanism != "staircase" else {"w": (400,)},
        privacy__mechanism=mechanism,
        train__rounds=1,
    )
    federation.ask()
    plan = federation.layer.plan
    noise = federation.release([]) * plan.cohort
    if mechanism == "staircase":  # coordinates of a ball share one length
        lengths = []
        for seed in range(200):
            other = Federation(
                nodes=5,
                shapes={"w": (400,)},
                privacy__mechanism=mechanism,
                train__rounds=1,
                run__seed=seed,
            )
            other.ask()
            lengths.append(np.linalg.norm(other.release([]) * plan.cohort))
        found = math.sqrt(np.mean(np.square(lengths)) / 400)
    else:
        found = float(noise.std())
    assert found == pytest.approx(plan.std * plan.clip, rel=0.05)


def test_the_plan_is_the_job_s_budget():
    federation = Federation(nodes=50, round__fraction=0.2, train__rounds=30)
    federation.ask()
    [told] = federation.of("privacy-plan")
    assert told["epsilon"] == 8.0
    assert told["cohort"] == 10.0
    assert told["secure-noise"] is False
    assert "probability 0.2" in told["sampling"]
    ledger = Ledger(8.0, 1e-5)
    ledger.charge(federation.layer.plan.release, 30)
    assert 7.9 < ledger.spent() <= 8.0


def test_the_usual_server_rate_falls_with_the_noise():
    rates = []
    for nodes in (10, 100, 10_000):
        job = Job.of({**BASE, "server.lr": 0.0})
        layer = CentralDP(job, ServerSGD(momentum=0.9))
        layer.emit = lambda kind, **data: None
        layer._model = Model(model(0.5))
        layer._begin(nodes)
        rates.append(layer.inner.lr)
    assert rates[1] == pytest.approx(10 * rates[0])
    assert rates[2] == 3.0


def test_an_epsilon_beyond_the_samplers_precision_is_refused():
    with pytest.raises(ConfigError, match="epsilon = 100"):
        Plan.of(Job.of({**BASE, "privacy.epsilon": 100.0}), 10, D)


def test_the_budget_ends_the_run():
    federation = Federation()
    for number in (1, 2):
        federation.ask(number)
        federation.release([0.1] * 10, number)
    spent = [data["epsilon"] for data in federation.of("privacy-spent")]
    assert spent == sorted(spent)
    assert 7.9 < spent[-1] <= 8.0
    with pytest.raises(RunError, match="budget is spent before round 3"):
        federation.ask(3)


def test_evaluate_only_goes_on_without_training():
    federation = Federation(privacy__on_exhausted="evaluate-only")
    for number in (1, 2):
        federation.ask(number)
        federation.release([0.1] * 10, number)
    assert federation.ask(3) == []
    assert federation.release([], 3) is None
    [told] = federation.of("privacy-exhausted")
    assert told["round"] == 3
    assert 7.9 < told["epsilon"] <= 8.0


def test_a_resumed_ledger_goes_on_where_it_was():
    federation = Federation()
    federation.ask(1)
    federation.release([0.1] * 10, 1)
    tensors = {}
    text = json.dumps(_packed(federation.layer.state(), tensors, ""))
    again = Federation()
    again.layer.load_state(_unpacked(json.loads(text), tensors))
    again.ask(2)
    again.release([0.1] * 10, 2)
    with pytest.raises(RunError, match="budget is spent"):
        again.ask(3)


def test_a_ledger_that_was_made_smaller_is_refused():
    federation = Federation()
    federation.ask(1)
    federation.release([0.1] * 10, 1)
    state = federation.layer.state()
    state["ledger"]["releases"] = []
    again = Federation()
    again.layer.load_state(state)
    with pytest.raises(ValueError, match=r"ledger|spent|state"):
        again.ask(2)


def test_each_node_is_drawn_by_itself():
    """Of 400 nodes at q = 0.3: 120 +- 5 deviations, another set every round."""
    federation = Federation(nodes=400, round__fraction=0.3, train__rounds=3)
    cohorts = []
    for number in (1, 2, 3):
        cohorts.append({m.metadata.dst_node_id for m in federation.ask(number)})
        federation.release([], number)
    assert all(abs(len(c) - 120) < 46 for c in cohorts)
    assert cohorts[0] != cohorts[1] != cohorts[2]
    assert federation.layer.plan.cohort == pytest.approx(120)


def test_an_empty_cohort_releases_noise_and_is_charged(monkeypatch):
    federation = Federation(nodes=3, round__fraction=0.5)
    monkeypatch.setattr("strategies.mechanisms.layer.drawn", lambda *a: [])
    assert federation.ask() == []
    change = federation.release([])
    assert np.abs(change).max() > 0
    assert len(federation.of("privacy-spent")) == 1


def test_secure_noise_never_repeats():
    changes = []
    for _ in range(2):
        federation = Federation(privacy__insecure=False)
        federation.ask()
        changes.append(federation.release([0.1] * 10))
        assert federation.of("privacy-plan")[0]["secure-noise"] is True
    assert not np.array_equal(*changes)


def test_insecure_noise_repeats_when_a_round_runs_again():
    changes = []
    for _ in range(2):
        federation = Federation()
        federation.ask()
        changes.append(federation.release([0.1] * 10))
    np.testing.assert_array_equal(*changes)


class TestTheClipThatFollowsAQuantile:
    def test_it_reaches_the_quantile(self):
        """Norms 0.1 to 10 in 40 nodes; the median is about 1."""
        norms = np.logspace(-1, 1, 40)
        federation = Federation(
            nodes=40,
            train__rounds=50,
            privacy__epsilon=20.0,
            privacy__clip=10.0,
            privacy__clip_quantile=0.5,
        )
        for number in range(1, 51):
            federation.ask(number)
            federation.release(list(norms / math.sqrt(D)), number)
        assert 0.5 < federation.layer.clip < 2.0

    def test_both_releases_together_cost_one(self):
        job = Job.of({**BASE, "privacy.clip-quantile": 0.5})
        plan = Plan.of(job, 100, D)
        update, count = plan.split(plan.release)
        z = (update.scale**-2 + count.scale**-2) ** -0.5
        assert z == pytest.approx(plan.release.scale)
        assert update.scale < 1.1 * plan.release.scale
        assert update.dimension == D
        assert count.dimension == 1

    def test_the_clip_is_part_of_the_state(self):
        federation = Federation(privacy__clip_quantile=0.5)
        federation.ask()
        federation.release([0.01] * 10)
        again = Federation(privacy__clip_quantile=0.5)
        again.layer.load_state(federation.layer.state())
        assert again.layer.clip == federation.layer.clip < 1.0


def test_delta_replies_are_read_as_well(silent):
    federation = Federation(nodes=4)
    messages = federation.ask()
    stock = reply_content(plus(federation.model, 0.1))
    delta = with_delta(stock, read_delta(stock, Model(federation.model)))
    arrays, _ = federation.layer.aggregate_train(
        1, [Message(delta, reply_to=messages[0])]
    )
    np.testing.assert_allclose(weights(arrays) - 0.5, 0.1 / 4, rtol=1e-4)


@pytest.mark.parametrize("case", HOSTILE)
def test_no_hostile_reply_moves_a_private_sum_by_more_than_a_clip(silent, case):
    """Behind the static guard, as the stack builds it: dropped, or clipped."""
    make, _ = HOSTILE[case]
    changes = []
    for bad in (False, True):
        federation = Federation(nodes=4)
        guard = Guard(federation.layer, static=True)
        guard.emit = federation.layer.emit
        messages = list(
            guard.configure_train(1, federation.model, config(), federation.grid)
        )
        contents = [reply_content(plus(federation.model, 0.1)) for _ in messages[:3]]
        if bad:
            contents.append(make(reply_content(plus(federation.model, 0.1))))
        replies = [
            content
            if isinstance(content, Message)
            else Message(content, reply_to=message)
            for content, message in zip(contents, messages, strict=False)
        ]
        arrays, _ = guard.aggregate_train(1, replies)
        changes.append(weights(arrays) - 0.5)
    assert np.isfinite(changes[1]).all()
    assert np.linalg.norm(changes[1] - changes[0]) <= (1 + 1e-4) / 4
