"""Whole runs of a plan whose pieces are numpy functions, and what nodes refuse."""

from __future__ import annotations

import sys
import threading

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict

from client_app.main import app
from tests.support.runs import job as job_of
from tests.support.runs import model_bytes, run
from tests.tff_bridge.numpy_plan import (
    MOMENTUM,
    NumpyCoordinator,
    NumpySilo,
    Task,
    events,
    leaf,
    numpy_pieces,
    plan_of,
    weights,
)
from tff_bridge import agreement, client, execution, server
from tff_bridge.leaves import WorkLayout
from tff_bridge.silo_data import Passes
from tff_bridge.strategy import PLAN, PREPARED
from tff_bridge.training import Training
from truststram import __version__
from truststram._flower import make_context
from truststram.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    ProtocolError,
    RunError,
)
from truststram.job import Job
from truststram.records import pack
from truststram.result import RunResult
from truststram.summary import summary
from truststram.tasks import register_task

ROUNDS = {"train.rounds": 3, "train.local-epochs": 2}


@pytest.fixture(autouse=True)
def _numpy_pieces(monkeypatch):
    yield from numpy_pieces(monkeypatch)


@pytest.fixture
def plan(tmp_path):
    return written(plan_of(), tmp_path)


def written(plan, folder) -> str:
    path = folder / "job.tffplan"
    plan.write(path)
    return str(path)


def go(folder, run_id, changes, **options):
    task = options.pop("task", Task)
    return run(folder, run_id, {**ROUNDS, **changes}, task=task, **options)


def test_a_plan_gives_the_torch_jobs_model_and_tells_its_story(tmp_path, plan):
    torch = go(tmp_path, "torch", {"server.momentum": MOMENTUM})
    tff = go(tmp_path, "tff", {"tff.plan": plan})
    difference = np.abs(weights(tmp_path, "tff") - weights(tmp_path, "torch"))
    assert difference.max() <= 1e-6
    for ours, theirs in zip(tff.rounds, torch.rounds, strict=True):
        loss = theirs.train_metrics["train-loss"]
        assert ours.train_metrics["train-loss"] == pytest.approx(loss, rel=1e-5)
    assert tff.metrics == pytest.approx(torch.metrics, rel=1e-5)
    [event] = events(tmp_path / "tff", "tff-plan")
    assert event["plan"] == plan_of().sha256
    assert (event["algorithm"], event["pinned"]) == ("fed-avg", "nobody: simulation")


def test_the_bytes_of_the_offered_plan_are_told(tmp_path, plan):
    found = go(tmp_path, "tff", {"tff.plan": plan})
    [event] = events(tmp_path / "tff", "plan-offered")
    assert (event["nodes"], event["answered"]) == (5, 5)
    size = 5 * len(plan_of().to_bytes())
    assert size < event["bytes_down"] < size + 5 * 200
    assert found.offered == {k: event[k] for k in ("bytes_down", "bytes_up")}
    of_rounds = sum(r.bytes_down for r in found.rounds)
    assert max(r.bytes_down for r in found.rounds) < size, "no round has them"
    assert found.report()["bytes_down"] == of_rounds + event["bytes_down"]
    shown = "\n".join(str(part) for part in summary(found).renderables[1:])
    assert "before the rounds (the plan): " in shown
    # A continued run offers it again.
    more = {"tff.plan": plan, "train.rounds": 4, "run.resume": "tff"}
    assert go(tmp_path, "tff", more).offered["bytes_down"] == 2 * event["bytes_down"]


def test_without_a_plan_nothing_is_offered(tmp_path):
    found = go(tmp_path, "torch", {})
    assert (found.offered, events(tmp_path / "torch", "plan-offered")) == ({}, [])
    of_rounds = sum(r.bytes_down for r in found.rounds)
    assert found.report()["bytes_down"] == of_rounds


def test_torch_and_plan_silos_reach_the_same_weights(tmp_path, plan, monkeypatch):
    """Silos 0, 2 and 4 train with torch, 1 and 3 run the plan."""
    changes = {"tff.plan": plan, "tff.mixed": True}
    torch = client.uses_torch

    def even(config):
        return int(config["partition-id"]) % 2 == 0

    monkeypatch.setattr(client, "uses_torch", even)
    before = NumpySilo.calls
    mixed = go(tmp_path, "mixed", changes)
    assert NumpySilo.calls - before == 3 * 2
    monkeypatch.setattr(client, "uses_torch", torch)
    go(tmp_path, "tff", {"tff.plan": plan})
    difference = np.abs(weights(tmp_path, "mixed") - weights(tmp_path, "tff"))
    assert difference.max() <= 1e-6
    assert [r.train_metrics for r in mixed.rounds] == [{}, {}, {}]
    assert {r.replies for r in mixed.rounds} == {5}


def test_a_resumed_run_continues_bit_for_bit(tmp_path, plan):
    go(tmp_path, "whole", {"tff.plan": plan})
    go(tmp_path, "halves", {"tff.plan": plan, "train.rounds": 2})
    go(tmp_path, "halves", {"tff.plan": plan, "run.resume": "halves"})
    assert model_bytes(tmp_path, "whole") == model_bytes(tmp_path, "halves")


@pytest.mark.parametrize(
    ("leaf", "value"), [(0, np.nan), (1, -np.inf), (2, np.inf)], ids=str
)
def test_a_step_that_is_not_finite_is_not_taken(
    tmp_path, plan, monkeypatch, leaf, value
):
    """Of the model, or of the momentum, which would make the next one so."""
    update, steps = NumpyCoordinator.update, []

    def sometimes(coordinator, state, report):
        made, metrics = update(coordinator, state, report)
        steps.append(1)
        if len(steps) == 2:
            made[leaf].flat[0] = value
        return made, metrics

    monkeypatch.setattr(NumpyCoordinator, "update", sometimes)
    found = go(tmp_path, "four", {"tff.plan": plan, "train.rounds": 4})
    assert [r.skipped for r in found.rounds] == [False, True, False, False]
    first, second, third, _ = (r.metrics["loss"] for r in found.rounds)
    assert first == second > third  # and the step after it is from the state before
    # What was kept in round 2 is what was kept in round 1.
    steps.clear()
    go(tmp_path, "halves", {"tff.plan": plan, "train.rounds": 2})
    go(
        tmp_path,
        "halves",
        {"tff.plan": plan, "train.rounds": 4, "run.resume": "halves"},
    )
    assert model_bytes(tmp_path, "four") == model_bytes(tmp_path, "halves")


def test_another_plan_does_not_continue_a_run(tmp_path, plan):
    go(tmp_path, "run", {"tff.plan": plan, "train.rounds": 1})
    written(plan_of({"server.lr": 0.5}), tmp_path)
    with pytest.raises(CheckpointError, match="Put the old file back"):
        go(tmp_path, "run", {"tff.plan": plan, "run.resume": "run"})


@pytest.mark.parametrize(
    ("changes", "weighted"),
    [
        ({"robust.rule": "median"}, False),
        ({"robust.rule": "wfagg"}, False),
        ({"anomaly.enabled": "on"}, True),
        ({"compression.codec": "q8", "compression.downlink": "q8"}, True),
        ({"secure.scheme": "bfv"}, False),
        ({"secure.scheme": "secagg"}, False),
        (
            {"privacy.mechanism": "gaussian", "privacy.epsilon": 20.0,
             "privacy.clip": 0.01, "privacy.insecure": True, "server.average": 0.0},
            False,
        ),
    ],
)  # fmt: skip  # a row for each layer
def test_layers_see_ordinary_updates(tmp_path, plan, changes, weighted):
    """Under every layer a plan's run is the torch job's, with the layer's weights."""
    torch_only = {"server.momentum": MOMENTUM, "server.lr": 1.0}
    torch = go(tmp_path, "torch", {**changes, **torch_only})
    tff = go(tmp_path, "tff", {**changes, "tff.plan": plan})
    assert torch.ok
    assert tff.ok
    difference = np.abs(weights(tmp_path, "tff") - weights(tmp_path, "torch"))
    assert difference.max() <= 1e-4  # noise is seeded, on a lattice
    [event] = events(tmp_path / "tff", "tff-plan")
    assert event["weights"] == ("examples" if weighted else "equal")


def test_a_plan_of_another_model_is_refused_before_the_run(tmp_path):
    other = {"weight": np.zeros((3, 6), "f4"), "offset": np.zeros(3, "f4")}
    path = written(plan_of(weights=other), tmp_path)
    with pytest.raises(ConfigError, match=r"not that of task tiny.*bias, offset"):
        go(tmp_path, "run", {"tff.plan": path})


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda path: path.unlink(), "No such file"),
        (lambda path: path.write_bytes(b"PK"), "plan-archive"),
    ],
)
def test_a_file_that_is_no_plan_is_refused_before_the_run(tmp_path, plan, make, reason):
    make(tmp_path / "job.tffplan")
    with pytest.raises(ConfigError, match=reason):
        go(tmp_path, "run", {"tff.plan": plan})


def test_a_server_without_tensorflow_says_so_at_once(tmp_path, plan, monkeypatch):
    monkeypatch.setattr(execution, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"server has no TensorFlow.*\[tff\]"):
        go(tmp_path, "run", {"tff.plan": plan})


def test_silos_without_tensorflow_are_refused_at_registration(
    tmp_path, plan, monkeypatch
):
    require = execution.require_tensorflow

    def missing(who):
        monkeypatch.setattr(execution, "find_spec", lambda name: None)
        require(who)

    monkeypatch.setattr(agreement, "require_tensorflow", missing)
    with pytest.raises(RunError, match=r"No node can take part.*no TensorFlow"):
        go(tmp_path, "run", {"tff.plan": plan})
    assert not events(tmp_path / "run", "round-started")
    assert len(events(tmp_path / "run", "node-refused")) == 5


# One node, its messages by hand.

SIMULATED = {"partition-id": 1, "num-partitions": 5, "simulated": True}
DEPLOYED = {"partition-id": 1, "num-partitions": 5}


def context(node=SIMULATED, **changes):
    register_task("tiny", Task)
    config = {"task.name": "tiny", "tff.plan": "/on/the/server", **changes}
    return make_context(7, dict(node), Job.of(config).config())


def record(**arrays):
    return ArrayRecord({name: pack(values) for name, values in arrays.items()})


def hello(plan, **changes):
    offered = ConfigRecord({**agreement.offer(plan), **changes})
    return Message(RecordDict({"config": offered}), 7, "query")


def train(plan, arrays=None, **changes):
    prepared = np.float32(0.1).tobytes()
    config = {"server-round": 1, PLAN: plan.sha256, PREPARED: prepared, **changes}
    model = ArrayRecord(Task().model(Job(), 0).state_dict())
    content = {"arrays": arrays or model, "config": ConfigRecord(config)}
    return Message(RecordDict(content), 7, "train")


def test_a_simulated_node_agrees_and_trains():
    plan, node = plan_of(), context()
    assert app(hello(plan), node).content["hello"]["version"] == __version__
    reply = app(train(plan), node).content
    assert reply["update"]["delta"].shape == (21,)
    assert reply["metrics"]["num-examples"] == 23


@pytest.mark.parametrize("pinned", [None, "", "0" * 64, "x,y"])
def test_a_deployed_node_runs_no_plan_that_its_operator_did_not_pin(pinned):
    config = DEPLOYED if pinned is None else {**DEPLOYED, "tff-plans": pinned}
    with pytest.raises(ConfigError, match=r"not pinned here. A plan is code"):
        app(hello(plan_of()), context(config))


def test_a_deployed_node_agrees_to_what_its_operator_pinned():
    plan = plan_of()
    pinned = f"{'0' * 64}, {plan.sha256.upper()}"
    node = context({**DEPLOYED, "tff-plans": pinned})
    app(hello(plan), node)
    other = plan_of({"server.lr": 0.5})
    with pytest.raises(ConfigError, match="not pinned here"):
        app(hello(other), node)
    # The pin counts when it is used, too: the operator may have taken it back.
    node.node_config["tff-plans"] = other.sha256
    node.node_config.update(SIMULATED)  # for its data
    with pytest.raises(ConfigError, match="not pinned here"):
        app(train(plan), node)


def test_a_pin_binds_simulated_nodes_too():
    with pytest.raises(ConfigError, match="not pinned here"):
        app(hello(plan_of()), context({**SIMULATED, "tff-plans": "0" * 64}))


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({PLAN: "0" * 64}, "plan-hash"),
        ({"tff-plan-bytes": plan_of({"server.lr": 0.5}).to_bytes()}, "plan-hash"),
        ({"tff-plan-bytes": b"PK"}, "plan-archive"),
        ({"tff-plan-bytes": plan_of().to_bytes()[:-40]}, "plan-archive"),
        ({"tff-plan-bytes": "text"}, "no plan"),
    ],
)
def test_a_plan_that_is_not_what_it_says_is_refused(change, code):
    with pytest.raises(ProtocolError, match=code):
        app(hello(plan_of(), **change), context())


def test_a_node_that_was_restarted_asks_for_the_plan_again():
    with pytest.raises(ConfigError, match="does not have the plan"):
        app(train(plan_of()), context())


def test_a_node_keeps_the_plan_it_agreed_to():
    plan, other, node = plan_of(), plan_of({"server.lr": 0.5}), context()
    app(hello(plan), node)
    with pytest.raises(ConfigError, match="does not have the plan"):
        app(train(other), node)


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({PREPARED: b"abc"}, "expected 4 bytes"),
        ({PREPARED: bytes(8)}, "expected 4 bytes"),
        ({PREPARED: 0.1}, "expected 4 bytes"),
        ({"arrays": record(weight=np.zeros((3, 6), "f4"))}, "is missing"),
        ({"arrays": record(weight=np.zeros(3, "f4"), bias=np.zeros(3))}, "shape"),
    ],
)
def test_a_train_message_that_does_not_fit_the_plan_is_refused(change, code):
    plan, node = plan_of(), context()
    app(hello(plan), node)
    with pytest.raises(ProtocolError, match=code):
        app(train(plan, **change), node)


def test_a_torch_silo_needs_a_mixed_job():
    plan, config = plan_of(), {**SIMULATED, "tff-engine": "torch"}
    with pytest.raises(ConfigError, match=r"tff\.mixed = false"):
        app(hello(plan), context(config, **{"train.batch-size": 8}))
    mixed = {"tff.mixed": True, "train.batch-size": 8}
    app(hello(plan), context(config, **mixed))
    with pytest.raises(ConfigError, match="expected tensorflow or torch"):
        app(hello(plan), context({**SIMULATED, "tff-engine": "jax"}))


def test_examples_become_the_plans_arrays():
    training = Training.of(plan_of())
    pairs = [(np.full(6, i, np.float64), i % 3) for i in range(4)]
    x, y = client.arrays_of(pairs, training.element)
    assert (x.dtype, y.dtype, x.shape) == (np.float32, np.int64, (4, 6))
    assert y.tolist() == [0, 1, 2, 0]
    with pytest.raises(DataError, match=r"x of shape \(6,\).*have \(5,\)"):
        client.arrays_of([(np.zeros(5), 0)], training.element)
    with pytest.raises(DataError, match="these are set"):
        client.arrays_of({1, 2}, training.element)


def test_batches_are_those_of_torch_tasks():
    """The same draws as ``TorchTask._fit`` makes: one permutation for each pass."""
    passes, rng = Passes(5, 10, 3), np.random.default_rng(5)
    expected = [rng.permutation(10).tolist() for _ in range(3)]
    assert [rows.tolist() for rows in passes] == expected
    # A plan that reads the data twice has the same passes twice.
    assert [passes[i].tolist() for i in (0, 1, 1, 0, 2)] == [
        expected[i] for i in (0, 1, 1, 0, 2)
    ]


def test_threads_that_ask_for_passes_at_once_all_get_the_right_ones():
    expected, passes = list(Passes(5, 300, 8)), Passes(5, 300, 8)
    interval, wrong = sys.getswitchinterval(), []

    def ask():
        for i in [*range(8)] * 20:
            if not np.array_equal(passes[i], expected[i]):
                wrong.append(i)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    sys.setswitchinterval(1e-6)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert wrong == []


def test_a_plan_with_counts_runs_with_the_mean(tmp_path, monkeypatch):
    count = leaf((2,), "int64", role="aggregator")
    plan, seen = plan_of(more=[count]), []

    class Counting(NumpySilo):
        def work(self, x, y, *rest, **more):
            leaves = super().work(x, y, *rest, **more)
            return [*leaves, np.array([len(x), 1], np.int64)]

    class Counted(NumpyCoordinator):
        def update(self, state, report):
            seen.append(report.pop().tolist())
            return super().update(state, report)

    monkeypatch.setattr(agreement, "SiloRuntime", Counting)
    monkeypatch.setattr(server, "CoordinatorRuntime", Counted)
    go(tmp_path, "run", {"tff.plan": written(plan, tmp_path)})
    assert seen == [[sum(20 + 3 * i for i in range(5)), 5]] * 3  # exact sums
    # The guard drops a silo that leaves out a count, which would take it from all.
    seen.clear()
    reply = WorkLayout.reply

    def without(layout, leaves):
        made = reply(layout, leaves)
        if made.examples == 20:
            del made.metrics["tff-5-0"]
        return made

    monkeypatch.setattr(WorkLayout, "reply", without)
    go(tmp_path, "other", {"tff.plan": written(plan, tmp_path)})
    assert seen == [[sum(20 + 3 * i for i in range(1, 5)), 4]] * 3


def test_the_tests_job_is_what_the_plan_was_compiled_for(tmp_path):
    job = job_of(tmp_path, "x", ROUNDS)
    assert job.train.batch_size == plan_of().job["train.batch-size"]
    assert isinstance(go(tmp_path, "y", {}), RunResult)
