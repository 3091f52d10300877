"""The server's half: what is released, whatever clients send."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from flwr.app import Message

from strategies.guard.layer import Guard
from strategies.mechanisms.plan import Plan
from strategies.update import Model, read_delta, with_delta
from tests.adversaries.replies import HOSTILE
from tests.strategies.mechanisms.central import BASE, D, Federation
from tests.support.federation import config, plus, reply_content, weights
from truststram.job import Job


def test_the_sum_of_clipped_updates_over_the_expected_cohort(silent):
    """Two short updates, one of ten times the clip, seven nodes that do not answer."""
    federation = Federation(nodes=10)
    federation.ask()
    change = federation.release([0.1, -0.05, 10 / math.sqrt(D)])
    expected = (0.1 - 0.05 + 1 / math.sqrt(D)) / 10
    np.testing.assert_allclose(change, expected, rtol=1e-4)


@pytest.mark.parametrize("answers", [0, 1, 10])
def test_the_divisor_does_not_tell_how_many_answered(silent, answers):
    federation = Federation(nodes=10)
    federation.ask()
    change = federation.release([0.1] * answers)
    np.testing.assert_allclose(change, 0.1 * answers / 10, rtol=1e-4, atol=1e-9)


def test_nothing_that_clients_report_is_handed_on(silent):
    federation = Federation()
    federation.ask()
    federation.release([0.1] * 10)
    assert dict(federation.metrics) == {}
    assert "train-loss" not in json.dumps(federation.events)


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e38])
def test_a_broken_or_huge_update_counts_as_any_other(silent, bad):
    federation = Federation(nodes=4)
    messages = federation.ask()
    delta = np.zeros(D, np.float32)
    delta[3] = bad
    content = with_delta(reply_content(federation.model), delta)
    arrays, _ = federation.layer.aggregate_train(
        1, [Message(content, reply_to=messages[0])]
    )
    change = weights(arrays) - 0.5
    assert np.abs(change).max() <= 1 / 4 + 1e-6
    assert np.isfinite(change).all()
    assert len(federation.of("update-zeroed")) == (0 if np.isfinite(bad) else 1)


@pytest.mark.parametrize("mechanism", ["gaussian", "laplace", "staircase", "auto"])
def test_the_noise_has_the_planned_scale(mechanism):
    """20,000 draws; a scale of 2/3 or 3/2 is ten standard errors away."""
    federation = Federation(
        nodes=5,
        shapes={"w": (20_000,)} if mechanism != "staircase" else {"w": (400,)},
        privacy__mechanism=mechanism,
        train__rounds=1,
    )
    federation.ask()
    plan = federation.layer.plan
    noise = federation.release([]) * plan.cohort
    if mechanism == "staircase":  # coordinates of a ball share one length
        lengths = []
        for seed in range(200):
            other = Federation(
                nodes=5,
                shapes={"w": (400,)},
                privacy__mechanism=mechanism,
                train__rounds=1,
                run__seed=seed,
            )
            other.ask()
            lengths.append(np.linalg.norm(other.release([]) * plan.cohort))
        found = math.sqrt(np.mean(np.square(lengths)) / 400)
    else:
        found = float(noise.std())
    assert found == pytest.approx(plan.std * plan.clip, rel=0.05)


def test_secure_noise_never_repeats():
    changes = []
    for _ in range(2):
        federation = Federation(privacy__insecure=False)
        federation.ask()
        changes.append(federation.release([0.1] * 10))
        assert federation.of("privacy-plan")[0]["secure-noise"] is True
    assert not np.array_equal(*changes)


def test_insecure_noise_repeats_when_a_round_runs_again():
    changes = []
    for _ in range(2):
        federation = Federation()
        federation.ask()
        changes.append(federation.release([0.1] * 10))
    np.testing.assert_array_equal(*changes)


class TestTheClipThatFollowsAQuantile:
    def test_it_reaches_the_quantile(self):
        """Norms 0.1 to 10 in 40 nodes; the median is about 1."""
        norms = np.logspace(-1, 1, 40)
        federation = Federation(
            nodes=40,
            train__rounds=50,
            privacy__epsilon=20.0,
            privacy__clip=10.0,
            privacy__clip_quantile=0.5,
        )
        for number in range(1, 51):
            federation.ask(number)
            federation.release(list(norms / math.sqrt(D)), number)
        assert 0.5 < federation.layer.clip < 2.0

    def test_both_releases_together_cost_one(self):
        job = Job.of({**BASE, "privacy.clip-quantile": 0.5})
        plan = Plan.of(job, 100, D)
        update, count = plan.split(plan.release)
        z = (update.scale**-2 + count.scale**-2) ** -0.5
        assert z == pytest.approx(plan.release.scale)
        assert update.scale < 1.1 * plan.release.scale
        assert update.dimension == D
        assert count.dimension == 1

    def test_the_clip_is_part_of_the_state(self):
        federation = Federation(privacy__clip_quantile=0.5)
        federation.ask()
        federation.release([0.01] * 10)
        again = Federation(privacy__clip_quantile=0.5)
        again.layer.load_state(federation.layer.state())
        assert again.layer.clip == federation.layer.clip < 1.0


def test_delta_replies_are_read_as_well(silent):
    federation = Federation(nodes=4)
    messages = federation.ask()
    stock = reply_content(plus(federation.model, 0.1))
    delta = with_delta(stock, read_delta(stock, Model(federation.model)))
    arrays, _ = federation.layer.aggregate_train(
        1, [Message(delta, reply_to=messages[0])]
    )
    np.testing.assert_allclose(weights(arrays) - 0.5, 0.1 / 4, rtol=1e-4)


@pytest.mark.parametrize("case", HOSTILE)
def test_no_hostile_reply_moves_a_private_sum_by_more_than_a_clip(silent, case):
    """Behind the static guard, as the stack builds it: dropped, or clipped."""
    make, _ = HOSTILE[case]
    changes = []
    for bad in (False, True):
        federation = Federation(nodes=4)
        guard = Guard(federation.layer, static=True)
        guard.emit = federation.layer.emit
        messages = list(
            guard.configure_train(1, federation.model, config(), federation.grid)
        )
        contents = [reply_content(plus(federation.model, 0.1)) for _ in messages[:3]]
        if bad:
            contents.append(make(reply_content(plus(federation.model, 0.1))))
        replies = [
            content
            if isinstance(content, Message)
            else Message(content, reply_to=message)
            for content, message in zip(contents, messages, strict=False)
        ]
        arrays, _ = guard.aggregate_train(1, replies)
        changes.append(weights(arrays) - 0.5)
    assert np.isfinite(changes[1]).all()
    assert np.linalg.norm(changes[1] - changes[0]) <= (1 + 1e-4) / 4
