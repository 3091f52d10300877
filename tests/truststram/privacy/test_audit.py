"""The audit: honest servers pass, and each planted bug is found."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from scipy import stats

from strategies.mechanisms import layer, sums
from strategies.mechanisms.csprng import Source
from strategies.mechanisms.lattice import Lattice
from truststram.errors import ConfigError
from truststram.job import Job
from truststram.privacy import bounds
from truststram.privacy.audit import audit
from truststram.privacy.bounds import any_mechanism as bounded
from truststram.privacy.bounds import same_mechanism as same
from truststram.privacy.canaries import audited, coins_of, play
from truststram.privacy.checks import off_lattice
from truststram.techniques import Plan, Release, calibrate

# An honest server fails with this probability; noise and coins have a fixed seed.
BETA = 1e-3


def job(mechanism="gaussian", epsilon=2.0, **changes) -> Job:
    """Return a job whose noise repeats, so that a test does."""
    keys = {f"privacy.{k}": v for k, v in {"insecure": True, **changes}.items()}
    return Job.of({"privacy.mechanism": mechanism, "privacy.epsilon": epsilon, **keys})


def run(a_job=None, canaries=2000, **options):
    return audit(a_job or job(), canaries=canaries, beta=BETA, seed=1, **options)


def claims(result) -> bool:
    """Whether the bounds alone contradict the claim."""
    return result.epsilon > result.claim


# What an insecure job, which all of these are, is told.
REPEATS = ("privacy.insecure: the noise repeats with run.seed.",)


@pytest.mark.parametrize("epsilon", [1.0, 8.0])
@pytest.mark.parametrize("mechanism", ["gaussian", "laplace"])
def test_an_honest_server_passes_and_the_bound_is_near_its_claim(mechanism, epsilon):
    result = run(job(mechanism, epsilon))
    assert 0.3 * epsilon < result.epsilon <= epsilon
    assert result.problems == REPEATS
    assert result.off_lattice == 0


def test_staircase_noise_is_audited_one_value_at_a_time():
    result = run(job("staircase", 2.0), 200)
    assert (result.mechanism, result.dimension) == ("staircase", 1)
    assert 0.9 < result.epsilon <= 2.0


def test_auto_is_audited_as_what_it_chooses():
    assert run(job("auto"), 300).mechanism == "gaussian"
    assert run(job("auto"), 100, dimension=1).mechanism == "staircase"


def test_replaced_clients_send_the_opposite():
    result = run(job(relation="replace", sampling="none"))
    assert 1.0 < result.epsilon <= 2.0
    assert result.problems == REPEATS


def test_what_concerns_other_rounds_is_left_out_of_the_audited_one():
    evaluated = job(schedule="increasing", **{"evaluate-epsilon": 1.0})
    evaluated = evaluated.replace({"round.evaluate": "clients"})
    result = run(evaluated, 300)
    assert result.problems == REPEATS
    assert result.claim == 2.0


def test_secure_noise_is_no_problem():
    result = audit(job(insecure=False), canaries=100, beta=1e-9)
    assert result.ok
    assert result.problems == ()
    assert result.verdict.startswith("Passed")


def test_noise_divided_by_two_is_caught(monkeypatch):
    draw = sums.draw
    monkeypatch.setattr(sums, "draw", lambda *a: draw(*a) // 2)
    for mechanism, epsilon in (("gaussian", 1.0), ("gaussian", 8.0), ("laplace", 4.0)):
        result = run(job(mechanism, epsilon))
        assert claims(result)
        assert not result.ok
        assert result.verdict.startswith("FAILED: the claim is false")


def test_noise_for_half_the_clip_is_caught(monkeypatch):
    """The sensitivity is wrong: noise is drawn as if updates were half as long."""
    draw = sums.draw
    monkeypatch.setattr(sums, "draw", lambda r, units, d, s: draw(r, units / 2, d, s))
    assert claims(run())
    assert claims(run(job("staircase"), 200))


def test_updates_that_are_not_clipped_are_caught(monkeypatch):
    def unclipped(delta, on: Lattice):
        integers = np.rint(delta.astype(np.float64) / on.step).astype(np.int64)
        return SimpleNamespace(integers=integers, norm=0.0, finite=True)

    monkeypatch.setattr(sums, "clip", unclipped)
    assert claims(run())


def test_noise_that_repeats_is_caught(monkeypatch):
    """Every Source has the same key: two runs differ by the updates alone."""

    class Repeated(Source):
        def __new__(cls):
            return Source.insecure(5)

    monkeypatch.setattr(layer, "Source", Repeated)
    result = audit(job(insecure=False), canaries=2000, beta=BETA, seed=1)
    best = max(result.bounds, key=lambda bound: bound.epsilon)
    assert claims(result)
    assert (best.output, best.right) == ("difference of two", 2000)
    assert any("Two runs had the same noise" in p for p in result.problems)


def test_noise_that_repeats_in_every_round_is_caught(monkeypatch):
    """Another key for each server, but the same words in all of its rounds."""
    begin = layer.CentralDP._begin

    def rewound(self, nodes):
        self._source = Source.insecure(id(self))
        begin(self, nodes)

    monkeypatch.setattr(layer.CentralDP, "_begin", rewound)
    result = audit(job(insecure=False), canaries=100, beta=1e-9, seed=1)
    assert any("Two rounds had the same noise" in p for p in result.problems)
    assert not result.ok


def test_division_by_the_number_of_answers_is_caught(monkeypatch):
    decode = sums.from_lattice
    answers = []
    add = sums._add

    def counted(reply, *rest):
        answers.append(reply)
        return add(reply, *rest)

    def divided(total, on, cohort=1.0):
        count = len(answers)
        answers.clear()
        return decode(total, on, float(count or 1))

    monkeypatch.setattr(sums, "_add", counted)
    monkeypatch.setattr(sums, "from_lattice", divided)
    result = run(canaries=300)
    assert any("answered with zeros" in problem for problem in result.problems)
    assert not result.ok


def test_noise_in_floating_point_is_caught(monkeypatch):
    plan, release, coins = released()
    assert not off_lattice(plan, release).any()

    def floats(total, on, cohort):
        noise = np.random.default_rng(1).normal(size=len(total)).astype(np.float32)
        return ((total * on.step).astype(np.float32) + noise) / np.float32(cohort)

    monkeypatch.setattr(sums, "draw", lambda r, u, d, s: np.zeros(d, np.int64))
    monkeypatch.setattr(sums, "from_lattice", floats)
    plan, release, coins = released()
    assert off_lattice(plan, release).mean() > 0.5
    # What it gives away: a sum with a clip has no digits finer than those of the clip,
    # so whoever has them was absent, for sure.
    grid = np.spacing(np.float32(1)) / 2
    absent = np.rint(release.sums / grid) * grid != release.sums
    assert absent.mean() > 0.1
    assert not (absent & coins).any()
    assert any("off the lattice" in p for p in run(canaries=256).problems)


def released():
    """Return plan, release and coins of a game without other checks."""
    m = 1024
    one, coins = audited(job()), coins_of(m, 1)
    plan = Plan.of(one, m, m)
    return plan, play(one, plan, coins), coins


def test_other_noise_is_refused():
    for changes in (
        {},
        {"privacy.mechanism": "gaussian", "privacy.trust": "local"},
        {"privacy.mechanism": "dp-sgd", "privacy.unit": "example"},
    ):
        with pytest.raises(ConfigError, match="noise that the server adds"):
            audit(Job.of(changes))
    with pytest.raises(ConfigError, match="canaries = 10"):
        audit(job(), canaries=10)


@pytest.mark.parametrize("mechanism", ["gaussian", "laplace", "staircase"])
@pytest.mark.parametrize("epsilon", [0.5, 3.0])
def test_the_accuracy_of_the_best_test(mechanism, epsilon):
    """Numerically: half of one plus the distance in total variation."""
    release = calibrate(mechanism, epsilon, 1e-5)
    if mechanism == "staircase":
        width = release.gamma
        x = np.linspace(-80, 80, 1_600_001)[:-1] + 5e-5

        def density(y):
            level = np.clip(np.floor(np.abs(y) - width) + 1, 0, None)
            return np.exp(-release.epsilon0 * level)
    else:
        law = {"gaussian": stats.norm, "laplace": stats.laplace}[mechanism]
        x = np.linspace(-80, 80, 1_600_001)[:-1] + 5e-5

        def density(y):
            return law.pdf(y, scale=release.scale)

    p, q = density(x), density(x - 1)
    expected = 0.5 + 0.25 * np.abs(p / p.sum() - q / q.sum()).sum()
    assert bounds.accuracy(release) == pytest.approx(expected, rel=1e-3)


def test_bounds_accuse_the_honest_as_rarely_as_they_say():
    """Exactly: the probability of all numbers of right guesses that accuse."""
    release, m, beta = Release("gaussian", scale=1.0), 200, 0.1
    claim = bounds.epsilon_of(release, 1e-5)
    tests = (
        (bounds.accuracy(release), claim, lambda v: same(release, v, m, 1e-5, beta)),
        # Randomized response is the most that epsilon = 1 allows.
        (1 / (1 + np.exp(-1.0)), 1.0, lambda v: bounded(v, m, m, 0.0, beta)),
    )
    for best, limit, bound in tests:
        middle = int(best * m)
        accused = next(v for v in range(middle, m) if bound(v) > limit)
        assert 0.3 * beta < stats.binom.sf(accused - 1, m, best) <= beta


def test_delta_weakens_the_bound_that_assumes_nothing():
    exact = bounded(900, 1000, 2000, 0.0, 0.05)
    weaker = bounded(900, 1000, 2000, 1e-4, 0.05)
    assert 0 < weaker < exact
    assert bounded(500, 1000, 2000, 0.0, 0.05) == 0.0
    assert bounded(0, 1000, 2000, 0.0, 0.05) == 0.0
