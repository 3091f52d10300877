"""Secure aggregation over Flower messages: right means, whoever drops out or forges."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from flwr.app import ConfigRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import FedAdam, FedAvg

from strategies.guard.layer import Guard
from strategies.mean.layer import WeightedMean
from strategies.secure import secagg_client
from strategies.secure.contribution import numbers_of
from strategies.secure.graph import MALICIOUS, SEMI_HONEST, degree
from strategies.secure.identity import Identity
from strategies.secure.secagg_layer import SecAggSum
from strategies.secure.secagg_mod import secagg_mod
from strategies.secure.secagg_wire import Request, Settings, word_of
from strategies.secure.trust import trust_line
from strategies.secure.wire import SECURE
from strategies.server_sgd import ServerSGD
from tests.strategies.secure.masked import STEPS, Federation, job_of, stage_of
from tests.support.federation import model, plus, reply_content, weights
from truststram.engine import run_apps
from truststram.errors import ConfigError
from truststram.job import Job

THREATS = pytest.mark.parametrize("threat", [SEMI_HONEST, MALICIOUS])
# One step of 25 bits and the float32 of the model.
CLOSE = {"rtol": 0, "atol": 1e-6}


def federation(nodes=7, threat=SEMI_HONEST, **options):
    return Federation(nodes, **{"secure.threat": threat}, **options)


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


@THREATS
@pytest.mark.parametrize("stage", ["keys", "shares", "mask", "unmask"])
def test_too_few_are_left_and_the_model_is_kept(threat, stage):
    f = federation(threat=threat, gone={stage: range(5)})
    assert f.round() == (None, None)
    [refused] = f.of("secure-refused")
    assert refused["code"] in ("cohort-size", "too-few-left", "too-few-shares")
    f.gone = {}
    found, _ = f.round()  # the same cohort may try again
    np.testing.assert_allclose(found, f.expected(), **CLOSE)


@THREATS
def test_no_two_sums_of_a_model_differ_by_a_node(threat):
    """As after a restart of the server, or as a server would that subtracts."""
    f = federation(threat=threat)
    first, _ = f.round()
    f.number -= 1
    f.gone = {"mask": [3]}
    assert f.round() == (None, None)
    assert "another sum with some of these nodes" in f.of("reply-dropped")[-1]["detail"]
    assert "run.seed" in f.of("reply-dropped")[-1]["detail"]
    f.gone = {"keys": [3]}  # later, and never known to the others in this round
    assert f.round() == (None, None)
    f.number, f.gone = 0, {}
    again, _ = f.round()  # the same nodes: they repeat what they have said
    np.testing.assert_array_equal(again, first)
    f.arrays, f.gone = model(0.7), {"mask": [3]}
    found, _ = f.round()
    np.testing.assert_allclose(found, 0.2 + f.expected([3]), **CLOSE)


@pytest.mark.parametrize("stage", ["mask", "unmask"])
def test_a_round_whose_sum_was_not_opened_is_repeated_with_others(stage):
    f = federation(gone={stage: range(5)})
    assert f.round() == (None, None)
    f.gone = {"keys": [6]}  # the same model, another cohort
    found, _ = f.round()
    np.testing.assert_allclose(found, f.expected([6]), **CLOSE)


def test_samples_of_the_nodes_follow_a_round_that_failed():
    f = federation(gone={"keys": [0, 1], "unmask": range(7)})
    assert f.round() == (None, None)
    f.gone = {"keys": [5, 6], "unmask": range(7)}
    assert f.round() == (None, None)
    f.gone = {"keys": [2, 3]}
    found, _ = f.round()
    np.testing.assert_allclose(found, f.expected([2, 3]), **CLOSE)


def test_towards_a_malicious_server_quorums_of_a_repeated_round_must_meet():
    f = federation(threat=MALICIOUS, gone={"mask": range(3)})
    assert f.round() == (None, None)  # four have masked, five must consent
    f.gone = {"keys": [5, 6]}
    assert f.round() == (None, None)
    assert "masked an update" in f.of("reply-dropped")[-1]["detail"]
    f.gone = {"keys": [6]}
    found, _ = f.round()
    np.testing.assert_allclose(found, f.expected([6]), **CLOSE)


def test_towards_a_malicious_server_consent_binds():
    f = federation(threat=MALICIOUS, gone={"unmask": range(7)})
    assert f.round() == (None, None)  # all have consented: for them it may be open
    f.gone = {"keys": [6]}
    assert f.round() == (None, None)
    f.gone = {}
    found, _ = f.round()
    np.testing.assert_allclose(found, f.expected(), **CLOSE)


@pytest.mark.parametrize(
    "sizes", [{"secure.max-cohort": 6}, {"secure.min-cohort": 8}], ids=["most", "least"]
)
def test_a_cohort_of_a_wrong_size_is_refused_before_anybody_is_asked(sizes):
    f = federation(**sizes)
    assert f.begin() == []
    assert [e["code"] for e in f.of("secure-refused")] == ["cohort-size"]
    assert f.sent == []


@pytest.mark.parametrize("stays", [True, False])
def test_who_dealt_wrong_shares_is_left_out_from_then_on(monkeypatch, stays):
    f, at = federation(gone={"mask": [] if stays else [2]}), threading.local()
    right = secagg_client.share

    def asked(stage, node, message):
        at.node = node
        return message

    def dealt(secret, *sizes):
        return right(secret ^ (at.node == 2), *sizes)

    f.ask = asked
    with monkeypatch.context() as patch:
        patch.setattr(secagg_client, "share", dealt)
        assert f.round() == (None, None)
        assert f.of("secure-refused")[0]["code"] == "dealer"
        f.gone = {}
        if stays:  # the others opened a sum with it, and open no other of this model
            assert f.round() == (None, None)
            f.arrays = model(0.7)
        found, _ = f.round()
    assert "dealer" in f.codes()
    step = 0.2 if stays else 0.0
    np.testing.assert_allclose(found, step + f.expected([2]), **CLOSE)
    again = SecAggSum(f.job, ServerSGD())
    again.load_state(f.layer.state())
    assert again.state()["cheats"] == f.layer.state()["cheats"] != []


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


# Replies that are not what they should be.


def flipped(frame, place):
    data = bytearray(frame)
    data[place] ^= 1
    return bytes(data)


BAD = {
    "frame": lambda frame, f: flipped(frame, 0),
    "frame ": lambda frame, f: b"",
    "unknown-key": lambda frame, f: flipped(frame, 10),
    "signature": lambda frame, f: flipped(frame, 60),
    "size": lambda frame, f: frame[:-4],
    "size ": lambda frame, f: frame + bytes(4),
    "body": lambda frame, f: flipped(frame, len(frame) - 1),
    # Of another stage of its own.
    "stage": lambda frame, f: f.frames["shares", 2],
}


@pytest.mark.parametrize("code", BAD)
def test_bad_masked_updates_are_dropouts(code):
    f = federation()
    change = BAD[code]
    f.answer = lambda stage, node, frame: (
        change(frame, f) if (stage, node) == ("mask", 2) else frame
    )
    found, _ = f.round()
    assert f.codes() == [code.strip()]
    np.testing.assert_allclose(found, f.expected([2]), **CLOSE)


def test_the_frame_of_another_node_is_a_dropout():
    f, last = federation(), []

    def swapped(stage, node, frame):
        first, *others = [n for at, n, _ in f.sent if at == stage]
        if stage != "mask" or len(others) < 6:
            return frame
        last.append(node)
        return f.frames["mask", first]

    f.answer = swapped
    found, _ = f.round()
    assert f.codes() == ["unknown-node"]
    np.testing.assert_allclose(found, f.expected(last), **CLOSE)


@pytest.mark.parametrize("stage", ["keys", "shares", "consent", "unmask"])
def test_bad_answers_of_other_stages_are_dropouts(stage):
    f = federation(threat=MALICIOUS)
    f.answer = lambda at, node, frame: (
        flipped(frame, len(frame) - 1) if (at, node) == (stage, 2) else frame
    )
    found, _ = f.round()
    assert f.codes() == ["body"]
    out = [2] if stage in ("keys", "shares") else []
    np.testing.assert_allclose(found, f.expected(out), **CLOSE)


def test_a_frame_of_an_earlier_round_is_dropped():
    f = federation()
    f.round()
    old = f.frames
    f.arrays = model(0.6)
    f.answer = lambda stage, node, frame: old[stage, node] if node == 2 else frame
    found, _ = f.round()
    assert f.codes() == ["round"]
    np.testing.assert_allclose(found, 0.1 + f.expected([2]), **CLOSE)


def test_an_update_of_another_form_is_a_dropout():
    f = federation()

    def another_metric(node, reply):
        if node == 2:
            reply.content["metrics"]["extra"] = 1.0
        return reply

    f.report = another_metric
    found, _ = f.round()
    assert f.codes() == ["header"]
    np.testing.assert_allclose(found, f.expected([2]), **CLOSE)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_an_update_that_is_not_a_number_is_a_dropout(value, monkeypatch):
    f = federation()
    with monkeypatch.context() as patch:
        patch.setitem(STEPS, 2, value)
        found, _ = f.round()
    if np.isnan(value):
        assert f.codes() == ["client-error"]
        np.testing.assert_allclose(found, f.expected([2]), **CLOSE)
    else:  # counts as the clip
        np.testing.assert_allclose(found, f.expected() + (1 - STEPS[2]) / 7, **CLOSE)
        assert f.of("secure-sum")[0]["clipped"] == pytest.approx(1 / 7, abs=1e-6)


# A server that lies.


def with_request(message, **changes):
    record = ConfigRecord({**message.content[SECURE], **changes})
    content = RecordDict({**message.content, SECURE: record})
    message.content = content
    return message


def refusal(f):
    """Return what the nodes said that refused to answer."""
    f.round()
    return {e["detail"].split("ProtocolError(")[-1] for e in f.of("reply-dropped")}


def lies(f, stage, change):
    f.ask = lambda at, node, message: (
        change(message) if (at, node) == (stage, 2) else message
    )
    return f


def other_arrays(message):
    content = RecordDict({**message.content, "arrays": model(9.0)})
    message.content = content
    return message


@pytest.mark.parametrize(
    ("text", "stage", "change"),
    [
        ("model: the model is not", "mask", other_arrays),
        ("another sum", "mask", lambda m: with_request(m, model="0" * 64)),
        ("another sum", "shares", lambda m: with_request(m, round=9)),
        ("malformed", "keys", lambda m: with_request(m, model="x")),
        ("malformed", "keys", lambda m: with_request(m, stage="update")),
        ("malformed", "unmask", lambda m: with_request(m, body="text")),
        ("is next", "unmask", lambda m: with_request(m, stage="shares")),
    ],
    ids=range(7),
)
def test_a_node_refuses_what_is_not_the_sum_that_it_joined(text, stage, change):
    [said] = refusal(lies(federation(), stage, change))
    assert text in said


def test_nodes_that_were_told_of_another_model_are_not_in_the_sum():
    f = lies(federation(), "keys", lambda m: with_request(m, model="0" * 64))
    found, _ = f.round()
    assert f.codes() == ["model"]
    np.testing.assert_allclose(found, f.expected([2]), **CLOSE)


@pytest.mark.parametrize("stage", ["shares", "mask", "unmask"])
def test_a_stage_is_answered_once(stage):
    f = federation()
    kept = {}

    def keep(at, node, message):
        if (at, node) == (stage, 2):
            kept["message"] = message
        return message

    f.ask = keep
    f.round()
    again = kept["message"]
    node = f.grid.get_node_ids()[2]
    content = RecordDict(dict(again.content))
    content[SECURE] = Request.of(content).at(stage, Request.of(content).body).record()
    message = Message(content, node, "train", group_id="1")
    [reply] = f.grid.send_and_receive([message])
    assert "in no sum" in reply.error.reason


def test_nothing_is_told_of_how_training_failed():
    f = federation()

    def broken(node, reply):
        if node == 2:
            raise ValueError("a secret")
        return reply

    f.report = broken
    f.round()
    [dropped] = f.of("reply-dropped")
    assert "the reason stays on the node" in dropped["detail"]
    assert "secret" not in dropped["detail"]


def test_accuracies_do_not_leave_and_other_messages_pass():
    f = federation(4)
    f.begin()
    messages = f.layer.configure_evaluate(1, f.arrays, ConfigRecord(), f.grid)
    replies = f.grid.send_and_receive(messages)
    assert all("not released" in reply.error.reason for reply in replies)
    with pytest.raises(ConfigError, match="secagg"):
        secagg_mod(Job())


def test_a_message_without_a_request_is_refused():
    f = federation(4)
    f.begin()
    node = f.grid.get_node_ids()[0]
    message = Message(RecordDict({"arrays": f.arrays}), node, "train", group_id="1")
    [reply] = f.grid.send_and_receive([message])
    assert "no secure sum" in reply.error.reason


# What is on the wire.


def bodies(f):
    """Return the masked updates of a round, by node."""
    size = sum(int(np.prod(a.shape)) for a in f.arrays.values())
    slots = f.layer.settings.slots({"values": size, "metrics": ["train-loss"]})
    return {
        node: np.frombuffer(frame[-4 * slots.size :], "<u4")[:size]
        for stage, node, frame in f.sent
        if stage == "mask"
    }


def wide(nodes=4):
    f = federation(nodes)
    f.arrays = model(0.5, {"w": (20_000,)})
    return f


def test_masked_updates_are_unrelated_to_the_updates_and_to_each_other():
    f = wide()
    f.round()
    one = bodies(f)
    f.sent.clear()
    f.round()
    two = bodies(f)
    rows = [x.astype(float) for x in (*one.values(), *two.values())]
    assert len(rows) == 8
    # Every update is the same value 20000 times; correlations are below 5 deviations.
    ramp = np.arange(20_000.0)
    for i, x in enumerate(rows):
        assert abs(np.corrcoef(x, ramp)[0, 1]) < 5 / np.sqrt(20_000)
        assert len(np.unique(x)) > 19_900
        for y in rows[:i]:
            assert abs(np.corrcoef(x, y)[0, 1]) < 5 / np.sqrt(20_000)


@pytest.mark.parametrize("masked", [True, False])
def test_nobody_can_tell_two_updates_apart(masked, monkeypatch):
    """60 rounds, one of two updates each; every guess is right as often as a coin.

    A coin is right fewer than 15 or more than 45 times of 60 with probability 8e-5.
    """
    if not masked:  # negative control: without masks every guess is right
        place = "strategies.secure.secagg_client.add_masks"
        monkeypatch.setattr(place, lambda values, masks: None)
    coins = np.random.default_rng(1).integers(0, 2, 60 if masked else 5)
    f, right = federation(3), np.zeros(3)
    for number, coin in enumerate(coins):
        monkeypatch.setitem(STEPS, 0, (-0.9, 0.9)[coin])
        f.arrays = model(0.01 * number)
        f.sent.clear()
        f.round()
        x = bodies(f)[0].astype(float)
        zero = f.layer.settings.quantiser.half if not masked else 2**31
        right += np.equal([x.mean() > zero, x[0] > zero, np.median(x) > zero], coin)
    if masked:
        assert np.all((right >= 15) & (right <= 45))
    else:
        assert np.all(right == 5)


def test_requests_of_stages_are_train_messages():
    f = federation(3)
    messages = f.begin()
    assert {m.metadata.message_type for m in messages} == {"train"}
    assert {stage_of(m) for m in messages} == {"mask"}
    assert len({bytes(m.content[SECURE]["body"]) for m in messages}) == 3


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
