"""One list, two folds; unsound settings are refused, row by row."""

from __future__ import annotations

import pytest
from flwr.serverapp.strategy import FedAdagrad, FedAdam, FedYogi

from strategies import stack
from strategies.anomaly.layer import Anomaly
from strategies.base import StrategyLayer, walk
from strategies.guard.layer import Guard
from strategies.mean.layer import WeightedMean
from strategies.robust.layer import Robust
from strategies.robust.make import RULES
from strategies.server_sgd import ServerSGD
from strategies.update import delta_mod
from tests.strategies import refused_tff as tff
from tests.strategies.compression import refused as compression
from tests.strategies.mechanisms import refused as mechanisms
from tests.strategies.secure import group_refused as groups
from tests.strategies.secure import refused as secure
from tests.strategies.secure import secagg_refused as secagg
from truststram.errors import ConfigError
from truststram.job import Job


def test_the_default_stack():
    names = [type(layer).__name__ for layer in walk(stack.build(Job()))]
    assert names == ["Guard", "WeightedMean", "ServerSGD"]
    assert stack.mods(Job()) == [delta_mod]


def test_sums_of_integers_have_nothing_around_them_that_reads_updates():
    class Taking(ServerSGD):
        integers = ((3, 2),)

    job = Job.of({"secure.scheme": "secagg", "server.average": 0.5})

    def names(inner):
        return [type(layer).__name__ for layer in walk(stack.build(job, inner))]

    around = ["SecAggSum", "Guard", "WeightedMean", "TailAverage"]
    assert names(ServerSGD()) == [*around, "ServerSGD"]
    assert names(Taking()) == ["SecAggSum", "TailAverage", "Taking"]


@pytest.mark.parametrize(
    ("optimizer", "kind"),
    [("sgd", ServerSGD), ("adam", FedAdam), ("yogi", FedYogi), ("adagrad", FedAdagrad)],
)
def test_the_server_optimizer_is_innermost(optimizer, kind):
    job = Job.of(
        {"server.optimizer": optimizer, "round.fraction": 0.5, "round.min-nodes": 7}
    )
    *_, innermost = walk(stack.build(job))
    assert type(innermost) is kind
    assert (innermost.fraction_train, innermost.min_available_nodes) == (0.5, 7)


def test_the_servers_learning_rate():
    *_, sgd = walk(stack.build(Job()))
    *_, adam = walk(stack.build(Job.of({"server.optimizer": "adam"})))
    *_, given = walk(
        stack.build(Job.of({"server.optimizer": "adam", "server.lr": 0.5}))
    )
    assert (sgd.lr, adam.eta, given.eta) == (1.0, 0.03, 0.5)


def test_every_layer_of_the_table_is_a_layer_or_a_mod():
    for row in stack.LAYERS:
        assert row.wrap or row.mod
        if row.wrap:
            assert isinstance(row.wrap(Job(), ServerSGD()), StrategyLayer)


@pytest.mark.parametrize("rule", ["wfagg", "wfagg-paper"])
def test_a_robust_rule_takes_the_place_of_the_mean(rule):
    job = Job.of({"robust.rule": rule, "robust.f": 2, "round.min-nodes": 5})
    anomaly, guard, robust, sgd = walk(stack.build(job))
    assert isinstance(anomaly, Anomaly)
    assert isinstance(guard, Guard)
    assert isinstance(robust, Robust)
    assert isinstance(sgd, ServerSGD)
    assert robust.rule.f == 2


def test_nodes_are_watched_with_a_robust_rule_or_on_request():
    def watched(**changes):
        stack_of = stack.build(Job.of(changes))
        return [x for x in walk(stack_of) if isinstance(x, Anomaly)]

    assert watched() == []
    assert watched(**{"robust.rule": "wfagg", "anomaly.enabled": "off"}) == []
    [default] = watched(**{"robust.rule": "wfagg"})
    assert (default.quarantine, default.alert.limit) == (10, 0.3)
    assert (default.response, default.verdicts) == ("log", True)
    settings = {"quarantine": 3, "alert-fraction": 0.5, "response": "tighten"}
    changes = {f"anomaly.{key}": value for key, value in settings.items()}
    [given] = watched(**{"anomaly.enabled": "on"}, **changes)
    assert (given.quarantine, given.alert.limit) == (3, 0.5)
    assert given.response == "tighten"


@pytest.mark.parametrize("rule", sorted(set(RULES) - {"wfagg"}))
def test_rejections_by_rules_that_always_reject_are_no_verdicts(rule):
    job = Job.of({"robust.rule": rule, "round.min-nodes": 20})
    [anomaly] = [x for x in walk(stack.build(job)) if isinstance(x, Anomaly)]
    assert not anomaly.verdicts


@pytest.mark.parametrize("pre", ["nnm", "bucketing"])
def test_what_comes_before_a_rule(pre):
    changes = {"robust.pre": pre, "robust.f": 2, "round.min-nodes": 9}
    build = [
        stack.build(Job.of({"robust.rule": "median", "run.seed": seed, **changes}))
        for seed in (1, 1, 2)
    ]
    rules = [
        layer.rule for s in build for layer in walk(s) if isinstance(layer, Robust)
    ]
    assert [type(rule).__name__.lower() for rule in rules] == [pre] * 3
    assert {rule.f for rule in rules} == {2}
    one, same, other = (rule.state() for rule in rules)
    assert one == same
    assert (one == other) == (pre == "nnm")


def test_f_is_automatic_by_default_and_never_too_large_for_the_smallest_cohort():
    for rule in RULES:
        job = Job.of({"robust.rule": rule, "round.min-nodes": 1})
        (robust,) = (x for x in walk(stack.build(job)) if isinstance(x, Robust))
        assert robust.auto_f
    job = Job.of({"robust.rule": "median", "robust.f": 0})
    (robust,) = (x for x in walk(stack.build(job)) if isinstance(x, Robust))
    assert (robust.auto_f, robust.rule.f) == (False, 0)


@pytest.mark.parametrize(
    ("changes", "least"),
    [
        ({"robust.rule": "median"}, 5),
        ({"robust.rule": "krum"}, 7),
        ({"robust.rule": "bulyan"}, 11),
        ({"robust.rule": "median", "robust.pre": "nnm"}, 5),
        ({"robust.rule": "median", "robust.pre": "bucketing"}, 9),
        ({"robust.rule": "krum", "robust.pre": "bucketing"}, 13),
        ({"robust.rule": "median", "round.fraction": 0.5}, 10),
    ],
)
def test_the_smallest_cohort_must_outvote_f(changes, least):
    job = Job.of({"robust.f": 2, "round.min-nodes": least, **changes})
    stack.check(job)
    with pytest.raises(ConfigError, match="more attackers than it can outvote"):
        stack.check(job.replace({"round.min-nodes": least - 1}))


def test_the_adversary_is_outermost():
    job = Job.of({"adversary.kind": "ipm", "adversary.fraction": 0.2})
    names = [type(layer).__name__ for layer in walk(stack.build(job))]
    assert names == ["Adversary", "Guard", "WeightedMean", "ServerSGD"]


CENTRAL = {"privacy.mechanism": "gaussian"}
LOCAL = {"privacy.mechanism": "gaussian", "privacy.trust": "local"}
EXAMPLES = {"privacy.mechanism": "dp-sgd", "privacy.unit": "example"}
EVALUATED = {
    **CENTRAL,
    "privacy.evaluate-epsilon": 1.0,
    "round.evaluate": "clients",
}
REFUSED = {
    **compression.REFUSED,
    **groups.REFUSED,
    **mechanisms.REFUSED,
    **secure.REFUSED,
    **secagg.REFUSED,
    **tff.REFUSED,
    "anomaly settings with": {"anomaly.quarantine": 3},
    "server.momentum with": {"server.optimizer": "adam", "server.momentum": 0.9},
    "natural-id without": {"data.partitioner": "natural-id"},
    "adversary.kind without": {"adversary.kind": "noise"},
    "robust.rule with more": {
        "robust.rule": "wfagg",
        "robust.f": 1,
        "round.min-nodes": 2,
    },
    "robust.pre with": {"robust.rule": "wfagg", "robust.f": 1, "robust.pre": "nnm"},
    "robust.pre = nnm with": {
        "robust.rule": "median",
        "robust.f": 0,
        "robust.pre": "nnm",
    },
    "robust.rule with client-level privacy by the server": {
        **CENTRAL,
        "robust.rule": "wfagg",
    },
    "robust.rule with client-level privacy by the nodes": {
        **LOCAL,
        "robust.rule": "median",
    },
    "anomaly.enabled = on with": {**CENTRAL, "anomaly.enabled": "on"},
    "round.quorum below 1 with": {**CENTRAL, "round.quorum": 0.9},
    "round.evaluate = clients with": {**CENTRAL, "round.evaluate": "both"},
    "privacy.evaluate-epsilon without": {**CENTRAL, "privacy.evaluate-epsilon": 1.0},
    "privacy.evaluate-every without": {**CENTRAL, "privacy.evaluate-every": 5},
    "privacy.evaluate-epsilon of the whole": {**EVALUATED, "privacy.epsilon": 1.0},
    "run.patience with": {**EVALUATED, "run.patience": 3},
    "privacy.schedule with": {**LOCAL, "privacy.schedule": "increasing"},
    "privacy.schedule = on-plateau without": {
        **CENTRAL,
        "privacy.schedule": "on-plateau",
        "round.evaluate": "none",
    },
    "privacy.schedule = on-plateau with": {
        **EVALUATED,
        "round.evaluate": "both",
        "privacy.schedule": "on-plateau",
    },
    "privacy.sampling = fixed with noise": {**LOCAL, "privacy.sampling": "fixed"},
    "privacy.sampling = fixed with privacy.relation": {
        **CENTRAL,
        "privacy.sampling": "fixed",
        "privacy.relation": "add-remove",
    },
    "run.checkpoint-every above": {**LOCAL, "run.checkpoint-every": 2},
    "privacy.mechanism with another": {"privacy.mechanism": "dp-sgd"},
    "privacy.unit = example with": {**EXAMPLES, "privacy.trust": "central"},
    "privacy.relation with": {**LOCAL, "privacy.relation": "add-remove"},
    "privacy.relation = replace with": {
        **CENTRAL,
        "privacy.relation": "replace",
        "round.fraction": 0.5,
    },
    "privacy.clip-quantile without": {**LOCAL, "privacy.clip-quantile": 0.5},
}


@pytest.mark.parametrize("what", REFUSED)
def test_unsound_combinations_are_refused_with_reason_and_alternative(what):
    with pytest.raises(ConfigError, match=what) as error:
        stack.build(Job.of(REFUSED[what]))
    assert "is refused: " in str(error.value)
    assert "Instead: " in str(error.value)


@pytest.mark.parametrize("rule", ["wfagg", "wfagg-paper"])
@pytest.mark.parametrize("pre", ["nnm", "bucketing"])
def test_rules_of_single_clients_see_single_clients(rule, pre):
    with pytest.raises(ConfigError) as error:
        stack.check(Job.of({"robust.rule": rule, "robust.pre": pre}))
    assert str(error.value).count("\n") == 0
    assert "its own past" in str(error.value)


def test_every_refusal_has_a_test():
    assert len(REFUSED) == len(stack.REFUSALS)


@pytest.mark.parametrize(
    "changes",
    [
        CENTRAL,
        LOCAL,
        EXAMPLES,
        {**EXAMPLES, "robust.rule": "wfagg", "anomaly.enabled": "on"},
        {**EXAMPLES, "privacy.mechanism": "auto"},
        {**CENTRAL, "privacy.relation": "replace"},
        {**CENTRAL, "privacy.clip-quantile": 0.5, "round.fraction": 0.5},
        {**CENTRAL, "server.optimizer": "adam"},
    ],
)
def test_what_is_private_and_sound_is_accepted(changes):
    stack.check(Job.of(changes))


def test_the_layers_of_privacy():
    def names(changes):
        job = Job.of(changes)
        return [type(layer).__name__ for layer in walk(stack.build(job))]

    central = ["Guard", "CentralDP", "TailAverage", "ServerSGD"]
    assert names(CENTRAL) == central
    assert names(LOCAL) == ["Guard", "WeightedMean", "ServerSGD"]
    assert not stack.build(Job.of(LOCAL)).inner.weighted
    assert names({**CENTRAL, "server.average": 0.0}) == [*central[:2], "ServerSGD"]
    for job, count in ((CENTRAL, 2), (LOCAL, 2), (EXAMPLES, 2), ({}, 1)):
        assert len(stack.mods(Job.of(job))) == count


def test_sound_neighbours_are_accepted():
    stack.check(Job.of({"server.optimizer": "sgd", "server.momentum": 0.9}))
    stack.check(Job.of({"data.partitioner": "natural-id", "data.id-column": "site"}))


def test_capabilities_are_declared():
    assert WeightedMean.reduces
    assert not Guard.reduces
    assert not Guard.needs_plaintext
