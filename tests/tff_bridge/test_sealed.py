"""Plans with secure sums: exact sums under masks, and refused without them."""

from __future__ import annotations

import numpy as np
import pytest
from flwr.app import ConfigRecord, Message, RecordDict

from client_app.main import app
from strategies.secure.integers import read_integers, with_integers
from tests.support.runs import model_bytes, run
from tests.tff_bridge.numpy_plan import (
    MOMENTUM,
    Task,
    evaluation,
    events,
    leaf,
    noted_pieces,
    plan_of,
    weights,
)
from tests.tff_bridge.sealed_plan import (
    LEAVES,
    SIZE,
    SealedCoordinator,
    SealedSilo,
    sealed,
    sealed_plan,
)
from tff_bridge import server
from tff_bridge.capabilities import check, described
from tff_bridge.evaluation import with_what
from tff_bridge.sealed import SealedLayout
from tff_bridge.sealed_server import SealedServer
from tff_bridge.torch_silo import check_torch
from tff_bridge.training import Training
from truststram._flower import make_context
from truststram.errors import ConfigError, ProtocolError
from truststram.job import Job
from truststram.tasks import register_task

SECAGG = {"secure.scheme": "secagg"}
ROUNDS = {"train.rounds": 3, "train.local-epochs": 2}
RUN = {"task.name": "tiny", "tff.plan": "x", **SECAGG}


@pytest.fixture(autouse=True)
def made(monkeypatch):
    """The coordinators that were made."""
    yield from noted_pieces(monkeypatch, SealedSilo, SealedCoordinator)


def go(folder, run_id, **changes):
    sealed_plan().write(folder / "job.tffplan")
    keys = {**ROUNDS, "tff.plan": str(folder / "job.tffplan"), **SECAGG, **changes}
    return run(folder, run_id, keys, task=Task)


@pytest.mark.parametrize("threat", ["semi-honest", "malicious"])
def test_a_run_is_that_of_the_weighted_mean(tmp_path, made, threat):
    """Silos of 20 to 32 examples weigh by them, as the plan says, under masks too."""
    torch = run(tmp_path, "torch", {**ROUNDS, "server.momentum": MOMENTUM}, task=Task)
    tff = go(tmp_path, "tff", **{"secure.threat": threat})
    difference = np.abs(weights(tmp_path, "tff") - weights(tmp_path, "torch"))
    assert difference.max() <= 2e-6
    for ours, theirs in zip(tff.rounds, torch.rounds, strict=True):
        loss = theirs.train_metrics["train-loss"]
        assert ours.train_metrics["train-loss"] == pytest.approx(loss, rel=1e-5)
    [coordinator] = made
    examples = 2 * sum(20 + 3 * i for i in range(5))
    for sums in coordinator.sums:
        assert (sums[0], sums[2], sums[5]) == (5, examples, examples)
    [event] = events(tmp_path / "tff", "tff-plan")
    assert (event["weights"], event["aggregator"]) == ("examples", "secure")
    assert (event["integers"], event["integer-bits"]) == (SIZE, 32)
    assert event["evaluation"] == "nothing: nodes of a secure sum are not asked"
    [event] = events(tmp_path / "tff", "secure-plan")
    assert (event["bits"], event["encrypted"], event["clip"]) == (32, SIZE, None)


def test_silos_are_not_asked_to_evaluate_with_the_plan_either(tmp_path):
    plan = sealed_plan(evaluate=evaluation())
    for more, told in (
        ({}, "nothing: nodes of a secure sum are not asked"),
        ({"secure.scheme": "none"}, "plan"),
        ({"secure.scheme": "none", "round.evaluate": "none"},
         "nothing: round.evaluate = none"),
        ({"secure.scheme": "none", "round.evaluate": "server"},
         "nothing: round.evaluate = server"),
    ):  # fmt: skip  # a row for each setting
        assert with_what(plan, Task(), Job.of({**RUN, **more})) == told


def test_the_server_gets_the_sums_of_what_silos_sent(tmp_path, made, monkeypatch):
    sent, reply = [], SealedLayout.reply

    def noting(layout, leaves):
        sent.append(leaves)
        return reply(layout, leaves)

    monkeypatch.setattr(SealedLayout, "reply", noting)
    go(tmp_path, "run", **{"train.rounds": 1})
    assert len(sent) == 5
    for found, *terms in zip(made[0].sums[0], *sent, strict=True):
        np.testing.assert_array_equal(found, sum(x.astype(np.int64) for x in terms))


def test_a_resumed_run_continues_bit_for_bit(tmp_path):
    go(tmp_path, "whole", **{"server.average": 0.5})
    go(tmp_path, "halves", **{"server.average": 0.5, "train.rounds": 2})
    halves = {"server.average": 0.5, "run.resume": "halves"}
    go(tmp_path, "halves", **halves)
    assert events(tmp_path / "whole", "final-model")  # layers around the step work
    assert model_bytes(tmp_path, "whole") == model_bytes(tmp_path, "halves")


def test_a_silo_whose_integers_are_out_of_range_is_left_out(
    tmp_path, made, monkeypatch
):
    """As one is that diverged, whatever the plan's own rounding made of it."""
    work = SealedSilo.work

    def wild(silo, x, *rest, **more):
        leaves = work(silo, x, *rest, **more)
        if len(x) == 23:
            leaves[3][0, 0] = np.iinfo(np.int64).min
        return leaves

    monkeypatch.setattr(SealedSilo, "work", wild)
    result = go(tmp_path, "run")
    assert [r.replies for r in result.rounds] == [4, 4, 4]
    assert [int(sums[0]) for sums in made[0].sums] == [4, 4, 4]
    details = {e["detail"] for e in events(tmp_path / "run", "reply-dropped")}
    assert details == {"2: WithheldError('the update cannot be encoded')"}


def test_a_step_that_is_not_finite_is_not_taken(tmp_path, monkeypatch):
    update = SealedCoordinator.update

    def sometimes(coordinator, state, report):
        state, metrics = update(coordinator, state, report)
        if len(coordinator.sums) == 2:
            state[0] = state[0] * np.float32(np.nan)
        return state, metrics

    monkeypatch.setattr(SealedCoordinator, "update", sometimes)
    result = go(tmp_path, "three")
    assert [r.skipped for r in result.rounds] == [False, True, False]
    first, second, third = (r.metrics["loss"] for r in result.rounds)
    assert first == second > third  # and the step after it is from the model before


# Refused, each with its reason; what is next to it is accepted.


def test_a_plan_of_integers_is_a_round_of_ours():
    training = Training.of(sealed_plan())
    assert training.sealed.size == SIZE
    assert training.sealed.runs == ((1, 2), (1, 2**32), (1, 2**20), (21, 2**32),
                                    (1, 2**20))  # fmt: skip  # one line less
    assert not training.counts
    assert Training.of(plan_of()).sealed is None


@pytest.mark.parametrize(
    ("leaves", "reason"),
    [
        ([leaf(role="metric"), *LEAVES], "a part in clear beside the integers"),
        ([*LEAVES, sealed(slot="modulus", limit=64)], "sums modulo a number"),
        ([*LEAVES, sealed(limit=2**32 + 1)], "do not fit a masked sum"),
        ([*LEAVES, *[sealed((2**27,))] * 16], "do not fit a masked sum"),
    ],
)
def test_integers_that_cannot_be_summed_are_refused(leaves, reason):
    with pytest.raises(ConfigError, match=reason):
        Training.of(sealed_plan(leaves))
    Training.of(sealed_plan([*LEAVES, sealed((3,), 77, slot="max-input")]))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"secure.scheme": "none"}, "hide nothing until they are masked"),
        ({"secure.scheme": "bfv"}, "they add our quantised updates"),
        ({"secure.scheme": "ckks"}, "they add our quantised updates"),
        ({"secure.group-size": 3, "robust.rule": "median"}, "one sum of all silos"),
        ({"robust.rule": "median"}, "nobody sees the update of a silo"),
        ({"secure.clip": 2.0}, "have the plan's own range"),
        ({"privacy.mechanism": "gaussian"}, "before the plan makes integers"),
        ({"compression.codec": "q8"}, "codecs lose a part"),
        ({"adversary.kind": "label-flip"}, "who attacks is told by updates"),
        ({"tff.mixed": True, "train.batch-size": 8}, "do not make the plan's integers"),
    ],
)
def test_layers_that_would_read_the_integers_are_refused(changes, reason):
    plan = sealed_plan()
    assert isinstance(check(plan, Job.of({**RUN, "server.average": 0.5})), Training)
    with pytest.raises(ConfigError, match=reason):
        check(plan, Job.of({**RUN, **changes}))


def test_a_cohort_whose_sums_overflow_the_plans_type_is_refused():
    plan = sealed_plan([*LEAVES, sealed(limit=2**26, dtype="int32")])
    check(plan, Job.of({**RUN, "secure.max-cohort": 32}))
    with pytest.raises(ConfigError, match=r"secure\.max-cohort = 33: .* does not fit"):
        check(plan, Job.of({**RUN, "secure.max-cohort": 33}))


def test_torch_does_not_stand_in():
    job = Job.of({**RUN, "tff.mixed": True, "train.batch-size": 8})
    check_torch(Training.of(plan_of()), job)
    with pytest.raises(ConfigError, match="do not make integers"):
        check_torch(Training.of(sealed_plan()), job)


def test_the_event_says_that_silos_weigh_as_the_plan_says():
    job = Job.of(RUN)
    assert described(sealed_plan(), job)["weights"] == "examples"
    assert described(plan_of(), job)["weights"] == "equal"


def node(**changes):
    register_task("tiny", Task)
    config = {"task.name": "tiny", "tff.plan": "/on/the/server", **SECAGG, **changes}
    about = {"partition-id": 1, "num-partitions": 5, "simulated": True}
    return make_context(7, about, Job.of(config).config())


def test_a_silo_does_not_agree_to_send_integers_in_clear():
    from tff_bridge import agreement

    def hello(context):
        offered = ConfigRecord(agreement.offer(sealed_plan()))
        return app(Message(RecordDict({"config": offered}), 7, "query"), context)

    assert "hello" in hello(node()).content
    with pytest.raises(ConfigError, match="hide nothing until they are masked"):
        hello(node(**{"secure.scheme": "none"}))


def test_a_silo_does_not_answer_with_integers_in_clear():
    """Although it agreed to the plan, under another job or before an update."""
    from tff_bridge import agreement, client
    from tff_bridge.strategy import PLAN, PREPARED

    plan, context = sealed_plan(), node()
    offered = ConfigRecord(agreement.offer(plan))
    app(Message(RecordDict({"config": offered}), 7, "query"), context)
    config = ConfigRecord({PLAN: plan.sha256, PREPARED: np.float32(0.1).tobytes()})
    content = RecordDict({"arrays": _model(), "config": config})
    data = Task().train_data(Job(), _Partition())
    given = (content, data)
    reply = client.train(*given, Job.of(RUN), 1, context, True)
    values, coder = read_integers(reply, 10)
    assert (coder.size, values[0]) == (SIZE, 1)
    clear = Job.of({**RUN, "secure.scheme": "none"})
    with pytest.raises(ConfigError, match="hide nothing until they are masked"):
        client.train(*given, clear, 1, context, True)


class _Partition:
    partition = 1


def _model():
    from flwr.app import ArrayRecord

    return ArrayRecord(Task().model(Job(), 0).state_dict())


def test_a_plan_without_masks_does_not_start(tmp_path):
    with pytest.raises(ConfigError, match="hide nothing until they are masked"):
        go(tmp_path, "run", **{"secure.scheme": "none"})


def test_the_server_takes_one_secure_sum_and_nothing_else():
    training = Training.of(sealed_plan())
    taker = SealedServer(training, server.CoordinatorRuntime(training.program))
    asked = Message(RecordDict(), 7, "train")
    total = np.zeros(SIZE, np.int64)
    sums = Message(with_integers(total), reply_to=asked)
    assert taker.aggregate_train(1, []) == (None, None)
    with pytest.raises(ValueError, match="takes one reply, not 2"):
        taker.aggregate_train(1, [sums, sums])
    with pytest.raises(ProtocolError, match="no sums"):
        taker.aggregate_train(1, [Message(RecordDict(), reply_to=asked)])
    with pytest.raises(ValueError, match="not 25 of them"):
        taker.sealed.sums_of(total[:-1])
