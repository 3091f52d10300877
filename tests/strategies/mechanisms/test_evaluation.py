"""Accuracies with noise: of the right scale, and never more of a node than paid for."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from strategies.accounting.pld import epsilon_at
from strategies.mechanisms import evaluation
from strategies.mechanisms.csprng import Source
from strategies.mechanisms.evaluation import (
    accuracy_of,
    accuracy_release,
    noisy_sum,
    told_error,
)
from truststram.errors import ConfigError
from truststram.job import Job

from .checks import fits, staircase_cdf

# Steps of the lattice of a clip of 1, which has 2**20.
STEP = 2.0**-20
LOCAL = {"privacy.trust": "local"}
CENTRAL = {"privacy.trust": "central"}
EXAMPLES = {"privacy.mechanism": "dp-sgd", "privacy.unit": "example"}
# How far the sums of neighbours are apart: a node's own number by 1 at most; a client
# more or less moves a sum of numbers around 0 by a half.
DISTANCE = {
    "local": (LOCAL, 1.0),
    "examples": (EXAMPLES, 1.0),
    "central": (CENTRAL, 0.5),
    "central, replaced": ({**CENTRAL, "privacy.sampling": "fixed"}, 1.0),
}


def job(**changes):
    keys = {
        "privacy.mechanism": "gaussian",
        "privacy.epsilon": 9.0,
        "privacy.evaluate-epsilon": 8.0,
        "round.evaluate": "clients",
        "train.rounds": 6,
    }
    given_keys = {k.replace("__", ".").replace("_", "-"): v for k, v in changes.items()}
    return Job.of({**keys, **given_keys})


def samples(a_job, value=0.5, n=2000):
    release, source = accuracy_release(a_job), Source.insecure(5)
    central = a_job.privacy.central
    exact = value - 0.5
    return np.array(
        [noisy_sum([value], release, source, central=central) - exact for _ in range(n)]
    )


@pytest.mark.parametrize("case", DISTANCE)
def test_the_noise_has_its_scale_and_no_other(case):
    changes, distance = DISTANCE[case]
    a_job = job(**changes)
    release = accuracy_release(a_job)
    assert release.epsilon0 == 8.0
    found = samples(a_job) / (STEP / 2)
    for factor in (1.0, 2 / 3, 3 / 2):
        step = factor * distance / (STEP / 2)
        right = fits(found, staircase_cdf(8.0, release.gamma, step))
        assert right == (factor == 1.0), factor


def test_the_goal_of_twenty_silos():
    """1.3 points of standard error at epsilon 8 each."""
    release = accuracy_release(job(**LOCAL))
    assert told_error(release, 20, central=False) == pytest.approx(0.0130, rel=0.01)
    assert told_error(release, 1, central=False) == pytest.approx(0.0581, rel=0.01)
    half = accuracy_release(job(**CENTRAL))
    assert told_error(half, 20, central=True) == pytest.approx(0.0581 / 40, rel=0.01)


def test_evaluations_share_their_part_of_the_budget():
    for every, times in ((0, 1), (1, 6), (2, 3), (4, 2), (6, 1), (9, 1)):
        a_job = job(privacy__evaluate_every=every, **LOCAL)
        rounds = [n for n in range(1, 7) if a_job.privacy.evaluates(n, 6)]
        assert rounds[-1] == 6
        assert len(rounds) == a_job.privacy.evaluations(6) == times
        until = [a_job.privacy.evaluations(6, n) for n in range(7)]
        assert until == [sum(r <= n for r in rounds) for n in range(7)]
        release = accuracy_release(a_job)
        assert release.epsilon0 == pytest.approx(8.0 / times)
        assert epsilon_at({release: times}, 1e-5) <= 8.0 + 1e-9
    off = Job.of({"privacy.mechanism": "gaussian"})
    assert accuracy_release(off) is None
    assert off.privacy.evaluations(6) == 0
    assert not any(off.privacy.evaluates(n, 6) for n in range(1, 7))
    assert all(Job().privacy.evaluates(n, 6) for n in range(1, 7))


def test_no_value_moves_the_sum_by_more_than_it_may(monkeypatch):
    monkeypatch.setattr(
        evaluation, "draw", lambda release, units, d, source: np.zeros(d, np.int64)
    )
    release, source = accuracy_release(job(**CENTRAL)), Source.insecure(1)

    @given(
        st.lists(st.floats(0, 1), max_size=8),
        st.floats(allow_nan=False) | st.integers(-(2**70), 2**70),
    )
    def check(others, value):
        def total(values):
            return noisy_sum(values, release, source, central=True)

        mine = accuracy_of({"accuracy": value})
        assert mine is not None
        assert abs(total([*others, mine]) - total(others)) <= 0.5
        exact = sum(others) - len(others) / 2
        assert total(others) == pytest.approx(exact, abs=1e-5)

    check()


@pytest.mark.parametrize(
    "metrics", [{}, {"loss": 0.1}, {"accuracy": math.nan}, {"accuracy": [0.5, 0.5]}]
)
def test_what_is_no_accuracy_is_none(metrics):
    assert accuracy_of(metrics) is None


def test_a_sum_of_nobody_is_noise():
    release = accuracy_release(job(**CENTRAL))
    assert noisy_sum([], release, Source.insecure(1), central=True) != 0.0


def test_evaluation_cannot_have_everything():
    with pytest.raises(ConfigError, match="of which it is a part"):
        accuracy_release(job(privacy__epsilon=8.0, **LOCAL))
