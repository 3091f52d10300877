"""The nodes' half: nothing leaves but the update, with noise where it is due."""

from __future__ import annotations

import logging
import math
import traceback

import numpy as np
import pytest
from flwr.app import Context, Message, MetricRecord, RecordDict

from strategies.mechanisms.mod import private_mod
from strategies.mechanisms.plan import Plan
from strategies.update import Model, delta_mod, read_delta
from strategies.withheld import WithheldError
from tests.support.federation import config, model, plus, weights
from truststram._flower import become_task, make_context, set_message_id
from truststram.job import Job

SECRET = 0.123456789
TEXT = "patient 4711 has row 815"
CENTRAL = {"privacy.mechanism": "gaussian"}
LOCAL = {**CENTRAL, "privacy.trust": "local", "train.rounds": 2}
EXAMPLES = {"privacy.mechanism": "dp-sgd", "privacy.unit": "example"}


@pytest.fixture(autouse=True)
def _task():
    become_task(1)


def ask(kind="train", arrays=None) -> Message:
    arrays = arrays or model(0.5)
    content = RecordDict({"arrays": arrays, "config": config()})
    message = Message(content, dst_node_id=7, message_type=kind)
    set_message_id(message)
    return message


def client(step=0.1, error=None):
    def call(message: Message, context: Context) -> Message:
        if error is not None:
            raise error
        arrays = plus(message.content["arrays"], step)
        metrics = MetricRecord(
            {"train-loss": SECRET, "num-examples": 4711, "list": [SECRET]}
        )
        content = RecordDict({"arrays": arrays, "metrics": metrics, "notes": config()})
        return Message(content, reply_to=message)

    return call


def send(job, message, context=None, inner=None):
    context = context or make_context(7, {"partition-id": 3, "simulated": True}, {})
    inner = inner or client()

    def with_delta(m, c):
        return delta_mod(m, c, inner)

    return private_mod(Job.of(job))(message, context, with_delta)


@pytest.mark.parametrize("job", [CENTRAL, LOCAL, EXAMPLES])
def test_only_the_update_leaves(job):
    reply = send(job, ask())
    assert sorted(reply.content) == ["metrics", "update"]
    assert dict(reply.content["metrics"]) == {"num-examples": 1}
    everything = repr(reply.content) + repr(dict(reply.metadata.__dict__))
    assert str(SECRET) not in everything
    assert "4711" not in everything


@pytest.mark.parametrize("job", [CENTRAL, EXAMPLES])
def test_the_update_itself_is_not_changed_without_local_noise(job):
    message = ask()
    found = read_delta(send(job, message).content, Model(message.content["arrays"]))
    np.testing.assert_allclose(found, 0.1, rtol=1e-5)


@pytest.mark.parametrize("job", [CENTRAL, LOCAL, EXAMPLES])
def test_what_went_wrong_stays_on_the_node(job, caplog, capsys):
    with caplog.at_level(logging.DEBUG), pytest.raises(WithheldError) as caught:
        send(job, ask(), inner=client(error=ValueError(TEXT)))
    told = "".join(traceback.format_exception(caught.value))
    for text in (told, str(caught.value), caplog.text, *capsys.readouterr()):
        assert TEXT not in text
    assert caught.value.__context__ is None


@pytest.mark.parametrize("job", [CENTRAL, LOCAL, EXAMPLES])
def test_evaluation_is_not_answered(job):
    with pytest.raises(WithheldError, match="evaluation"):
        send(job, ask("evaluate"))


def test_the_hello_passes():
    def hello(message, context):
        return Message(RecordDict({"hello": config()}), reply_to=message)

    reply = private_mod(Job.of(CENTRAL))(ask("query"), None, hello)
    assert "hello" in reply.content


class TestLocalNoise:
    def noise(self, step=0.0, seed=1):
        arrays = model(0.5, {"w": (20_000,)})
        message = ask(arrays=arrays)
        job = {**LOCAL, "privacy.insecure": True, "run.seed": seed}
        reply = send(job, message, inner=client(step))
        return read_delta(reply.content, Model(arrays))

    def test_its_scale(self):
        plan = Plan.of(Job.of(LOCAL), 1, 20_000)
        assert plan.release.relation == "replace"
        found = float(self.noise().std())
        assert found == pytest.approx(plan.std, rel=0.03)

    def test_the_update_is_clipped_before(self):
        """The same noise twice: the difference is the clipped update."""
        for step, length in ((1e-3, 1e-3 * math.sqrt(20_000)), (10.0, 1.0)):
            difference = self.noise(step) - self.noise(0.0)
            assert np.linalg.norm(difference) == pytest.approx(length, rel=1e-2)

    def test_secure_noise_differs_every_time(self):
        message = ask()
        found = [
            read_delta(send(LOCAL, message).content, Model(message.content["arrays"]))
            for _ in range(2)
        ]
        assert not np.array_equal(*found)

    def test_a_node_answers_as_often_as_planned(self):
        context = make_context(7, {"partition-id": 3}, {})
        for _ in range(2):
            assert send(LOCAL, ask(), context).has_content()
        with pytest.raises(WithheldError, match="budget is spent after 2"):
            send(LOCAL, ask(), context)

    @pytest.mark.parametrize("rounds", [1, 3, 60])
    def test_noise_that_was_planned_anew_is_refused(self, rounds):
        """The server has seen a release when it says another number of rounds."""
        context = make_context(7, {"partition-id": 3}, {})
        send(LOCAL, ask(), context)
        with pytest.raises(WithheldError, match="after 1 releases with noise of ano"):
            send({**LOCAL, "train.rounds": rounds}, ask(), context)
        assert send(LOCAL, ask(), context).has_content()

    def test_what_the_client_trained_is_not_in_the_reply(self):
        message = ask()
        reply = send(LOCAL, message)
        assert not np.allclose(
            read_delta(reply.content, Model(message.content["arrays"])), 0.1, atol=0.01
        )
        assert weights(message.content["arrays"])[0] == 0.5


TWO_ROUNDS = {**EXAMPLES, "train.rounds": 2}


class TestExamples:
    def test_a_node_trains_as_often_as_its_noise_was_planned_for(self):
        context = make_context(7, {"partition-id": 3}, {})
        for _ in range(2):
            assert send(TWO_ROUNDS, ask(), context).has_content()
        with pytest.raises(WithheldError, match="spent after 2 rounds"):
            send(TWO_ROUNDS, ask(), context)

    def test_another_number_of_rounds_is_refused(self):
        context = make_context(7, {"partition-id": 3}, {})
        send(TWO_ROUNDS, ask(), context)
        with pytest.raises(WithheldError, match="planned for 2 rounds"):
            send({**TWO_ROUNDS, "train.rounds": 3}, ask(), context)


TOLD = {
    **LOCAL,
    "privacy.epsilon": 10.0,
    "privacy.evaluate-epsilon": 8.0,
    "round.evaluate": "clients",
}


def accurate(**metrics):
    def call(message: Message, context: Context) -> Message:
        record = MetricRecord({"num-examples": 4711, **metrics})
        return Message(RecordDict({"metrics": record}), reply_to=message)

    return call


class TestEvaluation:
    def told(self, job=TOLD, context=None, **metrics):
        inner = accurate(**(metrics or {"accuracy": 0.75, "loss": SECRET}))
        return send(job, ask("evaluate"), context, inner)

    @pytest.mark.parametrize("unit", ["client", "example"])
    def test_only_a_noisy_accuracy_leaves(self, unit):
        job = TOLD if unit == "client" else {**TOLD, **EXAMPLES}
        reply = self.told(job)
        assert list(reply.content) == ["metrics"]
        found = dict(reply.content["metrics"])
        assert set(found) == {"accuracy", "num-examples"}
        assert found["num-examples"] == 1
        assert found["accuracy"] != 0.75
        assert found["accuracy"] == pytest.approx(0.75, abs=9)  # nine steps
        assert str(SECRET) not in repr(reply.content)

    def test_a_trusted_server_gets_it_clipped_and_nothing_else(self):
        job = {**TOLD, "privacy.trust": "central"}
        found = dict(self.told(job, accuracy=7.5, loss=SECRET).content["metrics"])
        assert found == {"accuracy": 1.0, "num-examples": 1}

    @pytest.mark.parametrize("unit", ["client", "example"])
    def test_a_node_answers_as_often_as_planned(self, unit):
        job = TOLD if unit == "client" else {**TOLD, **EXAMPLES}
        context = make_context(7, {"partition-id": 3}, {})
        self.told(job, context)
        for _ in range(2):
            with pytest.raises(WithheldError, match="budget is spent after 1"):
                self.told(job, context)
        for _ in range(2):  # training has its own part
            assert send(job, ask(), context).has_content()
        with pytest.raises(WithheldError, match=r"spent after (2 rounds|3 releases)"):
            send(job, ask(), context)

    def test_training_first_leaves_room_for_it(self):
        context = make_context(7, {"partition-id": 3}, {})
        for _ in range(2):
            send(TOLD, ask(), context)
        assert self.told(TOLD, context).has_content()

    def test_a_continued_run_with_more_evaluations_does_not_overspend(self):
        context = make_context(7, {"partition-id": 3}, {})
        self.told(TOLD, context)
        for _ in range(2):
            send(TOLD, ask(), context)
        longer = {**TOLD, "train.rounds": 4, "privacy.evaluate-every": 2}
        with pytest.raises(WithheldError, match="after 3 releases with noise of ano"):
            self.told(longer, context)

    def test_without_an_accuracy_nothing_is_told(self):
        with pytest.raises(WithheldError, match="tells no accuracy"):
            self.told(loss=SECRET)

    def test_what_went_wrong_stays_on_the_node(self):
        with pytest.raises(WithheldError) as caught:
            send(TOLD, ask("evaluate"), inner=client(error=ValueError(TEXT)))
        assert str(caught.value) == "evaluation failed; the reason stays on the node"
