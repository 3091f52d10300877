"""A federation whose server adds what it cannot read."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from flwr.serverapp.strategy import FedAdam, FedAvg

from strategies.base import StrategyLayer
from strategies.secure import plan
from strategies.secure.keys import parameters_of
from strategies.secure.layer import SecureSum
from strategies.secure.slots import Slots
from strategies.secure.wire import FRAME, SECURE, open_head
from strategies.server_sgd import ServerSGD
from strategies.update import read_delta
from tests.strategies.secure.support import JOBS, Round, every_job, job_of
from tests.support.federation import config, model, weights
from truststram.errors import ConfigError


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
