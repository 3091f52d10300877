"""Mime-lite over Flower: both vectors arrive, with one weight; layers check both."""

from __future__ import annotations

import numpy as np
import pytest

from tests.support.runs import model_bytes, run
from tests.tff_bridge.mime_plan import (
    LEAVES,
    MimeCoordinator,
    MimeSilo,
    mime_plan,
)
from tests.tff_bridge.numpy_plan import (
    Task,
    events,
    leaf,
    noted_pieces,
    plan_of,
    weights,
)
from tff_bridge.capabilities import check
from tff_bridge.leaves import WorkLayout
from tff_bridge.silo_data import Passes
from tff_bridge.torch_silo import check_torch
from tff_bridge.training import Training
from truststram.errors import ConfigError
from truststram.job import Job
from truststram.rng import derive_seed
from truststram.task import Node

NODES, ROUNDS = 5, {"train.rounds": 3, "train.local-epochs": 2}
RUN = {"task.name": "tiny", "tff.plan": "x"}


@pytest.fixture(autouse=True)
def made(monkeypatch):
    """The coordinators that were made."""
    yield from noted_pieces(monkeypatch, MimeSilo, MimeCoordinator)


def go(folder, run_id, **changes):
    mime_plan().write(folder / "job.tffplan")
    keys = {**ROUNDS, "tff.plan": str(folder / "job.tffplan"), **changes}
    return run(folder, run_id, keys, nodes=NODES, task=Task)


def by_pieces(rounds: int) -> tuple[np.ndarray, list[list[np.ndarray]]]:
    """Return the model and each round's sums, with silos added up leaf by leaf."""
    task, silo, coordinator = Task(), MimeSilo(), MimeCoordinator()
    state = [*mime_plan().weights.values(), *coordinator.init()[2:]]
    for number in range(1, rounds + 1):
        sent = []
        for node in range(NODES):
            data = task.train_data(Job(), Node(partition=node, partitions=NODES))
            seed = derive_seed(Job().run.seed, "train", str(node), number)
            x, y = data.x.numpy(), data.y.numpy()
            order = Passes(seed, len(x), 2)
            sent.append(silo.work(x, y, order, 8, coordinator.prepare(state)))
        sums = [np.sum(terms, axis=0) for terms in zip(*sent, strict=True)]
        state, _ = coordinator.update(state, sums)
    return np.concatenate([x.ravel() for x in state[:2]]), coordinator.sums


def test_a_run_is_mime_lite(tmp_path, made):
    result = go(tmp_path, "run")
    expected, sums = by_pieces(3)
    np.testing.assert_allclose(weights(tmp_path, "run"), expected, rtol=0, atol=1e-6)
    [coordinator] = made
    for ours, theirs in zip(coordinator.sums, sums, strict=True):
        for form, found, right in zip(LEAVES, ours, theirs, strict=True):
            scale = np.abs(right).max()
            np.testing.assert_allclose(found, right, rtol=0, atol=1e-6 * scale)
            assert (str(found.dtype), found.shape) == form.kind
    assert result.metrics["accuracy"] > 0.9
    [event] = events(tmp_path / "run", "tff-plan")
    assert (event["algorithm"], event["weights"]) == ("mime-lite", "examples")
    # Down: the model and the momentum. Up: two vectors.
    [report] = [r for r in result.rounds if r.round == 2]
    assert 2 * 84 * NODES <= report.bytes_up <= (2 * 84 + 500) * NODES


def test_a_resumed_run_continues_bit_for_bit(tmp_path):
    go(tmp_path, "whole")
    go(tmp_path, "halves", **{"train.rounds": 2})
    go(tmp_path, "halves", **{"run.resume": "halves"})
    assert model_bytes(tmp_path, "whole") == model_bytes(tmp_path, "halves")


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda delta: delta[:21], "shape"),
        (lambda delta: np.append(delta, np.float32(0)), "shape"),
        (lambda delta: delta * np.r_[[1.0] * 21, [np.nan] * 21], "not-finite"),
        (lambda delta: delta * np.r_[[1.0] * 21, [1e4] * 21], "norm"),
    ],
    ids=["one vector", "longer", "gradient not finite", "gradient too long"],
)
def test_a_reply_with_a_wrong_second_vector_is_dropped(
    tmp_path, monkeypatch, change, code
):
    reply = WorkLayout.reply

    def wrong(layout, leaves):
        made = reply(layout, leaves)
        if made.examples == 23:
            object.__setattr__(made, "delta", change(made.delta).astype("f4"))
        return made

    monkeypatch.setattr(WorkLayout, "reply", wrong)
    result = go(tmp_path, "run", **{"train.rounds": 1})
    assert result.rounds[0].replies == NODES - 1
    assert [e["code"] for e in events(tmp_path / "run", "reply-dropped")] == [code]


@pytest.mark.parametrize(("liars", "replies"), [({23}, 4), ({20, 23, 26}, 3)])
@pytest.mark.parametrize("ratio", [-130 / 23, 1e30, 0.0])
def test_nobody_tells_the_gradients_weight(
    tmp_path, monkeypatch, ratio, liars, replies
):
    """One silo's would be enough to make the sum of weights nothing, or negative.

    What most silos send is what is expected, and has no effect all the same.
    """
    reply = WorkLayout.reply

    def wrong(layout, leaves):
        made = reply(layout, leaves)
        if made.examples in liars:
            made.metrics["tff-2"] = ratio
        return made

    monkeypatch.setattr(WorkLayout, "reply", wrong)
    found = go(tmp_path, "run")
    assert [r.replies for r in found.rounds] == [replies] * 3
    told = events(tmp_path / "run", "reply-dropped")
    assert {e["code"] for e in told} == {"metric-keys"}
    assert found.metrics["accuracy"] > 0.9


@pytest.mark.parametrize("weight", [-40.0, 0.0, 41.0, np.inf, np.nan])
def test_a_silo_does_not_answer_for_a_gradient_of_another_weight(weight):
    layout = Training.of(mime_plan()).layout
    leaves = [np.ones(x.shape, x.dtype) for x in LEAVES]
    leaves[2] = leaves[7] = np.asarray(40, np.float32)
    assert set(layout.reply(leaves).metrics) == {"tff-3", "tff-4"}
    leaves[2] = np.asarray(weight, np.float32)
    with pytest.raises(ConfigError, match="gradient otherwise than its update"):
        layout.reply(leaves)


def test_the_plan_is_a_round_of_ours():
    training = Training.of(mime_plan())
    layout = training.layout
    assert (layout.update, layout.weights) == ((5, 6, 0, 1), (2, 7))
    assert (layout.sums, layout.size) == ((3, 4), 42)
    assert training.two_vectors
    assert not Training.of(plan_of()).two_vectors


@pytest.mark.parametrize(
    "leaves",
    [
        [leaf((3,), role="gradient"), *LEAVES[1:]],
        [leaf((3, 6), "float64", role="gradient"), *LEAVES[1:]],
        LEAVES[1:],
        [LEAVES[1], LEAVES[0], *LEAVES[2:]],
    ],
)
def test_gradients_that_are_not_the_models_are_refused(leaves):
    with pytest.raises(ConfigError, match="other gradients than the model's"):
        Training.of(mime_plan(leaves))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"robust.rule": "median"}, "the longer one hides the other"),
        ({"anomaly.enabled": "on"}, "the longer one hides the other"),
        ({"privacy.mechanism": "gaussian"}, "noise is planned for the update alone"),
        ({"compression.codec": "q8"}, "codecs choose among the model's values"),
        ({"compression.downlink": "q8"}, "codecs choose among the model's values"),
        ({"secure.scheme": "secagg"}, "another scale"),
        ({"secure.scheme": "bfv"}, "another scale"),
        ({"tff.mixed": True, "train.batch-size": 8}, "send no gradients"),
        ({"server.average": 0.5}, "the average would be of two vectors"),
    ],
)
def test_layers_that_know_one_vector_are_refused(changes, reason):
    check(mime_plan(), Job.of({**RUN, "server.average": 0.0}))
    check(plan_of(), Job.of({**RUN, **changes}))  # one vector goes with all of them
    with pytest.raises(ConfigError, match=f"{reason}.* Compile fed-avg with"):
        check(mime_plan(), Job.of({**RUN, **changes}))


def test_torch_does_not_stand_in():
    job = Job.of({**RUN, "tff.mixed": True, "train.batch-size": 8})
    check_torch(Training.of(plan_of()), job)
    with pytest.raises(ConfigError, match="only fed-avg"):
        check_torch(Training.of(mime_plan()), job)
