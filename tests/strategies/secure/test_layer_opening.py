"""Nodes that lie about a sum, refuse it or are silent: what it costs, and whom."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from strategies.base import StrategyLayer
from strategies.secure import automatic
from strategies.secure.layer import SecureSum
from strategies.secure.terms import OPEN
from strategies.secure.wire import FRAME, SECURE, open_head, seal, with_frame
from strategies.server_sgd import ServerSGD
from tests.strategies.secure.support import JOBS, Round, every_job
from tests.support.federation import weights


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
