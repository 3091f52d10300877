"""A federation whose server adds what it cannot read."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import pytest
from flwr.app import ConfigRecord, RecordDict
from flwr.serverapp.strategy import FedAdam, FedAvg

from strategies.base import StrategyLayer
from strategies.secure import automatic, plan
from strategies.secure import federation as federation_module
from strategies.secure.federation import Federation
from strategies.secure.identity import Identity, Roster
from strategies.secure.keys import JobKey, parameters_of
from strategies.secure.layer import SecureSum
from strategies.secure.slots import Slots
from strategies.secure.terms import OPEN, Request
from strategies.secure.told import Told
from strategies.secure.wire import FRAME, SECURE, open_head, seal, with_frame
from strategies.server_sgd import ServerSGD
from strategies.update import read_delta
from tests.strategies.secure.support import Round, job_of
from tests.support.federation import config, model, weights
from truststram.errors import ConfigError, ProtocolError

JOBS = {
    "bfv": job_of("bfv"),
    "ckks": job_of("ckks"),
    "decryptor": job_of("bfv", key_holder="decryptor"),
    "decryptor adds": job_of("bfv", key_holder="decryptor", threat="malicious"),
}
every_job = pytest.mark.parametrize("job", JOBS.values(), ids=JOBS)


@every_job
@pytest.mark.parametrize("inner", [FedAvg, ServerSGD])
def test_the_model_moves_by_the_mean_of_all_updates(job, inner):
    f = Round(job, 5, inner=inner())
    trained = 4 if job.secure.key_holder == "decryptor" else 5
    for number in (1, 2):
        before = weights(f.base)
        arrays, metrics = f.run()
        step = 0.01 * np.mean(range(1, trained + 1))
        error = np.abs(weights(arrays) - before - step).max()
        assert error < 1 / 2 ** (parameters_of(job).bits - 1)
        assert metrics["score"] == pytest.approx(np.mean(range(trained)), abs=1e-5)
        assert len(f.told("secure-sum")) == number
    assert f.told("secure-sum")[0]["clients"] == trained
    assert f.codes == []
    [plan] = f.told("secure-plan")
    assert (plan["encrypted"], plan["clear"], plan["keys"]) == (17, 0, "simulated")
    assert "together" in plan["trust"] or "colludes" in plan["trust"]


def test_what_is_exchanged_besides_updates_is_told_and_counted():
    f = Round(JOBS["decryptor"], 5)
    for _ in range(2):
        f.run()
    stages = f.told("secure-stage")
    found = [(e["round"], e["stage"], e["asked"], e["answered"]) for e in stages]
    assert found == [(1, "hello", 5, 5), (1, "open", 1, 1), (2, "open", 1, 1)]
    assert all(e["bytes_up"] > 300 and e["bytes_down"] > 50 for e in stages)
    one = Round(JOBS["bfv"], 4)
    one.run()
    size = parameters_of(JOBS["bfv"]).most_bytes(30)
    stages = one.told("secure-stage")
    assert [(e["asked"], e["answered"]) for e in stages] == [(1, 1)] * 2
    assert all(e["bytes_down"] > size for e in stages)
    # Of later models the server knows all that was told: both are asked at once.
    one.run()
    stage = one.told("secure-stage")[2]
    assert (stage["asked"], stage["answered"]) == (2, 2)
    assert stage["bytes_down"] > 2 * size


def test_the_same_run_twice_gives_the_same_model():
    one, two = (Round(JOBS["ckks"], 4) for _ in range(2))
    np.testing.assert_array_equal(weights(one.run()[0]), weights(two.run()[0]))


def test_a_stock_server_optimizer_is_inside():
    f = Round(JOBS["bfv"], 3, inner=FedAdam(eta=0.1))
    arrays, _ = f.run()
    assert (weights(arrays) > 0.5).all()
    assert [a.dtype for a in arrays.values()] == ["float32"] * 2


@every_job
def test_a_reply_is_one_frame_and_nothing_in_clear(job):
    f = Round(job, 5)
    for reply in f.replies():
        assert list(reply.content) == [SECURE]
        assert list(reply.content[SECURE]) == [FRAME]
        header = open_head(reply.content[SECURE][FRAME], f.layer.federation.roster)
        about = header.header.about
        assert about == {"values": 17, "metrics": ["score", "train-loss"]}


def test_errors_and_evaluation_tell_nothing():
    f = Round(JOBS["bfv"], 4, lambda partition, _: np.nan if partition == 1 else 0.1)
    replies = f.replies()
    [error] = [r.error.reason for r in replies if r.has_error()]
    assert "secret" not in error
    assert "the reason stays on the node" in error
    arrays, _ = f.finish(replies)
    assert f.codes == ["client-error"]
    assert weights(arrays) == pytest.approx(0.6, abs=1e-4)
    messages = list(f.layer.configure_evaluate(1, f.base, config(), f.grid))
    assert all(r.has_error() for r in f.grid.send_and_receive(messages))


def swapped(replies, _):
    frame = replies[0].content[SECURE][FRAME]
    head = len(frame) - parameters_of(JOBS["bfv"]).most_bytes(30)
    other = replies[1].content[SECURE][FRAME]
    return frame[:head] + other[-(len(frame) - head) :]


def resealed(**changes):
    """Return the first node's own frame with other fields, signed by it."""

    def forge(replies, f):
        data = replies[0].content[SECURE][FRAME]
        head = open_head(data, f.layer.federation.roster)
        node = automatic.find(1).identity(head.member.name)
        return seal(node, replace(head.header, **changes), data[len(head.head) :])

    return forge


def of_body(change):
    def forge(replies, f):
        data = replies[0].content[SECURE][FRAME]
        head = open_head(data, f.layer.federation.roster)
        node = automatic.find(1).identity(head.member.name)
        return seal(node, head.header, change(data[len(head.head) :]))

    return forge


FORGED = {
    "frame": lambda replies, _: b"garbage",
    "size": lambda replies, _: replies[0].content[SECURE][FRAME][:-1],
    "body": swapped,
    "unknown-node": lambda replies, _: replies[1].content[SECURE][FRAME],
    "signature": lambda replies, _: flipped(replies[0].content[SECURE][FRAME], 400),
    "round": resealed(round=7),
    "job": resealed(job="8"),
    "scheme": resealed(scheme="ckks"),
    "cohort": resealed(cohort="0" * 64),
    "model": resealed(model="0" * 64),
    "parameters": resealed(parameters="0" * 64),
    "stage": resealed(stage="sum"),
    "key": resealed(key="0" * 32),
    "header": resealed(about={"values": -1, "metrics": []}),
    "ciphertext": of_body(lambda body: body[:-1]),
}


def flipped(data, place):
    return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]


@pytest.mark.parametrize("code", FORGED)
def test_a_forged_frame_is_dropped_and_the_round_goes_on_without_it(code):
    f = Round(JOBS["bfv"], 4)
    f.run()  # ties nodes to identities
    before = weights(f.base)
    replies = f.replies()
    replies[0].content = with_frame(FORGED[code](replies, f))
    arrays, _ = f.finish(replies)
    assert f.codes == [code]
    assert f.told("reply-dropped")[0]["node"] == f.layer.name_of(
        replies[0].metadata.src_node_id
    )
    assert f.told("secure-sum")[1]["clients"] == 3
    mean = 0.01 * (2 + 3 + 4) / 3
    assert weights(arrays) - before == pytest.approx(mean, abs=1e-4)


def test_replayed_and_doubled_frames_are_dropped():
    f = Round(JOBS["bfv"], 4)
    old = f.replies()
    f.finish(old)
    replies = f.replies()
    f.finish([old[0], *replies[1:], replies[1]])
    assert f.codes == ["round", "duplicate"]
    assert f.told("secure-sum")[1]["clients"] == 3


def test_a_frame_under_another_key_is_dropped():
    f = Round(JOBS["bfv"], 4)
    messages = f.ask()
    # Node 0 kept the key of an earlier job.
    made = automatic.find(1)
    old = automatic.Automatic(4, JobKey.generate(made.key.parameters), made.secret)
    reply = [None] * 4
    for i, message in enumerate(messages):
        automatic._RUNS[1] = old if i == 0 else made
        [reply[i]] = f.grid.send_and_receive([message])
    f.finish(reply)
    assert f.codes == ["key"]
    assert f.told("secure-sum")[0]["clients"] == 3


@pytest.mark.parametrize("left", [0, 1, 2])
def test_below_the_smallest_cohort_nothing_is_decrypted(left):
    f = Round(JOBS["bfv"], 4)
    replies = f.replies()
    asked = []
    push = f.grid.push_messages
    f.grid.push_messages = lambda messages: asked.append(1) or push(messages)
    arrays, metrics = f.finish(replies[:left])
    assert (arrays, metrics) == (None, None)
    assert asked == []
    assert f.codes[-1] == "cohort-size"
    assert f.told("secure-refused")[0]["round"] == 1


def test_a_cohort_below_the_smallest_is_not_asked():
    f = Round(job_of("bfv", min_cohort=5), 4)
    assert f.ask() == []
    assert f.told("secure-refused")[0]["code"] == "cohort-size"
    assert f.finish([]) == (None, None)
    f = Round(job_of("bfv", max_cohort=3), 4)
    assert f.ask() == []


def lying(job, liars, change):
    """A mod, outside all others: these nodes change what they decrypted."""

    def mod(message, context, call_next):
        reply = call_next(message, context)
        asked = message.content.get(SECURE)
        partition = int(context.node_config["partition-id"])
        if asked and asked["stage"] == OPEN and partition in liars:
            made = automatic.find(1)
            data = reply.content[SECURE][FRAME]
            head = open_head(data, made.roster)
            body = change(bytearray(data[len(head.head) :]))
            frame = seal(made.identity(str(partition)), head.header, bytes(body))
            reply.content = with_frame(frame)
        return reply

    return mod


def raised(body):
    body[0] ^= 1
    return body


@pytest.mark.parametrize("liar", range(4))
def test_one_node_that_lies_about_a_sum_does_not_change_the_model(liar):
    f = Round(JOBS["bfv"], 4, mods=[lying(JOBS["bfv"], {liar}, raised)])
    arrays, _ = f.run()
    assert weights(arrays) == pytest.approx(0.525, abs=1e-4)


def test_a_sum_on_which_nobody_agrees_is_refused():
    def noise(body):
        body[:4] = np.random.default_rng().bytes(4)
        return body

    f = Round(JOBS["bfv"], 4, mods=[lying(JOBS["bfv"], range(4), noise)])
    assert f.run() == (None, None)
    assert f.codes == ["not-decrypted"]


def test_liars_who_agree_are_told_by_the_range_only():
    def far(body):
        body[:4] = b"\xff" * 4
        return body

    f = Round(JOBS["bfv"], 4, mods=[lying(JOBS["bfv"], range(4), far)])
    assert f.run() == (None, None)
    assert f.codes == ["sum-range"]
    # What a decryptor says within the range is believed.
    job = JOBS["decryptor"]
    f = Round(job, 5, mods=[lying(job, {4}, raised)])
    assert f.run()[0] is not None


@every_job
def test_the_server_gets_sums_and_no_checksum(job, monkeypatch):
    seen, read = [], Slots.read
    monkeypatch.setattr(
        Slots,
        "read",
        lambda self, q, *a: (self.checked or seen.append(q)) or read(self, q, *a),
    )
    Round(job, 5).run()
    [total] = seen
    trained = 4 if job.secure.key_holder == "decryptor" else 5
    assert total[17] == trained
    assert total[18:21].tolist() == [sum(range(10, 10 + trained)), 0, 0]
    assert not total[24:28].any()
    assert (total[28:].reshape(2, 3)[:, :2] < 1024).all()


def wrong(number, partition=0):
    """A mod: this node's checksum is wrong in this round."""

    def mod(message, context, call_next):
        if int(context.node_config["partition-id"]) != partition:
            return call_next(message, context)
        reply = call_next(message, context)
        asked = message.content[SECURE]
        if (asked["stage"], asked["round"]) == ("update", number):
            made = automatic.find(1)
            head = open_head(reply.content[SECURE][FRAME], made.roster)
            vector = np.zeros(34, np.uint32)
            vector[[17, 24]] = 1  # one client, and a digit of its checksum
            body = made.key.cipher.encrypt(vector)
            node = made.identity(str(partition))
            reply.content = with_frame(seal(node, head.header, body))
        return reply

    return mod


@every_job
def test_a_wrong_checksum_costs_a_round_and_not_the_run(job):
    f = Round(job, 5, mods=[wrong(1)])
    assert f.run() == (None, None)
    assert f.codes == ["not-decrypted"]
    assert "checksum" in f.told("secure-refused")[0]["detail"]
    # Nothing was told of that sum, so that another set of nodes may follow.
    arrays, _ = f.finish(f.replies()[1:])
    assert arrays is not None
    assert f.codes == ["not-decrypted"]


def test_after_a_failed_round_with_an_answer_only_the_same_nodes_are_summed():
    answered = []

    def late(message, context, call_next):
        """Of those that are asked in the first round, one answers."""
        if message.content[SECURE]["stage"] == OPEN and f.number == 1:
            if answered:
                raise ValueError("down")
            answered.append(1)
        return call_next(message, context)

    f = Round(JOBS["bfv"], 6, mods=[late])
    first = [m.metadata.dst_node_id for m in f.ask()][:5]
    f.number = 0
    f.layer.inner = Chosen(f.layer.inner, first)
    assert f.run() == (None, None)
    assert f.codes == ["not-decrypted"]
    # Another cohort is sampled: those of the sum are asked, and nobody else.
    f.layer.inner.nodes = f.grid.get_node_ids()[2:]
    replies = f.replies()
    assert [r.metadata.src_node_id for r in replies] == sorted(first)
    assert not any(reply.has_error() for reply in replies)
    # One of them is lost: no sum, whatever the nodes would do. Also after a restart.
    assert f.finish(replies[1:]) == (None, None)
    assert f.codes == ["not-decrypted", "cohort"]
    again = SecureSum(f.job, ServerSGD())
    again.load_state(f.layer.state())
    assert again._told.sets == f.layer._told.sets != []
    # A round in which nobody can be asked forgets nothing.
    f.layer.inner.nodes, kept = [], f.layer.inner.nodes
    assert f.ask() == []
    assert again._told.sets == f.layer._told.sets
    f.layer.inner.nodes = kept
    arrays, _ = f.run()
    assert arrays is not None
    # The model has changed: the sample counts again.
    assert sorted(m.metadata.dst_node_id for m in f.ask()) == f.layer.inner.nodes


class Chosen(StrategyLayer):
    """Asks some of the nodes."""

    def __init__(self, inner, nodes):
        super().__init__(inner)
        self.nodes = nodes

    def configure_train(self, server_round, arrays, config, grid):
        messages = super().configure_train(server_round, arrays, config, grid)
        return [m for m in messages if m.metadata.dst_node_id in self.nodes]


def refusing(liars, code="reopened"):
    """A mod: these nodes refuse to decrypt, in so many words."""

    def mod(message, context, call_next):
        reply = call_next(message, context)
        asked = message.content.get(SECURE)
        partition = int(context.node_config["partition-id"])
        if asked and asked["stage"] == OPEN and partition in liars:
            made = automatic.find(1)
            head = open_head(reply.content[SECURE][FRAME], made.roster)
            about = {"part": asked.get("part", 0), "refused": code}
            header = replace(head.header, about=about)
            reply.content = with_frame(seal(made.identity(str(partition)), header, b""))
        return reply

    return mod


@pytest.mark.parametrize("liar", range(4))
def test_one_node_that_refuses_every_sum_holds_up_the_first_model_at_most(liar):
    liars = set()
    f = Round(JOBS["bfv"], 4, mods=[refusing(liars)])
    f.run()
    liars.add(liar)
    for _ in range(3):
        assert f.run()[0] is not None
    assert f.codes == []


def test_two_nodes_that_know_another_sum_are_believed():
    liars = set()
    f = Round(JOBS["bfv"], 6, mods=[refusing(liars)])
    f.run()
    liars |= set(range(6))
    f.run()
    assert f.codes == ["not-decrypted"]
    assert sum(e["asked"] for e in f.told("secure-stage") if e["round"] == 2) == 2


def test_other_nodes_decrypt_after_a_round_that_failed():
    asked = []

    def silent(message, context, call_next):
        if message.content[SECURE]["stage"] == OPEN and f.number <= 2:
            asked.append((f.number, context.node_id))
            raise ValueError("down")
        return call_next(message, context)

    f = Round(JOBS["bfv"], 9, mods=[silent])
    for _ in range(2):
        assert f.run() == (None, None)
    first, second = ([n for r, n in asked if r == number] for number in (1, 2))
    assert len(first) == len(second) == 4
    assert first != second
    assert f.run()[0] is not None


def test_nodes_that_do_not_answer_are_replaced_by_others():
    def silent(message, context, call_next):
        if message.content[SECURE]["stage"] == OPEN:
            partition = int(context.node_config["partition-id"])
            if partition in (0, 1):
                raise ValueError("down")
        return call_next(message, context)

    f = Round(JOBS["ckks"], 4, mods=[silent])
    arrays, _ = f.run()
    assert weights(arrays) == pytest.approx(0.525, abs=1e-5)


def test_the_decryptor_never_trains():
    trained = []

    def amount(partition, number):
        trained.append(partition)
        return 0.1

    f = Round(JOBS["decryptor"], 5, amount)
    f.run()
    assert sorted(trained) == [0, 1, 2, 3]
    [message] = f.ask()[:1]
    assert str(f.grid.get_node_ids()[4]) not in message.content[SECURE]["cohort"]


def test_without_a_decryptor_the_run_stops():
    f = Round(JOBS["decryptor"], 4)
    f.ask()
    federation = f.layer.federation
    federation.decryptors.clear()
    federation._names.clear()
    members = [replace(m, role="client") for m in federation.roster]
    federation.roster = Roster(members)
    with pytest.raises(ConfigError, match="decryptor"):
        f.ask()


def test_layers_that_are_not_named_travel_in_clear():
    job = job_of("bfv", layers="w")
    f = Round(job, 4)
    replies = f.replies()
    clear = replies[1].content["clear"]["values"].numpy()
    assert clear == pytest.approx(0.02)  # node 1 adds 0.02
    assert len(clear) == 5
    arrays, _ = f.finish(replies)
    assert weights(arrays) == pytest.approx(0.525, abs=1e-4)
    [plan] = f.told("secure-plan")
    assert (plan["encrypted"], plan["clear"]) == (12, 5)
    assert (plan["clear_fraction"], plan["clear_arrays"]) == (0.294118, ["b"])


@pytest.mark.parametrize("change", ["value", "missing", "nan"])
def test_values_in_clear_are_signed_too(change):
    amount = lambda p, _: np.inf if (p, change) == (0, "nan") else 0.1  # noqa: E731  # shorter than a def
    f = Round(job_of("bfv", layers="w"), 4, amount)
    replies = f.replies()
    if change == "value":
        replies[0].content["clear"] = replies[1].content["clear"].copy()
        replies[0].content["clear"]["values"] = model(0.1)["b"]
    elif change == "missing":
        del replies[0].content["clear"]
    arrays, _ = f.finish(replies)
    assert f.codes == ["not-finite" if change == "nan" else "clear"]
    assert weights(arrays) == pytest.approx(0.6, abs=1e-4)


class Seen(StrategyLayer):
    """Keeps the replies that it is handed."""

    def aggregate_train(self, server_round, replies):
        self.replies = list(replies)
        self.deltas = [read_delta(r.content, self.model).copy() for r in self.replies]
        return super().aggregate_train(server_round, self.replies[:1])


def test_groups_have_sums_of_their_own():
    seen = Seen(ServerSGD())
    f = Round(job_of("bfv", group_size=3), 7, inner=seen)
    f.layer.name_of = str
    f.run()
    groups = f.layer._groups.members
    assert sorted(map(len, groups)) == [3, 4]
    assert len(seen.replies) == 2
    ids = {str(node): i for i, node in enumerate(f.grid.get_node_ids())}
    for group, reply, delta in zip(groups, seen.replies, seen.deltas, strict=True):
        mean = np.mean([0.01 * (ids[name] + 1) for name in group])
        assert delta == pytest.approx(mean, abs=1e-4)
        assert seen.name_of(reply.metadata.src_node_id).startswith("group-")
    again = SecureSum(f.job, ServerSGD())
    again.load_state(f.layer.state())
    assert again._groups == f.layer._groups


def test_a_decryptor_is_in_no_group():
    seen = Seen(ServerSGD())
    f = Round(job_of("bfv", group_size=3, key_holder="decryptor"), 7, inner=seen)
    f.run()
    members = [name for group in f.layer._groups.members for name in group]
    assert sorted(members) == sorted(map(str, f.grid.get_node_ids()[:6]))
    assert [e["clients"] for e in f.told("secure-sum")] == [3, 3]
    assert f.codes == []


def test_a_group_with_too_few_survivors_is_left_out():
    seen = Seen(ServerSGD())
    f = Round(job_of("bfv", group_size=3), 6, inner=seen)
    replies = f.replies()
    lost = f.layer._groups.members[0][0]
    f.finish([r for r in replies if str(r.metadata.src_node_id) != lost])
    assert len(seen.replies) == 1
    assert f.codes == ["cohort-size"]
    f.finish([])
    assert len(seen.replies) == 1


def test_a_key_moves_on_only_from_a_node_that_is_away():
    f = Round(JOBS["bfv"], 4)
    f.ask()
    federation, [one, two, *_] = f.layer.federation, f.grid.get_node_ids()
    first, second = list(federation.roster)[:2]
    federation.bind(one, first)
    for node, member in ((two, first), (one, second)):
        with pytest.raises(ProtocolError, match="unknown-node"):
            federation.bind(node, member)
    restarted = max(f.grid.get_node_ids()) + 1
    federation.grid = Connected([two, restarted])
    federation.bind(restarted, first)
    federation.bind(restarted, first)
    with pytest.raises(ProtocolError, match="unknown-node"):
        federation.bind(restarted, second)


def test_a_decryptor_that_was_started_again_is_found_and_the_old_one_not_asked():
    f = Round(JOBS["decryptor"], 5)
    f.ask()
    federation, old = f.layer.federation, f.grid.get_node_ids()[4]
    assert federation.decryptors == {old}
    # The same node under another id: the grid of the server maps it to that context.
    new, grid = old + 1, f.grid

    class Restarted:
        def get_node_ids(self):
            return [*grid.get_node_ids()[:4], new]

        def push_messages(self, messages):
            assert [m.metadata.dst_node_id for m in messages] == [new]
            messages[0].metadata.dst_node_id = old
            return grid.push_messages(messages)

        def pull_messages(self, ids):
            replies = list(grid.pull_messages(ids))
            for reply in replies:
                reply.metadata.__dict__["_src_node_id"] = new
            return replies

    federation.grid = Restarted()
    [phase] = federation.find_decryptors(2)
    assert (len(phase.replies), phase.lost) == (1, 0)
    assert federation.decryptors == {new}
    assert federation._nodes["4"] == new
    assert old not in federation._names


def test_a_refused_key_is_not_remembered():
    f = Round(JOBS["bfv"], 4)
    f.ask()
    federation, [one, two, *_] = f.layer.federation, f.grid.get_node_ids()
    first, second = list(federation.roster)[:2]
    federation.bind(one, first)
    with pytest.raises(ProtocolError, match="unknown-node"):
        federation.bind(one, second)
    federation.bind(two, second)


def test_a_stranger_that_never_answers_is_asked_once_and_briefly():
    f = Round(JOBS["decryptor"], 5)
    f.ask()
    federation, known = f.layer.federation, f.grid.get_node_ids()
    assert federation.find_decryptors(2) == []  # all that the roster has is known
    asked = []

    class Silent:
        def get_node_ids(self):
            return [*known, 99]

        def push_messages(self, messages):
            asked.extend(m.metadata.dst_node_id for m in messages)
            return ["never"] * len(messages)

        def pull_messages(self, ids):
            return []

    federation.grid = Silent()
    assert federation.find_decryptors(3) == []
    # Another decryptor of the roster is missing: it could be the stranger.
    more = replace(Identity.generate("second").member, role="decryptor")
    federation.roster = Roster([*federation.roster, more])
    waits = []
    hello = federation._hello
    federation._hello = lambda nodes, r, wait: waits.append(wait) or hello(nodes, r, 0)
    for number in (4, 5):
        federation.find_decryptors(number)
    assert asked == [99]
    assert waits == [30.0]
    # Without any decryptor, they are asked until the deadline, and that ends.
    federation.decryptors.clear()
    federation._names.clear()
    clock = iter(range(0, 10_000, 100))
    federation_module.time.monotonic, real = lambda: next(clock), time.monotonic
    try:
        with pytest.raises(ConfigError, match="decryptor is connected"):
            federation.find_decryptors(6)
    finally:
        federation_module.time.monotonic = real
    assert len(waits) > 2


def test_frames_that_no_message_could_carry_are_refused_before_the_run(monkeypatch):
    job = job_of("bfv", key_holder="decryptor", threat="malicious")
    frame = parameters_of(job).most_bytes(17)
    monkeypatch.setattr(plan, "LARGEST_MESSAGE", 4 * frame)
    assert len(Round(job, 5).ask()) == 4  # and the decryptor
    with pytest.raises(ConfigError, match="one message"):
        Round(job, 6).ask()
    # Of compressed updates it is known when they are there.
    f = Round(replace(job, compression=replace(job.compression, codec="randk")), 6)
    replies = f.replies()
    assert f.finish(replies) == (None, None)
    assert f.codes == ["size"]


def test_two_decryptors_are_refused_where_one_is_trusted_to_add():
    f = Round(JOBS["decryptor adds"], 5)
    f.ask()
    more = replace(Identity.generate("second").member, role="decryptor")
    roster = Roster([*f.layer.federation.roster, more])
    f.layer.federation.roster = roster
    made = Federation(f.job, "1", f.grid, roster, simulated=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Federation, "of", lambda *args: made)
        f.layer._federation = None
        with pytest.raises(ConfigError, match="2 decryptors"):
            f.ask()


class Connected:
    """As much of a grid as says who is connected."""

    def __init__(self, nodes: list[int]) -> None:
        self.get_node_ids = lambda: nodes


def test_the_servers_operator_must_give_a_roster():
    f = Round(JOBS["bfv"], 4)
    f.ask()
    f.layer._federation = None

    class Other(type(f.grid).__mro__[1]):  # a grid of a deployment
        get_node_ids = push_messages = pull_messages = None
        run = set_run = create_message = send_and_receive = None

    with pytest.raises(ConfigError, match="TRUSTSTRAM_ROSTER"):
        f.layer._known(Other())


def test_deployed_nodes_and_server_work_from_files(tmp_path, monkeypatch):
    job = JOBS["bfv"]
    f = Round(job, 4)
    nodes = [Identity.generate(f"hospital-{i}") for i in range(4)]
    roster = "\n".join(node.member.line() for node in nodes)
    key = JobKey.generate(parameters_of(job))
    (tmp_path / "roster.txt").write_text(roster)
    monkeypatch.setenv("TRUSTSTRAM_ROSTER", str(tmp_path / "roster.txt"))
    for i, (node, at) in enumerate(zip(nodes, f.grid.get_node_ids(), strict=True)):
        folder = tmp_path / str(i)
        folder.mkdir()
        key.save(folder)
        node.save(folder / "identity.key")
        (folder / "roster.txt").write_text(roster)
        f.grid.context(at).node_config["secure-keys"] = str(folder)
    arrays, _ = f.run()
    assert weights(arrays) == pytest.approx(0.525, abs=1e-4)
    assert f.told("secure-plan")[0]["keys"] == "operator"
    assert (tmp_path / "0" / "journal.json").exists()
    # A server that was started again, for the same model, may not leave one out. Nor
    # may one that was killed before it recorded the sum, whoever is left out.
    f.base, f.number = model(0.5), 0
    f.finish(f.replies()[1:])
    assert f.codes == ["cohort"]
    for lost in range(4):
        f.layer._told, f.number = Told(), 0
        replies = f.replies()
        del replies[lost]
        told = len(f.told("secure-sum"))
        f.finish(replies)
        assert f.codes[1 + lost :] == ["not-decrypted"]
        assert "reopened" in f.told("secure-refused")[1 + lost]["detail"]
        assert len(f.told("secure-sum")) == told
    f.layer._told, f.number = Told(), 0
    assert f.run()[0] is not None  # all of them again


def test_requests_are_typed():
    good = Request("update", 1, ("1",), "m").record()
    assert Request.of(RecordDict({SECURE: good})).cohort == ("1",)
    bad = [{"stage": "other"}, {"round": "1"}, {"cohort": [1]}, {"model": 3}]
    for change in [*bad, {"heads": ["x"]}, {"sum": "x"}, {"frames": 1}]:
        record = ConfigRecord({**good, **change})
        with pytest.raises(ProtocolError, match="request"):
            Request.of(RecordDict({SECURE: record}))
    with pytest.raises(ProtocolError, match="request"):
        Request.of(RecordDict())
