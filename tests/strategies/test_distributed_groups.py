"""Distributed privacy in sums of groups: each has all the noise, and one is charged."""

from __future__ import annotations

import json
from functools import cache

import numpy as np
import pytest
from scipy import stats

from strategies import stack
from strategies.base import StrategyLayer, synthetic_reply, walk
from strategies.mean.layer import WeightedMean
from strategies.mechanisms.distributed import JUDGED, distributed_plan
from strategies.mechanisms.distributed_layer import DistributedDP
from strategies.mechanisms.encoder import SkellamEncoder, encoder_for
from strategies.robust.layer import Robust
from strategies.robust.rule import assume
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
GROUPED = {
    **ONE_SUM,
    "secure.group-size": 4,
    "secure.min-cohort": 4,
    "secure.colluders": 1,
    "robust.rule": "wfagg",
}
D = 20_000
# Error rate of each statistical test.
LEVEL = 1e-6


def job(**changes) -> Job:
    given = {k.replace("__", ".").replace("_", "-"): v for k, v in changes.items()}
    return Job.of({**GROUPED, **given})


@cache
def encoded(asked: Job, clients: int, seed: int = 0):
    """Return what so many clients with zero updates encode, centred, (clients, D)."""
    plan = distributed_plan(asked, D)
    encoder = SkellamEncoder(plan, insecure=True)
    zero, rng = np.zeros(D, np.float32), np.random.default_rng(seed)
    rows = [encoder.encode(zero, rng).astype(np.int64) for _ in range(clients)]
    return plan, np.array(rows) - encoder.half  # to be copied before it is changed


@pytest.mark.parametrize(("least", "colluders", "size"), [(4, 1, 4), (5, 2, 6)])
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
    # Shares that are sized for the survivors of all groups together.
    _, thinner = encoded(asked.replace({"secure.min-cohort": 3 * least}), nodes)
    planned = (plan.release.scale * plan.on.units) ** 2
    for group in groups.members:
        for survivors in range(least, size + 1):
            honest = [int(name) for name in group][: survivors - colluders]
            found, thin = (
                np.square(rows[honest].sum(axis=0)).sum() / planned
                for rows in (noise, thinner)
            )
            assert found > stats.chi2.ppf(LEVEL, D)
            assert thin < stats.chi2.ppf(LEVEL, D)


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


NODES, GROUPS = [str(i) for i in range(12)], 3


def right_guesses(asked: Job, target: int, silent: int = 1, *, everywhere=False):
    """Guess coins from the sums of all groups; return right guesses of D / 2.

    Each coordinate is a game of its own: the target contributes the clip or less the
    clip, all else is known, and the noise is what the encoders add; ``silent`` nodes of
    the target's group leave out theirs. Guesses are by the likelihood ratio of normal
    sums with one covariance, whose weights for the sums of all groups are learnt from
    the other half of the games: no sum is taken to be independent of the coins.
    ``everywhere`` adds what the target sends to all sums, which they must not do.
    """
    groups = Groups.of(NODES, 4, "run")
    plan, noise = encoded(asked, len(NODES), seed=1)
    rows = noise.copy()
    own = groups.members[groups.index(str(target))]
    for name in [name for name in own if int(name) != target][:silent]:
        rows[int(name)] = 0
    coins = np.random.default_rng(2).choice([-1, 1], D)
    rows[target] += coins * int(plan.on.units)
    sums = np.array(
        [rows[list(map(int, g))].sum(axis=0) for g in groups.members], float
    )
    if everywhere:
        sums += [rows[target] * (group is not own) for group in groups.members]
    known, asked_for = sums[:, ::2], sums[:, 1::2]
    weights = np.linalg.solve(known @ known.T, known @ coins[::2])
    return int((np.sign(weights @ asked_for) == coins[1::2]).sum())


def test_an_attack_on_all_sums_of_a_round_knows_no_more_than_is_accounted_for():
    """Audit: right guesses are no more than the accounted noise allows, and near it.

    A node of the target's group leaves out its noise, as ``secure.colluders`` allows.
    """
    asked = job()
    release = distributed_plan(asked, D).release
    # Neighbours differ by two clips; the noise is that of the release.
    best = stats.norm.cdf(release.sensitivity / 2 / release.scale)

    def too_many(right):
        return stats.binom.sf(right - 1, D // 2, best) < LEVEL

    for target in range(len(NODES)):
        right = right_guesses(asked, target)
        assert not too_many(right)
        assert stats.binom.cdf(right, D // 2, best) > LEVEL
        # A target in the sums of all groups, with the same noise: refuted.
        assert too_many(right_guesses(asked, target, everywhere=True))
    # So is one more that leaves out its noise than is assumed,
    assert too_many(right_guesses(asked, 0, silent=2))
    # and shares that add up to the noise over all groups only.
    assert too_many(right_guesses(asked.replace({"secure.min-cohort": 12}), 0))


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
    one = {"secure.min-cohort": 200, "secure.max-cohort": 200, "secure.colluders": 1}
    alone = Job.of({**ONE_SUM, **one})
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
        ({"robust__f": 2}, "robust.f above secure.colluders"),
        ({"robust__f": 1}, None),
        ({"secure__colluders": 0}, "groups without secure.colluders"),
        ({"secure__colluders": 0, "robust__f": 0}, "groups without secure.colluders"),
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


def test_an_automatic_f_assumes_no_more_than_the_noise_bears():
    """Of 20 groups 6 would be 30 %."""
    for colluders, f in ((1, 1), (3, 3), (9, 6)):
        nodes = {"colluders": colluders, "min_cohort": 20, "group_size": 20}
        asked = job(**{f"secure__{k}": v for k, v in nodes.items()})
        [robust] = [x for x in walk(stack.build(asked)) if isinstance(x, Robust)]
        assert robust.refusal(20) is None
        assert assume(robust.rule, 20, robust.most_f) == f
    alone = Job.of({"robust.rule": "wfagg"})
    [robust] = [x for x in walk(stack.build(alone)) if isinstance(x, Robust)]
    assert robust.most_f is None


def test_a_run_in_groups_is_charged_as_one_sum_a_round(tmp_path):
    changes = {
        "secure.scheme": "secagg",
        "secure.group-size": 4,
        "secure.min-cohort": 4,
        "secure.max-cohort": 4,
        "secure.colluders": 1,
        "round.min-nodes": 8,
        "robust.rule": "wfagg",
        "privacy.mechanism": "auto",
        "privacy.trust": "distributed",
        "privacy.epsilon": 20.0,
        "privacy.insecure": True,
        "train.rounds": 2,
    }
    result = runs.run(tmp_path, changes=changes, nodes=8)
    told = read(result.dir / "events.jsonl")
    of = {k: [e for e in told if e["kind"] == k] for k in {e["kind"] for e in told}}
    assert [e["clients"] for e in of["secure-sum"]] == [4] * 4
    assert [e["clipped"] for e in of["secure-sum"]] == [0] * 4
    assert of["privacy-spent"][-1]["epsilon"] == pytest.approx(20, rel=1e-3)
    [plan] = of["privacy-plan"]
    assert plan["groups"] == 2
    assert plan["group-noise-to-signal"] > plan["noise-to-signal"] > 0
    assert "reply-dropped" not in of
    found = report(Finished.read(result.dir))
    assert (found["trust"], found["mechanism"]) == ("distributed", "skellam")
    assert found["epsilon"] == pytest.approx(20, rel=1e-3)
