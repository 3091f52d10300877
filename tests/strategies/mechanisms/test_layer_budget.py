"""What a plan promises, what every round is charged, and when the run ends."""

from __future__ import annotations

import json

import pytest

from server_app.checkpoint import _packed, _unpacked
from strategies.accounting.ledger import Ledger
from strategies.mechanisms.layer import CentralDP
from strategies.mechanisms.plan import Plan
from strategies.server_sgd import ServerSGD
from strategies.update import Model
from tests.strategies.mechanisms.central import BASE, D, Federation
from tests.support.federation import model
from truststram.errors import ConfigError, RunError
from truststram.job import Job


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
