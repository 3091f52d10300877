"""Evaluation by a plan over Flower, with pieces that are numpy functions."""

from __future__ import annotations

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from hypothesis import given
from hypothesis import strategies as st

from client_app.main import app
from tests.support.runs import model_bytes, run
from tests.tff_bridge.mime_plan import MimeCoordinator, MimeSilo, mime_plan
from tests.tff_bridge.numpy_plan import (
    SUMS,
    NumpyCoordinator,
    NumpySilo,
    evaluation,
    events,
    is_evaluation,
    leaf,
    numpy_pieces,
    plan_of,
)
from tests.tff_bridge.numpy_plan import Task as FromPlan
from tff_bridge import agreement, client
from tff_bridge.evaluation import LARGEST, MOST, Evaluation, why_torch
from tff_bridge.evaluation_layer import PlanEvaluation
from tff_bridge.strategy import PLAN, TFFServer
from tff_bridge.training import Training
from truststram._flower import make_context
from truststram.errors import ConfigError, ProtocolError, RunError
from truststram.job import Job
from truststram.tasks import register_task

ROUNDS = {"train.rounds": 2, "train.local-epochs": 2}
ASK = {**ROUNDS, "round.evaluate": "clients"}


@pytest.fixture(autouse=True)
def _numpy_pieces(monkeypatch):
    yield from numpy_pieces(monkeypatch)


class Task(FromPlan):
    """Unequal silos, so that weights matter."""

    def test_data(self, job, node):
        if node is None:
            return super().test_data(job, node)
        return self._rows(("test", node.partition), 5 + 11 * node.partition)


@pytest.fixture
def plan():
    return plan_of(evaluate=evaluation())


def go(folder, run_id, changes, plan=None, task=Task):
    if plan:
        plan.write(folder / f"{run_id}.tffplan")
        changes = {**changes, "tff.plan": str(folder / f"{run_id}.tffplan")}
    else:
        changes = {**changes, "server.momentum": 0.5}  # the plan's
    return run(folder, run_id, changes, task=task)


def test_silos_evaluate_with_the_plan_what_torch_finds(tmp_path, plan):
    before = NumpySilo.evaluations
    ours = go(tmp_path, "plan", ASK, plan)
    assert NumpySilo.evaluations - before == 2 * 5
    theirs = go(tmp_path, "torch", ASK)
    for found, expected in zip(ours.rounds, theirs.rounds, strict=True):
        assert list(found.metrics) == ["accuracy", "loss"]
        assert found.metrics == pytest.approx(expected.metrics, rel=1e-6)
        assert (found.codes, found.lost) == ({}, 0)
    [event] = events(tmp_path / "plan", "tff-plan")
    assert event["evaluation"] == "plan"
    assert ours.best["metric"] == "accuracy"


class Unequal(Task):
    """One silo has 100 times what the others have."""

    def test_data(self, job, node):
        if node is None:
            return super().test_data(job, node)
        return self._rows(("test", node.partition), 500 if node.partition == 4 else 5)


def test_a_silo_with_most_examples_counts_10_times_the_median(
    tmp_path, plan, monkeypatch
):
    """The only case in which TFF's metrics on the same data are other ones."""
    sums, metrics = [], Evaluation.metrics

    def noting(evaluation, leaves):
        sums.append([x.item() for x in leaves])
        return metrics(evaluation, leaves)

    monkeypatch.setattr(Evaluation, "metrics", noting)
    found = go(tmp_path, "run", {**ASK, "train.rounds": 1}, plan, Unequal).metrics
    loss, correct, examples = np.transpose(sums)
    assert sorted(examples) == [5, 5, 5, 5, 500]
    counted = np.minimum(examples, 50)
    expected = {
        "accuracy": np.rint(correct / examples * counted).sum() / counted.sum(),
        "loss": (loss / examples) @ counted / counted.sum(),
    }
    assert found == pytest.approx(expected, rel=1e-6)
    assert found["loss"] != pytest.approx(loss.sum() / examples.sum(), rel=1e-3)
    [event] = events(tmp_path / "run", "reply-capped")
    assert (event["found"], event["used"]) == (500, 50)


def test_both_are_told_if_the_server_evaluates_too(tmp_path, plan):
    found = go(tmp_path, "run", {**ASK, "round.evaluate": "both"}, plan).metrics
    assert list(found) == ["accuracy", "loss", "client-accuracy", "client-loss"]


def test_silos_without_tensorflow_evaluate_with_torch(tmp_path, plan, monkeypatch):
    """Two kinds of silos in one evaluation: the numbers of either kind alone."""
    expected = go(tmp_path, "plan", ASK, plan)
    even = lambda config: int(config["partition-id"]) % 2 == 0  # noqa: E731  # shorter than a def
    monkeypatch.setattr(client, "uses_torch", even)
    before = NumpySilo.evaluations
    mixed = go(tmp_path, "mixed", {**ASK, "tff.mixed": True}, plan)
    assert NumpySilo.evaluations - before == 2 * 2
    for ours, theirs in zip(mixed.rounds, expected.rounds, strict=True):
        assert ours.metrics == pytest.approx(theirs.metrics, rel=1e-5)
        assert ours.codes == {}


class Scored(Task):
    """A metric that no plan has."""

    metrics = ("auc", "loss")

    def evaluate(self, model, data, job):
        return {"auc": 0.7, "loss": super().evaluate(model, data, job)["loss"]}


@pytest.mark.parametrize(
    ("given", "task", "changes", "metrics", "reason"),
    [
        (plan_of(), Task, {}, ["accuracy", "loss"], "compiled without tff.evaluation"),
        (plan_of(evaluate=evaluation()), Scored, {}, ["auc", "loss"], "auc, loss"),
        (
            plan_of(evaluate=evaluation()), Task,
            {"privacy.mechanism": "gaussian", "privacy.epsilon": 20.0,
             "privacy.insecure": True, "privacy.evaluate-epsilon": 5.0},
            ["accuracy"], "privacy.mechanism",
        ),
    ],
)  # fmt: skip  # a row for each case
def test_torch_evaluates_where_the_plan_does_not_and_it_is_said(
    tmp_path, given, task, changes, metrics, reason
):
    before = NumpySilo.evaluations
    found = go(tmp_path, "run", {**ASK, **changes}, given, task)
    assert found.ok
    assert NumpySilo.evaluations == before
    assert list(found.metrics) == metrics
    [event] = events(tmp_path / "run", "tff-plan")
    assert event["evaluation"].startswith("torch: ")
    assert reason in event["evaluation"]


def test_a_resumed_run_evaluates_on(tmp_path, plan):
    whole = go(tmp_path, "whole", ASK, plan)
    go(tmp_path, "half", {**ASK, "train.rounds": 1}, plan)
    half = go(tmp_path, "half", {**ASK, "run.resume": "half"}, plan)
    assert [r.metrics for r in half.rounds] == [r.metrics for r in whole.rounds]


def test_a_run_resumes_with_or_without_the_evaluation(tmp_path, plan):
    """Its layer has no state, and is in no record: a task may have new metrics."""
    go(tmp_path, "whole", ASK, plan)
    for first, then in ((Task, Scored), (Scored, Task)):
        name = f"from-{first.__name__}"
        go(tmp_path, name, {**ASK, "train.rounds": 1}, plan, first)
        found = go(tmp_path, name, {**ASK, "run.resume": name}, plan, then)
        assert list(found.metrics) == list(then.metrics)
        assert model_bytes(tmp_path, name) == model_bytes(tmp_path, "whole")


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        (evaluation({**SUMS, "rows": "int64"}), "loss and accuracy"),
        (evaluation({**SUMS, "loss_sum": "float64"}), "loss and accuracy"),
        (evaluation({"loss": "float32", "b": "int64", "c": "int64"}), "accuracy"),
        (evaluation(metrics=("loss",)), "loss and accuracy"),
        (evaluation(additive=False), "loss and accuracy"),
        (evaluation(elements=1), "other data than batches"),
        (evaluation(down=[leaf((3, 6))]), "the model to the silos as it is"),
        (evaluation(parameters=()), "the model to the silos as it is"),
    ],
)
def test_programs_that_are_no_evaluation_of_ours_say_why(program, reason):
    plan = plan_of(evaluate=program)
    assert reason in why_torch(plan, Task(), Job())
    with pytest.raises(ConfigError, match=reason):
        Evaluation.of(plan)
    assert Training.of(plan), "it can be trained all the same"


# The server, with replies by hand.

GOOD = {"loss": 0.5, "accuracy": 0.75, "num-examples": 8}


def layer_of(plan, coordinator=NumpyCoordinator):
    part = Evaluation.of(plan)
    inner = TFFServer(Training.of(plan), NumpyCoordinator())
    made = coordinator(part.program)
    layer, told = PlanEvaluation(inner, part, made, ("accuracy", "loss")), []
    layer.emit = lambda kind, **data: told.append((kind, data))
    return layer, told


def reply(*records):
    make_context(1, {}, {})
    asked = Message(RecordDict(), 7, "evaluate")
    named = {f"r{i}": MetricRecord(values) for i, values in enumerate(records)}
    return Message(RecordDict(named), reply_to=asked)


@pytest.mark.parametrize(
    ("hostile", "code"),
    [
        ([], "metric-records"),
        ([GOOD, GOOD], "metric-records"),
        ([{}], "metric-keys"),
        ([{**GOOD, "more": 1}], "metric-keys"),
        ([{"loss": 0.5, "accuracy": 0.75}], "metric-keys"),
        ([{**GOOD, "loss": [0.5]}], "metric-value"),
        ([{**GOOD, "loss": float("nan")}], "metric-value"),
        ([{**GOOD, "loss": -float("inf")}], "metric-value"),
        ([{**GOOD, "loss": 1e39}], "metric-value"),
        ([{**GOOD, "loss": -3e38}], "metric-value"),
        ([{**GOOD, "loss": -1e-9}], "metric-value"),
        ([{**GOOD, "loss": 1.01 * LARGEST / 8}], "metric-value"),
        ([{**GOOD, "loss": 10**400}], "metric-value"),
        ([{**GOOD, "accuracy": 1.01}], "metric-value"),
        ([{**GOOD, "accuracy": -0.01}], "metric-value"),
        ([{**GOOD, "num-examples": 0}], "num-examples"),
        ([{**GOOD, "num-examples": -8}], "num-examples"),
        ([{**GOOD, "num-examples": 2.5}], "num-examples"),
        ([{**GOOD, "num-examples": MOST + 1}], "num-examples"),
    ],
)
def test_a_hostile_reply_is_left_out(plan, hostile, code):
    layer, told = layer_of(plan)
    replies = [reply(GOOD), reply(*hostile), reply({**GOOD, "accuracy": 0.25})]
    found = layer.aggregate_evaluate(3, replies)
    assert dict(found) == {"accuracy": 0.5, "loss": 0.5}
    [(kind, data)] = told
    assert (kind, data["code"], data["phase"]) == ("reply-dropped", code, "evaluate")
    assert layer.aggregate_evaluate(3, [reply(*hostile)]) is None


def test_a_reply_with_more_than_its_metrics_is_left_out(plan):
    layer, told = layer_of(plan)
    more = reply(GOOD)
    more.content["arrays"] = ArrayRecord()
    assert layer.aggregate_evaluate(3, [more]) is None
    assert layer.aggregate_evaluate(3, [reply(GOOD)]) is not None
    assert [data["code"] for _, data in told] == ["metric-records"]


numbers = st.one_of(
    *(st.integers(), st.floats(), st.lists(st.floats(), max_size=3)),
    *(st.integers(1, MOST), st.floats(0, 1), st.floats(-1e39, 1e39)),
)


@given(st.lists(st.fixed_dictionaries(dict.fromkeys(GOOD, numbers)), max_size=4))
def test_whatever_silos_send_the_metrics_are_of_the_range_they_must_have(replies):
    layer, told = layer_of(plan_of(evaluate=evaluation()))
    found = layer.aggregate_evaluate(1, [reply(r) for r in replies])
    if len(told) == len(replies):
        assert found is None
    else:
        assert 0 <= found["accuracy"] <= 1 + 1e-6
        assert 0 <= found["loss"] < np.inf


def test_losses_that_a_silo_may_have_have_a_finite_sum(plan):
    layer, told = layer_of(plan)
    most = [reply({**GOOD, "loss": LARGEST / 8})] * 50
    found = layer.aggregate_evaluate(1, most)
    assert found["loss"] == pytest.approx(LARGEST / 8)
    part = Evaluation.of(plan)
    total, *_ = part.total([(LARGEST, 8, 8)] * 2**20)
    assert np.isfinite(total)
    assert told == []


@given(st.integers(1, MOST), st.data())
def test_sums_survive_the_way_to_the_server(examples, data):
    part = Evaluation.of(plan_of(evaluate=evaluation()))
    correct = data.draw(st.integers(0, examples))
    loss = np.float32(data.draw(st.floats(0, 2.0**100, width=32)))
    leaves = [np.asarray(loss), np.asarray(correct), np.asarray(examples)]
    total = part.total([part.sums(part.metrics(leaves))])
    assert [x.item() for x in total] == [loss, correct, examples]


def test_a_plan_that_evaluates_another_model_is_refused(plan):
    class Other(NumpyCoordinator):
        def prepare(self, state):
            return [2 * x for x in super().prepare(state)]

    layer, _ = layer_of(plan, Other)
    with pytest.raises(ConfigError, match="evaluates another model"):
        layer.configure_evaluate(1, ArrayRecord(), ConfigRecord(), None)


# One node, its messages by hand.

SIMULATED = {"partition-id": 1, "num-partitions": 5, "simulated": True}


def agreed(plan, **changes):
    """Return the context of a node that agreed to a plan."""
    register_task("tiny", Task)
    job = Job.of({"task.name": "tiny", "tff.plan": "/on/the/server", **changes})
    context = make_context(7, dict(SIMULATED), job.config())
    app(Message(RecordDict({"config": agreement.offer(plan)}), 7, "query"), context)
    return context


def asked(plan, **changes):
    state = ArrayRecord(Task().model(Job(), 0).state_dict())
    config = ConfigRecord({"server-round": 1, PLAN: plan.sha256})
    content = {"arrays": state, "config": config, **changes}
    return Message(RecordDict(content), 7, "evaluate")


def test_a_node_answers_for_the_plan_it_agreed_to_only(plan):
    context = agreed(plan)
    [metrics] = app(asked(plan), context).content.metric_records.values()
    assert metrics.keys() == GOOD.keys()
    assert metrics["num-examples"] == 16
    other = plan_of({"server.lr": 0.5}, evaluate=evaluation())
    with pytest.raises(ConfigError, match="does not have the plan"):
        app(asked(other), context)
    with pytest.raises(ConfigError, match="has no evaluate, only train"):
        app(asked(plan_of()), agreed(plan_of()))
    few = ArrayRecord({"weight": asked(plan).content["arrays"]["weight"]})
    with pytest.raises(ProtocolError, match="array of the model is missing"):
        app(asked(plan, arrays=few), context)


def test_a_node_that_is_not_asked_with_a_plan_evaluates_with_torch(plan):
    before = NumpySilo.evaluations
    message = asked(plan, config=ConfigRecord({"server-round": 1}))
    reply = app(message, agreed(plan)).content
    assert NumpySilo.evaluations == before
    assert reply["metrics"].keys() == GOOD.keys()


def test_an_evaluation_that_counts_nothing_is_an_error(plan):
    nothing = [np.zeros((), kind) for kind in SUMS.values()]
    with pytest.raises(RunError, match="counted no example"):
        Evaluation.of(plan).metrics(nothing)


def test_a_plan_with_two_vectors_evaluates_too(tmp_path, monkeypatch):
    """The layers' second vector is no part of the model that silos evaluate."""

    def silo(program):
        return (NumpySilo if is_evaluation(program) else MimeSilo)(program)

    def coordinator(program):
        kind = NumpyCoordinator if is_evaluation(program) else MimeCoordinator
        return kind(program)

    for _ in numpy_pieces(monkeypatch, silo, coordinator):
        found = go(tmp_path, "run", ASK, mime_plan(evaluate=evaluation()))
    assert found.metrics["accuracy"] > 0.9
    assert [r.codes for r in found.rounds] == [{}, {}]
