"""The server's half: what is released, what it costs, and when it ends."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from flwr.app import Message, MetricRecord, RecordDict

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


@pytest.mark.parametrize("quantile", [0.0, 0.5])
def test_the_noise_that_is_told_is_that_of_the_update(quantile):
    """A count that shares the round leaves it more than the round is charged as."""
    federation = Federation(
        shapes={"w": (50_000,)},
        privacy__clip_quantile=quantile,
        privacy__epsilon=20.0,
        train__rounds=1,
    )
    federation.ask()
    found = float(federation.release([]).std()) * federation.layer.plan.cohort
    [told] = federation.of("privacy-spent")
    [plan] = federation.of("privacy-plan")
    # Five standard errors: 5 / sqrt(2 * 50,000) = 1.6 %.
    assert told["noise"] == pytest.approx(found, rel=0.016)
    assert plan["levels"][0]["std"] == told["noise"]
    release = federation.layer.plan.release
    assert (told["noise"] > 1.02 * release.scale) == (quantile > 0)


class TestSchedules:
    def test_every_round_is_charged_and_noised_as_planned(self):
        changes = {"train__rounds": 6, "privacy__schedule": "increasing"}
        federation = Federation(nodes=10, shapes={"w": (20_000,)}, **changes)
        told = []
        for number in range(1, 7):
            federation.ask(number)
            noise = federation.release([], number) * 10
            release = federation.layer.plan.at(number)
            assert float(noise.std()) == pytest.approx(release.scale, rel=0.03)
            told.append(federation.of("privacy-spent")[-1]["noise"])
        assert told == sorted(told, reverse=True)
        assert told[-1] / told[0] == pytest.approx(0.5, rel=1e-3)
        charged = federation.layer.ledger.releases
        assert list(charged) == [federation.layer.plan.at(n) for n in range(1, 7)]
        assert 7.9 < federation.layer.ledger.spent() <= 8.0
        with pytest.raises(RunError, match="before round 7"):
            federation.ask(7)

    def plateau(self, scores, rounds=12, **changes):
        """Return the noise of every round, and the federation afterwards."""
        federation = Federation(
            train__rounds=rounds, privacy__schedule="on-plateau", **changes
        )
        return [self.round(federation, n, scores[n - 1]) for n in range(1, rounds + 1)]

    def round(self, federation, number, score):
        federation.ask(number)
        federation.release([0.01] * 10, number)
        federation.layer.observe(number, {"accuracy": score, "loss": 0.0})
        return federation.of("privacy-spent")[-1]["noise"]

    def test_noise_falls_on_a_plateau_and_the_budget_lasts(self):
        better = self.plateau([i / 12 for i in range(12)])
        assert len(set(better)) == 1
        stuck = self.plateau([0.5] * 12)
        assert stuck[0] == better[0]
        assert stuck[:4] == [stuck[0]] * 4  # the first and three without progress
        assert stuck[4] == pytest.approx(0.7 * stuck[0], rel=1e-5)
        # A second step down would not leave enough for the last rounds.
        assert stuck[4:] == [stuck[4]] * 8
        late = self.plateau([min(i, 7) for i in range(12)])
        assert late[-1] == stuck[-1] < late[8] == late[0]

    def test_less_is_better_for_a_loss_and_nan_is_no_progress(self):
        federation = Federation(train__rounds=9, privacy__schedule="on-plateau")
        for number in range(1, 10):
            federation.ask(number)
            federation.release([], number)
            value = None if number % 2 else 1.0 / number
            federation.layer.observe(number, {"loss": value})
        noise = [event["noise"] for event in federation.of("privacy-spent")]
        assert len(set(noise)) == 1

    def test_a_filter_composes_it_and_holds_the_budget(self):
        federation = Federation(train__rounds=9, privacy__schedule="on-plateau")
        for number in range(1, 10):
            self.round(federation, number, 0.5)
        ledger = federation.layer.ledger
        assert ledger.adaptive
        assert len(ledger.orders) == 1
        assert len(ledger.releases) > 1
        assert ledger.spent() <= 8.0
        assert "Rényi filter" in ledger.describe()
        with pytest.raises(RunError, match="budget is spent"):
            [self.round(federation, number, 0.5) for number in range(10, 40)]
        assert ledger.spent() <= 8.0

    def test_a_resumed_run_goes_on_as_if_it_had_never_stopped(self):
        whole = Federation(train__rounds=9, privacy__schedule="on-plateau")
        before = [self.round(whole, n, 0.5) for n in range(1, 6)]
        again = Federation(train__rounds=9, privacy__schedule="on-plateau")
        tensors: dict = {}
        state = json.dumps(_packed(whole.layer.state(), tensors, "s"), allow_nan=False)
        again.layer.load_state(_unpacked(json.loads(state), tensors))
        after = [
            [self.round(federation, n, 0.5) for n in range(6, 10)]
            for federation in (whole, again)
        ]
        assert after[0] == after[1]
        assert after[0][-1] < before[0]
        assert again.layer.ledger.orders == whole.layer.ledger.orders
        assert again.layer.state() == whole.layer.state()

    def test_without_a_word_of_the_model_the_noise_stays(self):
        federation = Federation(train__rounds=9, privacy__schedule="on-plateau")
        for number in range(1, 10):
            federation.ask(number)
            federation.release([], number)
            federation.layer.observe(number, {})
        assert len({e["noise"] for e in federation.of("privacy-spent")}) == 1


FIXED = {"privacy__sampling": "fixed", "round__fraction": 0.3, "train__rounds": 3}


class TestFixedCohorts:
    def test_exactly_m_are_asked_and_the_sum_is_divided_by_m(self, silent):
        federation = Federation(nodes=10, **FIXED)
        cohorts = []
        for number in (1, 2, 3):
            asked = federation.ask(number)
            assert len(asked) == 3
            cohorts.append({m.metadata.dst_node_id for m in asked})
            np.testing.assert_allclose(
                federation.release([0.1] * 3, number), 0.1, rtol=1e-4
            )
        assert len(set(map(frozenset, cohorts))) > 1
        [plan] = federation.of("privacy-plan")
        assert plan["relation"] == "replace"
        assert "exactly 3 of 10" in plan["sampling"]

    def test_the_noise_is_that_of_two_clips(self):
        federation = Federation(nodes=10, shapes={"w": (20_000,)}, **FIXED)
        federation.ask()
        release = federation.layer.plan.release
        assert release.sensitivity == 2.0
        assert float(federation.release([]).std()) * 3 == pytest.approx(
            release.scale, rel=0.03
        )

    @pytest.mark.parametrize("nodes", [9, 11])
    def test_another_number_of_nodes_stops_the_run(self, nodes):
        federation = Federation(nodes=10, **FIXED)
        federation.ask(1)
        federation.release([], 1)
        before = federation.layer.ledger.state()
        federation.grid = grid_of(adding_app(lambda p, r: 1.0), nodes)
        with pytest.raises(RunError, match="number of nodes that does not change"):
            federation.ask(2)
        assert federation.layer.ledger.state() == before

    def test_it_is_remembered_from_before_a_resume(self):
        federation = Federation(nodes=10, **FIXED)
        federation.ask(1)
        federation.release([], 1)
        again = Federation(nodes=12, **FIXED)
        again.layer.load_state(federation.layer.state())
        with pytest.raises(RunError, match=r"12 nodes are connected .* with 10"):
            again.ask(2)


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
