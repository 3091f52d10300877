"""Secure aggregation over Flower messages: right means, whoever drops out."""

from __future__ import annotations

import numpy as np
import pytest
from flwr.app import Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import FedAdam, FedAvg

from strategies.guard.layer import Guard
from strategies.mean.layer import WeightedMean
from strategies.secure.contribution import numbers_of
from strategies.secure.graph import MALICIOUS, SEMI_HONEST, degree
from strategies.secure.identity import Identity
from strategies.secure.secagg_layer import SecAggSum
from strategies.secure.secagg_mod import secagg_mod
from strategies.secure.secagg_wire import Request, Settings, word_of
from strategies.secure.trust import trust_line
from strategies.server_sgd import ServerSGD
from tests.strategies.secure.masked import (
    CLOSE,
    STEPS,
    THREATS,
    Federation,
    federation,
    job_of,
)
from tests.support.federation import model, plus, reply_content, weights
from truststram.engine import run_apps


@THREATS
@pytest.mark.parametrize(
    "inner", [ServerSGD, FedAvg, lambda: Guard(WeightedMean(ServerSGD()))]
)
def test_the_model_moves_by_the_mean_of_the_updates(threat, inner):
    f = federation(threat=threat, inner=inner)
    found, metrics = f.round()
    np.testing.assert_allclose(found, f.expected(), **CLOSE)
    assert metrics["train-loss"] == pytest.approx(1.0, abs=1e-5)
    assert f.of("secure-sum") == [{"round": 1, "clients": 7, "clipped": 0.0}]


def test_a_stock_server_optimizer_stands_inside():
    f = federation(inner=lambda: FedAdam(eta=0.1))
    found, _ = f.round()
    assert np.all(found > 0.5)


def test_examples_are_added_inside_the_sum():
    class Noting(ServerSGD):
        def aggregate_train(self, server_round, replies):
            [self.reply] = replies
            return super().aggregate_train(server_round, [self.reply])

    f = federation(inner=Noting)
    f.round()
    numbers = f.layer.inner.reply.content["metrics"]
    assert numbers["num-examples"] == sum(10 + node for node in range(7))


@THREATS
@pytest.mark.parametrize("stage", ["keys", "shares", "mask", "consent", "unmask"])
def test_nodes_that_are_gone_at_a_stage(threat, stage):
    f = federation(threat=threat, gone={stage: [1, 5]})
    found, _ = f.round()
    out = [1, 5] if stage in ("keys", "shares", "mask") else []
    np.testing.assert_allclose(found, f.expected(out), **CLOSE)
    assert f.of("secure-sum")[0]["clients"] == 7 - len(out)
    told = [(e["phase"], e["code"]) for e in f.of("reply-dropped")]
    if stage == "consent" and threat == SEMI_HONEST:
        assert told == []  # there is no such stage
    else:
        where = "train" if stage == "mask" else stage
        assert told == [(where, "client-error")] * 2


def test_some_are_gone_at_every_stage():
    gone = {"keys": [0], "shares": [1], "mask": [2], "unmask": [3]}
    f = federation(9, gone=gone)
    found, _ = f.round()
    np.testing.assert_allclose(found, f.expected([0, 1, 2]), **CLOSE)


@pytest.mark.parametrize(
    "sizes", [{"secure.max-cohort": 6}, {"secure.min-cohort": 8}], ids=["most", "least"]
)
def test_a_cohort_of_a_wrong_size_is_refused_before_anybody_is_asked(sizes):
    f = federation(**sizes)
    assert f.begin() == []
    assert [e["code"] for e in f.of("secure-refused")] == ["cohort-size"]
    assert f.sent == []


def test_silence_is_over_at_the_deadline():
    f = Federation(5, **{"round.deadline": 0.5})
    push = f.grid.push_messages

    def losing(messages):
        silent = f.grid.get_node_ids()[2]
        kept = [m for m in messages if m.metadata.dst_node_id != silent]
        return [*push(kept), *[None] * (len(messages) - len(kept))]

    f.grid.push_messages = losing
    found, _ = f.round()
    np.testing.assert_allclose(found, f.expected([2]), **CLOSE)


def test_deployments_keep_their_secrets_in_a_file(tmp_path, monkeypatch):
    f = federation(5, clear=True)
    ids = [Identity.generate(f"silo-{i}") for i in range(5)]
    lines = "\n".join(i.member.line() for i in ids)
    for i, node in enumerate(f.grid.get_node_ids()):
        folder = tmp_path / str(i)
        folder.mkdir()
        ids[i].save(folder / "identity.key")
        (folder / "roster.txt").write_text(lines)
        f.grid.context(node).node_config["secure-keys"] = str(folder)
    monkeypatch.setenv("TRUSTSTRAM_ROSTER", str(tmp_path / "0" / "roster.txt"))
    modes = []

    def look(stage, node, message):
        if stage != "keys":
            [state] = (tmp_path / str(node)).glob("secagg.state-*")
            modes.append(state.stat().st_mode & 0o777)
        return message

    f.ask = look
    found, _ = f.round()
    np.testing.assert_allclose(found, f.expected(), **CLOSE)
    assert modes == [0o600] * 15
    assert not list(tmp_path.glob("*/secagg.state*"))
    assert f.of("secure-plan")[0]["keys"] == "operator"


def test_a_deployment_without_keys_is_refused(monkeypatch):
    f = federation(4)
    for node in f.grid.get_node_ids():
        f.grid.context(node).node_config["simulated"] = False
    assert f.round() == (None, None)
    assert "has no keys" in f.of("reply-dropped")[0]["detail"]


def test_the_plan_says_who_must_collude():
    for threat, words in {
        SEMI_HONEST: ("follows the protocol", "half"),
        MALICIOUS: ("whatever it does", "third"),
    }.items():
        f = federation(threat=threat)
        f.begin()
        f.begin()
        [plan] = f.of("secure-plan")
        assert all(word in plan["trust"] for word in words)
        assert "\n" not in plan["trust"]
        assert (plan["scheme"], plan["bits"], plan["most"]) == ("secagg", 25, 100)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({}, False),
        ({"secure.max-cohort": 101}, True),
        ({"secure.max-cohort": 101, "secure.min-cohort": 4, "secure.colluders": 1}, 0),
        ({"secure.max-cohort": 101, "secure.threat": MALICIOUS}, False),
    ],
)
def test_the_trust_of_neighbourhoods_is_told_where_there_are_some(changes, told):
    job = job_of(**changes)
    assert ("twentieth" in trust_line(job)) == told
    session = Settings(job).session("1", Request("keys", 1, "ab" * 32))
    most = degree(session.max_cohort, session.threat, session.colluders)
    assert (most < session.max_cohort - 1) == told


@pytest.mark.parametrize(
    ("examples", "counted"),
    [(7.0, 7), (np.inf, 2**62), (1e300, 2**62), (-1.0, 0), (-np.inf, 0), (np.nan, 0)],
)
def test_any_number_of_examples_is_read(examples, counted):
    content = RecordDict({"metrics": MetricRecord({"num-examples": examples, "a": 2})})
    assert numbers_of(content) == ({"a": 2.0}, counted)


def test_stages_are_told_with_their_bytes():
    f = federation()
    f.round()
    stages = f.of("secure-stage")
    assert [e["stage"] for e in stages] == ["keys", "shares", "unmask"]
    assert all((e["asked"], e["answered"]) == (7, 7) for e in stages)
    assert all(e["bytes_up"] > 0 and e["bytes_down"] > 0 for e in stages)


def test_groups_have_a_sum_each():
    f = Federation(8, **{"secure.group-size": 4})

    class Noting(ServerSGD):
        def aggregate_train(self, server_round, replies):
            self.replies = list(replies)
            return None, None

    f.layer = SecAggSum(f.job, Noting())
    f.layer.emit = lambda kind, **data: f.events.append((kind, data))
    f.round()
    assert len(f.layer.inner.replies) == 2
    assert [e["clients"] for e in f.of("secure-sum")] == [4, 4]
    state = f.layer.state()
    assert state["cheats"] == []
    members = {name for group in state["groups"] for name in group}
    assert members == set(map(str, f.grid.get_node_ids()))
    again = SecAggSum(f.job, ServerSGD())
    again.load_state(state)
    assert again.state() == state


def test_a_group_that_is_too_small_is_left_out():
    f = Federation(8, **{"secure.group-size": 4})
    f.begin()
    members = f.layer._groups.members[0]
    nodes = [i for i, n in enumerate(f.grid.get_node_ids()) if str(n) in members]
    f.gone = {"mask": nodes[:3]}
    f.round()
    assert [e["clients"] for e in f.of("secure-sum")] == [4]
    assert [e["code"] for e in f.of("secure-refused")] == ["too-few-left"]


def test_a_node_that_came_after_the_groups_is_left_out():
    f = Federation(8, inner=WeightedMean, **{"secure.group-size": 4})
    names = sorted(map(str, f.grid.get_node_ids()))
    f.layer.load_state({"groups": [names[:4], names[4:7]]})
    f.round()
    assert [e["clients"] for e in f.of("secure-sum")] == [4, 3]
    told = [(e["node"], e["code"]) for e in f.of("reply-dropped")]
    assert told == [(names[7], "unknown-node")]


def test_the_grid_is_as_fine_as_the_largest_cohort_allows():
    for most, bits in {3: 30, 32: 27, 100: 25, 1000: 22}.items():
        settings = Settings(job_of(**{"secure.max-cohort": most}))
        assert (settings.quantiser.bits, settings.quantiser.width) == (bits, 32)
        slots = settings.slots({"values": 3, "metrics": []})
        assert word_of(slots).itemsize == 4  # of a float32


def test_it_stands_in_a_stock_app_around_a_stock_strategy():
    job = job_of()
    app = ClientApp()

    @app.train(mods=[secagg_mod(job)])
    def train(message, context):
        step = STEPS[int(context.node_config["partition-id"])]
        arrays = plus(message.content["arrays"], step)
        return Message(reply_content(arrays), reply_to=message)

    @app.evaluate()
    def evaluate(message, context):
        return Message(reply_content(model()), reply_to=message)

    server = ServerApp()

    @server.main()
    def main(grid, context):
        result = SecAggSum(job, FedAvg()).start(grid, model(0.0), num_rounds=2)
        expected = 2 * np.mean([STEPS[i] for i in range(4)])
        np.testing.assert_allclose(weights(result.arrays), expected, **CLOSE)

    run_apps(server, app, nodes=4)
