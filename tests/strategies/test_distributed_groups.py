"""Distributed privacy in sums of groups: each has all the noise, and one is charged."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from scipy import stats

from strategies import stack
from strategies.base import StrategyLayer, synthetic_reply, walk
from strategies.mean.layer import WeightedMean
from strategies.mechanisms.distributed import JUDGED, distributed_plan
from strategies.mechanisms.distributed_layer import DistributedDP
from strategies.mechanisms.encoder import SkellamEncoder, encoder_for
from strategies.secure.groups import Groups
from strategies.server_sgd import ServerSGD
from strategies.update import blank_update, read_delta
from tests.support import runs
from tests.support.federation import adding_app, config, grid_of, model, weights
from truststram.errors import ConfigError
from truststram.events import read
from truststram.job import Job
from truststram.privacy.finished import Finished
from truststram.privacy.plan import preview
from truststram.privacy.plan_text import lines
from truststram.privacy.report import report

ONE_SUM = {
    "privacy.mechanism": "skellam",
    "privacy.trust": "distributed",
    "privacy.epsilon": 20.0,
    "secure.scheme": "secagg",
    "train.rounds": 2,
    "server.lr": 1.0,
}
GROUPED = {**ONE_SUM, "secure.group-size": 4, "robust.rule": "wfagg"}
D = 20_000
# Error rate of each statistical test.
LEVEL = 1e-6


def job(**changes) -> Job:
    given = {k.replace("__", ".").replace("_", "-"): v for k, v in changes.items()}
    return Job.of({**GROUPED, **given})


def encoded(asked: Job, clients: int, seed: int = 0, share: float = 1.0):
    """Return what so many clients with zero updates encode, centred, (clients, D).

    ``share`` scales the deviation of the noise: wrong ones are to be noticed.
    """
    plan = distributed_plan(asked, D)
    encoder = SkellamEncoder(plan, insecure=True)
    zero, rng = np.zeros(D, np.float32), np.random.default_rng(seed)
    rows = [encoder.encode(zero, rng).astype(np.int64) for _ in range(clients)]
    return plan, np.rint((np.array(rows) - encoder.half) * share)


@pytest.mark.parametrize(("least", "colluders", "size"), [(3, 0, 4), (5, 2, 6)])
def test_the_sum_of_every_group_has_the_planned_noise_from_its_honest_survivors(
    least, colluders, size
):
    """A sum with less is accepted once in a million, and so is one with all refused."""
    asked = job(
        secure__min_cohort=least, secure__colluders=colluders, secure__group_size=size
    )
    nodes = 3 * size
    groups = Groups.of([str(i) for i in range(nodes)], size, "run")
    plan, noise = encoded(asked, nodes)
    planned = (plan.release.scale * plan.on.units) ** 2
    for group in groups.members:
        for survivors in range(least, size + 1):
            honest = [int(name) for name in group][: survivors - colluders]
            found = np.square(noise[honest].sum(axis=0)).sum() / planned
            assert found > stats.chi2.ppf(LEVEL, D)
            # What leaves when shares are sized for the survivors of all groups.
            thinner = found * (least - colluders) / (3 * least - colluders)
            assert thinner < stats.chi2.ppf(LEVEL, D)


def test_another_update_of_a_client_changes_the_sum_of_its_group_only():
    asked = job(privacy__insecure=True)
    encoder, size = encoder_for(asked, 100), asked.secure.group_size
    groups = Groups.of([str(i) for i in range(12)], size, "run")

    def sums(last):
        rng, rows = np.random.default_rng(0), []
        for i in range(12):
            update = np.full(100, last if i == 11 else 0.01, np.float32)
            rows.append(encoder.encode(update, rng).astype(np.int64))
        return [sum(rows[int(n)] for n in group) for group in groups.members]

    for i, (one, other) in enumerate(zip(sums(0.01), sums(-5.0), strict=True)):
        assert np.array_equal(one, other) is (i != groups.index("11"))


def games(asked: Job, share: float = 1.0):
    """Guess coins from the sums of three groups of four; return right guesses.

    Each coordinate is a game of its own: client 0 contributes the clip or less the
    clip, all else is known, and the noise is what the encoders add. Guesses are by the
    likelihood of one group's sum, and by that of all groups' together.
    """
    plan, noise = encoded(asked, 12, seed=1, share=share)
    coins = np.random.default_rng(2).choice([-1, 1], D)
    noise[0] += coins * plan.on.units
    sums = noise.reshape(3, 4, D).sum(axis=1)
    by_one = np.sign(sums[0])
    # log f(sums | +) - log f(sums | -): the other groups' terms do not depend on it.
    likely = stats.norm(scale=math.sqrt(4 * plan.share) * share)
    ratio = [
        likely.logpdf(s - c * plan.on.units) - likely.logpdf(s + c * plan.on.units)
        for s, c in zip(sums, (1, 0, 0), strict=True)
    ]
    by_all = np.sign(sum(ratio))
    return plan, int((by_one == coins).sum()), by_one, by_all


def test_an_attack_on_all_sums_of_a_round_knows_what_the_sum_of_one_group_tells():
    """Audit: right guesses are no more than the accounted noise allows, and near it."""
    asked = job(secure__min_cohort=4)
    plan, right, by_one, by_all = games(asked)
    np.testing.assert_array_equal(by_one, by_all)
    # Neighbours differ by two clips; the noise is that of the release.
    best = stats.norm.cdf(plan.release.sensitivity / 2 / plan.release.scale)
    assert stats.binom.sf(right - 1, D, best) > LEVEL
    assert stats.binom.cdf(right, D, best) > LEVEL
    # Shares that add up to the noise over all groups only: refuted.
    _, right, *_ = games(asked, share=3**-0.5)
    assert stats.binom.sf(right - 1, D, best) < LEVEL


def test_groups_are_charged_like_one_sum_with_as_few_survivors():
    grouped, alone = job(), Job.of(ONE_SUM)
    one, other = (distributed_plan(j, D) for j in (grouped, alone))
    assert one.release == other.release
    assert (one.share, one.half) == (other.share, other.half)
    # With all nodes in one sum the shares could be smaller.
    many = Job.of({**ONE_SUM, "secure.min-cohort": 12, "round.min-nodes": 12})
    assert distributed_plan(many, D).share == pytest.approx(one.share / 4)


class PlainGroups(StrategyLayer):
    """In the place of the secure sum: encodes for the nodes, adds group by group."""

    reduces = True

    def __init__(self, job, inner):
        super().__init__(inner)
        self.job, self.sizes = job, []

    def aggregate_train(self, server_round, replies):
        encoder = encoder_for(self.job, self.model.spec.size)
        rng, means, size = np.random.default_rng(1), [], self.job.secure.group_size
        replies = list(replies)
        for part in np.array_split(np.arange(len(replies)), len(replies) // size):
            total = 0
            for i in part:
                delta = read_delta(replies[i].content, self.model)
                total = total + encoder.encode(delta, rng).astype(np.uint64)
            update, values = blank_update(self.model.spec)
            values[:] = encoder.decode_sum(total, len(part)) / len(part)
            means.append(synthetic_reply(replies[part[0]], update, {}, 1))
        return self.hand_on(server_round, means)


class Federation:
    def __init__(self, nodes, **changes):
        self.job = job(**changes)
        inner = WeightedMean(ServerSGD(), weighted=False)
        self.layer = DistributedDP(self.job, PlainGroups(self.job, inner))
        self.events = []
        self.layer.emit = lambda kind, **data: self.events.append((kind, data))
        self.model = model(0.5, {"w": (400, 50)})
        self.grid = grid_of(adding_app(lambda p, r: 0.0), nodes)

    def round(self, number=1):
        asked = self.layer.configure_train(number, self.model, config(), self.grid)
        replies = self.grid.send_and_receive(asked)
        return self.layer.aggregate_train(number, replies)[0]

    def of(self, kind):
        return [data for k, data in self.events if k == kind]


@pytest.mark.parametrize("nodes", [12, 14])
def test_the_model_moves_by_the_noise_that_the_plan_tells(nodes):
    """14 nodes make groups of 5, 5 and 4."""
    federation = Federation(nodes)
    noise = weights(federation.round()) - 0.5
    plan = distributed_plan(federation.job, D)
    std = plan.mean_std(nodes, 3)
    assert stats.kstest(noise / std, "norm").pvalue > LEVEL
    for wrong in (2 / 3, 3 / 2):
        assert stats.kstest(noise / std / wrong, "norm").pvalue < LEVEL
    [told] = federation.of("privacy-plan")
    assert told["groups"] == 3
    assert told["noise-to-signal"] == pytest.approx(std * D**0.5, rel=1e-3)
    group = plan.std(4) / 4 * D**0.5
    assert told["group-noise-to-signal"] == pytest.approx(group, rel=1e-3)
    assert told["levels"] == plan.levels(4)
    assert federation.of("privacy-spent")[0]["noise"] == told["levels"][0]["std"]
    json.dumps(told, allow_nan=False)


def test_the_mean_of_group_means_has_the_noise_of_the_whole_mean_if_groups_are_equal():
    plan = distributed_plan(job(), D)
    for nodes, groups in ((12, 3), (200, 10)):
        whole = plan.std(nodes) / nodes
        assert plan.mean_std(nodes, groups) == pytest.approx(whole)
        assert plan.mean_std(nodes + 1, groups) > plan.std(nodes + 1) / (nodes + 1)
    assert plan.mean_std(7) == pytest.approx(plan.std(7) / 7)


def test_the_usual_rate_is_that_of_the_noise_in_the_mean_of_group_means():
    rates = []
    for nodes in (12, 48):
        federation = Federation(nodes, server__lr=0.0)
        federation.round()
        rates.append(list(walk(federation.layer))[-1].lr)
        [told] = federation.of("privacy-plan")
        assert rates[-1] == pytest.approx(told["server-rate"], rel=1e-3)
    assert rates[1] == pytest.approx(2 * rates[0], rel=1e-3)


@pytest.mark.parametrize("colluders", [0, 3])
def test_groups_of_the_size_that_is_advised_are_no_noisier(colluders):
    changes = {"secure__colluders": colluders, "secure__max_cohort": 1000}
    found = distributed_plan(job(**changes, secure__min_cohort=9), 650)
    size = found.group_for(0.5, colluders)
    for n, enough in ((size, True), (size - 1, False)):
        sized = distributed_plan(job(**changes, secure__min_cohort=n), 650)
        assert (sized.ratio(n) <= 0.5) is enough


def test_the_warning_is_there_where_the_rule_hears_noise_only():
    def told(size):
        changes = {"group_size": size, "min_cohort": size, "max_cohort": 5000}
        given = {f"secure__{k}": v for k, v in changes.items()}
        federation = Federation(3 * size, **given)
        federation.layer.configure_train(
            *(1, federation.model, config(), federation.grid)
        )
        return federation.of("privacy-plan")[0]

    few = told(4)
    assert few["group-noise-to-signal"] > JUDGED
    assert "the noise in the mean of a group" in few["warning"].lower()
    [size] = {w for w in few["warning"].split() if w.isdigit()}
    enough = told(int(size))
    assert enough["group-noise-to-signal"] <= JUDGED
    assert enough["warning"] == ""


def test_a_plan_for_people_says_the_noise_of_groups():
    asked = job(secure__group_size=20, secure__min_cohort=20)
    shown = preview(asked, nodes=200)
    plan = distributed_plan(asked, shown["parameters"])
    assert shown["levels"] == plan.levels(20)
    assert shown["noise-to-signal"] == pytest.approx(plan.ratio(200, 10))
    groups = shown["groups"]
    assert groups["count"] == 10
    assert groups["noise-to-signal"] == pytest.approx(plan.ratio(20))
    alone = Job.of({**ONE_SUM, "secure.min-cohort": 200, "secure.max-cohort": 200})
    assert groups["one-sum"] == pytest.approx(preview(alone, 200)["noise-to-signal"])
    assert groups["one-sum"] < shown["noise-to-signal"] < groups["noise-to-signal"]
    text = "\n".join(lines(shown))
    assert "Groups: 10 sums" in text
    assert groups["warning"] in text
    large = groups["size-for-1"]
    sizes = {"secure.group-size": large, "secure.min-cohort": large}
    good = preview(asked.replace({**sizes, "secure.max-cohort": large}), 3 * large)
    assert good["groups"]["noise-to-signal"] <= 1
    assert good["groups"]["warning"] == ""
    assert "groups" not in preview(alone, 200)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, None),
        ({"robust__rule": "median"}, None),
        ({"secure__regroup": True}, None),
        ({"robust__f": 1}, "robust.f above secure.colluders"),
        ({"robust__f": 1, "secure__colluders": 1, "secure__min_cohort": 4}, None),
        ({"secure__group_size": 0}, "robust.rule with a secure sum of all nodes"),
        ({"privacy__trust": "central", "privacy__mechanism": "gaussian"}, "by the ser"),
        ({"privacy__trust": "local", "privacy__mechanism": "gaussian"}, "by the nodes"),
    ],
)
def test_robust_rules_over_noise_are_refused_where_they_are_unsound(changes, reason):
    asked = job(**changes)
    if reason is None:
        stack.check(asked)
        return
    with pytest.raises(ConfigError, match=reason):
        stack.check(asked)


def test_a_run_in_groups_is_charged_as_one_sum_a_round(tmp_path):
    changes = {
        "secure.scheme": "secagg",
        "secure.group-size": 3,
        "secure.max-cohort": 3,
        "round.min-nodes": 6,
        "robust.rule": "wfagg",
        "privacy.mechanism": "auto",
        "privacy.trust": "distributed",
        "privacy.epsilon": 20.0,
        "privacy.insecure": True,
        "train.rounds": 2,
    }
    result = runs.run(tmp_path, changes=changes, nodes=6)
    told = read(result.dir / "events.jsonl")
    of = {k: [e for e in told if e["kind"] == k] for k in {e["kind"] for e in told}}
    assert [e["clients"] for e in of["secure-sum"]] == [3] * 4
    assert [e["clipped"] for e in of["secure-sum"]] == [0] * 4
    assert of["privacy-spent"][-1]["epsilon"] == pytest.approx(20, rel=1e-3)
    [plan] = of["privacy-plan"]
    assert plan["groups"] == 2
    assert plan["group-noise-to-signal"] > plan["noise-to-signal"] > 0
    assert "reply-dropped" not in of
    found = report(Finished.read(result.dir))
    assert (found["trust"], found["mechanism"]) == ("distributed", "skellam")
    assert found["epsilon"] == pytest.approx(20, rel=1e-3)
