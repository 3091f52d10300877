"""Distributed privacy inside secure aggregation: the ledger, the nodes, whole runs."""

from __future__ import annotations

import json

import numpy as np
import pytest
from flwr.app import Message
from scipy import stats

from client_app.node import permit
from server_app.checkpoint import _packed, _unpacked
from strategies import stack
from strategies.base import StrategyLayer, synthetic_reply, walk
from strategies.mechanisms.distributed import distributed_plan
from strategies.mechanisms.distributed_layer import DistributedDP
from strategies.mechanisms.encoder import encoder_for
from strategies.mechanisms.mod import private_mod
from strategies.secure.secagg_layer import SecAggSum
from strategies.secure.slots import Slots
from strategies.server_sgd import ServerSGD
from strategies.update import Model, blank_update, delta_mod, read_delta, with_delta
from strategies.withheld import WithheldError
from tests.support import runs
from tests.support.federation import (
    adding_app,
    config,
    grid_of,
    model,
    plus,
    reply_content,
    weights,
)
from truststram._flower import become_task, make_context
from truststram.errors import ConfigError, RunError
from truststram.job import Job
from truststram.privacy.finished import Finished
from truststram.privacy.plan import preview
from truststram.privacy.report import INSECURE, report

BASE = {
    "privacy.mechanism": "skellam",
    "privacy.trust": "distributed",
    "privacy.epsilon": 20.0,
    "secure.scheme": "secagg",
    "train.rounds": 2,
    "server.lr": 1.0,
}
NO_SUM = {"secure.scheme": "none", "privacy.mechanism": "gaussian"}
SHAPES = {"w": (400, 50)}
D = 20_000


class PlainSum(StrategyLayer):
    """In the place of the secure sum: encodes for the nodes, and adds."""

    reduces = True

    def __init__(self, job, inner=None):
        super().__init__(inner or ServerSGD())
        self.job = job

    def aggregate_train(self, server_round, replies):
        replies = list(replies)
        if not replies:
            return None, None
        encoder = encoder_for(self.job, self.model.spec.size)
        rng, total = np.random.default_rng(server_round), 0
        for reply in replies:
            delta = read_delta(reply.content, self.model)
            total = total + encoder.encode(delta, rng).astype(np.uint64)
        total %= np.uint64(2**encoder.width)
        update, values = blank_update(self.model.spec)
        values[:] = encoder.decode_sum(total, len(replies)) / len(replies)
        reply = synthetic_reply(replies[0], update, {}, len(replies))
        return self.hand_on(server_round, [reply])


class Federation:
    def __init__(self, nodes=5, layer=PlainSum, **changes):
        given = {k.replace("__", ".").replace("_", "-"): v for k, v in changes.items()}
        self.job = Job.of({**BASE, **given})
        self.layer = DistributedDP(self.job, layer(self.job))
        self.events = []
        self.layer.emit = lambda kind, **data: self.events.append((kind, data))
        self.model = model(0.5, SHAPES)
        self.grid = grid_of(adding_app(lambda p, r: 1.0), nodes)

    def ask(self, number):
        return list(self.layer.configure_train(number, self.model, config(), self.grid))

    def round(self, number, step=0.0, answered=None):
        replies = []
        for message in self.ask(number)[:answered]:
            stock = reply_content(plus(self.model, step))
            delta = read_delta(stock, Model(self.model))
            replies.append(Message(with_delta(stock, delta), reply_to=message))
        return self.layer.aggregate_train(number, replies)

    def of(self, kind):
        return [data for k, data in self.events if k == kind]


@pytest.mark.parametrize(("answered", "clients"), [(None, 5), (3, 3)])
def test_the_model_moves_by_the_noisy_mean_of_who_answered(answered, clients):
    federation = Federation()
    arrays, _ = federation.round(1, answered=answered)
    noise = weights(arrays) - 0.5
    std = distributed_plan(federation.job, D).std(clients) / clients
    assert stats.kstest(noise / std, "norm").pvalue > 1e-6
    for wrong in (2 / 3, 3 / 2):
        assert stats.kstest(noise / std / wrong, "norm").pvalue < 1e-6


def test_every_round_is_charged_whatever_arrives_and_the_run_ends_in_time():
    federation = Federation()
    arrays, metrics = federation.round(1, answered=0)
    assert (arrays, metrics) == (None, None)
    federation.round(2)
    spent = [event["epsilon"] for event in federation.of("privacy-spent")]
    assert 0 < spent[0] < spent[1] <= 20
    assert spent[1] == pytest.approx(20, rel=1e-3)
    with pytest.raises(RunError, match="budget is spent before round 3"):
        federation.ask(3)


def test_evaluate_only_asks_nobody_when_the_budget_is_spent():
    federation = Federation(privacy__on_exhausted="evaluate-only")
    for number in (1, 2):
        federation.round(number)
    assert federation.ask(3) == []
    assert federation.layer.aggregate_train(3, []) == (None, None)
    assert len(federation.of("privacy-spent")) == 2
    assert federation.of("privacy-exhausted")[0]["round"] == 3


def test_the_plan_is_told_once():
    federation = Federation(secure__min_cohort=5, secure__colluders=2)
    for number in (1, 2):
        federation.round(number)
    [told] = federation.of("privacy-plan")
    assert (told["mechanism"], told["relation"]) == ("skellam", "replace")
    assert (told["honest"], told["colluders"], told["cohort"]) == (3, 2, 5)
    assert told["trust"] == "distributed"
    assert told["secure-noise"] is True
    json.dumps(told, allow_nan=False)


def test_a_resumed_run_goes_on_with_what_was_spent():
    before, after = Federation(), Federation()
    before.round(1)
    tensors = {}
    text = json.dumps(_packed(before.layer.state(), tensors, "s"), allow_nan=False)
    after.layer.load_state(_unpacked(json.loads(text), tensors))
    assert after.layer.state() == before.layer.state()
    after.round(2)
    assert after.of("privacy-spent")[0]["epsilon"] == pytest.approx(20, rel=1e-3)
    with pytest.raises(RunError, match="budget is spent"):
        after.ask(3)


def test_the_usual_server_rate_follows_the_noise():
    federation = Federation(server__lr=0.0)
    federation.round(1)
    [told] = federation.of("privacy-plan")
    *_, optimizer = walk(federation.layer)
    assert optimizer.lr == pytest.approx(told["server-rate"], rel=1e-3)
    assert 0 < optimizer.lr < 0.1


class FailedOnce(PlainSum):
    """Too few nodes answer a stage of the first round."""

    asked = 0

    def configure_train(self, server_round, *args):
        self.asked += 1
        messages = list(super().configure_train(server_round, *args))
        return messages if server_round > 1 else []


def test_a_failed_first_round_does_not_fix_the_rate_of_the_others():
    failed, whole = Federation(layer=FailedOnce, server__lr=0.0), Federation()
    assert failed.ask(1) == []
    assert failed.layer.aggregate_train(1, []) == (None, None)
    assert failed.events == []
    failed.round(2)
    whole.round(1)
    [told], [expected] = failed.of("privacy-plan"), whole.of("privacy-plan")
    assert told["cohort"] == expected["cohort"] == 5
    *_, optimizer = walk(failed.layer)
    assert optimizer.lr == pytest.approx(told["server-rate"], rel=1e-3)


def test_a_resumed_run_keeps_the_rate_whoever_is_asked_first():
    before = Federation(nodes=6, server__lr=0.0)
    after = Federation(nodes=4, server__lr=0.0)
    before.round(1)
    after.layer.load_state(json.loads(json.dumps(before.layer.state())))
    after.round(2)
    rates = [list(walk(f.layer))[-1].lr for f in (before, after)]
    assert rates[0] == rates[1] > 0
    assert after.of("privacy-plan")[0]["cohort"] == 6


@pytest.mark.parametrize("choice", ["stop", "evaluate-only"])
def test_no_stage_of_the_sum_is_begun_when_the_budget_is_spent(choice):
    federation = Federation(layer=FailedOnce, privacy__on_exhausted=choice)
    after = Federation(layer=FailedOnce, privacy__on_exhausted=choice)
    for number in (1, 2, 3):
        federation.round(number)
    after.layer.load_state(json.loads(json.dumps(federation.layer.state())))
    for one in (federation, after):
        before = one.layer.inner.asked
        if choice == "stop":
            with pytest.raises(RunError, match="budget is spent"):
                one.ask(4)
        else:
            assert one.ask(4) == []
            assert one.layer.aggregate_train(4, []) == (None, None)
        assert one.layer.inner.asked == before


def test_the_stack_puts_the_ledger_outside_and_the_noise_into_the_sum():
    job = Job.of(BASE)
    layers = list(walk(stack.build(job)))
    assert [type(x).__name__ for x in layers[:2]] == ["DistributedDP", "SecAggSum"]
    encoder = layers[1].settings.coder(D)
    assert encoder == encoder_for(job, D)
    assert encoder.noised
    plain = SecAggSum(Job.of({"secure.scheme": "secagg"})).settings
    assert not plain.coder(D).noised


def test_a_node_counts_for_itself_and_refuses_one_round_too_many():
    become_task(1)
    job, context = Job.of(BASE), make_context(7, {"partition-id": 3}, {})
    app = adding_app(lambda p, r: 0.25)
    mod = private_mod(job)
    for number in (1, 2, 3):
        message = Federation().ask(1)[0]
        arguments = message, context, lambda m, c: delta_mod(m, c, app)
        if number == 3:
            with pytest.raises(WithheldError, match="budget is spent after 2"):
                mod(*arguments)
            return
        reply = mod(*arguments)
        # What the secure sum outside gets: no noise yet, and nothing else.
        assert dict(reply.content["metrics"]) == {"num-examples": 1}
        found = read_delta(reply.content, Model(model(0.5, SHAPES)))
        np.testing.assert_allclose(found, 0.25)


def test_a_plan_for_people_says_what_the_layer_will_do():
    job = Job.of({**BASE, "secure.min-cohort": 10})
    shown = preview(job, nodes=20)
    plan = distributed_plan(job, shown["parameters"])
    assert shown["mechanism"] == "skellam"
    assert shown["levels"] == plan.levels(20)
    ratio = plan.std(20) * shown["parameters"] ** 0.5 / 20
    assert shown["noise-to-signal"] == pytest.approx(ratio)
    more = preview(job, nodes=shown["bearable"]["nodes"])
    assert more["noise-to-signal"] == pytest.approx(1, rel=0.01)
    assert "server sees only sums" in shown["guarantee"]


def test_a_node_that_wants_its_own_noise_does_not_take_shares_for_it():
    context = make_context(7, {"local-noise": True, "simulated": True}, {})
    permit(Job.of({**BASE, "privacy.trust": "local", **NO_SUM}), context)
    with pytest.raises(ConfigError, match="adds the noise itself"):
        permit(Job.of(BASE), context)


def test_with_noise_the_sum_has_no_checksum_and_without_it_has_one():
    update, rng = np.ones(D, np.float32), np.random.default_rng(0)
    noised = Slots(encoder_for(Job.of(BASE), D), D)
    plain = Slots(SecAggSum(Job.of({"secure.scheme": "secagg"})).settings.quantiser, D)
    for slots, there in ((noised, False), (plain, True)):
        one, other = (slots.fill(update, 1, {}, "label", rng) for _ in range(2))
        # After the update: clients, examples, clipped, checksum.
        tail = slots.size - D
        counters = one[-tail:]
        assert bool(counters[7:].any()) is there
        summed = slots.read(one.astype(np.uint64) + other, 2, "label")
        assert (summed.clients, summed.examples) == (2, 2)
        assert summed.clipped == 0
        if not there:  # equal but for the update itself: nothing tells of one node
            np.testing.assert_array_equal(counters, other[-tail:])


def test_a_run_under_secure_aggregation_ends_within_its_budget(tmp_path):
    changes = {
        "secure.scheme": "secagg",
        "secure.max-cohort": 3,
        "round.min-nodes": 3,
        "privacy.mechanism": "auto",
        "privacy.trust": "distributed",
        "privacy.epsilon": 20.0,
        "privacy.insecure": True,
        "train.rounds": 2,
    }
    result = runs.run(tmp_path, changes=changes, nodes=3)
    events = [
        json.loads(line)
        for line in (result.dir / "events.jsonl").read_text().splitlines()
    ]
    of = {k: [e for e in events if e["kind"] == k] for k in {e["kind"] for e in events}}
    assert len(result.rounds) == 2
    assert [e["clients"] for e in of["secure-sum"]] == [3, 3]
    assert [e["clipped"] for e in of["secure-sum"]] == [0, 0]
    assert of["privacy-spent"][-1]["epsilon"] == pytest.approx(20, rel=1e-3)
    assert "reply-dropped" not in of
    told = report(Finished.read(result.dir))
    assert (told["trust"], told["mechanism"]) == ("distributed", "skellam")
    assert told["epsilon"] == pytest.approx(20, rel=1e-3)
    assert "Theorem 3.5" in told["guarantee"]
    assert told["problems"] == [INSECURE]
    again = runs.run(tmp_path, "again", changes, nodes=3)
    assert again.rounds[-1].metrics == result.rounds[-1].metrics  # insecure: repeats
