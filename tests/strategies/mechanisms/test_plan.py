"""What a job's settings mean for each round, and what all rounds cost together."""

from __future__ import annotations

import pytest

from strategies.accounting.pld import epsilon_at
from strategies.mechanisms.gaussian import epsilon_slack
from strategies.mechanisms.noise import lattice_for
from strategies.mechanisms.plan import Plan
from strategies.mechanisms.setting import setting
from truststram.errors import ConfigError
from truststram.job import Job

D = 50
BASE = {
    "privacy.mechanism": "gaussian",
    "privacy.epsilon": 4.0,
    "train.rounds": 12,
    "server.lr": 1.0,
}
TOLD = {"privacy.evaluate-epsilon": 1.0, "round.evaluate": "clients"}
CASES = {
    "constant": {},
    "increasing": {"privacy.schedule": "increasing"},
    "increasing auto": {
        "privacy.schedule": "increasing",
        "privacy.mechanism": "auto",
        "train.rounds": 2,
    },
    "increasing laplace": {
        "privacy.schedule": "increasing",
        "privacy.mechanism": "laplace",
        "train.rounds": 3,
    },
    "fixed": {"privacy.sampling": "fixed", "round.fraction": 0.2},
    "evaluated": {**TOLD, "privacy.evaluate-every": 5},
    "evaluated, increasing": {**TOLD, "privacy.schedule": "increasing"},
    "evaluated, local": {**TOLD, "privacy.trust": "local"},
    # Pure epsilons add up to the budget to the last digit.
    "evaluated, one round": {
        **TOLD,
        "privacy.trust": "local",
        "privacy.mechanism": "staircase",
        "train.rounds": 1,
    },
}


def plan(nodes=100, dimension=D, **changes):
    return Plan.of(Job.of({**BASE, **changes}), nodes, dimension)


@pytest.mark.parametrize("case", CASES)
def test_a_whole_run_is_within_the_budget_and_uses_it(case):
    job = Job.of({**BASE, **CASES[case]})
    found = Plan.of(job, 100, D)
    ledger = found.ledger(job)
    for number in range(1, found.rounds + 1):
        ledger.charge(found.at(number))
        if job.privacy.evaluates(number, found.rounds):
            ledger.charge(found.evaluation)
        assert dict(ledger.releases) == found.charges(job, number)
    assert found.charges(job) == found.charges(job, found.rounds)
    assert found.reserve > 0 or found.release.mechanism == "staircase-ball"
    # Two budgets cost less together than their sum.
    least = 3.0 if "evaluated" in case else 3.99
    assert least < ledger.spent() <= 4.0
    alone = epsilon_at(found.charges(job), 1e-5)
    assert ledger.spent() == pytest.approx(alone + found.reserve)


def test_the_noise_falls_over_an_increasing_schedule():
    found, flat = plan(**CASES["increasing"]), plan()
    scales = [found.at(n).scale for n in range(1, 13)]
    assert scales == sorted(scales, reverse=True)
    assert scales[-1] / scales[0] == pytest.approx(0.5)
    assert scales[-1] < flat.release.scale < scales[0] == found.release.scale
    assert {flat.at(n) for n in range(1, 13)} == {flat.release}
    assert min(scales) < found.std < max(scales)
    assert found.at(13) == found.at(12)  # which the ledger refuses
    levels = found.described(Job.of({**BASE, **CASES["increasing"]}))["levels"]
    assert sum(level["rounds"] for level in levels) == 12
    assert [level["scale"] for level in levels] == sorted(set(scales), reverse=True)


def test_a_run_that_waits_for_a_plateau_keeps_room():
    job = Job.of({**BASE, "privacy.schedule": "on-plateau"})
    found = Plan.of(job, 100, D)
    assert found.adaptive
    assert not plan().adaptive
    ledger = found.ledger(job)
    assert ledger.adaptive
    ledger.charge(found.release, found.rounds)
    assert ledger.remaining(found.release) == found.rounds
    assert found.release.scale > plan().release.scale


def test_a_fixed_cohort_is_a_whole_part_of_the_nodes():
    changes = {"privacy.sampling": "fixed", "round.fraction": 0.26}
    found = setting(Job.of({**BASE, **changes}), 50)
    assert (found.sampling.kind, found.sampling.population) == ("fixed", 50)
    assert found.sampling.rate * 50 == pytest.approx(13)
    assert found.relation == "replace"
    made = plan(50, **changes)
    assert made.cohort == pytest.approx(13)
    assert made.release.sensitivity == 2.0
    assert made.release.sampling == found.sampling
    # Too few nodes for less than one; all of them are no sample.
    assert plan(2, **changes).cohort == 1
    everyone = plan(50, **{**changes, "round.fraction": 1.0})
    assert everyone.release.sampling.kind == "none"
    assert (everyone.cohort, everyone.release.relation) == (50, "replace")


def test_a_fixed_cohort_hides_less_than_a_random_one():
    """Replaced clients are two clips apart: more noise, for a stronger relation."""
    fixed = plan(**CASES["fixed"])
    poisson = plan(**{"round.fraction": 0.2})
    assert fixed.release.scale > poisson.release.scale
    assert fixed.cohort == poisson.cohort == 20


def test_finite_bits_are_paid_for_clips_with_twice_the_steps():
    """The lattice of a clip just below a power of two is nearly twice as fine."""
    job = Job.of({**BASE, "privacy.clip": 1.99})
    found = Plan.of(job, 100, D)
    units = lattice_for(found.release, found.lattice_clip, D).units
    assert units > 1.9 * lattice_for(found.release, 1.0, D).units
    assert epsilon_slack(found.release.scale * units, D * 12) <= found.reserve


def test_what_has_no_guarantee_is_an_error():
    with pytest.raises(ConfigError, match="expected <= 20"):
        plan(**{"privacy.epsilon": 30.0})
