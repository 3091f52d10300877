"""Computations of a user's own over Flower, with pieces that are numpy functions."""

from __future__ import annotations

import json
from collections.abc import Mapping

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict

from client_app.main import app
from server_app.checkpoint import load_model
from tests.support.runs import run
from tests.support.task import FEATURES, FailingNodes, TinyTask
from tests.tff_bridge.numpy_plan import SPEC, events, leaf, numpy_pieces, plan_of
from tff_bridge import agreement
from tff_bridge.analytics import MAX_RESULT, Analytics, checked
from tff_bridge.analytics_server import SUMS, AnalyticsServer, numbered
from tff_bridge.capabilities import check, compiled_settings
from tff_bridge.manifest import Leaf, Piece, Program
from tff_bridge.plan import Plan
from tff_bridge.strategy import PLAN
from truststram._flower import make_context
from truststram.errors import ConfigError, ProtocolError, RunError
from truststram.job import Job
from truststram.result import RunResult
from truststram.summary import summary
from truststram.tasks import register_task

ALONE = {"train.rounds": 1, "round.evaluate": "none"}
SIMULATED = {"partition-id": 1, "num-partitions": 5, "simulated": True}
SUM = {"role": "aggregator"}
SENT = [leaf(**SUM), leaf((FEATURES,), **SUM), leaf((), "int64", **SUM)]
RESULT = [leaf((FEATURES,), path="1/mean"), leaf(path="1/more/rows", dtype="int64")]


def analytics_plan(
    sent=SENT, result=RESULT, prepared=(), elements=2, spec: Mapping[str, object] = {}
) -> Plan:
    """Return a plan that asks for numbers of rows and sums of the features."""
    batch = (leaf((None, FEATURES)), leaf((None,), "int64"))[:elements]
    data = Leaf(path="0", tensor="d:0", dtype="dataset", elements=batch)
    total = [leaf(x.shape, x.dtype) for x in sent if x.slot == "accumulate"]
    sealed = [leaf(x.shape, x.dtype) for x in sent if x.slot != "accumulate"]
    pieces = {
        "init": ([], []),
        "prepare": ([], prepared),
        "work": ([data, *prepared], sent),
        "zero": ([], total),
        "accumulate": ([*total, *total], total),
        "merge": ([*total, *total], total),
        "report": (total, total),
        "update": ([*total, *sealed], result),
    }
    made = {n: Piece(inputs=tuple(i), outputs=tuple(o)) for n, (i, o) in pieces.items()}
    own = {"train.local-epochs": 1, "tff.computation": "own.py"}
    program = Program(pieces=made, data=1, additive=True)
    return Plan.of({**SPEC, **own, **spec}, {"numpy": "2"}, {"analytics": program}, {})


class Silo:
    def __init__(self, program=None):
        """Read no program: numpy stands for it."""

    def work(self, x, y, order, batch_size, prepared, seconds=None):
        assert order is None, "each row once, in its order"
        return [
            np.asarray(len(x), np.float32),
            x.sum(0, dtype=np.float32),
            np.asarray(2**53 + 1, np.int64),  # no float32 or float64 holds it
        ]


class Coordinator:
    def __init__(self, program=None):
        """Read no program: numpy stands for it."""

    def init(self):
        return []

    def prepare(self, state):
        return []

    def zero(self):
        kinds = [((), "f4"), ((FEATURES,), "f4"), ((), "i8")]
        return [np.zeros(*kind) for kind in kinds]

    def accumulate(self, total, sent):
        return [a + b for a, b in zip(total, sent, strict=True)]

    def result(self, state, total):
        return [total[1] / total[0], total[2]]


@pytest.fixture(autouse=True)
def _numpy_pieces(monkeypatch):
    yield from numpy_pieces(monkeypatch, Silo, Coordinator)


@pytest.fixture
def path(tmp_path):
    analytics_plan().write(tmp_path / "own.tffplan")
    return str(tmp_path / "own.tffplan")


def means(partitions):
    rows = [TinyTask()._rows(p, 20 + 3 * p).x.numpy() for p in partitions]
    return np.concatenate(rows).mean(0)


def test_a_run_gives_the_result_of_all_silos_rows(tmp_path, path):
    found = run(tmp_path, changes={"tff.plan": path, **ALONE})
    assert found.ok
    [event] = events(tmp_path / "run", "tff-result")
    assert found.computed == {"silos": 5, "result": event["result"]}
    assert event["result"]["more.rows"] == 5 * (2**53 + 1)  # integers are exact
    np.testing.assert_allclose(event["result"]["mean"], means(range(5)), rtol=1e-5)
    arrays = load_model(tmp_path / "run" / "model.safetensors")
    np.testing.assert_array_equal(
        arrays["mean"].numpy(), np.float32(event["result"]["mean"])
    )
    assert json.loads(found.write().read_text())["computed"] == found.computed
    [plan] = events(tmp_path / "run", "tff-plan")
    assert (plan["algorithm"], plan["pinned"]) == ("own.py", "nobody: simulation")
    [report] = found.rounds
    assert (report.replies, report.metrics, report.train_metrics) == (5, {}, {})


def test_the_result_is_shown(tmp_path, path):
    found = run(tmp_path, changes={"tff.plan": path, **ALONE})
    shown = "\n".join(str(part) for part in summary(found).renderables[1:])
    assert "Result of 5 silos:" in shown
    assert f"more.rows: {5 * (2**53 + 1)}" in shown
    assert f"mean: [{found.computed['result']['mean'][0]:.4g}, " in shown


def test_silos_that_fail_are_told_and_left_out(tmp_path, path):
    found = run(tmp_path, changes={"tff.plan": path, **ALONE}, task=FailingNodes)
    assert found.computed["silos"] == 3
    np.testing.assert_allclose(
        found.computed["result"]["mean"], means([0, 2, 4]), rtol=1e-5
    )
    dropped = events(tmp_path / "run", "reply-dropped")
    assert [(e["node"], e["code"]) for e in dropped] == [
        *(("1", "client-error"), ("3", "client-error")),
    ]


def test_no_answer_is_no_result(tmp_path, path):
    class Nobody(TinyTask):
        fail_on = frozenset(range(5))

    with pytest.raises(RunError, match="no silo sent a valid result"):
        run(tmp_path, changes={"tff.plan": path, **ALONE}, task=Nobody)
    found = RunResult.read(tmp_path / "run")
    assert (found.status, found.computed) == ("failed", {})


GOOD = [np.float32(2), np.ones(FEATURES, np.float32), np.int64(1)]


def with_leaf(i, values):
    return [*GOOD[:i], np.asarray(values), *GOOD[i + 1 :]]


@pytest.mark.parametrize(
    ("sums", "code"),
    [
        (with_leaf(1, np.full(FEATURES, np.nan, "f4")), "not-finite"),
        (with_leaf(0, np.float32(np.inf)), "not-finite"),
        (with_leaf(1, np.ones(FEATURES + 1, "f4")), "shape"),
        (with_leaf(1, np.ones(FEATURES)), "dtype"),
        (with_leaf(2, np.float32(1)), "dtype"),
        (GOOD[:2], "array-keys"),
        ([*GOOD, np.float32(1)], "array-keys"),
        (None, "array-records"),
    ],
)
def test_a_hostile_silo_is_left_out(sums, code):
    """Node 1 is hostile, node 2 honest, node 3 was not asked, node 2 answers twice."""
    strategy = AnalyticsServer(Analytics.of(analytics_plan()), Coordinator())
    told, strategy._asked = [], {1, 2}
    strategy.emit = lambda kind, **data: told.append((kind, data))
    replies = [
        reply(1, {} if sums is None else {SUMS: numbered(list(map(np.asarray, sums)))}),
        *(
            reply(node, {SUMS: numbered(list(map(np.asarray, GOOD)))})
            for node in (2, 3)
        ),
        reply(2, {SUMS: numbered(list(map(np.asarray, GOOD)))}),
    ]
    arrays, _ = strategy.aggregate_train(1, replies)
    assert arrays["mean"].numpy().tolist() == [0.5] * FEATURES
    assert [data.get("code") for _, data in told] == [
        *(code, "unknown-node", "unknown-node", None),
    ]
    assert told[-1][1]["silos"] == 1


def reply(node, records):
    make_context(1, {}, {})
    asked = Message(RecordDict(), node, "query.compute")
    return Message(RecordDict(records), reply_to=asked)


def test_what_json_does_not_have_is_none():
    class Nan(Coordinator):
        def result(self, state, total):
            return [np.array([1, np.nan, np.inf, 2, 3, 4], "f4"), total[2]]

    strategy = AnalyticsServer(Analytics.of(analytics_plan()), Nan())
    told, strategy._asked = [], {2}
    strategy.emit = lambda kind, **data: told.append(data)
    arrays, _ = strategy.aggregate_train(
        1, [reply(2, {SUMS: numbered(list(map(np.asarray, GOOD)))})]
    )
    assert told[0]["result"]["mean"] == [1.0, None, None, 2.0, 3.0, 4.0]
    assert np.isnan(arrays["mean"].numpy()[1])


CONFLICTS = [
    {"privacy.mechanism": "gaussian"},
    {"secure.scheme": "ckks"},
    {"robust.rule": "median"},
    {"anomaly.enabled": "on"},
    {"compression.codec": "q8"},
    {"compression.downlink": "q8"},
    {"adversary.kind": "label-flip", "adversary.fraction": 0.2},
    {"tff.mixed": True, "train.batch-size": 8},
    {"server.average": 0.5},
    {"train.rounds": 2},
    {"round.evaluate": "server"},
]


@pytest.mark.parametrize("changes", CONFLICTS, ids=lambda c: next(iter(c)))
def test_what_a_computation_cannot_have_is_refused_on_both_sides(changes):
    plan, run_job = analytics_plan(), {"task.name": "tiny", "tff.plan": "x", **ALONE}
    assert isinstance(check(plan, Job.of(run_job)), Analytics)
    key = next(iter(changes)).partition(".")[0]
    with pytest.raises(ConfigError, match=rf"tff\.plan with {key}"):
        check(plan, Job.of({**run_job, **changes}))
    with pytest.raises(ConfigError, match=rf"tff\.plan with {key}"):
        app(hello(plan), context(**changes))


def context(node=SIMULATED, **changes):
    register_task("tiny", TinyTask)
    config = {"task.name": "tiny", "tff.plan": "/on/the/server", **ALONE, **changes}
    return make_context(7, dict(node), Job.of(config).config())


def hello(plan):
    return Message(RecordDict({"config": agreement.offer(plan)}), 7, "query")


def query(plan, kind="query.compute", **arrays):
    config = ConfigRecord({PLAN: plan.sha256, "server-round": 1})
    content = {"config": config, **(arrays or {"prepared": ArrayRecord()})}
    return Message(RecordDict(content), 7, kind)


def test_a_silo_answers_the_plan_it_agreed_to_only():
    plan, node = analytics_plan(), context()
    with pytest.raises(ConfigError, match="does not have the plan"):
        app(query(plan), node)
    app(hello(plan), node)
    found = app(query(plan), node).content[SUMS]
    assert float(found["0"].numpy()) == 23
    with pytest.raises(ProtocolError, match="array-keys"):
        app(query(plan, prepared=numbered([np.zeros(2)])), node)
    with pytest.raises(ConfigError, match="no train, only analytics"):
        app(query(plan, "train", arrays=ArrayRecord()), node)


def test_a_deployed_silo_computes_nothing_that_its_operator_did_not_pin():
    plan = analytics_plan()
    deployed = {"partition-id": 1, "num-partitions": 5}
    with pytest.raises(ConfigError, match="not pinned here"):
        app(hello(plan), context(deployed))
    app(hello(plan), context({**deployed, "tff-plans": plan.sha256}))


def test_a_job_that_says_it_is_private_gets_no_exact_sums():
    """A node that wants privacy is not asked round it: by another kind of message."""
    plan, node = analytics_plan(), context()
    app(hello(plan), node)
    private = {"task.name": "tiny", "tff.plan": "x", "privacy.mechanism": "gaussian"}
    node.run_config.update(Job.of({**private, **ALONE}).config())
    with pytest.raises(ConfigError, match=r"tff\.plan with privacy\.mechanism"):
        app(query(plan), node)
    node = context({**SIMULATED, "max-epsilon": 3.0})
    with pytest.raises(ConfigError, match="no differential privacy"):
        app(query(plan), node)


def test_a_training_plan_is_not_computed():
    plan, node = plan_of(), context(**{"train.rounds": 2})
    app(hello(plan), node)
    with pytest.raises(ConfigError, match="no analytics, only train"):
        app(query(plan), node)


def test_a_run_takes_one_round_from_the_plan(path):
    settings = compiled_settings(path)
    assert {k: settings[k] for k in ALONE} == ALONE


SEALED = leaf((3,), "int64", role="aggregator", slot="bitwidth", limit=2**32)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"sent": [*SENT, SEALED]}, "secure sum of integers"),
        ({"elements": 1}, "other data than batches"),
        ({"prepared": [leaf((None,))]}, "without a fixed size"),
        ({"result": [leaf((), "string", path="1")]}, "texts"),
        ({"result": [leaf((MAX_RESULT + 1,), path="1")]}, "more than 100,000 numbers"),
        ({"result": []}, "no result"),
        ({"result": [leaf(path="1/a/b"), leaf(path="1/a.b")]}, "two parts of one name"),
        ({"spec": {"train.batch-size": 0}}, "how many rows are a batch"),
    ],
)
def test_computations_that_cannot_be_run_say_why(options, reason):
    with pytest.raises(ConfigError, match=reason):
        checked(analytics_plan(**options))


def test_a_single_result_is_called_result():
    plan = analytics_plan(result=[leaf(path="1")])
    assert Analytics.of(plan).names == ("result",)
